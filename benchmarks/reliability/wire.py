"""100,000 wrong requests to a running engine: malformed bodies, odd values, broken headers.

Promises: no status 500, no traceback in the log, no name of a Python exception in an answer, none
that blames the engine, each answer within 10 seconds, and memory that does not grow by over 10 %
once the first quarter is over.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.reliability.soak import ALLOWED
from benchmarks.reliability.watching import Watched, draw, figures, watched
from benchmarks.results_file import RESULTS, write_results
from tests.support.engine import no_proxy_for_loopback, running_engine
from tests.support.tiny_models import make_tiny_model
from tests.support.wire_fuzz import Fuzzer, Tally


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.wire")
    parser.add_argument("--bodies", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    no_proxy_for_loopback()
    curves, tally, log = fuzz(options.bodies, options.seed)
    title = f"Memory over {tally.bodies:,} wrong requests"
    draw(RESULTS / "reliability_wire_memory.svg", title, curves.memory, "MB")
    growth = curves.memory["engine"].growth()
    found = {
        "bodies": tally.bodies,
        "seed": options.seed,
        "answers by status (0: closed without one)": dict(sorted(tally.statuses.items())),
        "slowest answer, seconds": round(tally.slowest, 2),
        "faults": tally.faults[:50],
        "tracebacks in the log": log.count("Traceback"),
        "kilobytes of log": round(len(log) / 1000, 1),
    }
    for name, value in found.items():
        print(f"{name}: {value}")
    for traceback in log.split("Traceback")[1:4]:
        print(f"Traceback{traceback[:4000]}")
    print(f"memory: {growth:+.1%}")
    command = f"python -m benchmarks.reliability.wire --bodies {options.bodies}"
    print("written:", write_results("reliability_wire", command, found | figures(curves)))
    return int(bool(tally.faults) or "Traceback" in log or growth > ALLOWED)


def fuzz(bodies: int, seed: int) -> tuple[Watched, Tally, str]:
    """Send so many wrong requests; what was read of the engine, what it answered, and its log."""
    with tempfile.TemporaryDirectory(prefix="tinkersmith-wire-") as temporary:
        folder = Path(temporary)
        model, log = make_tiny_model(folder / "model"), folder / "log"
        with (
            log.open("wb") as stderr,
            running_engine(folder / "engine", model, stderr=stderr) as engine,
        ):
            fuzzer = Fuzzer(engine, seed)
            with watched(lambda: {"engine": engine.process.pid}, every=1.0) as curves:
                for count in range(1, bodies + 1):
                    fuzzer.step()
                    if count % 5000 == 0:
                        print(f"{count:,} sent, {len(fuzzer.tally.faults)} faults", flush=True)
            fuzzer.finish()
            if engine.process.poll() is not None:
                fuzzer.tally.faults.append("the engine has ended")
        return curves, fuzzer.tally, log.read_text(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
