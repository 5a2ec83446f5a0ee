"""Thinking Machines' own models -> a `TextTokenizer`, with the help of the package tml-renderers.

No hub has a tokenizer of these in a form that transformers reads.
"""

import json
import re
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.prompts.text_tokenizer import TextTokenizer, id_array

TML_PREFIX = "tml-renderers:"
_INSTALL = "pip install 'tinkersmith[inkling]'"


def load_tml_tokenizer(base_model: str, source: str) -> TextTokenizer:
    """The tokenizer that `source` names: "tml-renderers:" and the name of a class.

    Raises:
        UserError: the package is missing, or has no such tokenizer.
    """
    try:
        module: Any = import_module("tml_renderers.tokenizers")
    except ImportError as error:
        missing = "" if error.name == "tml_renderers" else f", or a part of it ({error})"
        raise UserError(
            f"The tokenizer of {base_model} is in the package tml-renderers, which is not "
            f"installed{missing}. Install it with: {_INSTALL}"
        ) from None
    made: Callable[[], Any] | None = getattr(module, source.removeprefix(TML_PREFIX), None)
    if made is None:
        raise UserError(
            f"The installed tml-renderers has no tokenizer for {base_model}. Install a newer one "
            "with: pip install --upgrade tml-renderers"
        )
    return _wrapped(made(), source)


# A conversation as the package's own renderer writes it: the model begins its turn itself, and a
# thought is a message of its own, also in earlier turns. Special tokens have no text of their own
# there; here they are written <|name|>.
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.role == 'assistant' and message.reasoning_content -%}"
    "{{- '<|message_model|><|content_thinking|>' + message.reasoning_content -}}"
    "{{- '<|end_message|>' -}}"
    "{%- endif -%}"
    "{{- '<|message_' + ('model' if message.role == 'assistant' else message.role)"
    " + '|><|content_text|>' + message.content + '<|end_message|>' -}}"
    "{%- if message.role == 'assistant' -%}"
    "{{- '<|content_model_end_sampling|>' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
)
_END = "<|content_model_end_sampling|>"  # at which the renderer stops sampling


def _wrapped(tokenizer: Any, source: str) -> TextTokenizer:
    specials = {f"<|{name}|>": int(tokenizer.encode_special(name)) for name in _names(tokenizer)}
    texts = {token: text for text, token in specials.items()}
    pattern = re.compile("(" + "|".join(map(re.escape, specials)) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for place, part in enumerate(pattern.split(text)):
            ids += [specials[part]] if place % 2 else tokenizer.encode_ordinary(part)
        return ids

    def decode(ids: list[int], skip: bool) -> str:
        text, run = "", list[int]()
        for token in [*ids, None]:
            if token is not None and token not in texts:
                run.append(token)
                continue
            text += tokenizer.decode(run) if run else ""
            text += "" if skip or token is None else texts[token]
            run = []
        return text

    return TextTokenizer(
        encode_texts=lambda rows: [id_array(encode(row)) for row in rows],
        encode_plain_texts=lambda rows: [id_array(tokenizer.encode_ordinary(row)) for row in rows],
        decode_ids=decode,
        vocab_size=max(specials.values()) + 1,
        eos_id=specials[_END],
        eos_text=_END,
        begin_text="",
        special_tokens=specials,
        named_tokens={"eos_token": _END},
        stripping=(frozenset(), frozenset()),
        # The package has one vocabulary under a name; its version may change what a text becomes.
        serialised=lambda: json.dumps([source, version("tml-renderers"), specials]),
        chat_template=_CHAT_TEMPLATE,
    )


def _names(tokenizer: Any) -> list[str]:
    return [str(name) for name in tokenizer.special_tokens()]
