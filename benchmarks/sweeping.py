"""A sweep on one engine against the same runs one after another, each with an engine of its own.

Wall time, CPU time, and the most memory that all processes take together: the command, its engine
and whatever they start. Memory is PSS: what processes share counts once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "word_problems.json"
RATES, RANKS = ("1e-3", "3e-3", "5e-3"), ("8", "32")
_LOOK_EVERY = 0.25  # seconds between two measurements of the memory


@dataclass(frozen=True, slots=True)
class Measured:
    seconds: float
    cpu_seconds: float
    peak_gb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=800, help="to train on, 8 a step")
    parser.add_argument("--parallel", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--base-model", default="tinkersmith/tiny-math")
    parser.add_argument("--try", dest="tries", action="store_true", help="write no results")
    options = parser.parse_args()
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("TINKER_")}
    at_once: list[Measured] = []
    in_turn: list[Measured] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            settings = _settings(folder, options.samples, options.base_model)
            in_turn.append(_measured(_one_by_one(settings), environment))
            at_once.append(_measured([_sweep(settings, options.parallel)], environment))
            _check_equal(folder)
        print(f"in turn {in_turn[-1]}\nat once {at_once[-1]}", flush=True)
    figures: dict[str, object] = {
        "runs": len(RATES) * len(RANKS),
        "in turn, seconds": _median(in_turn, "seconds"),
        "one sweep, seconds": _median(at_once, "seconds"),
        "sweep / in turn": round(_median(at_once, "seconds") / _median(in_turn, "seconds"), 3),
        "in turn, CPU seconds": _median(in_turn, "cpu_seconds"),
        "one sweep, CPU seconds": _median(at_once, "cpu_seconds"),
        "in turn, peak GB": _median(in_turn, "peak_gb"),
        "one sweep, peak GB": _median(at_once, "peak_gb"),
        "losses": "equal in all steps",
        "training samples": options.samples,
        "parallel": options.parallel,
        "base model": options.base_model,
        "repeats": options.repeats,
    }
    print(json.dumps(figures, indent=2))
    if not options.tries:
        command = (
            f"python -m benchmarks.sweeping --samples {options.samples} --parallel "
            f"{options.parallel} --repeats {options.repeats} --base-model {options.base_model}"
        )
        print("written:", write_results("sweeping", command, figures))


def _settings(folder: Path, samples: int, base_model: str) -> list[str]:
    data = folder / "train.json"
    content = json.loads(DATA.read_text(encoding="utf-8"))[:samples]
    data.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    values = {
        "DATA_FILES": data,
        "OUTPUT_DIR": folder / "runs",
        "BASE_MODEL": base_model,
        "BACKEND": "local",
        "VALIDATION_RATIO": 0.1,
        "NUM_EPOCHS": 1,
        "EXPORT_AFTER_TRAINING": "no",
    }
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]


def _one_by_one(settings: list[str]) -> list[list[str]]:
    return [
        [
            *("train", *settings, "--set", f"LEARNING_RATE={rate}", "--set", f"LORA_RANK={rank}"),
            *("--set", f"MODEL_NAME_PREFIX=alone-{number}"),
        ]
        for number, (rate, rank) in enumerate(
            ((rate, rank) for rate in RATES for rank in RANKS), start=1
        )
    ]


def _sweep(settings: list[str], parallel: int) -> list[str]:
    grid = [f"LEARNING_RATE={','.join(RATES)}", f"LORA_RANK={','.join(RANKS)}"]
    return ["sweep", *settings, "--name", "swept", "--parallel", str(parallel), "--grid", *grid]


def _measured(commands: list[list[str]], environment: dict[str, str]) -> Measured:
    begun, used, peak = time.perf_counter(), _children_cpu(), 0.0
    for command in commands:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinkersmith", *command],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        peaks = [0.0]
        watcher = threading.Thread(target=_watch, args=(process, peaks), daemon=True)
        watcher.start()
        output, _ = process.communicate()
        watcher.join()
        if process.returncode:
            sys.exit(f"a command failed:\n{output[-1500:]}")
        peak = max(peak, peaks[0])
    return Measured(
        round(time.perf_counter() - begun, 1), round(_children_cpu() - used, 1), round(peak, 3)
    )


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _watch(process: "subprocess.Popen[str]", peaks: list[float]) -> None:
    while process.poll() is None:
        peaks[0] = max(peaks[0], sum(_pss(pid) for pid in _family(process.pid)) / 1e9)
        time.sleep(_LOOK_EVERY)


def _family(pid: int) -> list[int]:
    """The process and all its descendants that still run."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has ended
            continue
        parents.setdefault(parent, []).append(int(stat.parent.name))
    family = [pid]
    for member in family:
        family += parents.get(member, [])
    return family


def _pss(pid: int) -> float:
    """The bytes of a process, those that it shares divided among their holders."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # it has ended
        pass
    return 0.0


def _check_equal(folder: Path) -> None:
    """Refuse to compare times of runs that did not do the same."""
    for number in range(1, len(RATES) * len(RANKS) + 1):
        losses = [
            [
                json.loads(line).get("loss")
                for file in (folder / "runs").glob(f"{prefix}-{number}-*/metrics.jsonl")
                for line in file.read_text(encoding="utf-8").splitlines()
            ]
            for prefix in ("alone", "swept")
        ]
        if losses[0] != losses[1] or not losses[0]:
            sys.exit(f"run {number} has other losses in the sweep than alone")


def _median(measured: list[Measured], name: str) -> float:
    return round(median(getattr(one, name) for one in measured), 3)


if __name__ == "__main__":
    main()
