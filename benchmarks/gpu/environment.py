"""What the machine is: its GPU and what that reaches, versions, optional packages, fast paths."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch

from benchmarks.gpu import paths
from benchmarks.gpu.runner import Figures, reason_of
from tinkersmith.engine.kernels.varlen_attention import works as varlen_attention_works

PACKAGES = ("torch", "transformers", "peft", "numpy", "tokenizers", "safetensors", "triton")
# Name of the import -> of the distribution.
OPTIONAL = {
    "trl": "trl",
    "datasets": "datasets",
    "liger_kernel": "liger-kernel",
    "vllm": "vllm",
    "tinker": "tinker",
}


def look() -> Iterator[Figures]:
    """The device first, so that it is known even if a later look breaks off."""
    has_gpu = torch.cuda.is_available()
    figures: Figures = {"device": "cuda" if has_gpu else "cpu"}
    if has_gpu:
        properties = torch.cuda.get_device_properties(0)
        figures["gpu"] = properties.name
        figures["memory, GB"] = properties.total_memory / 1e9
        figures["compute capability"] = f"{properties.major}.{properties.minor}"
        figures["CUDA"] = torch.version.cuda
    figures |= {
        "python": platform.python_version(),
        "processor cores": os.cpu_count(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "optional": {
            name: _version(distribution)
            for name, distribution in OPTIONAL.items()
            if find_spec(name) is not None
        },
        "compilers": [name for name in ("gcc", "g++", "nvcc") if shutil.which(name)],
    }
    yield figures
    if not has_gpu:
        return
    figures["bf16 product, TFLOP/s"] = _product_rate()
    figures["copy, TB/s"] = _copy_rate()
    yield figures
    device = torch.device("cuda")
    works = varlen_attention_works(32, 8, 128, torch.bfloat16, device)
    figures["variable-length FlashAttention"] = "works" if works else "not usable: see the log"
    try:
        paths.OPTIONS[paths.FLOAT8].check(device)
        figures["float8"] = "works"
    except Exception as error:  # a reason not to use it, not to stop
        figures["float8"] = reason_of(error)
    yield figures


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _product_rate() -> float:
    """TFLOP/s of a large bf16 product of random numbers."""
    size = 8192
    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: left @ right) / 1e12


def _copy_rate() -> float:
    """TB/s of a copy within the GPU's memory, bytes read plus bytes written."""
    source = torch.randn(2**30, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / 1e12


def _seconds(work) -> float:
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start, times = time.perf_counter(), 10
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / times
