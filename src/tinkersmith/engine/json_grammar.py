"""A JSON schema -> which tokens may come next in an answer, by the library llguidance.

llguidance is an extra, `structured`, and is imported only where an answer needs it.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.prompts.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
_OPTIONS = "x-guidance"  # where llguidance finds options within a schema
# Before and after a value: JSON on one line. Many a model would go on with spaces for ever.
_SPACES = r"\x20?"
_GRAMMAR_LINE = re.compile(r"\n\s*1 \| ")  # llguidance quotes the grammar from here


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as llguidance reads it."""

    tokens: "LLTokenizer"
    end_id: int  # the tokenizer's own end token


def vocabulary_of(name: str, tokenizer: TextTokenizer) -> Vocabulary:
    """The vocabulary of a base model. Large ones take a second.

    Raises:
        Refused: llguidance is not installed, or cannot read the tokenizer.
    """
    try:
        from llguidance import LLTokenizer
    except ModuleNotFoundError:
        raise Refused(
            "answers that follow a JSON schema need the package llguidance where the engine runs: "
            'pip install "tinkersmith[structured]", and start it again.'
        ) from None
    try:
        tokens = LLTokenizer(tokenizer.serialised(), eos_token=tokenizer.eos_id)
    except Exception as error:  # of any type: the library is written in Rust
        raise Refused(
            f"llguidance cannot read the tokenizer of {name}, so its answers cannot follow a JSON "
            f"schema: {error}"
        ) from None
    return Vocabulary(tokens, tokenizer.eos_id)


@dataclass(frozen=True, slots=True)
class JsonGrammar:
    """What an answer must look like, compiled for one vocabulary."""

    matcher: "LLMatcher"  # at the beginning of an answer; never changed
    end_id: int

    def begin(self) -> "GrammarState":
        return GrammarState(self.matcher.deep_copy())


class GrammarState:
    """One answer so far, and what may follow."""

    def __init__(self, matcher: "LLMatcher") -> None:
        self._matcher = matcher

    @property
    def may_end(self) -> bool:
        return self._matcher.is_accepting()

    def allowed(self) -> np.ndarray:
        """Whether each token may follow, a bool for each of the tokenizer's tokens.

        Raises:
            Refused: the schema is too complex to go on with.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise Refused(
                "the answer cannot follow its JSON schema any further; make the schema simpler. "
                f"llguidance says: {_first_line(self._matcher.get_error())}"
            )
        return np.unpackbits(bits, bitorder="little").view(bool)

    def add(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)  # `allowed` says if this was too complex


def compile_schema(
    vocabulary: Vocabulary,
    schema: Mapping[str, Any],
    *,
    after: str = "",
    after_thought: tuple[str, str] | None = None,
) -> JsonGrammar:
    """The grammar of answers that are JSON of this schema.

    Args:
        after: the tag that closes the thought within which the answer begins; "": none.
        after_thought: the tags of a thought that may come before the JSON.

    Raises:
        Refused: the schema is wrong, or asks for what llguidance does not support.
    """
    from llguidance import LLMatcher

    if _OPTIONS in schema:
        raise Refused(f"{_OPTIONS} cannot be chosen here; leave it out.")
    try:
        written = json.dumps({**schema, _OPTIONS: {"whitespace_pattern": _SPACES}})
    except RecursionError:
        raise Refused("the schema is nested too deeply.") from None
    lines = [f"answer: %json {written}", r"gap: /[\x20\n]{0,4}/"]
    if after:
        lines += ["start: inside gap answer", _body("inside", after)]
    elif after_thought is not None:
        opening, closing = after_thought
        lines += ["start: (opening inside gap)? answer", f"opening: {_quoted(opening)}"]
        lines.append(_body("inside", closing))
    else:
        lines.append("start: answer")
    matcher = LLMatcher(
        vocabulary.tokens, LLMatcher.grammar_from_lark("\n".join(lines)), log_level=0
    )
    if matcher.is_error():
        raise Refused(_schema_fault(matcher.get_error()))
    return JsonGrammar(matcher, vocabulary.end_id)


def _body(name: str, closing: str) -> str:
    """Any text up to `closing`, and that."""
    return rf"{name}[suffix={_quoted(closing)}]: /(.|\n)*/"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _schema_fault(text: str) -> str:
    """What is wrong with a schema: llguidance's words without the grammar that they quote."""
    words = _GRAMMAR_LINE.split(text)[0].split("failed to compile JSON schema:")[-1]
    return f"{_first_line(words).rstrip('.')}."


def _first_line(text: str) -> str:
    return " ".join(text.split("\n<state>")[0].split())[:300]
