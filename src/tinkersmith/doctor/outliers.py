"""Scripts and lengths of all samples -> those that are unlike the others."""

import re
from array import array
from collections import Counter

import numpy as np

from tinkersmith.doctor.texts import WRITING_SYSTEMS, script_of

_RARE = 0.02  # of the answers that one question's script has
_TYPICAL = 0.05  # of the answers, above which answers in another script are what the data is for
_AT_LEAST = 20  # samples with which others can be compared
_DEVIATIONS = 5.0  # from the median, of the logarithm of the length
_SMALLEST_DEVIATION = 0.35  # in logarithms: 5 of them are a factor of 6
_ABOUT_LANGUAGE = re.compile(
    r"translat|language|\b(?:in|into|to|from) (?:English|Chinese|Mandarin|Japanese|Korean|Russian"
    r"|Arabic|French|German|Spanish|Greek|Hebrew|Hindi|Thai)\b|\b(?:Chinese|Japanese|Korean|Russian"
    r"|Arabic|Greek|Hindi|kanji|pinyin|hiragana|hanzi)\b|翻译|译成|译为|英文|英语|中文|汉语|日语|日文"
    r"|韩语|俄语|法语|德语|西班牙语|阿拉伯语|语言|翻譯|英語|漢語|日語|単語|英訳|和訳|번역|영어",
    re.IGNORECASE,
)


class Scripts:
    """Which script each question and its answer are written in; 2 bytes per sample."""

    def __init__(self) -> None:
        self._questions, self._answers = array("b"), array("b")

    def add(self, question: str, answer: str) -> None:
        answer_script = script_of(answer)
        question_script = script_of(question)
        if answer_script and question_script != answer_script and _ABOUT_LANGUAGE.search(question):
            answer_script = ""  # the question may ask for it
        self._questions.append(_number(question_script))
        self._answers.append(_number(answer_script))

    def outliers(self) -> dict[int, str]:
        """Samples whose answer is in another script than its question, or than all the others."""
        pairs = list(zip(self._questions, self._answers, strict=True))
        counts = Counter(pairs)
        answers = Counter(answer for answer in self._answers if answer >= 0)
        compared = sum(counts[pair] for pair in counts if min(pair) >= 0)
        other = sum(counts[pair] for pair in counts if min(pair) >= 0 and pair[0] != pair[1])
        mismatch_is_odd = other <= max(2, _TYPICAL * compared)
        total = sum(answers.values())
        reasons: dict[int, str] = {}
        for number, (question, answer) in enumerate(pairs):
            if answer < 0:
                continue
            if question >= 0 and question != answer and mismatch_is_odd:
                reasons[number] = (
                    f"the question is written in {WRITING_SYSTEMS[question]} letters, the "
                    f"answer in {WRITING_SYSTEMS[answer]} ones"
                )
            elif total >= _AT_LEAST and answers[answer] <= _RARE * total:
                reasons[number] = (
                    f"the answer is written in {WRITING_SYSTEMS[answer]} letters, as "
                    f"{answers[answer]:,} of {total:,} answers"
                )
        return reasons


class Lengths:
    """How many characters each text has; 4 bytes per text."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lengths = array("I")

    def add(self, text: str) -> None:
        self._lengths.append(min(len(text), 2**32 - 1))

    def outliers(self) -> dict[int, str]:
        """The texts that are far shorter or longer than the others.

        Lengths spread over orders of magnitude, so their logarithms are compared, with the median
        and the median absolute deviation (Iglewicz & Hoaglin 1993), which outliers do not move.
        """
        lengths = np.frombuffer(self._lengths, dtype=np.uint32).astype(np.float64)
        if len(lengths) < _AT_LEAST:
            return {}
        logarithms = np.log1p(lengths)
        median = float(np.median(logarithms))
        deviation = 1.4826 * float(np.median(np.abs(logarithms - median)))
        scores = (logarithms - median) / max(deviation, _SMALLEST_DEVIATION)
        usual = round(float(np.expm1(median)))
        return {
            int(number): (
                f"the {self._name} has {int(lengths[number]):,} characters; half of all have "
                f"{'more' if scores[number] < 0 else 'fewer'} than {usual:,}"
            )
            for number in np.flatnonzero(np.abs(scores) > _DEVIATIONS)
        }


def _number(script: str) -> int:
    return WRITING_SYSTEMS.index(script) if script else -1
