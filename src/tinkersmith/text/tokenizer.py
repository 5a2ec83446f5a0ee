"""A model folder, or the server's tokenizer -> a `TextTokenizer`, with the help of transformers.

Most folders need no help: see `prompts/text_tokenizer.py`.
"""

import json
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np

from tinkersmith.errors import UserError
from tinkersmith.prompts.text_tokenizer import (
    TextTokenizer,
    begin_text_of,
    generation_ends_of,
    id_array,
    read_tokenizer,
    tokenizer_of_backend,
)


def load_tokenizer(folder: Path | str) -> TextTokenizer:
    """The tokenizer of a model folder in Hugging Face format.

    Raises:
        UserError: the folder has none, or none that can be read.
    """
    folder = Path(folder)
    return read_tokenizer(folder) or _load_with_transformers(folder)


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
        raise UserError(
            f"The tokenizer in {folder} cannot be read: {reason.rstrip('.')}. Copy the model again."
        ) from None
    return wrap_tokenizer(hf_tokenizer)
