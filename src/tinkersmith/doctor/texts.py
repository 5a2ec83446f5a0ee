"""A sample -> the questions and answers in it, and what a text is made of."""

import array
import re
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tinkersmith.data.samples import Sample, said_by_users
from tinkersmith.errors import one_line
from tinkersmith.prompts.tags import split_thought

_SHOWN = 30  # characters before and after a place that is quoted


@dataclass(frozen=True, slots=True)
class Exchange:
    """What was asked since the last answer, and the answer."""

    question: str
    answer: str
    has_calls: bool  # whether the answer calls tools


def exchanges_of(sample: Sample) -> list[Exchange]:
    """The exchanges of a conversation whose answers are trained on; none in plain text."""
    exchanges: list[Exchange] = []
    asked: list[str] = []
    for turn in sample.turns:
        if turn.role == "user":
            asked += [text for text in (turn.text, turn.input) if text]
        elif turn.role == "assistant":
            if turn.trained is not False:
                answer = without_thought(turn.text)
                exchanges.append(Exchange("\n".join(asked), answer, bool(turn.tool_calls)))
            asked = []
    return exchanges


def question_text(sample: Sample) -> str:
    """All that a user says in a sample."""
    return said_by_users(sample.turns)


def answer_text(sample: Sample) -> str:
    """All that the assistant says in a sample, thoughts excepted, or its plain text."""
    turns = [turn for turn in sample.turns if turn.role in ("assistant", "text")]
    texts = [text for turn in turns if (text := without_thought(turn.text))]
    return "\n".join([*texts, *(repr(call) for turn in turns for call in turn.tool_calls)])


def without_thought(answer: str) -> str:
    """An answer without the thought that it begins with."""
    split = split_thought(answer)
    return answer if split is None else split[1]


class TextStore:
    """The questions and answers of samples, in a temporary file: memory does not grow with them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the store
        self._ends = array.array("q")  # of each question and each answer
        self._size = 0

    def add(self, question: str, answer: str) -> None:
        for text in (question, answer):
            data = text.encode("utf-8", "surrogatepass")
            self._file.write(data)
            self._size += len(data)
            self._ends.append(self._size)

    def question(self, number: int) -> str:
        return self._read(2 * number)

    def answer(self, number: int) -> str:
        return self._read(2 * number + 1)

    def close(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) // 2

    def _read(self, place: int) -> str:
        start = self._ends[place - 1] if place else 0
        self._file.seek(start)
        return self._file.read(self._ends[place] - start).decode("utf-8", "surrogatepass")


# ---- what a question's frame is


_SEGMENT = re.compile(r"[^\n.:!?。：！？]*[\n.:!?。：！？]?")
_FRAME_AT_LEAST = 100  # characters of a question that recur; shorter ones do not blur differences
_FRAME_SHARE = 0.2  # of the samples
_FRAME_SAMPLES = 20


class Frame:
    """The sentences that many questions share, such as a long instruction before each text.

    They would make different questions look alike, so they are left out where questions are
    compared.

    Args:
        questions: the first ones.
    """

    def __init__(self, questions: Iterable[str]) -> None:
        counts: Counter[str] = Counter()
        count = 0
        for question in questions:
            count += 1
            counts.update(set(_segments(question)))
        enough = max(_FRAME_SAMPLES, _FRAME_SHARE * count)
        self._shared = {segment for segment, times in counts.items() if times >= enough}

    def without(self, question: str) -> str:
        """The question without its frame, if that leaves something and the frame is long."""
        if not self._shared:
            return question
        segments = _segments(question)
        frame = sum(len(segment) for segment in segments if segment in self._shared)
        if frame < _FRAME_AT_LEAST:
            return question
        rest = " ".join(segment for segment in segments if segment not in self._shared)
        return rest or question


def _segments(text: str) -> list[str]:
    return [segment for match in _SEGMENT.findall(text) if (segment := match.strip())]


# ---- what a text is made of

_FENCED = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"`[^`\n]+`")
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$|\\\[.*?\\\]|\\\(.*?\\\)|\\[a-zA-Z]+", re.DOTALL)
_ADDRESS = re.compile(r"https?://\S+")


def without_code(text: str) -> str:
    """The text without blocks of code and inline code."""
    if "`" in text or "~~~" in text:
        text = _INLINE_CODE.sub(" ", _FENCED.sub("\n", text))
    return text


def prose(text: str) -> str:
    """The text without code, formulas and addresses."""
    text = without_code(text)
    if "$" in text or "\\" in text:
        text = _FORMULA.sub(" ", text)
    return _ADDRESS.sub(" ", text) if "://" in text else text


WRITING_SYSTEMS: tuple[str, ...] = (
    "Latin", "Chinese", "Japanese", "Korean", "Cyrillic", "Greek", "Arabic", "Hebrew",
    "Devanagari", "Bengali", "Tamil", "Thai",
)  # fmt: skip
_BLOCKS = (  # first and last letter of Unicode blocks, ascending
    (0x41, 0x5A, "Latin"), (0x61, 0x7A, "Latin"), (0xC0, 0x24F, "Latin"),
    (0x370, 0x3FF, "Greek"), (0x400, 0x52F, "Cyrillic"), (0x590, 0x5FF, "Hebrew"),
    (0x600, 0x77F, "Arabic"), (0x900, 0x97F, "Devanagari"), (0x980, 0x9FF, "Bengali"),
    (0xB80, 0xBFF, "Tamil"), (0xE00, 0xE7F, "Thai"), (0x1100, 0x11FF, "Korean"),
    (0x1E00, 0x1EFF, "Latin"), (0x3040, 0x30FF, "Japanese"), (0x3400, 0x4DBF, "Chinese"),
    (0x4E00, 0x9FFF, "Chinese"), (0xAC00, 0xD7AF, "Korean"), (0x20000, 0x3FFFF, "Chinese"),
)  # fmt: skip
_EDGES = np.array([edge for first, last, _ in _BLOCKS for edge in (first, last + 1)])
_LETTERS_OF_A_WORD = {"Chinese": 1.7, "Japanese": 2.5, "Korean": 2.5, "Thai": 4.0}  # else 5
_WORDS = 2.5  # that show which script a text is written in
_LATIN_WORDS = 5  # names are written in Latin letters in every language
_CLEAR = 0.6  # of the words
_LOOKED_AT = 4000  # characters


def script_of(text: str) -> str:
    """The script that a text is written in; "" if it is short, or mixed.

    Letters count by the words that they make: a Chinese text with English names is Chinese.
    """
    text = prose(text[:_LOOKED_AT])
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    places = np.searchsorted(_EDGES, code_points, side="right")  # odd ones are inside a block
    counts = np.bincount(places, minlength=len(_EDGES) + 1)[1::2]
    words = dict.fromkeys(WRITING_SYSTEMS, 0.0)
    for (_, _, script), count in zip(_BLOCKS, counts.tolist(), strict=True):
        words[script] += count / _LETTERS_OF_A_WORD.get(script, 5)
    if words["Japanese"] > 0.15 * words["Chinese"]:
        words["Japanese"] += words.pop("Chinese")
    script = max(words, key=lambda name: words[name])
    total = sum(words.values())
    enough = _LATIN_WORDS if script == "Latin" else _WORDS
    return script if total >= enough and words[script] >= _CLEAR * total else ""


def quoted(text: str, start: int, end: int) -> str:
    """A place of a text with some of what stands around it, in one line."""
    around = text[max(start - _SHOWN, 0) : end + _SHOWN]
    before = "..." if start > _SHOWN else ""
    after = "..." if end + _SHOWN < len(text) else ""
    return f'"{before}{one_line(" ".join(around.split()), 120)}{after}"'


def beginning(text: str) -> str:
    """The beginning of a text, in one line."""
    return quoted(text, 0, min(len(text), _SHOWN))


def where_they_differ(text: str, other: str) -> tuple[str, str]:
    """The first place where two texts differ, in one line each."""
    pairs = enumerate(zip(text, other, strict=False))
    same = next((place for place, (mine, theirs) in pairs if mine != theirs), 0)
    same = same if same > _SHOWN else 0
    mine, theirs = (quoted(one, same, min(same + _SHOWN, len(one))) for one in (text, other))
    return mine, theirs


def ending(text: str) -> str:
    """The end of a text, in one line."""
    text = text.rstrip()
    return quoted(text, max(len(text) - _SHOWN, 0), len(text))
