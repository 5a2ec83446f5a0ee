"""Two files of results -> which model is better on the questions that both were asked.

No model is needed. Answers are compared as they were graded.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, one_line, reason_of
from tinkersmith.evaluation.groups import Group, groups_of_pairs
from tinkersmith.evaluation.report import (
    copies_lines,
    draws_text,
    group_lines,
    named_records,
    score_table,
    unfinished_lines,
    verdict_lines,
    wrapped,
)
from tinkersmith.evaluation.result_files import CSV_BOM, csv_row, refuse_table_name, table_file_of
from tinkersmith.evaluation.results import Record, ResultsFile, read_results
from tinkersmith.evaluation.summary import (
    by_question,
    copies,
    cut,
    draws,
    draws_of,
    main_metric,
    metric_names,
    same_expected,
)
from tinkersmith.evaluation.verdict import Pair, Verdict, verdict
from tinkersmith.files import read_json_object, write_atomically, write_json
from tinkersmith.plurals import counted
from tinkersmith.sources.find import refuse_inputs_as_outputs

SCHEMA = 1  # of the file that is written
_BUDGET = "SAMPLING_MAX_TOKENS"
_SETTINGS = {  # of a file of results, in the order of what they do to a score
    _BUDGET: "tokens for an answer",
    "SAMPLING_TEMPERATURE": "temperature",
    "SAMPLING_NUM_SAMPLES": "answers a question",
    "SAMPLING_TOP_P": "top_p",
    "SAMPLING_TOP_K": "top_k",
    "SEED": "seed",
}
_FACTS = {"base_model": "base model", "prompt_template": "prompt template", "limit": "limit"}


@dataclass(frozen=True, slots=True)
class ComparedFiles:
    """What two files of results say together."""

    first: ResultsFile
    second: ResultsFile
    matched_by: str  # "question", "prompt" or "record"
    pairs: list[Pair]
    only_first: list[list[Record]]  # questions that the other file does not have
    only_second: list[list[Record]]
    mismatched: list[Pair]  # questions that expect different answers: left out
    metric: str
    verdicts: dict[str, Verdict]  # by metric
    groups: list[Group]


def compare_files(first: Path | str, second: Path | str, metric: str = "") -> ComparedFiles:
    """Match the questions of two files of results, and compare the trained models' answers.

    Args:
        metric: what groups and lists are about; the final answer if it is empty.

    Raises:
        UserError: a file holds no results, or the two have nothing to compare.
    """
    one, other = read_results(first), read_results(second)
    for file in (one, other):
        if not file.trained:
            raise UserError(f"{file.path} has no answers, so there is nothing to compare.")
    matched_by, mine, theirs = _matched(one, other)
    shared = [key for key in mine if key in theirs]
    every = [Pair(mine[key], theirs[key]) for key in shared]
    mismatched = [pair for pair in every if not _expect_the_same(pair)]
    bad = {id(pair) for pair in mismatched}
    pairs = [pair for pair in every if id(pair) not in bad]
    if not pairs:
        raise UserError(
            f"{one.path} and {other.path} expect different answers to every question that they "
            f"share (the first: {mismatched[0].first[0].source}). Evaluate both models on the "
            "same test set."
        )
    names = _shared_metrics(one, other, metric)
    chosen = metric or main_metric(names)
    return ComparedFiles(
        first=one,
        second=other,
        matched_by=matched_by,
        pairs=pairs,
        only_first=[mine[key] for key in mine if key not in theirs],
        only_second=[theirs[key] for key in theirs if key not in mine],
        mismatched=mismatched,
        metric=chosen,
        verdicts={name: verdict(pairs, name) for name in names},
        groups=groups_of_pairs(pairs, chosen),
    )


# ---- matching


def _matched(
    first: ResultsFile, second: ResultsFile
) -> tuple[str, dict[str, list[Record]], dict[str, list[Record]]]:
    """The way that most questions are found in both files by, and the questions of both."""
    ways: list[tuple[str, Callable[[Record], str]]] = [
        ("question", lambda record: record.question),
        ("prompt", lambda record: record.prompt),
        # Another template or tokenizer makes other prompts of the same sample.
        (
            "record",
            lambda record: f"{Path(record.source.file).name}, record {record.source.record}",
        ),
    ]
    for way, key in ways:
        mine, theirs = (_keyed(file.trained, key) for file in (first, second))
        if not mine.keys().isdisjoint(theirs):
            if way != "record":
                return way, mine, theirs
            if any(_expect_the_same(Pair(mine[k], theirs[k])) for k in mine if k in theirs):
                # Copies of a question are one question here as well.
                return way, *_by_first_record(first, second, key)
    raise UserError(
        f"{first.path} and {second.path} have no question in common. Evaluate both models on the "
        "same test set."
    )


def _keyed(records: Sequence[Record], key: Callable[[Record], str]) -> dict[str, list[Record]]:
    return by_question([replace(record, question=key(record)) for record in records])


def _by_first_record(
    first: ResultsFile, second: ResultsFile, key: Callable[[Record], str]
) -> tuple[dict[str, list[Record]], dict[str, list[Record]]]:
    """Both files' records by the first sample that asks their question in the first file."""
    name_of: dict[str, str] = {}
    for records in by_question(first.trained).values():
        for record in records:
            name_of.setdefault(key(record), key(records[0]))
    mine, theirs = (
        _keyed(file.trained, lambda record: name_of.get(key(record), key(record)))
        for file in (first, second)
    )
    return mine, theirs


def _expect_the_same(pair: Pair) -> bool:
    """Whether every expected answer of one file is one of the other file's."""
    mine, theirs = (_distinct(side) for side in (pair.first, pair.second))
    return all(any(same_expected(a, b) for b in theirs) for a in mine) and all(
        any(same_expected(a, b) for a in mine) for b in theirs
    )


def _distinct(records: Sequence[Record]) -> list[Record]:
    """One record for each expected answer as it is written."""
    return list({(r.expected, r.expected_answer): r for r in records}.values())


def _shared_metrics(first: ResultsFile, second: ResultsFile, metric: str) -> list[str]:
    mine, theirs = (metric_names(file.trained) for file in (first, second))
    shared = [name for name in mine if name in theirs]
    if not shared:
        raise UserError(f"{first.path} and {second.path} have no score in common.")
    if metric and metric not in shared:
        where = " and ".join(
            str(file.path)
            for file, names in ((first, mine), (second, theirs))
            if metric not in names
        )
        raise UserError(
            f'There is no score "{one_line(metric)}" in {where}. Both files have: '
            f"{', '.join(shared)}."
        )
    return shared


# ---- settings


def different_settings(first: ResultsFile, second: ResultsFile) -> list[tuple[str, str, str]]:
    """The settings that differ: what it is, and both values."""
    mine, theirs = (_settings(file) for file in (first, second))
    return [
        (words, mine.get(name, "not stored"), theirs.get(name, "not stored"))
        for name, words in {**_SETTINGS, **_FACTS}.items()
        if mine.get(name) != theirs.get(name)
    ]


def _settings(file: ResultsFile) -> dict[str, str]:
    stored: object = file.facts.get("settings")
    settings: dict[str, Any] = cast("dict[str, Any]", stored) if isinstance(stored, dict) else {}
    values: dict[str, Any] = {name: settings[name] for name in _SETTINGS if name in settings}
    values |= {name: file.facts[name] for name in _FACTS if name in file.facts}
    return {
        name: "none" if value is None else one_line(str(value)) for name, value in values.items()
    }


# ---- what is printed


def comparison_lines(compared: ComparedFiles, output: Path | None = None) -> list[str]:
    """The comparison, line by line.

    Args:
        output: the file that has the whole lists.
    """
    rest = f"in {output}" if output else "with --output FILE"
    first, second = compared.first, compared.second
    mine = [record for pair in compared.pairs for record in pair.first]
    theirs = [record for pair in compared.pairs for record in pair.second]
    lines = [f"A: {_about(first)}", f"B: {_about(second)}"]
    if first.path.resolve() == second.path.resolve():
        lines.append("A and B are the same file.")
    lines += _matching_lines(compared)
    different = different_settings(first, second)
    for words, value, other in different:
        warning = "Warning: " if words == _SETTINGS[_BUDGET] else ""
        lines += wrapped(f"{warning}{words}: {value} in A, {other} in B.", "")
    budget = _settings(first).get(_BUDGET, "")
    if budget.isdecimal() and budget == _settings(second).get(_BUDGET):
        lines.append(f"Both had at most {int(budget):,} tokens for an answer.")
    lines += ["", *score_table([("A", mine), ("B", theirs)]), *copies_lines(copies(mine))]
    for name, records in (("A", mine), ("B", theirs)):
        about = _limits(records, compared.metric)
        if about:
            lines += [f"{name}:", *about]
    lines += ["", *verdict_lines(compared.verdicts[compared.metric], "A", "B", rest)]
    return lines + group_lines(compared.groups, compared.metric, ("A", "B"), rest)


def _about(file: ResultsFile) -> str:
    created = file.facts.get("created")
    when = f", {one_line(str(created))}" if created else ""
    return f"{file.path} ({one_line(str(file.facts.get('model_path')), 60)}{when})"


def _limits(records: Sequence[Record], metric: str) -> list[str]:
    lines: list[str] = []
    if at_limit := cut(records):
        were = "was" if len(at_limit) == 1 else "were"
        lines += wrapped(
            f"{len(at_limit):,} of its answers {were} cut at the token limit: "
            f"{named_records(at_limit)}."
        )
    lines += unfinished_lines(records)
    if several := draws(records, metric):
        lines += wrapped(draws_text(several, draws_of(records), metric))
    return lines


def _matching_lines(compared: ComparedFiles) -> list[str]:
    lines: list[str] = []
    n = counted(len(compared.pairs), "question")
    how = {
        "question": "",
        "prompt": ", matched by the text of their prompts",
        "record": ", matched by file and record: the prompts differ",
    }[compared.matched_by]
    lines += wrapped(f"Compared: {n} of both files{how}.", "")
    for name, only in (("A", compared.only_first), ("B", compared.only_second)):
        if only:
            are = "is" if len(only) == 1 else "are"
            first = named_records([records[0] for records in only])
            lines += wrapped(
                f"{counted(len(only), 'question')} {are} only in {name} and left out: {first}.", ""
            )
    if compared.mismatched:
        bad = counted(len(compared.mismatched), "question has", "questions have")
        are = "is" if len(compared.mismatched) == 1 else "are"
        lines += wrapped(
            f"Warning: {bad} different expected answers in the two files and {are} left out: "
            f"{named_records([pair.first[0] for pair in compared.mismatched])}.",
            "",
        )
    return lines


# ---- what is written


def check_comparison_output(output: Path, inputs: Sequence[Path]) -> None:
    """Refuse outputs that would replace what is read, or what no comparison wrote.

    Raises:
        UserError: it says which file and why.
    """
    refuse_table_name(output)
    table = table_file_of(output)
    refuse_inputs_as_outputs([output, table], inputs)
    if output.exists() and not _is_comparison(output):
        raise UserError(
            f"{output} exists and is no comparison; it would be replaced. Name another file with "
            "--output."
        )
    if table.exists() and not output.exists():
        raise UserError(
            f"{table} exists, and the table of the comparison would replace it. Name another file "
            "with --output."
        )


def _is_comparison(file: Path) -> bool:
    try:
        return "different_expected_answers" in read_json_object(file)
    except (OSError, ValueError):
        return False


def write_comparison(compared: ComparedFiles, output: Path) -> list[Path]:
    """Write the comparison as JSON, and its questions as CSV beside it.

    Raises:
        UserError: a file cannot be written.
    """
    table = table_file_of(output)
    for path, write in (
        (table, lambda: write_atomically(table, _table(compared))),
        (output, lambda: write_json(output, content_of_comparison(compared))),
    ):
        try:
            write()
        except OSError as error:
            raise UserError(
                f"{path} cannot be written: {reason_of(error)}. Name another file with --output."
            ) from None
    return [output, table]


def content_of_comparison(compared: ComparedFiles) -> dict[str, Any]:
    """The content of the JSON file."""
    return {
        "schema_version": SCHEMA,
        "first": _file_facts(compared.first),
        "second": _file_facts(compared.second),
        "matched_by": compared.matched_by,
        "metric": compared.metric,
        "different_settings": [
            {"setting": words, "first": mine, "second": theirs}
            for words, mine, theirs in different_settings(compared.first, compared.second)
        ],
        "counts": {
            "compared": len(compared.pairs),
            "only_first": len(compared.only_first),
            "only_second": len(compared.only_second),
            "different_expected_answers": len(compared.mismatched),
        },
        "only_first": [str(records[0].source) for records in compared.only_first],
        "only_second": [str(records[0].source) for records in compared.only_second],
        "different_expected_answers": [str(pair.first[0].source) for pair in compared.mismatched],
        "verdicts": {name: found.to_json() for name, found in compared.verdicts.items()},
        "groups": [group.to_json() for group in compared.groups],
        "questions": [_question(pair, compared) for pair in compared.pairs],
    }


def _file_facts(file: ResultsFile) -> dict[str, Any]:
    names = ("model_path", "run", "base_model", "test_file", "created")
    return {"file": str(file.path), **{name: file.facts.get(name) for name in names}}


def _question(pair: Pair, compared: ComparedFiles) -> dict[str, Any]:
    record = pair.first[0]
    scores = {name: pair.scores(name) for name in compared.verdicts}
    return {
        "file": record.source.file,
        "record": record.source.record,
        "outcome": pair.outcome(compared.metric) or "unscored",
        "prompt": record.prompt,
        "expected": record.expected,
        "expected_answer": record.expected_answer,
        "first": [answer.produced for answer in pair.first],
        "second": [answer.produced for answer in pair.second],
        "scores": {
            name: None if both is None else {"first": both[0], "second": both[1]}
            for name, both in scores.items()
        },
    }


def _table(compared: ComparedFiles) -> Iterator[bytes]:
    names = list(compared.verdicts)
    header = ["file", "record", "outcome", "prompt", "expected", "expected_answer"]
    header += ["first answer", "second answer"]
    header += [f"{side} {name}" for name in names for side in ("first", "second")]
    yield (CSV_BOM + csv_row(header)).encode("utf-8", "backslashreplace")
    for pair in compared.pairs:
        question = _question(pair, compared)
        cells = [question[name] for name in header[:6]]
        cells += [pair.first[0].produced, pair.second[0].produced]
        for name in names:
            both = question["scores"][name]
            cells += ["", ""] if both is None else [both["first"], both["second"]]
        yield csv_row(cells).encode("utf-8", "backslashreplace")
