"""A reader and its input -> an outcome: it works, it says one sentence, or a promise is broken."""

import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results_file import write_results
from tinkersmith.engine.errors import Refused
from tinkersmith.errors import UserError

PATIENCE = 10  # seconds for one input
MEMORY = 64  # MiB that the process may grow by, once it has warmed up
LONGEST_SENTENCE = 2000  # characters; names of files are most of it


class Hang(BaseException):
    """The time for one input is over. No reader catches this by accident."""


@dataclass
class Tally:
    """What has happened so far."""

    sentences: int = 0
    works: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0  # seconds
    slowest_kind: str = ""
    broken: list[str] = field(default_factory=list)

    def run(self, kind: str, read: Callable[[], None], names: Sequence[Path | str] = ()) -> None:
        """Call `read`. Only UserError and Refused may come, in one line that names the input.

        Args:
            kind: what is read and how it is damaged, for the tables.
            names: the error must contain at least one of these.
        """
        self.by_kind[kind] += 1
        start = time.perf_counter()
        try:
            with_patience(read)
            self.works += 1
        except (UserError, Refused) as error:
            self.sentences += 1
            text = str(error)
            if problem := wrong_sentence(text, names):
                self.broken.append(f"{kind}: {problem}: {text[:300]}")
        except Hang:
            self.broken.append(f"{kind}: no answer within {PATIENCE} s")
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            ours = [
                f for f in traceback.extract_tb(error.__traceback__) if "tinkersmith" in f.filename
            ]
            place = ours[-1] if ours else place
            where = f"{Path(place.filename).name}:{place.lineno}"
            self.broken.append(f"{kind}: {type(error).__name__} at {where}: {str(error)[:200]}")
        seconds = time.perf_counter() - start
        if seconds > self.slowest:
            self.slowest, self.slowest_kind = seconds, kind


def report(
    name: str, command: str, figures: dict[str, object], tally: Tally, grown: int, seconds: float
) -> int:
    """Print what a trial came to and write its results; 1 if a promise is broken.

    Args:
        figures: those of this trial alone, which come first.
        grown: MiB by which memory grew.
    """
    if grown > MEMORY:
        tally.broken.append(f"memory grew by {grown} MiB")
    figures |= {
        "promises broken": len(tally.broken),
        "grown memory, MiB": grown,
        "seconds": round(seconds, 1),
        "slowest, seconds": round(tally.slowest, 2),
        "slowest": tally.slowest_kind,
    }
    for line in tally.broken[:50]:
        print(ascii(line))
    for what, figure in figures.items():
        print(f"{what:24} {figure}")
    print("written:", write_results(name, command, figures))
    return 1 if tally.broken else 0


def with_patience(act: Callable[[], None], seconds: float = PATIENCE) -> None:
    """Call `act`, and raise `Hang` in it if it takes too long. Only in the main thread."""

    def give_up(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        act()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wrong_sentence(text: str, names: Sequence[Path | str]) -> str:
    """What is wrong with an error's text; "" if nothing is."""
    if not text.strip():
        return "it says nothing"
    if len(text) > LONGEST_SENTENCE:
        return f"it has {len(text):,} characters"
    if "\n" in text or "Traceback" in text:
        return "it has several lines"
    if names and not any(str(name) in text for name in names):
        return f"it does not name {names[0]}"
    return ""


def grown_memory(after: Callable[[], None]) -> int:
    """MiB by which the process's largest memory grows while `after` runs."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
