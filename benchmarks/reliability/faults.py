"""Runs through a proxy that breaks a share of the requests, and runs whose server is restarted.

Each run trains, validates, saves, samples and exports through the unmodified SDK, with the proxy at
TINKER_BASE_URL. Its losses and its exported weights must be those of a run without faults, and
nobody may help it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from benchmarks.results_file import write_results
from tests.support.engine import KEY, MODEL, RunningEngine, running_engine
from tests.support.fault_proxy import KINDS, fault_proxy
from tests.support.restarts import ServerOnPort
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.runs.folder import all_runs

SHARES = (0.05, 0.2)
RESTARTS = "server killed and restarted"
AWAY = "server away for minutes"
ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES, BATCH, EPOCHS = 64, 8, 2


@dataclass(frozen=True)
class Outcome:
    """What became of a run."""

    finished: bool
    losses: list[float]
    weights: str  # hash of the exported ones
    seconds: float
    requests: int
    broken: int
    output: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.faults")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--stall", type=float, default=12.0, help="seconds (default: %(default)s)")
    parser.add_argument("--restarts", type=int, default=5, help="runs with restarted servers")
    parser.add_argument(
        "--at-once", type=int, default=8, help="runs at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--away",
        type=float,
        default=400.0,
        help="seconds without a server, more than the SDK's own 300; 0: no such run",
    )
    wanted = parser.parse_args()
    cases = [(kind, share) for kind in wanted.kinds for share in SHARES]
    with tempfile.TemporaryDirectory(prefix="tinkersmith-faults-") as temporary:
        trial = Trial(Path(temporary))
        with running_engine(trial.folder / "engine", trial.model) as engine:
            expected = trial.run("unbroken", engine.url)
            if not expected.finished:
                raise RuntimeError(f"a run without faults failed:\n{expected.output[-3000:]}")
            with ThreadPoolExecutor(wanted.at_once + 1) as pool:
                away = (
                    pool.submit(trial.restarted, "away", [3], wanted.away) if wanted.away else None
                )
                futures = [
                    pool.submit(trial.broken, engine, kind, share, wanted.stall)
                    for kind, share in cases
                ]
                outcomes = {
                    f"{kind}, {share:.0%}": future.result()
                    for (kind, share), future in zip(cases, futures, strict=True)
                }
        for number in range(wanted.restarts):
            kills = [3 + number, 9 + number]
            outcomes[f"{RESTARTS}, {number + 1}"] = trial.restarted(f"restarted-{number}", kills)
        if away is not None:
            outcomes[f"{AWAY}: {wanted.away:.0f} s"] = away.result()
    rows = {
        name: {
            "finished": outcome.finished,
            "equal": outcome.finished
            and (outcome.losses, outcome.weights) == (expected.losses, expected.weights),
            "without help": outcome.finished,
            "seconds": outcome.seconds,
            "requests": outcome.requests,
            "broken": outcome.broken,
        }
        for name, outcome in outcomes.items()
    }
    print(f"{'':38} finished  equal  seconds  broken / requests")
    for name, row in rows.items():
        print(
            f"{name:38} {row['finished']!s:8}  {row['equal']!s:5}  {row['seconds']:7.1f}  "
            f"{row['broken']} / {row['requests']}"
        )
        if not row["equal"]:
            print(outcomes[name].output[-1500:])
    sound = all(row["equal"] for row in rows.values())
    figures: dict[str, object] = {
        "losses compared": len(expected.losses),
        "seconds without faults": expected.seconds,
        "stall, seconds": wanted.stall,
        "finished": sum(bool(row["finished"]) for row in rows.values()),
        "equal": sum(bool(row["equal"]) for row in rows.values()),
        "runs": len(rows),
        "by kind": rows,
    }
    path = write_results("reliability_faults", "python -m benchmarks.reliability.faults", figures)
    print("written:", path)
    return int(not sound)


class Trial:
    """The same small run, again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_tiny_model(folder / "model")
        self._data = write(folder / "data.json", records(SAMPLES, seed=1))
        self._test = write(folder / "test.json", records(16, seed=2))

    def run(self, name: str, url: str) -> Outcome:
        """Train and export against the server at `url`, in a process of its own."""
        return self.finish(name, self.start(name, url))

    def start(self, name: str, url: str) -> "subprocess.Popen[str]":
        folder = self.folder / name
        folder.mkdir()
        config = folder / "config.py"
        config.write_text(
            f"DATA_FILES = [{str(self._data)!r}]\nVALIDATION_FILES = [{str(self._test)!r}]\n"
            f"BASE_MODEL = {MODEL!r}\nBACKEND = 'tinker'\nOUTPUT_DIR = 'runs'\n"
            f"NUM_EPOCHS = {EPOCHS}\nBATCH_SIZE = {BATCH}\nLORA_RANK = 4\nSAVE_EVERY = 2\n"
            "LEARNING_RATE = 1e-2\nSAMPLING_MAX_TOKENS = 8\nEXPORT_AFTER_TRAINING = 'no'\n"
            "EVAL_EVERY = 4\n"
        )
        program = (
            "import sys\nfrom tinkersmith.cli.main import main\n"
            "code = main(['train', '--config', 'config.py'])\n"
            f"sys.exit(code or main(['export', '--base-folder', {str(self.model)!r}]))\n"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=folder,
            env={
                **os.environ,
                "TINKER_BASE_URL": url,
                "TINKER_API_KEY": KEY,
                "TINKER_TELEMETRY": "0",
                "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, name: str, process: "subprocess.Popen[str]") -> Outcome:
        begin = time.monotonic()
        output, _ = process.communicate()
        folder = self.folder / name
        runs = all_runs(folder / "runs")
        lines = runs[0].lines("metrics.jsonl") if runs else []
        exported = list(folder.glob("exported/*/adapter_model.safetensors"))
        return Outcome(
            finished=process.returncode == 0,
            losses=[
                line[name] for line in lines for name in ("loss", "validation_loss") if name in line
            ],
            weights=sha256(exported[0].read_bytes()).hexdigest() if exported else "",
            seconds=round(time.monotonic() - begin, 1),
            requests=0,
            broken=0,
            output=output,
        )

    def broken(self, engine: RunningEngine, kind: str, share: float, stall: float) -> Outcome:
        """A run through a proxy that breaks this share of the requests."""
        name = f"{kind.replace(' ', '-')}-{share}"
        with fault_proxy(engine.url, kind, share, stall=stall) as proxy:
            outcome = self.finish(name, self.start(name, proxy.url))
            requests, broken = sum(proxy.requests.values()), sum(proxy.broken.values())
        print(f"{name}: finished {outcome.finished} in {outcome.seconds} s", flush=True)
        return replace(outcome, requests=requests, broken=broken)

    def restarted(self, name: str, after_steps: Sequence[int], pause: float = 1.0) -> Outcome:
        """A run whose server is killed after so many steps, and comes back after `pause` s."""
        kills = 0
        with ServerOnPort(self.folder / f"engine-{name}", self.model) as server:
            process = self.start(name, server.url)
            over = threading.Event()

            def kill() -> None:
                nonlocal kills
                for steps in after_steps:
                    while self._steps(name) < steps:
                        if over.wait(0.05):
                            return
                    server.restart(pause)
                    kills += 1

            killing = threading.Thread(target=kill)
            killing.start()
            outcome = self.finish(name, process)
            over.set()
            killing.join()
        return replace(outcome, broken=kills)

    def _steps(self, name: str) -> int:
        return sum(
            file.read_text().count('"loss"')
            for file in (self.folder / name).glob("runs/*/metrics.jsonl")
        )


if __name__ == "__main__":
    sys.exit(main())
