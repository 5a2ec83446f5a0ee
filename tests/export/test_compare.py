"""Answers of a server against scores of an export, both written by hand: no model takes part."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tinkersmith.export.proof.compare import Proof, ProofCase, compare
from tinkersmith.export.proof.reference import Scores
from tinkersmith.export.proof.server import PLAIN_TEXT, TOKEN_IDS, Served

END = 0
PROMPT = (5, 6)


class Letters:
    """A tokenizer: token 1 is "a", 2 is "b", ...; 0 is the end, 99 half of a character."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("\ufffd" if n == 99 else chr(96 + n) for n in ids if n != END)

    def decode_all(self, ids: Sequence[int]) -> str:
        return "".join("<end>" if n == END else self.decode([n]) for n in ids)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]


@dataclass
class Export:
    """It answers `answer`; any other token is `gap` less likely than the best one."""

    answer: tuple[int, ...] = (1, 2, END)
    gap: float = 5.0
    ends: frozenset[int] = frozenset({END})
    vocabulary: int = 1000
    has_base: bool = False
    asked: list[Sequence[int]] = field(default_factory=list)

    def scores(self, tokens: Sequence[int], *, of_base: bool = False) -> Scores:
        self.asked.append(tokens)
        answered = list(tokens[len(PROMPT) :])
        own, best_ids = [-1.0], [PROMPT[1]]
        for place in range(len(answered) + 1):
            best = self.answer[place] if place < len(self.answer) else END
            best_ids.append(best)
            if place < len(answered):
                own.append(-0.1 if answered[place] == best else -0.1 - self.gap)
        end = -0.1 if best_ids[-1] == END else -0.1 - self.gap
        best = [-1.0, *[-0.1] * (len(answered) + 1)]
        return Scores(tuple(own), tuple(best), tuple(best_ids), end)


def proof_of(served: Served, export: Export | None = None, sends: str = TOKEN_IDS) -> Proof:
    export = export or Export()
    case = ProofCase(PROMPT, export.answer, served)
    return compare([case], sends, 8, export, Letters())


def test_the_same_answer_passes_however_it_is_told() -> None:
    for served in (
        Served("ab", "stop", (1, 2, END), None, (-0.1, -0.1, -0.1)),
        Served("ab", "stop", (1, 2)),
        Served("ab", "stop", None, ("a", "b"), (-0.1, -0.1)),
        Served("ab", "stop"),
        Served(" ab\n", "stop"),  # some servers strip blanks, others add one
    ):
        assert proof_of(served).passed


def test_a_near_tie_may_go_either_way_and_a_clear_choice_may_not() -> None:
    other = Served("ac", "length", (1, 3))
    assert proof_of(other, Export(gap=0.2)).passed
    [fault] = proof_of(other, Export(gap=0.3)).faults
    assert "Greedy answers to token ids differ from the export's in 1 of 1 case: token" in fault
    assert "token 2 of one is 'c' where the export writes 'b'" in fault


def test_an_answer_that_the_limit_cut_within_a_character_is_whole_enough() -> None:
    export = Export(answer=(1, 2, 99))
    for text in ("ab", "ab\ufffd", "ab\ufffd\ufffd"):
        assert proof_of(Served(text, "length"), export, PLAIN_TEXT).passed


def test_a_stop_too_late_and_one_too_early_are_told_apart() -> None:
    [late] = proof_of(Served("abc", "length", (1, 2, 3))).faults
    assert "does not stop at '<end>', where the export ends its answer (1 of 1 answer" in late
    [past] = proof_of(Served("abc", "length", (1, 2, END, 3))).faults
    assert "does not stop at '<end>'" in past
    [early] = proof_of(Served("a", "stop", (1,))).faults
    assert "stops too early: after 1 token, where the export goes on with 'b'" in early
    assert proof_of(Served("a", "length", (1,))).passed  # the limit was reached


def test_log_probabilities_may_differ_by_rounding_only() -> None:
    close = Served("ab", "stop", (1, 2), None, (-0.13, -0.16))
    assert proof_of(close).passed
    far = Served("ab", "stop", (1, 2), None, (-0.1, -0.3))  # the mean is 0.1
    [fault] = proof_of(far).faults
    assert "differ by up to 0.2 (mean 0.1); rounding to bfloat16 explains 1 (mean 0.05)" in fault
    one = Served("ab", "stop", (1, 2), None, (-0.1, -0.1), None, None, (None, -2.5))
    [fault] = proof_of(one).faults
    assert "differ by up to 1.5" in fault


def test_a_text_without_its_tokens_is_compared_as_text() -> None:
    assert not proof_of(Served("ac", "length", ())).passed
    assert proof_of(Served("ab", "stop", ())).passed
    assert not proof_of(Served("", "stop", ())).passed  # it stops at once


def test_nothing_told_is_listed_as_not_compared() -> None:
    said = " ".join(proof_of(Served("ab", "length", (1, 2))).not_compared)
    assert "does not tell the tokens that it makes of a prompt." in said
    assert "gives no log-probabilities for prompts sent as token ids" in said
    assert "No answer to token ids ended within 8 tokens" in said


def test_tokens_that_the_export_does_not_have_are_a_difference() -> None:
    for token in (1000, -1, 10**30):
        for told in (Served("a?", "stop", (1, token)), Served("", "stop", (token,))):
            export = Export()
            [fault] = proof_of(told, export).faults
            assert f"one has the token {token}, which the export does not have" in fault
            assert export.asked == []


def test_answers_that_ended_otherwise_are_not_said_to_go_on() -> None:
    said = proof_of(Served("c", "stop", (3,))).not_compared
    assert (
        "No answer to token ids that agrees with the export's ended within 8 tokens, so stops "
        "were not compared." in said
    )
