"""Evaluation through the SDK on a real engine, and what it tells the user."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.sample_files import write
from tests.support.small_run import SmallRun, small_run
from tests.support.strict_models import MIXED, REASON, make_strict
from tinkersmith.cli.results.evaluate import evaluate_command
from tinkersmith.errors import UserError
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.grading.scoring import score
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.train import train

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.fixture(scope="module")
def compared(small: SmallRun) -> tuple[Any, dict[str, Any], str]:
    """One evaluation with the base model beside it: result, file, and what was said."""
    said: list[str] = []
    result = evaluate(
        small.settings,
        test_file=str(small.test_file),
        compare_base=True,
        output_file=small.folder / "results.json",
        say=said.append,
    )
    stored = json.loads((small.folder / "results.json").read_text(encoding="utf-8"))
    return result, stored, "\n".join(said)


def test_every_sample_is_answered_once_with_the_prompt_of_training(small: SmallRun, compared: Any):
    _, stored, _ = compared
    assert [sample["record"] for sample in stored["samples"]] == [*range(1, 10), 11]
    first = stored["samples"][0]
    assert first["prompt"] == "Instruction: Add.\nInput: 40 + 40\nResponse:\n"
    assert (first["expected"], first["expected_answer"]) == ("Answer: 80", "80")
    assert stored["model_path"] == small.sampler_path
    assert stored["run"] == small.run.name
    assert stored["prompt_template"] == "instruction"


def test_the_rates_follow_from_the_records(compared: Any):
    result, stored, _ = compared
    for samples, rates in (
        (stored["samples"], stored["metrics"]),
        (stored["base_samples"], stored["base"]["metrics"]),
    ):
        assert len(samples) == 10
        for sample in samples:
            assert sample["scores"] == score(sample["expected"], sample["produced"])
        for name, rate in rates.items():
            assert rate["correct"] == sum(sample["scores"][name] for sample in samples)
            assert rate["n"] == 10 and rate["rate"] == rate["correct"] / 10
            low, high = rate["interval_95"]
            assert low <= rate["rate"] <= high
    assert result.trained.to_json()["metrics"] == stored["metrics"]


def test_answers_at_the_token_limit_are_counted_and_named(compared: Any):
    _, stored, said = compared
    for sample in [*stored["samples"], *stored["base_samples"]]:
        assert sample["tokens"] <= 24
        assert (sample["stop_reason"] == "length") == (sample["tokens"] == 24) or sample[
            "stop_reason"
        ] == "stop"
    cut = [sample for sample in stored["base_samples"] if sample["stop_reason"] == "length"]
    assert cut, "the untrained model never stops by itself"
    assert stored["base"]["cut_at_token_limit"] == len(cut)
    assert f"{len(cut)} of its answers were cut at SAMPLING_MAX_TOKENS = 24" in said


def test_a_prompt_without_room_for_an_answer_is_skipped_and_named(small: SmallRun, compared: Any):
    result, stored, said = compared
    name = f"{small.test_file.as_posix()}, record 10"
    assert [str(source) for source in result.too_long] == [name] == stored["prompts_too_long"]
    assert name in said and "512 tokens" in said
    assert stored["counts"] == {
        "samples": 11,
        "skipped_records": 0,
        "unusable_samples": 0,
        "prompts_too_long": 1,
        "evaluated": 10,
        "plain_texts": 0,
        "conversations": 0,
        "distinct_questions": 10,
        "overlap_with_training": 1,
        "near_duplicates_of_training": 0,
    }


def thinking(answer: str, thought: str) -> dict[str, object]:
    messages = [
        {"role": "user", "content": "2 + 2"},
        {"role": "assistant", "content": answer, "reasoning_content": thought},
    ]
    return {"messages": messages}


def test_samples_with_contradicting_thoughts_are_left_out_and_named(
    small: SmallRun, tmp_path: Path
) -> None:
    file, said = tmp_path / "test.json", list[str]()
    two = thinking("<think>\none\n</think>\n\nAnswer: 4", "another")
    cut = {"instruction": "2 + 2", "output": "<think>\nwell"}
    good = {"instruction": "Add.", "input": "2 + 2", "output": "Answer: 4"}
    file.write_text(json.dumps([two, good, cut]))
    out = tmp_path / "results.json"
    evaluate(small.settings, test_file=str(file), output_file=out, say=said.append)
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert [sample["record"] for sample in stored["samples"]] == [2]
    assert stored["counts"]["unusable_samples"] == 2 and stored["counts"]["evaluated"] == 1
    assert [left["record"] for left in stored["unusable_samples"]] == [1, 3]
    shown = "\n".join(said)
    assert "2 samples cannot be used and are left out:" in shown
    assert f"{file.as_posix()}, record 1: an answer has a thought in a field of its own" in shown
    assert f"{file.as_posix()}, record 3: its answer opens a thought and never" in shown
    file.write_text(json.dumps([two]))
    with pytest.raises(UserError, match=r"Not one sample of .* can be used. .*record 1: an answer"):
        evaluate(small.settings, test_file=str(file), output_file=out, say=said.append)


def test_samples_that_the_chat_template_refuses_are_left_out_and_named(
    small: SmallRun, tmp_path: Path
) -> None:
    base = make_strict(Path(shutil.copytree(small.settings.base_model, tmp_path / "base")))
    write(tmp_path / "train.json", MIXED * 2)
    file = write(tmp_path / "test.json", MIXED)
    changes = {
        "data_files": [str(tmp_path / "train.json")],
        "base_model": str(base),
        "output_dir": str(tmp_path / "runs"),
        "prompt_template": "chat",
        "num_epochs": 1,
    }
    settings = small.settings.model_copy(update=changes)
    with train(settings) as trained:
        skipped = trained.run.lines("skipped.jsonl")
        assert [line["record"] for line in skipped] == [2, 4, 6, 8]
        path = trained.sampler_path
    said, out = list[str](), tmp_path / "results.json"
    evaluate(settings, model_path=path, test_file=str(file), output_file=out, say=said.append)
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert [sample["record"] for sample in stored["samples"]] == [1, 3]
    assert stored["counts"]["unusable_samples"] == 2
    assert REASON.rstrip(".") in "\n".join(said)


def test_a_test_question_that_was_trained_on_is_a_warning(compared: Any):
    _, stored, said = compared
    assert "1 of 11 test questions is also in the training data" in said
    assert stored["overlap_with_training"][0]["test"].endswith("test.json, record 11")
    assert stored["overlap_with_training"][0]["training"].endswith("train.json, record 1")


def test_the_report_shows_both_models_and_their_difference(compared: Any):
    result, _, said = compared
    gain = (
        result.trained.metrics["exact_match"].mean - result.base.metrics["exact_match"].mean
    ) * 100
    line = next(line for line in said.splitlines() if line.startswith("exact match"))
    assert line.endswith(f"{gain:+.1f} points")
    assert "trained model" in said and "base model" in said
    assert "tokens an answer" in said


def test_a_limit_takes_the_same_samples_every_time(small: SmallRun):
    asked = []
    for limit in (3, 5):
        result = evaluate(
            small.settings,
            test_file=str(small.test_file),
            limit=limit,
            output_file=small.folder / "limited.json",
            say=lambda _: None,
        )
        asked.append({record.source.record for record in result.trained.records})
    assert len(asked[0]) in (2, 3) and asked[0] <= asked[1]


def test_several_draws_are_averaged_over_their_prompt(small: SmallRun):
    settings = small.settings.model_copy(
        update={"sampling_temperature": 1.0, "sampling_num_samples": 3}
    )
    result = evaluate(
        settings,
        model_path=small.state_path,  # its sampler weights stand beside it
        test_file=str(small.test_file),
        output_file=small.folder / "drawn.json",
        say=lambda _: None,
    )
    records = result.trained.records
    assert [record.draw for record in records[:4]] == [1, 2, 3, 1]
    assert len(records) == 30 and result.trained.metrics["exact_match"].n == 10
    assert len({record.produced for record in records}) > 10


def test_a_path_without_a_run_folder_takes_the_template_of_the_settings(small: SmallRun):
    known, hidden = small.run.file("checkpoints.jsonl"), small.run.file("hidden")
    said: list[str] = []
    known.rename(hidden)
    try:
        result = evaluate(
            small.settings,
            model_path=small.sampler_path,
            test_file=str(small.test_file),
            limit=2,
            output_file=small.folder / "unknown.json",
            say=said.append,
        )
    finally:
        hidden.rename(known)
    assert "No run folder knows this path" in "\n".join(said)
    assert (
        "Overlap with the training data is not checked" in "\n".join(said)
        and result.overlap is None
    )
    assert result.trained.records[0].prompt.startswith("Instruction: ")


def test_a_field_named_answer_is_the_expected_final_answer(small: SmallRun, tmp_path: Path):
    file = tmp_path / "named.json"
    record = {"instruction": "Add.", "input": "1 + 1", "output": "It is in 1999.", "answer": 2}
    file.write_text(json.dumps([record, {**record, "answer": True}]))
    result = evaluate(
        small.settings,
        test_file=str(file),
        output_file=tmp_path / "out.json",
        say=lambda _: None,
    )
    assert [record.expected_answer for record in result.trained.records] == ["2", "true"]


def test_nan_as_an_answer_is_missing_and_plain_text_is_left_out(small: SmallRun, tmp_path: Path):
    file = tmp_path / "odd.json"
    record = {"instruction": "Add.", "output": "Answer: 3", "answer": float("nan")}
    several, unused = ({**record, "answer": value} for value in (["5", "five"], {"value": 5}))
    file.write_text(json.dumps([record, several, unused, {"text": "One."}]))
    said: list[str] = []
    result = evaluate(
        small.settings, test_file=str(file), output_file=tmp_path / "out.json", say=said.append
    )
    assert [record.expected_answer for record in result.trained.records] == ["3", "5", "3"]
    shown = "\n".join(said)
    assert 'In 1 sample: its "answer" is NaN, which counts as missing' in shown
    assert 'In 1 sample: its "answer" is an object and is not used' in shown
    assert "1 sample is plain text, which asks nothing, and left out: " in shown
    file.write_text(json.dumps(["One.", "Two."]))
    with pytest.raises(UserError, match=r"odd\.json holds plain text alone"):
        evaluate(small.settings, test_file=str(file), output_file=tmp_path / "out.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_path": "my-model"}, "is not a path of trained weights"),
        ({"model_path": "tinker://nobody:train:0/sampler_weights/x"}, "nobody"),
        ({"test_file": "nowhere.json"}, "nowhere.json"),
        ({"base_model": "Qwen/Qwen3-8B"}, "was trained on"),
        ({"limit": -1}, "at least 1"),
        ({"output_file": "/proc/nowhere/out.json"}, "cannot be written"),
    ],
)
def test_a_mistake_is_one_sentence(small: SmallRun, tmp_path: Path, change: Any, words: str):
    out = tmp_path / "out.json"
    options: dict[str, Any] = {"test_file": str(small.test_file), "output_file": out, **change}
    with pytest.raises(UserError) as caught:
        evaluate(small.settings, say=lambda _: None, **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not out.exists()


def test_without_any_run_the_user_is_told_how_to_make_one(
    small: SmallRun, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.chdir(tmp_path)
    settings = settings_from({"OUTPUT_DIR": str(tmp_path)})
    with pytest.raises(UserError, match=r"tinkersmith train --set OUTPUT_DIR="):
        evaluate(settings, test_file=str(small.test_file), output_file=tmp_path / "out.json")


def test_the_command_prints_the_sentence_and_fails(capsys: Any, monkeypatch: Any, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    assert evaluate_command(["--test-data", "nowhere.json"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("Error: ") and shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
