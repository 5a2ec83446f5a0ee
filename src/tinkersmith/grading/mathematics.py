r"""Two answers of mathematics -> whether they mean the same.

Decisions that a reader should know:

- Nothing is rounded: 3.14 is not π and 0.33 is not 1/3. "π ≈ 3.14" says both and is equal to
  either; it is read only if the decimal is the rounded value.
- x = 4 is 4; x = 4 is not y = 4. An equation that is not solved is no value: 2x = 8 is not 4.
- {1, 2}, "1 or 2" and x = ±1 have no order. "1, 2, 3" has none either, but four numbers or more
  between commas are compared in order: they may be sorted.
- (2, 5) is equal to (2, 5), and to 2 < x < 5; it is neither [2, 5] nor {2, 5}.
- 1010_2 is not 10: where a base is written, the digits count. It is 1010, whose base is unsaid.
- A ratio is no fraction: 7:3 is 14:6, not 7/3. Two ratios that may be times of day are left to
  the comparison of times.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from tinkersmith.grading.comparison import Comparison
from tinkersmith.grading.formulas.expressions import Node, number_node
from tinkersmith.grading.formulas.expressions import variables as variables_of
from tinkersmith.grading.formulas.numbers import literal
from tinkersmith.grading.formulas.second_opinion import TIMED_OUT
from tinkersmith.grading.formulas.second_opinion import ask as second_opinion_of
from tinkersmith.grading.formulas.structures import (
    INFINITY,
    BaseNumber,
    Expression,
    Interval,
    Listing,
    Matrix,
    Named,
    Ratio,
    RealSet,
    Relation,
    Structure,
    System,
    as_interval,
    joined,
    read,
)
from tinkersmith.grading.formulas.values import (
    TooLarge,
    Undecided,
    common_factor,
    equal_expressions,
    limited_work,
    real_value,
    renamed,
)
from tinkersmith.grading.plain_text import LONGEST_FORMULA, formula
from tinkersmith.grading.quantities import Quantity, equal_quantities, read_quantity


def compare_mathematics(
    expected: str, given: str, *, second_opinion: bool = True
) -> Comparison | None:
    """Whether two answers are equal as mathematics; None if one of them is no mathematics.

    Args:
        second_opinion: ask `math-verify` about expressions that this package cannot decide.
    """
    if len(expected) > LONGEST_FORMULA or len(given) > LONGEST_FORMULA:
        return _long_numbers(expected, given)
    with limited_work():
        texts = formula(expected), formula(given)
        if texts[0] != texts[1] and (pairs := _without_rounding(*texts)):
            compared = [_compared(*pair, second_opinion) for pair in pairs]
            return next((each for each in compared if each and each.equal), compared[0])
        return _compared(*texts, second_opinion)


_ROUNDED = re.compile(
    r"\s*(?:≈|≒|\\doteq|[,(]?\s*(?:or )?(?:about|approximately|approx\.?|roughly|大?约为?)"
    r"(?=[\s\d]))\s*"
)
_DECIMAL = re.compile(r"-?(\d+)(?:\.(\d+))?(?![\d,/.])")


def _without_rounding(first: str, second: str) -> list[tuple[str, str]]:
    """The pairs to compare if a text gives a rounded value behind the exact one; else none."""
    exact_first, *rounded_first = _exact_and_rounded(first)
    exact_second, *rounded_second = _exact_and_rounded(second)
    if not rounded_first and not rounded_second:
        return []
    pairs = [(exact_first, exact_second)]
    if not rounded_second:
        pairs.extend((rounded, second) for rounded in rounded_first)
    if not rounded_first:
        pairs.extend((first, rounded) for rounded in rounded_second)
    return pairs


def _exact_and_rounded(text: str) -> tuple[str, ...]:
    """ "2π ≈ 6.28 cm" is 2π cm and 6.28 cm; a text that does not say both stays as it is."""
    exact_text, *rest = _ROUNDED.split(text)
    if len(rest) != 1 or not exact_text.strip():
        return (text,)
    rounded_text = rest[0].removesuffix(")") if "(" not in rest[0] else rest[0]
    whole, rounded = read(exact_text), read_quantity(rounded_text)
    while isinstance(whole, Named):
        whole = whole.value
    decimal = _DECIMAL.match(rounded_text)
    if not isinstance(whole, Quantity) or rounded is None or rounded.value is None:
        return (text,)
    if decimal is None or (whole.units and rounded.units and whole.units != rounded.units):
        return (text,)
    value = real_value(whole.number)
    places = len(decimal[2]) if decimal[2] else len(decimal[1].rstrip("0")) - len(decimal[1])
    if value is None or not _is_rounded(Fraction(value), rounded.value, places):
        return (text,)
    unit = rounded_text[decimal.end() :]
    return exact_text + unit if unit and whole.is_bare else exact_text, rounded_text


def _is_rounded(value: Fraction, rounded: Fraction, places: int) -> bool:
    """Whether a value has been rounded, or cut after two decimals or more: 2/3 ≈ 0.67 or 0.66."""
    error, step = abs(value - rounded), Fraction(10) ** -places
    was_cut = places >= 2 and abs(rounded) < abs(value) and error < step
    return (error <= step / 2 and error <= abs(value) / 20) or was_cut


def _compared(first_text: str, second_text: str, second_opinion: bool) -> Comparison | None:
    if not first_text or not second_text:
        return None
    if INFINITY.fullmatch(first_text) and INFINITY.fullmatch(second_text):
        below = [text.startswith(("-", "负")) for text in (first_text, second_text)]
        return Comparison(below[0] == below[1], "number")
    first, second = read(first_text), read(second_text)
    in_base = _digits_in_base(first, second_text) or _digits_in_base(second, first_text)
    if in_base is not None:
        return in_base
    first, second = (
        _as_variable(first, first_text, second),
        _as_variable(second, second_text, first),
    )
    if first is None or second is None:
        return _opinion(first, first_text, second, second_text) if second_opinion else None
    first, second = _tightened(first, first_text, second), _tightened(second, second_text, first)
    kind = _kind(first, second)
    if first_text == second_text:
        return Comparison(True, kind)
    if _like_a_time(first) and _like_a_time(second):
        return None
    try:
        return Comparison(_same(first, second), kind)
    except TooLarge:
        return Comparison(False, kind)
    except Undecided:
        asked = _opinion(first, first_text, second, second_text) if second_opinion else None
        return asked or Comparison(False, kind)


def _like_a_time(reading: Structure) -> bool:
    return isinstance(reading, Ratio) and reading.like_a_time


# math-verify is asked about formulas with these operators, which our parser does not know, and
# about expressions for which we found too few points. Everything else is decided here: it takes
# units, bases, ratios, percentages and derivatives (which it evaluates to 0) for something else.
_OPERATORS = re.compile(r"\\(?:int|iint|oint|sum|prod|lim|gcd|lcm|max|min)(?![a-zA-Z])")
_NEVER_ASKED = re.compile(
    r"[^\x00-\x7fπ∞≤≥≠±*]|[%°:;=<>\[\]]|\\(?:partial|nabla|begin|vec|overline|text|mod|bmod|pmod)"
    r"|\\frac ?\{?d\b|(?<![\\a-zA-Z])(?!sin|cos|tan|log|exp|dx|dt)[a-zA-Z]{3,}|'"
)
_LIMITS = re.compile(r"_ ?\{[^{}]*\}")  # \sum_{k=1}, \lim_{x \to 0}
_LONGEST_ASKED = 200  # characters


def _opinion(
    first: Structure | None, first_text: str, second: Structure | None, second_text: str
) -> Comparison | None:
    """What math-verify says of two formulas that are worth asking about; None without an answer."""
    texts = (first_text, second_text)
    operators = [_OPERATORS.search(text) for text in texts]
    for reading, text, operator in zip((first, second), texts, operators, strict=True):
        if len(text) > _LONGEST_ASKED or _NEVER_ASKED.search(_LIMITS.sub("", text)):
            return None
        if reading is None and operator is None:
            return None
        if reading is not None and _plain_node(reading) is None:
            return None
    equal = second_opinion_of(_as_latex(first_text), _as_latex(second_text))
    if equal == TIMED_OUT:
        return Comparison(first_text == second_text, "expression", "math-verify timed out")
    return None if equal is None else Comparison(equal, "expression", "math-verify")


def _as_latex(text: str) -> str:
    for symbol, command in (("π", "\\pi "), ("∞", "\\infty "), ("*", "\\cdot "), ("≤", "\\le "),
                            ("≥", "\\ge "), ("≠", "\\ne "), ("±", "\\pm ")):  # fmt: skip
        text = text.replace(symbol, command)
    return text


def _long_numbers(expected: str, given: str) -> Comparison | None:
    first, second = literal(expected.strip()), literal(given.strip())
    if first is None or second is None:
        return None
    return Comparison(first == second, "number")


def _digits_in_base(reading: Structure | None, text: str) -> Comparison | None:
    """Whether a text like "1F" shows the digits of a number in another base; None otherwise."""
    if (
        not isinstance(reading, BaseNumber)
        or text.startswith("0b")
        or not re.fullmatch(r"[0-9A-Fa-f]{1,99}", text)
    ):
        return None
    return Comparison((text.upper().lstrip("0") or "0") == reading.digits, "number base")


def _as_variable(
    structure: Structure | None, text: str, other: Structure | None
) -> Structure | None:
    """A letter as a variable, where the other answer is an expression: x is √x · √x."""
    if structure is None and isinstance(other, Expression) and len(text) == 1:
        return read(text, depth=1)
    return structure


def _tightened(reading: Structure, text: str, other: Structure) -> Structure:
    """ "5m" as a length where the other answer has a unit, else as algebra."""
    if isinstance(reading, Expression) and isinstance(other, Quantity) and other.units:
        quantity = read_quantity(text, tight=True)
        if quantity is not None and quantity.units:
            return quantity
    return reading


def _kind(first: Structure, second: Structure) -> str:
    """The name of the kind that two readings are compared as."""
    if isinstance(first, Named) and isinstance(second, Named | Relation):
        value = first.value
        if isinstance(value, Expression):
            return "equation"
    while isinstance(first, Named):
        first = first.value
    while isinstance(second, Named):
        second = second.value
    if isinstance(first, BaseNumber) or isinstance(second, BaseNumber):
        return "number base"
    if isinstance(first, Quantity):
        other_units = (
            isinstance(second, Quantity) and not second.is_bare and not second.is_percentage
        )
        if (not first.is_bare and not first.is_percentage) or other_units:
            return "quantity"
        return "number" if first.value is not None else "expression"
    if isinstance(first, Listing):
        return "tuple" if first.form in "([⟨" else "set"
    if isinstance(first, RealSet):
        return "inequality" if first.variable else "interval"
    if isinstance(first, Relation):
        return "equation" if first.signs == "=" else "inequality"
    if isinstance(first, System):
        return "equation"
    if isinstance(first, Matrix):
        return "matrix"
    return "ratio" if isinstance(first, Ratio) else "expression"


# ---- comparing readings


def _same(first: Structure, second: Structure) -> bool:
    """Whether two readings mean the same.

    Raises:
        Undecided: an expression could not be compared.
    """
    if isinstance(first, Named) or isinstance(second, Named):
        return _same_named(first, second)
    for one, other in ((first, second), (second, first)):
        if isinstance(one, System):
            return _same_system(one, other)
        if isinstance(one, BaseNumber):
            return _same_base_number(one, other)
        if isinstance(one, RealSet):
            return _same_numbers(one, other)
    if isinstance(first, Listing) or isinstance(second, Listing):
        return _same_listing(first, second)
    if isinstance(first, Quantity) and isinstance(second, Quantity):
        return _same_quantity(first, second)
    if isinstance(first, Matrix) and isinstance(second, Matrix):
        return _same_matrix(first, second)
    if isinstance(first, Ratio) and isinstance(second, Ratio):
        return _same_ratio(first, second)
    if isinstance(first, Relation) and isinstance(second, Relation):
        return _same_relation(first, second)
    nodes = _plain_node(first), _plain_node(second)
    if nodes[0] is None or nodes[1] is None:
        return False
    return equal_in_any_case(nodes[0], nodes[1])


def _same_quantity(first: Quantity, second: Quantity) -> bool:
    if first.is_bare and second.is_bare:
        return equal_expressions(first.number, second.number)
    return equal_quantities(first, second)


def _plain_node(reading: Structure) -> Node | None:
    if isinstance(reading, Expression):
        return reading.node
    return reading.number if isinstance(reading, Quantity) and reading.is_bare else None


def equal_in_any_case(first: Node, second: Node) -> bool:
    """Like `equal_expressions`, with X for x where one text has only capital letters."""
    names, others = variables_of(first), variables_of(second)
    by_letter = {name.lower(): name for name in names}
    letters = {other.lower() for other in others}
    unique = len(by_letter) == len(names) and len(letters) == len(others)
    if names != others and unique and by_letter.keys() == letters:
        second = renamed(second, {other: by_letter[other.lower()] for other in others})
    return equal_expressions(first, second)


def _same_named(first: Structure, second: Structure) -> bool:
    if isinstance(first, Named) and isinstance(second, Named):
        if _variable(first.value) == second.name and _variable(second.value) == first.name:
            return True  # y = x and x = y
        return _same_name(first.name, second.name) and _same(first.value, second.value)
    named, other = (first, second) if isinstance(first, Named) else (second, first)
    if not isinstance(named, Named):
        return False
    if isinstance(other, Relation):
        if isinstance(named.value, Expression) and other.signs == "=" and len(named.name) == 1:
            left = Node("variable", name=named.name)
            return _same_relation(Relation((left, named.value.node), "="), other)
        return False
    if isinstance(other, RealSet) and other.variable and other.variable != named.name:
        return False
    return _same(named.value, other)


def _variable(structure: Structure) -> str | None:
    """The name of a variable that stands alone."""
    if isinstance(structure, Expression) and structure.node.operation == "variable":
        return structure.node.name
    return None


def _same_name(first: str, second: str) -> bool:
    names = [name.lower().lstrip("\\") for name in (first, second)]
    return names[0] == names[1] or set(names) == {"y", "f(x)"}


def _same_base_number(base_number: BaseNumber, other: Structure) -> bool:
    if isinstance(other, BaseNumber):
        return base_number == other
    if not isinstance(other, Quantity) or not other.is_bare or other.value is None:
        return False
    value = other.value
    if base_number.base == 10:
        return value == literal(base_number.digits)
    # 1010_2 and 1010
    return value.denominator == 1 and value >= 0 and _digits(int(value)) == base_number.digits


def _digits(value: int) -> str:
    return str(value) if value.bit_length() < 10_000 else ""


def _same_system(system: System, other: Structure) -> bool:
    if isinstance(other, System):
        if len(system.values) != len(other.values):
            return False
        return all(
            name == other_name and _same(value, other_value)
            for (name, value), (other_name, other_value) in zip(
                system.values, other.values, strict=True
            )
        )
    names = "".join(name for name, _ in system.values)
    if not system.in_order and names not in ("xy", "xyz"):
        return False  # b = 1, a = 2 may be (1, 2) or (2, 1)
    if isinstance(other, Listing) and other.form in ("(", "⟨", "list"):
        values = [value for _, value in system.values]  # x = 4, y = 5 is (4, 5)
        return _same_in_order(values, other.items)
    return False


def _same_in_order(first: Sequence[Structure], second: Sequence[Structure]) -> bool:
    return len(first) == len(second) and all(map(_same, first, second))


_SORTED_FROM = 4  # numbers between commas that may be meant in this order


def _same_listing(first: Structure, second: Structure) -> bool:
    for one, other in ((first, second), (second, first)):
        if isinstance(one, Listing) and isinstance(other, Matrix):
            row_or_column = len(other.rows) == 1 or len(other.rows[0]) == 1
            cells = [Expression(cell) for row in other.rows for cell in row]
            return row_or_column and one.form in "([⟨" and _same_in_order(one.items, cells)
        if isinstance(one, Listing) and not isinstance(other, Listing):
            if len(one.items) == 1 and one.form in ("set", "solutions"):
                return _same(one.items[0], other)
            return False
    if not isinstance(first, Listing) or not isinstance(second, Listing):
        return False
    forms = {first.form, second.form}
    brackets = forms & {"(", "[", "⟨"}
    if brackets:
        if forms & {"set", "solutions"}:
            return False
        two = len(first.items) == 2
        if two and "[" in forms and len(forms) > 1:
            return False  # [1, 2] may be an interval
        return _same_in_order(first.items, second.items)
    if forms == {"list"} and len(first.items) >= _SORTED_FROM:
        return _same_in_order(first.items, second.items)
    if forms == {"list"} and len(first.items) != len(second.items):
        return False
    return _same_members(first.items, second.items, distinct=forms != {"list"})


def _same_members(
    first: Sequence[Structure], second: Sequence[Structure], *, distinct: bool
) -> bool:
    if distinct:
        first, second = _distinct(first), _distinct(second)
    if len(first) != len(second):
        return False
    left = list(second)
    for item in first:
        for index, other in enumerate(left):
            # {1} is 1 as a whole answer, but {{1}, {2}} is not {1, 2}
            if isinstance(item, Listing) == isinstance(other, Listing) and _same(item, other):
                del left[index]
                break
        else:
            return False
    return True


def _distinct(items: Sequence[Structure]) -> list[Structure]:
    members: list[Structure] = []
    for item in items:
        if not any(_same(item, member) for member in members):
            members.append(item)
    return members


def _same_numbers(numbers: RealSet, other: Structure) -> bool:
    if isinstance(other, Listing):
        interval = as_interval(other) if other.form in ("(", "[") else None
        if interval is None:
            return False
        other = interval
    if not isinstance(other, RealSet):
        return False
    if numbers.variable and other.variable and numbers.variable != other.variable:
        return False
    try:
        first, second = joined(numbers.intervals), joined(other.intervals)
    except Undecided:
        first, second = numbers.intervals, other.intervals
    return len(first) == len(second) and all(map(_same_interval, first, second))


def _same_interval(first: Interval, second: Interval) -> bool:
    if (first.low_closed, first.high_closed) != (second.low_closed, second.high_closed):
        return False
    for end, other in ((first.low, second.low), (first.high, second.high)):
        if (end is None) != (other is None):
            return False
        if end is not None and other is not None and not equal_expressions(end, other):
            return False
    return True


def _same_relation(first: Relation, second: Relation) -> bool:
    if first.signs != second.signs:
        return False
    if all(map(equal_in_any_case, first.sides, second.sides)):
        return True
    if len(first.sides) != 2:
        return False
    if _is_solved(first) != _is_solved(second):
        return False
    left, right = (_difference(relation) for relation in (first, second))
    if variables_of(left) != variables_of(right):
        return False
    sign = common_factor(left, right)
    return sign > 0 if first.signs in ("<", "≤") else sign != 0


def _is_solved(relation: Relation) -> bool:
    """x = 3: one variable, alone on one side."""
    names = variables_of(relation.sides[0]) | variables_of(relation.sides[1])
    alone = any(side.operation == "variable" for side in relation.sides)
    return len(names) == 1 and alone


def _difference(relation: Relation) -> Node:
    return Node("sum", (relation.sides[0], Node("negative", (relation.sides[1],))))


def _same_matrix(first: Matrix, second: Matrix) -> bool:
    if len(first.rows) != len(second.rows) or len(first.rows[0]) != len(second.rows[0]):
        return False
    return all(
        equal_expressions(cell, other)
        for row, other_row in zip(first.rows, second.rows, strict=True)
        for cell, other in zip(row, other_row, strict=True)
    )


def _same_ratio(first: Ratio, second: Ratio) -> bool:
    if len(first.terms) != len(second.terms):
        return False
    if any(equal_expressions(term, number_node(0)) for term in (*first.terms, *second.terms)):
        return all(map(equal_expressions, first.terms, second.terms))
    return all(
        equal_expressions(
            Node("product", (first.terms[0], other)), Node("product", (second.terms[0], term))
        )
        for term, other in zip(first.terms[1:], second.terms[1:], strict=True)
    )
