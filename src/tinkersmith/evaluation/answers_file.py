"""The answers of an evaluation that is under way, in a file that a kill cannot damage.

The first line says what decides an answer: model, prompts, sampling. Each further line is one
answer, on disk as soon as it comes. The lines of an evaluation with other settings are never mixed
in, and nothing is removed before the results are written.
"""

import errno
import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, one_line, reason_of, unreadable
from tinkersmith.evaluation.questions import Answer, Question
from tinkersmith.files import kind_of_json, read_regular
from tinkersmith.plurals import counted

_FORMAT = "tinkersmith answers"
_VERSION = 1
_LARGEST = 20_000_000_000  # bytes
_SYNC_EVERY = 1.0  # seconds: what a power cut may take; a kill takes nothing
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "question": str,
    "draw": int,
    "produced": str,
    "generated": (str, type(None)),  # null: as "produced"
    "thought_finished": bool,
    "stop_reason": str,
    "tokens": int,
    "elapsed": (int, float),
}


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file of answers holds."""

    facts: dict[str, Any]  # what decides an answer
    versions: dict[str, str]
    answers: dict[str, dict[str, list[Answer]]]  # by model and question, the draws in their order
    seconds: dict[str, float]  # that each model was asked
    end: int  # bytes up to the end of the last whole line
    torn: bool  # whether a kill cut the last line short

    @property
    def count(self) -> int:
        return sum(len(drawn) for asked in self.answers.values() for drawn in asked.values())


def unfinished_file(output_file: Path) -> Path:
    """The file of answers that belongs to a file of results, while the evaluation is under way."""
    return beside(output_file, ".unfinished.jsonl")


def beside(output_file: Path, ending: str) -> Path:
    """The name of another file of the same results: results.json -> results.csv."""
    return output_file.with_name(output_file.name.removesuffix(".json") + ending)


def stored_answers(file: Path) -> Stored | None:
    """The content of a file of answers; None if there is no file, or nothing whole in it.

    Raises:
        UserError: it is damaged, of another version, or something else.
    """
    try:
        data = read_regular(file, _LARGEST)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    *lines, rest = data.split(b"\n")
    if not lines and rest and not b'{"format":'.startswith(rest[:10]):
        raise _not_ours(file)
    if not lines:
        return None
    header = _json(lines[0])
    if header is None or header.get("format") != _FORMAT:
        raise _not_ours(file)
    if header.get("version") != _VERSION:
        raise UserError(
            f"{file} has version {header.get('version')!r}; this version of Tinkersmith goes on "
            f"with version {_VERSION}. Use the version that began it, or move the file away."
        )
    facts, versions = header.get("facts"), header.get("versions")
    if not isinstance(facts, dict) or not isinstance(versions, dict):
        raise _damaged(file, 1, "it does not say what was asked", "Move the file away.")
    answers: dict[str, dict[str, dict[int, Answer]]] = {}
    seconds: dict[str, float] = {}
    for number, line in enumerate(lines[1:], start=2):
        record = _json(line)
        if record is None:
            raise _damaged(file, number, "it is no JSON object")
        for name, kind in _FIELDS.items():
            value = record.get(name)
            if name not in record or not isinstance(value, kind) or _is_wrong(name, value):
                what = kind_of_json(value) if name in record else "missing"
                raise _damaged(file, number, f'"{name}" is {what}')
        drawn = answers.setdefault(record["model"], {}).setdefault(record["question"], {})
        drawn[record["draw"]] = _answer(record)  # of several lines for one answer, the last counts
        seconds[record["model"]] = max(seconds.get(record["model"], 0.0), record["elapsed"])
    return Stored(
        facts=cast("dict[str, Any]", facts),
        versions=cast("dict[str, str]", versions),
        answers={
            model: {
                question: [drawn[draw] for draw in sorted(drawn)]
                for question, drawn in asked.items()
            }
            for model, asked in answers.items()
        },
        seconds=seconds,
        end=len(data) - len(rest),
        torn=bool(rest),
    )


def changed_facts(former: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """What decides an answer now and is not as it was then, each the end of a sentence."""
    different: list[str] = []
    for name in dict.fromkeys([*facts, *former]):
        now, then = facts.get(name), former.get(name)
        if now == then:
            continue
        if name.endswith("digest"):
            different.append(f"{name.removesuffix('digest').strip()} changed")
        else:
            different.append(f"{name} is {_shown(now)}; it was {_shown(then)}")
    return different


class AnswersFile:
    """A file of answers that is being written. Only one process writes to it."""

    def __init__(
        self, file: Path, facts: Mapping[str, Any], versions: Mapping[str, str], again: str = ""
    ) -> None:
        """Open the file behind its last whole line, or begin it.

        Args:
            again: the command that goes on; "" where this is what is done. Otherwise the file must
                hold no answer yet.

        Raises:
            UserError: another process writes to it, or it cannot be written, or has answers.
        """
        self.path = file
        self._synced = 0.0
        try:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            self._lock()
            stored = stored_answers(file)
            if again and stored is not None:
                refuse_answers(file, stored, again)
                stored = None
            self._end = stored.end if stored else 0
            os.ftruncate(self._handle, self._end)
            if stored is None:
                header = {"format": _FORMAT, "version": _VERSION}
                self._append([{**header, "facts": dict(facts), "versions": dict(versions)}])
        except OSError as error:
            os.close(self._handle)
            raise self._unwritable(error) from None
        except BaseException:
            os.close(self._handle)
            raise

    def add(
        self, model: str, question: Question, answers: Sequence[Answer], elapsed: float
    ) -> None:
        """Write down the answers to a question.

        Args:
            elapsed: seconds that this model has been asked.

        Raises:
            UserError: they cannot be written; the file is then as it was.
        """
        lines = [
            {
                "model": model,
                "question": question.digest,
                "draw": answer.draw,
                "produced": answer.produced,
                "generated": None if answer.generated == answer.produced else answer.generated,
                "thought_finished": answer.thought_finished,
                "stop_reason": answer.stop_reason,
                "tokens": answer.tokens,
                "elapsed": round(elapsed, 3),
            }
            for answer in answers
        ]
        try:
            self._append(lines)
            if time.monotonic() - self._synced > _SYNC_EVERY:
                os.fsync(self._handle)
                self._synced = time.monotonic()
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._handle, self._end)
            raise self._unwritable(error) from None

    def close(self) -> None:
        """Keep the file for another time."""
        with suppress(OSError):
            os.fsync(self._handle)
        os.close(self._handle)

    def remove(self) -> None:
        """Remove the file: its answers are in the results."""
        self.path.unlink(missing_ok=True)

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        size = len(data)
        while data:
            data = data[os.write(self._handle, data) :]
        self._end += size

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{self.path} is in use by another evaluation. Wait until that ends, or name "
                "another file with --output."
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} cannot be written: {reason_of(error)}. Correct that, or name another "
            "file with --output."
        )


def _answer(record: Mapping[str, Any]) -> Answer:
    generated = record["generated"]
    return Answer(
        draw=record["draw"],
        produced=record["produced"],
        generated=record["produced"] if generated is None else generated,
        thought_finished=record["thought_finished"],
        stop_reason=record["stop_reason"],
        tokens=record["tokens"],
    )


def _is_wrong(name: str, value: object) -> bool:
    """Whether a value of the right kind cannot be that of the field."""
    if name == "model":
        return value not in ("trained", "base")
    if name in ("draw", "tokens", "elapsed"):
        number = cast("float", value)
        return isinstance(value, bool) or not number >= (1 if name == "draw" else 0)
    return False


def _json(line: bytes) -> dict[str, Any] | None:
    try:
        record: object = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return cast("dict[str, Any]", record) if isinstance(record, dict) else None


def _shown(value: object) -> str:
    return one_line(repr(value), 100)


def _damaged(
    file: Path,
    number: int,
    reason: str,
    advice: str = "Remove that line; its question is asked again.",
) -> UserError:
    return UserError(f"{file}, line {number} is damaged: {reason}. {advice}")


def _not_ours(file: Path) -> UserError:
    return UserError(
        f"{file} is in the way: it is not a file of answers. Move it away, or name another file "
        "with --output."
    )


def refuse_answers(file: Path, stored: Stored, again: str) -> None:
    """Refuse to begin anew where an evaluation was stopped.

    Args:
        again: the command that goes on with it.

    Raises:
        UserError: the file holds answers.
    """
    if stored.count:
        raise UserError(
            f"{file} holds {counted(stored.count, 'answer')} of an evaluation that was stopped. Go "
            f"on with: {again} - or remove that file to begin anew."
        )
