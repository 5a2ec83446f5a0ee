"""Folder of a base model -> a short text that changes when its weights are exchanged.

The engine writes it into every checkpoint, and both sides compare it before they go on with one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, cast

_WHOLE = 64 * 2**20  # bytes: smaller files are read whole
_PER_TENSOR = 4096  # bytes read from the middle of each tensor of a larger file
_LONGEST_HEADER = 100 * 2**20  # bytes, as safetensors itself allows
_FACTS = ("config.json", "model.safetensors.index.json")


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
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        _add(digest, file.name, file.read_bytes() if size <= _WHOLE else _extract(file, size))
    return digest.hexdigest()[:32]


def _add(digest: Any, name: str, content: bytes) -> None:
    for part in (name.encode(), content):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _extract(file: Path, size: int) -> bytes:
    """Size, header, and a part of each tensor, of a safetensors file."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if not 0 < length <= min(size - 8, _LONGEST_HEADER):
            raise ValueError(f"{file} is not a whole safetensors file")
        header = opened.read(length)
        parts = [size.to_bytes(8, "little"), header]
        for start, end in sorted(_places(file, header)):
            if not 0 <= start <= end <= size - 8 - length:
                raise ValueError(f"{file} is cut short: it has {size:,} bytes")
            middle = max(start, (start + end - _PER_TENSOR) // 2)
            opened.seek(8 + length + middle)
            parts.append(opened.read(min(_PER_TENSOR, end - middle)))
    return b"".join(parts)


def _places(file: Path, header: bytes) -> list[tuple[int, int]]:
    """Where each tensor's bytes lie, counted from the end of the header."""
    try:
        content = cast(dict[str, dict[str, Any]], json.loads(header))
        offsets = [value["data_offsets"] for name, value in content.items() if name[:2] != "__"]
        return [(int(start), int(end)) for start, end in offsets]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} has a damaged header: {error!r}") from None
