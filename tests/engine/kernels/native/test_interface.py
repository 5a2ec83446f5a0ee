"""interface.h is what the compiler checks, what Python calls, and what the library exports."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tinkersmith.engine.kernels.native import build
from tinkersmith.engine.kernels.native.build import cache_folder, native_library
from tinkersmith.engine.kernels.native.interface import (
    INTERFACE,
    InterfaceError,
    read_interface,
)
from tinkersmith.engine.model.kernels import BLOCK

pytestmark = pytest.mark.slow

SOURCES = Path(build.__file__).parent
STRICT = ["-std=c++20", "-O1", "-fopenmp", "-fPIC"]
STRICT += ["-Wall", "-Wextra", "-Wmissing-declarations", "-Werror"]
# x86 with instructions for products in bf16. g++ 12 has warnings of this kind for its own headers.
PRODUCTS = ["-march=cooperlake", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]


@pytest.fixture(scope="module")
def compiler() -> str:
    path = shutil.which("g++")
    if path is None:
        pytest.skip("g++ is not installed")
    return path


def compiled(compiler: str, flags: list[str], folder: Path) -> Path:
    """All sources as one library, without a single warning."""
    library = folder / "native.so"
    command = [compiler, *STRICT, *flags, *map(str, sorted(SOURCES.glob("*.cpp")))]
    done = subprocess.run([*command, "-shared", "-o", str(library)], capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return library


def exported(library: Path) -> set[str]:
    """The functions with C linkage, by the names that Python calls."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    command = ["nm", "-D", "--defined-only", str(library)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return {line.split()[-1] for line in lines if not line.split()[-1].startswith("_")}


def declared(*, with_products: bool) -> set[str]:
    functions = INTERFACE.functions.values()
    return {function.name for function in functions if with_products or not function.needs_products}


# ---- the library


def test_a_library_without_products_exports_what_is_declared(compiler: str, tmp_path: Path) -> None:
    plain = compiled(compiler, [], tmp_path)
    assert exported(plain) == declared(with_products=False)


@pytest.mark.long
@pytest.mark.skipif(platform.machine() != "x86_64", reason="these products are x86's")
def test_a_library_with_products_exports_what_is_declared(compiler: str, tmp_path: Path) -> None:
    complete = compiled(compiler, PRODUCTS, tmp_path)
    assert exported(complete) == declared(with_products=True)


def test_a_function_that_differs_from_its_declaration_does_not_compile(
    compiler: str, tmp_path: Path
) -> None:
    for source in [*SOURCES.glob("*.h"), SOURCES / "elementwise.cpp"]:
        shutil.copy(source, tmp_path)
    header = tmp_path / "interface.h"
    before = "void tinkersmith_swiglu_float32(i64 rows, i64 width,"
    text = header.read_text()
    assert before in text
    header.write_text(text.replace(before, before.replace("i64 width", "float width")))
    command = [compiler, "-std=c++20", "-fsyntax-only", str(tmp_path / "elementwise.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode and "tinkersmith_swiglu_float32" in done.stderr


def test_the_loaded_library_has_the_declared_signatures() -> None:
    library = native_library(cache_folder())
    if library is None:
        pytest.skip("no C++ compiler is installed")
    for function in INTERFACE.functions.values():
        if library.products or not function.needs_products:
            loaded = getattr(library.functions, function.name)
            assert loaded.argtypes == list(function.parameters.values())
            assert loaded.restype == function.result


def test_a_changed_header_is_another_library(compiler: str, tmp_path: Path) -> None:
    for source in [*SOURCES.glob("*.h"), *SOURCES.glob("*.cpp")]:
        shutil.copy(source, tmp_path)
    before = build._key(tmp_path, compiler, [])
    assert before == build._key(SOURCES, compiler, [])
    with (tmp_path / "interface.h").open("a") as header:
        header.write("// changed\n")
    assert build._key(tmp_path, compiler, []) != before


def test_a_float32_model_waits_for_no_products_and_other_processors_have_one_library() -> None:
    able, unable = "flags : avx2 avx512_bf16 amx", "flags : avx2"
    assert build._flags(True, able) != build._flags(False, able)
    assert build._flags(True, unable) == build._flags(False, unable) == build._flags(True, able)


def test_a_processor_with_products_can_have_a_library_without_them(
    compiler: str, tmp_path: Path
) -> None:
    library = compiled(compiler, [*PRODUCTS, build._WITHOUT_PRODUCTS], tmp_path)
    assert exported(library) == declared(with_products=False)


# ---- constants and structures


def test_the_blocks_of_the_vocabulary_are_those_of_token_sampling() -> None:
    assert INTERFACE.constants["VOCABULARY_BLOCK"] == BLOCK


def test_structures_have_the_compiler_s_layout(compiler: str, tmp_path: Path) -> None:
    checks = [
        f"static_assert(sizeof({name}) == {ctypes.sizeof(layout)});\n"
        + "".join(
            f"static_assert(offsetof({name}, {field}) == {getattr(layout, field).offset});\n"
            for field, *_ in layout._fields_
        )
        for name, layout in INTERFACE.structures.items()
    ]
    assert len(checks) == 6
    source = tmp_path / "layout.cpp"
    source.write_text('#include <cstddef>\n#include "interface.h"\n' + "".join(checks))
    command = [compiler, "-std=c++20", "-fsyntax-only", f"-I{SOURCES}", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr


def test_a_structure_is_filled_completely_or_not_at_all() -> None:
    interface = read_interface("struct Pair { i64 first; float second; };")
    pair = interface.fill("Pair", first=3, second=0.5)
    assert (getattr(pair, "first"), getattr(pair, "second")) == (3, 0.5)  # noqa: B009
    for values in ({"first": 3}, {"first": 3, "second": 0.5, "third": 1}):
        with pytest.raises(TypeError, match="Pair has the fields"):
            interface.fill("Pair", **values)


# ---- the parser

HEADER = """// A comment.
#pragma once
#include <cstdint>
using bf16 = uint16_t;  // bits
using i64 = int64_t;
constexpr i64 SIZE = 3;
struct Entry {
  const bf16* weight;  // (O, I)
  i64 outputs[SIZE];
};
struct Table {
  Entry first;
  int count;
};
extern "C" {
int everywhere();
void somewhere(i64 rows, const float* x,
               float eps);
#ifdef __AVX512BF16__
void with_products(const Table* tables, bf16* const* caches);
#endif  // __AVX512BF16__
}
"""


def test_a_header_becomes_signatures_structures_and_constants() -> None:
    interface = read_interface(HEADER)
    assert interface.constants == {"SIZE": 3}
    assert ctypes.sizeof(interface.structures["Entry"]) == 8 + 3 * 8
    assert ctypes.sizeof(interface.structures["Table"]) == 40
    everywhere, somewhere, with_products = interface.functions.values()
    assert (everywhere.parameters, everywhere.result) == ({}, ctypes.c_int)
    assert somewhere.result is None and not somewhere.needs_products
    assert somewhere.parameters == {
        "rows": ctypes.c_int64,
        "x": ctypes.c_void_p,
        "eps": ctypes.c_float,
    }
    assert with_products.needs_products
    assert set(with_products.parameters.values()) == {ctypes.c_void_p}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("float eps", "double eps", "line 17: double is an unknown type"),
        ("const float* x", "const half* x", "line 17: const half[*] is an unknown type"),
        ("const float* x", "const float** x", "line 17: .*unknown type"),
        ("const float* x", "const float& x", "line 17: .*unknown type"),
        ("i64 rows", "i64", "line 17: i64 is no parameter"),
        ("i64 rows", "i64 rows[3]", "line 17: .* is no parameter"),
        ("i64 rows", "Entry rows", "line 17: Entry rows must be a pointer"),
        ("i64 rows", "i64 eps", "line 17: float eps is no parameter"),
        ("void somewhere", "long somewhere", "line 17: this kind of line is unknown"),
        ("void somewhere", "void everywhere", "line 17: this function was declared before"),
        ("SIZE = 3", "SIZE = 2 + 1", "line 6: this kind of line is unknown"),
        ("outputs[SIZE]", "outputs[OTHER]", "line 7: OTHER is no constant"),
        ("outputs[SIZE]", "outputs[3]", "line 7: 3 is no constant"),
        ("using i64 = int64_t", "using i64 = int32_t", "line 5: this kind of line is unknown"),
        ("#ifdef __AVX512BF16__", "#ifdef __AVX2__", "line 19: this kind of line is unknown"),
        ("#endif  // __AVX512BF16__\n", "", "line 21: this kind of line is unknown"),
        ("float eps);", "float eps)", "line 17: .*unknown type"),
        ("#endif  // __AVX512BF16__\n}", "#endif", 'ends inside extern "C"'),
        ("SIZE = 3;\n", "SIZE = 3;\nvoid early();\n", "line 7: this kind of line is unknown"),
    ],
)
def test_a_line_that_the_parser_does_not_understand_is_an_error(
    before: str, after: str, message: str
) -> None:
    assert before in HEADER
    with pytest.raises(InterfaceError, match=message):
        read_interface(HEADER.replace(before, after))
