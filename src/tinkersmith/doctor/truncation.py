"""An answer -> whether it looks cut off.

Something that was opened and not closed is a sign by itself. A missing full stop is one only where
nearly all other answers of the data have one: see `EndsOfAnswers`.
"""

import json
import re
from array import array

from tinkersmith.prompts.tags import is_cut_within_thought

_FENCE = re.compile(r"^[ \t>]*(?:[-*]\s+|\d+\.\s+)?(```+|~~~+)", re.MULTILINE)
_BEGIN = re.compile(r"\\(begin|end)\s*\{([^{}]*)\}")
_IN_FORMULA = re.compile(r"\\[a-zA-Z]|[\^_=]")
_BOXED = re.compile(r"\\f?boxed\s*\{")
_END_MARKS = ".!?。！？…؟।»”\"’'`)）]】}」』*|:：;；>~～$”"
_SENTENCE = re.compile(r"[.!?。！？]")
_LOOSE_ENDS = re.compile(
    # A letter may end with "Best regards," in a line of its own.
    r"(?:(?<=.{24})[,，、]"
    r"|(?<=.{40})\b(?:the|a|an|of|and|or|because|which|with|from|into|than|whose|between|during)"
    r"|(?<=[\u4e00-\u9fff，。；])(?:和|与|或者|因为|以及|并且|但是|如果|由于))\Z"
)
_HAN = re.compile("[\u3400-\u9fff]")
_ITEM = re.compile(r"\s{2}|\s*(?:[-*|#>•]|\d+[.)、]|[\w-]+:\s)")
_EMPTY_ITEM = re.compile(
    r"^[ \t]*(?:\d+[.)]|[-*•]) +\S.*\n[ \t]*(?:\d+[.)]|[-*•])[ \t]*\Z", re.MULTILINE
)
_LONG_LINE = 50  # characters of English, 15 of Chinese: a shorter last line is a heading or an item
_LONG_HAN_LINE = 15
_LONG_ANSWER = 100
_LONG_HAN_ANSWER = 30
_CUT_AT_LEAST = 40  # characters of an answer that ends with dots
_USUAL = 0.9  # of the comparable answers that end with a mark, so that others look cut off
_COMPARABLE = 8  # answers, at least
_CAP_AT_LEAST = 100  # characters
_CAP_ANSWERS = 5
_CAP_SHARE = 0.01


def what_is_open(answer: str) -> str:
    """What an answer opens and does not close, in words; "" if it ends as it should."""
    answer = answer.rstrip()
    if len(_FENCE.findall(answer)) % 2 and ("```" in answer or "~~~" in answer):
        return "a block of code is not closed"
    if is_cut_within_thought(answer):
        return "its thought is not closed"
    if answer[:1] in "{[" and (what := _open_json(answer)):
        return what
    if ("\\" in answer or "$" in answer) and (what := _open_formula(answer)):
        return what
    if len(answer) >= 20 and _LOOSE_ENDS.search(answer[-80:]):
        return "it ends in the middle of a sentence"
    if (len(answer) >= 20 and answer[-1] in ":：") or _EMPTY_ITEM.search(answer[-400:]):
        return "what it announces does not follow"
    if answer[-1:] not in _END_MARKS and _open_bracket(answer[-400:]):
        return "a bracket is not closed"
    return ""


class EndsOfAnswers:
    """How the answers of a data set end, and how long they are, in characters.

    It keeps 5 bytes per answer.
    """

    def __init__(self) -> None:
        self._lengths = array("I")
        self._ends = array("b")

    def add(self, answer: str) -> None:
        answer = answer.rstrip()
        self._lengths.append(min(len(answer), 2**32 - 1))
        self._ends.append(_end_of(answer))

    def cut_off(self) -> dict[int, str]:
        """The answers that end unlike nearly all comparable ones, and why that looks cut off."""
        reasons: dict[int, str] = {}
        for without, name, why in (
            (_NO_MARK, _WITH_MARK, "it ends without a full stop, unlike nearly all others"),
            (_DOTS, None, 'it ends with "...", unlike nearly all others'),
        ):
            odd = self._ends.count(without)
            usual = len(self._ends) - odd if name is None else self._ends.count(name)
            if usual >= _COMPARABLE and odd <= max(1, (1 - _USUAL) * (usual + odd)):
                reasons |= {number: why for number, end in enumerate(self._ends) if end == without}
        return reasons | self._at_a_cap()

    def _at_a_cap(self) -> dict[int, str]:
        """The answers of the greatest length, if suspiciously many have exactly that."""
        if not self._lengths:
            return {}
        longest = max(self._lengths)
        at_cap = [number for number, length in enumerate(self._lengths) if length == longest]
        unfinished = [number for number in at_cap if self._ends[number] in (_NO_MARK, _OTHER)]
        enough = max(_CAP_ANSWERS, _CAP_SHARE * len(self._lengths))
        if longest < _CAP_AT_LEAST or len(unfinished) < min(enough, 50):
            return {}
        why = f"it has exactly {longest:,} characters, as {len(at_cap) - 1:,} others; none has more"
        return dict.fromkeys(unfinished, why)


_OTHER, _WITH_MARK, _NO_MARK, _DOTS = range(4)


def _end_of(answer: str) -> int:
    """How an answer ends; _OTHER for short ones, lists, formulas and code."""
    if answer.endswith(("...", "…")):  # "1, 2, 3, ..." is complete
        is_cut = len(answer) >= _CUT_AT_LEAST and answer.rstrip(".…")[-1:].isalpha()
        return _DOTS if is_cut else _OTHER
    last_line = answer[answer.rfind("\n") + 1 :]
    is_han = len(last_line) >= _LONG_HAN_LINE and _han_share(last_line) > 0.5
    if len(answer) < (_LONG_HAN_ANSWER if is_han else _LONG_ANSWER):
        return _OTHER
    if len(last_line) < (_LONG_HAN_LINE if is_han else _LONG_LINE):
        return _OTHER
    if _ITEM.match(last_line) or "://" in last_line[-80:] or "->" in last_line:
        return _OTHER
    if not _SENTENCE.search(answer, 0, len(answer) - 1):
        return _OTHER
    if answer[-1] in _END_MARKS:
        return _WITH_MARK
    return _NO_MARK if answer[-1].isalnum() or answer[-1] in ",，、-—(（" else _OTHER


def _han_share(text: str) -> float:
    text = text[-200:]
    return len(_HAN.findall(text)) / len(text)


def _open_json(answer: str) -> str:
    if not re.match(r"\{\s*\"|\[\s*[\{\"\[\d]", answer):
        return ""
    try:
        json.loads(answer)
    except json.JSONDecodeError as error:
        at_end = error.pos >= len(answer) or error.msg.startswith("Unterminated string")
        if at_end and answer[-1] not in "}]":
            return "its JSON ends too early"
    except (RecursionError, ValueError):
        pass
    return ""


def _open_formula(answer: str) -> str:
    for match in _BOXED.finditer(answer):
        if _depth_at_end(answer, match.end()) > 0:
            return f"{match[0].rstrip('{').strip()}{{ is not closed"
    opened: list[str] = []
    for match in _BEGIN.finditer(answer):
        if match[1] == "begin":
            opened.append(match[2])
        elif match[2] in opened:
            opened.remove(match[2])
    if opened:
        return f"\\begin{{{opened[-1]}}} is not closed"
    for opener, closer in (("\\[", "\\]"), ("\\(", "\\)")):
        place = answer.rfind(opener)
        # "\\[2pt]" is a line break with a gap.
        if place >= 0 and answer[place - 1 : place] != "\\" and closer not in answer[place:]:
            return f"{opener} is not closed"
    dollars = answer.replace("\\$", "")
    if dollars.count("$$") % 2 and _IN_FORMULA.search(dollars[dollars.rfind("$$") :]):
        return "$$ is not closed"
    last = dollars[dollars.rfind("\n") + 1 :].replace("$$", "")
    if last.count("$") % 2 and _IN_FORMULA.search(last[last.rfind("$") :]):
        return "$ is not closed"
    return ""


def _depth_at_end(text: str, start: int) -> int:
    """How many braces are open at the end of a text, of one that was opened before `start`."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:]):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
            if not depth:
                return 0
    return depth


def _open_bracket(text: str) -> bool:
    """Whether the last bracket is an opening one."""
    for opener, closer in ("()", "（）", "【】", "「」", "《》", "“”"):
        place = text.rfind(opener)
        if place >= 0 and closer not in text[place:] and text[place - 1 : place] not in (":", ";"):
            return True
    return False
