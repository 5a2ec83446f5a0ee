"""Two files of results, compared without any model."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.records import answer_record, answer_records, write_results_file
from tinkersmith.cli.main import main
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.evaluation.compare import ComparedFiles, compare_files, comparison_lines
from tinkersmith.evaluation.results import Record


def compare(folder: Path, first: list[Record], second: list[Record], **facts: Any) -> ComparedFiles:
    a = write_results_file(folder / "a.json", first)
    b = write_results_file(folder / "b.json", second, **facts)
    return compare_files(a, b)


def said(compared: ComparedFiles) -> str:
    return " ".join(" ".join(comparison_lines(compared)).split())


def test_the_command_compares_and_writes_json_and_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a = write_results_file(tmp_path / "a.json", answer_records("+" * 30 + "-" * 10))
    b = write_results_file(tmp_path / "b.json", answer_records("-" * 25 + "+" * 5 + "-" * 10))
    before = [a.read_bytes(), b.read_bytes()]
    out = tmp_path / "comparison.json"
    assert main(["compare", str(a), str(b), "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "A is better than B (final answer): +62.5 points" in shown
    assert f"won: 22 more in {out}" in shown and "Written:" in shown
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert stored["verdicts"]["final_answer"]["counts"]["won"] == 25
    assert [q["outcome"] for q in stored["questions"]].count("won") == 25
    assert stored["questions"][0]["first"] == ["Answer: 1"]
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 40 and rows[0]["outcome"] == "won"
    assert (rows[0]["first final_answer"], rows[0]["second final_answer"]) == ("1.0", "0.0")
    assert [a.read_bytes(), b.read_bytes()] == before
    assert main(["compare", str(a), str(b), "--output", str(out)]) == 0, "a comparison is replaced"


def test_questions_are_matched_by_digest_wherever_they_stand(tmp_path: Path):
    first = answer_records("++--+")
    second = [
        replace(record, source=Source("other.json", 99 - record.source.record))
        for record in reversed(answer_records("+++++"))
    ]
    compared = compare(tmp_path, first, second)
    assert compared.matched_by == "question" and len(compared.pairs) == 5
    assert len(compared.verdicts["final_answer"].outcomes["lost"]) == 2


def test_old_files_are_matched_by_the_text_of_their_prompts(tmp_path: Path):
    old = tmp_path / "old.json"
    write_results_file(old, answer_records("+-+-++"))
    content = json.loads(old.read_text(encoding="utf-8"))
    del content["schema_version"]
    for record in content["samples"]:
        for name in ("question", "generated", "final_answer", "rule", "kind"):
            del record[name]
        for name in ("thought_finished", "prompt_tokens", "fields"):
            del record[name]
    old.write_text(json.dumps(content), encoding="utf-8")
    new = write_results_file(tmp_path / "new.json", answer_records("++++++"))
    compared = compare_files(old, new)
    assert compared.matched_by == "prompt" and len(compared.pairs) == 6
    assert "matched by the text of their prompts" in said(compared)


def test_other_templates_are_matched_by_file_and_record(tmp_path: Path):
    def of_template(records: list[Record], mark: str) -> list[Record]:
        return [
            replace(
                record,
                question=f"{mark}{record.question}",
                prompt=f"{mark}{record.prompt}",
                source=Source(f"{mark}/test.json", record.source.record),
            )
            for record in records
        ]

    first, second = answer_records("+-+-++"), answer_records("++++++")
    first[1] = replace(first[1], question=first[0].question)  # a copy stays a copy
    compared = compare(tmp_path, of_template(first, "x"), of_template(second, "y"))
    assert compared.matched_by == "record" and len(compared.pairs) == 5
    assert "the prompts differ" in said(compared)


def test_questions_of_one_file_alone_are_counted_and_named(tmp_path: Path):
    first, second = answer_records("++++++++"), answer_records("++++++++++")[2:]
    text = said(compare(tmp_path, first, second))
    assert "Compared: 6 questions of both files." in text
    assert (
        "2 questions are only in A and left out: test.json, record 1; test.json, record 2" in text
    )
    assert "2 questions are only in B and left out: test.json, record 9" in text


def test_different_expected_answers_are_left_out_and_named(tmp_path: Path):
    first, second = answer_records("++++++++"), answer_records("++++++++")
    second[2] = answer_record(3, expected="Answer: 33", expected_answer="33")
    second[3] = answer_record(4, expected="It is 4.0.", expected_answer="4.0")
    compared = compare(tmp_path, first, second)
    assert len(compared.pairs) == 7
    assert (
        "Warning: 1 question has different expected answers in the two files and is left out: "
        "test.json, record 3"
    ) in said(compared)


def test_other_settings_are_said(tmp_path: Path):
    settings = {"SAMPLING_MAX_TOKENS": 512, "SAMPLING_TEMPERATURE": 0.7, "SEED": 0}
    compared = compare(
        tmp_path,
        answer_records("++++++"),
        answer_records("++++++"),
        settings=settings,
        prompt_template="chat",
    )
    text = said(compared)
    assert "Warning: tokens for an answer: 256 in A, 512 in B." in text
    assert "temperature: 0.0 in A, 0.7 in B." in text
    assert "prompt template: instruction in A, chat in B." in text
    assert "answers a question: 1 in A, not stored in B." in text


def test_a_file_compared_with_itself_shows_no_difference(tmp_path: Path):
    file = write_results_file(tmp_path / "a.json", answer_records("+-" * 20))
    text = said(compare_files(file, file))
    assert "A and B are the same file." in text
    assert "both score the same on all 40 questions" in text
    assert "Both had at most 256 tokens for an answer." in text


def test_copies_and_unfinished_thoughts_are_said_of_each_file(tmp_path: Path):
    first = answer_records("+++++?+")
    first[1] = answer_record(2, question="q1")
    second = answer_records("+++++++")
    second[1] = answer_record(2, question="q1")
    text = said(compare(tmp_path, first, second))
    assert "1 sample asks what an earlier one asks" in text
    assert "A: 1 of its answers ends within the thought" in text
    assert "1 question is left out, because a thought never ended." in text


def test_another_metric_can_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a = write_results_file(tmp_path / "a.json", answer_records("+++++"))
    assert main(["compare", str(a), str(a), "--metric", "exact_match"]) == 0
    assert "(exact match)" in capsys.readouterr().out
    assert main(["compare", str(a), str(a), "--metric", "bleu"]) == 1
    error = capsys.readouterr().err
    assert 'There is no score "bleu" in' in error
    assert "Both files have: exact_match, final_answer, contains_answer." in error


def test_nothing_in_common_is_one_sentence(tmp_path: Path):
    strangers = [
        answer_record(n, prompt=f"p{n}", question=f"x{n}", source=Source("z.json", n))
        for n in range(1, 4)
    ]
    with pytest.raises(UserError, match="have no question in common"):
        compare(tmp_path, answer_records("+++"), strangers)
    with pytest.raises(UserError, match=r"a\.json has no answers"):
        compare(tmp_path, [], strangers)
    others = [answer_record(n, expected="no", expected_answer="no") for n in range(1, 4)]
    with pytest.raises(UserError, match="expect different answers to every question"):
        compare(tmp_path, answer_records("+++"), others)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("a.json", "is an input and an output"),
        ("b.json", "is an input and an output"),
        ("c.json", "exists and is no comparison"),
        ("d.csv", "Name it"),
        ("e.json", "e.csv exists, and the table of the comparison would replace it"),
        ("nowhere/file/f.json", "cannot be written"),
    ],
)
def test_no_file_that_is_something_else_is_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str, words: str
):
    a = write_results_file(tmp_path / "a.json", answer_records("+++++"))
    b = write_results_file(tmp_path / "b.json", answer_records("+++-+"))
    write_results_file(tmp_path / "c.json", answer_records("+"))
    (tmp_path / "e.csv").write_text("mine")
    (tmp_path / "nowhere").write_text("a file, not a folder")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert main(["compare", str(a), str(b), "--output", str(tmp_path / output)]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_link_to_an_input_is_not_written_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    a = write_results_file(tmp_path / "a.json", answer_records("+++++"))
    (tmp_path / "link.json").symlink_to(a)
    assert main(["compare", str(a), str(a), "--output", str(tmp_path / "link.json")]) == 1
    assert "is an input and an output" in capsys.readouterr().err


def test_several_answers_and_copies_keep_their_scores(tmp_path: Path):
    first = [answer_record(n, float(d > n % 3), draw=d) for n in range(1, 31) for d in (1, 2, 3)]
    second = [answer_record(n, float(d > 2), draw=d) for n in range(1, 31) for d in (1, 2, 3)]
    compared = compare(tmp_path, first, second)
    text = said(compared)
    assert "3 answers a question (final answer): pass@1" in text
    assert compared.verdicts["final_answer"].test == "paired permutation, mid-p"
    assert compared.verdicts["final_answer"].difference.mean == pytest.approx(1 / 3)
