"""The C++ sources of this folder -> a shared library for this processor, compiled once and stored.

Only the first start needs g++, for some seconds. Without g++ there is no library, and torch does
the work. clang is not used: its OpenMP is not torch's, and would not know how many threads to use.

The products in bfloat16 take nine tenths of the compiler's time. A library without them is compiled
first; the one with them, when a model in bfloat16 is loaded.
"""

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tinkersmith.engine.kernels.native.interface import INTERFACE
from tinkersmith.engine.log import log

_SOURCES = Path(__file__).parent
# The two flags about errors and traps let g++ vectorise loops that take roots or round.
_FLAGS = [
    *("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-w"),
]
_PRODUCTS = "avx512_bf16"  # the processor's feature that the products in bf16 need
_WITHOUT_PRODUCTS = "-mno-avx512bf16"  # leaves them out of the sources
_building = threading.Lock()


class Functions(Protocol):
    """The functions that interface.h declares, by their names."""

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


@dataclass(frozen=True, slots=True)
class Library:
    """The compiled sources."""

    functions: Functions
    products: bool  # whether it has products in bf16 that are faster than torch's


@lru_cache
def cache_folder() -> Path:
    """The folder of compiled code, shared by all runs of this user."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinkersmith"
    except RuntimeError:  # the user has no home: a folder for this process only
        return Path(tempfile.mkdtemp(prefix="tinkersmith-"))


def start_building(folder: Path, *, products: bool) -> None:
    """Compile in the background while something else is read. `native_library` reports errors."""

    def build() -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _built(folder, products)

    threading.Thread(target=build, name="compiler", daemon=True).start()


def native_library(folder: Path, *, products: bool = True) -> Library | None:
    """The library, compiled into `folder` if it is not there; None if that fails, with a warning.

    Call it after torch was imported: both use the OpenMP library that was loaded first.

    Args:
        products: compile the products in bf16, too, if this processor can have them.
    """
    try:
        functions = ctypes.CDLL(str(_built(folder, products)))
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        log.warning("no native code, torch is used instead: %s", lines[0] if lines else error)
        return None
    has_products = bool(functions.tinkersmith_has_products())
    for declared in INTERFACE.functions.values():
        if has_products or not declared.needs_products:
            function = getattr(functions, declared.name)
            function.argtypes = list(declared.parameters.values())
            function.restype = declared.result
    return Library(functions, has_products)


def _built(folder: Path, products: bool) -> Path:
    """The library's file, compiled by one thread at a time.

    Raises: OSError, SubprocessError: it cannot be compiled here.
    """
    with _building:
        return _build(folder, products)


def _build(folder: Path, products: bool) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler (g++) is installed")
    flags = _flags(products, processor_features())
    sources = sorted(_SOURCES.glob("*.cpp"))
    library = folder / f"native-{_key(_SOURCES, compiler, flags)}.so"
    if library.is_file():
        return library
    start = time.perf_counter()
    # For this user only: the code in it is run.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        objects = [Path(temporary) / f"{source.stem}.o" for source in sources]
        compiling = [
            subprocess.Popen(
                [compiler, *flags, "-c", str(source), "-o", str(target)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for source, target in zip(sources, objects, strict=True)
        ]
        for process in compiling:
            _, errors = process.communicate()
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, compiler, stderr=errors)
        target = Path(temporary) / library.name
        subprocess.run(
            [compiler, *flags, "-shared", *map(str, objects), "-o", str(target)],
            capture_output=True,
            text=True,
            check=True,
        )
        with target.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(target, library)
    log.info("compiled the native code in %.1f s", time.perf_counter() - start)
    return library


def _flags(products: bool, processor: str) -> list[str]:
    """The compiler's flags. A processor that cannot have the products has one library, not two."""
    if products or _PRODUCTS not in processor.split():
        return _FLAGS
    return [*_FLAGS, _WITHOUT_PRODUCTS]


def _key(sources: Path, compiler: str, flags: Sequence[str]) -> str:
    """A digest of all that the machine code depends on.

    Raises: SubprocessError: the compiler does not run.
    """
    key = hashlib.sha256()
    for file in [*sorted(sources.glob("*.cpp")), *sorted(sources.glob("*.h"))]:
        key.update(file.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    key.update("\n".join([version.stdout, *flags, processor_features()]).encode())
    return key.hexdigest()[:20]


def processor_features() -> str:
    """The processor's features, on which -march=native depends; its name if there is no list."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
