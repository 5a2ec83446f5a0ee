"""A real engine process on loopback, driven by the unmodified SDK."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import tinker

from tests.support.fork_server import ENGINE, ForkedEngine, Popen
from tests.support.processes import PATIENCE

KEY = "tml-local"


MODEL = "tiny"


# Older SDKs: create_*_client gives the client itself, not a future; RestClient is not exported.
SDK = tuple(map(int, tinker.__version__.split(".")[:2]))


@dataclass
class RunningEngine:
    process: subprocess.Popen[bytes] | ForkedEngine
    url: str
    folder: Path

    def client(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url, api_key=KEY)

    def rest(self) -> "tinker.RestClient":
        return self.client().create_rest_client()


@contextmanager
def running_engine(
    folder: Path,
    model: Path,
    *options: str,
    stderr: IO[bytes] | None = None,
    program: Sequence[str] = ENGINE,
    key: str = KEY,
) -> Iterator[RunningEngine]:
    """Start `python -m tinkersmith.engine` and wait for its ready line; kill it at the end.

    Within tests it is forked from a process that has imported torch: see `fork_server`.
    """
    process = Popen(
        [
            *(sys.executable, *program, "--port", "0", "--dir", str(folder)),
            *("--base-model", f"{MODEL}={model}", "--threads", "1", "--exit-with-stdin", *options),
        ],
        stderr=stderr,
        env={**os.environ, "TINKERSMITH_ENGINE_KEY": key},
    )
    assert process.stdout is not None
    try:
        ready = json.loads(process.stdout.readline())
        yield RunningEngine(process, f"http://127.0.0.1:{ready['port']}", folder)
    finally:
        process.kill()
        process.wait()


def no_proxy_for_loopback() -> None:
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
    os.environ["TINKER_TELEMETRY"] = "0"


def datum(tokens: list[int], weights: list[float] | None = None) -> tinker.Datum:
    """Next-token prediction over `tokens`; weights default to 1."""
    targets = np.asarray(tokens[1:], np.int64)
    values = np.ones(len(targets)) if weights is None else np.asarray(weights[1:])
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens[:-1]),
        loss_fn_inputs={
            "target_tokens": tinker.TensorData.from_numpy(targets),
            "weights": tinker.TensorData.from_numpy(values.astype(np.float32)),
        },
    )


def random_datums(count: int, seed: int = 0, vocabulary: int = 250) -> list[tinker.Datum]:
    rng = np.random.default_rng(seed)
    return [datum(rng.integers(0, vocabulary, rng.integers(5, 40)).tolist()) for _ in range(count)]


def get_json(engine: RunningEngine, path: str) -> dict:
    request = urllib.request.Request(engine.url + path, headers={"X-API-Key": KEY})
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        return json.load(response)
