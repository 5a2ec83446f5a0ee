"""Sampled tokens, one after the other -> the text of an answer, its thought and its calls.

A text is passed on as soon as nothing that follows can change it: never half a character, never the
beginning of what may become a stop string, a tag of a thought or a call.
"""

import copy
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tinkersmith.engine.grammar_text import ThoughtForm
from tinkersmith.prompts.probes import CallForm
from tinkersmith.prompts.text_tokenizer import TextTokenizer

_UNKNOWN = "\ufffd"  # what half a character becomes


class TokenText:
    """The text of a growing list of tokens, special tokens included."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []  # of the last two whole texts and what follows
        self._whole = 0  # tokens up to the last point at which the text was whole
        self._given = 0  # characters of the text of `_tokens` that were passed on

    def add(self, token: int) -> str:
        """Append a token, and return what can be passed on."""
        self._tokens = [*self._tokens, token]  # a copy of this object keeps its own
        text = self._decode(self._tokens)
        stable = text.rstrip(_UNKNOWN)
        new = stable[self._given :]
        self._given = max(self._given, len(stable))
        if stable == text:
            # Tokens before the last whole text cannot change what follows any more.
            self._tokens = self._tokens[self._whole :]
            self._whole = len(self._tokens)
            self._given = len(self._decode(self._tokens))
        return new

    def finish(self) -> str:
        """The rest, such as half a character at the end."""
        return self._decode(self._tokens)[self._given :]


class StopCutter:
    """Text up to the first stop string, which is left out."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = stops
        self.match: str | None = None  # the stop string that was found
        self._held = ""

    def add(self, text: str) -> str:
        if self.match is not None:
            return ""
        text = self._held + text
        places = [(text.find(stop), -len(stop), stop) for stop in self.stops if stop in text]
        if places:
            place, _, self.match = min(places)
            self._held = ""
            return text[:place]
        held = max((begun_word(text, stop) for stop in self.stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def would_match(self, text: str) -> bool:
        return any(stop in self._held + text for stop in self.stops)

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held


def begun_word(text: str, word: str) -> int:
    """How many characters at the end of `text` may be the beginning of `word`."""
    for size in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:size]):
            return size
    return 0


class ThoughtSplitter:
    """Text -> thought and answer. Only a thought at the answer's start counts."""

    def __init__(self, form: ThoughtForm | None) -> None:
        self._form = form
        self._state = "answer" if form is None else "thought" if form.begins_inside else "start"
        self._held = ""
        self._fresh = form is not None and form.begins_inside  # at the start of a thought or answer

    def add(self, text: str) -> tuple[str, str]:
        """What is added to the thought, and to the answer."""
        if self._form is None:
            return "", text
        self._held += text
        if self._state == "start":
            self._begin(self._form)
        thought = self._thought(self._form) if self._state == "thought" else ""
        return thought, self._answer() if self._state == "answer" else ""

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return (held.rstrip("\n"), "") if self._state == "thought" else ("", held)

    def _begin(self, form: ThoughtForm) -> None:
        start = self._held.lstrip()
        lead = form.lead.strip()
        if start.startswith(form.opening):
            self._state, self._held, self._fresh = "thought", start[len(form.opening) :], True
        elif lead and start.startswith(lead):
            self._state, self._held = "answer", start[len(lead) :]
        elif not (form.opening.startswith(start) or (lead and lead.startswith(start))):
            self._state = "answer"

    def _thought(self, form: ThoughtForm) -> str:
        if self._fresh:
            self._held = self._held.lstrip("\n")
            self._fresh = not self._held
        inside, closed, after = self._held.partition(form.closing)
        if closed:
            self._state, self._held, self._fresh = "answer", after, True
            return inside.rstrip("\n")
        keep = begun_word(inside, form.closing)
        ready = inside[: len(inside) - keep].rstrip("\n")
        self._held = inside[len(ready) :]
        return ready

    def _answer(self) -> str:
        text, self._held = self._held, ""
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        return text


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function that an answer asks for."""

    name: str
    arguments: str  # JSON


class CallSplitter:
    """An answer's text -> its words, and the calls of functions among them."""

    def __init__(self, form: CallForm | None, names: Collection[str]) -> None:
        self._form, self._names = form, names
        self._held: str = ""
        self._calling = False
        self._said = False  # whether there are words before the first call

    def add(self, text: str) -> str:
        """The words that can be passed on; a call is held until the end."""
        form = self._form
        if form is None:
            return text
        text = self._held + text
        self._held = ""
        if self._calling:
            self._held = text
            return ""
        if not form.opening:
            start = text.lstrip()
            if not start or start[0] in "{[":
                self._held, self._calling = text, bool(start)
                return ""
            self._form = None  # an answer in words
            return text
        words, opening, _ = text.partition(form.opening)
        if opening:
            self._calling, self._held = True, text[len(words.rstrip()) :]
            self._said |= bool(words.strip())
            return words.rstrip()
        keep = begun_word(text, form.opening)
        ready = text[: len(text) - keep].rstrip()  # spaces before a call are not said
        self._held = text[len(ready) :]
        self._said |= bool(ready)
        return ready

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The last words, and the calls; what is not a whole call of a known function is words."""
        held, self._held = self._held, ""
        if self._form is None or not self._calling:
            return held, []
        words, calls = _read_calls(held, self._form, self._names)
        return words if self._said or not calls else words.lstrip(), calls


_BETWEEN_CALLS = " \n\t;,"


def _read_calls(text: str, form: CallForm, names: Collection[str]) -> tuple[str, list[ToolCall]]:
    """What a text that begins with a call has besides whole calls, and these calls."""
    words, calls = "", list[ToolCall]()
    end = place = 0  # of the last call; of what is looked at
    while (start := text.find(form.opening, place)) >= 0:
        read = _read_call(text, start + len(form.opening), form, names)
        if read is not None:
            if text[end:start].strip(_BETWEEN_CALLS):
                words += text[end:start].rstrip()
            calls += read[0]
            end = place = read[1]
        elif form.opening:
            place = start + len(form.opening)
        else:
            break
    rest = text[end:] if text[end:].strip(_BETWEEN_CALLS) else ""
    if rest and not form.opening:  # without a tag, an answer that calls is nothing but JSON
        return text, []
    return words + rest, calls


def _read_call(
    text: str, start: int, form: CallForm, names: Collection[str]
) -> tuple[list[ToolCall], int] | None:
    """The call behind an opening, or the list of calls, and where its text ends."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, _skip(text, start, " \n\t\r"))
    except (ValueError, RecursionError):
        return None
    calls: list[ToolCall] = []
    for item in cast("list[Any]", value) if isinstance(value, list) else [value]:
        call = _as_call(item, form, names)
        if call is None:
            return None
        calls.append(call)
    after = _skip(text, end, _BETWEEN_CALLS)
    if form.closing and text.startswith(form.closing, after):
        return calls, after + len(form.closing)
    # The closing tag may be missing, but not begun, and no words may stand in its place.
    if form.closing and after < len(text) and not text.startswith(form.opening or "{", after):
        return None
    return calls, after


def _skip(text: str, place: int, letters: str) -> int:
    return len(text) - len(text[place:].lstrip(letters))


def _as_call(value: Any, form: CallForm, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    name: object = fields.get("name")
    arguments: object = fields.get(form.arguments, {})
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    try:
        written = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
        written.encode()
    except ValueError:  # NaN, or half of a surrogate pair: no JSON that a client could read
        return None
    return ToolCall(name, written)


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A token of an answer with its log-probability, for clients that want them."""

    token: int
    logprob: float
    topk: list[tuple[int, float]]
    raw_start: int  # of its text, in the text with special tokens
    start: int  # in the text without


@dataclass(slots=True)
class TextPiece:
    """What becomes known of an answer at one time."""

    thought: str = ""
    text: str = ""
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])

    def __bool__(self) -> bool:
        return bool(self.thought or self.text or self.scores or self.calls)


@dataclass(frozen=True, slots=True)
class AnswerSyntax:
    """How the answers of one request are read."""

    stops: Sequence[str] = ()
    thoughts: ThoughtForm | None = None
    calls: CallForm | None = None
    names: Collection[str] = ()  # of the functions that can be called
    scores_end: bool = False  # whether the token that ends an answer has a score too


class AnswerText:
    """One sequence of tokens -> pieces of text. Put together, they do not depend on the steps."""

    def __init__(self, tokenizer: TextTokenizer, syntax: AnswerSyntax) -> None:
        self._tokens = TokenText(lambda ids: tokenizer.decode_ids(ids, False))
        self._stops = StopCutter(syntax.stops)
        self._thoughts = ThoughtSplitter(syntax.thoughts)
        self._calls = CallSplitter(syntax.calls, syntax.names)
        self._special = _any_of(tokenizer.special_tokens)
        # What marks a call may be special, as [TOOL_CALLS] is: the reader of calls needs it.
        form = syntax.calls
        tags = f"{form.opening} {form.closing}" if form is not None else ""
        self._no_tag = _any_of([token for token in tokenizer.special_tokens if token not in tags])
        self._raw_length = self._length = 0
        self._unsent: list[TokenScore] = []
        self._scores_end = syntax.scores_end
        self._passed = 0  # characters that came through the stops
        self.count = 0  # tokens
        self.reason: str | None = None  # why it ended: "stop" or "length"; None: it goes on

    @property
    def stop_string(self) -> str | None:
        return self._stops.match

    def add(
        self,
        token: int,
        logprob: float,
        topk: Sequence[tuple[int, float]],
        reason: str | None,
    ) -> TextPiece:
        """Append a token; `reason` is why the sequence ends with it, if it does."""
        if self.reason is not None:
            return TextPiece()
        self.count += 1
        piece = TextPiece()
        # Only what ends an answer may be no text: then the tokens before it are needed again.
        tokens = copy.copy(self._tokens) if reason == "stop" else self._tokens
        new = tokens.add(token)
        if reason == "stop" and not self._stops.would_match(new):
            if self._scores_end:
                place = self._raw_length, self._length
                self._unsent.append(TokenScore(token, logprob, list(topk), *place))
            self._finish(reason, piece)  # this token is an end token, which is no text
            return piece
        self._tokens = tokens
        place = self._raw_length, self._length
        self._raw_length += len(new)
        self._length += len(self._special.sub("", new))
        self._unsent.append(TokenScore(token, logprob, list(topk), *place))
        self._take(self._stops.add(new), piece)
        if self.stop_string is not None or reason is not None:
            self._finish(reason, piece)
        return piece

    def finish(self, reason: str) -> TextPiece:
        """The rest of a sequence that has ended without a further token."""
        piece = TextPiece()
        if self.reason is None:
            self._finish(reason, piece)
        return piece

    def _finish(self, reason: str | None, piece: TextPiece) -> None:
        if self.stop_string is None:
            self._take(self._stops.add(self._tokens.finish()), piece)
        self.reason = reason if self.stop_string is None else "stop"
        self._take(self._stops.finish(), piece)
        thought, text = self._thoughts.finish()
        piece.thought += self._without_specials(thought)
        self._take_text(text, piece)
        words, piece.calls = self._calls.finish()
        piece.text += self._without_specials(words)
        if self.stop_string is None:
            piece.scores += self._unsent
        self._unsent = []  # those of a stop string are not part of the answer

    def _take(self, passed: str, piece: TextPiece) -> None:
        self._passed += len(passed)
        thought, text = self._thoughts.add(passed)
        piece.thought += self._without_specials(thought)
        self._take_text(text, piece)
        ready = 0
        while ready < len(self._unsent) and self._unsent[ready].raw_start < self._passed:
            ready += 1
        piece.scores += self._unsent[:ready]
        del self._unsent[:ready]

    def _take_text(self, text: str, piece: TextPiece) -> None:
        piece.text += self._without_specials(self._calls.add(self._no_tag.sub("", text)))

    def _without_specials(self, text: str) -> str:
        return self._special.sub("", text)


def _any_of(tokens: Collection[str]) -> re.Pattern[str]:
    longest_first = sorted(tokens, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def token_text(tokenizer: TextTokenizer, token: int) -> tuple[str, bytes]:
    """A token's own text and bytes; half a character has bytes that are no text."""
    before = tokenizer.decode_ids([tokenizer.eos_id], False)
    text = tokenizer.decode_ids([tokenizer.eos_id, token], False)[len(before) :]
    if _UNKNOWN in text and tokenizer.piece_of is not None:
        piece = tokenizer.piece_of(token) or ""
        if match := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", piece):
            return text, bytes([int(match[1], 16)])
        if all(letter in _BYTES for letter in piece):
            return text, bytes(_BYTES[letter] for letter in piece)
    return text, text.encode()


def _byte_letters() -> dict[str, int]:
    """The letters that byte-level vocabularies write for bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return letters | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_letters()
