"""What an evaluation prints and stores beside its answers."""

import json
from importlib.resources import files
from pathlib import Path

from tests.support.json_schema import violations
from tests.support.records import answer_record, answer_records, unfinished_record
from tinkersmith.data.samples import Source
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.evaluation.report import analyse, copies_lines, report, score_table
from tinkersmith.evaluation.results import Record
from tinkersmith.evaluation.summary import EvaluationResult, Scored, copies


def lines_of(trained: list[Record], base: list[Record] | None = None) -> list[str]:
    result = EvaluationResult(
        "tinker://run",
        "base",
        Scored(trained, 1.0),
        Scored(base, 2.0) if base else None,
        [],
        Overlap(""),
        Path("out.json"),
    )
    return report(result, analyse(trained, base), 256)


def test_the_report_of_two_models_has_scores_verdict_lists_and_budget():
    lines = lines_of(answer_records("+" * 30 + "-" * 10), answer_records("-" * 30 + "+-" * 5))
    text = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert "Both models had at most 256 tokens for an answer." in text
    assert "n = 40 distinct questions; in brackets: 95 % intervals." in text
    assert "The trained model is better than the base model (final answer): +62.5" in text
    assert "The trained model: won 30, lost 5, both right 0, both wrong 5. Test:" in text
    assert "  won: test.json, record 1: Question 1?" in text and "won: 27 more in out.json" in text
    assert "  lost: test.json, record 31: Question 31?" in text
    assert "4 groups are tested" in text and "*" in text


def test_the_columns_stay_where_they_are_with_full_marks():
    table = score_table([("a", answer_records("+" * 9)), ("b", answer_records("-" * 9))])
    assert (
        table[1]
        == "exact match     100.0% (70.1% to 100.0%) 0.0% (0.0% to 29.9%)     +100.0 points"
    )
    assert max(map(len, table)) <= 80


def test_unfinished_thoughts_are_counted_apart_and_the_other_way_to_count_is_shown():
    text = " ".join(
        " ".join(lines_of(answer_records("+" * 10), answer_records("+" * 6 + "?" * 4))).split()
    )
    assert "4 of its answers end within the thought, which is no answer, and have no score" in text
    assert "A larger SAMPLING_MAX_TOKENS lets a thought end" in text
    assert "No difference shown" in text
    assert "4 questions are left out, because a thought never ended." in text
    assert "With unfinished thoughts counted as wrong, the scores are 100.0% and 60.0%" in text


def test_cut_answers_are_named():
    cut = [answer_record(n, 0.0, stop_reason="length", final_answer=None) for n in range(1, 9)]
    text = " ".join(" ".join(lines_of(cut)).split())
    assert "8 of its answers were cut at SAMPLING_MAX_TOKENS = 256 or at the end of the" in text
    assert "test.json, record 5 and 3 more" in text
    one = " ".join(lines_of([unfinished_record(1), answer_record(2)]))
    assert "1 of its answers ends within the thought" in one


def test_copies_and_contradictions_are_said():
    records = [
        answer_record(1, question="a"),
        answer_record(2, question="a", expected="Answer: 7", expected_answer="7"),
    ]
    text = " ".join(" ".join(copies_lines(copies(records))).split())
    assert "1 sample asks what an earlier one asks" in text
    assert "(the first: test.json, record 2 is test.json, record 1)" in text
    assert "Warning: 1 question has samples that expect different answers" in text
    assert copies_lines(copies(records[:1])) == []


def test_several_answers_are_told_together():
    records = [answer_record(n, float(d > n), draw=d) for n in range(1, 6) for d in range(1, 5)]
    text = " ".join(" ".join(lines_of(records)).split())
    assert "4 answers a question (final answer): pass@1 30.0%" in text
    assert "pass@4 60.0%" in text and "majority vote" in text


def test_a_metric_that_one_model_lacks_is_said_to_be_missing():
    first = [answer_record(1, scores={"exact_match": 1.0, "perplexity": 3.0})]
    table = score_table([("a", first), ("b", answer_records("+"))])
    assert next(line for line in table if line.startswith("perplexity")).endswith("not measured")


def test_the_file_has_what_the_report_says_and_is_json():
    trained, base = answer_records("+" * 30 + "-" * 10), answer_records("-" * 40)
    stored = json.loads(json.dumps(analyse(trained, base).to_json(), allow_nan=False))
    assert stored["verdicts"]["final_answer"]["counts"]["won"] == 30
    assert len(stored["verdicts"]["final_answer"]["questions"]["both_wrong"]) == 10
    assert stored["groups"][0]["by"] == "prompt length" and len(stored["groups"]) == 4
    assert stored["copies"] == {"repeated_questions": [], "contradictions": []}
    alone = analyse(trained, None).to_json()
    assert alone["verdicts"] is None and alone["several_answers"] is None
    drawn = [answer_record(1, draw=draw, source=Source("f", 1)) for draw in (1, 2)]
    several = analyse(drawn, None).to_json()
    assert several["several_answers"]["trained"]["pass_at_k"]["2"]["mean"] == 1
    schema = json.loads(
        files("tinkersmith.evaluation")
        .joinpath("evaluation_results.schema.json")
        .read_text("utf-8")
    )
    schema["required"] = list(several)
    for content in (stored, alone, several):
        assert violations(content, schema) == []


def test_texts_from_files_neither_act_on_the_terminal_nor_break_the_lines():
    records = [
        answer_record(
            n,
            float(n % 2),
            prompt=f"\x1b[31m{'很长的问题' * 30}第{n}题\r\n",
            fields={"主题\x1b": ("代数与几何以及其他的一切内容", "b\x07")[n % 3 == 0]},
        )
        for n in range(1, 41)
    ]
    base = [answer_record(n, float(n % 2 == 0), prompt=records[n - 1].prompt) for n in range(1, 41)]
    lines = lines_of(records, base)
    assert not {"\x1b", "\x07", "\r"} & set("".join(lines))
    shown = "\n".join(lines[: next(i for i, line in enumerate(lines) if "A correct" in line)])
    assert "第1题" in shown and "主题\\x1b" in shown and "b\\x07" in shown
    wide = [sum(2 if ord(c) > 0x2E80 else 1 for c in line) for line in shown.splitlines()]
    assert max(wide) <= 80


def test_a_score_without_bounds_keeps_its_unit_in_small_groups():
    records = [
        answer_record(
            n, scores={"points": 0.5 if n < 11 else 40.0 + n}, fields={"t": "a" if n < 11 else "b"}
        )
        for n in range(1, 41)
    ]
    text = "\n".join(lines_of(records))
    assert "points          49.2 (39.8 to 58.7)" in text
    row = next(line for line in text.splitlines() if line.startswith("    a "))
    assert "%" not in row and "0.5 (0.5 to 0.5)" in row
