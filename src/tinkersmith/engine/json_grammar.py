"""A JSON schema -> which tokens may come next in an answer, by the library llguidance.

llguidance is an extra, `structured`, and is imported only where an answer needs it.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.grammar_text import CallRules, ThoughtForm, call_grammar, json_grammar
from tinkersmith.prompts.text_tokenizer import TextTokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_GRAMMAR_LINE = re.compile(r"\n\s*1 \| ")  # llguidance quotes the grammar from here
_KEPT = 16  # grammars of a vocabulary


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as llguidance reads it."""

    tokens: "LLTokenizer"
    end_id: int  # the tokenizer's own end token
    marks: Mapping[str, int] = field(default_factory=dict[str, int])  # its control tokens


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
    return Vocabulary(tokens, tokenizer.eos_id, _marks(tokens, tokenizer))


def _marks(tokens: "LLTokenizer", tokenizer: TextTokenizer) -> dict[str, int]:
    """The tokens that llguidance takes for no text: those with tags, not only special ones."""
    spelling = tokenizer.piece_of
    if spelling is None:
        return {}
    ids = (index for index in range(tokens.vocab_size) if tokens.is_special_token(index))
    return {text: index for index in ids if (text := spelling(index))}


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

    def of(self, schema: Mapping[str, Any], thought: ThoughtForm | None = None) -> JsonGrammar:
        """The grammar of answers that are JSON of this schema.

        Args:
            thought: the form of a thought that comes before, where the answer may have one.

        Raises:
            Refused: the schema is wrong, or asks for what llguidance does not support.
        """
        return self._compiled(json_grammar(schema, thought, self._vocabulary.marks))

    def of_calls(self, calls: CallRules, thought: ThoughtForm | None = None) -> JsonGrammar:
        """The grammar of answers that call functions by these rules.

        Raises:
            Refused: the parameters of a function cannot be followed.
        """
        try:
            return self._compiled(call_grammar(calls, thought, self._vocabulary.marks))
        except Refused:
            for name, schema in calls.parameters.items():
                try:
                    self.of(schema)
                except Refused as refusal:
                    sentence = f"the parameters of {name!r} cannot be followed: {refusal}"
                    raise Refused(sentence) from None
            raise

    def _compiled(self, text: str) -> JsonGrammar:
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


def _schema_fault(text: str) -> str:
    """What is wrong with a schema: llguidance's words without the grammar that they quote."""
    words = _GRAMMAR_LINE.split(text)[0].split("failed to compile JSON schema:")[-1]
    return f"{_first_line(words).rstrip('.')}."


def _first_line(text: str) -> str:
    return " ".join(text.split("\n<state>")[0].split())[:300]
