r"""Unicode, LaTeX and Markdown -> plain text. This module does not know what a text means."""

import re
import unicodedata

LONGEST_FORMULA = 2000  # characters; a longer text is no answer that anybody compares as a formula

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
# ½ is " 1/2": the space separates it from a whole number before it
_FRACTIONS = {0x2044: "/"} | {
    code: " " + unicodedata.normalize("NFKC", chr(code)).replace("\u2044", "/")
    for code in [*range(0xBC, 0xBF), *range(0x2150, 0x215F), 0x2189]
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


def plain(text: str) -> str:
    r"""The text without full-width forms, LaTeX and Markdown: "$\frac{1}{2}$" is "1/2"."""
    text = spelled_out(unicodedata.normalize("NFC", text)).translate(_FULL_WIDTH)
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


def spelled_out(text: str) -> str:
    """The text with plain fractions and superscripts: 1½ is "1 1/2", m² is "m^2"."""
    if text.isascii():
        return text
    text = re.sub(r"[⁰¹²³⁴-⁹⁻]+", lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    return text.translate(_FRACTIONS)


# ---- formulas: one character for one symbol, LaTeX only where it has structure

_SYMBOLS = str.maketrans(
    {
        **dict.fromkeys("−‐‑–﹣－", "-"),
        **dict.fromkeys("·⋅∙×✕∗＊•", "*"),
        **dict.fromkeys("÷∕", "/"),
        **dict.fromkeys("≦⩽", "≤"),
        **dict.fromkeys("≧⩾", "≥"),
        **dict.fromkeys("∶：", ":"),
        **dict.fromkeys("ϕφ", "φ"),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff", None),
        **dict.fromkeys("∘˚º", "°"),
        **dict.fromkeys("【〔", "["),
        **dict.fromkeys("】〕", "]"),
        "℃": "°C",
        "℉": "°F",
        "㎡": "m^2",
        "㎏": "kg",
        "㎝": "cm",
        "㎞": "km",
        "㎜": "mm",
        "㎥": "m^3",
        "Ω": "Ω",
        "𝑥": "x",
        "⋯": "…",
        "∣": "|",
        "～": "~",
    }
)
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_COMMANDS = {
    **dict.fromkeys(["left", "right", "displaystyle", "textstyle", "limits", "rm", "bf", "it"], ""),
    **dict.fromkeys(["big", "Big", "bigl", "bigr", "Bigl", "Bigr", "bigg", "Bigg", "middle"], ""),
    **dict.fromkeys([",", ";", ":", " ", "quad", "qquad", "enspace", "thinspace", "space"], " "),
    **dict.fromkeys(["(", ")", "[", "]", "!"], ""),
    **dict.fromkeys(["cdot", "times", "ast"], "*"),
    **dict.fromkeys(["le", "leq", "leqslant"], "≤"),
    **dict.fromkeys(["ge", "geq", "geqslant"], "≥"),
    **dict.fromkeys(["ne", "neq"], "≠"),
    **dict.fromkeys(["lbrace", "{"], "⦃"),
    **dict.fromkeys(["rbrace", "}"], "⦄"),
    **dict.fromkeys(["emptyset", "varnothing"], "∅"),
    **dict.fromkeys(["lvert", "rvert", "vert", "mid"], "|"),
    **dict.fromkeys(["dots", "ldots", "cdots"], "…"),
    **dict.fromkeys(["setminus", "backslash"], "∖"),
    **dict.fromkeys(["dfrac", "tfrac", "cfrac", "frac"], "\\frac "),
    **dict.fromkeys(["dbinom", "tbinom", "binom"], "\\binom "),
    **dict.fromkeys(["land", "wedge"], " and "),
    **dict.fromkeys(["lor", "vee"], " or "),
    **dict.fromkeys(["approx", "simeq"], "≈"),
    "lt": "<", "gt": ">", "div": "/", "infty": "∞", "pi": "π", "cup": "∪", "cap": "∩", "in": "∈",
    "pm": "±", "mp": "∓", "colon": ":", "degree": "°", "circ": "°", "%": "%", "$": "$", "#": "#",
    "&": "&", "_": "_", "lbrack": "[", "rbrack": "]", "langle": "⟨", "rangle": "⟩", "euro": "€",
    "pounds": "£", "yen": "¥", "ohm": "Ω", "Omega": "Ω", "mu": "μ", "prime": "'", "R": "ℝ",
    "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉",
}  # fmt: skip
_COMMAND = re.compile(r"\\\\|\\([a-zA-Z]+|.)\s?")
_TEXT_COMMAND = re.compile(
    r"\\(?:text(?:bf|it|rm|normal)?|mathrm|mathbf|mathit|mathsf|operatorname\*?|mbox|unit|hbox)"
    r"\s*\{([^{}]*)\}"
)
_DOLLARS = re.compile(r"\$\$?(?!\s)([^$]+?)(?<![\s\\])\$\$?(?!\d)")
_WRAPPED = re.compile(r"\s*\\f?boxed\s*\{(.*)\}\s*", re.DOTALL)
_DOUBLE_STRUCK = {"R": "ℝ", "Z": "ℤ", "N": "ℕ", "Q": "ℚ", "C": "ℂ"}


def formula(text: str) -> str:
    r"""The text as one line of mathematics: `$\left(1,\,2\right)$` is "(1, 2)".

    LaTeX stays only where it has arguments (\frac, \sqrt, \binom, environments) or names a
    function or a letter. Set braces \{ \} become ⦃ ⦄, so that they differ from LaTeX's groups.
    """
    if not text.isascii():
        text = _with_bars(spelled_out(text.translate(_SYMBOLS)))
        text = re.sub("[₀-₉]+", lambda match: "_" + match[0].translate(_SUBSCRIPTS), text)
        text = unicodedata.normalize("NFKC", text).translate(_SYMBOLS)
    text = text.strip()
    if "$" in text:
        text = _DOLLARS.sub(r" \1 ", text)
    if "\\" in text:
        if boxed := _WRAPPED.fullmatch(text):
            text = boxed[1]
        text = re.sub(r"(?<=\d)(?:\{,\}|\\[,!:;] ?|\{\\,\})(?=\d{3}(?!\d))", "", text)
        text = re.sub(r"(?<![a-zA-Z\\])[Rℝ] ?\\ ?\{([^{}]*)\}", r"ℝ∖{\1}", text)
        text = re.sub(r"\\mathbb\s*\{?\s*([RZNQC])\s*\}?",
                      lambda match: _DOUBLE_STRUCK[match[1]], text)  # fmt: skip
        for _ in range(3):
            text = _TEXT_COMMAND.sub(r" \1 ", text)
        text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", "°", text)
        text = _COMMAND.sub(_without_command, text)
    text = re.sub(r"(?<=\d)\{,\}(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\{\}\^\{?(\d+)\}? ?([CP])_\{?(\d+)\}?", r"\1\2\3", text)
    text = re.sub(r"\A<([^<>=]+,[^<>=]+)>\Z", r"⟨\1⟩", text)
    text = text.replace("...", "…").replace("<=", "≤").replace(">=", "≥").replace("!=", "≠")
    text = re.sub(r"\s+", " ", text).strip(" `\"'“”‘’「」")
    while text.startswith("**") and text.endswith("**") and len(text) > 4:
        text = text[2:-2].strip()
    return text.rstrip(" .。,，;；、")


def _with_bars(text: str) -> str:
    """Combining bars and dots above digits as LaTeX: 0.3̅ is 0.\\overline {3}."""

    def bar(match: re.Match[str]) -> str:
        return "\\overline {" + re.sub(r"\D", "", match[0]) + "}"

    text = re.sub("(?:\\d[\u0304\u0305])+", bar, text)
    return re.sub("(\\d)\u0307", r"\\dot {\1}", text)


def _without_command(match: re.Match[str]) -> str:
    if match[1] is None:
        return "\\\\"
    replacement = _COMMANDS.get(match[1])
    if replacement is None:
        return "\\" + match[1] + " "
    return replacement
