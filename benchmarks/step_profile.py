"""Where the time of our training step goes on a CPU, by what its C++ functions do.

The step is that of benchmarks/training.py. Every call of a function is timed; the rest of the step
is Python, torch, the loss and the optimizer. Rates count useful operations (see training_data.py).
"""

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.results_file import write_results
from benchmarks.training_data import (
    SHAPE,
    Lengths,
    add_arguments,
    random_model,
    random_samples,
    step_lengths,
    useful_parts,
)
from benchmarks.training_worker import our_step, product_peak
from tinkersmith.engine.hardware.memory import keep_freed_memory
from tinkersmith.engine.kernels.native.build import Library, cache_folder, native_library
from tinkersmith.engine.runtime.fast_code import with_native_code

STEPS = 5
KINDS = {  # of functions; the other ones are element-wise
    "linear": "layers' products",
    "swiglu_linear": "layers' products",
    "input_gradient": "layers' products",
    "swiglu_input_gradient": "layers' products",
    "weight_gradient": "layers' products",
    "attend": "attention, forward",
    "attend_backward": "attention, backward",
    "head": "output layer",
}


class TimedFunctions:
    """Those of a library, and the seconds that each kind has taken."""

    def __init__(self, library: Library) -> None:
        self.functions = library.functions
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Callable[..., None]:
        function = getattr(self.functions, name)
        kind = KINDS.get(name.removeprefix("tinkersmith_"), "element-wise")

        def timed(*arguments: Any) -> None:
            start = time.perf_counter()
            function(*arguments)
            self.seconds[kind] += time.perf_counter() - start

        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    options = parser.parse_args()
    keep_freed_memory()  # as the engine does at its start, before torch has threads
    torch.set_num_threads(options.threads)
    library = native_library(cache_folder())
    if library is None or not library.products:
        sys.exit("On this processor torch computes the step, not C++ functions.")
    [lengths], source = step_lengths(options.data, 1, 16384)
    figures = {
        "lengths": source,
        "shape": SHAPE,
        "threads": options.threads,
        "steps": STEPS,
        "bf16 matrix-product peak, GFLOP/s": round(product_peak(), 1),
        "vocabularies": {
            str(vocabulary): _profile(library, lengths, vocabulary)
            for vocabulary in (151936, 32000)
        },
    }
    print(write_results("step_profile", "python -m benchmarks.step_profile", figures).read_text())


def _profile(library: Library, lengths: Lengths, vocabulary: int) -> dict[str, Any]:
    functions = TimedFunctions(library)
    samples = random_samples(lengths, vocabulary)
    with tempfile.TemporaryDirectory() as temporary:
        step, _ = our_step(
            random_model(Path(temporary), vocabulary),
            lambda base: with_native_code(base, replace(library, functions=functions)),
        )
    step(samples)
    wholes, parts = [], []
    for _ in range(STEPS):
        functions.seconds.clear()
        start = time.perf_counter()
        step(samples)
        wholes.append(time.perf_counter() - start)
        parts.append(dict(functions.seconds))
    seconds = {kind: median(part[kind] for part in parts) for kind in parts[0]}
    seconds["the rest"] = median(np.subtract(wholes, [sum(part.values()) for part in parts]))
    useful = useful_parts(lengths, vocabulary)
    whole = median(wholes)
    return {
        "seconds": round(whole, 2),
        "useful GFLOP/s": round(sum(useful.values()) / whole / 1e9, 1),
        "parts": {
            kind: {"seconds": round(spent, 2), "share": round(spent / whole, 3)}
            | ({"useful GFLOP/s": round(useful[kind] / spent / 1e9, 1)} if kind in useful else {})
            for kind, spent in sorted(seconds.items(), key=lambda item: -item[1])
        },
    }


if __name__ == "__main__":
    main()
