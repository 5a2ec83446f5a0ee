"""Training on a 5 GB JSON Lines file: the recipe's peak memory, and when the first step is done.

The file is made from real samples, each copy with a number of its own. The recipe runs as a user
runs it, on the embedded engine, until every sample is tokenised or the time is over. That memory
does not grow on the way is seen by its size after a quarter of the time, and at the end.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.process_memory import resident_gb
from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
ROOM = 3.0  # times the file's size: the file, its tokens, and some to spare
PATIENCE = 600.0  # seconds for the first step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=ROOT / "data/word_problems.json",
        help="a JSON array of samples with instruction and output",
    )
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--minutes", type=float, default=10.0, help="the longest that it trains")
    parser.add_argument("--folder", type=Path, help="where the file is made (default: temporary)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        size = round(options.gigabytes * 1e9)
        free = shutil.disk_usage(folder).free
        if free < ROOM * size:
            sys.exit(
                f"{folder} has {free / 1e9:.0f} GB free, and {ROOM * size / 1e9:.0f} GB are "
                "needed: name another --folder, or fewer --gigabytes."
            )
        file = folder / "large.jsonl"
        samples = _make_file(file, options.data, size)
        print(f"{samples:,} samples, {file.stat().st_size / 1e9:.1f} GB", flush=True)
        figures: dict[str, object] = {
            "data": f"{options.data.name}, repeated",
            "gigabytes": round(file.stat().st_size / 1e9, 2),
            "samples": samples,
            **_train(folder, file, options.minutes * 60),
        }
    print(json.dumps(figures, indent=2))
    print("written:", write_results("large_file", "python -m benchmarks.large_file", figures))


def _make_file(file: Path, data: Path, size: int) -> int:
    """Write about `size` bytes; returns the number of samples."""
    records = json.loads(data.read_text(encoding="utf-8"))
    count = written = 0
    with file.open("wb") as lines:
        while written < size:
            part = []
            for record in records:
                count += 1
                numbered = {**record, "instruction": f"{count}. {record['instruction']}"}
                part.append(json.dumps(numbered, ensure_ascii=False))
            written += lines.write(("\n".join(part) + "\n").encode())
    return count


def _train(folder: Path, file: Path, seconds: float) -> dict[str, object]:
    sets = []
    for override in (
        f"DATA_FILES={[str(file)]!r}",
        f"OUTPUT_DIR={str(folder / 'runs')!r}",
        "BACKEND=local",
        "MAX_SEQUENCE_LENGTH=256",
        "SHOW_LENGTH_WARNINGS=False",
        "EXPORT_AFTER_TRAINING=no",
    ):
        sets += ["--set", override]
    start = time.monotonic()
    recipe = subprocess.Popen([sys.executable, "train_with_config.py", *sets], cwd=ROOT)
    try:
        run = _wait_for(recipe, folder, "settings.json", PATIENCE).parent
        checked = time.monotonic() - start
        _wait_for(recipe, folder, "metrics.jsonl", PATIENCE)
        first_step = time.monotonic() - start
        lengths, quarter = run / "lengths.json", None
        while time.monotonic() - start < seconds and not lengths.exists():
            if recipe.poll() is not None:
                sys.exit("The recipe has ended; see above.")
            if quarter is None and time.monotonic() - start > seconds / 4:
                quarter = round(resident_gb("VmRSS", recipe.pid), 3)
            time.sleep(1)
        trained = time.monotonic() - start
        memory = {
            "peak": round(resident_gb("VmHWM", recipe.pid), 3),
            "after a quarter of the time": quarter,
            "at the end": round(resident_gb("VmRSS", recipe.pid), 3),
        }
        tokenised = sum(1 for _ in (folder / "runs/token-cache").iterdir())
        steps = (run / "metrics.jsonl").read_bytes().count(b"\n")
    finally:
        if recipe.poll() is None:
            recipe.send_signal(signal.SIGINT)
        recipe.wait(timeout=120)
    return {
        "memory of the recipe, GB": memory,
        "seconds until the data is checked and the engine runs": round(checked, 1),
        "seconds until the first optimizer step is done": round(first_step, 1),
        "seconds in all": round(trained, 1),
        "steps": steps,
        "everything tokenised": lengths.exists(),
        "chunks tokenised": tokenised,
    }


def _wait_for(recipe: subprocess.Popen, folder: Path, name: str, patience: float) -> Path:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := list(folder.glob(f"runs/*/{name}")):
            return found[0]
        if recipe.poll() is not None:
            sys.exit("The recipe has ended; see above.")
        time.sleep(0.05)
    sys.exit(f"There was no {name} after {patience:.0f} s.")


if __name__ == "__main__":
    main()
