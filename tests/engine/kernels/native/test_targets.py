"""The C++ functions compiled for other processors, and run there where this machine can.

Vectors have 4, 8 or 16 numbers, with branches of their own in the sources. A processor's own
numbers are compared with torch's in test_native.py, and here with those of the others.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tinkersmith.engine.kernels.native import build

pytestmark = pytest.mark.slow

SOURCES = Path(build.__file__).parent
DRIVER = Path(__file__).parents[3] / "support" / "native_driver.cpp"
# What build.py would choose there, but without optimisations that only take the compiler's time.
FLAGS = [flag for flag in build._FLAGS if flag not in ("-march=native", "-w", "-O3")]
STRICT = ["-O1", "-Wall", "-Wextra", "-Werror"]
# Architecture, g++'s name of the processor, and the features that it needs.
TARGETS: dict[str, tuple[str, str, set[str]]] = {
    "8 numbers, AVX": ("x86_64", "sandybridge", {"avx"}),
    "8 numbers, AVX2": ("x86_64", "haswell", {"avx2", "fma", "bmi2", "f16c"}),
    "16 numbers, AVX-512": (
        "x86_64",
        "skylake-avx512",
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    ),
    "4 numbers, ARM": ("aarch64", "armv8-a", set()),
}
QUICK = "8 numbers, AVX"  # the others are left to `make soak`
Numbers = tuple[np.ndarray, np.ndarray]  # in fp32, and those that were rounded to bf16


def compiled(architecture: str, flags: list[str], folder: Path) -> Path:
    """All sources, and a program that calls them."""
    is_here = architecture == platform.machine()
    name = "g++" if is_here else f"{architecture}-linux-gnu-g++"
    compiler = shutil.which(name)
    if compiler is None:
        pytest.skip(f"{name} is not installed")
    program = folder / "driver"
    command = [compiler, *FLAGS, *STRICT, *flags, f"-I{SOURCES}", str(DRIVER)]
    command += [*map(str, sorted(SOURCES.glob("*.cpp"))), "-o", str(program)]
    done = subprocess.run(
        [*command, *([] if is_here else ["-static"])], capture_output=True, text=True
    )
    assert not done.returncode, done.stderr
    return program


def results(program: Path, runner: list[str]) -> Numbers:
    files = program.with_suffix(".exact"), program.with_suffix(".rounded")
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    subprocess.run([*runner, str(program), *map(str, files)], check=True, env=environment)
    exact, rounded = (np.fromfile(file, np.float32) for file in files)
    return exact, rounded


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What this architecture's plainest processor computes."""
    folder = tmp_path_factory.mktemp("plain")
    exact, rounded = results(compiled(platform.machine(), [], folder), [])
    assert len(exact) > 40_000 and len(rounded) > 2_000
    assert np.isfinite(exact).all() and np.isfinite(rounded).all() and exact.std() > 0.5
    return exact, rounded


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=[] if name == QUICK else [pytest.mark.long]) for name in TARGETS],
)
def test_other_processors_compute_the_same(target: str, expected: Numbers, tmp_path: Path) -> None:
    architecture, processor, features = TARGETS[target]
    program = compiled(architecture, [f"-march={processor}"], tmp_path)
    runner: list[str] = []
    if architecture != platform.machine():
        emulator = shutil.which(f"qemu-{architecture}")
        if emulator is None:
            pytest.skip(f"it compiles, but does not run here: qemu-{architecture} is not installed")
        runner = [emulator]
    elif missing := features - set(build.processor_features().split()):
        pytest.skip(f"it compiles, but does not run here: {', '.join(sorted(missing))} is missing")
    exact, rounded = results(program, runner)
    np.testing.assert_allclose(exact, expected[0], rtol=1e-4, atol=3e-4)
    np.testing.assert_allclose(rounded, expected[1], rtol=1e-2, atol=1e-2)  # 2^-8 of a number
