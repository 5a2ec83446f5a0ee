"""The engine of this version against that of another: training steps and sampling, in turn.

For models without a window, where a later change must cost nothing: a Llama-shaped one through the
kernels, one with experts and one of another shape through their own layers. Each measurement is the
median of several runs in a process; processes of both versions alternate. Exits with 1 if a
median of a ratio is over the limit.

git worktree add --detach ../before COMMIT
python -m benchmarks.two_versions --other ../before/src [--rounds 4]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results_file import write_results

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 1.03
THREADS = 2
_SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "bos_token_id": None,
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 64,
}


def make_models(folder: Path) -> None:
    import torch
    from transformers import (
        GraniteConfig,
        GraniteForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    sized: Any = Qwen3MoeConfig
    torch.manual_seed(0)
    for name, model in (
        ("kernels", Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=16))),
        ("experts", Qwen3MoeForCausalLM(sized(**_SIZES, **_EXPERTS, head_dim=16))),
        ("own layers", GraniteForCausalLM(GraniteConfig(**_SIZES))),
    ):
        model.float().save_pretrained(folder / name)


def worker(folder: Path) -> dict[str, float]:
    """Seconds of each case, by the engine that is first on the path."""
    import numpy as np
    import torch

    from tinkersmith.engine.messages import Datum, LoraConfig, SampleRequest
    from tinkersmith.engine.model.adapters import new_adapter
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code
    from tinkersmith.engine.sampling.sampler import sample
    from tinkersmith.engine.training.step import forward_backward

    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    datums: list[Datum] = []
    for length in (40, 150, 90, 256, 60):
        tokens = rng.integers(1, 4000, length + 1)
        weights = np.ones(length, np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    shared = rng.integers(1, 4000, 256).tolist()

    def requests(prefix: list[int], count: int) -> list[SampleRequest]:
        return [
            SampleRequest([*prefix, *rng.integers(1, 4000, 30).tolist()], 1, 16, seed=n, stop=[])
            for n in range(count)
        ]

    seconds: dict[str, float] = {}
    for name in ("kernels", "experts", "own layers"):
        base = with_fast_code(load_base_model(name, folder / name, "float32", "cpu"))
        adapter = new_adapter(base, LoraConfig(16, 0))
        alone, prefixed = requests([], 8), requests(shared, 8)

        def train(base: Any = base, adapter: Any = adapter) -> object:
            return forward_backward(base, adapter, datums, "cross_entropy", {})

        def sampled(asked: Any, base: Any = base, adapter: Any = adapter) -> object:
            return sample(base, adapter, asked)

        cases: dict[str, Callable[[], object]] = {
            "training": train,
            "sampling": lambda alone=alone, sampled=sampled: sampled(alone),
            "sampling, shared prefix": lambda asked=prefixed, sampled=sampled: sampled(asked),
        }
        for case, run in cases.items():
            run()
            seconds[f"{name}, {case}"] = median(_timed(run) for _ in range(3))
    return seconds


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(source: Path, folder: Path) -> dict[str, float]:
    """Seconds of each case in a process of its own, by the engine in `source`."""
    paths = os.pathsep.join([str(source), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.two_versions", "--folder", str(folder)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(THREADS)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{source} failed:\n{done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, help="src folder of the other version")
    parser.add_argument("--name", default="", help="what the other version is called")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # of a process
    options = parser.parse_args()
    if options.folder is not None:
        print(json.dumps(worker(options.folder)))
        return
    if options.other is None:
        parser.error("--other is missing")
    ours: list[dict[str, float]] = []
    theirs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_models(folder)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for number in range(options.rounds):
            order = [(theirs, options.other.resolve()), (ours, ROOT / "src")]
            for runs, source in order if number % 2 else order[::-1]:
                runs.append(measure(source, folder))
            print(f"round {number + 1} of {options.rounds}", flush=True)
    figures: dict[str, dict[str, float]] = {}
    for case in ours[0]:
        ratios = [new[case] / old[case] for new, old in zip(ours, theirs, strict=True)]
        figures[case] = {
            "other, seconds": round(median(run[case] for run in theirs), 4),
            "this, seconds": round(median(run[case] for run in ours), 4),
            "this / other": round(median(ratios), 3),
        }
        print(f"{case:40}" + "".join(f"{value:10.3f}" for value in figures[case].values()))
    results: dict[str, object] = {"other": options.name, "limit": LIMIT, "cases": figures}
    command = f"python -m benchmarks.two_versions --other SRC --rounds {options.rounds}"
    print("written:", write_results("two_versions", command, results))
    sys.exit(any(values["this / other"] > LIMIT for values in figures.values()))


if __name__ == "__main__":
    main()
