"""A chat template -> the words between the messages of a plain conversation, learned once.

Rendering each answer of a conversation as the last one takes two calls of Jinja for each. Most
conversations are questions and answers alone, and most templates put constant words around them.
Those words are learned from a conversation of words that mean nothing. A sample is written with
them only if the template's own text of the whole sample is the same, which takes one call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tinkersmith.data.samples import Sample, Source, Turn

_QUESTIONS = ("Quebec1", "Quebec2", "Quebec3")
_ANSWERS = ("Alfa1", "Alfa2", "Alfa3")
_SYSTEM = "Sierra0"


@dataclass(frozen=True, slots=True)
class PlainForm:
    """The constant texts of a conversation of questions and answers."""

    opening: str  # before the system text, or the first question if there is none
    after_system: str
    to_answer: str  # from a question to its answer, if others follow
    after_answer: str  # from an answer to the next question
    asking: str  # from the last question to the end of a prompt
    to_last: str  # from the last question to its answer
    tail: str  # after the last answer
    lead: str  # of a completion, before the answer
    end: str  # of a completion

    def whole(self, system: str, texts: Sequence[str]) -> str:
        """The text of a whole conversation: questions and answers in turn."""
        return self._before(system, texts, len(texts) - 2) + (
            texts[-2] + self.to_last + texts[-1] + self.tail
        )

    def written(self, system: str, texts: Sequence[str], number: int) -> tuple[str, str]:
        """The prompt and the completion of one of the answers, counted from 0."""
        place = 2 * number
        prompt = self._before(system, texts, place) + texts[place] + self.asking
        return prompt, self.lead + texts[place + 1] + self.end

    def _before(self, system: str, texts: Sequence[str], place: int) -> str:
        """All before the question at a place."""
        parts = [self.opening, system, self.after_system if system else ""]
        for index in range(0, place, 2):
            parts += (texts[index], self.to_answer, texts[index + 1], self.after_answer)
        return "".join(parts)


def plain_probe(has_system: bool) -> Sample:
    """The conversation to learn a form from."""
    turns = [Turn("system", _SYSTEM)] if has_system else []
    for question, answer in zip(_QUESTIONS, _ANSWERS, strict=True):
        turns += [Turn("user", question), Turn("assistant", answer)]
    return Sample(tuple(turns), Source("probe", 1))


def learn_plain_form(
    has_system: bool, whole: str, written: Callable[[int], tuple[str, str]]
) -> PlainForm | None:
    """The form that explains how `plain_probe` is written; None if there is none.

    Args:
        whole: the text of the whole conversation.
        written: the prompt and completion of an answer, counted from 0.
    """
    system = _SYSTEM if has_system else ""
    texts = [text for pair in zip(_QUESTIONS, _ANSWERS, strict=True) for text in pair]
    constants: list[str] = []
    rest = whole
    for word in [system, *texts] if has_system else texts:
        before, found, rest = rest.partition(word)
        if not found:
            return None
        constants.append(before)
    opening, after_system = constants[0], constants[1] if has_system else ""
    to_answer, after_answer, _, _, to_last = constants[2 if has_system else 1 :]
    prompt, completion = written(0)
    lead, _, end = completion.partition(_ANSWERS[0])
    form = PlainForm(
        opening=opening,
        after_system=after_system,
        to_answer=to_answer,
        after_answer=after_answer,
        asking=prompt.rpartition(_QUESTIONS[0])[2],
        to_last=to_last,
        tail=rest,
        lead=lead,
        end=end,
    )
    explained = form.whole(system, texts) == whole and all(
        form.written(system, texts, number) == written(number) for number in range(3)
    )
    return form if explained else None
