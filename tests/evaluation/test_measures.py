"""METRICS in whole evaluations: scores in the records, what is printed, and the files."""

import csv
import io
import json
import math
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import tinker

from tests.support.json_schema import undescribed, violations
from tests.support.judge_server import StubJudge, judge_server, text_between_marks
from tests.support.small_run import SmallRun, small_run
from tinkersmith.data.samples import Sample, Source, Turn
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.evaluation.measures import question_for_a_judge
from tinkersmith.service.connection import open_service
from tinkersmith.service.likelihood import answers_to_measure

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]
SCHEMA = json.loads(
    files("tinkersmith.evaluation").joinpath("evaluation_results.schema.json").read_text("utf-8")
)


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.fixture
def stub() -> Iterator[StubJudge]:
    with judge_server() as judge:
        yield judge


def evaluated(
    small: SmallRun, folder: Path, records: list[dict[str, Any]], base: bool = False, **given: Any
) -> tuple[dict[str, Any], str]:
    """The file of results and what was printed."""
    test = folder / "test.json"
    test.write_text(json.dumps(records), encoding="utf-8")
    said: list[str] = []
    changes = {name: value for name, value in given.items() if name != "resume"}
    evaluate(
        small.settings.model_copy(update=changes),
        test_file=str(test),
        compare_base=base,
        output_file=folder / "results.json",
        resume=given.get("resume", False),
        say=said.append,
    )
    content = json.loads((folder / "results.json").read_text("utf-8"))
    assert violations(content, SCHEMA) == [] and undescribed(content, SCHEMA) == set()
    return content, "\n".join(said)


def sums(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": "Add.", "input": f"{n} + {n}", "output": f"Answer: {2 * n}"}
        for n in range(30, 30 + count)
    ]


@pytest.fixture(scope="module")
def everything(
    small: SmallRun, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, StubJudge]:
    """An evaluation of both models with the metrics of texts, and a judge that knows its mind."""
    with judge_server() as stub:
        stub.reply = lambda system, user: (
            "Winner: A" if "Answer" in text_between_marks(user, "Answer A") else "Winner: B"
        )
        content, said = evaluated(
            small,
            tmp_path_factory.mktemp("everything"),
            sums(4),
            base=True,
            metrics=["final_answer", "token_f1", "rouge_l", "bleu", "perplexity", "judge"],
            judge_url=stub.url,
            judge_model="m",
            judge_mode="pairwise",
            judge_price={"input": 1.0, "output": 1.0},
        )
    return content, said, stub


def test_texts_perplexity_and_a_judge_in_both_orders(everything: Any):
    content, said, stub = everything
    for record in content["samples"]:
        assert list(record["scores"]) == [
            *("final_answer", "token_f1", "rouge_l", "sentence_bleu"),
            *("perplexity", "bits_per_byte", "judge"),
        ]
        assert record["scores"]["judge"] == 1.0
    assert [record["scores"]["judge"] for record in content["base_samples"]] == [0.0] * 4
    judge = content["measures"]["judge"]
    assert (judge["tuned_better"], judge["orders_agree"], judge["requests"]) == (4, 1.0, 8)
    assert judge["cost"] == pytest.approx(8 * 110 / 1e6)
    # The first question tries the judge; no prompt has the marks of a template.
    assert len(stub.requests) == 9
    assert text_between_marks(stub.requests[1]["messages"][1]["content"], "The question") in [
        f"Add.\n\n{n} + {n}" for n in range(30, 34)
    ]
    trained, base = (content["measures"][model]["likelihood"] for model in ("trained", "base"))
    assert trained["perplexity"] < base["perplexity"] / 10
    assert trained["bytes"] == sum(len(record["expected"]) for record in content["samples"])
    assert 'tokenizer "13a"' in said and "BLEU of all answers together" in said
    assert content["verdicts"]["bits_per_byte"]["counts"]["won"] == 4


def test_perplexity_is_that_of_the_answers_tokens_alone(small: SmallRun, everything: Any):
    content, _, _ = everything
    with open_service(small.settings, base_model=str(small.folder / "base")) as service:
        tokenizer = service.tokenizer()
        template = small.run.template()
        client = service.create_sampling_client(small.sampler_path)
        for record in content["samples"]:
            prompt = tokenizer.encode(record["prompt"]).tolist()
            answer = tokenizer.encode(record["expected"]).tolist()
            model_input = tinker.ModelInput.from_ints(prompt + answer)
            every = client.compute_logprobs(model_input).result()
            logprobs = [value for value in every[len(prompt) :] if value is not None]
            assert len(logprobs) == len(answer)
            wanted = math.exp(-sum(logprobs) / len(answer))
            assert record["scores"]["perplexity"] == pytest.approx(wanted, rel=1e-3)
            bits = -sum(logprobs) / math.log(2) / len(record["expected"].encode())
            assert record["scores"]["bits_per_byte"] == pytest.approx(bits, rel=1e-3)
        sample = Sample((Turn("user", "Add."), Turn("assistant", "")), Source("f", 1))
        [empty], _ = answers_to_measure([sample], template, tokenizer, 512)
        assert empty.start == empty.stop
        long = Sample((Turn("user", "Add."), Turn("assistant", "9 " * 600)), Source("f", 2))
        assert answers_to_measure([long], template, tokenizer, 512) == ([], [Source("f", 2)])


def test_labels_are_found_and_their_matrix_is_printed_and_written(small: SmallRun, tmp_path: Path):
    records = [
        {"instruction": f"Even or odd: {n}", "input": "", "output": "even" if n % 2 else "odd"}
        for n in range(20)
    ]
    content, said = evaluated(small, tmp_path, records)
    assert "The expected outputs are 2 labels: even, odd." in said
    assert "Labels: accuracy 0.0%, macro-F1 0.000, 20 answers of 20 outside the label set." in said
    assert all(record["scores"]["label"] == 0.0 for record in content["samples"])
    labels = content["measures"]["trained"]["labels"]
    assert labels["confusion_matrix"] == [[0, 0, 10], [0, 0, 10]]
    rows = list(
        csv.reader(io.StringIO((tmp_path / "results.confusion.csv").read_text("utf-8-sig")))
    )
    assert rows == [
        ["model", "expected", "even", "odd", "(other)"],
        ["trained", "even", "0", "0", "10"],
        ["trained", "odd", "0", "0", "10"],
    ]


def test_json_is_found_and_fields_are_counted(small: SmallRun, tmp_path: Path):
    records = [
        {"instruction": f"As JSON: {n}", "input": "", "output": json.dumps({"n": n})}
        for n in range(3)
    ]
    content, said = evaluated(small, tmp_path, records)
    assert "3 of 3 expected outputs are JSON objects or lists" in said
    assert content["measures"]["trained"]["json"]["answers"] == 3
    assert set(content["metrics"]) >= {"exact_match", "json_valid", "json_match", "json_fields"}


def test_a_function_that_fails_late_keeps_the_answers_and_the_evaluation_goes_on(
    small: SmallRun, tmp_path: Path
):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def mine(expected, produced):\n    assert expected == produced\n    return True\n"
    )
    with pytest.raises(UserError) as caught:
        evaluated(small, tmp_path, sums(2), metrics=[f"{mine}:mine"])
    sentence = str(caught.value)
    assert "mine.py:mine failed for" in sentence and "record 1: AssertionError" in sentence
    assert "line 2" in sentence and "--resume" in sentence and "\n" not in sentence
    mine.write_text("def mine(fields, produced):\n    return {'level': fields['level']}\n")
    records = [{**record, "level": 3} for record in sums(2)]
    content, said = evaluated(
        small, tmp_path, records, metrics=["exact_match", f"{mine}:mine"], resume=True
    )
    assert "Going on with 2 answers" in said
    assert content["samples"][0]["scores"] == {"exact_match": 0.0, "mine_level": 3.0}


def test_a_judge_that_goes_away_is_asked_for_nothing_again(
    small: SmallRun, tmp_path: Path, stub: StubJudge, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tinkersmith.metrics.judge.PARALLEL", 1)
    given = {"metrics": ["judge"], "judge_url": stub.url, "judge_model": "m"}
    stub.reply = lambda system, user: f"{text_between_marks(user, 'The question')}\nScore: 7"
    stub.refuses = lambda body: "x" if len(stub.requests) > 3 else ""
    stub.refusal_status = 401
    with pytest.raises(UserError, match="refuses the key") as caught:
        evaluated(small, tmp_path, sums(4), **given)
    assert "--resume" in str(caught.value)
    lines = (tmp_path / "results.judge.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2, "the first request tried the judge"
    with (tmp_path / "results.judge.jsonl").open("a") as file:
        file.write('{"request": "torn')
    stub.refuses = lambda body: ""
    stub.requests.clear()
    content, said = evaluated(small, tmp_path, sums(4), resume=True, **given)
    assert "Going on with 2 replies of a judge." in said
    assert len(stub.requests) == 3, "one to try, and the two that were missing"
    judge = content["measures"]["judge"]
    assert (judge["requests"], judge["trained"]["judged"]) == (4, 4)
    assert not (tmp_path / "results.judge.jsonl").exists()


def test_what_cannot_work_is_said_before_anything_is_sampled(
    small: SmallRun, tmp_path: Path, stub: StubJudge
):
    judge = {"judge_url": stub.url, "judge_model": "m"}
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"metrics": ["judge"], "judge_mode": "pairwise", **judge}, "Add --compare-base"),
        ({"metrics": [f"{tmp_path}/none.py:f"]}, "none.py cannot be read"),
        ({"metrics": ["labels"]}, "the expected outputs are"),
        ({"metrics": ["json"]}, "no expected output is a JSON object"),
    )
    for given, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            evaluated(small, tmp_path, [{"instruction": "a", "output": "x" * 50}], **given)
    assert not (tmp_path / "results.json").exists() and stub.requests == []


def test_a_question_is_told_without_the_marks_of_a_template():
    source = Source("f", 1)
    one = Sample((Turn("user", "Add.", "1 + 1"), Turn("assistant", "2")), source)
    assert question_for_a_judge(one) == "Add.\n\n1 + 1"
    turns = (Turn("system", "Be short."), Turn("user", "Hi"), Turn("assistant", "Hello"))
    assert question_for_a_judge(Sample(turns, source)) == "system: Be short.\n\nuser: Hi"
