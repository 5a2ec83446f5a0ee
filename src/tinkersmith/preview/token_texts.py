"""A tokenizer -> the bytes that each of its tokens stands for, and its control tokens.

Decoding a token alone would lose a leading space, or a part of a character.
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Literal, cast

from tinkersmith.prompts.text_tokenizer import TextTokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "▁"  # how SentencePiece writes a space

Style = Literal["byte level", "sentence piece", "decoded"]


@dataclass(frozen=True, slots=True)
class TokenTexts:
    """The bytes of each token. Together, the bytes of a sequence are its text in UTF-8."""

    names: dict[int, str]  # as the vocabulary writes them
    added: dict[int, str]  # texts that become a token as a whole: control tokens, and others
    control: frozenset[int]  # those of `added` that are not blank
    style: Style
    tokenizer: TextTokenizer

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for."""
        if token in self.added:
            text = self.added[token]
            if token not in self.control and self.style == "sentence piece":
                text = text.replace(_SPACE, " ")
            return text.encode("utf-8", "backslashreplace")
        name = self.names.get(token)
        if name is None or self.style == "decoded":
            return self.tokenizer.decode([token]).encode("utf-8", "backslashreplace")
        if self.style == "byte level":
            try:
                return bytes(_BYTES[character] for character in name)
            except KeyError:  # the vocabulary holds a token that its own decoder does not know
                return name.encode("utf-8", "backslashreplace")
        if byte := _BYTE_TOKEN.fullmatch(name):
            return bytes.fromhex(byte[1])
        return name.replace(_SPACE, " ").encode("utf-8", "backslashreplace")


def token_texts(tokenizer: TextTokenizer) -> TokenTexts:
    """The bytes of all tokens of `tokenizer`."""
    added = {token: text for text, token in tokenizer.special_tokens.items()}
    stored: Any = json.loads(tokenizer.serialised())
    if not isinstance(stored, dict) or "model" not in stored:  # a tokenizer written in Python
        return TokenTexts({}, added, frozenset(added), "decoded", tokenizer)
    parts = cast("dict[str, Any]", stored)
    for token in cast("list[dict[str, Any]]", parts.get("added_tokens") or []):
        added[int(token["id"])] = str(token["content"])
    # Some vocabularies hold new lines and spaces this way.
    control = frozenset(token for token, text in added.items() if text.strip(f" \n\t{_SPACE}"))
    vocabulary: Any = parts["model"].get("vocab") or {}
    if isinstance(vocabulary, dict):
        names = {token: name for name, token in cast("dict[str, int]", vocabulary).items()}
    else:  # of a unigram model: a list of names with their scores
        names = {token: entry[0] for token, entry in enumerate(cast("list[Any]", vocabulary))}
    return TokenTexts(names, added, control, _style(parts.get("decoder")), tokenizer)


def _style(decoder: Any) -> Style:
    kinds = {entry.get("type") for entry in _decoders(decoder)}
    if "ByteLevel" in kinds:
        return "byte level"
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return "sentence piece"
    return "decoded"


def _decoders(decoder: Any) -> list[dict[str, Any]]:
    if not isinstance(decoder, dict):
        return []
    entry = cast("dict[str, Any]", decoder)
    inner = cast("list[Any]", entry.get("decoders") or [])
    return [entry, *(found for each in inner for found in _decoders(each))]


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (as GPT-2's)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {
        **{chr(byte): byte for byte in shown},
        **{chr(256 + index): byte for index, byte in enumerate(hidden)},
    }


_BYTES = _byte_alphabet()
