"""Memory and handles of processes over time, whether they grow, and a plot of them."""

import threading
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from statistics import median

from benchmarks.process_memory import resident_gb
from tinkersmith.files import write_atomically

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd")
WIDTH, HEIGHT, MARGIN = 640, 240, 48


@dataclass
class Curve:
    """What was counted of one process: (seconds since the start, value)."""

    name: str
    points: list[tuple[float, float]] = field(default_factory=list)

    def growth(self) -> float:
        """The last quarter's median over the second quarter's, minus 1: the first is warm-up."""
        values = [value for _, value in self.points]
        quarter = len(values) // 4
        if quarter < 3:
            raise ValueError(f"{self.name} has only {len(values)} readings")
        return median(values[-quarter:]) / median(values[quarter : 2 * quarter]) - 1

    def to_json(self) -> dict[str, object]:
        return {
            "first": self.points[0][1],
            "last": self.points[-1][1],
            "highest": max(value for _, value in self.points),
            "growth from the second quarter to the last": round(self.growth(), 4),
        }


@dataclass
class Watched:
    memory: dict[str, Curve] = field(default_factory=dict)  # MB, by the process's name
    handles: dict[str, Curve] = field(default_factory=dict)


@contextmanager
def watched(processes: Callable[[], Mapping[str, int]], every: float = 2.0) -> Generator[Watched]:
    """Read memory and handles of processes while the block runs.

    Args:
        processes: the numbers of the processes by name; asked anew at each reading.
        every: seconds between two readings.
    """
    curves, done, start = Watched(), threading.Event(), time.monotonic()

    def read() -> None:
        while not done.wait(every):
            for name, number in processes().items():
                try:
                    memory = resident_gb("VmRSS", number) * 1000
                    handles = len(list(Path(f"/proc/{number}/fd").iterdir()))
                except (OSError, ValueError):  # it has ended
                    continue
                seconds = time.monotonic() - start
                curves.memory.setdefault(name, Curve(name)).points.append((seconds, memory))
                curves.handles.setdefault(name, Curve(name)).points.append((seconds, handles))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield curves
    finally:
        done.set()
        thread.join()


def figures(curves: Watched) -> dict[str, object]:
    return {
        "memory, MB": {name: curve.to_json() for name, curve in curves.memory.items()},
        "handles": {name: curve.to_json() for name, curve in curves.handles.items()},
    }


def draw(path: Path, title: str, curves: Mapping[str, Curve], unit: str) -> None:
    """Write an SVG: lines over minutes, from 0 up."""
    longest = max(curve.points[-1][0] for curve in curves.values())
    highest = max(value for curve in curves.values() for _, value in curve.points) * 1.1
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{MARGIN}" y="18" font-size="14">{escape(title)}</text>',
    ]

    def place(seconds: float, value: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * seconds / longest
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / highest

    for share in (0, 0.5, 1):
        x, y = place(longest * share, highest * share)
        left, bottom = place(0, 0)
        lines.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{WIDTH - MARGIN}" y2="{y:.1f}" stroke="#ddd"/>'
            f'<text x="4" y="{y + 4:.1f}">{highest * share:,.0f}</text>'
            f'<text x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">'
            f"{longest * share / 60:.1f}</text>"
        )
    lines.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        f"minutes ({escape(unit)} upwards)</text>"
    )
    for number, (name_of, curve) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve.points)
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        lines.append(
            f'<text x="{WIDTH - MARGIN - 150 + 90 * number}" y="18" fill="{colour}">'
            f"{escape(name_of)}</text>"
        )
    write_atomically(path, "\n".join([*lines, "</svg>"]) + "\n")
