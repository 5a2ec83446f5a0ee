"""Damage to the folder of a base model -> what must be said of it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

INDEX = "model.safetensors.index.json"
SECOND = "model-00002-of-00002.safetensors"


@dataclass(frozen=True)
class ModelDamage:
    """What happens to a folder, and the words that name it."""

    name: str
    happen: Callable[[Path], object]
    words: str  # a pattern; a loaded folder says it
    in_headers: bool = True  # whether index, config.json and headers show it


def in_two_shards(folder: Path) -> Path:
    """Split the weights of a model folder into two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: number for number, name in enumerate(names)}
    weight_map = {
        name: SECOND if number > len(names) // 2 else SECOND.replace("2-of", "1-of")
        for name, number in files.items()
    }
    for file in set(weight_map.values()):
        shard = {name: tensors[name] for name in names if weight_map[name] == file}
        save_file(shard, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def _changed_json(name: str, **changes: object) -> Callable[[Path], object]:
    def happen(folder: Path) -> None:
        value = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(value | changes))

    return happen


def _text(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _shard(change: Callable[[bytearray], object]) -> Callable[[Path], object]:
    def happen(folder: Path) -> None:
        data = bytearray((folder / SECOND).read_bytes())
        change(data)
        (folder / SECOND).write_bytes(data)

    return happen


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    def happen(folder: Path) -> None:
        tensors = load_file(folder / SECOND)
        change(tensors)
        save_file(tensors, folder / SECOND, metadata={"format": "pt"})

    return happen


def _index_names(file: object) -> Callable[[Path], object]:
    def happen(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        index["weight_map"][next(iter(index["weight_map"]))] = file
        (folder / INDEX).write_text(json.dumps(index))

    return happen


def _pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"PK")


def _pipe(name: str) -> Callable[[Path], object]:
    def happen(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return happen


def _renamed_in_index_too(folder: Path) -> None:
    """A tensor under another name, in the index as well: no header contradicts another."""
    tensors = load_file(folder / SECOND)
    tensors["model.morm.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / SECOND, metadata={"format": "pt"})
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.morm.weight"] = index["weight_map"].pop("model.norm.weight")
    (folder / INDEX).write_text(json.dumps(index))


def _with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"][3] = float("nan")


MODEL_DAMAGES = [
    ModelDamage("no config", lambda f: (f / "config.json").unlink(), r"no config\.json"),
    ModelDamage("empty config", _text("config.json", ""), r"config\.json is damaged: it is empty"),
    ModelDamage(
        "a list as config", _text("config.json", "[]"), r"config\.json is damaged: it holds a list"
    ),
    ModelDamage("config of something else", _text("config.json", "{}"), r"config\.json has no mod"),
    ModelDamage("a pipe as config", _pipe("config.json"), r"config\.json.*named pipe"),
    ModelDamage("a shard gone", lambda f: (f / SECOND).unlink(), rf"has no {SECOND}"),
    ModelDamage("an empty shard", _shard(bytearray.clear), rf"{SECOND} is damaged: it is empty"),
    ModelDamage("a cut shard", _shard(lambda d: d.__delitem__(slice(-9, None))), rf"{SECOND} is d"),
    ModelDamage(
        "a longer shard", _shard(lambda d: d.extend(b"x")), rf"{SECOND} is damaged: it has"
    ),
    ModelDamage(
        "a garbled header",
        _shard(lambda d: d.__setitem__(slice(9, 15), b"\0" * 6)),
        rf"{SECOND} is damaged: its header is not JSON",
    ),
    ModelDamage(
        "a shape with a flipped bit",
        _shard(lambda d: d.__setitem__(d.index(b'"shape":[') + 9, ord("9"))),
        rf"{SECOND} is damaged: its header misdescribes",
    ),
    ModelDamage(
        "a name with a flipped bit",
        _shard(lambda d: d.__setitem__(d.index(b"model."), ord("n"))),
        rf"{SECOND} has no tensor 'model\.",
    ),
    ModelDamage("a pipe as a shard", _pipe(SECOND), rf"{SECOND}.*named pipe"),
    ModelDamage("an empty index", _text(INDEX, ""), r"index\.json is damaged: it is empty"),
    ModelDamage("an index without names", _text(INDEX, "{}"), '"weight_map" is no object'),
    ModelDamage(
        "an index that leads outside",
        _index_names("../../secret.safetensors"),
        r"'../../secret\.safetensors' as the file of .* name of a file in that folder",
    ),
    ModelDamage("an index of numbers", _index_names(3), "the number 3 as the file of"),
    ModelDamage("weights as pickle alone", _pickled, r"only as pytorch_model\.bin, a format that"),
    ModelDamage(
        "another model's weights",
        _renamed_in_index_too,
        r"the weights in .* lack model\.norm\.weight",
        in_headers=False,
    ),
    ModelDamage(
        "NaN", _weights(_with_nan), r"model\.norm\.weight holds NaN or infinity", in_headers=False
    ),
    ModelDamage(
        "a string as a size",
        _changed_json("config.json", hidden_size="32"),
        "cannot be loaded: ",
        in_headers=False,
    ),
    ModelDamage(
        "null as a number of heads",
        _changed_json("config.json", num_attention_heads=None),
        "cannot be loaded: ",
        in_headers=False,
    ),
    ModelDamage(
        "an unknown architecture",
        _changed_json("config.json", model_type="unheard-of"),
        "cannot be loaded: .*unheard-of",
        in_headers=False,
    ),
]
