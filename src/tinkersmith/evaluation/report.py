"""The results of an evaluation -> the lines that are printed, and what the file says of them."""

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tinkersmith.errors import one_line
from tinkersmith.evaluation.groups import SMALL_GROUP, Group, groups_of, groups_of_pairs
from tinkersmith.evaluation.results import Record, named
from tinkersmith.evaluation.summary import (
    MAIN_METRIC,
    Copies,
    Draws,
    Estimate,
    EvaluationResult,
    Scored,
    copies,
    cut,
    draws,
    draws_of,
    estimates,
    main_metric,
    metric_names,
    unfinished,
)
from tinkersmith.evaluation.verdict import (
    OUTCOMES,
    Pair,
    Verdict,
    amount,
    p_text,
    pairs_of,
    sentence,
    verdict,
)
from tinkersmith.plurals import counted

_WIDTH = 80  # columns
_TRAINED, _BASE = "the trained model", "the base model"
_EXAMPLES = 3  # questions that are shown of each list; the file has all
_MOST_GROUPS = 24  # rows of the table; the file has all


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the answers of one or two models say."""

    metric: str  # that groups and draws are about; "" without any score
    verdicts: dict[str, Verdict]  # by metric; empty with one model
    groups: list[Group]
    copies: Copies
    several: dict[str, Draws]  # by model, where a question has several answers

    def to_json(self) -> dict[str, Any]:
        return {
            "verdicts": {name: found.to_json() for name, found in self.verdicts.items()} or None,
            "groups": [group.to_json() for group in self.groups],
            "copies": self.copies.to_json(),
            "several_answers": {who: found.to_json() for who, found in self.several.items()}
            or None,
        }


def analyse(trained: Sequence[Record], base: Sequence[Record] | None) -> Analysis:
    """Compare two models, or look at one."""
    names = metric_names(trained)
    if not names:
        return Analysis("", {}, [], copies(trained), {})
    metric = main_metric(names)
    pairs = pairs_of(trained, base) if base else []
    several = {
        who: found
        for who, records in (("trained", trained), ("base", base or []))
        if (found := draws(records, metric))
    }
    return Analysis(
        metric,
        {name: verdict(pairs, name) for name in names} if pairs else {},
        groups_of_pairs(pairs, metric) if pairs else groups_of(trained, None, metric),
        copies(trained),
        several,
    )


def report(result: EvaluationResult, found: Analysis, max_tokens: int) -> list[str]:
    """The scores, what limits them, the verdict and two answers, line by line."""
    trained = result.trained.records
    base = result.base.records if result.base else None
    rest = f"in {result.output_file}"
    columns = [("trained model", trained)] + ([("base model", base)] if base else [])
    lines = ["", *score_table(columns), *copies_lines(found.copies), ""]
    for who, title, scored in (
        ("trained", _TRAINED, result.trained),
        ("base", _BASE, result.base),
    ):
        if scored is not None:
            lines += _answers_lines(title, scored, max_tokens)
            if several := found.several.get(who):
                lines += wrapped(draws_text(several, draws_of(scored.records), found.metric))
    if result.measures_said:
        lines += ["", *result.measures_said, ""]
    if compared := found.verdicts.get(found.metric):
        lines.append(f"Both models had at most {max_tokens:,} tokens for an answer.")
        lines += ["", *verdict_lines(compared, _TRAINED, _BASE, rest)]
    lines += group_lines(found.groups, found.metric, ("trained", "base"), rest)
    lines += _example_lines(trained)
    return [*lines, "", f"All answers: {result.output_file}"]


# ---- parts of the report


def score_table(columns: Sequence[tuple[str, Sequence[Record]]]) -> list[str]:
    """The scores of one or two models by metric, with their difference."""
    scores = [(title, estimates(records)) for title, records in columns]
    names = list(dict.fromkeys(name for _, found in scores for name in found))
    width = max([16, *(len(name) + 1 for name in names)])
    lines = [" " * width + "".join(f"{title[:24]:25}" for title, _ in scores).rstrip()]
    for name in names:
        cells = [
            f"{estimate_text(found[name]) if name in found else 'not measured':25}"
            for _, found in scores
        ]
        line = f"{name.replace('_', ' '):{width}}" + "".join(cells)
        if len(scores) == 2 and all(name in found for _, found in scores):
            mine, other = scores[0][1][name], scores[1][1][name]
            shares = mine.shares and other.shares
            line += amount(mine.mean - other.mean, shares=shares, sign=True)
        lines.append(line.rstrip())
    counts = [max((e.n for e in found.values()), default=0) for _, found in scores]
    several = f" and {counts[1]:,}" if len(set(counts)) > 1 else ""
    lines.append(f"n = {counts[0]:,}{several}; in brackets: 95 % intervals by distinct question.")
    return lines


def estimate_text(found: Estimate) -> str:
    """A mean with its interval."""
    if found.n == 0:
        return "no score"
    if found.shares:
        return f"{found.mean:.1%} ({found.low:.1%} to {found.high:.1%})"
    return f"{found.mean:.3g} ({found.low:.3g} to {found.high:.3g})"


def copies_lines(found: Copies) -> list[str]:
    """What is said about samples that ask the same question."""
    lines: list[str] = []
    if found.repeated:
        who = counted(found.extra, "sample asks", "samples ask")
        first = found.repeated[0]
        lines += wrapped(
            f"{who} what an earlier one asks, and each question counts once (the first: "
            f"{first[1]} is {first[0]})."
        )
    if found.contradictions:
        who = counted(len(found.contradictions), "question has", "questions have")
        first = found.contradictions[0]
        lines += wrapped(
            f"Warning: {who} samples that expect different answers, so no answer is right for "
            f"all of them (the first: {first[0]} and {first[1]})."
        )
    return lines


def _answers_lines(title: str, scored: Scored, max_tokens: int) -> list[str]:
    """How long the answers are, and which of them never ended."""
    records = scored.records
    lines = [
        f"{_capital(title)}: {scored.mean_tokens:.1f} tokens an answer, {scored.seconds:.1f} s."
    ]
    if at_limit := cut(records):
        were = "was" if len(at_limit) == 1 else "were"
        lines += wrapped(
            f"{len(at_limit):,} of its answers {were} cut at SAMPLING_MAX_TOKENS = "
            f"{max_tokens:,} or at the end of the context: {named_records(at_limit)}."
        )
    return lines + unfinished_lines(records)


def unfinished_lines(records: Sequence[Record]) -> list[str]:
    """What is said about thoughts that never ended."""
    endless = unfinished(records)
    if not endless:
        return []
    end = "ends" if len(endless) == 1 else "end"
    return wrapped(
        f"{len(endless):,} of its answers {end} within the thought, which is no answer, and "
        f"{'has' if len(endless) == 1 else 'have'} no score: {named_records(endless)}. A larger "
        "SAMPLING_MAX_TOKENS lets a thought end."
    )


def draws_text(several: Draws, most: int, metric: str) -> str:
    """pass@k and the majority vote in one sentence."""
    passed = ", ".join(f"pass@{k} {estimate_text(found)}" for k, found in several.pass_at.items())
    text = f"{most} answers a question ({metric.replace('_', ' ')}): {passed}"
    if several.majority:
        text += f"; majority vote {estimate_text(several.majority)}"
        text += f" with {counted(several.ties, 'tie')}" if several.ties else ""
    return f"{text}."


def verdict_lines(compared: Verdict, first: str, second: str, rest: str) -> list[str]:
    """The verdict, what it rests on, and some of the questions that were won and lost.

    Args:
        rest: where the others of them are, such as "in results.json".
    """
    lines = wrapped(sentence(compared, first, second), "")
    if compared.n:
        counts = ", ".join(
            f"{name.replace('_', ' ')} {len(compared.outcomes[name]):,}"
            for name in OUTCOMES
            if name != "equal" or compared.outcomes[name]
        )
        lines += wrapped(f"{_capital(first)}: {counts}. Test: {compared.test}.", "")
    if compared.counting_unfinished:
        mine, other = compared.counting_unfinished
        left = ""
        if compared.unscored:
            who = counted(len(compared.unscored), "question is", "questions are")
            left = f"{who} left out, because a thought never ended. "
        lines += wrapped(
            f"{left}With unfinished thoughts counted as wrong, the scores are {mine:.1%} and "
            f"{other:.1%}: {amount(mine - other, shares=True, sign=True)}.",
            "",
        )
    for name in ("won", "lost"):
        for pair in compared.outcomes[name][:_EXAMPLES]:
            lines.append(_question_line(name, pair))
        more = len(compared.outcomes[name]) - _EXAMPLES
        if more > 0:
            lines.append(f"  {name}: {more:,} more {rest}")
    return lines


def _question_line(name: str, pair: Pair) -> str:
    record = pair.first[0]
    # The end of a prompt tells questions apart; its beginning is often the same.
    head = f"  {name}: {record.source}: "
    text = " ".join(record.prompt[-2 * _WIDTH :].split())
    return head + _end_of(text, max(20, _WIDTH - len(head)), whole=len(record.prompt) < _WIDTH)


def _end_of(text: str, columns: int, *, whole: bool = True) -> str:
    """The end of a text in so many columns of a terminal; "..." stands for what is left out."""
    text = one_line(text, len(text))
    if whole and _columns(text) <= columns:
        return text
    while text and _columns(text) > columns - 3:
        text = text[1:]
    return f"...{text}"


def _columns(text: str) -> int:
    """The columns that a text takes in a terminal, where Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def group_lines(
    groups: Sequence[Group], metric: str, titles: tuple[str, str], rest: str
) -> list[str]:
    """The table of groups, and what to bear in mind when reading it."""
    if not groups:
        return []
    compared = any(group.difference for group in groups)
    shares = groups[0].first.shares
    lines = ["", f"By group ({metric.replace('_', ' ')}; * fewer than {SMALL_GROUP} questions):"]
    header = f"{'':22}{'n':>5}  {titles[0]:25}"
    lines.append((header + (f"{titles[1]:>7} difference" if compared else "")).rstrip())
    by = ""
    for group in groups[:_MOST_GROUPS]:
        if group.by != by:
            by = group.by
            lines.append(f"  {one_line(by)}")
        label = _end_of(group.label or "(none)", 17)
        label += " " * (18 - _columns(label))
        star = "*" if group.small else " "
        line = f"    {label}{group.first.n:>5}{star} {estimate_text(group.first):25}"
        if group.second and group.difference and group.p_value is not None:
            other = f"{group.second.mean:.1%}" if shares else f"{group.second.mean:.3g}"
            gain = amount(group.difference.mean, shares=shares, sign=True, unit=False)
            line += f"{other:>7} {gain}, {p_text(group.p_value)}"
        lines.append(line.rstrip())
    if len(groups) > _MOST_GROUPS:
        lines.append(f"    {len(groups) - _MOST_GROUPS:,} more groups {rest}")
    if compared and len(groups) > 1:
        lines += wrapped(
            f"{len(groups):,} groups are tested, so the p-values are adjusted for their number "
            "(Holm). A group is a hint where to look, not a finding of its own."
        )
    return lines


def _example_lines(records: Sequence[Record]) -> list[str]:
    lines: list[str] = []
    for title, wanted in (("A correct answer", 1.0), ("An incorrect answer", 0.0)):
        examples = [
            r for r in records if r.thought_finished and r.scores.get(MAIN_METRIC) == wanted
        ]
        if examples:
            lines += ["", f"{title} ({examples[0].source}):", *_shown(examples[0])]
    return lines


# ---- forms


def named_records(records: Sequence[Record]) -> str:
    """The samples of records, each once; see `named`."""
    return named(list(dict.fromkeys(record.source for record in records)))


def wrapped(text: str, indent: str = "  ") -> list[str]:
    """A sentence about what stands above it, folded to the width of the report."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _shown(record: Record) -> list[str]:
    return [
        line
        for title, text in (
            ("prompt", record.prompt),
            ("expected", record.expected),
            *_expected_answer(record),
            ("produced", record.produced),
        )
        for line in (
            f"  {title}:",
            *(f"    {one_line(row, len(row))}" for row in _short(text).splitlines()),
        )
    ]


def _expected_answer(record: Record) -> list[tuple[str, str]]:
    """The expected final answer, where the expected text does not show it."""
    answer = record.expected_answer
    if not answer or re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", record.expected):
        return []
    return [("expected final answer", answer)]


def _short(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text) - limit:,} more)"
