"""OUTPUT_DIR -> what has changed in it since a page was last told.

One `Watch` serves all pages. It looks at the files when a page asks, and at most twice a second,
however many pages there are.
"""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.dashboard.run_view import (
    SentSoFar,
    ShownRun,
    Stamps,
    row_of,
    stamps_of,
)
from tinkersmith.engine_status import engine_statuses
from tinkersmith.report.write import REPORT_FILE
from tinkersmith.runs.folder import RunFolder, all_runs
from tinkersmith.runs.lock import is_held

MOST_SHOWN = 8  # runs at once: a chart has as many colours
LOOK_AGAIN = 0.5  # seconds
_IDLE_EVERY = 10  # looks between two at a run that no process works on
_MOST_HELD = 24  # shown runs whose curves stay in memory when no page shows them any more


@dataclass(slots=True)
class PageState:
    """What a page shows, and what it has been told."""

    shown: tuple[str, ...]  # names of runs
    rows: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    runs: dict[str, SentSoFar] = field(default_factory=dict[str, SentSoFar])
    engines: list[dict[str, Any]] | None = None


class Watch:
    """The runs of a folder, and the engines that work there. Any thread may use it."""

    def __init__(self, output_dir: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.output_dir, self._clock = output_dir, clock
        self._lock = threading.Lock()
        self._looked = -LOOK_AGAIN
        self._looks = 0
        self._stamps: dict[str, Stamps] = {}
        self._rows: dict[str, dict[str, Any]] = {}
        self._runs: dict[str, RunFolder] = {}
        self._shown: dict[str, ShownRun] = {}  # the one that was shown longest ago first
        self._engines: list[dict[str, Any]] = []
        self.rows_read = 0

    def news(self, page: PageState) -> dict[str, Any]:
        """What the page does not know yet; {} if nothing has changed for it."""
        with self._lock:
            self._look_again(page.shown)
            return self._news(page)

    def report(self, name: str) -> Path | None:
        """The report of a run that is listed."""
        with self._lock:
            self._look_again()
            run = self._runs.get(name)
        return None if run is None else run.file(REPORT_FILE)

    def _look_again(self, shown: Collection[str] = ()) -> None:
        if self._clock() - self._looked >= LOOK_AGAIN:
            self._looked = self._clock()
            self._look(shown)

    def _look(self, shown: Collection[str]) -> None:
        runs = {run.name: run for run in all_runs(self.output_dir)}
        for name in self._runs.keys() - runs.keys():
            self._stamps.pop(name, None)
            self._rows.pop(name, None)
            self._shown.pop(name, None)
        self._runs = runs
        for number, (name, run) in enumerate(runs.items()):
            row = self._rows.get(name)
            is_due = (self._looks + number) % _IDLE_EVERY == 0
            if row is None or row["state"] == "running" or name in shown or is_due:
                self._look_at(run)
        self._looks += 1
        self._engines = engine_statuses(self.output_dir / ".engine")

    def _look_at(self, run: RunFolder) -> None:
        stamps, row = stamps_of(run.path), self._rows.get(run.name)
        # A process that is killed changes no file.
        died = row is not None and row["state"] == "running" and not is_held(run)
        if stamps != self._stamps.get(run.name) or died:
            self._stamps[run.name] = stamps
            self._rows[run.name] = row_of(run, stamps)
            self.rows_read += 1

    def _news(self, page: PageState) -> dict[str, Any]:
        news: dict[str, Any] = {}
        changed = [row for name, row in self._rows.items() if page.rows.get(name) is not row]
        gone = sorted(page.rows.keys() - self._rows.keys())
        if changed or gone:
            news["rows"] = changed
            news["gone"] = gone
            page.rows = dict(self._rows)
        shown: dict[str, Any] = {}
        for name in page.shown[:MOST_SHOWN]:
            if (run := self._runs.get(name)) is None:
                continue
            view = self._shown.pop(name, None) or ShownRun(run)
            self._shown[name] = view
            view.look(self._stamps.get(name) or stamps_of(run.path))
            if run_news := view.news(page.runs.setdefault(name, SentSoFar())):
                shown[name] = run_news
        while len(self._shown) > _MOST_HELD:
            del self._shown[next(iter(self._shown))]
        if shown:
            news["shown"] = shown
        if self._engines != page.engines:
            news["engines"] = page.engines = self._engines
        return news
