"""Texts -> yes or no: "True.", "No, because ...", "这个说法不正确"."""

import re
from functools import lru_cache

from tinkersmith.grading.plain_text import plain

_LONGEST = 200  # characters at the beginning of a text
_YES = (
    "yes", "yeah", "yep", "true", "correct", "是", "是的", "对", "对的", "正确", "真", "真的",
    "没错", "成立", "有", "有的", "能", "可以", "可以的", "会", "会的", "能的", "存在",
)  # fmt: skip
_NO = (
    "no", "nope", "false", "incorrect", "not correct", "not true", "untrue", "否", "不是", "不是的",
    "不对", "错", "错的", "错误", "不正确", "假", "假的", "不成立", "没有", "无",
    "不能", "不可以", "不会", "不存在",
)  # fmt: skip
_SIGNS = dict.fromkeys("√✓✔✅Yy", True) | dict.fromkeys("×✗✘❌Nn", False)
_POLARITY = {word: word in _YES for word in (*_YES, *_NO)}
_WORDS = "|".join(sorted(map(re.escape, _POLARITY), key=len, reverse=True))
_LED_BY = re.compile(
    rf"(?:(?:so|thus|therefore|hence|所以|因此|答)\s*[,，:：]?\s*)?({_WORDS})(?![A-Za-z0-9\u4e00-\u9fff'’/])",
    re.IGNORECASE,
)
# After the word: nothing, or a reason. "No idea" and "yes and no" are neither yes nor no.
_REASON = re.compile(
    r"\s*(?:[.,;:!。，；：！、)]|\n|[-–—]{1,2}\s|\s(?:because|since|as)\b|因为|\(|\s(?:it|they|he|she|we|you|I|this|that|there)\s+(?:is|are|was|were|does|do|did|can|could|will|would|has|have|isn|aren|don|doesn|didn|can|won|wasn)\b)",
    re.IGNORECASE,
)
_BOTH = re.compile(
    rf"\W*(?:(?:and|or|but|也|又|和|或|maybe)\W*)+(?:{_WORDS})(?![A-Za-z])|\W*(?:{_WORDS})(?![A-Za-z\u4e00-\u9fff])|\s*,?\s*(?:maybe|perhaps|wait|but)\b",
    re.IGNORECASE,
)
_STATEMENT = re.compile(
    r"\b(?:statement|claim|assertion|proposition|sentence|conclusion|hypothesis|equation|argument|conjecture|it|this|that|answer)s?"
    r"\s+(?:is|are|was|must\s+be)\s+(?:therefore\s+|thus\s+|indeed\s+|also\s+)?(not\s+|n['’]t\s+)?(true|false|correct|incorrect|wrong)\s*"
    r"(?=[.,;!]|$|\s(?:because|since|as)\b)"
    r"|(?:说法|结论|命题|陈述|判断|观点|论断|推断|语句|表述|叙述)(?:都|也|显然)?(?:是)?(不(?:是)?|没有?(?:任何)?(?=错))?(正确|错误|对|错|成立|真)的?(?:命题)?\s*(?=[,，。;；!！]|$|因为)",
    re.IGNORECASE,
)  # fmt: skip
_WRONG = {"false", "incorrect", "wrong", "错误", "错"}


@lru_cache(maxsize=4096)
def yes_or_no(text: str) -> bool | None:
    """True for yes, False for no, None if the text begins with neither."""
    sign = text.strip(" .。()（）")
    if sign in _SIGNS:
        return _SIGNS[sign]
    bare = "\n".join(plain(line) for line in text[:_LONGEST].splitlines()).strip(" \n\"'“”‘’「」.")
    match = _LED_BY.match(bare)
    if match is None:
        return None
    rest = bare[match.end() :]
    if rest and not _REASON.match(rest):
        return None
    if _BOTH.match(rest):
        return None
    return _POLARITY[match[1].casefold()]


def stated(text: str) -> bool | None:
    """The last thing a text says of a statement: "the claim is not true" is False."""
    matches = list(_STATEMENT.finditer(text))
    if not matches:
        return None
    denied, word = matches[-1][1] or matches[-1][3], matches[-1][2] or matches[-1][4]
    return (word.casefold() in _WRONG) == bool(denied)
