"""The facts of a report: what the run's files say, and what is missing."""

import json
import os
import shlex
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.run_folders import checkpoint, run_of_settings
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.report.gather import gather, smoothed
from tinkersmith.report.write import write_report
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings


def step(number: int, loss: float, **more: Any) -> dict[str, Any]:
    line = {"step": number, "epoch": 1, "loss": loss, "tokens": 100, "completion_tokens": 40}
    return {**line, "tokens_per_second": 50.0, "learning_rate": 0.01, **more}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.chdir(tmp_path)
    made = run_of_settings(tmp_path / "runs" / "one", LORA_RANK=8, VALIDATION_RATIO=0.1)
    made.append("metrics.jsonl", [step(1, 3.0), step(2, 2.0), {"step": 2, "validation_loss": 2.5}])
    made.add_checkpoint(checkpoint(2))
    return made


def results(path: Path, model_path: str, **more: Any) -> Path:
    content = {"schema_version": 2, "model_path": model_path, "samples": [], "metrics": {}, **more}
    path.write_text(json.dumps(content))
    return path


def test_curves_totals_and_settings_are_those_of_the_files(run: RunFolder) -> None:
    facts = gather(run)
    assert facts["curves"]["loss"] == [(1, 3.0), (2, 2.0)]
    assert facts["curves"]["validation"] == [(2, 2.5)]
    assert facts["best"]["step"] == 2
    training = facts["training"]
    assert (training["tokens"], training["completion_tokens"]) == (200, 80)
    assert training["seconds"] == pytest.approx(4.0)
    assert {one["name"]: one["value"] for one in facts["settings"]} == {
        "LORA_RANK": 8,
        "VALIDATION_RATIO": 0.1,
    }


def test_the_time_of_a_resumed_run_is_that_of_all_its_sessions(run: RunFolder) -> None:
    facts = run.facts()
    facts["sessions"] = [{"first_step": 0}, {"first_step": 2}]
    run.file("settings.json").write_text(json.dumps(facts))
    run.append("metrics.jsonl", [step(3, 1.0, tokens_per_second=10.0)])
    assert gather(run)["training"]["seconds"] == pytest.approx(4.0 + 10.0)


@pytest.mark.parametrize(
    ("lines", "samples", "state"),
    [
        ([step(3, 1.0)], False, "interrupted"),
        ([step(100, 1.0)], True, "finished"),
        ([step(50, 1.0)], True, "stopped early"),
        ([{"step": 3, "diverged": True, "last_sound_step": 2}], False, "diverged"),
    ],
)
def test_the_state_is_that_of_the_run(
    run: RunFolder, lines: list[dict[str, Any]], samples: bool, state: str
) -> None:
    run.append("metrics.jsonl", lines)
    if samples:
        run.file("samples.json").write_text("[]")
    assert gather(run)["run"]["state"] == state


def test_a_run_that_another_process_works_on_is_running(run: RunFolder) -> None:
    run.file("run.lock").write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    assert gather(run)["run"]["state"] == "running"
    nobody = {"pid": 2**22 + 1, "host": socket.gethostname()}  # no such process
    run.file("run.lock").write_text(json.dumps(nobody))
    assert gather(run)["run"]["state"] == "interrupted"


def test_what_is_missing_is_named_with_the_command_that_makes_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (gap,) = gather(run)["missing"]
    assert gap["what"] == "evaluation"
    asked: dict[str, object] = {}

    def refused(settings: Settings, **options: object) -> None:
        asked.update(options, output_dir=settings.output_dir)
        raise UserError("The test asks nothing.")

    monkeypatch.setattr("tinkersmith.cli.results.evaluate.evaluate", refused)
    words = shlex.split(gap["command"])
    assert main(words[words.index("evaluate") :]) == 1
    assert asked["model_path"] == checkpoint(2).sampler_path and asked["compare_base"]
    assert asked["output_dir"] == str(run.path.parent), "the command finds the run"


def test_lost_measurements_are_named(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.rewrite("metrics.jsonl", [step(2, 2.0)])
    assert "metrics.jsonl has lost 1 step of the 2" in gather(run)["damaged"][0]
    write_report(run)
    assert "has lost 1 step of the 2" in capsys.readouterr().out


def test_a_run_without_a_checkpoint_misses_no_evaluation(run: RunFolder) -> None:
    run.file("checkpoints.jsonl").unlink()
    assert gather(run)["missing"] == []


def test_only_an_evaluation_of_this_run_is_shown(run: RunFolder, tmp_path: Path) -> None:
    results(tmp_path / "evaluation_results.json", "tinker://other/sampler_weights/step-000002")
    assert gather(run)["evaluation"] is None
    with pytest.raises(UserError, match="is no checkpoint of one"):
        gather(run, tmp_path / "evaluation_results.json")
    mine = results(tmp_path / "evaluation_results.json", checkpoint(2).sampler_path)
    assert gather(run)["evaluation"]["model_path"] == checkpoint(2).sampler_path
    assert gather(run, mine)["missing"][0]["what"] == "base"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("evaluation_results.json", "{", "holds no results of an evaluation: it is not JSON"),
        ("evaluation_results.json", '{"a": 1}', "holds no results of an evaluation."),
        ("lengths.json", "{", "lengths.json is damaged: it is not JSON"),
        ("lengths.json", '{"edges": [1], "bins": null}', "it holds no lengths"),
        ("samples.json", "[" * 100_000, "samples.json is damaged: it is not JSON"),
        ("samples.json", '[{"source": "a"}]', "it does not hold samples with their answers"),
        ("skipped.jsonl", '{"kind": "too long"}\n{"kin\n', "skipped.jsonl, line 2 is damaged"),
        ("duplicates.jsonl", "7\n", "duplicates.jsonl, line 1 is damaged"),
        ("hard_samples.jsonl", "[]\n", "hard_samples.jsonl, line 1 is damaged"),
    ],
)
def test_a_damaged_file_is_named_once_and_the_rest_is_shown(
    run: RunFolder, capsys: pytest.CaptureFixture[str], name: str, content: str, words: str
) -> None:
    run.file(name).write_text(content)
    facts = gather(run)
    (sentence,) = facts["damaged"]
    assert str(run.file(name)) in sentence and words in sentence and "\n" not in sentence
    assert facts["training"]["steps"] == 2
    page = write_report(run).read_text()
    assert capsys.readouterr().out == f"Warning: {sentence}\n"
    assert words.split(":")[0] in page


def test_a_folder_in_the_place_of_results_is_named(run: RunFolder) -> None:
    run.file("evaluation_results.json").mkdir()
    assert "it is a folder" in gather(run)["damaged"][0]


def test_nothing_is_said_of_sound_and_absent_files(run: RunFolder) -> None:
    results(Path("evaluation_results.json"), "tinker://other/sampler_weights/step-000002")
    assert gather(run)["damaged"] == []


def test_what_was_left_out_is_counted_by_kind(run: RunFolder) -> None:
    line = {
        "kind": "truncated",
        "file": "a.json",
        "record": 3,
        "tokens_before": 9,
        "tokens_after": 5,
    }
    run.append("skipped.jsonl", [line, line, {"kind": "bad record", "file": "a.json", "record": 4}])
    run.append("duplicates.jsonl", [{"file": "a.json", "record": 5}])
    left_out = gather(run)["left_out"]
    assert left_out["kinds"] == {"truncated": 2, "bad record": 1}
    assert left_out["duplicates"] == 1


def test_a_smoothed_curve_is_the_mean_of_what_is_there() -> None:
    points = [(1, 4.0), (2, 2.0), (3, None), (4, float("nan")), (5, 6.0)]
    assert smoothed(points, 2) == [(1, 4.0), (2, 3.0), (3, 2.0), (4, None), (5, 6.0)]
