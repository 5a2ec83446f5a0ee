"""A ranking -> sentences: which combination is the best, and what of that is noise."""

from tinkersmith.command_line import command_line
from tinkersmith.evaluation.verdict import p_text
from tinkersmith.plurals import counted
from tinkersmith.runs.best import best_of_run, value_text
from tinkersmith.settings.fields import FIELDS
from tinkersmith.settings.measures import VALIDATION_LOSS, is_told_in_percent
from tinkersmith.settings.spelling import override_text
from tinkersmith.sweep.ranking import Difference, Effect, Ranked, Ranking, is_lower_better
from tinkersmith.sweep.record import Sweep

_NAMED = 5  # combinations in a sentence


def table_lines(sweep: Sweep, ranking: Ranking) -> list[str]:
    """The combinations in their order, as a table."""
    rows = [["", "COMBINATION", sweep.by.replace("_", " ").upper(), "AGAINST THE BEST"]]
    for place, row in enumerate(ranking.rows, start=1):
        label = sweep.combinations[row.combination].label
        rows.append([f"{place}.", label, mean_text(sweep.by, row), against_text(sweep.by, row)])
    for run in sweep.runs:
        if run.status in ("failed", "diverged"):
            rows.append(["-", sweep.label(run), run.status, ""])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]


def mean_text(by: str, row: Ranked) -> str:
    """A combination's value with its interval."""
    interval = None if row.low is None or row.high is None else (row.low, row.high)
    if by == VALIDATION_LOSS:
        ends = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        return f"{row.mean:.4f}{ends}"
    return value_text(by, row.mean, row.n, interval)


def against_text(by: str, row: Ranked) -> str:
    """How a combination compares with the best one."""
    if not row.whole:
        return "stopped by successive halving"
    if row.difference is None:
        return ""
    verdict = "worse" if row.difference.shown else "may be noise"
    if not row.difference.shown and row.difference.seeds_alone:
        verdict = "may be noise: seeds differ as much"
    return f"{difference_text(by, row.difference)}: {verdict}"


def difference_text(by: str, difference: Difference) -> str:
    """A difference with its interval and its p-value."""
    numbers = (difference.mean, difference.low, difference.high)
    if is_told_in_percent(by):
        mean, low, high = (f"{100 * number:+.1f}" for number in numbers)
        unit = " points"
    else:
        mean, low, high = (f"{number:+.4f}" for number in numbers)
        unit = ""
    return f"{mean}{unit} ({low} to {high}), {p_text(difference.p_holm)}"


def conclusions(sweep: Sweep, ranking: Ranking) -> list[str]:
    """What the sweep shows, and what it does not, in sentences."""
    if not ranking.rows:
        return ["No combination came to its end in all its runs: nothing can be ranked."]
    best = ranking.rows[0]
    label, by = sweep.combinations[best.combination].label, sweep.by.replace("_", " ")
    compared = len(ranking.equals) + len(ranking.worse)
    lines: list[str] = []
    if not compared:
        lines.append(
            f"Best by {by}: {label}. Whether that is more than noise is not known: there is "
            "nothing to compare it with sample by sample."
        )
    elif not ranking.equals:
        them = "the other" if compared == 1 else f"all {compared} others"
        lines.append(f"Best by {by}: {label}. It is better than {them} (Holm, 5 %).")
    elif not ranking.worse:
        others = "the other one" if compared == 1 else f"any of the {compared} others"
        lines.append(
            f"No winner: {label} is the best by {by}, but its lead over {others} may be noise "
            "(Holm, 5 %). Take the cheapest of them, or measure on more samples."
        )
    else:
        lines.append(
            f"Best by {by}: {label}. It is better than {len(ranking.worse)} of {compared}; its "
            f"lead over {_names(sweep, ranking.equals)} may be noise (Holm, 5 %)."
        )
    lines += _limits(sweep, ranking)
    return lines


def _names(sweep: Sweep, rows: list[Ranked]) -> str:
    names = [sweep.combinations[row.combination].label for row in rows[:_NAMED]]
    more = len(rows) - len(names)
    return "; ".join(names) + (f" and {more} more" if more else "")


def _limits(sweep: Sweep, ranking: Ranking) -> list[str]:
    """What the numbers do not say."""
    lines: list[str] = []
    if ranking.optimism is not None:
        amount = (
            f"{100 * ranking.optimism:.1f} points"
            if is_told_in_percent(sweep.by)
            else f"{ranking.optimism:.4f}"
        )
        lines.append(
            f"The best of {len([row for row in ranking.rows if row.whole])} was chosen for its "
            f"value, which is therefore too good: by about {amount}, if only the samples vary. Its "
            "best checkpoint was chosen on them as well."
        )
    if sweep.seeds == 1:
        lines.append(
            "Each combination ran with one seed. How much another seed would change is not "
            "measured: --seeds 3 measures it."
        )
    else:
        spreads = [row.spread for row in ranking.rows if row.spread is not None]
        if spreads:
            typical = (sum(spread**2 for spread in spreads) / len(spreads)) ** 0.5
            amount = (
                f"{100 * typical:.1f} points" if is_told_in_percent(sweep.by) else f"{typical:.4f}"
            )
            lines.append(f"Another seed changes a value by about {amount} (standard deviation).")
    if ranking.uncounted:
        lines.append(
            f"{counted(ranking.uncounted, 'sample')} had other tokens in some runs, because of "
            "their length limit or template, and are left out of the comparisons. Values of such "
            "runs are of different texts."
        )
    stopped = sum(not row.whole for row in ranking.rows)
    if stopped:
        lines.append(
            f"{counted(stopped, 'combination')} were stopped early. A combination that learns "
            "slowly at first may have been among them."
        )
    return lines


def next_lines(sweep: Sweep, ranking: Ranking) -> list[str]:
    """The commands to go on with: measure the best one on fresh data, and export it."""
    if not ranking.rows:
        return []
    best = ranking.rows[0].combination
    lower = is_lower_better(sweep.by)
    runs = [run for run in sweep.runs if run.combination == best and run.status == "finished"]
    runs.sort(key=lambda run: run.rung_values[-1] if lower else -run.rung_values[-1])
    for run in runs:
        folder = sweep.folder_of(run)
        found = best_of_run(folder) if folder else None
        if folder is None or found is None:
            continue
        runs_dir = sweep.settings.output_dir
        is_default = runs_dir == FIELDS["output_dir"].default
        where = () if is_default else ("--set", override_text("output_dir", runs_dir))
        fresh = ("--test-file", "FRESH.json", *where)
        evaluate = command_line("evaluate", "--model-path", found[0].sampler_path, *fresh)
        export = command_line("export", "--model-path", found[0].state_path, *where)
        return [
            f"Best     {folder.name}, {found[0].name}",
            f"Measure  on questions that no run was compared by: {evaluate}",
            f"Export   {export}",
        ]
    return []


def effect_line(effect: Effect, by: str) -> str:
    """One setting's effect: its values with their means."""
    from tinkersmith.sweep.grid import value_label

    levels = ", ".join(
        f"{value_label(value)} {amount_text(by, mean)}" for value, mean, _ in effect.levels
    )
    return f"{effect.setting} explains {effect.share:.0%} of the differences: {levels}"


def amount_text(by: str, value: float) -> str:
    """A value without its interval."""
    return f"{100 * value:.1f} %" if is_told_in_percent(by) else f"{value:.4g}"
