"""The folder of a run -> its row in the list, and its curves, log and answers if it is shown.

A row needs the ends of the files. Only a run that is shown is read whole, once.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from tinkersmith.dashboard.appended import AppendedLines, last_records, record_of
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_json_object, read_regular
from tinkersmith.plurals import counted
from tinkersmith.report.write import REPORT_FILE
from tinkersmith.runs.best import BEST_FILE
from tinkersmith.runs.curves import GrowingCurve, Point
from tinkersmith.runs.folder import IMPROVEMENT_FACT, SAMPLES_FILE, SHOWN_ANSWERS_FILE, RunFolder
from tinkersmith.runs.lock import LOCK_FILE, is_held, run_state

LOG_LINES = 400  # of the end of train.log that a page shows
_LOG_BYTES = 256_000
_LARGEST = 20_000_000  # bytes of samples.json
_ANSWERS = 300  # of shown_answers.jsonl, the newest
_TEXT = 4000  # characters of a prompt or answer that a page shows
_WATCHED = (
    *("settings.json", "metrics.jsonl", "train.log", "checkpoints.jsonl", "best.json"),
    *(LOCK_FILE, SAMPLES_FILE, SHOWN_ANSWERS_FILE, REPORT_FILE),
)
# Numbers of a line that a page shows no curve of: they count, or belong to another number.
_NO_CURVE = (
    *("step", "epoch", "samples", "tokens", "completion_tokens", "last_sound_step", "seconds"),
    *("eval/n", "eval/answers", "eval/cut", "eval/unfinished_thoughts", "eval/seconds"),
)

Stamps = Mapping[str, tuple[int, int, int]]


def stamps_of(folder: Path) -> Stamps:
    """Inode, size and time of the files of a run that say how it goes: equal ones are unchanged."""
    stamps: dict[str, tuple[int, int, int]] = {}
    for name in _WATCHED:
        with suppress(OSError):
            status = os.stat(folder / name)
            stamps[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return stamps


def row_of(run: RunFolder, stamps: Stamps) -> dict[str, Any]:
    """What the list of runs says of a run."""
    row: dict[str, Any] = {
        "name": run.name,
        "state": "damaged",
        "problem": "",
        "step": 0,
        "total": 0,
        "loss": None,
        "epoch": None,
        "rate": None,  # tokens per second
        "left": None,  # seconds
        "best": None,
        "started": _started(stamps),
        "seen": max((stamp[2] for stamp in stamps.values()), default=0) / 1e9,
        "model": "",
        "backend": "",
        "report": REPORT_FILE in stamps,
    }
    try:
        facts = run.facts()
        records = last_records(run.file("metrics.jsonl"))
    except UserError as error:
        return row | {"problem": str(error)}
    with suppress(UserError):  # the page of the run names it
        row["best"] = _best(run)
    row |= {
        "total": facts.get("total_steps", 0),
        "model": facts.get("base_model", ""),
        "backend": facts.get("backend", ""),
    }
    steps = [record for record in records if "loss" in record]
    if steps:
        last = steps[-1]
        row |= {
            "step": _whole(last.get("step")),
            "loss": finite(last.get("loss")),
            "epoch": _whole(last.get("epoch")),
            "rate": finite(last.get("tokens_per_second")),
            "left": _left(steps, row["total"]),
        }
    diverged = bool(records and records[-1].get("diverged"))
    row["state"] = run_state(run, diverged, row["step"], row["total"])
    if row["state"] != "running":
        row["left"] = None
    return row


def _best(run: RunFolder) -> dict[str, Any] | None:
    """What best.json holds; None where there is none.

    Raises:
        UserError: it is damaged.
    """
    file = run.file(BEST_FILE)
    try:
        best = read_json_object(file, 100_000)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}.") from None
    value, by = finite(best.get("value")), best.get("by")
    if value is None or not isinstance(by, str):
        raise UserError(f"{file} is damaged: it names no measurement.")
    return {"by": by, "value": value, "step": _whole(best.get("step"))}


def _left(steps: list[dict[str, Any]], total: int) -> float | None:
    """Seconds for the steps that are left, by the pace of the last ones."""
    recent = [seconds for s in steps[-50:] if (seconds := finite(s.get("seconds"))) is not None]
    done = _whole(steps[-1].get("step"))
    if not recent or done >= total:
        return None
    return (total - done) * sum(recent) / len(recent)


def finite(value: object) -> float | None:
    """A number that JSON and a chart can show; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def _whole(value: object) -> int:
    number = finite(value)
    return 0 if number is None else int(number)


def _started(stamps: Stamps) -> float:
    """When the run began; where settings.json is lost, when the oldest file was written."""
    times = [stamps["settings.json"]] if "settings.json" in stamps else stamps.values()
    return min((time for _, _, time in times), default=0) / 1e9


@dataclass(slots=True)
class SentSoFar:
    """What a page has of a shown run."""

    generation: int = -1  # of the curves
    # Of each curve: the width of its buckets, and its last x.
    curves: dict[str, tuple[float, float]] = field(default_factory=dict[str, tuple[float, float]])
    log_generation: int = -1
    log_lines: int = 0
    details: int = -1


class ShownRun:
    """A run whose curves, log and answers are shown. Its files are read as they grow."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._metrics = AppendedLines(run.file("metrics.jsonl"))
        self._log = AppendedLines(run.file("train.log"))
        self._answers = AppendedLines(run.file(SHOWN_ANSWERS_FILE))
        self._stamps: Stamps = {}
        self.curves: dict[str, GrowingCurve] = {}
        self.damaged_lines = 0
        self._damaged_answers = 0
        self._unread: dict[str, str] = {}  # files that the system does not let us read, and why
        self._generation = 0
        self._lines: list[str] = []
        self._line_count = 0  # with those that are no longer held
        self._log_generation = 0
        self._asked: list[dict[str, Any]] = []
        self.details: dict[str, Any] = {}
        self._details_number = 0

    @property
    def bytes_read(self) -> int:
        """Bytes of the files that grow, as far as they were read."""
        return self._metrics.bytes_read + self._log.bytes_read + self._answers.bytes_read

    def look(self, stamps: Stamps) -> None:
        """Read what has changed since the last look."""
        changed = {name for name in _WATCHED if stamps.get(name) != self._stamps.get(name)}
        self._stamps, damaged = stamps, (self.damaged_lines, dict(self._unread))
        for name, read in (
            ("metrics.jsonl", self._read_metrics),
            ("train.log", self._read_log),
            (SHOWN_ANSWERS_FILE, self._read_answers),
        ):
            if name in changed:
                self._unread.pop(name, None)
                try:
                    read()
                except OSError as error:
                    self._unread[name] = str(unreadable(self.run.file(name), error))
        others = changed - {"metrics.jsonl", "train.log"}
        now_damaged = (self.damaged_lines, self._unread)
        if others or not self._details_number or damaged != now_damaged:
            self.details = self._details()
            self._details_number += 1

    def _read_metrics(self) -> None:
        new = self._metrics.read()
        if new.restarted:
            self.curves, self.damaged_lines = {}, 0
            self._generation += 1
        for line in new.lines:
            record = record_of(line)
            step = None if record is None else finite(record.get("step"))
            if record is None or step is None:
                self.damaged_lines += bool(line.strip())
                continue
            for name, value in record.items():
                if type(value) not in (int, float) or not _is_curve(name):
                    continue
                curve = self.curves.get(name)
                if curve is None:
                    curve = self.curves[name] = GrowingCurve()
                curve.add(step, value if type(value) is float else finite(value))

    def _read_log(self) -> None:
        new = self._log.read(most_at_first=_LOG_BYTES)
        if new.restarted:
            self._lines, self._line_count = [], 0
            self._log_generation += 1
        self._lines += [line.decode("utf-8", "replace") for line in new.lines]
        self._line_count += len(new.lines)
        del self._lines[:-LOG_LINES]

    def _read_answers(self) -> None:
        new = self._answers.read()
        if new.restarted:
            self._asked, self._damaged_answers = [], 0
        records = [record_of(line) for line in new.lines if line.strip()]
        self._asked += [record for record in records if record is not None]
        self._damaged_answers += records.count(None)
        del self._asked[:-_ANSWERS]

    def _details(self) -> dict[str, Any]:
        """The settings, the answers, the best checkpoint, and what is left out as damaged."""
        problems = list(self._unread.values())
        if self._damaged_answers:
            file = self.run.file(SHOWN_ANSWERS_FILE)
            lines = counted(self._damaged_answers, "damaged line is", "damaged lines are")
            problems.append(f"{lines} left out of {file}.")
        settings: dict[str, Any] = {}
        final: list[dict[str, Any]] = []
        checkpoints: list[dict[str, Any]] = []
        best: dict[str, Any] | None = None
        facts: dict[str, Any] = {}
        try:
            facts = self.run.facts()
            settings = facts["settings"]
        except UserError as error:
            problems.append(str(error))
        try:
            final, others = self._final_answers()
            if others:
                left_out = counted(
                    others, "entry that is no sample is", "entries that are none are"
                )
                problems.append(f"{left_out} left out of {self.run.file(SAMPLES_FILE)}.")
        except UserError as error:
            problems.append(str(error))
        try:
            best = _best(self.run)
        except UserError as error:
            problems.append(str(error))
        try:
            checkpoints = last_records(self.run.file("checkpoints.jsonl"))
        except UserError as error:
            problems.append(str(error))
        # An improvement has no line for each step; files of a run at work are not of one moment.
        if not (IMPROVEMENT_FACT in facts or is_held(self.run)):
            problems += self._lost(checkpoints)
        return {
            "settings": {name: _shown(value) for name, value in settings.items()},
            "answers": [_answer(record) for record in [*self._asked, *final]],
            "best": best,
            "checkpoints": [
                {"step": _whole(record.get("step")), "name": str(record.get("name", ""))}
                for record in checkpoints
            ],
            "problems": problems,
        }

    def _lost(self, checkpoints: list[dict[str, Any]]) -> list[str]:
        """Whether the curves end before the last checkpoint: each step has its line before it."""
        saved = _whole(checkpoints[-1].get("step")) if checkpoints else 0
        curve = self.curves.get("loss")
        done = 0 if curve is None or curve.last is None else int(curve.last[0])
        if done >= saved:
            return []
        file = self.run.file("metrics.jsonl")
        return [f"{file} ends at step {done:,}, and the last checkpoint is of step {saved:,}."]

    def _final_answers(self) -> tuple[list[dict[str, Any]], int]:
        """The records of samples.json, and how many entries are none."""
        file = self.run.file(SAMPLES_FILE)
        try:
            stored: object = json.loads(read_regular(file, _LARGEST))
        except FileNotFoundError:
            return [], 0
        except OSError as error:
            raise unreadable(file, error) from None
        except (ValueError, RecursionError):
            raise UserError(f"{file} is damaged: it is not JSON.") from None
        if not isinstance(stored, list):
            raise UserError(f"{file} is damaged: it is no list of samples.")
        entries = cast("list[object]", stored)
        samples = [cast("dict[str, Any]", one) for one in entries if isinstance(one, dict)]
        return [{**one, "final": True} for one in samples], len(entries) - len(samples)

    def news(self, sent: SentSoFar) -> dict[str, Any]:
        """What the page does not have yet, and note that it has it now; {} if it has all."""
        news: dict[str, Any] = {}
        if curves := self._curve_news(sent):
            news["curves"] = curves
        if log := self._log_news(sent):
            news["log"] = log
        if sent.details != self._details_number:
            sent.details = self._details_number
            news["details"] = {**self.details, "damaged_lines": self.damaged_lines}
        return news

    def _curve_news(self, sent: SentSoFar) -> dict[str, Any]:
        """By curve: `points`, their `means`, and `from`, the x from which they replace others."""
        news: dict[str, Any] = {}
        if sent.generation != self._generation:
            gone = sent.curves.keys() - self.curves.keys()
            news |= {name: {"from": None, "points": []} for name in gone}
            sent.generation, sent.curves = self._generation, {}
        for name, curve in self.curves.items():
            assert curve.last is not None
            before, now = sent.curves.get(name), (curve.width, curve.last[0])
            if before == now:
                continue
            goes_on = before is not None and before[0] == curve.width
            start = curve.bucket_start(before[1]) if before and goes_on else None
            first = -math.inf if start is None else start
            news[name] = {"from": start, "points": _brief(curve.points(first))}
            if curve.width > 1:  # else they are the points
                news[name]["means"] = _brief(curve.means(first))
            sent.curves[name] = now
        return news

    def _log_news(self, sent: SentSoFar) -> dict[str, Any]:
        if sent.log_generation != self._log_generation:
            sent.log_generation, sent.log_lines = self._log_generation, 0
            restarted = True
        else:
            restarted = False
        new = min(self._line_count - sent.log_lines, len(self._lines))
        sent.log_lines = self._line_count
        if not new and not restarted:
            return {}
        return {"restarted": restarted, "lines": self._lines[len(self._lines) - new :]}


def _brief(points: Iterable[Point]) -> list[list[float | None]]:
    """Points with as many digits as a chart can show."""
    return [[float(f"{x:.8g}"), None if y is None else float(f"{y:.6g}")] for x, y in points]


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]}..."


def _answer(record: Mapping[str, Any]) -> dict[str, Any]:
    """An answer that was shown, as the page takes it."""
    stored = record.get("answers")
    answers = cast("list[object]", stored) if isinstance(stored, list) else []
    return {
        "step": _whole(record.get("step")) or None,
        "epoch": _whole(record.get("epoch")) or None,
        "final": record.get("final") is True,
        "source": _shown(record.get("source", "")),
        "prompt": _shown(record.get("prompt", "")),
        "expected": _shown(record.get("expected", "")),
        "answers": [_shown(answer) for answer in answers],
        "scores": {
            str(name): finite(value)
            for name, value in _object(record.get("scores")).items()
            if finite(value) is not None
        },
    }


@lru_cache(1000)
def _is_curve(name: str) -> bool:
    return name not in _NO_CURVE and not name.endswith(("_low", "_high", "_n"))


def _object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
