"""The C++ functions in bf16, also on processors that lack the instructions for their products."""

import hashlib
import os
import shutil
from functools import lru_cache
from pathlib import Path
from unittest.mock import patch

import pytest

from tinkersmith.engine.kernels.native import build
from tinkersmith.engine.kernels.native.build import Library, native_library

EMULATION = Path(__file__).with_name("bf16_instructions.h")
_NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}


def library_with_products(library: Library) -> Library:
    """`library` if it has products in bf16, else one that makes their instructions of others.

    Skips the test on processors without AVX-512.
    """
    return library if library.products else emulated_library()


@lru_cache
def emulated_library() -> Library:
    if not set(build.processor_features().split()) >= _NEEDED:
        pytest.skip("the bf16 products need AVX-512, which this processor does not have")
    folder = build.cache_folder() / "emulated"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # The compiler's version is part of the library's name, and with it the header's content.
    compiler = folder / "compiler"
    version = hashlib.sha256(EMULATION.read_bytes()).hexdigest()
    written = folder / f"compiler.{os.getpid()}"
    written.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo {version}\n'
        f'exec {shutil.which("g++")} -include "{EMULATION}" "$@" -O1\n'
    )
    written.chmod(0o700)
    written.replace(compiler)
    with patch.dict(os.environ, {"CXX": str(compiler)}):
        library = native_library(folder)
    assert library is not None and library.products
    return library
