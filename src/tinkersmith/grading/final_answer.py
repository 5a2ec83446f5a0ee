r"""A text -> its final answer, and the rule that found it.

The rules in order (docs/explanation/scores.md):

1. Thoughts are removed; a text that ends inside a thought has no answer.
2. What the last marker announces: "<answer>", "boxed", "####", "Answer:", "the answer is", "选".
3. A text of one line is its own answer ("whole text"); of several, the last line is ("last line").

The first clause after a marker counts, not later numbers. `grade` knows the expected answer and
looks closer at texts without a marker.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from tinkersmith.grading.choices import announced_choices, choice_of
from tinkersmith.grading.dates import date_of, time_of
from tinkersmith.grading.quantities import quantity_of
from tinkersmith.grading.texts import unwrapped
from tinkersmith.grading.yes_no import yes_or_no

_END_OF_TEXT = 20_000  # characters at the end of a text in which its final answer is looked for
_LAST = 20  # markers to look at: a model in a loop announces its answer thousands of times
_LONGEST_CLAUSE = 1000  # characters


@dataclass(frozen=True, slots=True)
class FinalAnswer:
    """A final answer as it is written, without the marks around it, and the rule that found it."""

    text: str
    rule: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    place: int
    text: str
    rule: str
    complete: bool  # whether the text goes on after it, or its mark is closed
    weak: bool = False  # "the answer is obvious" announces nothing


def final_answer(text: str, *, cut: bool = False) -> FinalAnswer | None:
    """The final answer of a text by its last marker, else the text itself or its last line.

    Args:
        cut: whether the text ends at the token limit. Then only a marker whose answer is complete
            counts: "Answer: 12" may have become 120.

    Returns:
        None if there is no final answer.
    """
    text = own_words(text)
    if not text:
        return None
    announced = announced_answer(text, cut=cut)
    if announced is not None or cut:
        return announced
    rule = "last line" if "\n" in text else "whole text"
    last = text.rpartition("\n")[2]
    return FinalAnswer(unwrapped(last) or last.strip(), rule)


def normalise(text: str) -> str:
    """Unicode NFC, line ends as \\n, no white space at line ends, none around the text."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


# ---- thoughts and what a base model writes after its answer

_THOUGHTS = ("think", "thinking", "thought", "reasoning")
_CHANNEL = "<|channel|>final<|message|>"
_NEXT_QUESTION = re.compile(
    r"\n\s*(?:#+\s*|\*\*)?(?:(?:Question|Problem|Instruction|Human|User|Q)\s*\d*|问题|题目|用户)\s*\d*\s*[:：]"
)


def own_words(text: str) -> str:
    """The normalised text after its thoughts, without long gaps (a model in a loop writes them)."""
    text = without_thoughts(normalise(text))
    return re.sub(r"\s{9,}", lambda gap: "\n\n" if "\n" in gap[0] else " ", text)


def without_thoughts(text: str) -> str:
    """What follows the last thought; nothing if the text ends inside a thought."""
    if _CHANNEL in text:
        return text.rpartition(_CHANNEL)[2].strip()
    for name in _THOUGHTS if "<" in text else ():
        _, closed, after = text.rpartition(f"</{name}>")
        if closed:
            text = after
        if text.lstrip().startswith(f"<{name}>"):
            return ""
    return text.strip()


def _own_part(text: str) -> str:
    """The text up to a next question that the model asks itself after its answer."""
    for match in _NEXT_QUESTION.finditer(text):
        before = text[: match.start()].strip()
        if before and (_is_value(before) or _candidates(before)):
            return before
        break
    return text


# ---- markers

_COPULA = (
    r"(?:is|are|was|were|would\s+be|will\s+be|must\s+be|should\s+be|has\s+to\s+be|becomes)\b"
    r"(?:\s+(?:therefore|thus|then|simply|just|indeed|exactly|option|choice))*"
)
_MARKER = re.compile(
    r"(?P<key>[\"']?)\b(?:final\s+|correct\s+|right\s+)?answers?\b(?P=key)[\"'*_`]*"
    r"(?:\s*\([^()\n]{0,40}\))?"
    r"(?:\s+(?:to|of|for)\s[^.\n:：]{1,80}?)?"
    rf"\s*(?:(?P<colon>[:：=])|(?P<is>{_COPULA})[*_`]*\s*(?P<colon2>[:：])?)"
    rf"|\b(?:correct|best|right)\s+(?:option|choice|statement|alternative)s?\b[*_`]*\s*(?:(?P<colon3>[:：])|(?P<is2>{_COPULA})\s*[:：]?)"
    rf"|\bfinal\s+(?:result|value)\b[*_`]*\s*(?:(?P<colon4>[:：=])|(?P<is3>{_COPULA})\s*[:：]?)"
    r"|(?:答案|正确(?:的)?选项)[*_`\]】]*\s*(?:(?P<colon5>[:：=]|(?<=】))|(?P<is4>应该?(?:是|为|选)?|就?[是为选])\s*[:：]?)"
    r"|(?:所以|因此|最终|最后|故)的?(?:计算)?结果[是为]\s*[:：]?(?P<is5>)"
    r"|(?:^|(?<=\n))[ \t*_#]*(?P<short>Ans(?:wer)?[.:：]|答[:：])",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"(?:^|(?<=\n))[ \t]*[#*_]+[ \t]*(?:(?:the\s+)?(?:final\s+|correct\s+)?answer|最终答案|答案)"
    r"[ \t]*[*_#]*[ \t]*(?=\n)",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(answer|final_answer)>", re.IGNORECASE)
_BOXED = re.compile(r"\\(?:f?boxed|fbox)\s*\{")
_BOXED_WORD = re.compile(r"\\f?boxed\s+([^\s{}$\\]+)")
_BETWEEN_BOXES = re.compile(
    r"[\s$,;，、.]*(?:(?:and|or|和|或|与)(?![A-Za-z]))?[\s$]*(?:[a-zA-Z](?:_\{?\w\}?)?\s*[=:]\s*)?[\s$]*"
)
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S.*)$", re.MULTILINE)
_NOT_AN_ANSWER = re.compile(
    r"\W*(?:not\s+(?:yet\s+)?(?:obvious|clear|known|given|unique|simple|easy|needed|here|among|listed|in\b|on\b)"
    r"|(?:correct|right|wrong|incorrect|reasonable|valid|consistent|obvious|clear|unique|as\s+follows|given|found|shown|verified|confirmed|supported|based|in\s+the\s+form)\b"
    r"|正确|错误|合理|显然)",
    re.IGNORECASE,
)
_DENIED = re.compile(r"\W*(?:not\b|不是|不为|isn['’]t)\s*(.+)", re.IGNORECASE | re.DOTALL)


def announced_answer(text: str, *, cut: bool = False) -> FinalAnswer | None:
    """What the last marker of a text announces; None if there is no marker."""
    text = _own_part(text[-_END_OF_TEXT:])
    candidates = [item for item in _candidates(text) if item.complete or not cut]
    while candidates:
        last = candidates.pop()
        strong_before = any(not item.weak for item in candidates)
        if last.weak and strong_before and not _is_value(last.text):
            continue
        return FinalAnswer(last.text, last.rule)
    return None


def _candidates(text: str) -> list[_Candidate]:
    """What markers announce, in the order of their places."""
    candidates = [*_marked(text), *_tagged(text), *_boxed(text), *_after_hashes(text)]
    candidates += [
        _Candidate(
            begin, letters, "选" if "选" in text[begin:end] else "option", end < len(text), True
        )
        for begin, end, letters in announced_choices(text)[-_LAST:]
    ]
    return sorted(
        (item for item in candidates if item.text), key=lambda item: (item.place, not item.weak)
    )


def _marked(text: str) -> Iterator[_Candidate]:
    """What follows "Answer:", "the answer is", "答案是" and headings."""
    for match in [*_MARKER.finditer(text)][-_LAST:]:
        groups = match.groupdict()
        begin, end = match.span()
        if groups["key"] and groups["colon"]:
            if value := _json_value(text, end):
                yield _Candidate(begin, unwrapped(value[0]), "Answer:", value[1])
            continue
        is_type = any(groups[name] is not None for name in ("is", "is2", "is3", "is4", "is5"))
        has_colon = not is_type or bool(groups["colon2"])
        rule = "Answer:" if match[0].isascii() else "答案"
        if is_type:
            rule = "the answer is" if match[0].isascii() else "答案是"
        clause, complete = _clause(text, end)
        if is_type and (_NOT_AN_ANSWER.match(clause) or _denies_a_value(clause)):
            continue
        yield _Candidate(begin, clause, rule, complete, weak=is_type and not has_colon)
    for match in [*_HEADING.finditer(text)][-_LAST:]:
        clause, complete = _clause(text, match.end())
        yield _Candidate(match.start(), clause, "Answer:", complete)


def _denies_a_value(clause: str) -> bool:
    match = _DENIED.match(clause)
    return match is not None and _is_value(match[1])


def _json_value(text: str, place: int) -> tuple[str, bool] | None:
    """The value of "answer": … in a JSON object, and whether it is complete."""
    match = re.compile(r'\s*(?:"((?:[^"\\\n]|\\.){0,1000})"|([^",{}\n\[\]]{1,200}))').match(
        text, place
    )
    if match is None:
        return None
    return (match[1] if match[1] is not None else match[2]), match.end() < len(text)


def _tagged(text: str) -> Iterator[_Candidate]:
    """What stands between <answer> and </answer>, by the same rules."""
    for match in [*_TAG.finditer(text)][-_LAST:]:
        close = text.lower().find(f"</{match[1].lower()}>", match.end())
        inner = text[match.end() : close if close >= 0 else len(text)].strip()
        if _TAG.search(inner):
            continue
        inside = announced_answer(inner) if inner else None
        answer = inside.text if inside else unwrapped(inner)
        yield _Candidate(match.start(), answer, "<answer>", close >= 0)


def _boxed(text: str) -> Iterator[_Candidate]:
    """The content of each \\boxed{…} whose braces are balanced; "2 and 3" of two in one line."""
    openings = list(_BOXED.finditer(text))
    closing: dict[int, int] = {}  # after an opening brace -> its closing one
    opened: list[int] = []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL) if openings else ():
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    closed = [
        (opening.start(), opening.end(), closing[opening.end()])
        for opening in openings
        if opening.end() in closing
    ]
    closed = closed[-_LAST:]
    joined: tuple[int, str] | None = None  # end of the last box, and the contents of its line
    for begin, inside, end in closed:
        content = unwrapped(text[inside:end])
        if (
            joined
            and begin >= joined[0]
            and _BETWEEN_BOXES.fullmatch(text, joined[0], begin)
            and "\n" not in text[joined[0] : begin]
        ):
            content = f"{joined[1]}, {content}"
        joined = (end + 1, content)
        yield _Candidate(begin, content, "boxed", True)
    for match in [*_BOXED_WORD.finditer(text)][-_LAST:]:
        yield _Candidate(match.start(), unwrapped(match[1]), "boxed", match.end() < len(text))


def _after_hashes(text: str) -> Iterator[_Candidate]:
    """Answers like GSM8K's "#### 72". A Markdown heading counts if it is a value or comes last."""
    for match in [*_HASHES.finditer(text)][-_LAST:]:
        answer = unwrapped(match[1])
        last = match.end() == len(text)
        if re.match(r"(?:Step|Part|Case|步骤|第.{1,3}步)\b", answer, re.IGNORECASE):
            continue
        if last or _is_value(answer):
            yield _Candidate(match.start(), answer, "####", not last)


# ---- the first clause after a marker

_BLANK_LINE = re.compile(
    r"[ \t*_`:：\]】]*(?:\$\$|\\\[|```\w*)?[ \t]*\n\s*(?:(?:\$\$|\\\[|```\w*)[ \t]*\n\s*)?"
)
_SENTENCE_END = re.compile(
    r"[。！？；]|</|[;?](?=\s|$)|(?<![\dn)])!(?=\s|$)|!(?=\s+[A-Z])"
    r"|(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bSt)(?<!\bvs)(?<!\bMrs)(?<!\bNo)"
    r"(?<![ .(][A-Za-z])(?<!^[A-Za-z])\.(?=\s|$)"
)
_TEXT_ENDS = re.compile(
    r",?\s+(?:because|since)\b|,\s*(?:as|so|which|who|where|but|not|thus|therefore|hence|due|given)\b"
    r"|[，,]\s*(?:因为|所以|由于|不是|而不是|而非|即|也就是|故|因此|理由)|因为"
    r"|\s*[(（](?:since|because|as|i\.e\.|rounded|approximately|about|因为|约|即)"
    r"|\.\s+(?:Note|This|The|I|So|Therefore|Thus|Hence|It|We|However|Let|Please|In)\b",
    re.IGNORECASE,
)
_AFTER_VALUE = re.compile(
    r"[,，;；:：]\s*(?!(?:or|and|或|和|to)\b)(?=[A-Za-z]{2}|[\u4e00-\u9fff])|\s+[-–—]+\s+(?=[A-Za-z]{2})|\s+\((?=[A-Za-z]{2})"
    r"|\s+(?:as|so|for|when|if|after|in\s+total|in\s+all|altogether)\b|[，,]\s*(?=[\u4e00-\u9fff])|（|[.!]\s+(?=[A-Z])|\n"
    r"|,\s+or\s+(?=[\d.,]+\s*[A-Za-z]{2})"
)


def _clause(text: str, place: int) -> tuple[str, bool]:
    """The first clause at a place, or on the next line if none follows; whether it ends."""
    blank = _BLANK_LINE.match(text, place)
    begin = blank.end() if blank else place
    newline = text.find("\n", begin)
    end = newline if newline >= 0 else len(text)
    line = text[begin : min(end, begin + _LONGEST_CLAUSE)].lstrip("*_` \t:：")
    complete = newline >= 0
    for cut in (_SENTENCE_END, _TEXT_ENDS):
        match = cut.search(line)
        if match and line[: match.start()].strip(" *_`$"):
            # "3." at the very end may be the beginning of 3.14.
            ends_in_dot = match[0] == "." and match.end() == len(line)
            complete = complete or not (ends_in_dot and line[match.start() - 1].isdigit())
            line = line[: match.start()]
    for match in _AFTER_VALUE.finditer(line):
        value = line[: match.start()]
        if len(value) > 60:
            break
        if value.strip() and _is_value(value):
            complete, line = True, value
            break
    return _balanced(unwrapped(line)), complete


def _balanced(text: str) -> str:
    """The text without closing braces at its end that nothing opens: "\\textbf{Answer: 4}"."""
    bare = re.sub(r"\\[{}]", "", text)
    extra = bare.count("}") - bare.count("{")
    while extra > 0 and text.endswith("}"):
        text, extra = text[:-1], extra - 1
    return text.strip()


def _is_value(text: str) -> bool:
    """Whether a text is a quantity, a choice, yes or no, a date or a time, and nothing else."""
    bare = unwrapped(text)
    if not bare or len(bare) > 200:
        return False
    return (
        quantity_of(bare) is not None
        or choice_of(bare) is not None
        or yes_or_no(bare) is not None
        or date_of(bare) is not None
        or time_of(bare) is not None
    )
