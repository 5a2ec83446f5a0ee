"""What one training step costs over its computation: the SDK, the wire, the engine's queue.

forward_backward and optim_step are sent by the unmodified SDK to an engine process of its own on
loopback, then the same calls are made in this process; a model of about 100,000 parameters, so that
little of the time is computation.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import tinker
import torch
from tinker import types

from benchmarks.results_file import write_results
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.training.optimizer import new_state, optim_step
from tinkersmith.engine.training.step import forward_backward
from tinkersmith.service.embedded import start_engine

SAMPLES, TOKENS, RANK = 8, 64, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    rng = np.random.default_rng(0)
    samples = [rng.integers(0, 256, TOKENS + 1) for _ in range(SAMPLES)]
    with tempfile.TemporaryDirectory() as temporary:
        model = make_tiny_model(Path(temporary) / "model", hidden=64, layers=2)
        bare, parameters = _bare_step(model, samples)
        engine = start_engine(Path(temporary), [str(model)])
        engine.wait_until_ready()
        try:
            served = _served_step(engine.url, engine.key, str(model), samples)
            times = _times({"round trip": served, "computation": bare}, steps)
        finally:
            engine.stop()
    overheads = [whole - part for whole, part in zip(*times.values(), strict=True)]
    figures = {
        "parameters": parameters,
        "steps": steps,
        "samples a step": SAMPLES,
        "tokens a sample": TOKENS,
        "milliseconds": {
            **{name: round(1e3 * median(values), 2) for name, values in times.items()},
            "overhead": round(1e3 * median(overheads), 2),
            "overhead, 95th percentile": round(1e3 * float(np.quantile(overheads, 0.95)), 2),
        },
    }
    print(figures)
    print("written:", write_results("round_trip", "python -m benchmarks.round_trip", figures))


def _bare_step(folder: Path, samples: list[np.ndarray]) -> tuple[Callable[[], object], int]:
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))  # as the engine for small models
    base = with_fast_code(load_base_model("bare", folder, "float32", "cpu"))
    adapter = new_adapter(base, LoraConfig(RANK, 0))
    state = new_state(adapter)
    datums = [
        Datum(
            tokens[:-1],
            {"target_tokens": tokens[1:], "weights": np.ones(TOKENS, np.float32)},
        )
        for tokens in samples
    ]

    def step() -> None:
        forward_backward(base, adapter, datums, "cross_entropy", {})
        optim_step(adapter, state, AdamParams())

    return step, sum(weight.numel() for weight in base.model.parameters())


def _served_step(url: str, key: str, model: str, samples: list[np.ndarray]) -> Callable[[], object]:
    os.environ["TINKER_TELEMETRY"] = "0"
    service = tinker.ServiceClient(base_url=url, api_key=key)
    client = service.create_lora_training_client(base_model=model, rank=RANK).result()
    data = [
        types.Datum(
            model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
            loss_fn_inputs={
                "target_tokens": types.TensorData.from_numpy(tokens[1:]),
                "weights": types.TensorData.from_numpy(np.ones(TOKENS, np.float32)),
            },
        )
        for tokens in samples
    ]

    def step() -> None:
        gradient = client.forward_backward(data, "cross_entropy")
        update = client.optim_step(types.AdamParams(learning_rate=1e-4))
        gradient.result()
        update.result()

    return step


def _times(steps: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each step, in turn; the first tenth warms up and is left out."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(count + count // 10):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if index >= count // 10:
                times[name].append(time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
