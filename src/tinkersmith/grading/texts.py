"""Short texts -> whether they are the same words: without case, articles and sentence marks.

Words are not understood: names in another order, synonyms, and traditional beside simplified
characters are different. "Paris, France" is not "Paris": a sample that takes both lists both.
"""

import re
import unicodedata
from functools import lru_cache

from tinkersmith.grading.plain_text import plain, spelled_out

LONGEST_ANSWER = 2000  # characters; longer ones are equal only if they are equal letter for letter

_QUOTES = "\"'“”‘’「」『』"
_DASHES = dict.fromkeys(map(ord, "‐‑‒–—―−－"), "-") | {ord("’"): "'", ord("‘"): "'"}
# Marks between digits are kept (3.5, 7:3, 1,2), and those that belong to a name (C++, C#, .NET).
_MARKS = re.compile(
    r"(?<!\d)[.,:](?!\d)|(?<=\d)[.,:](?!\d)|(?<!\d)[,:](?=\d)|(?<=\w)\.(?=\d)(?<!\d\.)"
    r"|(?<![\dn)])!|[;?…\"“”「」『』《》〈〉【】、。，；：！？()（）\[\]]|(?<!\d)'"
)
_ARTICLE = re.compile(
    r"\b(?:[Tt]he|THE|an?|An|AN)\s+(?=\w)|^A\s+(?=[a-z])(?!minor|major|flat|sharp|level)"
)
_LIST = re.compile(
    r",?\s+and\s+|,\s*(?:和|与|及)\s*|(?<=[\u4e00-\u9fff])[和与及](?=[\u4e00-\u9fff])",
    re.IGNORECASE,
)
_HAN_SPACE = re.compile(r"(?<=[\u3400-\u9fff])\s+|\s+(?=[\u3400-\u9fff])")


@lru_cache(maxsize=8192)
def comparable_words(text: str) -> str:
    """The text as its words: "The Eiffel Tower." is "eiffel tower"."""
    text = unwrapped(text)
    if "," in text or "、" in text:  # a list: "red, green and blue"
        text = _LIST.sub(", ", text.replace("、", ", "))
    text = unicodedata.normalize("NFKC", spelled_out(text)).translate(_DASHES)
    text = plain(text).replace("&", " and ")
    text = re.sub(r"(?<=[A-Za-z])_\(?(\d+)\)?", r"\1", text)  # H_2O
    text = re.sub(r"(?<=[^\W\d_])-(?=[^\W\d_])", " ", text)
    text = _ARTICLE.sub("", text)
    text = _MARKS.sub(lambda match: "" if match[0] in ".'" else " ", text)
    return _HAN_SPACE.sub("", " ".join(text.casefold().split()))


def same_text(expected: str, given: str) -> bool:
    """Whether both texts are the same words."""
    if expected == given:
        return bool(expected.strip())
    if max(len(expected), len(given)) > LONGEST_ANSWER:
        return False
    words, words_given = comparable_words(expected), comparable_words(given)
    if not words or not words_given:
        return unwrapped(expected) == unwrapped(given) != ""
    if words != words_given:
        return False
    # Co is cobalt and CO is a gas: in two letters, capitals mean something.
    first, second = unwrapped(expected).strip("."), unwrapped(given).strip(".")
    symbols = len(first) == len(second) == 2 and first.isascii() and first.isalpha()
    return not symbols or first == second or first.islower() or second.islower()


def unwrapped(text: str) -> str:
    """The text without emphasis, math marks, quotes and closing punctuation around it."""
    text = text.strip()
    for _ in range(8):
        before = text
        if match := re.fullmatch(r"```\w*\n?(.*?)\n?```", text, re.DOTALL):
            text = match[1]
        text = text.strip("*` \t\n" + _QUOTES)
        text = (
            re.sub(r"(?<!\.\.)[.。,，;；!！、:：]+$", "", text)
            if not text.endswith(("...", "…")) and not _ends_in_sign(text)
            else text
        )
        text = re.sub(r"^\\[(\[]|\\[)\]]$", "", text)
        text = re.sub(r"^_+(?=\w)|(?<=\w)_+$", "", text) if text[:1] == text[-1:] == "_" else text
        if text.startswith("$") and text.endswith("$"):
            text = text.strip("$")
        text = text.strip()
        if text.endswith("$") and text.count("$") % 2:
            text = text.removesuffix("$")
        if text == before:
            break
    return text


def _ends_in_sign(text: str) -> bool:
    """Whether the last mark belongs to the answer: 5! is 120."""
    return bool(re.search(r"[\d)n]!$", text))
