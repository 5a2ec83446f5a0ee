"""The files that an evaluation writes: they follow their schema, and are read back."""

import csv
import io
import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.support.json_schema import undescribed, violations
from tests.support.small_run import SmallRun, small_run
from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.evaluation.leaks import Overlap
from tinkersmith.evaluation.result_files import (
    answers_file_of,
    check_results_writable,
    table_file_of,
    write_table,
)
from tinkersmith.evaluation.results import SCHEMA_VERSION, Record, read_results
from tinkersmith.evaluation.summary import EvaluationResult, Scored
from tinkersmith.files import write_json

SCHEMA = json.loads(
    files("tinkersmith.evaluation").joinpath("evaluation_results.schema.json").read_text("utf-8")
)


def record(**changes: Any) -> Record:
    scores = {"exact_match": 0.0, "final_answer": 1.0, "contains_answer": 1.0}
    made = Record(Source("f", 1), "p", "e", "e", "e", scores, "stop", 5, 1, "q", prompt_tokens=2)
    return replace(made, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EvaluationResult]:
    """Files of a real evaluation with everything that can be in them."""
    small: SmallRun = small_run()
    folder = tmp_path_factory.mktemp("results")
    test = folder / "test.json"
    known = {"instruction": "Add.", "input": "10 + 10", "output": "Answer: 20"}
    test.write_text(
        json.dumps(
            [
                {**known, "topic": "sums", "level": 3},
                known,
                {"text": "plain"},
                {"instruction": "No answer."},
                {"instruction": "Add. " * 200, "output": "Answer: 0"},
                {"instruction": "加。", "input": "一加二", "output": "答案：三"},
            ]
        )
    )
    result = evaluate(
        small.settings,
        test_file=str(test),
        compare_base=True,
        output_file=folder / "results.json",
        say=lambda _: None,
    )
    return folder / "results.json", result


@pytest.mark.engine
def test_real_results_follow_the_schema_and_everything_in_them_is_described(written: Any):
    content = json.loads(written[0].read_text("utf-8"))
    assert violations(content, SCHEMA) == []
    assert undescribed(content, SCHEMA) == set()
    assert content["schema_version"] == SCHEMA_VERSION
    counts = content["counts"]
    assert (counts["plain_texts"], counts["skipped_records"], counts["prompts_too_long"]) == (
        1,
    ) * 3
    assert (counts["evaluated"], counts["distinct_questions"]) == (3, 2)
    assert content["samples"][0]["fields"] == {"topic": "sums", "level": "3"}
    assert content["samples"][0]["question"] == content["samples"][1]["question"]


@pytest.mark.engine
def test_the_schema_sees_what_is_wrong(written: Any):
    content = json.loads(written[0].read_text("utf-8"))
    for change in (
        lambda c: c.pop("model_path"),
        lambda c: c.update(schema_version=3),
        lambda c: c["samples"][0].update(tokens="5"),
        lambda c: c["samples"][0].update(stop_reason="tired"),
        lambda c: c["base_samples"][0]["scores"].update(final_answer=None),
        lambda c: c["measures"].update(more=1),
        lambda c: c["base"]["metrics"]["final_answer"]["interval_95"].pop(),
        lambda c: c["leaks"]["exact"][0].update(similarity=2),
        lambda c: c["counts"].update(samples=-1),
    ):
        wrong = json.loads(json.dumps(content))
        change(wrong)
        assert len(violations(wrong, SCHEMA)) == 1


@pytest.mark.engine
def test_results_are_read_back_as_they_were(written: Any):
    file, result = written
    read = read_results(file)
    assert (read.schema_version, read.path) == (SCHEMA_VERSION, file)
    assert read.trained == result.trained.records
    assert result.base is not None and read.base == result.base.records
    assert read.facts["model_path"] == result.model_path and "samples" not in read.facts


@pytest.mark.engine
def test_the_other_files_hold_every_answer(written: Any):
    file, result = written
    lines = [json.loads(line) for line in answers_file_of(file).read_text("utf-8").splitlines()]
    assert [line.pop("model") for line in lines] == ["trained"] * 3 + ["base"] * 3
    assert lines == [r.to_json() for r in [*result.trained.records, *result.base.records]]
    data = table_file_of(file).read_bytes()
    assert data.startswith(b"\xef\xbb\xbf") and "加。".encode() in data
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    assert len(rows) == 6 and rows[0]["field topic"] == "sums" and rows[1]["field topic"] == ""
    assert rows[0]["prompt"] == result.trained.records[0].prompt
    assert float(rows[3]["score final_answer"]) == result.base.records[0].scores["final_answer"]


def test_no_cell_of_the_table_is_a_formula(tmp_path: Path):
    wicked = [
        "=1+1",
        "+1",
        "-5",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "  =1",
        "＝1",
        '=HYPERLINK("x")',
    ]
    records = [
        record(
            produced=text,
            expected=text,
            expected_answer=text,
            final_answer=text,
            prompt=text,
            source=Source(text, 1),
            fields={text: text},
        )
        for text in wicked
    ]
    records.append(record(produced="x" * 50_000, prompt="a - b = c", fields={"n": "5 - 3"}))
    result = EvaluationResult("m", "b", Scored(records, 1.0), None, [], Overlap(""), tmp_path / "r")
    write_table(result)
    text = table_file_of(tmp_path / "r").read_bytes().decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 12
    for cell in (cell for row in rows for cell in row):
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))
        assert len(cell) < 32_767
    assert rows[1][rows[0].index("produced")] == "'=1+1"
    last = dict(zip(rows[0], rows[-1], strict=True))
    assert last["prompt"] == "a - b = c" and last["field n"] == "5 - 3"
    assert last["produced"].endswith("(18,000 more characters)")


OLD = {
    "model_path": "tinker://a",
    "metrics": {},
    "samples": [
        {
            "file": "t.json",
            "record": 1,
            "draw": 1,
            "prompt": "p",
            "expected": "e",
            "expected_answer": None,
            "produced": "e",
            "scores": {"exact_match": 1.0},
            "stop_reason": "stop",
            "tokens": 3,
        }
    ],
    "base_samples": [],
}


def test_results_of_an_earlier_version_are_read(tmp_path: Path):
    file = tmp_path / "old.json"
    write_json(file, {**OLD, "samples": OLD["samples"] * 2})
    read = read_results(file)
    assert read.schema_version == 1 and read.base == []
    first, second = read.trained
    assert first.question == second.question != ""
    assert first.thought_finished and first.final_answer is None


def _with(change: dict[str, Any]) -> dict[str, Any]:
    return {**OLD, "samples": [{**OLD["samples"][0], **change}]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "holds no results of an evaluation: it is not JSON at line 1"),
        ("[]", "holds no results of an evaluation: it holds a list"),
        ({}, "holds no results of an evaluation. Name a file"),
        ({**OLD, "schema_version": 99}, "has schema version 99; this version of Tinkersmith reads"),
        ({**OLD, "schema_version": "2"}, '"schema_version" is a string'),
        ({**OLD, "schema_version": True}, '"schema_version" is true'),
        ({**OLD, "schema_version": 2}, 'record 1 of "samples" has no "question"'),
        ({**OLD, "samples": {}}, '"samples" is an object, not a list'),
        ({**OLD, "samples": [1]}, 'record 1 of "samples" is the number 1, not an object'),
        (_with({"tokens": True}), 'record 1 of "samples" has true as "tokens"'),
        (_with({"produced": None}), 'record 1 of "samples" has null as "produced"'),
        (_with({"scores": {"x": "1"}}), 'has a string as the score "x"'),
        (_with({"scores": {"x": float("nan")}}), 'as the score "x"'),
        (_with({"scores": {"x": float("inf")}}), 'as the score "x"'),
        ({**OLD, "model_path": ["a"]}, '"model_path" is a list'),
        ({**OLD, "counts": 3}, '"counts" is the number 3'),
        ({**OLD, "base": "x"}, '"base" is a string'),
        ({**OLD, "groups": [[]]}, '"1" of "groups" is a list'),
        ({**OLD, "verdicts": {"exact_match": {}}}, '"first" of "exact_match" of "verdicts"'),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, content: Any, words: str):
    file = tmp_path / "results.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError) as caught:
        read_results(file)
    assert str(file) in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_of_results_is_one_sentence(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        read_results(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("there", "output", "reason"),
    [
        ("test.json", "test.json", "exists and holds no results of an evaluation"),
        ("config.py", "config.py", "exists and holds no results of an evaluation"),
        ("mine.csv", "mine.json", "mine.csv exists, and a file beside the results"),
        ("mine.answers.jsonl", "mine.json", "mine.answers.jsonl exists"),
        ("mine.confusion.csv", "mine.json", "mine.confusion.csv exists"),
        ("other.json", "table.csv", "Name it .*table.json"),
    ],
)
def test_a_file_that_no_evaluation_wrote_is_never_replaced(
    there: str, output: str, reason: str, tmp_path: Path
):
    (tmp_path / there).write_text('[{"instruction": "q", "output": "a"}]')
    with pytest.raises(UserError, match=reason):
        check_results_writable(tmp_path / output)
    assert (tmp_path / there).read_text() == '[{"instruction": "q", "output": "a"}]'


def test_results_of_an_earlier_evaluation_are_replaced(written: tuple[Path, EvaluationResult]):
    file, _ = written
    before = file.read_bytes()
    check_results_writable(file)
    assert file.read_bytes() == before
