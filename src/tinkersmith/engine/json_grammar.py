"""A JSON schema -> which tokens may come next in an answer, by the library llguidance.

llguidance is an extra, `structured`, and is imported only where an answer needs it.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, prod
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

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
_KEPT = 16  # grammars of a vocabulary
_REMAINDERS = 100_000  # of all numbers of multipleOf in a schema; they take a second


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


@dataclass(slots=True, eq=False)
class JsonGrammar:
    """What an answer must look like, compiled for one vocabulary."""

    matcher: "LLMatcher"  # at the beginning of an answer; never changed
    end_id: int
    # Whether an answer reached a limit of llguidance. All answers share the states that were found
    # so far, so the next one would reach it sooner.
    is_spent: bool = False

    def begin(self) -> "GrammarState":
        return GrammarState(self, self.matcher.deep_copy())


class GrammarState:
    """One answer so far, and what may follow."""

    def __init__(self, grammar: JsonGrammar, matcher: "LLMatcher") -> None:
        self._grammar, self._matcher = grammar, matcher

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
            self._grammar.is_spent = True
            raise Refused(
                "the answer cannot follow its JSON schema any further; make the schema simpler. "
                f"llguidance says: {_first_line(self._matcher.get_error())}"
            )
        return np.unpackbits(bits, bitorder="little").view(bool)

    def add(self, token: int) -> None:
        """Go on with a token that was allowed."""
        self._matcher.consume_token(token)  # `allowed` says if this was too complex


class Grammars:
    """The grammars of one vocabulary that requests had lately. Any thread may use them.

    Clients with the same schema wait for one compilation, and what llguidance computes for one
    answer is there for the next.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._latest: OrderedDict[str, Future[JsonGrammar]] = OrderedDict()  # by their text
        self._lock = Lock()

    def of(
        self,
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
        text = _grammar_text(schema, after, after_thought)
        with self._lock:
            known = self._latest.get(text)
            if known is None or (known.done() and not _is_usable(known)):
                mine = self._latest[text] = Future[JsonGrammar]()
            else:
                mine = None
            self._latest.move_to_end(text)
            while len(self._latest) > _KEPT:
                self._latest.popitem(last=False)
        if mine is None:
            assert known is not None
            return known.result()
        try:
            grammar = _compile(self._vocabulary, text)
        except BaseException as error:
            mine.set_exception(error)
            raise
        mine.set_result(grammar)
        return grammar


def _is_usable(compiled: "Future[JsonGrammar]") -> bool:
    return compiled.exception() is None and not compiled.result().is_spent


def _compile(vocabulary: Vocabulary, text: str) -> JsonGrammar:
    from llguidance import LLMatcher

    matcher = LLMatcher(vocabulary.tokens, LLMatcher.grammar_from_lark(text), log_level=0)
    if matcher.is_error():
        raise Refused(_schema_fault(matcher.get_error()))
    return JsonGrammar(matcher, vocabulary.end_id)


def _grammar_text(
    schema: Mapping[str, Any], after: str, after_thought: tuple[str, str] | None
) -> str:
    """A grammar in llguidance's own language."""
    if _OPTIONS in schema:
        raise Refused(f"{_OPTIONS} cannot be chosen here; leave it out.")
    try:
        written = json.dumps({**schema, _OPTIONS: {"whitespace_pattern": _SPACES}})
        _check_multiples(schema)
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
    return "\n".join(lines)


def _check_multiples(schema: Mapping[str, Any]) -> None:
    """Refuse large numbers of `multipleOf`: llguidance takes 10 us for each remainder."""
    remainders = 0
    for number in _multiples(schema):
        odd = int("".join(map(str, number.normalize().as_tuple().digits)))
        # The last digits alone tell whether 2 and 5 divide a number.
        while odd and not (odd % 2 and odd % 5):
            odd //= 2 if odd % 2 == 0 else 5
        remainders += odd
    if remainders > _REMAINDERS:
        raise Refused(
            f"the numbers of multipleOf add up to {remainders:,}; at most {_REMAINDERS:,} can be "
            "followed. Use smaller ones."
        )


def _multiples(value: Any) -> Iterator[Decimal]:
    """All numbers of `multipleOf`. Those of one `allOf` hold together, so they are multiplied."""
    if isinstance(value, Mapping):
        for name, inner in cast("Mapping[str, Any]", value).items():
            if name == "multipleOf" and _is_number(inner):
                yield Decimal(str(inner))
            elif name == "allOf":
                together = list(_multiples(inner))
                yield from together
                if len(together) > 1:
                    yield prod(together, start=Decimal(1))
            else:
                yield from _multiples(inner)
    elif isinstance(value, list):
        for inner in cast("list[Any]", value):
            yield from _multiples(inner)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


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
