"""A text that a model wrote -> its thought and what it says, for the spellings of data sets.

Only a thought at an answer's start counts: anywhere else, the tags are text like any other.
"""

import re

OPEN, CLOSE = "<think>", "</think>"
# What opens and closes a thought at an answer's start. Others, such as <reasoning>, are as often
# the form in which an answer is wanted, so they stay part of it.
_TAGS = {
    OPEN: CLOSE,
    "<thinking>": "</thinking>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
}
_SOLUTION = re.compile(r"\s*<\|begin_of_solution\|>\s*(.*?)\s*(<\|end_of_solution\|>\s*)?", re.S)
# The prompt of some models opens the thought, so what they wrote begins inside it.
_CLOSED_ONLY = re.compile(r"(?:^|\n)</think>(?:\n|$)")
_EMPTY = re.compile(r"\s*(?:<think>\s*</think>|<seed:think>\s*</seed:think>)\s*|\s*</think>\s*")
_OPENINGS = tuple(_TAGS)
THOUGHT_TAGS = tuple(tag for pair in _TAGS.items() for tag in pair)


def split_thought(text: str) -> tuple[str, str] | None:
    """The thought at the start of an answer, and the answer; None if there is no whole one."""
    if "<" not in text and "[" not in text:
        return None
    start = text.lstrip()
    if not start.startswith(_OPENINGS) and CLOSE not in text:
        return None  # most texts, for which a look at each tag would take longer
    for opening, closing in _TAGS.items():
        if start.startswith(opening):
            thought, closed, answer = start[len(opening) :].partition(closing)
            if not closed:
                return None
            if opening == "<|begin_of_thought|>" and (inner := _SOLUTION.fullmatch(answer)):
                answer = inner[1]
            return thought.strip("\n"), answer.lstrip("\n")
    if text.count(CLOSE) == 1 and OPEN not in text and (place := _CLOSED_ONLY.search(text)):
        return text[: place.start()].strip("\n"), text[place.end() :].lstrip("\n")
    return None


def is_cut_within_thought(text: str) -> bool:
    """Whether an answer opens a thought at its start and never closes it."""
    start = text.lstrip()
    return start.startswith(_OPENINGS) and any(
        start.startswith(opening) and closing not in start for opening, closing in _TAGS.items()
    )


def leading_empty_thought(text: str) -> str:
    """The empty thought, or the end of one, that a text begins with; "" if there is none."""
    match = _EMPTY.match(text)
    return match[0] if match else ""
