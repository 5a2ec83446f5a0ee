"""A text without a marker -> what its last sentence concludes, and its last number.

Nothing is concluded from a sentence that denies, asks, or leaves something open.
"""

import re

from tinkersmith.grading.plain_text import plain
from tinkersmith.grading.quantities import quantity_of
from tinkersmith.grading.texts import unwrapped

_TAIL = 2000  # characters at the end of a text that conclusions are looked for in
_ENDING = 600  # characters at the end of a text in which its last number is looked for

_LONGEST_SENTENCE = 400  # characters; a longer one is compared without a look at its clauses

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


_BY = re.compile(
    r"(?:\b(?:is|are|was|were|been)\s+(?:\w+ly\s+|first\s+)?)?\b\w{2,20}(?:ed|en|t|wn|ng)\s+by\s+(?:the\s+\w+\s+(?=[A-Z]))?(.+)",
    re.DOTALL,
)
_NAMED = re.compile(
    r".*\b(?:called|named|known\s+as|(?:falls?|fell|lands?|landed)\s+on|\w+\s+by|will|would)\s+(?!be\b)(?:an?\s+)?(.+)",
    re.DOTALL,
)
_TITLE = re.compile(
    r"[\u4e00-\u9fff]{0,8}(?:诗人|词人|作家|画家|学家|音乐家|作曲家|导演|总统|国王|皇帝|学者|演员|歌手)(?=[\u4e00-\u9fff]{2,4}$)"
)
_WHEN = re.compile(
    r",?\s+(?:in|around|about|circa|during)\s+(?:early\s+|late\s+|the\s+)?\d{3,4}s?$"
)
_WHY = re.compile(r",?\s+(?:because|since|due\s+to|thanks\s+to|as\s+a\s+result)\b.*$")


def predicate(sentence: str) -> str | None:
    """What a plain sentence says of its subject: "The capital is Paris" says "Paris"."""
    if len(sentence) > 300:
        return None
    sentence = _WHY.sub("", main_clause(sentence)).strip(" .。!！*")
    if corrected := re.search(
        r"\b(?:is|are|was|were)\s+not\s+[^,]{1,60},?\s+but\s+(?:rather\s+)?(.+)|不是[^,，]{1,30}[,，]?而是(.+)",
        sentence,
    ):
        return unwrapped(corrected[1] or corrected[2]) or None
    if re.search(r"\bif\b|\bnot\b|\bnever\b|\bor\b|n['’]t\b|\?|？|不|没", sentence):
        return None
    match = _BY.search(sentence) or _PREDICATE.search(sentence)
    if match is not None and (
        inner := re.fullmatch(r"(?:an?|the)\s+\w+\s+(?:called|named)\s+(.+)", match[1])
    ):
        return unwrapped(inner[1]) or None
    if match is None:
        match = _NAMED.fullmatch(sentence)
    if match is None:
        return None
    said = _TITLE.sub("", _WHEN.sub("", re.sub(r"^\w{2,20}(?:ed|en|t)\s+by\s+", "", match[1])))
    return unwrapped(said) or None


def winner(sentence: str) -> str | None:
    """Who wins by the last clause: "Bob ran faster than Carl, so Bob won"."""
    match = re.fullmatch(
        r"([A-Z]\w+(?: [A-Z]\w+)?) (?:won|wins)", main_clause(sentence).strip(" .")
    )
    return match[1] if match else None


def before_apposition(clause: str) -> str | None:
    """ "Paris, the capital of France" without what explains it; None if nothing does."""
    match = re.fullmatch(
        r"([^,]+), (?:the|an?) (?![^,]*\b(?:is|was|are|were)\b)[a-z][^,]*"
        r"|([^(（]+?)\s*[(（][^()（）]*[)）]"
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


# ---- the part of a text that states its answer

_SENTENCE_ENDS = re.compile(r"(?:[.!?](?:\*\*|\$)?\s+|[。！？]\s*|\n+)")
_TAIL_SENTENCE = re.compile(
    r"\W*(?:note(?:\s+that\b|\s*:)|notice\s+that\b|注意?[:：]"
    r"|(?:i\s+)?hope\b|(?:please\s+)?(?:feel\s+free|let\s+me\s+know|don['’]t\s+hesitate)"
    r"|if\s+you(?:['’]d)?\s+(?:have|need|want|would\s+like)\s+(?:\d+\s+)?(?:any|more|other|further|help|another)\b"
    r"|good\s+luck|have\s+a\s+(?:nice|great|good)\b|(?:i['’]m\s+)?happy\s+to\s+help|thanks?\b"
    r"|would\s+you\s+like|is\s+there\s+anything|any\s+(?:other\s+)?questions"
    r"|(?:double[- ]?)?check(?:ing)?\s*[:：,]"
    r"|(?:to|let['’]s|let\s+us|we\s+can)\s+(?:check|verify|confirm)\b"
    r"|verif(?:y|ying|ication)\b|substituting\b.{0,30}\bback\b|plugging\b.{0,30}\b(?:back|in)\b"
    r"|(?:this\s+(?:is\s+)?)?(?:correct|matches|checks\s+out|it\s+works|it\s+checks|✓)\W*$"
    r"|(?:希望|祝你|祝您|祝|如果?你?还?有(?:其他|别的|任何)?(?:问题|疑问)|欢迎|如有|请随时|(?:验算|经?检验|验证|检查)[:：,，]|感谢))",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"\d{1,2}:\d\d(?:\s*[ap]\.?m\.?)?|\d{1,2}\s*[ap]\.?m\b", re.IGNORECASE)


def without_tail(text: str) -> str:
    """The text without what follows its answer: politeness, and checks of the result."""
    text = text.rstrip()
    for _ in range(8):
        ends = [0, *(m.end() for m in _SENTENCE_ENDS.finditer(text, max(0, len(text) - _TAIL)))]
        begin = next((end for end in reversed(ends) if text[end:].strip()), 0)
        sentence = text[begin:]
        hypothetical = re.match(r"\s*if\b", sentence, re.IGNORECASE) and not re.search(
            r"\d", _CLOCK.sub("", sentence)
        )
        if begin == 0 or not (_TAIL_SENTENCE.match(sentence) or hypothetical):
            return text
        text = text[:begin].rstrip()
    return text


_LEADS = re.compile(
    r"(?:[,，;；:：]\s*|\s[-–—]+\s|^)(?:(?:and|but)\s+)?(?:so|thus|hence|therefore|consequently|which\s+means(?:\s+that)?|meaning(?:\s+that)?|所以|因此|因而|故|从而|那么)(?![A-Za-z])(?!\s+(?:far|that|many|much)\b)[,，]?\s*",
    re.IGNORECASE,
)
_SINCE = re.compile(
    r"\s*(?:since|because|as|given\s+that)\s[^,;]+,\s*(?:then\s+)?(?=\S)", re.IGNORECASE
)
_HEDGED = re.compile(
    r"\s*I['’]?\s*(?:a?m\s+not\s+(?:entirely\s+|completely\s+)?(?:sure|certain)|don['’]t\s+know\s+for\s+sure),?\s+but\s+",
    re.IGNORECASE,
)
_ASIDE = re.compile(
    r",?\s+(?:while|whereas)\s|[,，;；]\s*(?:而(?!且|是)|不是|而不是|而非|并非|其中)|而(?:不是|非)"
    r"|,\s*(?:not|rather\s+than|instead\s+of|followed\s+by|compared\s+(?:to|with)|aged?\b|at\s+(?:the\s+)?age|up\s+from|down\s+from|of\s+which)\b(?!.*\bbut\b)"
    r"|,\s*(?:which|who)\s+(?:is|are|was|were)\s+(?:\d+\s+)?(?:\w+er|more|less)\s+than\b"
    r"|,\s*(?:more|less|fewer|greater)\s+than\b"
    r"|,\s*(?:after|before)\s+(?:only\s+|about\s+)?\d+\s+(?:years?|months?|weeks?|days?|hours?)\s*[.。]?$"
    r"|,\s*\d+\s+years?\s+(?:before|after|earlier|later)\b"
    r"|;\s*the\s+(?:remaining|rest|others?|complement)\b"
    r"|[;；](?!\s*(?:so|thus|hence|therefore|所以|因此|故))(?P<later>)"
    r"|\s+out\s+of\s+(?:the\s+)?|\s+of\s+the\s+original\b"
    r"|\s*(?:\((?:of|out\s+of|about|approximately|roughly|≈|\\approx|formerly|also)\s*|（约)[^()（）]*[)）]"
    r"|\s\((?=[^()]{0,80}\d)(?=[^()]{0,80}[A-Za-z]{2})[^()]{0,80}\)\s*[.。]?$"
    r"|(?<=\d)\s?\((?=[^()\d]{0,40}[A-Za-z]{2})[^()]{0,80}\)\s*[.。]?$",
    re.IGNORECASE,
)
_ALTOGETHER = re.compile(r"\b(?:in\s+total|in\s+all|altogether)$|共[^:：]*$", re.IGNORECASE)
_APPROXIMATELY = re.compile(
    r"(?<=[\d)}π°²³])(?P<end>\$?)\s*(?:≈|≒|\\approx(?![a-z])|\\thickapprox)\s*(?P<mark>\$?)\s*(?P<value>-?[\d,.]*\d)"
)


def main_clause(sentence: str) -> str:
    """The clause of a sentence that states its result, without asides behind it.

    "Today is Monday, so tomorrow is Tuesday" states "tomorrow is Tuesday"; "Ann has 12, while Ben
    has 9" states the first. A clause after a semicolon is an aside only where the one before it
    is a conclusion: "So P = 4/7; the complement has 3/7".
    """
    if len(sentence) > _LONGEST_SENTENCE:
        return sentence
    sentence = _HEDGED.sub("", sentence)
    leads = list(_LEADS.finditer(sentence))
    led = bool(leads)
    if leads:
        sentence = sentence[leads[-1].end() :]
    while (since := _SINCE.match(sentence)) is not None:
        sentence = sentence[since.end() :]
    for match in _ASIDE.finditer(sentence):
        before = sentence[: match.start()]
        if match["later"] is not None and not led:
            continue
        if len(before.strip()) < 2:
            continue
        sentence = before
        break
    total, colon, parts = sentence.replace("：", ":").partition(":")
    if colon and _ALTOGETHER.search(total) and re.search(r"\d", total) and "=" not in parts:
        sentence = total  # "20 in total: 12 red and 8 blue"
    return _APPROXIMATELY.sub(lambda match: "$" if match["end"] or match["mark"] else "", sentence)


def stating_part(text: str) -> str:
    """The text up to its answer: without its tail, its last sentence cut to the main clause."""
    text = without_tail(text)
    sentence = last_sentence(text)
    place = text.rfind(sentence) if sentence else -1
    if place < 0:
        return text
    return text[:place] + main_clause(sentence)


def rounded_value(text: str) -> str | None:
    """The rounding behind an exact value: "3/7 ≈ 0.4286" has 0.4286."""
    matches = list(_APPROXIMATELY.finditer(last_sentence(without_tail(text))))
    return matches[0]["value"] if len(matches) == 1 else None


_PARALLEL = re.compile(
    r"(?P<subject>[^,，;；]{1,40}?)(?P<verb>\b(?:has|have|had|gets?|got|is|are|was|were|costs?)\b|[有占是得花])[^,，;；]*\d"
)


def _two_subjects(sentence: str) -> bool:
    """Whether two clauses side by side say the same of two things: "A has 3, B has 5"."""
    clauses = re.split(r"[,，;；]\s*(?:and\s+|而)?|\s+and\s+(?=\D)", main_clause(sentence))
    if len(clauses) < 2:
        return False
    first, second = _PARALLEL.match(clauses[-2]), _PARALLEL.match(clauses[-1])
    if first is None or second is None or first["verb"] != second["verb"]:
        return False
    return not re.search(
        r"\b(?:so|total|altogether|left|then|he|she|it|they|there|each|both|together|sum|answer)\b|共|剩|还|每|总|他|她|它|答",
        second["subject"],
        re.IGNORECASE,
    )


# A numeral in words at the end of a clause: "It takes one hundred steps".
_BEFORE_NUMERAL = re.compile(
    r"\b(?:is|are|was|were|has|have|had|takes?|needs?|makes?|gives?|gets?|costs?|earns?|equals?|pays?)\s+"
    r"|(?:一共|总共|共)?(?:需要|等于|用了|花了|还剩|剩下?|得到?|[是为有得共])",
    re.IGNORECASE,
)


def spelled_number(sentence: str) -> str | None:
    """The quantity in words that a clause without digits ends in; None if it denies something."""
    clause = main_clause(sentence).strip(" .。!！*_")
    if re.search(r"\d|\b(?:not|never|or|than|if)\b|n['’]t\b|[?？不或]|至少|至多|超过", clause):
        return None
    for verb in reversed(list(_BEFORE_NUMERAL.finditer(clause))):
        tail = clause[verb.end() :].strip()
        if tail in ("one", "一", "a", "an") or len(tail) > 40:
            continue
        if quantity_of(tail) is not None:
            return tail
    return None


# ---- the last number of a text

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.^\\])(?:(?<![\d)\]}%])[-+]?(?:USD |[¥€£￥])?|(?<=[-+])(?:USD |[¥€£￥]))"
    r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s\d+/\d+|/\d+)?(?!\d)"
    r"(?P<unit>\s?(?:%|°\s?[CF]?\b)|\s?[A-Za-z]+(?:/[A-Za-z]+)?(?:\^-?\d)?(?![A-Za-z])|\s?[\u4e00-\u9fff]{1,6})?"
)
_DENIAL = re.compile(
    r"(?:\bnot\b|n['’]t\b|\bnever\b|\bcannot\b|≠|!=|\bat\s+(?:least|most)\b|\b(?:more|less|fewer|greater|larger|smaller|other|rather)\s+than\b|\bbetween\b"
    r"|\bup\s+to\b|\b(?:before|since|until|below|above|under|over|exceeds?|from|minus|plus|times)\b|不是|不等于|并非|至少|至多|最多|最少|超过|不到|大于|小于|多于|少于|不足|<=?|>=?|[≤≥])\s*(?:\w+\s+){0,1}$",
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
    if _two_subjects(last_sentence(text)):
        return None
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

    "$x < 1$ or $x > 4$" is one formula. None if the sentence denies something or ends in a bare
    number, which `last_number` judges.
    """
    sentence = main_clause(last_sentence(text))[-300:]
    sentence = re.sub(r"\*\*|__|`", "", sentence)
    sentence = re.sub(r"(?<=[$\d)}])\s+for\s+(?:all|every|any)\b.*$", "", sentence)
    if "\\end{" in sentence or _two_subjects(last_sentence(text)):
        return None
    if re.search(r"\b(?:not|never|cannot|if|between|than)\b|n['’]t\b|[?？]|不|非", sentence):
        return None
    begin = 0
    joiners: list[re.Match[str]] = []
    for match in _WORD.finditer(sentence):
        if _FUNCTIONS.match(match[0]) or match[0].startswith("\\"):
            continue
        if match[0].casefold() in ("or", "and", "或", "或者", "且"):
            joiners.append(match)
            continue
        begin, joiners = match.end(), []
    ending = sentence[begin:].strip(" ,.;，")
    if joiners:
        pieces = re.split(r"\s*(?:\b(?:or|and)\b|或者?|且)\s*", ending)
        relations = [_RELATION.match(piece.strip(" $,")) for piece in pieces]
        if any(relation is None for relation in relations):
            return None
        names = [relation[1] for relation in relations if relation]
        together = re.search(r"\band\b|且", ending) is not None
        if together and len(set(names)) == len(names):
            order = sorted(range(len(names)), key=lambda index: names[index])
            values = [re.split(r"=", pieces[index].strip(" $,"))[-1].strip() for index in order]
            return f"({', '.join(values)})" if "<" not in ending and ">" not in ending else None
        if together or len(set(names)) > 1:
            return None
        return " or ".join(piece.strip(" $,") for piece in pieces)
    ending = unwrapped(ending)
    bare = plain(ending)
    if not re.search(r"[=<>≤≥≠+*/^()\[\]{}:∈√π⩾⩽\\]|sqrt|pi", ending) or re.match(
        r"[=*/^+)\]}:]", bare
    ):
        return None
    if quantity_of(ending) is not None and not re.search(r"√|π|sqrt|pi|\be\^|\\[a-z]", ending):
        return None
    return ending


def right_side(formula: str) -> str | None:
    """What an equation says of a name or of a calculation: "AB = 3√5" and "2/4 = 1/2"."""
    left, equals, right = formula.rpartition("=")
    letters = re.sub(r"\\[A-Za-z]+|[∩∪]", "", left)
    mixed = re.search(r"[A-Za-z]", letters) and re.search(r"[-+*/\d]", letters)
    if not equals or mixed or re.search(r"[<>≤≥≠]|\\(?:[lg]e|ne)", formula):
        return None
    return unwrapped(right) or None


_WORD = re.compile(
    r"\\(?:text|mathrm)\s*\{[^{}]*\}|\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z]{2,}(?![A-Za-z(^_])|(?:或者|[\u4e00-\u9fff])|[:：，。→⇒]|,\s(?=\$?[a-z]\s*=)"
)
_RELATION = re.compile(r"([a-z])\s*(?:=|<|>|≤|≥|≠|\\(?:le|ge|ne|leq|geq|neq|leqslant|geqslant)\b)")


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
