"""A sweep and its ranking -> sweep.html: curves, values with intervals, settings, in one file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.files import write_atomically
from tinkersmith.pages.page import page_html, part
from tinkersmith.runs.curves import Point, downsampled
from tinkersmith.settings.measures import is_told_in_percent, measurement_name
from tinkersmith.sweep.grid import value_label
from tinkersmith.sweep.ranking import Effect, Ranked, Ranking, is_lower_better
from tinkersmith.sweep.record import Sweep, SweepRun, describe
from tinkersmith.sweep.words import (
    amount_text,
    commands_after,
    difference_ends,
    difference_text,
    ends_text,
    limits,
    measure_title,
    spread_text,
    verdict_sentence,
)

PAGE_FILE = "sweep.html"
_HERE = "tinkersmith.sweep"
_BUCKETS = 4000  # of all runs' curves together: the page stays small with hundreds of them


def write_sweep_page(
    sweep: Sweep,
    ranking: Ranking,
    effects: Sequence[Effect],
    language: str,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the page into the sweep's folder.

    Args:
        say: is told which damaged files the page leaves out.

    Raises:
        OSError: it cannot be written.
    """
    path = sweep.folder / PAGE_FILE
    content = _content(sweep, ranking, effects, language)
    page = page_html(
        title=f"{sweep.name} · Tinkersmith",
        language=language,
        body=part(_HERE, "page.html"),
        data=content,
        scripts=[part("tinkersmith.pages", "charts.js"), part(_HERE, "page.js")],
        styles=[part(_HERE, "page.css")],
        generator="tinkersmith sweep",
    )
    write_atomically(path, page)
    for sentence in content["damaged"]:
        say(f"Warning: {sentence}")
    return path


def _content(
    sweep: Sweep, ranking: Ranking, effects: Sequence[Effect], language: str
) -> dict[str, Any]:
    by = sweep.by
    damaged: list[str] = []
    runs = [_run(sweep, run, damaged) for run in sweep.runs]
    means = [mean for effect in effects for _, mean, _ in effect.levels]
    pad = 0.08 * (max(means) - min(means)) if means else 0.0
    statuses = [run.status for run in sweep.runs]
    left = sum(status in ("waiting", "paused", "interrupted") for status in statuses)
    return {
        "name": sweep.name,
        "created": sweep.created.replace("T", " ")[:16],
        "by_title": measure_title(by, language).strip(),
        "lower": is_lower_better(by),
        "percent": is_told_in_percent(by),
        "grid": describe(sweep.grid),
        "settings": list(sweep.grid),
        "seeds": sweep.seeds,
        "combinations": len(sweep.combinations),
        "halved": len(sweep.rungs) > 1,
        "finished": statuses.count("finished"),
        "stopped": statuses.count("stopped"),
        "lost": statuses.count("failed") + statuses.count("diverged"),
        "steps": sum(run.steps_done for run in sweep.runs),
        "all_steps": sum(run.total_steps for run in sweep.runs),
        "verdict": verdict_sentence(sweep, ranking, language),
        "limits": limits(sweep, ranking, language),
        "optimism": "" if ranking.optimism is None else spread_text(by, ranking.optimism, language),
        "rows": _rows(sweep, ranking, language),
        "runs": runs,
        "damaged": damaged,
        "effects": [
            {
                "setting": effect.setting,
                "share": effect.share,
                "levels": [
                    {
                        "value": value_label(value),
                        "mean": mean,
                        "n": count,
                        "text": amount_text(by, mean),
                    }
                    for value, mean, count in effect.levels
                ],
            }
            for effect in effects
        ],
        "effect_range": [min(means) - pad, max(means) + pad] if means else [0, 1],
        # What a run that is at work may still change is not offered yet.
        "commands": [] if left else commands_after(sweep, ranking),
        "left": left,
    }


def _rows(sweep: Sweep, ranking: Ranking, language: str) -> list[dict[str, Any]]:
    """The combinations in their order, and those that have no value behind them."""
    ranked = {row.combination: (place, row) for place, row in enumerate(ranking.rows, start=1)}
    others = [place for place in range(len(sweep.combinations)) if place not in ranked]
    return [
        _row(sweep, combination, *ranked.get(combination, (None, None)), language)
        for combination in [*ranked, *others]
    ]


def _row(
    sweep: Sweep, combination: int, place: int | None, ranked: Ranked | None, language: str
) -> dict[str, Any]:
    chosen, by = sweep.combinations[combination], sweep.by
    runs = [run for run in sweep.runs if run.combination == combination]
    worst = next((run for run in runs if run.status in ("failed", "diverged")), runs[0])
    row: dict[str, Any] = {
        "combination": combination,
        "place": place,
        "label": chosen.label,
        "short": " · ".join(map(value_label, chosen.values.values())),
        "values": {name: value_label(value) for name, value in chosen.values.items()},
        "sort": {
            name: value if isinstance(value, int | float) else value_label(value)
            for name, value in chosen.values.items()
        },
        "status": worst.status,
        "whole": ranked is not None and ranked.whole,
        "reason": worst.reason,
        "folders": [run.folder for run in runs if run.folder],
        "steps": sum(run.steps_done for run in runs),
        "steps_text": _steps_text(runs),
        "seconds": sum(run.seconds for run in runs),
        "mean": None,
        "amount": "",
        "ends": "",
        "low": None,
        "high": None,
        "n": 0,
        "difference": None,
        "spread": None,
        "spread_text": "",
    }
    if ranked is None:
        return row
    found = ranked.difference
    return {
        **row,
        "mean": ranked.mean,
        "amount": amount_text(by, ranked.mean),
        "ends": ends_text(by, ranked, language),
        "low": ranked.low,
        "high": ranked.high,
        "n": ranked.n,
        "spread": ranked.spread,
        "spread_text": "" if ranked.spread is None else spread_text(by, ranked.spread, language),
        "difference": None
        if found is None
        else {
            "mean": found.mean,
            "amount": difference_text(by, found, language),
            "ends": difference_ends(by, found, language),
            "shown": found.shown,
            "seeds_alone": found.seeds_alone,
        },
    }


def _steps_text(runs: Sequence[SweepRun]) -> str:
    done = ", ".join(dict.fromkeys(f"{run.steps_done:,}" for run in runs))
    return f"{done}/{runs[0].total_steps:,}"


def _run(sweep: Sweep, run: SweepRun, damaged: list[str]) -> dict[str, Any]:
    """A run with its curves. What is damaged in its folder leaves them empty, and is noted."""
    losses: list[Point] = []
    measured: list[Point] = []
    folder = sweep.folder_of(run)
    lines: list[dict[str, Any]] = []
    try:
        lines = folder.metrics() if folder else []
    except UserError as error:
        damaged.append(f"{error} The curves of this run are left out.")
    name = measurement_name(sweep.by)
    buckets = max(30, min(200, _BUCKETS // len(sweep.runs)))
    for line in lines:
        if "loss" in line:
            losses.append((line["step"], line["loss"]))
        if name in line:
            measured.append((line["step"], line[name]))
    return {
        "seed": run.seed,
        "combination": run.combination,
        "losses": downsampled(losses, buckets),
        "measured": downsampled(measured, buckets),
    }
