"""Fields that say whether an answer is good: their names, and the words they use."""

from typing import Any

from tinkersmith.data.shapes.values import is_number

# Fields that can say in a word whether the answer is good; that it is bad; and how good it is.
PRAISES = (
    *("label", "kto_tag", "is_correct", "correct", "chosen", "is_chosen", "accepted", "accept"),
    *("is_accepted", "preferred", "is_preferred", "desirable", "is_desirable", "good", "is_good"),
    *("approved", "is_approved", "passed", "is_right", "liked", "thumbs_up", "verdict"),
    *("judgement", "judgment", "feedback", "正确", "是否正确", "采纳", "是否采纳", "标签"),
)
BLAMES = (
    *("rejected", "is_rejected", "incorrect", "is_incorrect", "wrong", "is_wrong", "bad", "is_bad"),
    *("undesirable", "disliked", "thumbs_down", "toxic", "is_toxic", "harmful", "is_harmful"),
    *("unsafe", "is_unsafe", "hallucination", "is_hallucination", "错误", "是否错误"),
)
SCORES = (
    *("score", "rating", "reward", "quality", "quality_score", "correctness", "helpfulness"),
    *("grade", "评分", "得分", "分数", "打分"),
)
_GOOD = frozenset(
    (
        *("true", "1", "1.0", "+1", "good", "correct", "right", "chosen", "accepted"),
        *("accept", "desirable", "pass", "passed", "approved", "preferred", "thumbs_up", "like"),
        *("对", "正确", "好"),
    )
)
_YES, _NO = ("yes", "y", "是"), ("no", "n", "否")
_BAD = frozenset(
    (
        *("false", "0", "0.0", "-1", "bad", "incorrect", "wrong", "rejected", "reject"),
        *("undesirable", "fail", "failed", "disapproved", "thumbs_down", "dislike"),
        *("错", "错误", "不正确", "坏", "差"),
    )
)


def verdict_of(value: Any, name: str) -> bool | None:
    """Whether a word or number says that an answer is good; None if it says nothing of that."""
    if isinstance(value, str):
        value = value.strip().lower()
        if value in _GOOD or value in _BAD:
            return value in _GOOD
        if value in _YES or value in _NO:  # elsewhere, it can be what the answer should be
            return value in _YES if name.startswith(("is_", "是否")) else None
        return None
    if isinstance(value, bool) or (is_number(value) and value in (-1, 0, 1)):
        return value > 0
    return None
