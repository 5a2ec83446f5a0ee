"""Texts -> the options of a multiple-choice question that they choose ("(B) 42", "故选B", "A, C").

Options have the letters A to J. A text that leaves two options open ("B or C") chooses none.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from tinkersmith.grading.plain_text import plain

_LONGEST = 300  # characters at the beginning of a text: the letter, and what stands beside it
_LETTER = r"[A-J](?![A-Za-z0-9'’])"
_BRACKETED = rf"(?:\([A-J]\)|\[[A-J]\]|{_LETTER})"
_JOINT = r"\s*(?:,\s*(?:and\b)?|、|;|&|\band\b|和|与|及|以及)\s*"
LETTERS = rf"(?:{_BRACKETED}(?:{_JOINT}{_BRACKETED}){{0,9}}|[A-J]{{2,}}(?![A-Za-z0-9]))"

_LEAD = re.compile(
    r"(?:(?:the\s+)?(?:correct\s+|best\s+|right\s+)?(?:options?|choices?|answers?|letters?)"
    r"(?:\s+(?:is|are)|\s*:)?\s*|both\s+|选择?项?\s*[:是为]?\s*)(?=[(\[]?[A-J])",
    re.IGNORECASE,
)
_ONLY = re.compile(
    rf"({LETTERS})\s*(?:两|二|三|四)?(?:选?项|个选项)?"
    r"\s*(?:(?:is|are|was)\s+(?:the\s+)?(?:correct|right|best|true)(?:\s+(?:answers?|options?|choices?))?"
    r"|options?|(?:说法|是|都是?|均)?(?:正确|对|符合题意)的?)?\s*[.。:,;!)]*"
)
_WITH_TEXT = re.compile(
    r"(?:\(([A-J])\)|\[([A-J])\]|([A-J])(?=[.:)、。]|\s[-–—]\s))\s*[.:)、。]?\s*(?:[-–—]\s)?\s*(.+)",
    re.DOTALL,
)
_WITH_REASON = re.compile(
    rf"({LETTERS})\s*(?:选?项)?(?:[,;。]\s*(?!\s*(?:or|and)\b|或|\(?[A-J]\b)|[.!]\s+(?=[A-Z])|\n"
    r"|\s+(?=(?:because|since|as|for|by|due)\b)|(?=因为|由于|，))\s*\S",
)
_OTHER_OPTION = re.compile(r"(?<![A-Za-z0-9])\(?[A-J][.:)、]\s*\S")
_OPEN = re.compile(r"^\W*(?:or\b|or$|/|或|还是)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ChosenOptions:
    """Letters that a text chooses, and what stands beside a single letter: "(B) 42" has "42"."""

    letters: frozenset[str]
    text: str = ""


@lru_cache(maxsize=4096)
def choice_of(text: str) -> ChosenOptions | None:
    """The choice that a whole text is; None if it is anything else or leaves options open."""
    bare = _bare(text[:_LONGEST])
    if re.fullmatch(r"\(?[a-d]\)?[.)]?", bare):  # a lower-case letter only where nothing else is
        bare = bare.upper()
    if lead := _LEAD.match(bare):
        bare = bare[lead.end() :]
        bare = bare.upper() if re.fullmatch(r"\(?[a-d]\)?\.?", bare) else bare
    if match := _ONLY.fullmatch(bare):
        letters = _letters(match[1])
        return ChosenOptions(letters) if letters else None
    if match := _WITH_TEXT.fullmatch(bare):
        letter, rest = match[1] or match[2] or match[3], match[4].strip()
        if (
            _OPEN.match(rest)
            or _OTHER_OPTION.search(rest)
            or re.match(
                r"[^.。]{0,20}(?:is|are) (?:not|wrong|incorrect)|(?:错误|不正确|不对)", rest
            )
        ):
            return None
        return ChosenOptions(frozenset(letter), rest)
    if match := _WITH_REASON.match(bare):
        letters = _letters(match[1])
        return ChosenOptions(letters) if letters else None
    return None


def _letters(text: str) -> frozenset[str] | None:
    """The letters of "A, C" or "AC"; None for a word: the letters of "AC" stand in order."""
    letters = re.findall(r"[A-J]", text)
    together = re.fullmatch(r"[A-J]{2,}", text)
    if len(set(letters)) < len(letters) or (together and letters != sorted(letters)):
        return None
    return frozenset(letters)


def same_choice(expected: ChosenOptions, given: ChosenOptions) -> bool:
    """Whether both choose the same options; texts beside the letter are not compared."""
    return expected.letters == given.letters


# ---- choices that a longer text announces

_WRONG = r"(?!\s*(?:选?项)?\s*(?:的?说法|是|均|都)?\s*(?:错|不正确|不对|不符|有误|不成立|排除))"
_ANNOUNCED = re.compile(
    rf"(?:(?<=，)|(?<=, ))而是\s*({LETTERS})(?=[。.，,]|$)"
    rf"|(?<![不别勿可排没未])选(?:择|项为|项是|的是)?\s*[:：是为]?\s*({LETTERS}){_WRONG}"
    rf"|(?:选项|答案)\s*({LETTERS})\s*(?:的?说法)?是?(?:正确|对的|符合)"
    rf"|(?:^|(?<=[,，。；;\s]))({LETTERS})\s*(?:选?项)?(?:的?说法)?(?:是)?正确(?=[,，。的；;\s]|$)"
    rf"|\b(?:option|choice|answer|alternative|statement)s?\s+({LETTERS})\s+(?:is|are)\s+(?:the\s+)?(?:correct|right|best|true)\b"
    rf"|(?<![A-Za-z])({LETTERS})\s+(?:is|are|would\s+be|must\s+be)\s+(?:the\s+)?(?:correct|right|best|answer)\b"
    r"(?:\s+(?:answer|option|choice)s?\b)?"
    rf"|\b(?:I|we)(?:['’]d|['’]ll|\s+would|\s+will|\s+should)?\s+(?:choose|pick|select|go\s+with|say)\s+"
    rf"(?:(?:the\s+)?(?:option|choice|answer)s?\s+)?({LETTERS})"
    r"|(?:^|[.!?]\s)(?:Hence|Thus|So|Therefore|所以|因此|故)[,，]?\s*(\([A-J]\))(?=\s*[.。]?\s*$)"
    r"|[.!?;,]\s(?:[Hh]ence|[Tt]hus|[Ss]o|[Tt]herefore),? ([A-HJ])(?=\.?$)"
    rf"|\b(?:[Gg]oing\s+with|(?:[Ii]t|[Tt]hat)(?:['’]s|\s+is|\s+must\s+be|\s+should\s+be)|^[Mm]ust\s+be|^[Dd]efinitely)\s+(?:option\s+)?({LETTERS})(?=[.,!。]|\s*$)"
    rf"|(?:正确|符合题意|成立)的(?:选项)?[是为]\s*[:：]?\s*({LETTERS})",
    re.MULTILINE,
)  # fmt: skip
_AFTER_OPEN = re.compile(r"\s*(?:or\s+(?:option\s+)?\(?[A-J]\b|或|/\s*[A-J]\b)")
_BEFORE_OPEN = re.compile(
    r"(?:\b(?:not|nor|neither|or|either|if|whether|of)|n['’]t|不|或)\s*$", re.IGNORECASE
)


def announced_choices(text: str) -> list[tuple[int, int, str]]:
    """The (begin, end, letters) of each place where a text announces a choice."""
    if not re.search(
        r"选|正确|答案|而是|(?:is|are)\s|choose|pick|select|go|say|would|must|Hence|Thus|So|Therefore|所以|因此|故|[Ii]t['’]s|[Mm]ust|[Dd]efinitely",
        text,
    ):
        return []
    announced: list[tuple[int, int, str]] = []
    for match in _ANNOUNCED.finditer(text):
        letters = next(group for group in match.groups() if group)
        if _AFTER_OPEN.match(text, match.end()) or _BEFORE_OPEN.search(
            text, max(0, match.start() - 12), match.start()
        ):
            continue
        announced.append((match.start(), match.end(), letters))
    return announced


def _bare(text: str) -> str:
    """The text without LaTeX, emphasis, full-width letters and code fences."""
    text = re.sub(r"^\s*```\w*\n|\n```\s*$", "", text)
    lines = [plain(line) for line in unicodedata.normalize("NFKC", text).splitlines()]
    return "\n".join(line for line in lines if line).strip(" \"'“”‘’「」")
