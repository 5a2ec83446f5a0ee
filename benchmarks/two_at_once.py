"""Two runs at once against two in turn, by the project's own commands: train, then evaluate.

Two runs that share the cores well take at once about as long as in turn; the goal is at most 1.2
times as long. CPU seconds show how much of it was waiting, and are a fair measure on a machine that
others use, too. `--waiting active` shows what OpenMP's own way of waiting costs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "word_problems.json"
TOLERATED = 1.2


@dataclass(frozen=True, slots=True)
class Job:
    samples: int
    answers: int
    environment: dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=800, help="to train on, 8 a step")
    parser.add_argument("--answers", type=int, default=100, help="to sample afterwards")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of each engine; 0: its own choice")
    parser.add_argument("--waiting", choices=["passive", "active"], default="passive")
    options = parser.parse_args()
    environment = os.environ | {"OMP_WAIT_POLICY": options.waiting}
    environment.pop("OMP_NUM_THREADS", None)
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    job = Job(options.samples, options.answers, environment)
    in_turn: list[tuple[float, float]] = []
    at_once: list[tuple[float, float]] = []
    for _ in range(options.repeats):
        in_turn.append(_in_turn(job))
        at_once.append(_at_once(job))
        print(f"in turn {in_turn[-1]}, at once {at_once[-1]} (wall and CPU seconds)", flush=True)
    (turn_wall, turn_cpu), (once_wall, once_cpu) = map(_medians, (in_turn, at_once))
    figures: dict[str, object] = {
        "two in turn, seconds": turn_wall,
        "two at once, seconds": once_wall,
        "at once / in turn": round(once_wall / turn_wall, 3),
        "wanted, at most": TOLERATED,
        "two in turn, CPU seconds": turn_cpu,
        "two at once, CPU seconds": once_cpu,
        "training samples": job.samples,
        "answers": job.answers,
        "threads": options.threads or "the engine's choice",
        "waiting": options.waiting,
        "repeats": options.repeats,
    }
    print(json.dumps(figures, indent=2))
    if options.threads or options.waiting != "passive":
        print("not written: these are not the engine's own choices")
        return
    print("written:", write_results("two_at_once", "python -m benchmarks.two_at_once", figures))


def _in_turn(job: Job) -> tuple[float, float]:
    """Wall and CPU seconds of two runs, one after the other."""
    return _measured([[job], [job]])


def _at_once(job: Job) -> tuple[float, float]:
    """Wall and CPU seconds of two runs that begin together."""
    return _measured([[job, job]])


def _measured(groups: list[list[Job]]) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as temporary:
        used, start = _cpu_seconds(), time.perf_counter()
        for number, group in enumerate(groups):
            folders = [Path(temporary) / f"{number}-{index}" for index in range(len(group))]
            for command in (_train, _evaluate):
                running = [command(*pair) for pair in zip(group, folders, strict=True)]
                for process in running:
                    output, _ = process.communicate()
                    if process.returncode:
                        sys.exit(f"a run failed:\n{output[-1500:]}")
        return time.perf_counter() - start, _cpu_seconds() - used


def _train(job: Job, folder: Path) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True)
    data = folder / "train.json"
    samples = json.loads(DATA.read_text(encoding="utf-8"))[: job.samples]
    data.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    settings = [f"DATA_FILES={[str(data)]!r}", "NUM_EPOCHS=1", "EXPORT_AFTER_TRAINING='no'"]
    return _start("train_with_config.py", settings, job, folder)


def _evaluate(job: Job, folder: Path) -> "subprocess.Popen[str]":
    scores = ("--output", str(folder / "scores.json"), "--limit", str(job.answers))
    return _start("evaluate_model.py", [], job, folder, "--test-data", str(DATA), *scores)


def _start(
    script: str, settings: list[str], job: Job, folder: Path, *arguments: str
) -> "subprocess.Popen[str]":
    wanted = [*settings, f"OUTPUT_DIR={str(folder / 'runs')!r}", "BACKEND='local'"]
    sets = [part for setting in wanted for part in ("--set", setting)]
    return subprocess.Popen(
        [sys.executable, script, *sets, *arguments],
        cwd=ROOT,
        env=job.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _cpu_seconds() -> float:
    """CPU time of all processes that were started and have ended, their engines included."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _medians(times: list[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = zip(*times, strict=True)
    return round(median(wall), 2), round(median(cpu), 2)


if __name__ == "__main__":
    main()
