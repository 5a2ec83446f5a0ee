"""What a server answers and what the export answers -> a table, and the faults by name.

A greedy answer may part from the export's where two tokens are about equally likely: rounding
decides there. Therefore the export scores the server's own tokens, and only a token that it finds
clearly less likely than its best one is a difference.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tinkersmith.errors import one_line
from tinkersmith.export.proof.server import CHAT_MESSAGES, PLAIN_TEXT, TOKEN_IDS, Served
from tinkersmith.plurals import counted

if TYPE_CHECKING:
    from tinkersmith.export.proof.reference import Scores

# What the rounding of a server that computes in bfloat16 explains: the difference of one
# log-probability, and of the mean.
ROUNDING_MAX, ROUNDING_MEAN = 1.0, 0.05
# Differences of log-probabilities up to which two tokens count as equally likely.
NEAR_TIE = 0.25
_BOS = "it adds a BOS"
_WITHOUT_BOS = "Switch that off in the tokenizer that it serves (add_bos_token)."
_CHAT_TEMPLATE = "The server's chat template writes another prompt than was trained"
_MISSING_LORA = (
    "The server answers as the base model does: it does not use the LoRA. Ask for the adapter by "
    "its own name (--prove-model), or load it there."
)


class ProofTokenizer(Protocol):
    """The tokenizer of an export."""

    def decode(self, ids: Any) -> str: ...

    def decode_all(self, ids: Any) -> str: ...

    def encode(self, text: str) -> Any: ...


class ScoredExport(Protocol):
    """The export as a plain model; see `reference.Reference`."""

    @property
    def ends(self) -> frozenset[int]: ...

    @property
    def vocabulary(self) -> int: ...

    @property
    def has_base(self) -> bool: ...

    def scores(self, tokens: Sequence[int], *, of_base: bool = False) -> "Scores": ...


@dataclass(frozen=True, slots=True)
class ProofCase:
    """A prompt as it was trained, and what the server made of it."""

    prompt: tuple[int, ...]
    expected: tuple[int, ...]  # the export's greedy answer, end token included
    completion: Served | None = None
    text_tokens: tuple[int, ...] | None = None  # what the server makes of the prompt's text
    chat: Served | None = None  # to the messages that write this prompt
    chat_tokens: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProofRow:
    """A line of the table."""

    check: str
    sent_as: str
    agree: int
    of: int
    largest: float | None = None  # difference of a log-probability
    mean: float | None = None

    def cells(self) -> list[str]:
        """The columns of the table."""
        numbers = ["-" if n is None else f"{n:.1e}" for n in (self.largest, self.mean)]
        return [self.check, self.sent_as, f"{self.agree:,} of {self.of:,}", *numbers]


@dataclass(slots=True)
class Proof:
    """What was compared, and what differs."""

    rows: list[ProofRow] = field(default_factory=list["ProofRow"])
    faults: list[str] = field(default_factory=list[str])  # whole sentences
    not_compared: list[str] = field(default_factory=list[str])  # whole sentences

    @property
    def passed(self) -> bool:
        """Whether nothing differs beyond the rounding."""
        return not self.faults


def compare(
    cases: Sequence[ProofCase],
    sends: str,
    most: int,
    scorer: ScoredExport,
    tokenizer: ProofTokenizer,
) -> Proof:
    """Compare what a server answered with what the export answers.

    Args:
        sends: how the prompts of `completion` were sent: TOKEN_IDS or PLAIN_TEXT.
        most: tokens that an answer could have.
    """
    proof = Proof()
    _compare_prompts(proof, cases, sends, tokenizer)
    of_prompts = _Answers(proof, sends, most, scorer, tokenizer)
    of_chats = _Answers(proof, CHAT_MESSAGES, most, scorer, tokenizer)
    for case in cases:
        of_prompts.add(case, case.completion)
        of_chats.add(case, case.chat)
    token_fault = bool(proof.faults)
    of_prompts.report(explained=token_fault and sends != TOKEN_IDS)
    of_chats.report(explained=_chat_template_differs(proof) or bool(of_prompts.faults))
    proof.faults.sort(key=lambda fault: fault != _MISSING_LORA)  # the reason of others first
    return proof


def _chat_template_differs(proof: Proof) -> bool:
    return any(fault.startswith(_CHAT_TEMPLATE) for fault in proof.faults)


# ---- prompts


def _compare_prompts(
    proof: Proof, cases: Sequence[ProofCase], sends: str, tokenizer: ProofTokenizer
) -> None:
    sent = [case for case in cases if case.completion is not None]
    told = [(case.prompt, *_told(case.completion)) for case in sent]
    _token_row(proof, sends, told, "", tokenizer)
    if sends == TOKEN_IDS:
        texts = [(case.prompt, case.text_tokens, None) for case in sent]
        place = " of a prompt's text"
        _token_row(proof, PLAIN_TEXT, texts, place, tokenizer)
    chats = [
        (case.prompt, case.chat_tokens or _told(case.chat)[0], _told(case.chat)[1])
        for case in cases
        if case.chat is not None
    ]
    _token_row(proof, CHAT_MESSAGES, chats, " of chat messages", tokenizer)


def _told(served: Served | None) -> tuple[tuple[int, ...] | None, int | None]:
    return (None, None) if served is None else (served.prompt_tokens, served.prompt_count)


def _token_row(
    proof: Proof,
    sent_as: str,
    prompts: Sequence[tuple[tuple[int, ...], tuple[int, ...] | None, int | None]],
    place: str,
    tokenizer: ProofTokenizer,
) -> None:
    """Compare tokens where the server tells them, else their number."""
    known = [entry for entry in prompts if entry[1] is not None or entry[2] is not None]
    if not known:
        if prompts:
            proof.not_compared.append(
                f"The server does not tell the tokens that it makes{place or ' of a prompt'}."
            )
        return
    whole = any(tokens is not None for _, tokens, _ in known)
    agree, fault = 0, ""
    for trained, tokens, count in known:
        same = tokens == trained if tokens is not None else count == len(trained)
        agree += same
        if not same and not fault:
            fault = _token_fault(trained, tokens, count, tokenizer)
    proof.rows.append(
        ProofRow(
            "Prompt tokens" if whole else "Number of prompt tokens", sent_as, agree, len(known)
        )
    )
    if fault:
        wrong = len(known) - agree
        which = f" ({wrong} of {counted(len(known), 'prompt')})"
        if sent_as == CHAT_MESSAGES and _BOS not in fault:
            proof.faults.append(
                f"{_CHAT_TEMPLATE}: {fault}{which}. Give it the export's chat_template.jinja "
                "(vLLM: --chat-template)."
            )
        else:
            advice = f" {_WITHOUT_BOS}" if _BOS in fault else ""
            proof.faults.append(
                f"The server changes prompts that are sent as {sent_as}: {fault}{which}.{advice}"
            )


def _token_fault(
    trained: tuple[int, ...],
    tokens: tuple[int, ...] | None,
    count: int | None,
    tokenizer: ProofTokenizer,
) -> str:
    """What differs between a prompt's tokens, as the end of a sentence."""
    if tokens is None:
        more = (count or 0) - len(trained)
        if more == 1:
            return "it has one token more, such as a BOS in front or an end token behind"
        return f"it has {count:,} tokens where {len(trained):,} were trained"
    for extra in (1, 2):
        if tokens[extra:] == trained:
            return f"{_BOS} ({_shown(tokens[:extra], tokenizer)}) in front"
        if tokens[:-extra] == trained:
            return f"it adds {_shown(tokens[-extra:], tokenizer)} behind"
    if tokens == trained[1:]:
        return f"it leaves out the BOS ({_shown(trained[:1], tokenizer)})"
    place = next(
        (n for n, pair in enumerate(zip(tokens, trained, strict=False)) if pair[0] != pair[1]),
        min(len(tokens), len(trained)),
    )
    served = _shown(tokens[place : place + 4], tokenizer) if tokens[place:] else "nothing"
    wanted = _shown(trained[place : place + 4], tokenizer) if trained[place:] else "nothing"
    return f"its tokens differ from position {place} on: it has {served}, trained was {wanted}"


def _shown(tokens: Sequence[int], tokenizer: ProofTokenizer) -> str:
    try:
        return repr(one_line(tokenizer.decode_all(list(tokens)), 60))
    except (IndexError, KeyError, OverflowError, ValueError):
        return f"the tokens {list(tokens)}, which the export does not have"


# ---- answers


class _Answers:
    """Compares the answers to prompts that were sent in one way."""

    def __init__(
        self, proof: Proof, sent_as: str, most: int, scorer: ScoredExport, tokenizer: ProofTokenizer
    ) -> None:
        self.proof, self.sent_as, self.most = proof, sent_as, most
        self.scorer, self.tokenizer = scorer, tokenizer
        self.faults: list[str] = []
        self.answers = self.greedy = self.ended = self.endings = 0
        self.without_logprobs = 0
        self.of_prompts: list[float] = []  # differences
        self.of_answers: list[float] = []
        # For a comparison with the base model: tokens, where the answer starts, log-probabilities.
        self.scored: list[tuple[list[int], int, list[tuple[int, float]]]] = []
        self.apart = 0  # answers without their thoughts
        self.end_written = 0  # the end token of the answer at hand
        self.other_tokens: list[str] = []
        self.late_ends: list[str] = []
        self.early_ends: list[str] = []

    def add(self, case: ProofCase, served: Served | None) -> None:
        if served is None:
            return
        if served.has_thoughts and served.tokens is None:
            self.apart += 1
            return
        self.answers += 1
        ends = self.scorer.ends
        tokens = self._tokens_of(case, served)
        size = self.scorer.vocabulary
        unknown = next((token for token in tokens or () if not 0 <= token < size), None)
        if unknown is not None:
            self.without_logprobs += not served.logprobs
            self.other_tokens.append(f"one has the token {unknown}, which the export does not have")
            return
        if tokens is None:
            expected = self.tokenizer.decode(list(case.expected))
            self.other_tokens.append(
                f"one is {one_line(served.text)!r} where the export writes {one_line(expected)!r}"
            )
        first_end = next((n for n, token in enumerate(tokens or ()) if token in ends), None)
        answer = (tokens or [])[:first_end]
        text = [*case.prompt, *answer]
        scores = self.scorer.scores(text)
        start = len(case.prompt) - 1
        self._compare_logprobs(case, served, text, scores, start, aligned=tokens is not None)
        if tokens is None:
            return
        own, best = scores.logprobs[start:], scores.best[start:]
        place = next((n for n, lp in enumerate(own) if best[n] - lp > NEAR_TIE), None)
        stopped = served.finish == "stop" or first_end is not None
        went_on = first_end is not None and first_end < len(tokens) - 1
        self.end_written = tokens[first_end] if first_end is not None else 0
        self._judge_end(scores, answer, place, start, stopped=stopped, went_on=went_on)
        if place is None:
            self.greedy += 1
        elif scores.best_ids[start + place] not in ends:
            wrote = _shown(answer[place : place + 1], self.tokenizer)
            wanted = _shown(scores.best_ids[start + place : start + place + 1], self.tokenizer)
            self.other_tokens.append(
                f"token {place + 1} of one is {wrote} where the export writes {wanted}"
            )

    def _judge_end(
        self,
        scores: "Scores",
        answer: Sequence[int],
        place: int | None,
        start: int,
        *,
        stopped: bool,
        went_on: bool,
    ) -> None:
        if place is not None and scores.best_ids[start + place] in self.scorer.ends:
            self.endings += 1
            end = _shown(scores.best_ids[start + place : start + place + 1], self.tokenizer)
            self.late_ends.append(end)
        elif went_on:
            self.endings += 1
            self.late_ends.append(_shown([self.end_written], self.tokenizer))
        elif stopped and place is None:
            self.endings += 1
            if scores.best[-1] - scores.end <= NEAR_TIE:
                self.ended += 1
            else:
                after = _shown(scores.best_ids[-1:], self.tokenizer)
                self.early_ends.append(
                    f"after {counted(len(answer), 'token')}, where the export goes on with {after}"
                )

    def _tokens_of(self, case: ProofCase, served: Served) -> list[int] | None:
        """The answer's tokens; None where its text does not tell them."""
        if served.tokens or (served.tokens is not None and not served.text):
            return list(served.tokens)
        expected = [token for token in case.expected if token not in self.scorer.ends]
        if _whole_characters(served.text) == _whole_characters(self.tokenizer.decode(expected)):
            return expected
        encoded = [[int(n) for n in self.tokenizer.encode(text)] for text in served.spelled or ()]
        if encoded and all(len(ids) == 1 for ids in encoded):
            return [ids[0] for ids in encoded]
        tokens = [int(token) for token in self.tokenizer.encode(served.text)]
        fits = not served.logprobs or len(served.logprobs) == len(tokens)
        return tokens if fits and self.tokenizer.decode_all(tokens) == served.text else None

    def _compare_logprobs(
        self,
        case: ProofCase,
        served: Served,
        text: list[int],
        scores: "Scores",
        start: int,
        *,
        aligned: bool,
    ) -> None:
        answered = (served.logprobs or ()) if aligned else ()
        asked = served.prompt_logprobs or ()
        self.without_logprobs += not served.logprobs
        own = scores.logprobs
        places = [(start + n, lp) for n, lp in enumerate(answered) if start + n < len(own)]
        self.of_answers += [abs(own[n] - lp) for n, lp in places]
        # The first token of a text has no log-probability.
        before = [(n, lp) for n, lp in enumerate(asked[1 : len(case.prompt)]) if lp is not None]
        self.of_prompts += [abs(own[n] - lp) for n, lp in before]
        self.scored.append((text, start, [*before, *places]))

    def report(self, *, explained: bool) -> None:
        """Add rows and faults; `explained` means that a fault of the prompts is the reason."""
        proof = self.proof
        if self.apart:
            proof.not_compared.append(
                f"{counted(self.apart, 'answer')} to {self.sent_as}: the server tells thoughts "
                "apart, so the text is not the whole answer."
            )
        if not self.answers:
            return
        self._logprob_row("Log-probabilities of prompts", self.of_prompts)
        self._logprob_row("Log-probabilities of answers", self.of_answers)
        proof.rows.append(ProofRow("Greedy answers", self.sent_as, self.greedy, self.answers))
        if self.endings:
            proof.rows.append(ProofRow("Ends of answers", self.sent_as, self.ended, self.endings))
        else:
            alike = " that agrees with the export's" if self.other_tokens else ""
            proof.not_compared.append(
                f"No answer to {self.sent_as}{alike} ended within {self.most} tokens, so stops "
                "were not compared."
            )
        if self.without_logprobs == self.answers:
            proof.not_compared.append(
                f"The server gives no log-probabilities for prompts sent as {self.sent_as}."
            )
        elif not self.of_prompts:
            proof.not_compared.append(
                f"The server gives no log-probabilities of prompts sent as {self.sent_as}."
            )
        self._name_faults()
        if not explained:
            proof.faults += self.faults

    def _logprob_row(self, check: str, differences: Sequence[float]) -> None:
        if differences:
            within = sum(difference <= ROUNDING_MAX for difference in differences)
            largest, mean = max(differences), sum(differences) / len(differences)
            self.proof.rows.append(
                ProofRow(check, self.sent_as, within, len(differences), largest, mean)
            )

    def _name_faults(self) -> None:
        differences = [*self.of_prompts, *self.of_answers]
        off = bool(differences) and not _within(differences)
        if (off or self.other_tokens) and self._is_base_model():
            self.faults.append(_MISSING_LORA)
            return
        if off:
            mean = sum(differences) / len(differences)
            self.faults.append(
                f"The server's log-probabilities for prompts sent as {self.sent_as} differ by up "
                f"to {max(differences):.2g} (mean {mean:.2g}); rounding to bfloat16 explains "
                f"{ROUNDING_MAX:g} (mean {ROUNDING_MEAN:g}). It serves other weights, or "
                "quantised ones."
            )
        elif self.other_tokens:
            self.faults.append(
                f"Greedy answers to {self.sent_as} differ from the export's in "
                f"{len(self.other_tokens)} of {counted(self.answers, 'case')}: "
                f"{self.other_tokens[0]}. "
                + (
                    "The server's chat template, or what it sets for sampling, is another one."
                    if self.sent_as == CHAT_MESSAGES
                    else "It serves other weights, such as the base model's, or sets something "
                    "for sampling."
                )
            )
        late = f"({len(self.late_ends)} of {counted(self.answers, 'answer')} to {self.sent_as})"
        if self.late_ends:
            self.faults.append(
                f"The server does not stop at {self.late_ends[0]}, where the export ends its "
                f"answer {late}. Give it that token as a stop."
            )
        if self.early_ends:
            self.faults.append(
                f"The server stops too early: {self.early_ends[0]} "
                f"({len(self.early_ends)} of {counted(self.answers, 'answer')} to {self.sent_as}). "
                "It has a stop token or a stop string that was not trained."
            )

    def _is_base_model(self) -> bool:
        """Whether the answers are those of the base model, without the LoRA."""
        if not self.scorer.has_base:
            return False
        differences: list[float] = []
        gaps: list[float] = []
        for text, start, logprobs in self.scored:
            base = self.scorer.scores(text, of_base=True)
            differences += [abs(base.logprobs[n] - lp) for n, lp in logprobs]
            pairs = zip(base.best[start:], base.logprobs[start:], strict=False)
            gaps += [best - lp for best, lp in pairs]
        if differences:
            return _within(differences)
        return bool(gaps) and max(gaps) <= NEAR_TIE


def _whole_characters(text: str) -> str:
    """The text without a last character that the limit of tokens has cut into bytes."""
    return text.strip().rstrip("\ufffd").rstrip()


def _within(differences: Sequence[float]) -> bool:
    mean = sum(differences) / len(differences)
    return max(differences) <= ROUNDING_MAX and mean <= ROUNDING_MEAN
