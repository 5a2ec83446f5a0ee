"""A ranking -> words: which combination is the best, and what of that is noise."""

import math

from tinkersmith.command_line import command_line
from tinkersmith.evaluation.verdict import p_text
from tinkersmith.plurals import counted
from tinkersmith.runs.best import best_of_run, value_text
from tinkersmith.settings.measures import VALIDATION_LOSS, is_told_in_percent
from tinkersmith.settings.spelling import output_dir_option
from tinkersmith.sweep.grid import value_label
from tinkersmith.sweep.ranking import Difference, Effect, Ranked, Ranking, is_lower_better
from tinkersmith.sweep.record import Sweep

_NAMED = 5  # combinations in a sentence
_MOST_DECIMALS = 9
_TO = {"en": " to ", "zh": " 至 "}  # between the ends of an interval


# ---- numbers


def measure_title(by: str, language: str = "en") -> str:
    """What the runs are compared by, in words."""
    if language == "zh" and by == VALIDATION_LOSS:
        return "验证损失"
    title = by.replace("_", " ")
    return f" {title} " if language == "zh" else title  # Latin words within Chinese


def amount_text(by: str, value: float) -> str:
    """A value without its interval."""
    if by == VALIDATION_LOSS:
        return f"{value:.4f}"
    return f"{100 * value:.1f} %" if is_told_in_percent(by) else f"{value:.4g}"


def spread_text(by: str, value: float, language: str = "en") -> str:
    """How large a difference is, without a sign: "0.0021", or "< 0.0001"."""
    unit = _difference_unit(by, language)
    if is_told_in_percent(by):
        text, least = f"{100 * value:.1f}", "0.1"
    elif by == VALIDATION_LOSS:
        text, least = f"{value:.4f}", "0.0001"
    else:
        return f"{value:.4g}"
    return f"{text}{unit}" if float(text) else f"< {least}{unit}"


def _about(by: str, value: float, language: str) -> str:
    """A difference as words of a sentence: "about 0.0021", or "less than 0.0001"."""
    text, zh = spread_text(by, value, language), language == "zh"
    if text.startswith("<"):
        return text.replace("<", "不到" if zh else "less than")
    return f"约 {text}" if zh else f"about {text}"


def ends_text(by: str, row: Ranked, language: str = "en") -> str:
    """The interval of a combination's value, in brackets; "" where there is none."""
    if row.low is None or row.high is None:
        return ""
    to = _TO[language]
    if by == VALIDATION_LOSS:
        return f"({row.low:.4f}{to}{row.high:.4f})"
    if is_told_in_percent(by):
        return f"({100 * row.low:.1f}{to}{100 * row.high:.1f} %)"
    return f"({row.low:.4g}{to}{row.high:.4g})"


def difference_text(by: str, difference: Difference, language: str = "en") -> str:
    """A difference with its sign: points of a hundred, or the value's own unit."""
    return f"{_signed(by, difference, difference.mean)}{_difference_unit(by, language)}"


def difference_ends(by: str, difference: Difference, language: str = "en") -> str:
    """The interval and the p-value of a difference."""
    low, high = (_signed(by, difference, end) for end in (difference.low, difference.high))
    return f"({low}{_TO[language]}{high}), {p_text(difference.p_holm)}"


def _difference_unit(by: str, language: str) -> str:
    return {"en": " points", "zh": " 个百分点"}[language] if is_told_in_percent(by) else ""


def _signed(by: str, difference: Difference, value: float) -> str:
    """One of the numbers of a difference, with as many decimals as the largest of them needs."""
    percent = is_told_in_percent(by)
    if not percent and by != VALIDATION_LOSS:
        return f"{value:+.4g}" if value else "0"
    scale = 100 if percent else 1
    largest = scale * max(abs(difference.mean), abs(difference.low), abs(difference.high))
    decimals = 1 if percent else 4
    if largest > 0:  # two digits, where the usual decimals would show only zeros
        decimals = max(decimals, min(1 - math.floor(math.log10(largest)), _MOST_DECIMALS))
    text = f"{scale * value:+.{decimals}f}"
    return text if float(text) else text[1:]  # no sign before a zero


# ---- the table


def table_lines(sweep: Sweep, ranking: Ranking) -> list[str]:
    """The combinations in their order, as a table."""
    rows = [["", "COMBINATION", measure_title(sweep.by).upper(), "AGAINST THE BEST"]]
    for place, row in enumerate(ranking.rows, start=1):
        label = sweep.combinations[row.combination].label
        interval = None if row.low is None or row.high is None else (row.low, row.high)
        mean = value_text(sweep.by, row.mean, row.n, interval)
        if sweep.by == VALIDATION_LOSS:
            mean = f"{mean} {ends_text(sweep.by, row)}"
        rows.append([f"{place}.", label, mean.rstrip(), _against_text(sweep.by, row)])
    for run in sweep.runs:
        if run.status in ("failed", "diverged"):
            rows.append(["-", sweep.label(run), run.status, ""])
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]


def _against_text(by: str, row: Ranked) -> str:
    if not row.whole:
        return "stopped by successive halving"
    if row.difference is None:
        return ""
    verdict = "worse" if row.difference.shown else "may be noise"
    if not row.difference.shown and row.difference.seeds_alone:
        verdict = "may be noise: seeds differ as much"
    difference = row.difference
    return f"{difference_text(by, difference)} {difference_ends(by, difference)}: {verdict}"


def effect_line(sweep: Sweep, effect: Effect) -> str:
    """One setting's effect: its values with their means."""
    levels = ", ".join(
        f"{value_label(value)}: {amount_text(sweep.by, mean)}" for value, mean, _ in effect.levels
    )
    where = " at the first rung" if len(sweep.rungs) > 1 else ""
    return (
        f"{effect.setting} alone explains {effect.share:.0%} of the differences{where} ({levels})"
    )


# ---- sentences


def verdict_sentence(sweep: Sweep, ranking: Ranking, language: str = "en") -> str:
    """Whether there is a best combination."""
    zh, by = language == "zh", measure_title(sweep.by, language)
    if not ranking.rows:
        return (
            "没有一种组合的所有运行都训练到底，无法排名。"
            if zh
            else "No combination came to its end in all its runs: nothing can be ranked."
        )
    label = sweep.combinations[ranking.rows[0].combination].label
    worse, equals = len(ranking.worse), len(ranking.equals)
    compared, names = worse + equals, _names(sweep, ranking.equals)
    if not compared:
        return (
            f"按{by}最佳：{label}。无法逐样本比较，因此不知道这是否只是噪声。"
            if zh
            else f"Best by {by}: {label}. Whether that is more than noise is not known: there is "
            "nothing to compare it with sample by sample."
        )
    if not equals:
        them = "the other one" if compared == 1 else f"all {compared} others"
        return (
            f"按{by}最佳：{label}。它好于参与比较的另外 {compared} 种组合（Holm，5 %）。"
            if zh
            else f"Best by {by}: {label}. It is better than {them} that it was compared with "
            "(Holm, 5 %)."
        )
    if not worse and all(row.difference and row.difference.mean == 0 for row in ranking.equals):
        return (
            f"没有赢家：参与比较的 {compared + 1} 种组合的{by.rstrip()}都一样。请选其中代价最小的，"
            "或在更多样本上测量。"
            if zh
            else f"No winner: the {compared + 1} combinations that were compared have the same "
            f"{by}. Take the cheapest of them, or measure on more samples."
        )
    if not worse:
        others = "the other one" if compared == 1 else f"each of the {compared} others"
        return (
            f"没有赢家：按{by.rstrip()}，{label} 排第一，但它对另外 {compared} 种组合的领先"
            "都可能是噪声（Holm，5 %）。请选其中代价最小的，或在更多样本上测量。"
            if zh
            else f"No winner: {label} comes first by {by}, but its lead over {others} may be noise "
            "(Holm, 5 %). Take the cheapest of them, or measure on more samples."
        )
    return (
        f"按{by}最佳：{label}。它好于 {compared} 种中的 {worse} 种；对 {names} 的领先可能是噪声"
        "（Holm，5 %）。"
        if zh
        else f"Best by {by}: {label}. It is better than {worse} of {compared}; its lead over "
        f"{names} may be noise (Holm, 5 %)."
    )


def limits(sweep: Sweep, ranking: Ranking, language: str = "en") -> list[str]:
    """What the numbers do not say, in sentences."""
    zh, lines = language == "zh", list[str]()
    finalists = sum(row.whole for row in ranking.rows)
    if ranking.optimism is not None:
        amount = _about(sweep.by, ranking.optimism, language)
        lines.append(
            f"最佳组合是因为值好才从 {finalists} 种中选出的，所以它的值偏好：仅就样本的波动而言，"
            f"{amount}。它的最佳检查点也是在同样的样本上选出的。请在没有参与比较的问题上"
            "再测量一次。"
            if zh
            else f"The best of {finalists} was chosen for its value, which is therefore too good: "
            f"by {amount}, if only the samples vary. Its best checkpoint was chosen on them "
            "as well. Measure it on questions that no run was compared by."
        )
    spreads = [row.spread for row in ranking.rows if row.spread is not None]
    if sweep.seeds == 1:
        lines.append(
            "每种组合只用了一个种子。换一个种子会改变多少没有测量：--seeds 3 可以测量。"
            if zh
            else "Each combination ran with one seed. How much another seed would change is not "
            "measured: --seeds 3 measures it."
        )
    elif spreads:
        typical = (sum(spread**2 for spread in spreads) / len(spreads)) ** 0.5
        amount = _about(sweep.by, typical, language)
        lines.append(
            f"换一个种子改变{amount}（标准差）。"
            if zh
            else f"Another seed changes a value by {amount} (standard deviation)."
        )
    if ranking.uncounted:
        lines.append(
            f"有 {ranking.uncounted:,} 个样本因为长度上限或模板，在一些运行中的 token 不同，"
            "没有参与比较。这些运行的值来自不同的文本。"
            if zh
            else f"{counted(ranking.uncounted, 'sample')} had other tokens in some runs, because "
            "of their length limit or template, and are left out of the comparisons. Values of "
            "such runs are of different texts."
        )
    stopped = len(ranking.rows) - finalists
    if stopped:
        were = "was" if stopped == 1 else "were"
        lines.append(
            f"{stopped} 种组合被提前停止。开头学得慢的组合可能就在其中。"
            if zh
            else f"{counted(stopped, 'combination')} {were} stopped early. One that learns slowly "
            "at first may be among them."
        )
    return lines


def _names(sweep: Sweep, rows: list[Ranked]) -> str:
    names = [sweep.combinations[row.combination].label for row in rows[:_NAMED]]
    more = len(rows) - len(names)
    return "; ".join(names) + (f"; +{more}" if more else "")


# ---- commands


def commands_after(sweep: Sweep, ranking: Ranking) -> list[tuple[str, str]]:
    """The commands to go on with: ("measure", "... evaluate ...") and ("export", ...)."""
    best = _best_run(sweep, ranking)
    if best is None:
        return []
    _, _, sampler_path, state_path = best
    where = output_dir_option(sweep.settings.output_dir)
    fresh = ("--test-data", "FRESH.json", *where)
    return [
        ("measure", command_line("evaluate", "--model-path", sampler_path, *fresh)),
        ("export", command_line("export", "--model-path", state_path, *where)),
    ]


def next_lines(sweep: Sweep, ranking: Ranking) -> list[str]:
    """The best run, and the commands to go on with, for the terminal."""
    best = _best_run(sweep, ranking)
    titles = {
        "measure": "Measure  on questions that no run was compared by:",
        "export": "Export  ",
    }
    lines = [] if best is None else [f"Best     {best[0]}, {best[1]}"]
    return lines + [f"{titles[kind]} {command}" for kind, command in commands_after(sweep, ranking)]


def _best_run(sweep: Sweep, ranking: Ranking) -> tuple[str, str, str, str] | None:
    """The best run of the best combination: folder, checkpoint, its weights and its state."""
    if not ranking.rows:
        return None
    best, lower = ranking.rows[0].combination, is_lower_better(sweep.by)
    runs = [run for run in sweep.runs if run.combination == best and run.rung_values]
    runs.sort(key=lambda run: run.rung_values[-1] if lower else -run.rung_values[-1])
    for run in runs:
        folder = sweep.folder_of(run)
        found = best_of_run(folder) if folder else None
        if folder is not None and found is not None:
            return folder.name, found[0].name, found[0].sampler_path, found[0].state_path
    return None
