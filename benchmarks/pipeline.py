"""Whether a slow server always has work: the recipe against an engine that takes 2 s for each call.

The server is our engine in a process of its own, in which this benchmark makes every request of a
client sleep before it runs; it notes when each began and ended. Measured is the time from the first
forward_backward to the end of the last request of training, and how much of it a request ran.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
KEY = "tml-benchmark"
BATCH, EPOCHS = 8, 2
OF_TRAINING = ("forward_backward", "optim_step", "save_weights", "save_weights_for_sampler")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--delay", type=float, default=2.0)
    parser.add_argument("--serve", metavar="LOG", help=argparse.SUPPRESS)
    parser.add_argument("--dir", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        _serve(Path(options.serve), options.dir, options.delay)
        return
    with tempfile.TemporaryDirectory() as temporary:
        calls = _train(Path(temporary), options.steps, options.delay)
    first = next(index for index, call in enumerate(calls) if call["name"] == "forward_backward")
    last = max(index for index, call in enumerate(calls) if call["name"] in OF_TRAINING)
    training = calls[first : last + 1]
    gaps = [after["started"] - before["ended"] for before, after in pairwise(training)]
    span = training[-1]["ended"] - training[0]["started"]
    figures: dict[str, object] = {
        "delay of a call, seconds": options.delay,
        "steps": sum(call["name"] == "optim_step" for call in training),
        "epochs, each with a checkpoint": EPOCHS,
        "calls": len(training),
        "seconds": round(span, 1),
        "share of the time with work": round(1 - sum(gaps) / span, 4),
        "longest time without work, seconds": round(max(gaps), 3),
    }
    print(json.dumps(figures, indent=2))
    print("written:", write_results("pipeline", "python -m benchmarks.pipeline", figures))


def _train(folder: Path, steps: int, delay: float) -> list[dict]:
    """Run the recipe against the slow server; the calls in the order in which they ran."""
    records = json.loads((ROOT / "data/word_problems.json").read_text(encoding="utf-8"))
    data = folder / "train.json"
    data.write_text(json.dumps(records[: steps * BATCH // EPOCHS]), encoding="utf-8")
    log = folder / "calls.jsonl"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.pipeline", "--serve", str(log)),
            *("--dir", str(folder / "engine"), "--delay", str(delay)),
        ],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TINKERSMITH_ENGINE_KEY": KEY},
    )
    try:
        assert server.stdout is not None
        port = json.loads(server.stdout.readline())["port"]
        sets = []
        for name, value in {
            "DATA_FILES": [str(data)],
            "OUTPUT_DIR": str(folder / "runs"),
            "BATCH_SIZE": BATCH,
            "NUM_EPOCHS": EPOCHS,
            "BACKEND": "tinker",
            "EXPORT_AFTER_TRAINING": "no",
            "SAMPLING_MAX_TOKENS": 8,
        }.items():
            sets += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
        subprocess.run(
            [sys.executable, "train_with_config.py", *sets],
            cwd=ROOT,
            env=os.environ
            | {"TINKER_BASE_URL": f"http://127.0.0.1:{port}", "TINKER_API_KEY": KEY}
            | {"TINKER_TELEMETRY": "0"},
            check=True,
        )
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(timeout=30)
    return [json.loads(line) for line in log.read_text().splitlines()]


def _serve(log: Path, folder: str, delay: float) -> None:
    """The engine, with each request of a client `delay` seconds slower and written to `log`."""
    from tinkersmith.engine.__main__ import main as engine_main
    from tinkersmith.engine.scheduling import queue

    run_job = queue.EngineThread._run_job

    def slowly(thread, models, client_id, job):
        if job.name is None:  # no client requested it
            run_job(thread, models, client_id, job)
            return
        started = time.time()
        time.sleep(delay)
        run_job(thread, models, client_id, job)
        call = {"name": job.name, "started": started, "ended": time.time()}
        with log.open("a") as file:
            file.write(json.dumps(call) + "\n")

    setattr(queue.EngineThread, "_run_job", slowly)  # noqa: B010 - its type has other names
    sys.exit(engine_main(["--port", "0", "--dir", folder, "--exit-with-stdin"]))


if __name__ == "__main__":
    main()
