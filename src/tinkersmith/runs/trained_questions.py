"""What a run was trained on -> a file of digests in its folder, and back.

An evaluation compares its questions with this file, not with today's data files: those may have
changed since. It holds no text. Layout: one line of JSON, then the arrays that it names.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from tinkersmith.data.samples import Sample, Source, question_of, said_by_users
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import open_regular, write_atomically
from tinkersmith.paths import is_hub_name, seen_from_folder
from tinkersmith.runs.folder import TRAINED_QUESTIONS_FILE, RunFolder
from tinkersmith.runs.sketches import AT_ONCE, Sketches, end_to_end, sketches_of
from tinkersmith.text.thoughts import answer_alone

SKETCHED_AT_MOST = 200_000  # questions: 51 MB
_VERSION = 1
_ARRAYS = {  # of one entry per question, sketches excepted
    "questions": np.dtype("<u8"),
    "answered": np.dtype("<u8"),  # digests of question and answer together
    "files": np.dtype("<u4"),
    "records": np.dtype("<u4"),
    "sketched": np.dtype("<u4"),  # the entries that have a sketch
    "ends": np.dtype("<u4"),  # where each sketch ends in `hashes`
    "hashes": np.dtype("<u4"),
}
_LONGEST_HEADER = 10_000_000  # bytes
_LARGEST = 8_000_000_000  # bytes
_AT_ONCE = 1 << 24  # bytes


class Damaged(Exception):
    """The file of digests cannot be used; the text says why, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was trained on, as it was then."""

    name: str  # as the sources of samples name it
    from_run: str  # its name, seen from the run's folder
    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class TrainedQuestions:
    """The digests of every question that a run was trained on. N: how many there are."""

    data_digests: list[str]  # of all data that the run was given; more than one after a change
    data_files: list[DataFile]
    is_complete: bool  # False: the run was trained on other data before, which is not known
    questions: np.ndarray  # (N,)
    answered: np.ndarray  # (N,)
    files: np.ndarray  # (N,), indices of `data_files`
    records: np.ndarray  # (N,)
    sketched: np.ndarray  # (S,), indices of the N
    sketches: Sketches  # of S questions

    def __len__(self) -> int:
        return len(self.questions)

    def source(self, entry: int) -> Source:
        """Where a question comes from."""
        return Source(self.data_files[int(self.files[entry])].name, int(self.records[entry]))

    def without(self, sources: Iterable[tuple[str, int]]) -> "TrainedQuestions":
        """The questions whose samples are not among `sources`, (file, record)."""
        numbers = {file.name: number for number, file in enumerate(self.data_files)}
        left_out = [(numbers[file] << 32) + record for file, record in sources if file in numbers]
        places = (self.files.astype(np.int64) << 32) + self.records
        return self._taken(~np.isin(places, np.array(left_out, np.int64)))

    def _taken(self, mask: np.ndarray) -> "TrainedQuestions":
        new_numbers = np.cumsum(mask) - 1
        sketched = mask[self.sketched]
        return TrainedQuestions(
            self.data_digests,
            self.data_files,
            self.is_complete,
            self.questions[mask],
            self.answered[mask],
            self.files[mask],
            self.records[mask],
            new_numbers[self.sketched[sketched]],
            self.sketches.taken(sketched),
        )


def digests_of(sample: Sample) -> tuple[int, int]:
    """64 bits of what a sample asks, and of that with what it answers.

    White space and thoughts do not count.
    """
    asked, turn = question_of(sample), sample.turns[-1]
    answer = " ".join(answer_alone(turn).split())
    return _digest(asked), _digest((asked, answer, repr(turn.tool_calls)))


def question_words(sample: Sample) -> str:
    """All that users say in a sample before its last answer, to see how alike two questions are."""
    return said_by_users(sample.context)


class QuestionCollector:
    """Collects the questions that are trained on, sample by sample.

    It keeps 24 bytes per question, and sketches of SKETCHED_AT_MOST, chosen by their digests.

    Args:
        train_on: TRAIN_ON; the earlier answers of a conversation are trained on too, or not.
    """

    def __init__(self, train_on: str) -> None:
        self._last_only = train_on == "last"
        self._questions, self._answered = array("Q"), array("Q")
        self._files, self._records = array("I"), array("I")
        self._names: dict[str, int] = {}
        self._limit = 1 << 64  # of the digests whose questions get a sketch
        self._waiting: list[tuple[int, str]] = []
        self._sketched: list[np.ndarray] = []
        self._sketches: list[Sketches] = []
        self._count = 0  # of the sketches

    def add(self, sample: Sample) -> None:
        """Take the next sample."""
        for asked in _asked_in(sample, self._last_only):
            entry, (question, answered) = len(self._questions), digests_of(asked)
            self._questions.append(question)
            self._answered.append(answered)
            self._files.append(self._names.setdefault(asked.source.file, len(self._names)))
            self._records.append(asked.source.record)
            if question < self._limit and (words := question_words(asked)):
                self._waiting.append((entry, words))
                if len(self._waiting) == AT_ONCE:
                    self._sketch()

    def _sketch(self) -> None:
        if not self._waiting:
            return
        self._sketched.append(np.array([entry for entry, _ in self._waiting]))
        self._sketches.append(sketches_of([words for _, words in self._waiting]))
        self._count += len(self._waiting)
        self._waiting = []
        if self._count > SKETCHED_AT_MOST:
            self._limit //= 2
            sketched, sketches = np.concatenate(self._sketched), end_to_end(self._sketches)
            digests = np.frombuffer(self._questions, np.uint64)[sketched]
            mask = digests < np.uint64(self._limit)
            self._sketched, self._sketches = [sketched[mask]], [sketches.taken(mask)]
            self._count = int(mask.sum())

    def collected(self, run: RunFolder, data_digest: str) -> TrainedQuestions:
        """Everything so far; the files are read to know them again."""
        self._sketch()
        none = np.zeros(0, np.int64)
        return TrainedQuestions(
            data_digests=[data_digest],
            data_files=[_data_file(name, run.path) for name in self._names],
            is_complete=True,
            questions=np.frombuffer(self._questions, np.uint64),
            answered=np.frombuffer(self._answered, np.uint64),
            files=np.frombuffer(self._files, np.uint32),
            records=np.frombuffer(self._records, np.uint32),
            sketched=np.concatenate([none, *self._sketched]),
            sketches=end_to_end(self._sketches),
        )


def remember(
    run: RunFolder, collector: QuestionCollector, data_digest: str, former_digest: str | None
) -> None:
    """Write down what a run is trained on. What it was trained on before a resume stays.

    Args:
        former_digest: the digest of what the run was trained on before; None where that is not
            known, `data_digest` for a new run.

    Raises:
        OSError: the file cannot be written.
        UserError: a data file has gone in the meantime.
    """
    file = run.file(TRAINED_QUESTIONS_FILE)
    try:
        before = read_trained_questions(file)
    except Damaged:
        before, former_digest = None, None
    if before is not None and data_digest in before.data_digests:
        return
    now = collector.collected(run, data_digest)
    if before is None:
        _write(file, now, is_complete=former_digest == data_digest)
    else:
        _write(file, _together(before, now), is_complete=before.is_complete)


def read_trained_questions(file: Path) -> TrainedQuestions | None:
    """The questions in a file; None if there is no such file.

    Raises:
        Damaged: it is not as it was written.
        UserError: it cannot be read.
    """
    try:
        with open_regular(file) as opened:
            line = opened.readline(_LONGEST_HEADER)
            content = opened.read(_LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    try:
        header: object = json.loads(line)
        if not isinstance(header, dict):
            raise Damaged("its first line is no object")
        return _read(cast("dict[str, Any]", header), content)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
        raise Damaged("its first line does not describe the rest") from None


def _read(header: Mapping[str, Any], content: bytes) -> TrainedQuestions:
    if header["version"] != _VERSION:
        raise Damaged(f"it has version {header['version']!r}, and this program reads {_VERSION}")
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise Damaged("its content is not what was written")
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for name, kind in _ARRAYS.items():
        count = int(header["counts"][name])
        arrays[name] = np.frombuffer(content, kind, count, start)
        start += count * kind.itemsize
    return TrainedQuestions(
        data_digests=[str(digest) for digest in header["data_digests"]],
        data_files=[DataFile(**fields) for fields in header["data_files"]],
        is_complete=bool(header["is_complete"]),
        questions=arrays["questions"],
        answered=arrays["answered"],
        files=arrays["files"],
        records=arrays["records"],
        sketched=arrays["sketched"].astype(np.int64),
        sketches=Sketches(arrays["hashes"], arrays["ends"].astype(np.int64)),
    )


def _write(file: Path, known: TrainedQuestions, *, is_complete: bool) -> None:
    arrays = {
        "questions": known.questions,
        "answered": known.answered,
        "files": known.files,
        "records": known.records,
        "sketched": known.sketched,
        "ends": known.sketches.ends,
        "hashes": known.sketches.hashes,
    }
    parts = [arrays[name].astype(kind).tobytes() for name, kind in _ARRAYS.items()]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    header = {
        "version": _VERSION,
        "data_digests": known.data_digests,
        "data_files": [
            {name: getattr(data_file, name) for name in DataFile.__slots__}
            for data_file in known.data_files
        ],
        "is_complete": is_complete,
        "counts": {name: len(array) for name, array in arrays.items()},
        "sha256": digest.hexdigest(),
    }
    write_atomically(file, [json.dumps(header).encode() + b"\n", *parts])


def _together(before: TrainedQuestions, now: TrainedQuestions) -> TrainedQuestions:
    """All questions of both; of a data file that changed, both forms are listed."""
    return TrainedQuestions(
        data_digests=[*before.data_digests, *now.data_digests],
        data_files=[*before.data_files, *now.data_files],
        is_complete=before.is_complete,
        questions=np.concatenate([before.questions, now.questions]),
        answered=np.concatenate([before.answered, now.answered]),
        files=np.concatenate([before.files, now.files + len(before.data_files)]),
        records=np.concatenate([before.records, now.records]),
        sketched=np.concatenate([before.sketched, now.sketched + len(before)]),
        sketches=end_to_end([before.sketches, now.sketches]),
    )


def _asked_in(sample: Sample, last_only: bool) -> Iterator[Sample]:
    """The sample up to each answer that is trained on; a plain text as it is."""
    for place, turn in enumerate(sample.turns):
        is_last = place == len(sample.turns) - 1
        trained = turn.role == "assistant" and turn.trained is not False and place > 0
        if is_last or (trained and not last_only):
            turns = sample.turns[: place + 1]
            yield sample if is_last else Sample(turns, sample.source, tools=sample.tools)


def _data_file(name: str, run: Path) -> DataFile:
    """The file as it is now; of a data set on a hub, only the name."""
    if is_hub_name(name):
        return DataFile(name, name, 0, "")
    digest, size = hashlib.sha256(), 0
    try:
        with open_regular(name) as file:
            while part := file.read(_AT_ONCE):
                digest.update(part)
                size += len(part)
    except OSError as error:
        raise unreadable(name, error) from None
    return DataFile(name, seen_from_folder(run, name), size, digest.hexdigest())


def changed_files(known: TrainedQuestions, run: Path) -> dict[str, str]:
    """The data files that are not as they were trained on, each with what became of it.

    What became of it completes "data/train.json ...": "has changed", "is not there any more".
    """
    changed: dict[str, str] = {}
    for data_file in known.data_files:
        if not data_file.sha256:
            continue
        try:
            today = _data_file(str(run / data_file.from_run), run)
        except UserError:
            changed[data_file.name] = "is not there any more, or cannot be read"
            continue
        if (today.size, today.sha256) != (data_file.size, data_file.sha256):
            changed[data_file.name] = "has changed"
    return changed


def _digest(value: Sequence[Any]) -> int:
    data = repr(value).encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
