r"""(expected text, produced text) -> a score from 0 to 1, by comparing texts and final answers.

The final answer of a text is what its last marker announces ("Answer: …", "答案：…", "The answer
is …", \boxed{…}, "#### …"); without a marker it is the last number, else the last line.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

Metric = Callable[[str, str], float]


def exact_match(expected: str, produced: str) -> float:
    """1 if both texts are equal after `normalise`, else 0."""
    return float(normalise(expected) == normalise(produced))


def final_answer_match(expected: str, produced: str) -> float:
    """1 if the final answers of both texts are the same (see `same_answer`), else 0."""
    return answer_match(final_answer(expected), produced)


def contains_answer(expected: str, produced: str) -> float:
    """1 if the produced text contains the expected final answer anywhere, else 0."""
    return answer_contained(final_answer(expected), produced)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "final_answer": final_answer_match,
    "contains_answer": contains_answer,
}


def score(expected: str, produced: str, answer: str | None = None) -> dict[str, float]:
    """The value of each metric.

    Args:
        answer: the expected final answer, if the sample names it; else it is taken from `expected`.
    """
    if answer is None:
        return {name: metric(expected, produced) for name, metric in METRICS.items()}
    return {
        "exact_match": exact_match(expected, produced),
        "final_answer": answer_match(answer, produced),
        "contains_answer": answer_contained(answer, produced),
    }


def answer_match(answer: str | None, produced: str) -> float:
    """1 if the final answer of `produced` is `answer`, else 0."""
    given = final_answer(produced)
    return float(answer is not None and given is not None and same_answer(answer, given))


def answer_contained(answer: str | None, produced: str) -> float:
    """1 if `produced` contains `answer` as a whole number (by value) or as whole words, else 0."""
    if answer is None:
        return 0.0
    wanted = _quantity(answer)
    text = _plain(produced)
    if wanted is not None:
        numbers = (_number(match) for match in _NUMBER.finditer(text))
        return float(any(number in wanted.values for number in numbers))
    words = _plain(answer)
    if len(words) > 1:  # "A" as an answer is not the "a" of "a train"
        words, text = words.casefold(), text.casefold()
    edges = [r"(?<![a-zA-Z0-9])" if words[:1].isascii() and words[:1].isalnum() else ""]
    edges += [r"(?![a-zA-Z0-9])" if words[-1:].isascii() and words[-1:].isalnum() else ""]
    return float(bool(words) and bool(re.search(edges[0] + re.escape(words) + edges[1], text)))


def normalise(text: str) -> str:
    """Unicode NFC, line ends as \\n, no white space at line ends, none around the text."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


# ---- finding the final answer

_MARKER = re.compile(
    r"(?:\bfinal\s+)?\banswer\b[*_`]*\s*(?:[:：=]|\bis\b[ \t]*[:：]?)"
    r"|(?:最终|最后)?的?答案[*_`]*\s*(?:[:：=]|应?[是为][:：]?)"
    r"|(?:^|(?<=\n))[ \t]*(?:Ans(?:wer)?[.:：]|答[:：])",
    re.IGNORECASE,
)
_LAST = 20  # markers to look at: a model in a loop announces its answer thousands of times
_BLANK_FIRST_LINE = re.compile(r"[ \t*_`]*(?:\$\$|\\\[)?[ \t]*\n\s*")
_BOXED = re.compile(r"\\f?boxed\s*\{")
_HASHES = re.compile(r"^[ \t]*####(?!#)[ \t]*(\S.*)$", re.MULTILINE)


def final_answer(text: str) -> str | None:
    """The final answer as it is written, without emphasis, math marks and full stop around it.

    None if the text is blank.
    """
    text = normalise(text)
    if not text:
        return None
    candidates = [*_announced(text), *_boxed(text), *_after_hashes(text)]
    for _, answer in sorted(candidates, reverse=True):
        if stripped := _stripped(answer):
            return stripped
    plain = _plain(text)
    numbers = list(_NUMBER.finditer(plain))
    if numbers:
        return numbers[-1].group().strip()
    return _stripped(text.rpartition("\n")[2]) or text.rpartition("\n")[2]


def _announced(text: str) -> list[tuple[int, str]]:
    """The (place, rest of the line) after each "Answer:"; the next line if the rest is blank."""
    announced: list[tuple[int, str]] = []
    for marker in list(_MARKER.finditer(text))[-_LAST:]:
        begin = _BLANK_FIRST_LINE.match(text, marker.end())
        line = text[begin.end() if begin else marker.end() :].partition("\n")[0]
        announced.append((marker.start(), _first_sentence(line.lstrip("*_` \t"))))
    return announced


def _boxed(text: str) -> list[tuple[int, str]]:
    """The (place, content) of each \\boxed{…} whose braces are balanced."""
    openings = list(_BOXED.finditer(text))
    if not openings:
        return []
    closing: dict[int, int] = {}  # after an opening brace -> its closing one
    opened: list[int] = []
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if brace.group() == "{":
            opened.append(brace.end())
        elif brace.group() == "}" and opened:
            closing[opened.pop()] = brace.start()
    return [
        (opening.start(), text[opening.end() : closing[opening.end()]])
        for opening in openings
        if opening.end() in closing
    ]


def _after_hashes(text: str) -> list[tuple[int, str]]:
    """Answers like GSM8K's "#### 72". A Markdown heading counts if it is a number or comes last."""
    return [
        (match.start(), match[1])
        for match in _HASHES.finditer(text)
        if match.end() == len(text) or _quantity(match[1]) is not None
    ]


def _first_sentence(line: str) -> str:
    """The line up to its first full stop if that leaves a number ("42. I hope this helps!")."""
    chinese = line.partition("。")[0]
    for end in re.finditer(r"[.;!](?=\s)|,(?=\s*[a-zA-Z])|\s(?:because|since|as)\b", chinese):
        if _quantity(chinese[: end.start()]) is not None:
            return chinese[: end.start()]
    return chinese


# ---- comparing answers


def same_answer(expected: str, given: str) -> bool:
    """Whether two answers are equal: as quantities, or as texts without marks, spaces and case.

    Numbers compare by value (1,234 = 1234, 3.0 = 3, 1/2 = 0.5, 50% = 0.5). A unit that only one of
    the two has does not matter (5 km = 5, 50% = 50), nor does "x =" in front.
    """
    first, second = _quantity(expected), _quantity(given)
    if first is not None and second is not None:
        return first.equals(second)
    plain, plain_given = _compact(expected), _compact(given)
    if plain == plain_given:
        return bool(plain)
    if ("=" in plain) == ("=" in plain_given):
        return False
    bare, bare_given = _without_name(expected), _without_name(given)
    if (bare, bare_given) == (expected, given):
        return False
    return same_answer(bare, bare_given)


@dataclass(frozen=True, slots=True)
class _Quantity:
    value: Fraction
    unit: str

    @property
    def values(self) -> set[Fraction]:
        """The values that the text may mean: 50 % is 0.5, and often written as 50."""
        return {self.value, self.value / 100} if self.unit == "%" else {self.value}

    def equals(self, other: "_Quantity") -> bool:
        if "%" in (self.unit, other.unit) and self.unit != other.unit:
            return not (self.unit and other.unit) and bool(self.values & other.values)
        same_unit = not self.unit or not other.unit or self.unit == other.unit
        return self.value == other.value and same_unit


# A sign belongs to the number only where no number or name stands before it: 10-5 is 10 and 5.
_NUMBER = re.compile(
    r"(?<![a-zA-Z0-9_.])(?!(?<=\d,)\d{3}(?!\d))"
    r"(?:(?<![\d)\]}a-zA-Z%])[-+] ?)?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:(?<=\d)\.\d+|(?<!\d)\.\d+)?(?<=\d)(?!\d)(?!\.\d)"
    r"(?:[eE][-+]?\d+(?![\da-zA-Z]))?"
    r"(?: ?/ ?\d+(?![\d/]|\.\d)| \d+/\d+(?![\d/]))?"
    r"(?: ?%)?"
)
_POWER = re.compile(r"^(.*?) ?[*x×] ?10\^?\(?([-+]?\d+)\)?$")
_NO_UNITS = {"pi", "i", "e", "x", "y", "z", "n", "k", "or", "and", "sqrt", "to", "或", "和", "到"}
_UNIT_WORD = re.compile(r"(?:[^\W\d_]|[°/·²³])+(?:\^-?\d)?\.?")
_LEAD = re.compile(r"([-+]? ?)(€|£|¥|￥|rmb|usd?|约|大约|共|about|approximately|≈) ?", re.I)
_CURRENCIES = {"€": "euro", "£": "pound", "¥": "元", "￥": "元", "rmb": "元", "us": "", "usd": ""}


def _quantity(text: str) -> _Quantity | None:
    """The text as one number with or without a unit; None if it is anything else."""
    plain = _plain(text).rstrip(" .")
    if re.match(r"[-+]?\d{1,3}(?: \d{3})+(?![\d/])", plain):
        plain = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", plain)  # thousands: 10 000
    sign = 1
    lead = _LEAD.match(plain)
    unit = ""
    if lead:
        sign = -1 if "-" in lead[1] else 1
        unit = _CURRENCIES.get(lead[2].lower(), "")
        plain = plain[lead.end() :]
    power = _POWER.match(plain)
    number = _NUMBER.match(power[1] if power else plain)
    if number is None or (power and number.end() != len(power[1])):
        return None
    value = _number(number)
    if value is None:
        return None
    if power:
        return _Quantity(sign * value * _ten_to(int(power[2])), unit) if len(power[2]) < 5 else None
    if number.group().endswith("%"):
        return _Quantity(sign * value * 100, "%") if number.end() == len(plain) else None
    rest = plain[number.end() :]
    unit_after = _unit(rest)
    if unit_after is None:
        return None
    return _Quantity(sign * value, unit_after or unit)


def _unit(rest: str) -> str | None:
    """The unit after a number: "" if there is none, None if `rest` cannot be one."""
    words = rest.split()
    if not words:
        return ""
    if len(words) > 4 or not all(_UNIT_WORD.fullmatch(word) for word in words):
        return None
    words = [word.rstrip(".").casefold() for word in words]
    if _NO_UNITS & set(words):
        return None
    # "4x" is algebra, "4 m" and "4km" are lengths
    if not rest[0].isspace() and len(words[0]) == 1 and words[0].isascii():
        return None
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words)


def _number(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `_NUMBER`; percent as hundredths."""
    text = match.group().replace(",", "").replace("- ", "-").replace("+ ", "+")
    percent = text.endswith("%")
    text = text.rstrip("% ")
    text = re.sub(r" ?/ ?", "/", text)
    whole, space, fraction = text.partition(" ")
    try:
        value = _fraction(whole)
        if space:
            value += _fraction(fraction) * (-1 if whole.startswith("-") else 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if percent else value


def _fraction(text: str) -> Fraction:
    above, slash, below = text.partition("/")
    mantissa, _, exponent = above.lower().partition("e")
    if len(exponent) > 5 or len(text) > 1000:
        raise ValueError("too large to be meant as a number")
    value = Fraction(mantissa) * _ten_to(int(exponent or 0))
    return value / Fraction(below) if slash else value


def _ten_to(exponent: int) -> Fraction:
    return Fraction(10) ** exponent


def _without_name(text: str) -> str:
    """The text without a variable's name in front: "x = 4" is "4"."""
    match = re.fullmatch(r"\s*[$(\[\\ ]*[a-zA-Zα-ω](?:_?\{?\w\}?)?\s*=(.*)", text, re.DOTALL)
    return match[1] if match and "=" not in match[1] else text


def _compact(text: str) -> str:
    """The plain text without case, and without spaces where they mean nothing."""
    plain = _plain(text).casefold().strip(" .")
    plain = re.sub(r" ?([^\w\s]) ?", r"\1", plain)
    if re.fullmatch(r"\([a-z]\)", plain):  # a choice: (B) is B
        plain = plain[1]
    return plain


_QUOTES = "\"'“”‘’「」『』"


def _stripped(text: str) -> str:
    """The text without emphasis, math marks, quotes and closing punctuation around it."""
    before = None
    text = text.strip()
    while text != before:
        before = text
        text = text.strip("*_` \t" + _QUOTES).rstrip(".。,，;；!！、:：")
        text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text)
        if text.startswith("$") and text.endswith("$"):
            text = text.strip("$")
        text = text.strip()
        if text.endswith("$") and text.count("$") % 2:
            text = text.removesuffix("$")
    return text


_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {
    0x3000: " ",
    **dict.fromkeys(map(ord, "\u2212\u2010\u2011\u2013\ufe63"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2009\u200a\u202f"), " "),
    **dict.fromkeys(map(ord, "\u200b\u200c\u200d\ufeff"), None),
    ord("√"): "sqrt",
    ord("×"): "*",
    ord("·"): "*",
    ord("∞"): "inf",
    ord("≤"): "<=",
    ord("≥"): ">=",
    ord("π"): "pi",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_LATEX = [
    (re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|operatorname|mbox|rm)\s*\{([^{}]*)\}"),
     r" \1"),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\[dtc]?frac\s*(\d)\s*(\d)"), r" (\1)/(\2)"),
    (re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*(\w)"), r" (\1)/(\2)"),
    (re.compile(r"\\[dtc]?frac\s*(\w)\s*\{([^{}]*)\}"), r" (\1)/(\2)"),
    (re.compile(r"\\sqrt\s*\{([^{}]*)\}"), r"sqrt(\1)"),
    (re.compile(r"\\sqrt\s*(\w)"), r"sqrt(\1)"),
    (re.compile(r"\^\s*\{([^{}]*)\}"), r"^(\1)"),
    (re.compile(r"_\s*\{([^{}]*)\}"), r"_(\1)"),
]  # fmt: skip
_NESTING = 10
_LATEX_WORDS = [
    (re.compile(r"\\f?boxed(?![a-zA-Z])"), " "),
    (re.compile(r"\\(?:left|right|displaystyle|bigl?|Bigl?|bigr|Bigr)(?![a-zA-Z])"), ""),
    (re.compile(r"\\[,;:! ]|\\quad|\\qquad|~"), " "),
    (re.compile(r"\\(?:cdot|times)(?![a-zA-Z])"), "*"),
    (re.compile(r"\\div(?![a-zA-Z])"), "/"),
    (re.compile(r"\^\(?\s*\\circ(?![a-zA-Z])\s*\)?|\\degree|\^°"), "°"),
    (re.compile(r"\\(?:leq?|leqslant)(?![a-zA-Z])"), "<="),
    (re.compile(r"\\(?:geq?|geqslant)(?![a-zA-Z])"), ">="),
    (re.compile(r"\\infty(?![a-zA-Z])"), "inf"),
    (re.compile(r"\\[()\[\]]"), " "),
    (re.compile(r"\\([%$#&_{}])"), r"\1"),
    (re.compile(r"\\([a-zA-Z]+)"), r"\1"),
]


def _plain(text: str) -> str:
    r"""The text without full-width forms, LaTeX and Markdown: "$\frac{1}{2}$" is "1/2"."""
    text = _spelled_out(unicodedata.normalize("NFC", text)).translate(_FULL_WIDTH)
    # Thousands: 12{,}345 and 12\,345. Their comma must be gone before \, becomes a space.
    text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!:;])(?=\d{3}(?!\d))", "", text)
    for _ in range(_NESTING if "\\" in text or "{" in text else 0):  # from the innermost group
        before = text
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
        if text == before:
            break
    for pattern, replacement in _LATEX_WORDS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\*\*|__|`|\$", "", text)
    text = re.sub(r"[{}]", "", text)
    text = re.sub(r"\((-?[\w.]+)\)/\(([\w.]+)\)", r"\1/\2", text)
    text = re.sub(r"sqrt ?\((\w+)\)", r"sqrt\1", text)
    text = re.sub(r"(?<=\^)\((-?\w+)\)", r"\1", text)
    return re.sub(r"\s+", " ", text).strip()


def _spelled_out(text: str) -> str:
    """The text with plain fractions and superscripts: 1½ is "1 1/2", m² is "m^2"."""
    if text.isascii():
        return text
    text = re.sub(r"[⁰¹²³⁴-⁹⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    pieces: list[str] = []
    for letter in text:
        kind, _, parts = unicodedata.decomposition(letter).partition(" ")
        if kind == "<fraction>" and parts.endswith(tuple("0123456789")):
            pieces.append(" " + "".join(chr(int(code, 16)) for code in parts.split()))
        else:
            pieces.append(letter)
    return "".join(pieces).replace("\u2044", "/")
