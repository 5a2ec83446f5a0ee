r"""A text -> one number with or without a unit: "5 km", "¥12", "1.2万", "\frac{3}{4} kg", "50 %".

Rules for equal quantities:

- Units of one measure are converted: 2 m = 200 cm. Currencies are not: $5 is not 5 元.
- A unit that only one of the two has does not matter: 5 km = 5.
- 50 % is 0.5. Because a question may ask for the percentage, the sign may also be left out: 50 % is
  50. That holds only where both show the same decimal number, larger than 1: 0.5 % is neither 0.5
  nor 1/2.
- Nothing is rounded: 0.33 is not 1/3.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from tinkersmith.grading.formulas.expressions import Node, Unreadable, number_node, parse_expression
from tinkersmith.grading.formulas.expressions import variables as variables_of
from tinkersmith.grading.formulas.numbers import LARGEST_EXPONENT, literal
from tinkersmith.grading.formulas.numerals import (
    SCALES,
    leading_chinese_number,
    leading_english_number,
)
from tinkersmith.grading.formulas.units import Unit, read_unit
from tinkersmith.grading.formulas.values import (
    Undecided,
    Undefined,
    equal_expressions,
    exact,
    limited_work,
)
from tinkersmith.grading.plain_text import formula


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and its unit.

    Attributes:
        number: the number as a tree: 3/4, 2π.
        value: the number if it is rational, else None.
        units: the meanings of a known unit; empty if there is none.
        noun: what is counted, if it is no known unit: "apple".
        in_words: the number is written in English words.
        is_name: the noun has a capital letter, so that the whole may be a name: "7 Up".
        in_digits: the number is written as one decimal number: 12.5, and not 25/2 or twelve.
    """

    number: Node
    value: Fraction | None
    units: tuple[Unit, ...] = ()
    noun: str = ""
    in_words: bool = False
    is_name: bool = False
    in_digits: bool = False

    @property
    def is_bare(self) -> bool:
        return not self.units and not self.noun

    @property
    def is_percentage(self) -> bool:
        return any(unit.base == (("percent", 1),) for unit in self.units)

    @property
    def values(self) -> set[Fraction]:
        """The values that the text may mean: 50 % is 0.5, and often written as 50."""
        if self.value is None:
            return set()
        return {self.value, self.value / 100} if self.is_percentage else {self.value}


_HEAD = re.compile(
    r"([-+] ?)?(\d{1,3}(?: \d{3})+(?![\d/])|\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(\.\d+|\.(?=\s|$))?"
    r"(?:[eE]([-+]?\d+)(?![\da-zA-Z]))?"
)
_OVER = re.compile(r"(?: ?/ ?| out of )(\d+)(?![\d.,/])")
_MIXED = re.compile(r"(?: | ?and ?| ?又 ?)(\d+) ?/ ?(\d+)(?![\d.,/])")
_TEN_TO = re.compile(r" ?[*x] ?10 ?(?:\^|\*\*) ?[({]? ?([-+]? ?\d+) ?[)}]?(?!\d)")
_LONGEST = 300  # characters of a quantity; a longer one is digits only
_LONGEST_COMPOUND = 60  # characters of "hour 30 minutes 5 seconds"
_LEAD = re.compile(
    r"(?:(?:positive(?= \d)|about|approximately|approx\.?|around|roughly|nearly|some|a total of"
    r"|total of|exactly"
    r"|only|约为|大约|约|共计|共有|一共|总共|共|合计|将近|≈|=|~|时速|(?:每小时|每分钟|每秒)[行走跑]?驶?)\s*)+",
    re.IGNORECASE,
)
_REPEATING = re.compile(r"(\d*\.)(\d)(?:\2*…?)\s*\(?(?:repeating|recurring)\)?")  # 0.3 repeating
_HALF = re.compile(r"(?:(.{1,8})个)?半个?(.{0,6})")  # 半小时, 两个半小时
_JIAO = re.compile(r"(\d{1,6})[块元](\d)")  # 3块5 is 3.5元
_MINUS = re.compile(r"零下(?=\S)|(?:负|minus |negative )(?=[\d.])", re.IGNORECASE)
_PER = {"时速": "/小时", "每小时": "/小时", "每分钟": "/分钟", "每秒": "/秒"}
_CURRENCY = re.compile(
    r"([-+] ?)?(US ?\$|USD|RMB|CNY|人民币|HK\$|[$€£¥₹₩]|EUR|GBP|Rs\.?)\s?(?=[-+.\d])", re.IGNORECASE
)
_TAIL = re.compile(r"(.*[\d})\]π!…])\s*(°?[a-zA-Z%‰$€£¥ΩμΩ°\u4e00-\u9fff][^\d]*(?:[23]|\^.*)?)")
_NUMBER_AGAIN = re.compile(r"\s*([^\d.]+?)\s*(?:and|又|,)?\s*(?=\d)(.*)")
# Words that make a number before them something else than a count.
_NO_UNITS = {
    "pi", "i", "e", "x", "y", "z", "n", "k", "or", "and", "sqrt", "to", "squared", "cubed",
    "factorial", "repeating", "recurring", "half", "halves", "third", "thirds", "quarter",
    "quarters", "fifth", "fifths",
    "minus", "plus", "times", "negative", "below", "under", "above", "over", "less", "more",
    "than", "not", "no", "is", "are", "was", "modulo", "mod", "divided", "multiplied", "equals",
    "infinity", "inf", "root", "if", "when", "for", "with", "by", "but", "point", "as", "either",
    "between", "th", "st", "nd", "rd",
}  # fmt: skip
_ENDINGS = {
    "each", "left", "total", "in", "altogether", "away", "remaining", "long", "tall", "wide",
    "high", "deep", "old", "of", "together", "now", "all", "later", "ago", "apart", "only",
    "thick",
}  # fmt: skip
# Behind a unit of one letter: 5米长 is a length, but 3年级 is no 3 years and 三分球 no 3 minutes.
_AFTER_UNIT = re.compile("钱|后|前|长|高|重|宽|深|远|厚|以上|以下|左右|的|整|多")
_WORD = re.compile(r"[a-zA-Z][a-zA-Z'’-]*\.?")
_CHINESE_NOUN = re.compile(r"[\u4e00-\u9fff]{1,12}")
_CLASSIFIERS = (
    "个只条件张本支辆人名位头匹朵棵颗粒块双对套台架艘座栋间所家门节次回遍种类级层页篇首"
    "袋瓶箱盒杯碗盘把根枝株群组排行列串包筐斤束幅枚"
)
_CLASSIFIER = re.compile(f"[{_CLASSIFIERS}]")


def quantity_of(text: str) -> Quantity | None:
    """The text as one number with or without a unit; None if it is anything else."""
    if len(text) > _LONGEST:
        return _long_number(text)
    with limited_work():
        return read_quantity(formula(text))


def _long_number(text: str) -> Quantity | None:
    value = literal(text.strip())
    return None if value is None else Quantity(number_node(value), value)


def read_quantity(text: str, *, tight: bool = False) -> Quantity | None:
    """Like `quantity_of`, for a text that `plain_text.formula` has written.

    Args:
        tight: a letter right behind a number may be a unit: "5m" is 5 m, and not 5 times m.
    """
    per = ""
    if lead := _LEAD.match(text):
        per = next((unit for word, unit in _PER.items() if word in lead[0]), "")
        text = text[lead.end() :]
    if repeating := _REPEATING.fullmatch(text):
        return read_quantity(f"{repeating[1]}\\overline{{{repeating[2]}}}")
    if half := _HALF.fullmatch(text):
        return _and_a_half(half[1], half[2])
    if jiao := _JIAO.fullmatch(text):
        return read_quantity(f"{jiao[1]}.{jiao[2]}元")
    if minus := _MINUS.match(text):
        below = read_quantity(text[minus.end() :])
        return None if below is None else _negative(below)
    if currency := _CURRENCY.match(text):
        after = read_quantity(text[currency.end() :])
        return _with_currency(after, currency[2], currency[1] or "", text[currency.end() :])
    return (
        _with_digits(text, per, tight=tight) or _in_words(text, per) or _expression_with_unit(text)
    )


def _negative(quantity: Quantity) -> Quantity:
    value = None if quantity.value is None else -quantity.value
    return replace(quantity, number=Node("negative", (quantity.number,)), value=value)


def _and_a_half(whole: str | None, unit_text: str) -> Quantity | None:
    before = read_quantity(whole) if whole else None
    units = read_unit(unit_text)
    if (whole and (before is None or before.value is None or not before.is_bare)) or (
        unit_text and not units
    ):
        return None
    value = Fraction(1, 2) + (before.value if before and before.value is not None else 0)
    return Quantity(number_node(value), value, tuple(units))


def _with_currency(after: Quantity | None, sign: str, minus: str, rest: str) -> Quantity | None:
    if after is None:
        return None
    if after.units and "/" not in rest and " per " not in rest:
        # "$5 dollars" says the currency twice; "$5 km" is nothing
        own = read_unit(sign)
        if not any(unit in own for unit in after.units):
            return None
        return _negative(after) if "-" in minus else after
    divisor = re.search(r"(?:/| per )(.*)", rest)
    if divisor and after.units:
        units = read_unit(sign + "/" + divisor[1])
    else:
        units = read_unit(sign.replace(" ", "").rstrip("."))
    quantity = replace(after, units=tuple(units), noun="")
    return _negative(quantity) if "-" in minus else quantity


def _with_digits(text: str, per: str, *, tight: bool) -> Quantity | None:
    match = _HEAD.match(text)
    if match is None or not (match[2] or (match[3] and len(match[3]) > 1)):
        return None
    end = match.end()
    value = literal((match[2] or "").replace(" ", "") + (match[3] or ""))
    if value is None:
        return None
    if match[4]:
        if len(match[4]) > 6 or abs(int(match[4])) > LARGEST_EXPONENT:
            return None
        value *= Fraction(10) ** int(match[4])
    if end < len(text):
        whole = match[3] is None and match[4] is None
        if whole and (over := _OVER.match(text, end)):
            if not int(over[1][:4000]):
                return None
            value, end = value / int(over[1][:4000]), over.end()
        elif whole and (mixed := _MIXED.match(text, end)):
            below = literal(mixed[2])
            above = literal(mixed[1])
            if not below or above is None or above >= below:
                return None
            value, end = value + above / below, mixed.end()
        if power := _TEN_TO.match(text, end):
            exponent = power[1].replace(" ", "")
            if len(exponent) > 5:
                return None
            value, end = value * Fraction(10) ** int(exponent), power.end()
    if match[1] and match[1][0] == "-":
        value = -value
    quantity = _finished(value, text[end:], per, tight=tight)
    return quantity and replace(quantity, in_digits=end == match.end())


def _finished(
    value: Fraction, rest: str, per: str, *, tight: bool = False, in_words: bool = False
) -> Quantity | None:
    """The quantity of a value and the text behind it; None if that text is no unit."""
    if not rest.strip():
        return Quantity(
            number_node(value), value, tuple(read_unit(per)) if per else (), "", in_words
        )
    places = rest[0] in "万亿千百十" and not in_words
    if places and not read_unit(rest) and not _unit_before_noun(rest):
        return None  # 5千人 is read with its place
    words = rest.split()
    scale = words[0].lower().rstrip("s") if words else ""
    if scale in SCALES or scale == "dozen":
        value *= SCALES.get(scale, 12)
        remaining = rest.strip()[len(words[0]) :]
        return _finished(value, remaining, per, in_words=in_words)
    letter = rest[0]
    if letter.isascii() and letter.isalpha() and not tight and len(_first_word(rest)) == 1:
        return None  # "4x" is algebra, "4 m" and "4km" are lengths
    if len(rest) < _LONGEST_COMPOUND and (again := _NUMBER_AGAIN.fullmatch(rest)):
        compound = _compound(value, again[1], again[2])
        if compound is not None:
            return compound
    if units := read_unit(rest + per):
        return Quantity(number_node(value), value, tuple(units), "", in_words)
    if units := _unit_before_noun(rest):
        return Quantity(number_node(value), value, tuple(units), "", in_words)
    noun = _noun(rest)
    if noun is None:
        return None
    is_name = re.search(r"\b[A-Z][a-z]", rest) is not None
    return Quantity(number_node(value), value, (), noun, in_words, is_name)


def _first_word(text: str) -> str:
    match = re.match(r"[a-zA-Z]+", text)
    return match[0] if match else ""


def _compound(value: Fraction, unit_text: str, rest: str) -> Quantity | None:
    """1 hour 30 minutes, 5元5角, 5 ft 10 in: the sum in the first unit; else None."""
    units = read_unit(unit_text.removesuffix(" and"))
    if not units or value < 0:
        return None
    following = read_quantity(rest)
    if following is None or following.value is None:
        return None
    for unit in units:
        for smaller in following.units:
            if unit.base == smaller.base and 0 < smaller.factor < unit.factor and not unit.offset:
                total = value + following.value * smaller.factor / unit.factor
                return Quantity(number_node(total), total, (unit,))
    return None


def _unit_before_noun(rest: str) -> list[Unit]:
    """A known unit with a word behind it: "kg of rice", "千克大米"."""
    stripped = rest.strip()
    words = stripped.split()
    if len(words) > 1 and words[0].isascii():
        for count in range(min(len(words) - 1, 4), 0, -1):
            if words[count].lower() in _ENDINGS and all(map(_WORD.fullmatch, words[count:])):
                units = read_unit(" ".join(words[:count]))
                if units:
                    return units
        return []
    if re.fullmatch(r"[\u4e00-\u9fff]{2,10}", stripped):
        for length in range(min(4, len(stripped) - 1), 0, -1):
            units = read_unit(stripped[:length])
            if units and (length > 1 or _AFTER_UNIT.match(stripped, 1)):
                return units
    return []


def _noun(rest: str) -> str | None:
    """What is counted, in the singular and without "each" or "left"; None if it cannot be that."""
    stripped = rest.strip()
    if _CHINESE_NOUN.fullmatch(stripped):
        return None if stripped[0] in "万亿千百十点" else stripped
    words = stripped.split()
    if not words or len(words) > 4 or not all(_WORD.fullmatch(word) for word in words):
        return None
    words = [word.rstrip(".").lower() for word in words]
    if _NO_UNITS & set(words):
        return None
    while words and words[-1] in _ENDINGS:
        words.pop()
    if not words:
        return ""  # 5 each, 5 in total
    if all(len(word) == 1 for word in words):
        return None
    if not rest[0].isspace() and len(words) == 1 and "".join(sorted(words[0]))[:3] == words[0]:
        return None  # 2ab is algebra, and so is 3xyz
    if not rest[0].isspace() and len(words[0]) < 3:
        return None
    return " ".join(_singular(word) for word in words if word not in ("the", "more"))


_IRREGULAR = {
    "people": "person", "persons": "person", "children": "child", "men": "man", "women": "woman",
    "feet": "foot", "mice": "mouse", "geese": "goose", "knives": "knife", "loaves": "loaf",
    "leaves": "leaf",
}  # fmt: skip


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    if len(word) > 4 and word.endswith(("xes", "ses", "ches", "shes")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _in_words(text: str, per: str) -> Quantity | None:
    chinese = leading_chinese_number(text)
    if chinese is not None:
        value, end, percentage = chinese
        rest = text[end:].strip()
        if percentage and not rest:
            return Quantity(number_node(value * 100), value * 100, tuple(read_unit("%")))
        if text[:end].isascii() or text[0].isdigit():
            return _finished(value, text[end:], per, in_words=True)
        # 三角形 is no 3: behind a Chinese numeral stands a known unit or a classifier
        if not rest or read_unit(rest) or _NUMBER_AGAIN.fullmatch(rest):
            return _finished(value, rest, per, in_words=True)
        if _CLASSIFIER.match(rest) and _CHINESE_NOUN.fullmatch(rest):
            return Quantity(number_node(value), value, (), rest)
        return _chinese_compound(value, rest)
    if not text[:1].isalpha() or not text.isascii():
        return None
    words = re.findall(r"[^\s-]+", text)
    if len(words) > 20:
        return None
    english = leading_english_number([word.lower().rstrip(",") for word in words])
    if english is None:
        return None
    value, count = english
    rest_words = words[count:]
    if any(word[:1].isupper() for word in rest_words):
        return None  # "One Direction" is a name
    quantity = _finished(value, " " + " ".join(rest_words), per, in_words=True)
    return None if quantity is None else replace(quantity, in_words=bool(quantity.noun))


def _chinese_compound(value: Fraction, rest: str) -> Quantity | None:
    """三元五角: a known unit, then another quantity in Chinese numerals."""
    for length in range(1, min(5, len(rest))):
        if read_unit(rest[:length]):
            following = leading_chinese_number(rest[length:])
            if following is not None:
                return _compound(value, rest[:length], rest[length:])
    return None


def _expression_with_unit(text: str) -> Quantity | None:
    r"""2\pi cm, \frac{3}{4} kg, 5\sqrt{3} 米: a constant expression, perhaps with a known unit."""
    for before, unit_text in _splits(text):
        units = read_unit(unit_text) if unit_text else []
        if unit_text and not units:
            continue
        try:
            node = parse_expression(before)
            if variables_of(node):
                continue
            value = exact(node)
        except (Unreadable, Undecided, Undefined):
            continue
        return Quantity(node, value, tuple(units))
    return None


def _splits(text: str) -> Iterator[tuple[str, str]]:
    if re.search(r"[\dπ]", text):
        yield text, ""
    match = _TAIL.fullmatch(text)
    if match is None:
        return
    unit = match[2]
    tight = text[len(match[1]) : len(match[1]) + 1] != " "
    if tight and len(_first_word(unit)) == 1:
        return
    yield match[1], unit


# ---- comparing


def equal_quantities(expected: Quantity, given: Quantity) -> bool:
    """Whether two quantities are equal under the rules of this module."""
    with limited_work():
        return _equal_quantities(expected, given)


def _equal_quantities(first: Quantity, second: Quantity) -> bool:
    if first.is_percentage != second.is_percentage:
        percentage, other = (first, second) if first.is_percentage else (second, first)
        if not other.is_bare:
            return False
        return _same_share(percentage, other)
    if first.is_bare or second.is_bare:
        return _equal_without_unit(first, second)
    if first.units and second.units:
        return any(
            _equal_in(first.number, unit, second.number, other)
            for unit in first.units
            for other in second.units
            if unit.base == other.base
        )
    if first.noun and second.noun:
        return _equal(first.number, second.number) and _same_noun(first.noun, second.noun)
    return False


def _same_share(percentage: Quantity, other: Quantity) -> bool:
    """Whether a bare number is a percentage: its value, or its number without the sign."""
    for unit in percentage.units:
        share = Node("product", (percentage.number, number_node(unit.factor / 100)))
        if _equal(share, other.number):
            return True
    sign_left_out = percentage.in_digits and other.in_digits and percentage.value == other.value
    in_hundredths = any(unit.factor == 1 for unit in percentage.units)  # % and not ‰
    return sign_left_out and in_hundredths and other.value is not None and abs(other.value) > 1


def _equal_without_unit(first: Quantity, second: Quantity) -> bool:
    counted = first if first.noun else second
    if counted.is_name or (counted.in_words and " " in counted.noun):
        return False  # "7 Up" is no 7, and "one more chance" no 1
    if _equal(first.number, second.number):
        return True
    with_unit, bare = (first, second) if first.units else (second, first)
    if bare.value is not None:
        return False
    # 90° = π/2: a bare multiple of π is an angle in radians
    radian = Unit(Fraction(1), (("degree", 1),), radian=True)
    return any(
        _equal_in(with_unit.number, unit, bare.number, radian)
        for unit in with_unit.units
        if unit.base == radian.base
    )


def _equal_in(first: Node, unit: Unit, second: Node, other: Unit) -> bool:
    if unit == other:
        return _equal(first, second)
    return _equal(_in_base(first, unit), _in_base(second, other))


def _in_base(node: Node, unit: Unit) -> Node:
    if unit.radian:
        half_turn = Node("product", (node, number_node(180)))
        return Node("quotient", (half_turn, Node("constant", name="π")))
    if node.operation == "number":
        return number_node(node.value * unit.factor + unit.offset)
    scaled = Node("product", (node, number_node(unit.factor)))
    return Node("sum", (scaled, number_node(unit.offset))) if unit.offset else scaled


def _equal(first: Node, second: Node) -> bool:
    if first.operation == "number" and second.operation == "number":
        return first.value == second.value
    try:
        return equal_expressions(first, second)
    except Undecided:
        return False


def _same_noun(first: str, second: str) -> bool:
    if first == second:
        return True
    if first.isascii() and second.isascii():
        words, others = first.split(), second.split()
        # "red ball" and "ball"
        return len(words) != len(others) and words[-1] == others[-1]
    if first.isascii() or second.isascii():
        return False
    if first.endswith(second) or second.endswith(first):
        return True  # 个人 and 人
    bare, other = _CLASSIFIER.sub("", first, count=1), _CLASSIFIER.sub("", second, count=1)
    if not bare and not other:
        return "个" in (first, second)
    if not bare or not other:
        # 5只 and 5只鸡 agree; 5只 and 5本书 do not
        return first[0] == second[0] or "个" in (first, second)
    return bare == other or bare.endswith(other) or other.endswith(bare)
