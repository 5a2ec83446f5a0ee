"""Lengths of samples -> a statistics table, a histogram and one line of advice, as plain text.

The lengths count tokens or, without a tokenizer, characters. This module only prints the unit.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tinkersmith.plurals import counted

LIMITS: tuple[int, ...] = (2048, 4096, 8192, 16384)
_LARGEST_SETTING = 1_048_576  # tokens: of MAX_SEQUENCE_LENGTH
_BAR_WIDTH = 40
_BAR_STEPS = " ▏▎▍▌▋▊▉█"  # eighths of a column


@dataclass(frozen=True, slots=True)
class LengthStatistics:
    """The distribution of the samples' lengths."""

    count: int
    unit: str  # "tokens" or "characters"
    min: int
    max: int
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    total: int
    shares_over: dict[int, float]  # limit -> share of samples that are longer
    edges: list[int]  # histogram: bin i counts edges[i] <= length < edges[i + 1]
    bins: list[int]
    advice: str
    model_holds: int | None = None  # tokens; None: not known

    @classmethod
    def of(
        cls,
        lengths: Sequence[int] | np.ndarray,
        unit: str = "tokens",
        max_sequence_length: int | None = None,
        model_holds: int | None = None,
    ) -> "LengthStatistics":
        """The statistics of all `lengths`, one per sample."""
        values, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
        return cls.of_counts(values, counts, unit, max_sequence_length, model_holds)

    @classmethod
    def of_counts(
        cls,
        values: np.ndarray,
        counts: np.ndarray,
        unit: str = "tokens",
        max_sequence_length: int | None = None,
        model_holds: int | None = None,
    ) -> "LengthStatistics":
        """Like `of`, from the distinct lengths and how often each occurs.

        Args:
            values: (D,) ascending lengths.
            counts: (D,) the number of samples of each length.
            max_sequence_length: what longer samples are cut to, or None.
            model_holds: the most tokens that the model takes, or None where that is not known.
        """
        if values.size == 0:
            nothing = dict[int, float].fromkeys(LIMITS, 0.0)
            return cls(
                0, unit, 0, 0, 0, 0, 0, 0, 0, 0, nothing, [0, 1], [0], "No samples.", model_holds
            )
        count, total = int(counts.sum()), int(values @ counts)
        edges, bins = _histogram(values, counts)
        return cls(
            count=count,
            unit=unit,
            min=int(values[0]),
            max=int(values[-1]),
            mean=total / count,
            median=_percentile(values, counts, 50),
            p90=_percentile(values, counts, 90),
            p95=_percentile(values, counts, 95),
            p99=_percentile(values, counts, 99),
            total=total,
            shares_over={limit: _share_over(values, counts, limit) for limit in LIMITS},
            edges=edges,
            bins=bins,
            advice=_advice(values, counts, unit, max_sequence_length, model_holds),
            model_holds=model_holds,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def format_length_statistics(stats: LengthStatistics, title: str, noun: str = "sample") -> str:
    """The table, the histogram and the advice, each line below 80 columns.

    Args:
        noun: what has a length.
    """
    total = counted(stats.total, stats.unit.removesuffix("s"))
    lines = [f"{title}: {counted(stats.count, noun)}, {total}"]
    if not stats.count:
        return lines[0]
    names = ("min", "median", "mean", "p90", "p95", "p99", "max")
    values = [f"{round(getattr(stats, name)):,}" for name in names]
    width = max(9, *(len(value) + 1 for value in values))
    lines.append("  " + "".join(f"{name:>{width}}" for name in names))
    lines.append("  " + "".join(f"{value:>{width}}" for value in values))
    over = [
        f"{limit:,}: {_percent(share, stats.count)}" for limit, share in stats.shares_over.items()
    ]
    lines.append(f"  longer than {'  '.join(over)}")
    if stats.model_holds is not None:
        lines.append(f"  the model holds {stats.model_holds:,}")
    lines.extend(_bars(stats))
    if stats.advice:
        lines.append(f"  {stats.advice}")
    return "\n".join(lines)


def _bars(stats: LengthStatistics) -> list[str]:
    tallest = max(stats.bins)
    labels = [
        f"{low:,} to {high - 1:,}" for low, high in zip(stats.edges, stats.edges[1:], strict=False)
    ]
    if stats.edges[-1] > stats.max + 1 or len(labels) == 1:
        labels[-1] = f"{stats.edges[-2]:,} to {stats.max:,}"
    width = max(len(label) for label in labels)
    bar_width = min(_BAR_WIDTH, 78 - width - 14)
    rows: list[str] = []
    for label, count in zip(labels, stats.bins, strict=True):
        eighths = round(8 * bar_width * count / tallest)
        if count and not eighths:
            eighths = 1  # one sample among thousands still shows
        bar = "█" * (eighths // 8) + _BAR_STEPS[eighths % 8].strip()
        rows.append(f"  {label:>{width}} │{bar} {count:,}".rstrip())
    return rows


def _percentile(values: np.ndarray, counts: np.ndarray, percent: float) -> float:
    """Like `np.percentile` of the repeated values: linear between the two nearest."""
    ends = np.cumsum(counts)  # (D,)
    place = (int(ends[-1]) - 1) * percent / 100
    low, high = (
        int(values[np.searchsorted(ends, math.floor(place) + after, side="right")])
        for after in (0, min(1, math.ceil(place) - math.floor(place)))
    )
    return low + (high - low) * (place - math.floor(place))


def _share_over(values: np.ndarray, counts: np.ndarray, limit: int) -> float:
    return float(counts[values > limit].sum() / counts.sum())


def _histogram(values: np.ndarray, counts: np.ndarray) -> tuple[list[int], list[int]]:
    """Edges and counts of about ten bins of a round width; the last bin takes a long tail."""
    low, high = int(values[0]), int(values[-1])
    typical = max(int(_percentile(values, counts, 98)), low + 1)
    step = _round_step((min(high, typical) - low + 1) / 10)
    start = low // step * step
    edges = list(range(start, min(high, typical) + step + 1, step))
    if edges[-1] <= high:
        edges.append(high + 1)
    bins, _ = np.histogram(values, bins=np.asarray(edges), weights=counts)
    while len(bins) > 1 and bins[-1] == 0:
        edges, bins = edges[:-1], bins[:-1]
    return [int(edge) for edge in edges], [int(count) for count in bins]


def _round_step(width: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is not below `width`."""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= width:
                return factor * power
        power *= 10


def _advice(
    values: np.ndarray, counts: np.ndarray, unit: str, limit: int | None, model_holds: int | None
) -> str:
    """One sentence about MAX_SEQUENCE_LENGTH, with values that the model can hold."""
    longest = int(values[-1])
    if unit != "tokens":
        return ""
    most = _LARGEST_SETTING if model_holds is None else min(model_holds, _LARGEST_SETTING)
    if limit is not None and longest > limit:
        cut = int(counts[values > limit].sum())
        who = counted(cut, "sample exceeds", "samples exceed")
        if limit >= most:
            return f"{who} the {limit:,} tokens that the model holds."
        start = f"{who} MAX_SEQUENCE_LENGTH = {limit:,}; "
        if longest > most:
            return f"{start}even {most:,} would cut {int(counts[values > most].sum()):,}."
        return f"{start}{min(_next_power_of_two(longest), most):,} would hold all."
    enough = min(max(_next_power_of_two(longest), 256), most)
    if longest > most:
        over = counted(int(counts[values > most].sum()), "sample exceeds", "samples exceed")
        return f"{over} {most:,} tokens, the largest MAX_SEQUENCE_LENGTH."
    for smaller in (256, 512, 1024, *LIMITS):
        over = _share_over(values, counts, smaller)
        if 0 < over <= 0.01 and smaller * 2 < enough:
            return (
                f"MAX_SEQUENCE_LENGTH = {enough:,} holds all; {smaller:,} would cut only "
                f"{_percent(over, int(counts.sum()))}."
            )
    return f"MAX_SEQUENCE_LENGTH = {enough:,} holds all; a larger value changes nothing."


def _next_power_of_two(length: int) -> int:
    return 1 << max(length - 1, 1).bit_length()


def _percent(share: float, count: int) -> str:
    """A share as a percentage; a small one as its number of samples, never as "0.0 %"."""
    if share == 0:
        return "0 %"
    text = f"{100 * share:.1f} %"
    return text if text != "0.0 %" else counted(round(share * count), "sample")
