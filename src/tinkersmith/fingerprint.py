"""Folder of a base model -> what its files say of its weights, and a text that changes with them.

Both sides read the headers before they use a model. The engine writes the fingerprint into every
checkpoint, and both sides compare it before they go on with one.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import one_line
from tinkersmith.files import (
    LFS_POINTER,
    is_lfs_pointer,
    kind_of_json,
    open_regular,
    read_json_object,
)

_WHOLE = 64 * 2**20  # bytes: smaller files are read whole
_PER_TENSOR = 4096  # bytes read from the middle of each tensor of a larger file
_LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself allows
WEIGHTS_INDEX = "model.safetensors.index.json"
_FACTS = ("config.json", WEIGHTS_INDEX)
_AGAIN = "Copy the model again."
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor, as the header of its file describes it."""

    dtype: str  # as safetensors names it: "F32", "BF16", ...
    shape: tuple[int, ...]
    start: int  # byte, counted from the end of the header
    end: int


def weight_files(folder: Path) -> tuple[dict[str, str], list[str]]:
    """The file of each tensor of a model folder, and the files that the index names in vain.

    Without an index, the names of tensors come from the headers.

    Raises:
        OSError: a file cannot be read.
        ValueError: there are no safetensors weights, or the index is wrong; a whole sentence.
    """
    index = folder / WEIGHTS_INDEX
    if not index.exists():
        single = folder / "model.safetensors"
        if not single.exists():
            raise ValueError(_no_weights(folder))
        return dict.fromkeys(safetensors_header(single), single.name), []
    try:
        files: object = read_json_object(index).get("weight_map")
    except ValueError as error:
        raise ValueError(f"{index} is damaged: {error}. {_AGAIN}") from None
    if not isinstance(files, dict) or not files:
        raise ValueError(f'{index} is damaged: "weight_map" is no object of names. {_AGAIN}')
    named = cast("dict[str, object]", files)
    for tensor, name in named.items():
        if not isinstance(name, str) or not _is_name(name):
            raise ValueError(
                f"{index} is damaged: it has {_short(name)} as the file of {_short(tensor)}; it "
                f"must be the name of a file in that folder. {_AGAIN}"
            )
    weights = cast("dict[str, str]", named)
    missing = sorted({name for name in weights.values() if not (folder / name).exists()})
    return dict(weights), missing


def _is_name(text: str) -> bool:
    """Whether a text is a file's name, and no path that leads elsewhere."""
    plain = Path(text).name == text and "\\" not in text and "\0" not in text
    return plain and len(text.encode("utf-8", "surrogatepass")) <= 255


def check_weights(folder: Path) -> int:
    """Check that all weights of a model folder are there and whole, from index and headers alone.

    Returns:
        The number of tensors.

    Raises:
        OSError: a file cannot be read.
        ValueError: something is missing or damaged; a whole sentence that names the file.
    """
    weights, missing = weight_files(folder)
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(
            f"{folder} has no {one_line(missing[0])}{more}, which its index names. {_AGAIN}"
        )
    for name in sorted(set(weights.values())):
        stored = safetensors_header(folder / name)
        lost = next(
            (key for key, file in weights.items() if file == name and key not in stored), ""
        )
        if lost:
            raise ValueError(
                f"{folder / name} has no tensor {_short(lost)}, which the index names. {_AGAIN}"
            )
    return len(weights)


class DamagedWeights(ValueError):
    """A safetensors file that is damaged. The text is a whole sentence with what to do.

    `reason` is the sentence without that, for files that are not those of a base model.
    """

    def __init__(self, file: Path, what: str) -> None:
        self.reason = f"{file} is damaged: {what}"
        super().__init__(f"{self.reason}. {_AGAIN}")


@dataclass(frozen=True, slots=True)
class WeightsHeader:
    """What a safetensors file says of itself before its tensors begin."""

    content: dict[str, object]
    start: int  # the byte at which the tensors begin
    size: int  # bytes of the file


def read_header(file: Path) -> WeightsHeader:
    """The header of a safetensors file; its tensors may be missing or misdescribed.

    Raises:
        OSError: the file cannot be read.
        DamagedWeights: there is no whole header.
    """
    with open_regular(file) as opened:
        start = opened.read(64)
        size = opened.seek(0, 2)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 8 or not 2 <= length <= min(size - 8, _LONGEST_HEADER):
            what = "it is empty" if not size else f"it has {size:,} bytes and no whole header"
            if is_lfs_pointer(start):
                what = f"it is {LFS_POINTER} (git lfs pull)"
            raise DamagedWeights(file, what)
        opened.seek(8)
        header = opened.read(length)
    try:
        content: object = json.loads(header)
    except (ValueError, RecursionError):
        raise DamagedWeights(file, "its header is not JSON") from None
    if not isinstance(content, dict):
        raise DamagedWeights(file, "its header is no object")
    return WeightsHeader(cast("dict[str, object]", content), 8 + length, size)


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config.json that describes the language model; the whole if it has no parts.

    Models that see images, too, keep it in their "text_config".
    """
    inner: object = config.get("text_config")
    return cast("dict[str, Any]", inner if isinstance(inner, dict) else config)


def context_in(config: Mapping[str, Any]) -> int | None:
    """The most tokens of a sequence by a config.json; None if it does not say."""
    text = text_config(config)
    length = _positive(text.get("max_position_embeddings"))
    shorter = [
        original
        for rope in _rotary_settings(text)
        # Beyond the original length all positions of a batch would change.
        if rope.get("rope_type", rope.get("type")) in ("longrope", "su")
        and (
            original := _positive(
                rope.get("original_max_position_embeddings")
                or text.get("original_max_position_embeddings")
            )
        )
    ]
    return None if length is None else min([length, *shorter])


def _rotary_settings(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of rotary positions: of all layers, or of each kind of layer."""
    settings: list[dict[str, Any]] = []
    for name in ("rope_parameters", "rope_scaling"):  # today's name, and the one before
        found: object = config.get(name)
        if isinstance(found, dict):
            rope = cast("dict[str, Any]", found)
            nested = [
                cast("dict[str, Any]", value) for value in rope.values() if isinstance(value, dict)
            ]
            settings += nested or [rope]
    return settings


def _positive(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def safetensors_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of a safetensors file, whose bytes are all there.

    Raises:
        OSError: the file cannot be read.
        DamagedWeights: it is damaged.
    """
    return _tensors(file, read_header(file))


def _tensors(file: Path, header: WeightsHeader) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for name, described in header.content.items():
        if name == "__metadata__":
            continue
        entry = _tensor_entry(described)
        if entry is None:
            raise DamagedWeights(file, f"its header misdescribes {_short(name)}")
        tensors[name] = entry
    end = 0
    for entry in sorted(tensors.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != end:
            raise DamagedWeights(file, "its header leaves gaps or overlaps")
        end = entry.end
    if header.start + end != header.size:
        raise DamagedWeights(
            file,
            f"it has {header.size:,} bytes, and its header describes {header.start + end:,}",
        )
    return tensors


def _tensor_entry(described: object) -> TensorEntry | None:
    """A tensor's entry in a header; None if it contradicts itself."""
    if not isinstance(described, dict):
        return None
    fields = cast("dict[str, object]", described)
    dtype, shape, offsets = (fields.get(name) for name in ("dtype", "shape", "data_offsets"))
    numbers: list[int] = []
    for values in (shape, offsets):
        if not isinstance(values, list):
            return None
        for value in cast("list[object]", values):
            if type(value) is not int or not 0 <= value < 2**63:
                return None
            numbers.append(value)
    sizes, places = (
        numbers[: len(cast("list[int]", shape))],
        numbers[len(cast("list[int]", shape)) :],
    )
    if not isinstance(dtype, str) or len(places) != 2:
        return None
    digits = "".join(letter for letter in dtype.partition("_")[0] if letter.isdigit())
    bits = _BITS.get(dtype, int(digits or 0))
    if (places[1] - places[0]) * 8 != prod(sizes) * bits:
        return None
    return TensorEntry(dtype, tuple(sizes), places[0], places[1])


def _no_weights(folder: Path) -> str:
    pickled = next(iter(sorted(folder.glob("*.bin"))), None)
    if pickled is not None:
        return (
            f"{folder} has its weights only as {pickled.name}, a format that can run programs and "
            "is not loaded. Save the model again with transformers: "
            "model.save_pretrained(FOLDER), which writes safetensors."
        )
    if any(folder.glob("model-*.safetensors")):
        return (
            f"{folder} has weights in several files, but not {WEIGHTS_INDEX}, which says what is "
            f"in which. {_AGAIN}"
        )
    return (
        f"{folder} holds no model in safetensors format: neither model.safetensors nor "
        f"{WEIGHTS_INDEX} is there. Name the folder of the base model."
    )


def base_fingerprint(folder: Path) -> str:
    """The fingerprint of a model folder in Hugging Face format, as 32 hexadecimal digits.

    It covers config.json, the index of the weights and every safetensors file: files of up to
    64 MiB as a whole, of larger ones the size, the header and 4 KiB from the middle of each tensor.
    So it takes no more than seconds for the largest models and sees another set of weights, also
    one of equal shapes. A single changed number in a large file can stay unseen.

    Raises:
        OSError: a file cannot be read.
        ValueError: a weight file is no safetensors file, or is cut short.
    """
    digest = hashlib.sha256()
    names = [name for name in _FACTS if (folder / name).is_file()]
    for name in names:
        _add(digest, name, (folder / name).read_bytes())
    for file in sorted(file for file in folder.glob("*.safetensors") if file.is_file()):
        size = file.stat().st_size
        _add(digest, file.name, file.read_bytes() if size <= _WHOLE else _extract(file, size))
    return digest.hexdigest()[:32]


def _add(digest: Any, name: str, content: bytes) -> None:
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _extract(file: Path, size: int) -> bytes:
    """Size, header, and a part of each tensor, of a safetensors file."""
    header = read_header(file)
    entries = _tensors(file, header).values()
    with file.open("rb") as opened:
        opened.seek(8)
        parts = [size.to_bytes(8, "little"), opened.read(header.start - 8)]
        for start, end in sorted((entry.start, entry.end) for entry in entries):
            middle = max(start, (start + end - _PER_TENSOR) // 2)
            opened.seek(header.start + middle)
            parts.append(opened.read(min(_PER_TENSOR, end - middle)))
    return b"".join(parts)


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else kind_of_json(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
