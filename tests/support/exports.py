"""A downloaded adapter -> an exported folder, without a server."""

from pathlib import Path

from tinkersmith.export.adapter import read_layers
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.merge import write_merged
from tinkersmith.export.peft_files import write_peft_adapter


def export(adapter: Path, base: Path, out: Path, *, merged: bool, dtype: str = "auto") -> Path:
    source = read_base(base)
    layers = read_layers(adapter, source)
    out.mkdir()
    if merged:
        write_merged(layers, source, out, dtype)
    else:
        write_peft_adapter(layers, source, str(base), out)
    return out
