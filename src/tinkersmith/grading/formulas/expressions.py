r"""A formula's text -> a tree, and whether two trees have the same value wherever both have one.

The parser is our own and runs nothing. Two expressions are compared by exact arithmetic where both
are rational numbers, else by values of many digits at fixed points, positive, negative and whole.
This module does not know units, lists, relations or intervals.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from tinkersmith.grading.formulas.numbers import literal, repeating_decimal

_LONGEST = 600  # characters of an expression
_MOST_TOKENS = 250
_DEEPEST = 60  # brackets, exponents and functions inside one another


class Unreadable(ValueError):
    """The text is no expression that this parser knows."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operation with its operands; a number ("number") or a name ("variable", "constant")."""

    operation: str
    operands: tuple["Node", ...] = ()
    value: Fraction = Fraction(0)
    name: str = ""


def number_node(value: Fraction | int) -> Node:
    return Node("number", value=Fraction(value))


FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "ln", "log", "lg", "exp", "sqrt", "abs", "floor", "ceil",
}  # fmt: skip
_ALIASES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot"}
_INVERSES = {"sin": "arcsin", "cos": "arccos", "tan": "arctan"}
_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "varepsilon": "ε",
    "theta": "θ", "lambda": "λ", "mu": "μ", "rho": "ρ", "sigma": "σ", "tau": "τ", "phi": "φ",
    "varphi": "φ", "omega": "ω", "Delta": "Δ", "xi": "ξ", "eta": "η", "kappa": "κ", "psi": "ψ",
    "zeta": "ζ", "nu": "ν",
}  # fmt: skip
_NO_PRODUCTS = {
    "is", "no", "of", "to", "up", "co", "op", "as", "at", "an", "or", "in", "it", "be", "by",
    "do", "go", "he", "hi", "if", "me", "my", "on", "so", "us", "we", "am", "pm", "ok", "vs",
    "re", "ex", "oh", "ah", "eh", "ha",
}  # fmt: skip
_TOKEN = re.compile(
    r"(?P<repeating>\d*\.\d*(?:\\overline ?\{\d+\}|\\bar ?\{\d+\}|\\bar \d|\(\d+\)(?!\^)|\d…|\d循环"
    r"|\\dot ?\{?\d\}?(?:\d*\\dot ?\{?\d\}?)?))"
    r"|(?P<number>(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d+(?![\da-zA-Z]))?"
    r"|\.\d+(?:[eE][-+]?\d+(?![\da-zA-Z]))?|\d+\.)"
    r"|\\(?P<command>[a-zA-Z]+)\s?"
    r"|(?P<letters>[a-zA-Z]+)"
    r"|(?P<greek>[α-ορ-ωΔΩμ])"
    r"|(?P<symbol>\*\*|[-+*/^_(){}\[\]|!%°π√±∓=,⌊⌋⌈⌉'])"
    r"|(?P<space>\s+)"
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # "number", "name", "function", "symbol", "command" or "end"
    text: str
    spaced: bool  # white space before it
    value: Fraction = Fraction(0)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place, spaced = 0, False
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Unreadable(text[place])
        place = match.end()
        kind, content = match.lastgroup or "", match[0]
        if kind == "space":
            spaced = True
            continue
        if kind in ("number", "repeating"):
            value = literal(content) if kind == "number" else repeating_decimal(content)
            if value is None:
                raise Unreadable(content)
            tokens.append(_Token("number", content, spaced, value))
        elif kind == "letters":
            for index, (letter_kind, name) in enumerate(_names(content)):
                tokens.append(_Token(letter_kind, name, spaced and index == 0))
        elif kind == "command":
            name = match["command"]
            name = _ALIASES.get(name, name)
            if name in FUNCTIONS and name != "sqrt":
                tokens.append(_Token("function", name, spaced))
            elif name in _GREEK:
                tokens.append(_Token("name", _GREEK[name], spaced))
            else:
                tokens.append(_Token("command", name, spaced))
        elif kind == "greek":
            tokens.append(_Token("name", content, spaced))
        else:
            tokens.append(_Token("symbol", "^" if content == "**" else content, spaced))
        spaced = False
        if len(tokens) > _MOST_TOKENS:
            raise Unreadable("too long")
    tokens.append(_Token("end", "", False))
    return tokens


def _names(letters: str) -> Iterator[tuple[str, str]]:
    """The functions, constants and single letters that a run of letters stands for."""
    lowered = _ALIASES.get(letters, letters)
    if lowered in FUNCTIONS:
        yield "function", lowered
        return
    if letters in ("pi", "Pi", "PI"):
        yield "symbol", "π"
        return
    if letters in _GREEK:
        yield "name", _GREEK[letters]
        return
    for function in FUNCTIONS:
        # sinx, 2lnx, xsinx
        before, name, after = letters.partition(function)
        if name and len(before) <= 1 and len(after) <= 1 and len(function) > 1:
            yield from (("name", letter) for letter in before)
            yield "function", function
            yield from (("name", letter) for letter in after)
            return
    if letters.endswith("pi") and len(letters) == 3:
        yield "name", letters[0]
        yield "symbol", "π"
        return
    if len(letters) > 3 or letters.lower() in _NO_PRODUCTS:
        raise Unreadable(letters)
    if len(letters) == 3 and "".join(sorted(letters)) != letters:
        raise Unreadable(letters)  # abc and xyz are products, act and cat are words
    yield from (("name", letter) for letter in letters)


_TERM_SIGNS = ("+", "-", "±", "∓")


class _Parser:
    def __init__(self, text: str):
        if len(text) > _LONGEST:
            raise Unreadable("too long")
        self.tokens = _tokens(text)
        self.place = 0
        self.depth = 0
        self.bars = 0  # open |
        self.indices: set[str] = set()  # of sums: in \sum_{i=1}^n i, the letter i is no constant

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def is_next(self, *symbols: str) -> bool:
        return self.next.kind == "symbol" and self.next.text in symbols

    def take(self, symbol: str) -> bool:
        if self.is_next(symbol):
            self.place += 1
            return True
        return False

    def expect(self, symbol: str) -> None:
        if not self.take(symbol):
            raise Unreadable(f"{symbol} is missing")

    def whole(self) -> Node:
        node = self.sum()
        if self.next.kind != "end":
            raise Unreadable(self.next.text)
        return node

    def descend(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable("too deep")

    def sum(self) -> Node:
        node = self.term() if self.is_next(*_TERM_SIGNS) else self.product()
        while self.is_next(*_TERM_SIGNS):
            node = Node("sum", (node, self.term()))
        return node

    def term(self) -> Node:
        sign = self.next.text
        self.place += 1
        product = self.product()
        if sign == "-":
            return Node("negative", (product,))
        return product if sign == "+" else Node("either", (product,), name=sign)

    def product(self) -> Node:
        node = self.signed()
        while True:
            if self.take("*"):
                node = Node("product", (node, self.signed()))
            elif self.take("/"):
                node = Node("quotient", (node, self.divisor()))
            elif self.starts_factor():
                node = Node("product", (node, self.factor(node)))
            else:
                return node

    def divisor(self) -> Node:
        """The operand after a slash: in 1/xy it is xy, in 1/2x it is 2."""
        node = self.signed()
        if node.operation == "variable":
            while self.next.kind == "name" and not self.next.spaced:
                node = Node("product", (node, self.power()))
        return node

    def factor(self, before: Node) -> Node:
        """A factor without a sign of multiplication: 2x, but not "2 3" and not "x 2"."""
        token = self.next
        if token.kind == "number" and self.tokens[self.place - 1].text != "!":  # 3!2!
            raise Unreadable("two numbers side by side")
        node = self.power()
        if before.operation == "number" and node.operation == "mixed":
            raise Unreadable("two numbers side by side")
        return node

    def starts_factor(self) -> bool:
        token = self.next
        if token.kind in ("number", "name", "function", "command"):
            return True
        if self.is_next("|"):
            return self.bars == 0
        return self.is_next("(", "π", "√", "{", "⌊", "⌈", "[")

    def signed(self) -> Node:
        sign = 0
        while self.is_next("-", "+"):
            sign += self.next.text == "-"
            self.place += 1
            if sign > 4:
                raise Unreadable("signs")
        node = self.power()
        return Node("negative", (node,)) if sign % 2 else node

    def power(self) -> Node:
        self.descend()
        base = self.postfix(self.atom())
        if self.take("^"):
            base = self.postfix(Node("power", (base, self.exponent())))
        self.depth -= 1
        return base

    def exponent(self) -> Node:
        self.descend()
        if self.take("-"):
            node = Node("negative", (self.exponent(),))
            self.depth -= 1
            return node
        if self.take("{"):
            node = self.sum()
            self.expect("}")
        else:
            node = self.atom()
        node = self.postfix(node)
        if self.take("^"):
            node = Node("power", (node, self.exponent()))
        self.depth -= 1
        return node

    def postfix(self, node: Node) -> Node:
        while True:
            if self.take("!"):
                if self.is_next("!"):
                    raise Unreadable("double factorial")
                node = Node("factorial", (node,))
            elif self.take("%"):
                node = Node("quotient", (node, number_node(100)))
            elif self.take("°"):
                angle = Node("product", (node, Node("constant", name="π")))
                node = Node("quotient", (angle, number_node(180)))
            else:
                return node

    def bracketed(self, closing: str) -> Node:
        node = self.sum()
        self.expect(closing)
        return node

    def group(self) -> Node:
        r"""The argument of a LaTeX command: {…}, or one digit or letter as in \frac12."""
        if self.take("{"):
            return self.bracketed("}")
        token = self.next
        if token.kind == "number" and token.text.isdigit():
            if len(token.text) > 1:  # \frac12: the second digit is the next argument
                rest = token.text[1:]
                self.tokens[self.place] = _Token("number", rest, False, Fraction(int(rest)))
            else:
                self.place += 1
            return number_node(int(token.text[0]))
        if token.kind == "name" or self.is_next("π"):
            return self.atom()
        if token.kind == "command" and token.text == "sqrt":
            return self.atom()
        raise Unreadable("an argument is missing")

    def atom(self) -> Node:
        token = self.next
        self.place += 1
        if token.kind == "number":
            return self.number_or_mixed(token)
        if token.kind == "name":
            return self.named(token)
        if token.kind == "function":
            return self.function(token.text)
        if token.kind == "command":
            return self.command(token.text)
        if token.kind != "symbol":
            raise Unreadable("something is missing")
        if token.text in "([{":
            return self.bracketed({"(": ")", "[": "]", "{": "}"}[token.text])
        if token.text == "⌊":
            return Node("floor", (self.bracketed("⌋"),))
        if token.text == "⌈":
            return Node("ceil", (self.bracketed("⌉"),))
        if token.text == "π":
            return Node("constant", name="π")
        if token.text == "√":
            return self.root()
        if token.text == "|" and self.bars == 0:
            self.bars += 1
            node = self.bracketed("|")
            self.bars -= 1
            return Node("abs", (node,))
        raise Unreadable(token.text)

    def number_or_mixed(self, token: _Token) -> Node:
        """A number; with a proper fraction behind it, a mixed number: 1 1/2, 1\\frac{1}{2}."""
        whole = number_node(token.value)
        if not token.text.isdigit():
            return whole
        if (chosen := self.chosen()) is not None:
            return chosen(whole)
        following = self.tokens[self.place : self.place + 4]
        if len(following) == 4 and following[0].kind == "number" and following[0].spaced:
            above, slash, below, after = following
            digits = above.text.isdigit() and below.text.isdigit() and slash.text == "/"
            if digits and 0 < above.value < below.value and after.text not in ("/", "^", "!"):
                self.place += 3
                return Node("mixed", value=token.value + above.value / below.value)
        elif following[0].kind == "command" and following[0].text == "frac":
            start = self.place
            tokens = list(self.tokens)
            self.place += 1
            fraction = self.command("frac")
            above, below = fraction.operands
            plain = above.operation == below.operation == "number"
            if plain and 0 < above.value < below.value:
                return Node("mixed", value=token.value + above.value / below.value)
            self.place, self.tokens = start, tokens
        return whole

    def chosen(self) -> Callable[[Node], Node] | None:
        """The combinations in 10C3, or permutations in 5P2, behind their total."""
        name, count = self.next, self.tokens[min(self.place + 1, len(self.tokens) - 1)]
        if name.text not in ("C", "P") or name.spaced or not count.text.isdigit() or count.spaced:
            return None
        self.place += 2
        node = number_node(count.value)
        if name.text == "C":
            return lambda total: Node("binomial", (total, node))
        factorial = Node("factorial", (node,))
        return lambda total: Node("product", (Node("binomial", (total, node)), factorial))

    def named(self, token: _Token) -> Node:
        name = token.text
        subscript = ""
        if self.take("_"):
            subscript = self.subscript()
        elif self.next.kind == "number" and not self.next.spaced:
            if not self.next.text.isdigit():
                raise Unreadable("a name with a decimal")
            subscript = self.next.text
            self.place += 1
        while self.take("'"):
            subscript += "'"
        if name in "CA" and subscript.isdigit() and self.is_next("^"):
            return self.combinations(name, int(subscript))
        if subscript:
            return Node("variable", name=f"{name}_{subscript}")
        if name in ("e", "i") and name not in self.indices:
            return Node("constant", name=name)
        if name == "C" and self.is_next("(") and (pair := self.pair()):
            return Node("binomial", pair)
        if name in "fghFG" and self.is_next("(") and not self.next.spaced:
            self.place += 1
            return Node("unknown", (self.bracketed(")"),), name=name)
        return Node("variable", name=name)

    def subscript(self) -> str:
        if self.take("{"):
            text = ""
            while not self.is_next("}"):
                if self.next.kind not in ("number", "name"):
                    raise Unreadable("subscript")
                text += self.next.text
                self.place += 1
            self.place += 1
            return text
        token = self.next
        if token.kind not in ("number", "name"):
            raise Unreadable("subscript")
        self.place += 1
        return token.text

    def combinations(self, name: str, total: int) -> Node:
        """C_5^2 and A_5^2, as Chinese schools write combinations and permutations."""
        self.expect("^")
        chosen = self.exponent()
        binomial = Node("binomial", (number_node(total), chosen))
        return (
            Node("product", (binomial, Node("factorial", (chosen,)))) if name == "A" else binomial
        )

    def pair(self) -> tuple[Node, Node] | None:
        """The two arguments in C(5, 2); None, and nothing is read, if there are not two."""
        start = self.place
        self.expect("(")
        first = self.sum()
        if self.take(","):
            second = self.sum()
            self.expect(")")
            return first, second
        self.place = start
        return None

    def root(self) -> Node:
        degree: Node | None = None
        if self.take("["):
            degree = self.bracketed("]")
        node = self.group() if self.is_next("{") else self.root_argument()
        if degree is None:
            return Node("power", (node, number_node(Fraction(1, 2))))
        return Node("power", (node, Node("quotient", (number_node(1), degree))))

    def root_argument(self) -> Node:
        token = self.next
        if token.kind == "number":
            self.place += 1
            return number_node(token.value)
        return self.atom()

    def function(self, name: str) -> Node:
        if name == "sqrt":
            return self.root()
        base: Node | None = None
        if name == "log" and self.take("_"):
            base = self.log_base()
        exponent: Node | None = None
        if self.take("^"):
            exponent = self.exponent()
            if name in _INVERSES and exponent == Node("negative", (number_node(1),)):
                name, exponent = _INVERSES[name], None
        argument = self.argument()
        node = Node(name, (argument,) if base is None else (argument, base))
        return node if exponent is None else Node("power", (node, exponent))

    def log_base(self) -> Node:
        if self.take("{"):
            return self.bracketed("}")
        token = self.next
        if token.kind == "number":
            # \log_28 is \log_2 8, log_10 100 has a space
            if (
                token.text.isdigit()
                and not self.tokens[self.place + 1].spaced
                and len(token.text) > 1
            ):
                following = self.tokens[self.place + 1]
                if following.kind == "end":
                    return self.group()
            self.place += 1
            return number_node(token.value)
        return self.atom()

    def argument(self) -> Node:
        if self.is_next("(", "{"):
            return self.postfix(self.atom())
        node = self.signed()
        while self.starts_factor() and self.next.kind != "function" and not self.is_next("("):
            node = Node("product", (node, self.factor(node)))
        return node

    def command(self, name: str) -> Node:
        if name == "frac":
            return Node("quotient", (self.group(), self.group()))
        if name == "binom":
            return Node("binomial", (self.group(), self.group()))
        if name == "sqrt":
            return self.sqrt_command()
        if name in ("sum", "prod"):
            return self.series(name)
        raise Unreadable(name)

    def series(self, name: str) -> Node:
        r"""\sum_{k=1}^{n} k^2; the terms end before the next plus or minus, as in print."""
        self.expect("_")
        self.expect("{")
        index = self.next
        self.place += 1
        if index.kind != "name" or not self.take("="):
            raise Unreadable("the index of a sum")
        low = self.bracketed("}")
        self.expect("^")
        high = self.exponent()
        self.indices.add(index.text)
        operation = "sum over" if name == "sum" else "product over"
        return Node(operation, (low, high, self.product()), name=index.text)

    def sqrt_command(self) -> Node:
        degree: Node | None = None
        if self.take("["):
            degree = self.bracketed("]")
        node = self.group()
        if degree is None:
            return Node("power", (node, number_node(Fraction(1, 2))))
        return Node("power", (node, Node("quotient", (number_node(1), degree))))


_EVIDENCE = re.compile(r"[\d+*/^|(π√°±!Ωα-ω]|\\[a-zA-Z]")


_DERIVATIVE = re.compile(
    r"\\frac ?\{? ?d\b ?|\\frac ?\{ ?d[a-zA-Z]? ?\} ?\{ ?d|(?<![a-zA-Z])d[a-z]? ?/ ?d[a-z]"
)


def parse_expression(text: str) -> Node:
    """The tree of an expression, as `plain_text.formula` writes it.

    Raises:
        Unreadable: the text is no expression, or too long or too deep to be an answer.
    """
    words = [word for word in re.findall(r"(?<!\\)[a-zA-Z]{2,}", text) if word not in FUNCTIONS]
    if words and not _EVIDENCE.search(text):
        raise Unreadable("words")
    if _DERIVATIVE.search(text):
        raise Unreadable("a derivative is no quotient of products")
    return _Parser(text).whole()


def branches(node: Node) -> list[Node]:
    """The expressions that ± stands for: [1 + √2, 1 - √2] of 1 ± √2; else the node alone."""
    if not _has(node, "either"):
        return [node]
    return [_chosen(node, 1), _chosen(node, -1)]


def _has(node: Node, operation: str) -> bool:
    return node.operation == operation or any(_has(child, operation) for child in node.operands)


def _chosen(node: Node, sign: int) -> Node:
    operands = tuple(_chosen(child, sign) for child in node.operands)
    if node.operation == "either":
        positive = (sign > 0) == (node.name == "±")
        return operands[0] if positive else Node("negative", operands)
    return Node(node.operation, operands, node.value, node.name)


def variables(node: Node) -> set[str]:
    """Names of the variables and unknown functions in the expression."""
    names = {node.name} if node.operation in ("variable", "unknown") else set[str]()
    for child in node.operands:
        names |= variables(child)
    return names - {node.name} if node.operation in ("sum over", "product over") else names
