"""Texts -> dates and times of day, as people write them in English and Chinese.

7/9/2024 is the 7th of September to some and the 9th of July to others: it equals only a date that
leaves the same open, unless both readings are one day. A time without am or pm is on the clock of
24 hours.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip
_MONTH = (
    r"(?P<name>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\b\.?"
)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?\b"
_YEAR = r"(?P<year>\d{4})(?!\d)"
_ERA = r"(?:\s*(?P<era>b\.?c\.?(?:e\.?)?|a\.?d\.?|c\.?e\.?)(?![a-z]))"
_WEEKDAY = r"(?:(?:on\s+)?(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+)?"
_DIGITS = "〇一二三四五六七八九"
_HAN = "零〇一二三四五六七八九十两"
_DATES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\d/.-]){_YEAR}(?P<mark>[-/.])(?P<month>\d{{1,2}})(?P=mark)(?P<day>\d{{1,2}})(?![\d/]|[.-]\d)",
        rf"(?<![\d/.-])(?P<first>\d{{1,2}})(?P<mark>[/.-])(?P<second>\d{{1,2}})(?P=mark){_YEAR}(?![\d/]|[.-]\d)",
        rf"\b{_MONTH}\s+(?:the\s+)?{_DAY}(?:\s*,?\s*(?:in\s+)?{_YEAR}{_ERA}?)?",
        rf"(?<![\d/.,-])(?:the\s+)?{_DAY}\s+(?:of\s+)?{_MONTH}(?:\s*,?\s*{_YEAR}{_ERA}?)?",
        rf"\b{_MONTH},?\s+(?:of\s+)?{_YEAR}",
        rf"\b{_YEAR},?\s+{_MONTH}\s+{_DAY}",
        r"(?:(?P<era>公元前|公元|西元前|西元)\s*)?(?P<year>\d{1,4})\s*年(?:\s*(?P<month>\d{1,2})\s*月(?:份|\s*(?P<day>\d{1,2})\s*[日号])?)?"
        r"(?:\s*[(（]?(?:星期|周)[一二三四五六日天][)）]?)?",
        r"(?<!\d)(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
        rf"(?<![\d/.-]){_YEAR}-(?P<month>\d{{2}})(?![\d/-])",
        rf"(?<![\d.,])(?P<year>\d{{1,4}}){_ERA}",
        r"\b(?P<era>ad)\s+(?P<year>\d{1,4})\b",
        r"(?<!\d)(?:the\s+)?(?P<decade>\d{3}0)['’]?s\b",
    )
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Date:
    """A date, or as much of it as a text says.

    Attributes:
        year: negative before Christ; None if the text names none.
        open: whether month and day may be the other way round (7/9/2024).
    """

    year: int | None = None
    month: int | None = None
    day: int | None = None
    open: bool = False
    decade: bool = False


@lru_cache(maxsize=4096)
def date_of(text: str) -> Date | None:
    """The date that a whole text is; None if it is anything else. A bare "1969" is a number."""
    if len(text) > 200:
        return None
    return _whole(_readable(text))


def _whole(text: str) -> Date | None:
    text = re.sub(rf"^{_WEEKDAY}", "", text, flags=re.IGNORECASE)
    for pattern in _DATES:
        if (match := pattern.fullmatch(text)) and (date := _date(match)):
            return date
    return None


def dates_in(text: str) -> list[tuple[int, str]]:
    """The (place, words) of each date in a text."""
    text = _readable(text)
    taken: list[tuple[int, int]] = []
    for pattern in _DATES:
        for match in pattern.finditer(text):
            free = all(match.end() <= begin or match.start() >= end for begin, end in taken)
            if free and _date(match):
                taken.append(match.span())
    return [(begin, text[begin:end]) for begin, end in sorted(taken)]


def year_of(text: str) -> int | None:
    """A bare year such as "1969"; None for anything else."""
    text = _readable(text)
    return int(text) if re.fullmatch(r"[12]\d{3}", text) else None


def only_year(sentence: str) -> str | None:
    """The year of the only date with month or day in a sentence; None if it names another year."""
    dates = [(words, date) for _, words in dates_in(sentence) if (date := _whole(words))]
    if len(dates) != 1 or dates[0][1].year is None or dates[0][1].month is None:
        return None
    rest = _readable(sentence).replace(dates[0][0], "")
    if not re.search(r"[A-Za-z]{2,}\W+(?:\w+\W+)*?[A-Za-z]{2,}|[\u4e00-\u9fff]{2}", rest[:200]):
        return None  # a date alone is more than its year
    if re.search(r"\d{3,}|\bnot\b|n['’]t\b|\bnever\b|\bbefore\b|\bafter\b|不|没|之前|之后", rest):
        return None
    return str(dates[0][1].year)


def date_in_digits(text: str) -> Date | None:
    """The date 20240709; None for anything else."""
    match = re.fullmatch(r"(?P<year>[12]\d{3})(?P<month>\d\d)(?P<day>\d\d)", _readable(text))
    return _date(match) if match else None


def same_date(expected: Date, given: Date) -> bool:
    """Whether both are the same date, said as exactly as each other."""
    return expected == given


def _date(match: re.Match[str]) -> Date | None:
    groups = match.groupdict()
    if groups.get("decade"):
        return Date(year=int(groups["decade"]), decade=True)
    year = int(groups["year"]) if groups.get("year") else None
    era = (groups.get("era") or "").casefold().replace(".", "")
    if year is not None and era in ("bc", "bce", "公元前", "西元前"):
        year = -year
    if groups.get("first"):
        first, second = int(groups["first"]), int(groups["second"])
        if second > 12 >= first:  # 12/25/2024
            first, second = second, first
        date = Date(year, second, first, open=first <= 12 and second <= 12 and first != second)
    else:
        name = (groups.get("name") or "").casefold()[:3]
        month = int(groups["month"]) if groups.get("month") else None
        if name:
            month = next(n for n, full in enumerate(_MONTHS, 1) if full.startswith(name))
        date = Date(year, month, int(groups["day"]) if groups.get("day") else None)
    possible = (date.month is None or 1 <= date.month <= 12) and (
        date.day is None or 1 <= date.day <= 31
    )
    return date if possible else None


# ---- times of day

_MINUTE = r"(?P<minute>[0-5]\d)"
_TIMES = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<![\d:.])(?P<hour>\d{{1,2}}):{_MINUTE}(?::(?P<second>[0-5]\d))?(?:\s*(?P<half>[ap])\.?\s?m\b\.?|\s*(?P<part>in\s+the\s+(?:morning|afternoon|evening)|at\s+night))?(?![\d:])",
        r"(?<![\d:.])(?P<hour>\d{1,2})\s*(?P<half>[ap])\.?\s?m\b\.?",
        r"(?P<part>凌晨|清晨|早上|早晨|上午|中午|下午|傍晚|晚上|夜里|夜晚)?\s*(?P<hour>\d{1,2})\s*[点时點時]\s*(?:(?P<minute>\d{1,2})\s*分?|(?P<half_past>半)|整|钟|(?P<quarter>[一三])刻)?",
        r"(?P<part>凌晨|清晨|早上|早晨|上午|中午|下午|傍晚|晚上|夜里|夜晚)\s*(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)",
        r"\b(?:12\s+)?(?P<word>noon|midnight)\b",
    )
]  # fmt: skip
_LATE = ("下午", "傍晚", "晚上", "夜里", "夜晚", "in the afternoon", "in the evening", "at night")


@lru_cache(maxsize=4096)
def time_of(text: str) -> int | None:
    """The time of day that a whole text is, in seconds after midnight; None for anything else."""
    if len(text) > 200:
        return None
    readable = _readable(text)
    for pattern in _TIMES:
        if match := pattern.fullmatch(readable):
            return _seconds(match)
    return None


def times_in(text: str) -> list[tuple[int, str]]:
    """The (place, words) of each time of day in a text."""
    text = _readable(text)
    taken: list[tuple[int, int]] = []
    for pattern in (_TIMES[3], *_TIMES[:3], _TIMES[4]):
        for match in pattern.finditer(text):
            free = all(match.end() <= begin or match.start() >= end for begin, end in taken)
            if free and _seconds(match) is not None:
                taken.append(match.span())
    return [(begin, text[begin:end].strip()) for begin, end in sorted(taken)]


def written_with_a_colon_only(text: str) -> bool:
    """Whether a text such as "2:15" may be a ratio as well as a time."""
    return re.fullmatch(r"\d{1,2}:\d{2}", _readable(text)) is not None


def _seconds(match: re.Match[str]) -> int | None:
    groups = match.groupdict()
    if groups.get("word"):
        return 12 * 3600 if groups["word"].casefold() == "noon" else 0
    hour = int(groups["hour"])
    minute = int(groups.get("minute") or 0)
    if groups.get("half_past"):
        minute = 30
    if groups.get("quarter"):
        minute = 15 if groups["quarter"] == "一" else 45
    half = (groups.get("half") or "").casefold()
    part = " ".join((groups.get("part") or "").casefold().split())
    if half or part in ("in the morning", *_LATE[4:]):
        if not 1 <= hour <= 12:
            return None
        hour = hour % 12
    if half == "p" or (part in _LATE and hour < 12) or (part == "中午" and hour < 3):
        hour += 12
    elif part in ("凌晨", "清晨", "早上", "早晨", "上午") and hour > 12:
        return None
    if hour > 24 or minute > 59 or (hour == 24 and minute):
        return None
    return hour % 24 * 3600 + minute * 60 + int(groups.get("second") or 0)


# ---- reading


def _readable(text: str) -> str:
    """The text with plain digits, without marks around it; 二〇二四年七月 is 2024年7月."""
    text = unicodedata.normalize("NFKC", re.sub(r"\\text\s*\{([^{}]*)\}|\$|\*\*|`", r"\1", text))
    text = re.sub(
        rf"[{_DIGITS}零]{{2,4}}(?=年)",
        lambda match: "".join(str(_DIGITS.index(d)) for d in match[0].replace("零", "〇")),
        text,
    )
    text = re.sub(rf"[{_HAN}]{{1,3}}(?=\s*[月日号点时分點時])", _small_number, text)
    text = re.sub(
        rf"\b(half|(?:a\s+)?quarter)\s+(past|to)\s+({'|'.join(_HOURS)})\b",
        _past_or_to,
        text,
        flags=re.IGNORECASE,
    )
    text = text.strip(" \t\n\"'“”‘’。,，;!！")
    return re.sub(r"(?<![a-z]\.[a-z])\.$", "", text, flags=re.IGNORECASE)


_HOURS = (
    "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve",
)  # fmt: skip


def _past_or_to(match: re.Match[str]) -> str:
    """ "half past five" as 5:30; "half to" is nothing that people say."""
    hour, half = _HOURS.index(match[3].casefold()) + 1, match[1].casefold() == "half"
    if match[2].casefold() == "past":
        return f"{hour}:{30 if half else 15}"
    return match[0] if half else f"{(hour - 2) % 12 + 1}:45"


def _small_number(match: re.Match[str]) -> str:
    """A Chinese numeral up to 99 in digits; other words stay as they are."""
    word = match[0].replace("两", "二").replace("零", "").replace("〇", "")
    tens, ten, ones = word.rpartition("十")
    if len(tens) > 1 or len(ones) > 1 or "十" in tens + ones:
        return match[0]
    value = _DIGITS.find(ones) if ones else 0
    if ten:
        value += 10 * (_DIGITS.find(tens) if tens else 1)
    return str(value)
