"""A model folder's tokenizer.json -> a `TextTokenizer`: text to token ids and back."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tinkersmith.errors import UserError, one_line, unreadable
from tinkersmith.files import (
    LARGEST_JSON_FILE,
    LFS_POINTER,
    is_lfs_pointer,
    read_json_object,
    read_regular,
)
from tinkersmith.prompts.guards import GUARDED, unguarded

if TYPE_CHECKING:
    from tokenizers import Tokenizer


CHUNK = 1000  # texts or samples per call: limits the memory of the Rust side on large files


@dataclass(frozen=True)
class TextTokenizer:
    """Turns text into token ids and back. It adds nothing to the text, such as a begin token."""

    # Two threads may call these. The first recognises special tokens, to the second they are text.
    encode_texts: Callable[[list[str]], list[np.ndarray]]
    encode_plain_texts: Callable[[list[str]], list[np.ndarray]]
    decode_ids: Callable[[list[int], bool], str]  # True leaves special tokens out
    vocab_size: int
    eos_id: int
    eos_text: str
    begin_text: str  # what the tokenizer by default puts before a text: "" for most
    special_tokens: dict[str, int]
    named_tokens: dict[str, str]  # bos_token, eos_token, ... as chat templates name them
    stripping: tuple[frozenset[str], frozenset[str]]  # specials that take the space left, right
    serialised: Callable[[], str]  # everything that decides which ids a text gets
    chat_template: str | None = None
    folder: Path | None = None
    # The ids at which generation_config.json ends a text; none where the model has no such file.
    generation_ends: tuple[int, ...] = ()
    # Ordinary tokens that the chat template writes, such as <tool_call>: text stays plain text.
    control_tokens: dict[str, int] = field(default_factory=dict[str, int])
    # The vocabulary's spelling of a token; None where the tokenizer does not say.
    piece_of: Callable[[int], str | None] | None = None

    @cached_property
    def digest(self) -> str:
        """A hash that is equal for tokenizers that give the same ids."""
        from tokenizers import __version__

        return hashlib.sha256(f"{__version__}\n{self.serialised()}".encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, (T,) int32. Guarded text never becomes a special token."""
        return [
            row
            for start in range(0, len(texts), CHUNK)
            for row in self.ids_of(texts[start : start + CHUNK])
        ]

    def ids_of(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Like `encode_batch`, in one call of the tokenizer."""
        guarded = {index for index, text in enumerate(texts) if GUARDED in text}
        plain = ["" if index in guarded else text for index, text in enumerate(texts)]
        ids = _encode_any_text(self.encode_texts, plain)
        for index in guarded:
            ids[index] = self._encode_guarded(texts[index])
        return ids

    def encode(self, text: str) -> np.ndarray:
        """The ids of one text: (T,) int32."""
        return self.encode_batch([text])[0]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, without special tokens."""
        return self.decode_ids([int(token) for token in ids], True)

    def decode_all(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of `ids`, special tokens included."""
        return self.decode_ids([int(token) for token in ids], False)

    def _encode_guarded(self, text: str) -> np.ndarray:
        """Encode like the tokenizer: special tokens first, then the text between them."""
        takes_left, takes_right = self.stripping
        known = {**self.control_tokens, **self.special_tokens}
        split = self._special_pattern.split(text)  # text, special, text, special, ..., text
        texts: list[str] = []
        for index in range(0, len(split), 2):
            between = split[index]
            if index and split[index - 1] in takes_right:
                between = between.lstrip()
            if index + 1 < len(split) and split[index + 1] in takes_left:
                between = between.rstrip()
            texts.append(unguarded(between))
        encoded = _encode_any_text(self.encode_plain_texts, texts)
        ids = [encoded[0]]
        for special, row in zip(split[1::2], encoded[1:], strict=True):
            ids += (id_array([known[special]]), row)
        return np.concatenate(ids)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        tokens = {*self.special_tokens, *self.control_tokens}
        longest_first = sorted(tokens, key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")


def read_tokenizer(folder: Path, chat_template: str | None = None) -> TextTokenizer | None:
    """The tokenizer.json of a model folder with its chat template; None if it has no such file.

    Args:
        chat_template: one to use in place of the folder's.

    Raises:
        UserError: a file cannot be read.
    """
    file = folder / "tokenizer.json"
    try:
        data = read_regular(file, LARGEST_JSON_FILE)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    if is_lfs_pointer(data):
        raise UserError(f"{file} is {LFS_POINTER}. Fetch it with: git lfs pull")
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_buffer(data)
    except BaseException as error:
        # Most damaged files give a bare Exception, some a panic, which is none.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file} is not a tokenizer: {reason}. Copy the model again.") from None
    config = _read_json(folder / "tokenizer_config.json")
    named = {
        name: text
        for source in (_read_json(folder / "special_tokens_map.json"), config)
        for name, value in source.items()
        if name.endswith("_token") and (text := _token_text(value))
    }
    if "eos_token" not in named:
        named["eos_token"] = _eos_from_model_config(folder, backend)
    if chat_template is None:
        chat_template = _stored_chat_template(folder, config)
    return tokenizer_of_backend(backend, named, chat_template, folder)


def id_array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def _encode_any_text(
    encode: Callable[[list[str]], list[np.ndarray]], texts: list[str]
) -> list[np.ndarray]:
    try:
        return encode(texts)
    except (TypeError, UnicodeEncodeError):
        # Unpaired surrogates have no UTF-8; they become U+FFFD.
        whole = (text.encode("utf-16", "surrogatepass") for text in texts)
        return encode([text.decode("utf-16", "replace") for text in whole])


def tokenizer_of_backend(
    backend: "Tokenizer", named: dict[str, str], chat_template: str | None, folder: Path | None
) -> TextTokenizer:
    """A tokenizer of the `tokenizers` library as a `TextTokenizer`.

    Raises:
        UserError: it does not know its end token.
    """
    backend.no_truncation()
    backend.no_padding()
    eos_text = named["eos_token"]
    eos_id = backend.token_to_id(eos_text) if _is_unicode(eos_text) else None
    if eos_id is None:
        raise UserError(
            f"The end token '{one_line(eos_text)}' is not in the tokenizer{_in_folder(folder)}."
        )
    # Most tokenizers know it already; others would encode the end token letter by letter.
    cast("Any", backend).add_special_tokens([eos_text])
    added = backend.get_added_tokens_decoder()
    specials = {token.content: index for index, token in added.items() if token.special}
    control = {
        token.content: index
        for index, token in added.items()
        if not token.special and _is_control(token.content, chat_template or "")
    }

    @cache
    def plain_twin() -> "Tokenizer":  # the switch is a state of a whole tokenizer
        twin = type(backend).from_str(backend.to_str())
        cast("Any", twin).add_special_tokens(list(control))  # text in this twin only
        twin.encode_special_tokens = True
        return twin

    def encode(texts: list[str]) -> list[np.ndarray]:
        rows = backend.encode_batch_fast(texts, add_special_tokens=False)
        return [id_array(row.ids) for row in rows]

    def encode_plain(texts: list[str]) -> list[np.ndarray]:
        rows = plain_twin().encode_batch_fast(texts, add_special_tokens=False)
        return [id_array(row.ids) for row in rows]

    return TextTokenizer(
        encode_texts=encode,
        encode_plain_texts=encode_plain,
        decode_ids=lambda ids, skip: backend.decode(ids, skip_special_tokens=skip),
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
        eos_id=eos_id,
        eos_text=eos_text,
        begin_text=begin_text_of(backend.encode("").tokens, named),
        special_tokens=specials,
        named_tokens=named,
        stripping=(
            frozenset(token.content for token in added.values() if token.special and token.lstrip),
            frozenset(token.content for token in added.values() if token.special and token.rstrip),
        ),
        serialised=backend.to_str,
        chat_template=chat_template,
        folder=folder,
        generation_ends=generation_ends_of(folder),
        control_tokens=control,
        piece_of=backend.id_to_token,
    )


def _is_control(token: str, chat_template: str) -> bool:
    """Whether a chat template writes an added token; runs of spaces are added tokens as well."""
    return token[:1] in "<[" and token[-1:] in ">]" and token in chat_template


def _is_unicode(text: str) -> bool:
    """Whether the text has no unpaired surrogates, which tokenizers do not take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def begin_text_of(added_to_nothing: Sequence[str], named: dict[str, str]) -> str:
    """The begin token, if this tokenizer puts one before every text (as Llama's does)."""
    bos_text = named.get("bos_token", "")
    puts_begin = list(added_to_nothing[:1]) == [bos_text] and bos_text != named["eos_token"]
    return bos_text if puts_begin else ""


def _stored_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return _read_template(folder / "chat_template.jinja")
    stored: Any = _read_json(folder / "chat_template.json").get("chat_template")
    stored = stored or config.get("chat_template")
    if isinstance(stored, list):  # several templates by name
        entries = cast("list[Any]", stored)
        default = [
            cast("dict[str, Any]", entry).get("template")
            for entry in entries
            if isinstance(entry, dict) and cast("dict[str, Any]", entry).get("name") == "default"
        ]
        stored = default[-1] if default else None
    return stored if isinstance(stored, str) else None


def _read_template(file: Path) -> str:
    try:
        return read_regular(file, LARGEST_JSON_FILE).decode("utf-8")
    except OSError as error:
        raise unreadable(file, error) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 at byte {error.start:,}. Copy the model again."
        ) from None


def _eos_from_model_config(folder: Path, backend: "Tokenizer") -> str:
    for name in ("generation_config.json", "config.json"):
        stored: Any = _read_json(folder / name).get("eos_token_id")
        ids = cast("list[Any]", stored) if isinstance(stored, list) else [stored]
        first = ids[0] if ids else None
        if isinstance(first, int) and (text := backend.id_to_token(first)):
            return text
    raise UserError(
        f"The tokenizer in {folder} names no end token. Add eos_token to tokenizer_config.json."
    )


def generation_ends_of(folder: Path | None) -> tuple[int, ...]:
    if folder is None:
        return ()
    stored: Any = _read_json(folder / "generation_config.json").get("eos_token_id")
    ids = cast("list[Any]", stored) if isinstance(stored, list) else [stored]
    return tuple(token for token in ids if isinstance(token, int))


def _token_text(value: Any) -> str:
    if isinstance(value, dict):
        value = cast("dict[str, Any]", value).get("content")
    return value if isinstance(value, str) else ""


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file of a model folder; an empty one if there is no such file."""
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Copy the model again.") from None


def _in_folder(folder: Path | None) -> str:
    return f" in {folder}" if folder else ""
