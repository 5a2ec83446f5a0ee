"""The C++ sources of this folder -> a shared library for this processor, compiled once and kept.

g++ is needed at the first start only, for some seconds; without it there is no library, and torch
does the work. (clang's OpenMP is another than torch's: it would not know how many threads to use.)
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
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tinkersmith.engine.log import log

_SOURCES = Path(__file__).parent
# Without the two rules about errors and traps, loops with roots and roundings are not vectorised.
_FLAGS = [
    *("-std=c++20", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-w"),
]
_DTYPES = ("float32", "bfloat16")
# What the functions take, in the order of the sources. i: int64, f: float, p: an address.
_ON_EVERY_PROCESSOR = {
    "rms_norm": "ii pp f p",
    "rms_norm_backward": "ii ppp f pp",
    "swiglu": "ii pp",
    "swiglu_backward": "ii pppp",
    "split_heads": "iiiii ppp f pp i f ppp",
    "split_heads_backward": "iiiii ppp f pp i f pppp",
    "exponentials": "ii p i ppp i",
    "few_rows": "iii pp p i",
}
_PRODUCTS = {
    "linear": "iii p i p p i i p p p p i",
    "swiglu_linear": "iii pp p i i pp p pp",
    "input_gradient": "iii p i pp i pp i",
    "swiglu_input_gradient": "iii ppp i p ppp",
    "weight_gradient": "iii p i p i f p i",
    "attend": "iiii p ppp pp",
    "attend_backward": "iiii p ppp pp p ppp",
    "head": "iii ppp i pp p i ppp",
    "linear_few": "iii p i p p i i p p p p i",
    "logits": "iii ppp i pp p ppp",
    "remember": "iiiii pp i pp",
    "decode": "iiiiii p i ff pp i pp pp pp p",
}
_TYPES = {"i": ctypes.c_int64, "f": ctypes.c_float, "p": ctypes.c_void_p}
_building = threading.Lock()


@dataclass(frozen=True, slots=True)
class Library:
    """The sources' functions, by their names without "tinkersmith_"."""

    functions: Any  # of ctypes
    products: bool  # whether those of bf16 are among them


@lru_cache
def cache_folder() -> Path:
    """Where machine code is kept for all runs of this user, as a compiler's cache is."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinkersmith"
    except RuntimeError:  # a user without a home: for this process only
        return Path(tempfile.mkdtemp(prefix="tinkersmith-"))


def start_building(folder: Path) -> None:
    """Compile in the background, while torch is imported; `native_library` tells of errors."""

    def build() -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _built(folder)

    threading.Thread(target=build, name="compiler", daemon=True).start()


def native_library(folder: Path) -> Library | None:
    """The library, compiled into `folder` if it is not there; None where that is impossible.

    To be called when torch has been imported: both take the OpenMP that comes first.
    """
    try:
        functions = ctypes.CDLL(str(_built(folder)))
    except (OSError, subprocess.SubprocessError) as error:
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
        log.warning("no native code, torch does its work: %s", lines[0] if lines else error)
        return None
    products = bool(functions.tinkersmith_products())
    names = {
        f"{name}_{dtype}": types for name, types in _ON_EVERY_PROCESSOR.items() for dtype in _DTYPES
    }
    for name, types in (names | (_PRODUCTS if products else {})).items():
        function = getattr(functions, f"tinkersmith_{name}")
        function.argtypes = [_TYPES[letter] for letter in types.replace(" ", "")]
        function.restype = None
    return Library(functions, products)


def _built(folder: Path) -> Path:
    """Raises: OSError, SubprocessError: it cannot be compiled here."""
    with _building:
        return _build(folder)


def _build(folder: Path) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        raise OSError("no C++ compiler (g++) is installed")
    sources = sorted(_SOURCES.glob("*.cpp"))
    key = hashlib.sha256()
    for file in [*sources, *sorted(_SOURCES.glob("*.h"))]:
        key.update(file.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True)
    key.update("\n".join([version.stdout, *_FLAGS, _processor()]).encode())
    library = folder / f"native-{key.hexdigest()[:20]}.so"
    if library.is_file():
        return library
    start = time.perf_counter()
    # Of this user alone: what lies there is run.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        objects = [Path(temporary) / f"{source.stem}.o" for source in sources]
        compiling = [
            subprocess.Popen(
                [compiler, *_FLAGS, "-c", str(source), "-o", str(target)],
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
            [compiler, *_FLAGS, "-shared", *map(str, objects), "-o", str(target)],
            capture_output=True,
            text=True,
            check=True,
        )
        with target.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(target, library)
    log.info("compiled the native code in %.1f s", time.perf_counter() - start)
    return library


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
