"""A folder, or a model's name -> its `TextTokenizer`, where need be with the help of transformers.

Most folders need no help: see `prompts/text_tokenizer.py`. What a name needs may come from a hub:
see `models/hub.py`.
"""

import json
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np

from tinkersmith.errors import UserError, one_line
from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import text_config
from tinkersmith.models.hub import tokenizer_from_hub
from tinkersmith.models.known import known_model, vocabulary_size
from tinkersmith.models.names import local_model_folder
from tinkersmith.prompts.text_tokenizer import (
    TextTokenizer,
    begin_text_of,
    generation_ends_of,
    id_array,
    read_tokenizer,
    tokenizer_of_backend,
)
from tinkersmith.text.tml_tokenizer import TML_PREFIX, load_tml_tokenizer

# The share of a vocabulary that its tokenizer uses at least. Models are made with some room.
_LEAST_USED = 0.8


def load_tokenizer(folder: Path | str) -> TextTokenizer:
    """The tokenizer of a model folder in Hugging Face format.

    Raises:
        UserError: the folder has none, or none that can be read.
    """
    folder = Path(folder)
    return read_tokenizer(folder) or _load_with_transformers(folder)


def tokenizer_of(given: str, base_model: str, named: str = "") -> TextTokenizer:
    """The tokenizer of a base model, from the first place that has it.

    The places: the folder of TOKENIZER, the base model's folder, the tokenizer that the server
    names, the hub's cache, the hub, and ModelScope where its package is installed.

    Args:
        given: the value of TOKENIZER; "" where it is not set.
        named: what the server calls the tokenizer: a folder, or a name on the hub; "" if nothing.

    Raises:
        UserError: there is none; the sentence says what to set.
    """
    if given:
        tokenizer = load_tokenizer(given_tokenizer_folder(given))
        _refuse_other_vocabulary(tokenizer, given, base_model)
        return tokenizer
    folder = local_model_folder(base_model)
    if folder is None and named and Path(named).is_dir():
        folder = Path(named)
    if folder is not None:
        return load_tokenizer(folder)
    model = known_model(base_model)
    if model is not None and model.tokenizer.startswith(TML_PREFIX):
        return load_tml_tokenizer(base_model, model.tokenizer)
    return load_tokenizer(tokenizer_from_hub(named if "/" in named else base_model))


def given_tokenizer_folder(given: str) -> Path:
    """The folder that TOKENIZER names.

    Raises:
        UserError: there is no tokenizer in it.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"TOKENIZER is {given}, which is not a folder. Name a folder with a tokenizer.json, or "
            "leave TOKENIZER empty."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise UserError(
            f"TOKENIZER is {given}, but there is no tokenizer.json in that folder. Copy the base "
            "model's tokenizer files there."
        )
    return folder


def given_tokenizer(given: str, base_model: str) -> TextTokenizer | None:
    """What TOKENIZER names, read before anything is asked of a server; None where it is not set.

    Raises:
        UserError: there is no tokenizer, or that of another model.
    """
    return tokenizer_of(given, base_model) if given else None


def _refuse_other_vocabulary(tokenizer: TextTokenizer, given: str, base_model: str) -> None:
    """Refuse the tokenizer of another model, as far as the sizes of the vocabularies tell it."""
    size, known = tokenizer.vocab_size, vocabulary_size(base_model)
    if (folder := local_model_folder(base_model)) is not None:
        with suppress(OSError, ValueError):  # whoever loads the model says what is wrong with it
            config = text_config(read_json_object(folder / "config.json"))
            stored: object = config.get("vocab_size")
            known = stored if isinstance(stored, int) else None
    if known is None or _LEAST_USED * known <= size <= known:
        return
    raise UserError(
        f"TOKENIZER is {given}, which has {size:,} tokens, and {base_model} knows {known:,}: it is "
        "the tokenizer of another model. Copy the base model's own tokenizer files there."
    )


def wrap_tokenizer(hf_tokenizer: Any) -> TextTokenizer:
    """Wrap a `transformers` tokenizer, such as the SDK's `training_client.get_tokenizer()` gives.

    Raises:
        UserError: it has no end token.
    """
    named = {
        name: str(value)
        for name, value in hf_tokenizer.special_tokens_map.items()
        if isinstance(value, str) or hasattr(value, "content")
    }
    template: Any = hf_tokenizer.chat_template
    if isinstance(template, dict):
        template = cast("dict[str, Any]", template).get("default")
    folder = Path(hf_tokenizer.name_or_path) if hf_tokenizer.name_or_path else None
    folder = folder if folder and folder.is_dir() else None
    if "eos_token" not in named:
        raise UserError("The model's tokenizer has no end token (eos_token); choose another model.")
    if backend := getattr(hf_tokenizer, "backend_tokenizer", None):
        from tokenizers import Tokenizer

        return tokenizer_of_backend(Tokenizer.from_str(backend.to_str()), named, template, folder)

    one_at_a_time = Lock()  # a tokenizer with Python code of its own may not bear two threads

    def encode(texts: list[str], **options: bool) -> list[np.ndarray]:
        with one_at_a_time:
            return [
                id_array(hf_tokenizer.encode(text, add_special_tokens=False, **options))
                for text in texts
            ]

    specials = {
        str(token): index
        for index, token in hf_tokenizer.added_tokens_decoder.items()
        if getattr(token, "special", True)
    }
    eos_id = int(hf_tokenizer.convert_tokens_to_ids(named["eos_token"]))
    specials.setdefault(named["eos_token"], eos_id)
    return TextTokenizer(
        encode_texts=encode,
        encode_plain_texts=lambda texts: encode(texts, split_special_tokens=True),
        decode_ids=lambda ids, skip: hf_tokenizer.decode(ids, skip_special_tokens=skip),
        vocab_size=len(hf_tokenizer),
        eos_id=eos_id,
        eos_text=named["eos_token"],
        begin_text=begin_text_of(
            hf_tokenizer.convert_ids_to_tokens(hf_tokenizer.encode("")), named
        ),
        special_tokens=specials,
        named_tokens=named,
        stripping=(frozenset(), frozenset()),
        serialised=lambda: json.dumps([str(hf_tokenizer.__class__), hf_tokenizer.get_vocab()]),
        chat_template=template,
        folder=folder,
        generation_ends=generation_ends_of(folder),
    )


def _load_with_transformers(folder: Path) -> TextTokenizer:
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(
            f"{folder} has no tokenizer.json. Name a model folder in Hugging Face format."
        )
    from transformers import AutoTokenizer

    try:
        untyped = cast("Any", AutoTokenizer)
        hf_tokenizer = untyped.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library raises all kinds for damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        if not (folder / "tokenizer.json").is_file():
            raise UserError(
                f"{folder} has no tokenizer.json, and its other files give none "
                f"({one_line(reason).rstrip('.')}). Copy the model's tokenizer.json into it."
            ) from None
        raise UserError(
            f"The tokenizer in {folder} cannot be read: {reason.rstrip('.')}. Copy the model again."
        ) from None
    return wrap_tokenizer(hf_tokenizer)
