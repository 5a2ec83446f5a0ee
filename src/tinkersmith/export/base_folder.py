"""A base model's folder -> the names, shapes and types of its tensors, read from headers alone."""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError

_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """What the headers of a model folder's safetensors files say."""

    folder: Path
    files: dict[str, str]  # tensor -> file name
    shapes: dict[str, tuple[int, ...]]  # empty where only the index is at hand, not the weights
    dtypes: dict[str, str]  # as safetensors names them: "F32", "BF16", ...
    config: dict[str, Any]
    tied: bool  # the output layer is the input embedding

    @property
    def output_layer(self) -> str:
        """The path of the output layer; a tied one has no tensor of its own."""
        found = [name for name in self.files if re.fullmatch(r"(.+\.)?lm_head\.weight", name)]
        return found[0].removesuffix(".weight") if found else "lm_head"

    def has_layer(self, path: str) -> bool:
        return f"{path}.weight" in self.files or (self.tied and path == self.output_layer)

    def weight_of(self, path: str) -> str:
        """The tensor that the layer at `path` multiplies by."""
        own = f"{path}.weight"
        return self.embedding() if self.tied and path == self.output_layer else own

    def embedding(self) -> str:
        found = [name for name in self.files if re.search(r"(embed_tokens|wte)\.weight$", name)]
        if len(found) != 1:
            raise UserError(
                f"The input embedding of the model in {self.folder} cannot be told (found "
                f"{found or 'none'}), so its tied output layer cannot be exported."
            )
        return found[0]


def read_base(folder: Path) -> BaseFolder:
    """Read headers only.

    Raises:
        UserError: the folder holds no safetensors model.
    """
    from safetensors import SafetensorError, safe_open

    config = _read_json(folder / "config.json")
    files: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    index = folder / _INDEX
    if index.is_file():
        files = dict(_read_json(index)["weight_map"])
    elif (folder / "model.safetensors").is_file():
        files = {"": "model.safetensors"}
    else:
        raise UserError(
            f"{folder} holds no model in safetensors format (no model.safetensors, no {_INDEX}). "
            "Name the folder of the base model."
        )
    names = sorted(set(files.values()))
    present = [name for name in names if (folder / name).is_file()]
    if len(present) == len(names):
        files = {}
        for name in names:
            try:
                with safe_open(folder / name, framework="pt") as weights:
                    for tensor in weights.keys():  # noqa: SIM118 (no mapping)
                        piece = weights.get_slice(tensor)
                        files[tensor] = name
                        shapes[tensor] = tuple(piece.get_shape())
                        dtypes[tensor] = piece.get_dtype()
            except SafetensorError as error:
                raise UserError(
                    f"{folder / name} is damaged ({error}). Copy the model again."
                ) from None
    return BaseFolder(folder, files, shapes, dtypes, config, _is_tied(config, files))


def copy_tokenizer(folder: Path, out: Path) -> None:
    """The tokenizer's files of a model folder."""
    for pattern in (
        *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
        *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    ):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _copy_other_files(folder: Path, out: Path) -> None:
    """What a model needs besides weights; not the base model's own card."""
    copy_tokenizer(folder, out)
    for pattern in (
        "generation_config.json",
        "*processor_config.json",
        "*.py",
        "LICENSE*",
        "NOTICE*",
    ):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _is_tied(config: dict[str, Any], files: dict[str, str]) -> bool:
    if not any(re.fullmatch(r"(.+\.)?lm_head\.weight", name) for name in files):
        return True
    inner = config.get("text_config")
    said = config.get(
        "tie_word_embeddings", inner.get("tie_word_embeddings") if isinstance(inner, dict) else None
    )
    return bool(said)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}.") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
