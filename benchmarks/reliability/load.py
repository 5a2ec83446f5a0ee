"""64 clients at once for ten minutes: they train, save, sample, download, delete, and start again.

Promises: no request fails, no session and no checkpoint is left over, and memory and handles do not
grow by over 10 % once the first quarter is over.
"""

import argparse
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.reliability.soak import grew
from benchmarks.reliability.watching import Watched, draw, figures, watched
from benchmarks.results_file import RESULTS, write_results
from tests.support.engine import MODEL, RunningEngine, no_proxy_for_loopback, running_engine
from tests.support.raw_client import batch, call, loss, result
from tests.support.tiny_models import make_tiny_model

STEPS = 5  # of one training client, before it is saved and given up


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability.load")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    no_proxy_for_loopback()
    every = min(2.0, options.minutes * 60 / 40)
    curves, found = load(options.clients, options.minutes * 60, every)
    for what, unit, of_engine in (
        ("memory", "MB", curves.memory),
        ("handles", "handles", curves.handles),
    ):
        title = f"{what.title()} with {options.clients} clients"
        draw(RESULTS / f"reliability_load_{what}.svg", title, of_engine, unit)
        print(f"{what}: {of_engine['engine'].growth():+.1%}")
    for name, value in found.items():
        print(f"{name}: {value}")
    command = (
        f"python -m benchmarks.reliability.load --clients {options.clients} "
        f"--minutes {options.minutes:g}"
    )
    print("written:", write_results("reliability_load", command, found | figures(curves)))
    return int(bool(found["failures"] or found["left over"]) or grew(curves))


def load(clients: int, seconds: float, every: float) -> tuple[Watched, dict[str, Any]]:
    """Keep so many clients busy for so long; what was read of the engine, and what they did."""
    done: Counter[str] = Counter()
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="tinkersmith-load-") as temporary:
        folder = Path(temporary)
        model, log = make_tiny_model(folder / "model"), folder / "log"
        with (
            log.open("wb") as stderr,
            running_engine(folder / "engine", model, stderr=stderr) as engine,
        ):
            until = time.monotonic() + seconds

            def work(number: int) -> None:
                try:
                    while time.monotonic() < until:
                        live(engine, number, done)
                except Exception as error:  # this client ends; the figures name it
                    failures.append(f"client {number}: {type(error).__name__}: {error}")

            threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
            with watched(lambda: {"engine": engine.process.pid}, every) as curves:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            active = {"statuses": [{"type": "active"}]}
            left_over = {
                "sessions": good(engine, "/sessions/search", active)["sessions"],
                "checkpoints": good(engine, "/checkpoints")["checkpoints"],
                "files": [str(file) for file in folder.glob("engine/checkpoints/**/*.safetensors")],
            }
        log_text = log.read_text(errors="replace")
    if "Traceback" in log_text:
        failures.append("a traceback in the log")
    return curves, {
        "clients": clients,
        "seconds": round(seconds),
        "done": dict(done),
        "failures": failures[:50],
        "left over": {name: items for name, items in left_over.items() if items},
    }


def live(engine: RunningEngine, number: int, done: "Counter[str]") -> None:
    """One client's life, from its session's begin to its end.

    Raises:
        RuntimeError: a request was not answered as it should be.
    """
    session = good(engine, "/create_session", {"tags": [], "sdk_version": "0.38.0"})["session_id"]
    body = {"session_id": session, "base_model": MODEL}
    future = good(engine, "/create_model", {**body, "model_seq_id": 0, "lora_config": {"rank": 4}})
    model = taken(engine, future)["model_id"]
    tokens = [(number + place) % 250 for place in range(24)]
    losses = []
    for step in range(STEPS):
        pass_future = good(engine, "/forward_backward", batch(model, 2 * step + 1, tokens))
        adam = {"model_id": model, "seq_id": 2 * step + 2, "adam_params": {"learning_rate": 1e-2}}
        step_future = good(engine, "/optim_step", adam)
        losses.append(loss(taken(engine, pass_future)))
        taken(engine, step_future)
    if not losses[-1] < losses[0]:
        raise RuntimeError(f"the loss went from {losses[0]} to {losses[-1]}")
    done["steps"] += STEPS
    numbered = {"model_id": model, "seq_id": 2 * STEPS + 1}
    paths = []
    for route in ("/save_weights", "/save_weights_for_sampler", "/save_weights_external"):
        paths.append(taken(engine, good(engine, route, {**numbered, "path": "end"}))["path"])
        numbered["seq_id"] += 1
    sampling = {**body, "sampling_session_seq_id": 0, "model_path": paths[1]}
    sampler = good(engine, "/create_sampling_session", sampling)["sampling_session_id"]
    request = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "num_samples": 4,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": tokens[:8]}]},
        "sampling_params": {"max_tokens": 8, "temperature": 1.0},
    }
    taken(engine, good(engine, "/asample", request))
    done["samples"] += 4
    run = f"/training_runs/{model}/checkpoints"
    for url in good(engine, f"{run}/external_weights/end/external_weights_urls")["urls"].values():
        with urllib.request.urlopen(url, timeout=60) as response:
            response.read()
    for segment in ("weights", "sampler_weights", "external_weights"):
        good(engine, f"{run}/{segment}/end", method="DELETE")
    good(engine, f"/sessions/{session}/finish", {"reason": {"type": "success"}})
    done["lives"] += 1


def good(engine: RunningEngine, path: str, body: Any = None, *, method: str = "") -> Any:
    status, answer = call(engine, path, body, method=method)
    if status not in (200, 204):
        raise RuntimeError(f"{path}: {status} {answer}")
    return answer


def taken(engine: RunningEngine, future: Any) -> Any:
    answer = result(engine, future["request_id"])
    if isinstance(answer, dict) and "error" in answer:
        raise RuntimeError(f"{future['request_id']}: {answer['error']}")
    return answer


if __name__ == "__main__":
    sys.exit(main())
