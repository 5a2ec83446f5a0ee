"""A base model's folder -> names, shapes and dtypes of its tensors, read from file headers only."""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.export.stored import StoredWeight, stored_weights
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import safetensors_header, text_config, weight_files

# What precedes "layers.0." in the files of the families: models with images (two ways of writing
# it), Nemotron, and text models.
PREFIXES = ("model.language_model.", "language_model.model.", "backbone.", "model.")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
_OTHER_FILES = (
    "generation_config.json",
    "*processor_config.json",
    "*.py",
    "LICENSE*",
    "NOTICE*",
)


@dataclass(frozen=True, slots=True)
class BaseFolder:
    """What the headers of a model folder's safetensors files say."""

    folder: Path
    files: dict[str, str]  # tensor -> file name
    shapes: dict[str, tuple[int, ...]]  # empty where only the index is present, not the weights
    dtypes: dict[str, str]  # as safetensors names them: "F32", "BF16", ...
    config: dict[str, Any]
    tied: bool  # the output layer is the input embedding
    missing: tuple[str, ...] = ()  # files that the index names, and that are not there
    weights: dict[str, StoredWeight] = field(init=False)  # in full precision, by name
    text_prefix: str = field(init=False)  # what precedes "layers.0.", such as "model."
    output_layer: str = field(init=False)  # its path; a tied one has no tensor of its own

    def __post_init__(self) -> None:
        weights = stored_weights(self.shapes, self.dtypes, self.files)
        heads = [name for name in weights if re.fullmatch(r"(.+\.)?lm_head\.weight", name)]
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "text_prefix", _text_prefix(weights))
        object.__setattr__(
            self, "output_layer", heads[0].removesuffix(".weight") if heads else "lm_head"
        )

    @property
    def text_config(self) -> dict[str, Any]:
        """The part of config.json that describes the language model."""
        return text_config(self.config)

    @property
    def transposed_experts(self) -> bool:
        """Whether stacked experts are (experts, inputs, outputs), gate and up taking turns."""
        return self.text_config.get("model_type") == "gpt_oss"

    @property
    def mixtral_names(self) -> bool:
        """Whether transformers calls the files' `block_sparse_moe` mlp, as it does for Mixtral."""
        return any(name.endswith(".block_sparse_moe.experts.0.w1.weight") for name in self.weights)

    def layers(self) -> set[str]:
        """The paths of everything that has weights, a tied output layer included."""
        named = {name.removesuffix(".weight") for name in self.weights if name.endswith(".weight")}
        return named | {self.output_layer}

    def has_layer(self, path: str) -> bool:
        """Whether there is a layer at `path`, a tied output layer included."""
        return f"{path}.weight" in self.weights or (self.tied and path == self.output_layer)

    def weight_of(self, path: str) -> str:
        """The name of the weight that the layer at `path` multiplies by."""
        return self.embedding() if self.tied and path == self.output_layer else f"{path}.weight"

    def embedding(self) -> str:
        """The name of the input embedding's tensor.

        Raises:
            UserError: there is none, or several.
        """
        names = [
            name
            for name in self.weights
            if re.search(r"(embed_tokens|wte|embeddings)\.weight$", name)
        ]
        own = f"{self.text_prefix}embed_tokens.weight"  # a model with images may have others
        names = [own] if own in names else names
        if len(names) != 1:
            raise UserError(
                f"The model in {self.folder} has {len(names)} input embeddings "
                f"({', '.join(names) or 'none'}); its tied output layer cannot be exported."
            )
        return names[0]


def read_base(folder: Path) -> BaseFolder:
    """What a model folder holds, from its config and the headers of its safetensors files.

    Raises:
        UserError: the folder holds no safetensors model, or a damaged one.
    """
    config = read_model_json(folder / "config.json")
    try:
        names, missing = weight_files(folder)
        files: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        if missing:  # enough to name the layers of an adapter
            files = names
        else:
            for file in sorted(set(names.values())):
                for tensor, entry in safetensors_header(folder / file).items():
                    files[tensor] = file
                    shapes[tensor] = entry.shape
                    dtypes[tensor] = entry.dtype
            lost = min(names.keys() - files.keys(), default="")
            if lost:
                raise UserError(
                    f"{folder / names[lost]} has no tensor {one_line(lost)!r}, which the index "
                    "names. Copy the model again."
                )
    except OSError as error:
        raise unreadable(error.filename or folder, error) from None
    except ValueError as error:
        raise UserError(str(error)) from None
    _refuse_lost_output_layer(folder, config, files)
    return BaseFolder(
        folder, files, shapes, dtypes, config, _is_tied(config, files), tuple(missing)
    )


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files of a model folder."""
    _copy(folder, out, _TOKENIZER_FILES)


def copy_all_but_weights(folder: Path, out: Path) -> None:
    """Copy everything that a model needs besides its weights and config.json, but not its card."""
    _copy(folder, out, (*_TOKENIZER_FILES, *_OTHER_FILES))


def _copy(folder: Path, out: Path, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)


def _text_prefix(weights: Iterable[str]) -> str:
    """The first of `PREFIXES` that precedes a layer; "" if none does."""
    names = [name for name in weights if "layers." in name]
    starts = (prefix for prefix in PREFIXES if any(n.startswith(f"{prefix}layers.") for n in names))
    return next(starts, "")


def _is_tied(config: dict[str, Any], files: dict[str, str]) -> bool:
    if not any(re.fullmatch(r"(.+\.)?lm_head\.weight", name) for name in files):
        return True
    tied = text_config(config).get("tie_word_embeddings")
    return bool(config.get("tie_word_embeddings", tied))


def _refuse_lost_output_layer(folder: Path, config: dict[str, Any], files: dict[str, str]) -> None:
    """Refuse a model that says it has an output layer of its own, and has none.

    Raises:
        UserError: transformers would fill it with random numbers.
    """
    own = config.get("tie_word_embeddings", text_config(config).get("tie_word_embeddings"))
    if own is False and _is_tied(config, files) and any(".layers." in name for name in files):
        raise UserError(
            f"{folder} has no lm_head.weight, but its config.json says that the output layer is "
            "not the input embedding: tie_word_embeddings is false. Copy the model again."
        )


def read_model_json(path: Path, advice: str = "Copy the model again.") -> dict[str, Any]:
    """The object in a JSON file of a model or an adapter.

    Args:
        advice: what to do if the file is missing or damaged.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return read_json_object(path)
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}. {advice}") from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. {advice}") from None
