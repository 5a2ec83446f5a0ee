"""Sweeps on the bundled model: whole, halved, interrupted, killed; and their runs alone."""

import contextlib
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE, eventually
from tests.support.sample_files import write
from tinkersmith.cli.main import main
from tinkersmith.runs.best import best_of_run
from tinkersmith.runs.folder import RunFolder, all_runs
from tinkersmith.sweep.record import read_sweep
from tinkersmith.training.train import train

pytestmark = pytest.mark.engine
RATES = ("0.0001", "0.001", "0.005", "1.0")


@pytest.fixture(autouse=True, scope="module")
def _no_cloud() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    sums = [
        {"instruction": "Add the numbers.", "input": f"{n} + {n + 1}", "output": f"{2 * n + 1}"}
        for n in range(24)
    ]
    write(folder / "data.json", sums)
    return folder


def options(project: Path, runs: str) -> list[str]:
    values = {
        "DATA_FILES": project / "data.json",
        "OUTPUT_DIR": project / runs,
        "BACKEND": "local",
        "VALIDATION_RATIO": 0.25,
        "EVAL_EVERY": 9,
        "SAVE_EVERY": 6,
        "BATCH_SIZE": 1,
        "NUM_EPOCHS": 1,
        "LORA_RANK": 4,
        "TRAIN_UNEMBED": "yes",  # without, a rate of 1 does not make it diverge
        "LR_SCHEDULE": "constant",
        "GRAD_CLIP_NORM": 0,
        "SAMPLING_MAX_TOKENS": 4,
    }
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def grid(*rates: str) -> list[str]:
    return ["--grid", f"LEARNING_RATE={','.join(rates)}"]


@dataclass
class Done:
    code: int
    output: str
    folder: Path

    @property
    def content(self) -> dict[str, Any]:
        return json.loads((self.folder / "sweep.json").read_text())

    @property
    def runs(self) -> dict[str, dict[str, Any]]:
        return {run["values"].removeprefix("LEARNING_RATE="): run for run in self.content["runs"]}

    def run(self, rate: str) -> RunFolder:
        return RunFolder(self.folder.parent / self.runs[rate]["folder"])


def sweep(project: Path, runs: str, *more: str, name: str = "s") -> Done:
    named = () if "--resume" in more else ("--name", name)
    words = ["sweep", *options(project, runs), *named, *more]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = main(words)
    return Done(code, output.getvalue(), project / runs / name)


@pytest.fixture(scope="module")
def whole(project: Path) -> Done:
    return sweep(project, "whole", *grid(*RATES), "--parallel", "3")


def curve(run: RunFolder) -> list[dict[str, Any]]:
    timed = ("tokens_per_second", "seconds")
    return [
        {name: value for name, value in line.items() if name not in timed}
        for line in run.lines("metrics.jsonl")
    ]


def stored(output_dir: Path, path: str) -> Path:
    """The folder of a checkpoint of our own engine."""
    run_id, kind, name = path.removeprefix("tinker://").replace(":", "_").split("/")
    return output_dir / ".engine" / "checkpoints" / run_id / kind / name


def weights(run: RunFolder, output_dir: Path) -> bytes:
    folder = stored(output_dir, run.checkpoints()[-1].sampler_path)
    return (folder / "adapter_model.safetensors").read_bytes()


def test_a_sweep_says_its_plan_ranks_its_runs_and_lets_a_diverged_one_end_alone(
    project: Path, whole: Done
) -> None:
    assert whole.code == 0
    plan = whole.output.index("In all 72 steps, about ")
    assert plan < whole.output.index("[1 of 4]"), "the plan comes before the first run"
    assert "Sweep s: 4 runs" in whole.output
    statuses = {rate: run["status"] for rate, run in whole.runs.items()}
    rates = {f"{float(rate):g}": rate for rate in RATES}
    assert statuses == {r: "diverged" if r == "1" else "finished" for r in rates}
    assert "training has diverged at step " in whole.runs["1"]["reason"]
    ranked = whole.content["ranking"]["combinations"]
    values = [row["mean"] for row in ranked]
    assert values == sorted(values) and len(values) == 3
    names = list(rates)
    for row in ranked:
        best = best_of_run(whole.run(names[row["combination"]]))
        assert best is not None and best[1].value == row["mean"]
        low, high = row["interval_95"]
        assert low < row["mean"] < high and row["n"] == 6
    assert "Best by validation loss: " in whole.output or "No winner: " in whole.output
    assert "was chosen for its value, which is therefore too good" in whole.output
    assert {run.name for run in all_runs(project / "whole")} == {
        run["folder"] for run in whole.runs.values()
    }
    with (whole.folder / "sweep.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["place"] for row in rows] == ["1", "2", "3", ""]
    assert {row["LEARNING_RATE"] for row in rows} == set(rates)


def test_a_run_of_a_sweep_is_the_same_run_alone_to_the_last_bit(project: Path, whole: Done) -> None:
    swept = read_sweep(str(whole.folder), ".")
    settings = swept.settings_of(swept.runs[2]).model_copy(
        update={"output_dir": str(project / "alone")}
    )
    with contextlib.redirect_stdout(io.StringIO()), train(settings) as alone:
        pass
    run = whole.run("0.005")
    assert curve(alone.run) == curve(run)
    assert weights(alone.run, project / "alone") == weights(run, project / "whole")
    measured = [json.loads(line) for line in run.file("measured.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in curve(run) if "validation_loss" in line]
    assert len(measured) == len(losses) == 2
    for line, loss in zip(measured, losses, strict=True):
        rows = [row for rows in line["values"].values() for row in rows]
        mean = sum(value * tokens for _, value, tokens in rows) / sum(row[2] for row in rows)
        assert mean == pytest.approx(loss, abs=2e-6), "single values and their mean agree"


def test_successive_halving_keeps_what_the_whole_runs_were_best_at_by_then(
    project: Path, whole: Done
) -> None:
    halved = sweep(project, "halved", *grid(*RATES), "--budget", "3")
    assert "Rung 1: 4 combinations up to step 9" in halved.output
    assert "In all 54 steps of the 72 that all would need" in halved.output

    def best_until(rate: str, step: int) -> float:
        lines = curve(whole.run(rate))
        return min(
            x["validation_loss"] for x in lines if "validation_loss" in x and x["step"] <= step
        )

    names = ["0.0001", "0.001", "0.005", "1"]
    kept = sorted(names, key=lambda rate: best_until(rate, 9))[:2]
    for rate in names:
        run, twin = halved.runs[rate], curve(whole.run(rate))
        assert run["status"] == ("finished" if rate in kept else "stopped"), rate
        steps = 18 if rate in kept else 9
        assert run["steps_done"] == steps
        losses = [line for line in curve(halved.run(rate)) if "loss" in line]
        assert losses == [line for line in twin if "loss" in line and line["step"] <= steps]
    assert sum(run["steps_done"] for run in halved.runs.values()) == 54
    assert "2 combinations were stopped early" in halved.output
    compared = [row["against_the_best"] for row in halved.content["ranking"]["combinations"]]
    assert [row is not None for row in compared] == [False, True, False, False]


def begin(project: Path, runs: str, *more: str) -> subprocess.Popen[str]:
    return started("sweep", *options(project, runs), *more)


def started(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tinkersmith", *words]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def steps_of(folder: Path) -> int:
    return sum(
        sum(b'"loss"' in line for line in file.read_bytes().splitlines())
        for file in folder.glob("*/metrics.jsonl")
    )


def test_a_sweep_that_was_interrupted_and_killed_ends_as_if_it_never_was(
    project: Path, whole: Done
) -> None:
    runs, rates = project / "stopped", RATES[1:3]
    process = begin(project, "stopped", "--name", "s", *grid(*rates))
    assert eventually(lambda: steps_of(runs) >= 6 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and errors == "", (output, errors)
    # As printed it works, although config.py in the current folder has other values.
    continues = shlex.split(output.partition("Continue with: ")[2].splitlines()[0])
    assert continues[continues.index("sweep") :][:3] == ["sweep", "--resume", "s"]
    interrupted = Done(0, "", runs / "s")
    page = (interrupted.folder / "sweep.html").read_text(encoding="utf-8")
    assert '"left":2' in page, "written without a run that has ended"
    before = {rate: run["steps_done"] for rate, run in interrupted.runs.items()}
    assert all(
        interrupted.run(rate).checkpoints()[-1].step == steps for rate, steps in before.items()
    ), "each run has saved its last step"

    process = started(*continues[continues.index("sweep") :])
    goal = steps_of(runs) + 4
    assert eventually(lambda: steps_of(runs) >= goal or process.poll() is not None)
    process.kill()
    process.communicate(timeout=PATIENCE)

    ended = sweep(project, "stopped", "--resume", "s", "--keep", "best")
    assert ended.code == 0
    assert {run["status"] for run in ended.runs.values()} == {"finished"}
    for rate in ("0.001", "0.005"):
        assert curve(ended.run(rate)) == curve(whole.run(rate)), rate
    assert len(all_runs(runs)) == 2, "no run was begun twice"

    best = ended.content["ranking"]["combinations"][0]["combination"]
    for run in ended.content["runs"]:
        folder = RunFolder(runs / run["folder"])
        assert bool(folder.checkpoints()) == (run["combination"] == best)
        assert folder.file("checkpoints.deleted.jsonl").is_file() != (run["combination"] == best)
        record = "checkpoints.jsonl" if folder.checkpoints() else "checkpoints.deleted.jsonl"
        for line in folder.lines(record):
            there = stored(runs, line["sampler_path"]).is_dir()
            assert there == (run["combination"] == best)


def test_a_dead_engine_stops_the_sweep_and_its_runs_can_go_on(project: Path) -> None:
    runs = project / "dead"
    process = begin(project, "dead", "--name", "s", *grid("0.001", "0.005"))
    assert eventually(lambda: steps_of(runs) >= 2 or process.poll() is not None)
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout
    (engine,) = [int(x.split()[0]) for x in listed.splitlines() if "tinkersmith.engine" in x]
    os.kill(engine, signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, output
    assert errors.startswith("Error: The engine has ended (killed by SIGKILL"), errors
    assert errors.count("Continue with: ") == 1 and "sweep --resume s" in errors
    statuses = {run["status"] for run in Done(1, output, runs / "s").runs.values()}
    assert statuses == {"interrupted"}, "nothing of it is the fault of a run"


def test_a_resumed_sweep_refuses_another_grid_and_other_settings(
    project: Path, whole: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["--resume", "s", *options(project, "whole")]
    for more, sentence in (
        (grid("0.5"), "--grid LEARNING_RATE=0.5: s began with LEARNING_RATE=0.0001,0.001,0.005,1."),
        (["--seeds", "2"], "--seeds 2: s began with 1."),
        (["--budget", "3"], "--budget 3.0: s began with no such option."),
        (["--by", "token_f1"], "--by token_f1: s began with validation_loss."),
        (["--name", "t"], "--name t: a sweep that is resumed keeps its name."),
        (["--set", "NUM_EPOCHS=3"], "is given twice"),
    ):
        assert main(["sweep", *resume, *more]) == 1
        assert sentence in capsys.readouterr().err, sentence
    changed = [w.replace("NUM_EPOCHS=1", "NUM_EPOCHS=3") for w in resume]
    assert main(["sweep", *changed]) == 1
    assert "NUM_EPOCHS is 3, and s began with 1. Undo that change" in capsys.readouterr().err
    other = Path(shutil.copytree(whole.folder, whole.folder.with_name("damaged")))
    (other / "sweep.json").write_text('{"schema_version": 1, "settings": []}')
    assert main(["sweep", "--resume", str(other)]) == 1
    assert "sweep.json is damaged: " in capsys.readouterr().err


def test_a_second_sweep_of_the_same_name_is_refused(
    project: Path, whole: Done, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *options(project, "whole"), "--name", "s", *grid("1e-3", "2e-3")]) == 1
    assert "There is a sweep s in " in capsys.readouterr().err
    assert os.listdir(project / "whole").count("s") == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--budget", "1"], "--budget halves the combinations of a sweep, and there are only 2."),
        (["--set", "DATA_FILES=nowhere.json"], "nowhere.json does not exist"),
        (["--set", "EVAL_FILES=nowhere.json"], "nowhere.json does not exist"),
        (["--set", "VALIDATION_RATIO=0.001"], "--grid LEARNING_RATE=0.001: VALIDATION_RATIO"),
    ],
)
def test_what_needs_no_engine_to_be_refused_starts_none(
    project: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    changed = {word.partition("=")[0] for word in more}
    pairs = zip(*[iter(options(project, "refused"))] * 2, strict=True)
    kept = [word for pair in pairs if pair[1].partition("=")[0] not in changed for word in pair]
    assert main(["sweep", *kept, *grid("0.001", "0.005"), *more]) == 1
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "starting the engine" not in printed.out
    assert not (project / "refused").exists(), "neither a run nor an engine was there"
