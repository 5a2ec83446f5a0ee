r"""A formula's text -> what it is: a quantity, expression, list, set of numbers, relation, matrix…

`read` tries the kinds in a fixed order and returns None for a text that is none of them. A pair
(2, 5) is read as written; only beside an inequality it counts as an interval. This module does not
compare.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from tinkersmith.grading.formulas.expressions import (
    Node,
    Unreadable,
    branches,
    parse_expression,
    variables,
)
from tinkersmith.grading.formulas.values import Undecided, Undefined, exact, real_value
from tinkersmith.grading.quantities import Quantity, read_quantity

_DEEPEST = 5
_MOST_ITEMS = 60


@dataclass(frozen=True, slots=True)
class Expression:
    """An expression with variables."""

    node: Node


@dataclass(frozen=True, slots=True)
class Listing:
    """Several readings.

    Attributes:
        form: "set" {1, 2}; "solutions" 1 or 2; "list" 1, 2; or an opening bracket: "(", "[", "⟨".
    """

    items: tuple["Structure", ...]
    form: str


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`; None is infinity."""

    low: Node | None
    low_closed: bool
    high: Node | None
    high_closed: bool


@dataclass(frozen=True, slots=True)
class RealSet:
    """A union of intervals, and the variable whose values they are ("" if none is named)."""

    intervals: tuple[Interval, ...]
    variable: str = ""


@dataclass(frozen=True, slots=True)
class Named:
    """A value with the name in front: x = 4."""

    name: str
    value: "Structure"


@dataclass(frozen=True, slots=True)
class Relation:
    """Two or more expressions with the signs between them, from the smaller to the larger side."""

    sides: tuple[Node, ...]
    signs: str


@dataclass(frozen=True, slots=True)
class System:
    """Values of several variables: x = 4, y = 5.

    Attributes:
        values: in the alphabetical order of the names.
        in_order: they are also written in that order.
    """

    values: tuple[tuple[str, "Structure"], ...]
    in_order: bool = True


@dataclass(frozen=True, slots=True)
class Matrix:
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """7:3.

    Attributes:
        like_a_time: the text may be a time of day.
    """

    terms: tuple[Node, ...]
    like_a_time: bool


@dataclass(frozen=True, slots=True)
class BaseNumber:
    """Digits with the base they are written in: 1010_2."""

    digits: str
    base: int


Structure = (
    Quantity | Expression | Listing | RealSet | Named | Relation | System | Matrix | Ratio
    | BaseNumber
)  # fmt: skip

_ALL_REALS = {
    "ℝ", "R", "all real numbers", "all reals", "all real number", "the set of real numbers",
    "real numbers",
    "全体实数", "一切实数", "所有实数", "任意实数", "实数集", "实数集R", "实数", "x∈ℝ", "x∈R",
    "x ∈ ℝ", "x ∈ R",
}  # fmt: skip
_EMPTY = {
    "∅", "⦃⦄", "⦃ ⦄", "{}", "{ }", "no solution", "no solutions", "empty set", "the empty set",
    "no real solution",
    "no real solutions", "there is no solution", "无解", "空集", "方程无解", "无实数解", "无实根",
    "ø",
}  # fmt: skip
_EVERYTHING = Interval(None, False, None, False)


_EVERY_INTEGER = re.compile(r"[\s,;(]*[kn]\s*∈\s*[ℤZ]\s*\)?$")  # x = kπ, k ∈ Z


def read(text: str, depth: int = 0) -> Structure | None:
    """What the text is; None if it is no mathematics that is known here.

    Args:
        text: one line as `plain_text.formula` writes it.
    """
    text = text.strip()
    if not text or depth > _DEEPEST:
        return None
    text = _EVERY_INTEGER.sub("", text)
    word = text.lower()
    if text in _ALL_REALS or word in _ALL_REALS:
        return RealSet((_EVERYTHING,))
    if word in _EMPTY:
        return RealSet(())
    for reader in _READERS:
        try:
            reading = reader(text, depth)
        except (Unreadable, Undefined, Undecided):
            continue
        if reading is not None:
            return reading
    return None


# ---- numbers

_BASE_SUFFIX = re.compile(
    r"\(?([0-9A-Fa-f]+)\)? ?_ ?[({]? ?(\d{1,2}|two|eight|ten|sixteen|hex) ?[)}]?"
)
_BASE_PREFIX = re.compile(r"0([bBoOxX])([0-9A-Fa-f]+)")
_BASE_WORDS = re.compile(
    r"([0-9A-Fa-f]+)\s*[(,]?\s*(?:in )?(?:base[- ](\d{1,2}|two|eight|ten|sixteen)|"
    r"(binary|octal|decimal|hex(?:adecimal)?|二进制|八进制|十进制|十六进制))\)?",
    re.IGNORECASE,
)
_BASE_WORDS_FIRST = re.compile(
    r"(binary|octal|hex(?:adecimal)?|二进制|八进制|十进制|十六进制)(?:数|number)?\s*[:是为]?\s*([0-9A-Fa-f]+)",
    re.IGNORECASE,
)
_BASES = {
    "b": 2, "o": 8, "x": 16, "two": 2, "eight": 8, "ten": 10, "sixteen": 16, "hex": 16, "binary": 2,
    "octal": 8, "decimal": 10, "hexadecimal": 16, "二进制": 2, "八进制": 8, "十进制": 10,
    "十六进制": 16,
}  # fmt: skip


def _read_base_number(text: str, depth: int) -> Structure | None:
    if len(text) > 200:
        return None
    if match := _BASE_PREFIX.fullmatch(text):
        return _base_number(match[2], match[1])
    if match := _BASE_SUFFIX.fullmatch(text):
        return _base_number(match[1], match[2])
    if match := _BASE_WORDS.fullmatch(text):
        return _base_number(match[1], match[2] or match[3])
    if match := _BASE_WORDS_FIRST.fullmatch(text):
        return _base_number(match[2], match[1])
    return None


def _base_number(digits: str, base_text: str) -> Structure | None:
    base = int(base_text) if base_text.isdigit() else _BASES[base_text.lower()]
    digits = digits.upper().lstrip("0") or "0"
    if not 2 <= base <= 16 or any(int(digit, 16) >= base for digit in digits):
        return None
    return BaseNumber(digits, base)


# 5-10 may be a range, 2024-05-06 a date, 555-1234 a telephone number, 1/2/24 a date.
_NO_ARITHMETIC = re.compile(r"[\d.,]+(?:\s?-\s?[\d.,]+)+|\d+(?:\s?/\s?\d+){2,}|\d+(?:\.\d+){2,}")


def _read_quantity(text: str, depth: int) -> Structure | None:
    if "±" in text or "∓" in text or text.startswith("{"):
        return None  # {1} is a set, and no group of LaTeX
    quantity = read_quantity(text)
    if quantity is not None and _NO_ARITHMETIC.fullmatch(text):
        return None
    return quantity


# ---- splitting at the outermost level

_OPENING, _CLOSING = "([{⦃⟨", ")]}⦄⟩"
_OR = re.compile(r"\s*[,;]?\s*(?:\bor\b|或者|或是|或)\s*")
_AND = re.compile(r"\s*[,;]?\s*(?:\band\b|以及|并且|和|与|及|且)\s*")
_COMMA = re.compile(r"\s*[;、]\s*|,\s+|,(?!\d{3}(?!\d))|(?<!\d),")
_ANY_COMMA = re.compile(r"\s*[,;、]\s*")
_SIGN = re.compile(r"\s*(≤|≥|≠|<|>|=)\s*")


def _split(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Pieces between separators outside all brackets, and the separators.

    Raises:
        Unreadable: the brackets do not close, or there are too many pieces.
    """
    pieces: list[str] = []
    separators: list[str] = []
    depth = start = place = 0
    while place < len(text):
        letter = text[place]
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
            if depth < 0:
                raise Unreadable("brackets")
        elif depth == 0 and (match := separator.match(text, place)) and match.end() > place:
            pieces.append(text[start:place])
            separators.append(match[0].strip())
            start = place = match.end()
            if len(pieces) > _MOST_ITEMS:
                raise Unreadable("too many items")
            continue
        place += 1
    if depth:
        raise Unreadable("brackets")
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces], separators


def _enclosed(text: str) -> bool:
    """Whether the first bracket closes at the end of the text."""
    depth = 0
    for place, letter in enumerate(text):
        if letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
            if depth <= 0:
                return depth == 0 and place == len(text) - 1
    return False


def _readings(pieces: list[str], depth: int) -> list[Structure] | None:
    readings: list[Structure] = []
    for piece in pieces:
        reading = read(piece, depth + 1)
        if reading is None:
            return None
        readings.append(reading)
    return readings


# ---- several answers


def _read_alternatives(text: str, depth: int) -> Structure | None:
    pieces, separators = _split(text, _OR)
    if not separators:
        return None
    if len(pieces) == 2 and _COMMA.search(pieces[0]):  # "1, 2 or 3"
        pieces = [*_split(pieces[0], _COMMA)[0], pieces[1]]
    if pieces[0] == "" or pieces[0] == "either":
        return None
    pieces[0] = pieces[0].removeprefix("either ")
    return _alternatives(_readings(pieces, depth))


def _alternatives(readings: list[Structure] | None) -> Structure | None:
    if readings is None:
        return None
    ranges = [_as_real_set(reading) for reading in readings]
    if any(isinstance(reading, RealSet) for reading in readings) and all(ranges):
        sets = [each for each in ranges if each is not None]
        names = {each.variable for each in sets if each.variable}
        if len(names) > 1:
            return None
        intervals = tuple(interval for each in sets for interval in each.intervals)
        return RealSet(intervals, names.pop() if names else "")
    return _solutions(readings, "solutions")


def _solutions(readings: list[Structure], form: str) -> Structure | None:
    """The values of x = 1 or x = 2, x = 1 or 2, x_1 = 1 and x_2 = 2, without the name."""
    names = [reading.name for reading in readings if isinstance(reading, Named)]
    if names:
        same = len({name.partition("_")[0] for name in names}) == 1
        numbered = [name.partition("_")[2] for name in names]
        if not same or not (
            len(set(names)) == 1 or numbered == [str(n + 1) for n in range(len(names))]
        ):
            return None
        if not isinstance(readings[0], Named):
            return None
        readings = [
            reading.value if isinstance(reading, Named) else reading for reading in readings
        ]
        items = _flat(readings)
        return Named(names[0].partition("_")[0], Listing(tuple(items), "solutions"))
    return Listing(tuple(_flat(readings)), form)


def _flat(readings: list[Structure]) -> list[Structure]:
    """The readings with ±2 taken as two answers."""
    items: list[Structure] = []
    for reading in readings:
        if isinstance(reading, Listing) and reading.form == "solutions":
            items.extend(reading.items)
        else:
            items.append(reading)
    return items


def _read_list(text: str, depth: int) -> Structure | None:
    pieces, separators = _split(text, _AND)
    connected = bool(separators)
    if connected and len(pieces) == 2 and _COMMA.search(pieces[0]):  # "1, 2 and 3"
        pieces = [*_split(pieces[0], _COMMA)[0], pieces[1]]
    elif not connected:
        pieces, separators = _split(text, _COMMA)
        if not separators:
            return None
    if "" in pieces:
        return None
    readings = _readings(pieces, depth)
    if readings is None:
        return None
    if any(isinstance(reading, RealSet) for reading in readings):
        return _intersection(readings)
    names = [reading.name for reading in readings if isinstance(reading, Named)]
    if len(names) == len(readings) and len(set(names)) == len(names):
        solutions = _solutions(readings, "solutions")
        if solutions is not None:
            return solutions
        pairs = [(each.name, each.value) for each in readings if isinstance(each, Named)]
        in_alphabet = sorted(pairs, key=lambda pair: pair[0])
        return System(tuple(in_alphabet), pairs == in_alphabet)
    return _solutions(readings, "solutions" if connected else "list")


def _intersection(readings: list[Structure]) -> Structure | None:
    """x > 1 and x < 3; with a comma that leaves nothing, x < 1, x > 3, the union."""
    sets: list[RealSet] = []
    for reading in readings:
        if isinstance(reading, Listing | Quantity) and sets and _is_exclusion(sets[-1]):
            values = reading.items if isinstance(reading, Listing) else (reading,)
            nodes = [_node(value) for value in values]  # x ≠ 1, 2
            sets.extend(_all_but(node, sets[-1].variable) for node in nodes if node is not None)
            continue
        if not isinstance(reading, RealSet):
            return None
        sets.append(reading)
    names = {each.variable for each in sets if each.variable}
    if len(names) > 1:
        return None
    variable = names.pop() if names else ""
    if not variable and any(each.intervals for each in sets):
        return None  # "[0,1], [2,3]" is a list of intervals, not their intersection
    intervals = sets[0].intervals
    for each in sets[1:]:
        common = [_common(one, two) for one in intervals for two in each.intervals]
        intervals = tuple(interval for interval in common if interval is not None)
    if not intervals and all(each.intervals for each in sets):
        intervals = tuple(interval for each in sets for interval in each.intervals)
    return RealSet(intervals, variable)


def _is_exclusion(numbers: RealSet) -> bool:
    return len(numbers.intervals) == 2 and numbers.intervals[0].high == numbers.intervals[1].low


def low_key(interval: Interval) -> tuple[Decimal, int]:
    value = Decimal("-Infinity") if interval.low is None else _key(interval.low)
    return value, 0 if interval.low_closed else 1


def high_key(interval: Interval) -> tuple[Decimal, int]:
    value = Decimal("Infinity") if interval.high is None else _key(interval.high)
    return value, 0 if interval.high_closed else -1


def _key(node: Node) -> Decimal:
    value = real_value(node)
    if value is None:
        raise Undecided
    return value


def _common(first: Interval, second: Interval) -> Interval | None:
    low = max(first, second, key=low_key)
    high = min(first, second, key=high_key)
    if (low_key(low)[0], low_key(low)[1]) > high_key(high):
        return None
    return Interval(low.low, low.low_closed, high.high, high.high_closed)


def joined(intervals: tuple[Interval, ...]) -> tuple[Interval, ...]:
    """The union as few intervals in ascending order: [0, 1] ∪ [1, 2] is [0, 2].

    Raises:
        Undecided: an end has no known value.
    """
    kept: list[Interval] = []
    for interval in sorted(intervals, key=low_key):
        if low_key(interval) > high_key(interval):
            continue  # empty
        if kept:
            last = kept[-1]
            value, side = high_key(last)
            start, start_side = low_key(interval)
            touches = start < value or (start == value and (side == 0 or start_side == 0))
            if touches:
                end = max(last, interval, key=high_key)
                kept[-1] = Interval(last.low, last.low_closed, end.high, end.high_closed)
                continue
        kept.append(interval)
    return tuple(kept)


# ---- relations

_NAME = re.compile(
    r"[A-Z] ?[∩∪∖] ?[A-Z]|"
    r"(?:\\vec ?)?\{?[a-zA-Zα-ωΔ]\}?(?:_ ?(?:\w|\{\w+\})|\d)?'?(?:\s?\([a-zA-Z0-9, ]{1,6}\))?"
    r"|(?:\\?(?:angle|triangle|overline|text)\s?|[∠△])?\{?[a-zA-Z]{1,12}\}?(?: [a-zA-Z]{1,12}){0,4}"
    r"|\([a-z](?:, ?[a-z]){1,3}\)|[\u4e00-\u9fff]{1,10}|[a-zA-Z]\s?:\s?[a-zA-Z](?:\s?:\s?[a-zA-Z])?"
)
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}


def _read_relation(text: str, depth: int) -> Structure | None:
    sides, signs = _split(text, _SIGN)
    if not signs or len(sides) > 6:
        return None
    if "" in sides:
        return None
    if set(signs) == {"="}:
        return _equation(sides, depth)
    if len(sides) == 2:
        return _inequality(sides[0], signs[0], sides[1])
    if "=" in signs or "≠" in signs:
        return None
    if set(signs) <= {">", "≥"}:
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
    if not set(signs) <= {"<", "≤"}:
        return None
    low, *middle, high = (_end(side) for side in sides)
    if len(middle) == 1 and middle[0] is not None and middle[0].operation == "variable":
        constants = all(end is None or not variables(end) for end in (low, high))
        if constants:
            closed = [sign == "≤" for sign in signs]
            return RealSet((Interval(low, closed[0], high, closed[1]),), middle[0].name)
    nodes = [parse_expression(side) for side in sides]
    return Relation(tuple(nodes), "".join(signs))


def _end(text: str) -> Node | None:
    """The end of an interval; None is infinity of either sign."""
    if INFINITY.fullmatch(text):
        return None
    return parse_expression(text)


INFINITY = re.compile(r"[-+]? ?(?:∞|inf(?:inity|ty)?|oo|无穷大?|正无穷|负无穷)", re.IGNORECASE)


def _inequality(left: str, sign: str, right: str) -> Structure | None:
    first, second = parse_expression(left), parse_expression(right)
    if second.operation == "variable" and not variables(first):
        first, second, sign = second, first, _FLIPPED.get(sign, sign)
    if first.operation == "variable" and not variables(second):
        bounds = branches(second)
        if sign == "≠":
            result = _all_but(bounds[0], first.name)
            for bound in bounds[1:]:
                other = _all_but(bound, first.name)
                common = [_common(a, b) for a in result.intervals for b in other.intervals]
                result = RealSet(tuple(each for each in common if each), first.name)
            return result
        if len(bounds) > 1:
            return None
        closed = sign in "≤≥"
        interval = (
            Interval(None, False, second, closed)
            if sign in "<≤"
            else Interval(second, closed, None, False)
        )
        return RealSet((interval,), first.name)
    if sign in ">≥":
        return Relation((second, first), _FLIPPED[sign])
    return Relation((first, second), sign)


def _all_but(node: Node, variable: str) -> RealSet:
    below, above = Interval(None, False, node, False), Interval(node, False, None, False)
    return RealSet((below, above), variable)


def _equation(sides: list[str], depth: int) -> Structure | None:
    left, right = sides[0], sides[-1]
    name = _NAME.fullmatch(left)
    if not name and _NAME.fullmatch(right) and len(sides) == 2 and re.match(r"[-\d]", left):
        left, right = right, left
        name = _NAME.fullmatch(left)
    if name:
        if len(left) == 1 and re.fullmatch("[a-zA-Z]{2}", right):
            right = "1" + right  # F = ma: a product, where ma alone might be a word
        value = read(right, depth + 1)
        if value is not None and not isinstance(value, Named | System):
            spaceless = re.sub(r"\\vec|[\s{}]", "", left)
            if not _uses(value, spaceless) or len(spaceless) > 1:
                return Named(spaceless, value)
    elif len(sides) >= 2 and not re.search(r"[a-zA-Zα-ω\u4e00-\u9fff]", "".join(sides[:-1])):
        return _result(sides, depth)
    nodes = [parse_expression(side) for side in sides]
    if len(nodes) != 2:
        return None
    return Relation((nodes[0], nodes[1]), "=")


def _result(sides: list[str], depth: int) -> Structure | None:
    """The right side of 3 * 4 = 12 if it is right; a false equation is no value."""
    value = read(sides[-1], depth + 1)
    if not isinstance(value, Quantity) or value.value is None:
        return None
    for side in sides[:-1]:
        if exact(parse_expression(side)) != value.value:
            return None
    return value


def _uses(reading: Structure, name: str) -> bool:
    return isinstance(reading, Expression) and name in variables(reading.node)


_LINES = re.compile(
    r"⦃?\s*\\begin ?\{(cases|array|aligned)\}\s*(?:\{[lcr|]+\})?(.*?)\\end ?\{\1\}\s*⦄?"
)


def _read_lines(text: str, depth: int) -> Structure | None:
    """The equations below one another in a "cases" environment."""
    match = _LINES.fullmatch(text)
    if match is None:
        return None
    lines = [line.replace("&", "").strip(" ,;") for line in match[2].split("\\\\")]
    lines = [line for line in lines if line]
    readings = _readings(lines, depth)
    if readings is None or not all(isinstance(each, Named) for each in readings):
        return None
    return _read_list(", ".join(lines), depth)


# ---- brackets

_MEMBER = re.compile(r"([a-zA-Zα-ω])\s*∈\s*(.+)")
_BUILDER = re.compile(r"[⦃{]\s*([a-zA-Z])\s*(?:∈\s*[ℝR]\s*)?[|:]\s*(.+)[⦄}]")
_OUTWARD = re.compile(r"\]([^\[\],;]+)[,;]([^\[\],;]+)\[")
_POINT = re.compile(r"(?:点|坐标)?[A-Z]?'?\s?(?=\()")  # P(2, 5)
_UNION = re.compile(r"\s*(?:∪|\bU\b)\s*")
_WITHOUT = re.compile(r"\s*(?:∖|-(?=\s*[{⦃]))\s*")
_EXCEPT = re.compile(r"(?:all )?real numbers except (?:for )?(?:[a-z] ?= ?)?(.+)", re.IGNORECASE)


def _read_membership(text: str, depth: int) -> Structure | None:
    if match := _BUILDER.fullmatch(text):
        inner = read(match[2], depth + 1)
        return inner if isinstance(inner, RealSet) and inner.variable == match[1] else None
    match = _MEMBER.fullmatch(text)
    if match is None:
        return None
    numbers = _as_real_set(read(match[2], depth + 1))
    return None if numbers is None else RealSet(numbers.intervals, match[1])


def _read_union(text: str, depth: int) -> Structure | None:
    if match := _EXCEPT.fullmatch(text):
        removed = read(match[1], depth + 1)
        return _difference(RealSet((_EVERYTHING,)), removed)
    pieces, separators = _split(text, _UNION)
    if not separators:
        pieces, separators = _split(text, _WITHOUT)
        if len(separators) != 1:
            return None
        return _difference(read(pieces[0], depth + 1), read(pieces[1], depth + 1))
    readings = _readings(pieces, depth)
    if readings is None:
        return None
    sets = [_as_real_set(reading) for reading in readings]
    intervals: list[Interval] = []
    for each in sets:
        if each is None:
            return None
        intervals.extend(each.intervals)
    return RealSet(tuple(intervals))


def _difference(whole: Structure | None, removed: Structure | None) -> Structure | None:
    numbers = _as_real_set(whole)
    if numbers is None or not isinstance(removed, Listing | Quantity):
        return None
    intervals = numbers.intervals
    for item in removed.items if isinstance(removed, Listing) else (removed,):
        node = _node(item)
        if node is None:
            return None
        common = [_common(a, b) for a in intervals for b in _all_but(node, "").intervals]
        intervals = tuple(each for each in common if each)
    return RealSet(intervals)


def _node(reading: Structure) -> Node | None:
    if isinstance(reading, Quantity) and reading.is_bare:
        return reading.number
    return reading.node if isinstance(reading, Expression) else None


def _as_real_set(reading: Structure | None) -> RealSet | None:
    """An interval, an inequality or a set of single numbers as a set of numbers."""
    if isinstance(reading, RealSet):
        return reading
    if isinstance(reading, Named):
        inner = _as_real_set(reading.value)
        return None if inner is None else RealSet(inner.intervals, reading.name)
    if isinstance(reading, Listing):
        if reading.form in "([":
            return as_interval(reading)
        if reading.form not in ("set", "solutions"):
            return None
        nodes = [_node(item) for item in reading.items]
    else:
        nodes = [None if reading is None else _node(reading)]
    points = [Interval(node, True, node, True) for node in nodes if node is not None]
    return RealSet(tuple(points)) if len(points) == len(nodes) else None


def as_interval(pair: Listing) -> RealSet | None:
    """(2, 5) or [2, 5] as the numbers between; None if it cannot be an interval."""
    if len(pair.items) != 2 or pair.form not in ("(", "["):
        return None
    low, high = (_node(item) for item in pair.items)
    if low is None or high is None:
        return None
    ends = real_value(low), real_value(high)
    if ends[0] is not None and ends[1] is not None and ends[0] >= ends[1]:
        return None  # (5, 2) is a point, not the empty set
    closed = pair.form == "["
    return RealSet((Interval(low, closed, high, closed),))


def _read_brackets(text: str, depth: int) -> Structure | None:
    if point := _POINT.match(text):
        text = text[point.end() :]
    if match := _OUTWARD.fullmatch(text):
        return RealSet((Interval(_end(match[1].strip()), False, _end(match[2].strip()), False),))
    opening, closing = text[0], text[-1]
    if opening not in _OPENING or not _enclosed(text):
        return None
    inner = text[1:-1].strip()
    spaced = re.search(r",\s", inner)
    pieces, _ = _split(inner, _COMMA if spaced else _ANY_COMMA)
    if "" in pieces:
        return None
    if opening in "⦃{" and closing in "⦄}":
        readings = _readings(pieces, depth)
        if readings is None:
            return None
        return Listing(tuple(_flat(readings)), "set")
    if len(pieces) == 1:
        return None
    if len(pieces) == 2 and opening in "([" and closing in ")]":
        infinite = [bool(INFINITY.fullmatch(piece)) for piece in pieces]
        if any(infinite) or opening + closing not in ("()", "[]"):
            closed = (opening == "[" and not infinite[0], closing == "]" and not infinite[1])
            low, high = _end(pieces[0]), _end(pieces[1])
            wrong_way = (infinite[0] and not pieces[0].startswith(("-", "负"))) or (
                infinite[1] and pieces[1].startswith(("-", "负"))
            )
            if wrong_way:
                return None
            return RealSet((Interval(low, closed[0], high, closed[1]),))
    if opening + closing not in ("()", "[]", "⟨⟩"):
        return None
    readings = _readings(pieces, depth)
    if readings is None:
        return None
    if opening == "[" and all(isinstance(item, Listing) and item.form == "[" for item in readings):
        return _matrix([item.items for item in readings if isinstance(item, Listing)])
    return Listing(tuple(readings), opening)


# ---- matrices and ratios

_ENVIRONMENT = re.compile(
    r"(?:\[|\()?\s*\\begin ?\{([pbB]?matrix|smallmatrix|array)\}\s*(?:\{[clr|]+\})?(.*?)"
    r"\\end ?\{\1\}\s*(?:\]|\))?"
)


def _read_matrix(text: str, depth: int) -> Structure | None:
    if match := _ENVIRONMENT.fullmatch(text):
        lines = [line for line in re.split(r"\\\\(?:\[\w+\])?", match[2]) if line.strip()]
        rows = [[parse_expression(cell.strip()) for cell in line.split("&")] for line in lines]
    elif text.startswith("[") and text.endswith("]") and ";" in text and "[" not in text[1:]:
        lines = [re.split(r"[,\s]+", line.strip()) for line in text[1:-1].split(";")]
        if max(map(len, lines)) < 2:
            return None
        rows = [[parse_expression(cell) for cell in line if cell] for line in lines]
    else:
        return None
    if not rows or len({len(row) for row in rows}) > 1:
        return None
    return Matrix(tuple(tuple(row) for row in rows))


def _matrix(rows: list[tuple[Structure, ...]]) -> Structure | None:
    if len({len(row) for row in rows}) > 1:
        return None
    cells: list[tuple[Node, ...]] = []
    for row in rows:
        nodes = [_node(item) for item in row]
        if None in nodes:
            return None
        cells.append(tuple(node for node in nodes if node is not None))
    return Matrix(tuple(cells))


_RATIO_WORDS = re.compile(r"([\d./]+)\s+(?:to|is to)\s+([\d./]+)(?:\s+(?:to|is to)\s+([\d./]+))?")
_TIME = re.compile(r"(?:[01]?\d|2[0-4]):[0-5]\d(?::[0-5]\d)?")
_COLON = re.compile(r"\s*(?::|比)\s*")


def _read_ratio(text: str, depth: int) -> Structure | None:
    if match := _RATIO_WORDS.fullmatch(text):
        pieces = [piece for piece in match.groups() if piece]
    else:
        pieces, separators = _split(text, _COLON)
        if not separators or "" in pieces or len(pieces) > 6:
            return None
    nodes = [parse_expression(piece) for piece in pieces]
    if not all(re.search(r"[\d]|^[a-z]$", piece) for piece in pieces):
        return None
    return Ratio(tuple(nodes), bool(_TIME.fullmatch(text)))


# ---- expressions


def _read_expression(text: str, depth: int) -> Structure | None:
    if _NO_ARITHMETIC.fullmatch(text):
        return None
    if re.fullmatch(r"\\?[a-zA-Z]+", text) and not (depth and len(text) == 1):
        return None  # a letter may be a choice, and a word is no product
    node = parse_expression(text)
    both = branches(node)
    readings = [_of_node(each) for each in both]
    return readings[0] if len(readings) == 1 else Listing(tuple(readings), "solutions")


def _of_node(node: Node) -> Quantity | Expression:
    if variables(node):
        return Expression(node)
    try:
        value: Fraction | None = exact(node)
    except Undecided:
        value = None
    return Quantity(node, value)


_READERS: tuple[Callable[[str, int], Structure | None], ...] = (
    _read_base_number,
    _read_quantity,
    _read_matrix,
    _read_lines,
    _read_membership,
    _read_union,
    _read_alternatives,
    _read_list,
    _read_relation,
    _read_ratio,
    _read_brackets,
    _read_expression,
)
