"""Improvements on a real engine: rounds, files, and what a kill leaves."""

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.engine import KEY, MODEL, no_proxy_for_loopback, running_engine
from tests.support.environment import without_cloud
from tests.support.processes import eventually
from tests.support.run_folders import run_of_settings
from tests.support.sample_files import write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.data.load import load_samples
from tinkersmith.errors import UserError
from tinkersmith.improve.improve import Improved, improve
from tinkersmith.improve.options import checked_options
from tinkersmith.improve.preparation import resume_line
from tinkersmith.runs.folder import RunFolder, all_runs, newest_run
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.train import train

pytestmark = pytest.mark.engine
TIMED = ("tokens_per_second", "seconds", "eval/seconds")
OPTIONS: dict[str, dict[str, Any]] = {
    "rejection": {"rounds": 2, "answers": 4, "keep": 1, "limit": 12, "temperature": 0.7},
    "grpo": {"method": "grpo", "rounds": 2, "answers": 4, "limit": 12, "updates": 2},
}
SETS = ["BATCH_SIZE=4", "LEARNING_RATE=0.003", "NUM_EPOCHS=3", "SAVE_EVERY=2"]


def coins(first: int, count: int) -> list[dict[str, str]]:
    """Questions whose answer is one of two: a small model is right now and then."""
    rng = random.Random(first)
    return [
        {"instruction": f"Toss coin {n}.", "output": f"Answer: {rng.choice([1, 2])}"}
        for n in range(first, first + count)
    ]


@dataclass(frozen=True)
class World:
    folder: Path
    settings: Settings
    start: RunFolder

    def overrides(self, method: str) -> list[str]:
        return SETS if method == "rejection" else SETS[:2]

    def improve(self, method: str, **more: Any) -> Improved:
        return improve(
            self.settings,
            run=str(self.start.path),
            questions=str(self.folder / "held_out.json"),
            overrides=self.overrides(method),
            **OPTIONS[method],
            **more,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        without_cloud(patch)
        no_proxy_for_loopback()
        folder = tmp_path_factory.mktemp("improving")
        model = make_tiny_model(folder / "base")
        # One server for all: each improvement would start an engine of its own.
        engine = stack.enter_context(running_engine(folder / "engine", model))
        patch.setenv("TINKER_BASE_URL", engine.url)
        patch.setenv("TINKER_API_KEY", KEY)
        write(folder / "train.json", coins(100, 24))
        write(folder / "held_out.json", coins(500, 20))
        settings = settings_from(
            {
                "DATA_FILES": [str(folder / "train.json")],
                "BASE_MODEL": MODEL,
                "OUTPUT_DIR": str(folder / "runs"),
                "BACKEND": "tinker",
                "LEARNING_RATE": 2e-2,
                "NUM_EPOCHS": 10,
                "LORA_RANK": 4,
                "SAMPLING_MAX_TOKENS": 12,
                "EXPORT_AFTER_TRAINING": "no",
            }
        )
        with train(settings) as trained:
            start = trained.run
        yield World(folder, settings, start)


@pytest.fixture(scope="module")
def improved(world: World) -> dict[str, Improved]:
    return {method: world.improve(method) for method in OPTIONS}


def curve(run: RunFolder) -> list[dict[str, Any]]:
    lines = run.metrics()
    return [{name: line[name] for name in line if name not in TIMED} for line in lines]


def contents(run: RunFolder, name: str) -> dict[str, bytes]:
    """The files of this name in the rounds' folders."""
    return {path.parent.name: path.read_bytes() for path in run.path.glob(f"round-*/{name}")}


@pytest.mark.parametrize("method", OPTIONS)
def test_an_improvement_is_a_run_whose_best_round_the_other_commands_take(
    world: World, improved: dict[str, Improved], method: str
) -> None:
    run, rounds = improved[method].run, improved[method].rounds
    assert 1 <= len(rounds) <= 2
    points = run.checkpoints()
    assert [point.name for point in points] == [f"round-{n}" for n in range(len(rounds) + 1)]
    scored = [line for line in run.metrics() if "eval/n" in line]
    assert [line["step"] for line in scored] == [point.step for point in points]
    best = max(scored, key=lambda line: line["eval/final_answer"])
    assert improved[method].best.step == best["step"]
    assert json.loads(run.file("best.json").read_text())["step"] == best["step"]
    steps = [line["step"] for line in run.metrics() if "loss" in line]
    assert steps == sorted(set(steps)) and steps and steps[-1] <= points[-1].step
    assert run.facts()["total_steps"] == points[-1].step
    found = find_trained_model(world.settings, improved[method].best.sampler_path)
    assert found.run is not None and found.run.path == run.path
    assert found.template is not None and run.template() == world.start.template()
    assert "Best     " in run.file("train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", OPTIONS)
def test_the_accepted_answers_of_a_round_are_data_to_train_on(
    improved: dict[str, Improved], method: str
) -> None:
    run = improved[method].run
    (line, *_) = improved[method].rounds
    loaded = load_samples([str(run.path / "round-1" / "accepted.jsonl")])
    assert len(loaded.samples) == line["trained_answers"] > 0 and not loaded.skipped
    outputs = {n["instruction"]: n["output"] for n in coins(100, 24)}
    for sample in loaded.samples:
        assert sample.output.rstrip(".").split()[-1] == outputs[sample.turns[0].text].split()[-1]
    assert line["questions"] == 12 and line["answers"] == 48


def test_groups_without_spread_are_counted_and_change_nothing(
    improved: dict[str, Improved],
) -> None:
    lines = [line for line in improved["grpo"].run.metrics() if "groups" in line]
    assert sum(line["groups"] for line in lines) == 12 * len(improved["grpo"].rounds)
    for line in lines:
        silent = line["groups"] == line["groups_without_spread"]
        assert ("loss" in line) != silent


@pytest.mark.parametrize(("method", "file"), [("rejection", "metrics"), ("grpo", "answers")])
def test_a_killed_improvement_comes_to_the_same_rounds(
    world: World, improved: dict[str, Improved], method: str, file: str
) -> None:
    options = [f"--{name}={value}" for name, value in OPTIONS[method].items()]
    sets = [word for text in world.overrides(method) for word in ("--set", text)]
    before = set(all_runs(world.folder / "runs"))
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tinkersmith", "improve", str(world.start.path)),
            *("--questions", str(world.folder / "held_out.json"), *options, *sets),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def new() -> list[RunFolder]:
        return [run for run in all_runs(world.folder / "runs") if run not in before]

    def far_enough() -> bool:
        assert process.poll() is None, process.communicate()
        place = f"round-1/training-*/{file}.jsonl" if file == "metrics" else f"round-1/{file}.jsonl"
        files = [path for run in new() for path in run.path.glob(place)]
        return any(len(path.read_bytes().splitlines()) >= 3 for path in files)

    try:
        assert eventually(far_enough)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    (run,) = new()
    files = run.path.glob("round-1/*.jsonl")
    before_resume = {path: path.read_bytes().rpartition(b"\n")[0] for path in files}
    done = improve(world.settings, resume=str(run.path))
    whole = improved[method]
    assert done.run.path == run.path
    assert len(curve(done.run)) == len(curve(whole.run))
    for line, other in zip(curve(done.run), curve(whole.run), strict=True):
        # The last digit of a sampled logprob depends on what else is sampled at the time.
        assert line == (other if method == "rejection" else pytest.approx(other, 1e-3, 1e-5))
    kept = {path: text for path, text in before_resume.items() if path.name == "answers.jsonl"}
    assert all(path.read_bytes().startswith(text) for path, text in kept.items())
    assert contents(done.run, "accepted.jsonl") == contents(whole.run, "accepted.jsonl")
    assert [line["p_value"] for line in done.rounds] == [line["p_value"] for line in whole.rounds]
    with pytest.raises(UserError, match="is finished"):
        improve(world.settings, resume=str(run.path))


def test_an_improvement_and_its_rounds_are_not_trained_by_themselves(
    world: World, improved: dict[str, Improved]
) -> None:
    run = improved["rejection"].run
    (inner,) = all_runs(run.path / "round-1")
    for path in (run.path, inner.path):
        with pytest.raises(UserError, match=rf"improve --resume \S*{run.name}"):
            train(world.settings, resume=str(path))
    assert newest_run(world.folder / "runs").path.parent == world.folder / "runs"


def test_a_resume_that_is_stopped_before_it_begins_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of_settings(tmp_path / "runs" / "better")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    own = settings_from({"OUTPUT_DIR": str(tmp_path / "runs")})
    where = "tinkersmith.improve.improve"
    monkeypatch.setattr(f"{where}._resumed", lambda run: (checked_options({}), own))
    monkeypatch.setattr(f"{where}.prepare_improvement", interrupted)
    with pytest.raises(KeyboardInterrupt):
        improve(own, resume=str(run.path))
    said = capsys.readouterr().out
    assert f"Stopped. Continue with: {resume_line(run)}" in said
