"""Trees of expressions -> values: exact ones where possible, else decimals of many digits.

Two expressions are equal if they agree at every point where both are defined. A point gives each
variable a positive, a negative or a whole value. Constants are compared to 250 digits, so that
3.14159265358979 is not π.
"""

import math
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    Overflow,
    localcontext,
)
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b

from tinkersmith.grading.formulas.expressions import Node, variables

_LARGEST = 180  # decimal places before or after the point of any value on the way
_MOST_BITS = 20_000  # of an exact value
_LARGEST_FACTORIAL = 1000
_FIRST_LOOK, _WITH_VARIABLES, _CONSTANTS = 50, 100, 250  # digits
_MARGIN = 15  # digits that rounding may cost
_MOST_TERMS = 200  # of a sum
_ENOUGH = 3  # points at which two expressions must agree


class Undecided(Exception):
    """The expression has values that are too large, or too few points have a value."""


class TooLarge(Undecided):
    """A value on the way, or the work, is too large: 9^9^9^9."""


class Undefined(ArithmeticError):
    """The expression has no value here: 1/0, the logarithm of -1."""


# ---- the work that one pair of answers may cost

_MOST_WORK = 100_000  # small operations: about 0.3 s on a quiet core
_work: ContextVar[list[int] | None] = ContextVar("work", default=None)


@contextmanager
def limited_work() -> Generator[None]:
    """Count the operations inside, and raise `TooLarge` from the one that is too many.

    A count and no clock, so that a busy machine gives the same scores.
    """
    if _work.get() is not None:
        yield
        return
    token = _work.set([_MOST_WORK])
    try:
        yield
    finally:
        _work.reset(token)


def _spend(cost: int) -> None:
    left = _work.get()
    if left is not None:
        left[0] -= cost
        if left[0] < 0:
            raise TooLarge


# ---- exact values

_NEVER_EXACT = {"variable", "constant", "unknown", "either", "sum over", "product over"}


def exact(node: Node) -> Fraction | None:
    """The value if the expression is made of rational arithmetic only; else None.

    Raises:
        Undecided: the value is too large to be meant.
        Undefined: a division by zero.
    """
    if node.operation in ("number", "mixed"):
        return node.value
    if node.operation in _NEVER_EXACT:
        return None
    operands: list[Fraction] = []
    for child in node.operands:
        value = exact(child)
        if value is None:
            return None
        operands.append(value)
    value = _exact_operation(node.operation, operands)
    if value is not None:
        bits = _bits(value)
        _spend(1 + bits // 100)
        if bits > _MOST_BITS:
            raise TooLarge
    return value


def _bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _exact_quotient(above: Fraction, below: Fraction) -> Fraction:
    if not below:
        raise Undefined
    return above / below


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator > 1:
        root = _exact_root(base, exponent.denominator)
        if root is None:
            return None
        base, exponent = root, Fraction(exponent.numerator)
    if not base and exponent <= 0:
        raise Undefined
    if abs(base) != 1 and _bits(base) * abs(exponent) > _MOST_BITS:
        raise TooLarge
    if abs(exponent) > 10**9:
        raise TooLarge
    return base ** int(exponent)


def _exact_root(base: Fraction, degree: int) -> Fraction | None:
    """The rational root if there is one; of negative numbers only with an odd degree."""
    if degree > 20 or _bits(base) > 4000 or (base < 0 and degree % 2 == 0):
        return None
    above, below = _whole_root(abs(base.numerator), degree), _whole_root(base.denominator, degree)
    if above is None or below is None:
        return None
    return Fraction(above if base >= 0 else -above, below)


def _whole_root(value: int, degree: int) -> int | None:
    low, high = 0, 1 << (value.bit_length() // degree + 1)
    while low < high:
        middle = (low + high) // 2
        if middle**degree < value:
            low = middle + 1
        else:
            high = middle
    return low if low**degree == value else None


def _exact_factorial(value: Fraction) -> Fraction:
    if value.denominator > 1 or value < 0:
        raise Undefined
    if value > _LARGEST_FACTORIAL:
        raise TooLarge
    return Fraction(math.factorial(int(value)))


def _exact_binomial(total: Fraction, chosen: Fraction) -> Fraction:
    if total.denominator > 1 or chosen.denominator > 1 or total < 0 or chosen < 0:
        raise Undefined
    if total > _LARGEST_FACTORIAL:
        raise TooLarge
    return Fraction(math.comb(int(total), int(chosen)))


def _exact_log(value: Fraction, base: Fraction = Fraction(10)) -> Fraction | None:
    """The logarithm if it is a whole number: log_2 8 is 3."""
    if value <= 0 or base <= 0 or base == 1:
        raise Undefined
    if _bits(value) > 4000 or _bits(base) > 4000:
        return None
    approximate = (_rough_log(value)) / (_rough_log(base))
    power = round(approximate)
    if abs(power) > 4000 or abs(approximate - power) > 1e-6:
        return None
    return Fraction(power) if base**power == value else None


def _rough_log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


def _exact_operation(operation: str, operands: list[Fraction]) -> Fraction | None:
    first = operands[0]
    second = operands[1] if len(operands) > 1 else None
    if second is None:
        return _exact_of_one(operation, first)
    if operation == "sum":
        return first + second
    if operation == "product":
        return first * second
    if operation == "quotient":
        return _exact_quotient(first, second)
    if operation == "power":
        return _exact_power(first, second)
    if operation == "binomial":
        return _exact_binomial(first, second)
    return _exact_log(first, second) if operation == "log" else None


def _exact_of_one(operation: str, value: Fraction) -> Fraction | None:
    if operation == "negative":
        return -value
    if operation == "abs":
        return abs(value)
    if operation == "floor":
        return Fraction(math.floor(value))
    if operation == "ceil":
        return Fraction(math.ceil(value))
    if operation == "factorial":
        return _exact_factorial(value)
    return _exact_log(value) if operation in ("log", "lg") else None


# ---- values of many digits


@dataclass(frozen=True, slots=True)
class _Complex:
    real: Decimal
    imaginary: Decimal


_Value = Decimal | _Complex
_COSTLY = {
    "power", "exp", "log", "ln", "lg", "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos",
    "arctan", "sinh", "cosh", "tanh", "factorial", "binomial",
}  # fmt: skip


@dataclass(slots=True)
class _Evaluation:
    """The values of variables, and the largest magnitude on the way, which bounds the error."""

    point: dict[str, Decimal]
    digits: int
    constant: bool
    largest: int = field(default=0)

    def value(self, node: Node) -> _Value:
        _spend(self.digits if node.operation in _COSTLY else 1)
        value = self._value(node)
        for side in (value,) if isinstance(value, Decimal) else (value.real, value.imaginary):
            if side:
                magnitude = side.adjusted()
                # Below -240, 250 digits show nothing but the rounding error of a zero.
                if magnitude > _LARGEST or -_LARGEST - 60 < magnitude < -_LARGEST:
                    raise TooLarge
                self.largest = max(self.largest, magnitude)
        return value

    def real(self, node: Node) -> Decimal:
        value = self.value(node)
        if isinstance(value, _Complex):
            raise Undefined
        return value

    def _value(self, node: Node) -> _Value:
        operation = node.operation
        if operation in ("number", "mixed"):
            return Decimal(node.value.numerator) / Decimal(node.value.denominator)
        if operation == "variable":
            return self.point[node.name]
        if operation == "constant":
            return _constant(node.name, self.digits)
        if operation == "unknown":
            return _unknown(node.name, self.real(node.operands[0]), self.digits)
        if operation == "sum":
            return _added(self.value(node.operands[0]), self.value(node.operands[1]))
        if operation == "negative":
            return _multiplied(self.value(node.operands[0]), Decimal(-1))
        if operation == "product":
            return _multiplied(self.value(node.operands[0]), self.value(node.operands[1]))
        if operation == "quotient":
            return _divided(self.value(node.operands[0]), self.value(node.operands[1]))
        if operation == "power":
            return self._power(node.operands[0], node.operands[1])
        if operation == "abs":
            return _magnitude(self.value(node.operands[0]))
        if operation == "exp":
            return self._exponential(self.value(node.operands[0]))
        if operation == "binomial":
            total, chosen = (_whole(self.real(child), self.digits) for child in node.operands)
            return Decimal(_exact_binomial(Fraction(total), Fraction(chosen)).numerator)
        if operation == "log":
            argument, *bases = node.operands
            base = self.real(bases[0]) if bases else Decimal(10)
            return _divided(_log(self.real(argument)), _log(base))
        if operation in ("sum over", "product over"):
            return self._series(node)
        function = _FUNCTIONS.get(operation)
        if function is None:
            raise Undecided
        return function(self.real(node.operands[0]), self.digits)

    def _series(self, node: Node) -> _Value:
        low, high = (_whole(self.real(child), self.digits) for child in node.operands[:2])
        if high - low > _MOST_TERMS:
            raise TooLarge
        adds = node.operation == "sum over"
        total: _Value = Decimal(0 if adds else 1)
        outside = self.point
        for index in range(low, high + 1):
            self.point = {**outside, node.name: Decimal(index)}
            term = self.value(node.operands[2])
            total = _added(total, term) if adds else _multiplied(total, term)
        self.point = outside
        return total

    def _power(self, base_node: Node, exponent_node: Node) -> _Value:
        base = self.value(base_node)
        exponent = exact(exponent_node)
        if exponent is None:
            shown = self.value(exponent_node)
            if isinstance(shown, Decimal) and shown == shown.to_integral_value():
                exponent = Fraction(int(shown)) if abs(shown) < 10**6 else None
            if exponent is None:
                if isinstance(base, _Complex) or base < 0:
                    raise Undefined
                if not base:
                    if isinstance(shown, Decimal) and shown > 0:
                        return Decimal(0)
                    raise Undefined
                return self._exponential(_multiplied(shown, base.ln()))
        if exponent.denominator == 1:
            return self._whole_power(base, int(exponent))
        if isinstance(base, _Complex):
            raise Undefined
        if not base:
            if exponent > 0:
                return Decimal(0)
            raise Undefined
        decimal = Decimal(exponent.numerator) / Decimal(exponent.denominator)
        if base > 0:
            if exponent == Fraction(1, 2):
                return base.sqrt()
            return self._exponential(base.ln() * decimal)
        if exponent.denominator % 2:  # the real root, as schools take it
            root = self._exponential((-base).ln() * decimal)
            return _multiplied(root, Decimal(-1 if exponent.numerator % 2 else 1))
        if exponent == Fraction(1, 2) and self.constant:
            return _Complex(Decimal(0), (-base).sqrt())
        raise Undefined

    def _whole_power(self, base: _Value, exponent: int) -> _Value:
        if isinstance(base, _Complex):
            if abs(exponent) > 200:
                raise TooLarge
            power: _Value = Decimal(1)
            for _ in range(abs(exponent)):
                power = _multiplied(power, base)
            return _divided(Decimal(1), power) if exponent < 0 else power
        if not base:
            if exponent > 0:
                return Decimal(0)
            raise Undefined
        if abs(exponent) * max(1, abs(base.adjusted()) + 1) > 200 * _LARGEST:
            raise TooLarge
        return base**exponent

    def _exponential(self, exponent: _Value) -> _Value:
        real = exponent if isinstance(exponent, Decimal) else exponent.real
        if abs(real) > 3 * _LARGEST:
            raise TooLarge
        growth = real.exp()
        if isinstance(exponent, Decimal):
            return growth
        angle = exponent.imaginary
        return _Complex(growth * _cosine(angle, self.digits), growth * _sine(angle, self.digits))


def _added(first: _Value, second: _Value) -> _Value:
    if isinstance(first, Decimal) and isinstance(second, Decimal):
        return first + second
    first, second = _as_complex(first), _as_complex(second)
    return _Complex(first.real + second.real, first.imaginary + second.imaginary)


def _multiplied(first: _Value, second: _Value) -> _Value:
    if isinstance(first, Decimal) and isinstance(second, Decimal):
        return first * second
    first, second = _as_complex(first), _as_complex(second)
    return _Complex(
        first.real * second.real - first.imaginary * second.imaginary,
        first.real * second.imaginary + first.imaginary * second.real,
    )


def _divided(above: _Value, below: _Value) -> _Value:
    if isinstance(below, Decimal):
        if not below:
            raise Undefined
        if isinstance(above, Decimal):
            return above / below
        return _Complex(above.real / below, above.imaginary / below)
    size = below.real * below.real + below.imaginary * below.imaginary
    if not size:
        raise Undefined
    return _multiplied(above, _Complex(below.real / size, -below.imaginary / size))


def _as_complex(value: _Value) -> _Complex:
    return value if isinstance(value, _Complex) else _Complex(value, Decimal(0))


def _magnitude(value: _Value) -> Decimal:
    if isinstance(value, Decimal):
        return abs(value)
    return (value.real * value.real + value.imaginary * value.imaginary).sqrt()


def _constant(name: str, digits: int) -> _Value:
    if name == "i":
        return _Complex(Decimal(0), Decimal(1))
    return _pi(digits) if name == "π" else _euler(digits)


@lru_cache(maxsize=8)
def _euler(digits: int) -> Decimal:
    with localcontext() as context:
        context.prec = digits + 10
        return Decimal(1).exp()


@lru_cache(maxsize=8)
def _pi(digits: int) -> Decimal:
    """π by the arithmetic-geometric mean (Brent 1976, Salamin 1976)."""
    with localcontext() as context:
        context.prec = digits + 20
        mean, other = Decimal(1), 1 / Decimal(2).sqrt()
        total, weight = Decimal(1) / 4, Decimal(1)
        for _ in range(digits.bit_length() + 2):
            following = (mean + other) / 2
            other = (mean * other).sqrt()
            total -= weight * (mean - following) ** 2
            mean, weight = following, weight * 2
        return (mean + other) ** 2 / (4 * total)


def _unknown(name: str, argument: Decimal, digits: int) -> Decimal:
    """A value for f(x) that only depends on the name and, up to rounding, on the argument."""
    key = f"{name} {argument:.30e}" if argument else name
    number = int.from_bytes(blake2b(key.encode(), digest_size=16).digest())
    return Decimal(number) / Decimal(2**127) + Decimal("0.1")


def _whole(value: Decimal, digits: int) -> int:
    nearest = value.to_integral_value()
    if abs(value - nearest) > Decimal(10) ** (-digits // 2) or abs(nearest) > 10**9:
        raise Undefined
    return int(nearest)


def _log(value: Decimal) -> Decimal:
    if value <= 0:
        raise Undefined
    return value.ln()


def _sine(angle: Decimal, digits: int) -> Decimal:
    if abs(angle) > 10**6:
        raise TooLarge
    turn = 2 * _pi(digits + 10)
    angle = angle - turn * (angle / turn).to_integral_value()
    square, term, total = angle * angle, angle, angle
    smallest = Decimal(10) ** (-digits - 5)
    count = 1
    while abs(term) > smallest:
        term = -term * square / ((count + 1) * (count + 2))
        total += term
        count += 2
    return total


def _cosine(angle: Decimal, digits: int) -> Decimal:
    return _sine(angle + _pi(digits + 10) / 2, digits)


def _ratio(above: Decimal, below: Decimal, digits: int) -> Decimal:
    if abs(below) < Decimal(10) ** (-digits // 2):
        raise Undefined
    return above / below


def _arctangent(value: Decimal, digits: int) -> Decimal:
    for _ in range(4):  # arctan x = 2 arctan(x / (1 + sqrt(1 + x²)))
        value = value / (1 + (1 + value * value).sqrt())
    square, power, total = value * value, value, value
    smallest = Decimal(10) ** (-digits - 5)
    count = 1
    while abs(power) > smallest:
        power = -power * square
        count += 2
        total += power / count
    return 16 * total


def _arcsine(value: Decimal, digits: int) -> Decimal:
    if abs(value) > 1:
        raise Undefined
    if abs(value) == 1:
        return value * _pi(digits) / 2
    return _arctangent(value / (1 - value * value).sqrt(), digits)


def _hyperbolic(value: Decimal, sign: int) -> Decimal:
    if abs(value) > _LARGEST:
        raise TooLarge
    growth = value.exp()
    return (growth + sign / growth) / 2


def _rounded(value: Decimal, digits: int, rounding: Callable[[Decimal], int]) -> Decimal:
    nearest = value.to_integral_value()
    if abs(value - nearest) < Decimal(10) ** (-digits // 2):
        return nearest
    return Decimal(rounding(value))


_FUNCTIONS: dict[str, Callable[[Decimal, int], Decimal]] = {
    "sin": _sine,
    "cos": _cosine,
    "tan": lambda x, digits: _ratio(_sine(x, digits), _cosine(x, digits), digits),
    "cot": lambda x, digits: _ratio(_cosine(x, digits), _sine(x, digits), digits),
    "sec": lambda x, digits: _ratio(Decimal(1), _cosine(x, digits), digits),
    "csc": lambda x, digits: _ratio(Decimal(1), _sine(x, digits), digits),
    "arcsin": _arcsine,
    "arccos": lambda x, digits: _pi(digits) / 2 - _arcsine(x, digits),
    "arctan": _arctangent,
    "sinh": lambda x, _: _hyperbolic(x, -1),
    "cosh": lambda x, _: _hyperbolic(x, 1),
    "tanh": lambda x, _: _hyperbolic(x, -1) / _hyperbolic(x, 1),
    "ln": lambda x, _: _log(x),
    "lg": lambda x, _: _log(x) / Decimal(10).ln(),
    "floor": lambda x, digits: _rounded(x, digits, math.floor),
    "ceil": lambda x, digits: _rounded(x, digits, math.ceil),
    "factorial": lambda x, digits: Decimal(_exact_factorial(Fraction(_whole(x, digits))).numerator),
}


# ---- comparing


_REALS = [
    (0.05, 0.95), (0.05, 0.95), (1.05, 4), (-0.95, -0.05), (-4, -1.05), (5, 30), (-3, 3),
    (40, 90), (150, 300), (310, 600), (700, 990),  # where sqrt(x - 100) has values
]  # fmt: skip
_WHOLES = [(2, 3, 5, 7), (3, 2, 4, 5), (4, 3, 2, 6), (7, 4, 3, 2), (10, 6, 7, 3)]


@lru_cache(maxsize=256)
def _points(names: tuple[str, ...]) -> tuple[dict[str, Decimal], ...]:
    """Fixed values for the variables: fractions of both signs, then whole numbers."""
    if not names:
        return ({},)
    rng = random.Random(20_260)
    points = [
        {name: Decimal(repr(round(rng.uniform(low, high), 12))) for name in names}
        for low, high in _REALS
    ]
    points += [
        {name: Decimal(values[index % len(values)]) for index, name in enumerate(names)}
        for values in _WHOLES
    ]
    return tuple(points)


def _context(digits: int) -> Context:
    traps = [InvalidOperation, DivisionByZero, Overflow]
    return Context(prec=digits, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=traps)


def _at(
    nodes: tuple[Node, Node], point: dict[str, Decimal], digits: int, constant: bool
) -> tuple[_Value, _Value, Decimal]:
    """Both values at a point, and the largest difference that rounding explains."""
    with localcontext(_context(digits)):
        evaluation = _Evaluation(point, digits, constant)
        first, second = evaluation.value(nodes[0]), evaluation.value(nodes[1])
        return first, second, Decimal(10) ** (evaluation.largest + _MARGIN - digits)


def _values(first: Node, second: Node, digits: int) -> Iterator[tuple[_Value, _Value, Decimal]]:
    """Both values and their possible error, at every point where both are defined."""
    names = tuple(sorted(variables(first) | variables(second)))
    for point in _points(names):
        try:
            yield _at((first, second), point, digits, not names)
        except (Undefined, Undecided, ArithmeticError):
            if not names:
                raise


def equal_expressions(first: Node, second: Node) -> bool:
    """Whether two expressions have the same value wherever both have one.

    Raises:
        Undecided: the values are too large, or too few points have a value.
    """
    if first == second:
        return True
    try:
        value, other = exact(first), exact(second)
    except Undefined:
        return False
    if value is not None and other is not None:
        return value == other
    if variables(first) != variables(second) and _depends(first) != _depends(second):
        return False
    constant = not (variables(first) or variables(second))
    try:
        for digits in (_FIRST_LOOK, _CONSTANTS if constant else _WITH_VARIABLES):
            agreed = 0
            with localcontext(_context(digits)):
                for one, two, error in _values(first, second, digits):
                    difference = _added(one, _multiplied(two, Decimal(-1)))
                    if _magnitude(difference) > error:
                        return False
                    agreed += 1
            if agreed < (1 if constant else _ENOUGH):
                raise Undecided
    except Undefined:
        return False
    except ArithmeticError as error:
        raise Undecided from error
    return True


def _depends(node: Node) -> set[str]:
    """Variables whose value matters: x in x + 1, none in x - x."""
    names = variables(node)
    if len(names) > 6:
        return names
    matters: set[str] = set()
    for name in names:
        other = renamed(node, {name: name + "?"})
        try:
            if not _agree(node, other):
                matters.add(name)
        except Undecided:
            matters.add(name)
    return matters


def _agree(first: Node, second: Node) -> bool:
    with localcontext(_context(_FIRST_LOOK)):
        for one, two, error in _values(first, second, _FIRST_LOOK):
            if _magnitude(_added(one, _multiplied(two, Decimal(-1)))) > error:
                return False
    return True


def renamed(node: Node, names: dict[str, str]) -> Node:
    """The expression with other names for its variables."""
    operands = tuple(renamed(child, names) for child in node.operands)
    return Node(node.operation, operands, node.value, names.get(node.name, node.name))


def common_factor(first: Node, second: Node) -> int:
    """The sign of the constant c with first = c × second; 0 if there is none.

    Raises:
        Undecided: too few points have a value.
    """
    names = variables(first) | variables(second)
    if not names:
        raise Undecided
    factor: Decimal | None = None
    agreed = 0
    with localcontext(_context(_WITH_VARIABLES)):
        for one, two, error in _values(first, second, _WITH_VARIABLES):
            if isinstance(one, _Complex) or isinstance(two, _Complex):
                raise Undecided
            if abs(one) <= error and abs(two) <= error:
                continue
            if abs(one) <= error or abs(two) <= error:
                return 0
            if factor is None:
                factor = one / two
            elif abs(one - factor * two) > error * (1 + abs(factor)) * 10**6:
                return 0
            agreed += 1
    if factor is None or agreed < _ENOUGH:
        raise Undecided
    return 1 if factor > 0 else -1


def real_value(node: Node) -> Decimal | None:
    """A constant's value to 50 digits; None if it has none, is complex, or has variables."""
    if variables(node):
        return None
    try:
        with localcontext(_context(_FIRST_LOOK)):
            value = _Evaluation({}, _FIRST_LOOK, True).value(node)
    except (Undecided, ArithmeticError):
        return None
    return value if isinstance(value, Decimal) else None
