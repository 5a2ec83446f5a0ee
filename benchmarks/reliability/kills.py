"""Runs that are killed at random moments, and resumed: are they equal to one that never was?

Each trial starts a small run (three epochs, validation, checkpoints) and sends SIGKILL to the
recipe, to the engine or to both. In one half of the trials the moment is uniform over the whole
run, start and end included. In the other half it is uniform over what follows the start, which is
the longest part of so small a run. A quarter of the trials kills again during the resume. Then the
run is resumed to its end and compared: requests, losses, tensors of the last state, processes that
are left, a lock that is left, files that cannot be read. A run that was killed
before its folder existed starts anew.

With --answers, the runs answer questions while they train and stop early (EVAL_FILES, PATIENCE):
the scores, the best checkpoint and the step at which they stop are compared as well.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from benchmarks.results_file import write_results
from tests.support.sample_files import records, write, yes_or_no
from tests.support.tiny_models import make_tiny_model
from tinkersmith.runs.folder import REQUESTS_FILE, RunFolder, all_runs
from tinkersmith.runs.lock import LOCK_FILE, locked

ROOT = Path(__file__).resolve().parent.parent.parent
VICTIMS = ("recipe", "engine", "both")
SECOND_KILLS = 0.25  # share of the trials
PATIENCE = 300.0  # seconds for a run on a busy machine
_LOOK_EVERY = 0.01  # seconds
_TIMES = ("tokens_per_second", "seconds", "eval/seconds")
_SETTINGS: dict[str, object] = {
    "BACKEND": "local",
    "OUTPUT_DIR": "runs",
    "NUM_EPOCHS": 3,
    "BATCH_SIZE": 2,
    "LORA_RANK": 4,
    "LEARNING_RATE": 0.01,
    "SAVE_EVERY": 4,
    "EVAL_EVERY": 3,
    "SAMPLING_MAX_TOKENS": 4,
    "EXPORT_AFTER_TRAINING": "no",
}
_WITH_ANSWERS: dict[str, object] = {
    "NUM_EPOCHS": 2,
    "LEARNING_RATE": 0.02,
    "SEED": 1,
    "KEEP_LAST": 1,
    "PATIENCE": 4,
    "BEST_BY": "final_answer",
    "PROMPT_TEMPLATE": "instruction",
    "SAMPLING_MAX_TOKENS": 6,
}


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    curve: list[dict[str, Any]]  # metrics.jsonl without times
    tensors: dict[str, str]  # SHA-256 of the last state, by file
    best: dict[str, Any]  # best.json
    requests: list[dict[str, Any]]  # requests.jsonl


@dataclass(frozen=True)
class Pace:
    """How long an uninterrupted run takes."""

    seconds: float
    after_start: float  # seconds of them from the moment that its folder exists


@dataclass
class Trial:
    """One run that was killed."""

    number: int
    victim: str
    stage: str = ""  # of the run, at the first kill
    kills: int = 0
    resumes: int = 0
    anew: int = 0  # starts without a run folder to resume
    broken: list[str] = field(default_factory=list[str])  # promises
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.kills")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parallel", type=int, default=1, help="trials at a time")
    parser.add_argument("--answers", action="store_true", help="with EVAL_FILES and PATIENCE")
    options = parser.parse_args()
    if options.trials < 1 or options.parallel < 1:
        parser.error("--trials and --parallel must be at least 1.")
    print(f"{options.trials} trials, seed {options.seed}", flush=True)
    trials = kill_and_resume(options.trials, options.seed, options.parallel, options.answers)
    figures = figures_of(trials) | {"seed": options.seed}
    for name, value in figures.items():
        print(f"{name:40} {value}")
    command = f"python -m benchmarks.reliability.kills --trials {options.trials}"
    name, command = (
        ("reliability_kills_answers", f"{command} --answers")
        if options.answers
        else ("reliability_kills", command)
    )
    print("written:", write_results(name, command, figures))
    return int(any(trial.broken for trial in trials))


def kill_and_resume(count: int, seed: int, parallel: int = 1, answers: bool = False) -> list[Trial]:
    """Run so many trials, and compare each with an uninterrupted run.

    Args:
        answers: the runs answer questions while they train.
    """
    folder = Path(tempfile.mkdtemp(prefix="tinkersmith-kills-"))
    make_tiny_model(folder / "model")
    write(folder / "train.json", yes_or_no(40, seed=1) if answers else records(24, seed=3))
    if answers:
        write(folder / "questions.json", yes_or_no(9, seed=2))
    write(folder / "validation.json", records(3, seed=4))
    # As many at a time as there will be: the moments are drawn from how long a run then takes.
    with ThreadPoolExecutor(parallel) as pool:
        names = [f"uninterrupted-{number}" for number in range(parallel)]
        runs = list(pool.map(lambda name: _uninterrupted(folder, name), names))
        expected, pace = runs[0]
        if any(outcome != expected for outcome, _ in runs):
            raise RuntimeError("two uninterrupted runs differ")
        trials = [_drawn(number, seed) for number in range(1, count + 1)]
        for trial in pool.map(lambda trial: _run(trial, folder, seed, pace, expected), trials):
            print(
                f"{trial.number:4} {trial.victim:7} {trial.stage:24} kills {trial.kills}  "
                f"resumes {trial.resumes}  {trial.seconds:5.1f} s  "
                f"{'; '.join(trial.broken) or 'equal'}",
                flush=True,
            )
    if any(trial.broken for trial in trials):
        print(f"The runs that broke a promise are in {folder}.")
    else:
        shutil.rmtree(folder)
    return trials


def figures_of(trials: Sequence[Trial]) -> dict[str, Any]:
    """The counts of all trials."""
    broken = Counter(promise.split(":")[0] for trial in trials for promise in trial.broken)
    return {
        "trials": len(trials),
        "kills": sum(trial.kills for trial in trials),
        "resumes": sum(trial.resumes for trial in trials),
        "started anew": sum(trial.anew for trial in trials),
        "runs that ended before the kill": sum(not trial.kills for trial in trials),
        "killed": dict(Counter(trial.victim for trial in trials)),
        "killed while": dict(Counter(trial.stage for trial in trials)),
        "equal in all": sum(not trial.broken for trial in trials),
        "promises broken": dict(broken),
        "seconds per trial": round(sum(trial.seconds for trial in trials) / len(trials), 1),
    }


def _drawn(number: int, seed: int) -> Trial:
    return Trial(number, random.Random(f"{seed}/{number}/victim").choice(VICTIMS))


def _run(trial: Trial, shared: Path, seed: int, pace: Pace, expected: Outcome) -> Trial:
    begun = time.monotonic()
    rng = random.Random(f"{seed}/{trial.number}")
    folder = shared / f"trial-{trial.number}"
    kills = 2 if rng.random() < SECOND_KILLS else 1
    try:
        for _ in range(kills):
            whole = rng.random() < 0.5
            moment = rng.uniform(0, pace.seconds if whole else pace.after_start)
            _killed(trial, shared, folder, moment, whole)
        _to_the_end(trial, shared, folder)
        _compare(trial, folder, expected)
    except Exception as error:  # the other trials go on
        trial.broken.append(f"{type(error).__name__}: {error}")
    trial.seconds = time.monotonic() - begun
    if not trial.broken:
        shutil.rmtree(folder)
    return trial


# ---- processes


def _command(shared: Path, folder: Path) -> list[str]:
    """Resume the folder's run; start one where there is none."""
    folder.mkdir(exist_ok=True)
    config, questions = folder / "config.py", shared / "questions.json"
    settings = {
        "DATA_FILES": [str(shared / "train.json")],
        "VALIDATION_FILES": [str(shared / "validation.json")],
        "BASE_MODEL": str(shared / "model"),
        **_SETTINGS,
    }
    if questions.exists():
        settings |= {"EVAL_FILES": [str(questions)], **_WITH_ANSWERS}
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in settings.items()))
    command = [sys.executable, "train_with_config.py", "--config", str(config)]
    runs = all_runs(folder / "runs")
    return [*command, "--resume", str(runs[0].path)] if runs else command


def _start(shared: Path, folder: Path) -> "subprocess.Popen[bytes]":
    command = _command(shared, folder)
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _killed(trial: Trial, shared: Path, folder: Path, moment: float, whole: bool) -> None:
    """Start or resume the run and kill it so many seconds later, unless it has ended.

    The seconds are counted from the start, or if not `whole` from the moment that it trains.
    """
    resumed = bool(all_runs(folder / "runs"))
    process = _start(shared, folder)
    _count_start(trial, resumed)
    if not whole:
        _wait_until_it_trains(process, folder)
    try:
        process.wait(timeout=moment)
        trial.stage = trial.stage or "after the end"
        return
    except subprocess.TimeoutExpired:
        trial.stage = trial.stage or _stage(folder)
    engines = _engines(process.pid)
    while trial.victim == "engine" and not engines and process.poll() is None:
        time.sleep(_LOOK_EVERY)  # it is about to start
        engines = _engines(process.pid)
    victims = [process.pid] if trial.victim != "engine" else []
    victims += engines if trial.victim != "recipe" else []
    for pid in victims:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    trial.kills += bool(victims)
    code = process.wait(timeout=PATIENCE)
    if trial.victim == "engine" and victims and code == 0 and not _finished(folder):
        trial.broken.append("exit code: a run whose engine was killed ended with 0")


def _wait_until_it_trains(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    runs = all_runs(folder / "runs")
    sessions = len(runs[0].facts()["sessions"]) if runs else 0
    while process.poll() is None:
        runs = all_runs(folder / "runs")
        if runs and len(runs[0].facts()["sessions"]) > sessions:
            return
        time.sleep(_LOOK_EVERY)


def _to_the_end(trial: Trial, shared: Path, folder: Path) -> None:
    if _finished(folder):
        return
    resumed = bool(all_runs(folder / "runs"))
    process = _start(shared, folder)
    _count_start(trial, resumed)
    if process.wait(timeout=PATIENCE):
        output = (folder / "output.txt").read_text(errors="replace")
        trial.broken.append(f"not resumed: {output[-500:]}")


def _count_start(trial: Trial, resumed: bool) -> None:
    trial.resumes += resumed
    trial.anew += not resumed and bool(trial.kills)


def _engines(recipe: int) -> list[int]:
    """The children of a recipe: its engine, from the moment that it exists."""
    children = Path(f"/proc/{recipe}/task/{recipe}/children")
    try:
        return [int(pid) for pid in children.read_text().split()]
    except OSError:
        return []


def _left_over(folder: Path) -> list[str]:
    """Processes that still name the folder: engines, as the recipes have ended."""
    lines: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder}/" in line:
            lines.append(line)
    return lines


# ---- what became of a run


def _stage(folder: Path) -> str:
    runs = all_runs(folder / "runs")
    if not runs:
        return "starting"
    saved = runs[0].checkpoints()
    if runs[0].file("samples.json").exists():
        return "ending"
    if saved and saved[-1].step >= runs[0].facts()["total_steps"]:
        return "answering"
    return "training, with checkpoint" if saved else "training, no checkpoint"


def _finished(folder: Path) -> bool:
    runs = all_runs(folder / "runs")
    return bool(runs) and runs[0].file("samples.json").exists()


def _uninterrupted(shared: Path, name: str) -> tuple[Outcome, Pace]:
    folder = shared / name
    begun = time.monotonic()
    process = _start(shared, folder)
    _wait_until_it_trains(process, folder)
    trains = time.monotonic()
    if process.wait(timeout=PATIENCE):
        raise RuntimeError((folder / "output.txt").read_text(errors="replace")[-2000:])
    ended = time.monotonic()
    return _outcome(folder), Pace(ended - begun, ended - trains)


def _outcome(folder: Path) -> Outcome:
    (run,) = all_runs(folder / "runs")
    curve = [
        {name: value for name, value in line.items() if name not in _TIMES}
        for line in run.lines("metrics.jsonl")
    ]
    run_id, kind, name = run.checkpoints()[-1].state_path.removeprefix("tinker://").split("/")
    states = [
        path
        for path in (folder / "runs/.engine/checkpoints").glob(f"*/{kind}/{name}*/")
        if path.parent.parent.name.replace("_", ":") == run_id.replace("_", ":")
    ]
    if len(states) != 1:
        raise RuntimeError(f"the last state is in {len(states)} folders")
    files = sorted(states[0].glob("*.safetensors"))
    best = json.loads(run.file("best.json").read_text(encoding="utf-8"))
    tensors = {file.name: _digest(file) for file in files}
    return Outcome(curve, tensors, best, run.lines(REQUESTS_FILE))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def _compare(trial: Trial, folder: Path, expected: Outcome) -> None:
    found = _outcome(folder)
    if found.curve != expected.curve:
        trial.broken.append("losses: they differ")
    if found.best != expected.best:
        trial.broken.append("best checkpoint: it differs")
    if found.requests != expected.requests:
        trial.broken.append("requests: they differ")
    if found.tensors != expected.tensors:
        trial.broken.append("tensors: they differ")
    end = time.monotonic() + 30
    while (left := _left_over(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    if left:
        trial.broken.append(f"orphan: {left[0]}")
    (run,) = all_runs(folder / "runs")
    if run.file(LOCK_FILE).exists():
        trial.broken.append("lock: its file is left")
    with locked(run, "being looked at", print):
        pass
    trial.broken += [f"half-written: {file}" for file in _unreadable(run)]
    if "Traceback" in (folder / "output.txt").read_text(errors="replace"):
        trial.broken.append("traceback: see output.txt")


def _unreadable(run: RunFolder) -> list[str]:
    """Temporary files that are left, and files that are not whole."""
    wrong = [path.name for path in run.path.glob(".*")]
    for path in run.path.glob("*.json*"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        try:
            for line in lines:
                json.loads(line)
        except ValueError:
            wrong.append(path.name)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
