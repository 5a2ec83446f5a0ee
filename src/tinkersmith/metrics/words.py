"""Text -> the words that metrics count, in any script. Chinese has no spaces: characters or jieba.

`jieba` and its neighbours are an extra. They are loaded when a metric that needs them is named.
"""

import importlib
import re
import unicodedata
import warnings
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

from tinkersmith.errors import UserError

# Unified ideographs with their extensions, and those for compatibility.
_HAN = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af"
_ONE_CHARACTER_WORDS = re.compile(f"([{_HAN}{_KANA}])")
_CHINESE = re.compile(f"[{_HAN}]+")
_ARTICLES = ("a", "an", "the")
_MOSTLY = 0.3  # a third of the letters: Chinese texts are full of Latin names and numbers


def writing_of(texts: Iterable[str]) -> str:
    """The script that most texts need a tokenizer for: "zh", "ja", "ko", or "other".

    A text that holds a third of Chinese characters is Chinese; kana make it Japanese.
    """
    counts = {"zh": 0, "ja": 0, "ko": 0, "other": 0}
    for text in texts:
        counts[_script(text)] += 1
    return max(counts, key=lambda script: (counts[script], script == "other"))


def _script(text: str) -> str:
    letters = sum(map(str.isalpha, text))
    if not letters:
        return "other"
    kana = len(re.findall(f"[{_KANA}]", text))
    han = len(re.findall(f"[{_HAN}]", text))
    if (kana + han) / letters >= _MOSTLY:
        return "ja" if kana / (kana + han) >= 0.05 else "zh"
    return "ko" if len(re.findall(f"[{_HANGUL}]", text)) / letters >= _MOSTLY else "other"


def counted_words(text: str) -> list[str]:
    """Words in lower case without punctuation and articles; each Chinese character is a word."""
    words = _plain(_ONE_CHARACTER_WORDS.sub(r" \1 ", _normal(text)))
    return [word for word in words if word not in _ARTICLES]


def jieba_words(text: str) -> list[str]:
    """Words in lower case without punctuation; Chinese is cut into words by jieba."""
    return _plain(_CHINESE.sub(_cut_by_jieba, _normal(text)))


def _cut_by_jieba(chinese: re.Match[str]) -> str:
    text = chinese[0]
    return f" {text if len(text) == 1 else ' '.join(_jieba().cut(text))} "


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _plain(text: str) -> list[str]:
    """Words without their punctuation; a sign within a number, as in 3.5 and -1, stays.

    A symbol, such as + or an emoji, is a word of its own.
    """
    text = re.sub(r"(?<=\d)[.,](?=\d)", "\0", text)
    text = re.sub(r"(?<!\w)-(?=\d)", "\1", text)
    text = "".join([_word_character(c) for c in text])
    return text.replace("\0", ".").replace("\1", "-").split()


@cache
def _word_character(c: str) -> str:
    kind = unicodedata.category(c)[0]
    if kind == "S":
        return f" {c} "
    return c if kind in "LNM" or c in "\0\1_" else " "


def metrics_extra(module: str) -> ModuleType:
    """A module of the extra `metrics`.

    Raises:
        UserError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old syntax of theirs is no matter of the user's
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"{module.replace('_', '-')} is not installed, and METRICS names a metric that needs "
            "it: pip install 'tinkersmith[metrics]'"
        ) from None


@cache
def _jieba() -> Any:
    """A tokenizer of jieba that neither logs nor leaves a cache in the temporary folder."""
    import logging

    logger = logging.getLogger("jieba")
    logger.setLevel(logging.WARNING)
    jieba: Any = metrics_extra("jieba")
    logger.setLevel(logging.WARNING)  # its import sets another level
    logger.handlers.clear()
    tokenizer = jieba.Tokenizer()
    # What its initialize() does, without the file.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer
