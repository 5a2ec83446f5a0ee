"""A text without a marker -> what its last sentence concludes, and its last number.

Nothing is concluded from a sentence that denies, asks, or leaves something open.
"""

import re

from tinkersmith.grading.plain_text import plain
from tinkersmith.grading.quantities import quantity_of
from tinkersmith.grading.texts import unwrapped

_TAIL = 2000  # characters at the end of a text that conclusions are looked for in
_ENDING = 600  # characters at the end of a text in which its last number is looked for

_ABBREVIATION = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|St|vs|No)|(?:^|[ .])[A-Za-z])$")
_PREDICATE = re.compile(
    r"(?:\b(?:is|are|was|were|equals?)\b(?:\s+(?:called|named|therefore|thus|known\s+as))?\s+|(?:['’]s)\s+|(?<![不也还只可])(?:叫做?|称为|[是为])(?!不|否))(.+)",
    re.IGNORECASE | re.DOTALL,
)


_VERB = re.compile(
    r"=|\b(?:is|are|has|have|had|was|were|gives?|gets?|makes?|equals?|costs?|pays?|leaves?|left\s+with|earns?|earned)\b"
    r"|[是为有得共]",
    re.IGNORECASE,
)
_SUBJECT = re.compile(
    r"(.{1,60}?)\s*(?:\b(?:is|was|are|were)\s+(?:the|an?)\s|是(?!不|否))", re.IGNORECASE
)


def subject(text: str) -> str | None:
    """The subject of a text of one plain sentence: "Paris is the capital of France"."""
    match = _SUBJECT.match(text)
    if match is None or "\n" in text or len(text) > 200:
        return None
    if re.search(
        r"\b(?:not|but|or|never|if|while|although)\b|n['’]t\b|[?？;；]|[.。!]\s*\S|不|但|或|吗",
        text,
    ):
        return None
    return unwrapped(match[1]) or None


def last_sentence(text: str) -> str:
    """The last sentence of the last line."""
    line = text[-_TAIL:].rstrip().rpartition("\n")[2].strip()
    body = line.rstrip(".。!！*_ ")
    begin = 0
    for match in re.finditer(r"[.!?]\s+|[。！？；]", body):
        if match[0][0] != "." or not _ABBREVIATION.search(
            body, max(0, match.start() - 6), match.start()
        ):
            begin = match.end()
    return body[begin:]


def predicate(sentence: str) -> str | None:
    """What a plain sentence says of its subject: "The capital is Paris" says "Paris"."""
    if len(sentence) > 300:
        return None
    match = _PREDICATE.search(sentence)
    if match is None or re.search(r"\bif\b|\bnot\b|\bnever\b|n['’]t\b|\?|？|不", sentence):
        return None
    said = re.sub(r"^\w{2,20}(?:ed|en|t)\s+by\s+", "", match[1])  # "was written by Shakespeare"
    return unwrapped(said) or None


def before_apposition(clause: str) -> str | None:
    """ "Paris, the capital of France" without what explains it; None if nothing does."""
    match = re.fullmatch(
        r"([^,]+), (?:the|an?) [a-z][^,]*|([^(（]+?)\s*[(（][^()（）]*[)）]"
        r"|([^，,]+)[，,](?:全长|全称|位于|它|其|也|又|约|即|因为|由于|在|被|由|是|有).{2,}",
        clause,
    )
    return match[1] or match[2] or match[3] if match else None


def conclusion(text: str) -> str | None:
    """The quantity that the last sentence of an expected text ends in: "So it is 24."."""
    sentence = plain(last_sentence(text))
    if not re.search(
        r"[A-Za-z]{2,}.{1,60}?[A-Za-z]{2,}|[\u4e00-\u9fff].{0,20}?[\u4e00-\u9fff]",
        re.sub(r"\b(?:or|and)\b|或|和", " ", sentence),
    ):
        return None  # a formula is not prose: x = 4 is an answer of its own
    verbs = list(_VERB.finditer(sentence))
    tail = sentence[verbs[-1].end() :].strip() if verbs else ""
    if not re.search(r"\d", tail) or len(tail) > 60:
        return None
    if quantity_of(tail) is not None:
        return tail
    number = last_number("0", tail, only=True)
    return number if number is not None and tail.startswith(number) else None


def is_prose(text: str) -> bool:
    bare = re.sub(r"\\[a-zA-Z]+|\$", " ", text)
    return bool(re.search(r"[A-Za-z]{2,}\b.*?\s|[\u4e00-\u9fff]{2}", bare[:200])) and not re.search(
        r"[<>≤≥≠]|\\(?:le|ge|ne)", text
    )


# ---- the last number of a text

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^\\])(?:(?<![\d)\]}%])[-+]?(?:USD |[¥€£￥])?|(?<=[-+])(?:USD |[¥€£￥]))"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s\d+/\d+|/\d+)?(?!\d)"
    r"(?P<unit>\s?(?:%|°\s?[CF]?\b)|\s?[A-Za-z]+(?:/[A-Za-z]+)?(?:\^-?\d)?(?![A-Za-z])|\s?[\u4e00-\u9fff]{1,6})?"
)
_DENIAL = re.compile(
    r"(?:\bnot\b|n['’]t\b|\bnever\b|\bcannot\b|≠|!=|\bat\s+(?:least|most)\b|\b(?:more|less|fewer|greater|larger|smaller|other|rather)\s+than\b|\bbetween\b"
    r"|\bup\s+to\b|\b(?:below|above|under|over|exceeds?|from|minus|plus|times)\b|不是|不等于|并非|至少|至多|最多|最少|超过|不到|大于|小于|多于|少于|不足|<=?|>=?|[≤≥])\s*(?:\w+\s+){0,1}$",
    re.IGNORECASE,
)
_EITHER = re.compile(
    r"\d\S{0,12}(?:\s\w{1,10})?\s*(?:\bor\b|\bto\b|\band\b|或|和|到|至|~|–|-)\s*$", re.IGNORECASE
)
_LABEL = re.compile(
    r"(?:\b(?:step|figure|table|chapter|section|part|question|problem|page|option|case|line"
    r"|equation|example|exercise|no|see|version)\.?\s*\(?|第\s*)$",
    re.IGNORECASE,
)
_NAME = re.compile(r"\b([A-Z][a-z]+)\s$")
_NO_NAMES = frozenset(
    {
        "So", "Thus", "Total", "Therefore", "Hence", "Is", "Equals", "Answer", "Result", "Sum",
        "There", "Only", "About", "Then", "Exactly", "Approximately", "We", "It", "Output",
        "Just", "And", "Gives", "Get",
    }
)  # fmt: skip
_NO_UNITS = frozenset(
    {
        "in", "of", "and", "or", "to", "for", "left", "more", "per", "as", "at", "on", "by",
        "is", "are", "so", "with", "total", "altogether", "each", "every", "a", "an", "the",
        "which", "that", "because", "since", "when", "if", "than", "from",
    }
)  # fmt: skip


def last_number(gold: str, text: str, *, only: bool = False) -> str | None:
    """The last number of a text, if it stands there as a quantity of its own.

    None for a part of an expression (5 × 2), of a pair, a date or a name (Apollo 13), and where the
    text denies it or leaves it open ("not 24", "24 or 25").

    Args:
        gold: the expected quantity; the word after the number belongs to it if `gold` has a unit.
        only: whether it must be the only number.
    """
    text = re.sub(r"<<[^<>\n]{0,200}>>", "", text[-_ENDING:])  # GSM8K's calculator
    bare = plain(_with_dollars_named(text))
    matches = list(_NUMBER.finditer(bare))
    if not matches or (only and len(matches) > 1):
        return None
    match = matches[-1]
    unit = match["unit"] or ""
    number = match[0][: len(match[0]) - len(unit)]
    before, after = (
        bare[max(0, match.start() - 60) : match.start()],
        bare[match.end() - len(unit) :],
    )
    if re.search(r"[\d)a-z]\s*[-+*/^×÷]\s*$|\d:\s*$|[*/^×÷(\[{<>≤≥_|]\s*$|#$|\d,\s*$", before):
        return None
    if number.startswith("USD ") and not _has_unit(gold):
        number = number[4:]
    if number[0] in "+-" and re.search(r"[\d)]\s*$", before):
        return None
    if re.match(
        r"\s*[-+*/×÷^]\s*[\d(a-z]|[)\]}:^_|]|\s*[=<>≤≥]|,\s*\d|-\d|\s*(?:B\.?C|A\.?D)\b"
        r"|\s*\S*\s+(?:is|are|was|were)\s+(?:too|not|wrong|incorrect|only)\b",
        after,
    ):
        return None
    if _is_side_of_an_equation(before):
        return None
    if _DENIAL.search(before) or _EITHER.search(before) or _LABEL.search(before):
        return None
    name = _NAME.search(before)
    if name and name[1] not in _NO_NAMES:
        return None
    word = unit.strip()
    if unit and unit[0].isascii() and unit[0].isalpha() and quantity_of(number + unit) is None:
        return None  # 3x
    if word == "%" or (_has_unit(gold) and word and word.casefold() not in _NO_UNITS):
        return _with_known_unit(number, unit)
    return number


# Words of mathematics that do not end a formula.
_FUNCTIONS = re.compile(
    r"(?:sin|cos|tan|cot|sec|csc|log|ln|lg|exp|sqrt|pi|inf|max|min|mod|infty)\b"
)


def last_formula(text: str) -> str | None:
    """The formula that ends the last sentence: "Solving gives x = 2." has x = 2.

    None if the sentence denies something or ends in a bare number, which `last_number` judges.
    """
    sentence = plain(last_sentence(text))[-200:]
    if re.search(
        r"\b(?:not|never|or|and|cannot|if|between|than)\b|n['’]t\b|[?？]|不|或|非", sentence
    ):
        return None
    begin = 0
    for match in re.finditer(r"[A-Za-z]{2,}|[\u4e00-\u9fff]|[:：，。]", sentence):
        if not _FUNCTIONS.match(match[0]):
            begin = match.end()
    ending = sentence[begin:].strip(" ,.")
    if not re.search(r"[=<>≤≥+*/^()\[\]{}:]", ending) or re.match(r"[=*/^+)\]}:]", ending):
        return None
    if quantity_of(ending) is not None:
        return None
    return ending


def _with_known_unit(number: str, unit: str) -> str:
    """The number with as much of the words behind it as is a unit, else with all of them."""
    if unit.isascii():
        return number + unit if quantity_of(number + unit) is not None else number
    for end in range(len(unit), 0, -1):
        quantity = quantity_of(number + unit[:end])
        if quantity is not None and quantity.units:
            return number + unit[:end]
    return number + unit[:3] if quantity_of(number + unit[:3]) is not None else number


def _with_dollars_named(text: str) -> str:
    """The text with "USD 5" for an amount in dollars; a "$" with a partner marks mathematics."""
    text = re.sub(r"\\\$(?=\d)", "USD ", text)
    lines = text.split("\n")
    return "\n".join(
        re.sub(r"\$(?=\d)", "USD ", line) if line.count("$") == 1 else line for line in lines
    )


def _is_side_of_an_equation(before: str) -> bool:
    """Whether a number follows an equation's left side: the 8 in 2x = 8 is no answer."""
    match = re.search(r"([^=<>,;:，；：]*)=\s*$", before)
    if match is None:
        return False
    left = re.split(r"[.!?。]\s", match[1])[-1]
    left = re.sub(r"\b[aAI]\s+(?=[A-Za-z])|[A-Za-z]{2,}|[\u4e00-\u9fff]+", " ", left)
    return bool(re.search(r"[A-Za-z]", left) and re.search(r"[\d+*/^-]", left))


def _has_unit(gold: str) -> bool:
    quantity = quantity_of(gold)
    return quantity is not None and not quantity.is_bare
