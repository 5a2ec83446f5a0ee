"""The lines about what was read agree in number, and nothing is left out without a word."""

import dataclasses
from collections import Counter

import pytest

from tinkersmith.data.duplicates import find_duplicates
from tinkersmith.data.report import (
    SHOWN,
    Tally,
    duplicate_lines,
    note_lines,
    read_lines,
    skipped_lines,
    validation_lines,
)
from tinkersmith.data.samples import Skipped, Source, alpaca_sample


def skipped(count: int) -> list[Skipped]:
    return [
        Skipped(Source("a.json", n), "output", "it is empty.", "{}") for n in range(1, count + 1)
    ]


def test_each_file_has_a_line_and_each_missing_file_a_warning() -> None:
    lines = read_lines({"a.json": 1, "b.json": 2300}, ["gone.json"])
    assert lines[:2] == ["Read 1 sample from a.json", "Read 2,300 samples from b.json"]
    assert lines[2].startswith("Warning: gone.json does not exist (looked in ")
    assert lines[2].endswith("); going on without it.")
    assert len(lines) == 3


def test_few_skipped_records_are_all_shown() -> None:
    assert skipped_lines([], 0) == []
    assert skipped_lines(skipped(1), 1) == [
        "Skipped 1 record:",
        "  a.json, record 1: it is empty.",
    ]
    lines = skipped_lines(skipped(SHOWN), SHOWN, "skipped.jsonl")
    assert lines[0] == "Skipped 10 records, listed in skipped.jsonl:"
    assert lines[1:] == [f"  {record}" for record in skipped(SHOWN)]


@pytest.mark.parametrize("listed_in", ["", "skipped.jsonl"])
def test_many_skipped_records_are_counted_by_reason(listed_in: str) -> None:
    others = [Skipped(Source("b.json", n), "x", f"it is {n}.", "{}") for n in range(1, 14)]
    records = [*others, *skipped(4987)]
    lines = skipped_lines(records, len(records), listed_in)
    where = ", listed in skipped.jsonl" if listed_in else ""
    assert lines == [
        f"Skipped 5,000 records{where}:",
        "  a.json, record 1: it is empty. (4,987 records)",
        *(f"  b.json, record {n}: it is {n}." for n in range(1, 10)),
        "  ... and 4 records for 4 other reasons",
    ]
    tally = Tally()
    for record in records:
        tally.add(record)
    assert skipped_lines(records[:SHOWN], 5000, listed_in, tally.reasons) == lines


def test_reasons_that_differ_in_every_record_are_counted_in_little_memory() -> None:
    tally = Tally()
    for n in range(1, 5001):
        tally.add(Skipped(Source("a.json", n), "x", f"it is {n}.", "{}"))
    assert sum(count for count, _ in tally.reasons.values()) == 5000
    assert len(tally.reasons) == 1000
    assert len(skipped_lines([], 5000, "", tally.reasons)) == 12


def test_a_record_that_must_be_seen_is_shown_once_and_shortened() -> None:
    unclear = [
        Skipped(Source("a.json", n), "", "what is it?", f'{{"a": "{"x" * 500}"}}', unclear=True)
        for n in (1, 2)
    ]
    lines = skipped_lines(unclear, 2)
    assert lines[:3] == [
        "Skipped 2 records:",
        "  a.json, record 1: what is it?",
        "  a.json, record 2: what is it?",
    ]
    assert len(lines) == 4
    assert lines[3].startswith('  The record of a.json, record 1: {"a": "xxx')
    assert lines[3].endswith("xxx...") and len(lines[3]) < 350


def test_shapes_are_said_for_each_file_and_counted_where_they_are_mixed() -> None:
    counts = {"a.json": 3, "b.json": 5, **{f"{n}.json": 1 for n in range(30)}}
    shapes = {
        "a.json": Counter({"messages": 3}),
        "b.json": Counter({"alpaca": 1, "text": 4}),
        **{f"{n}.json": Counter({"sharegpt": 1}) for n in range(30)},
    }
    lines = read_lines(counts, [], shapes)
    assert lines[0] == "Read 3 samples from a.json as OpenAI messages"
    assert lines[1] == "Read 5 samples from b.json: 4 as plain text, 1 as Alpaca records"
    assert lines[-1] == "Read 12 samples from 12 more files as ShareGPT conversations"
    assert len(lines) == 21


def test_notes_have_their_count_and_their_first_sample() -> None:
    tally = Tally()
    for n in range(1, 4):
        sample = alpaca_sample("q", "", "a", Source("a.json", n))
        notes = ("its end was cut", "rare") if n == 3 else ("its end was cut",)
        tally.add(dataclasses.replace(sample, notes=notes))
    assert note_lines(tally.notes) == [
        "In 3 samples: its end was cut (the first: a.json, record 1).",
        "In 1 sample: rare (the first: a.json, record 3).",
    ]
    many = {str(n): (1, Source("a.json", n)) for n in range(SHOWN + 3)}
    assert note_lines(many)[-1] == "... and 3 notes of other kinds."
    assert Tally.together([tally, tally]).notes["rare"] == (2, Source("a.json", 3))


def test_files_without_duplicates_have_no_line_and_each_other_set_has_one() -> None:
    samples = [alpaca_sample("q", "", "a", Source("a.json", n)) for n in (1, 2)]
    lines = duplicate_lines(
        [find_duplicates(samples[:1]), find_duplicates(samples), find_duplicates(samples)],
        listed=False,
    )
    assert lines == 2 * [
        "Found 1 exact duplicate. The first: a.json, record 2, equals a.json, record 1."
    ]


def test_validation_is_counted_and_shared_questions_are_a_warning() -> None:
    assert validation_lines(0, 0) == []
    assert validation_lines(1, 0) == ["Kept for validation: 1 sample."]
    for shared, who in ((1, "1 validation sample asks"), (2, "2 validation samples ask")):
        assert validation_lines(5, shared) == [
            "Kept for validation: 5 samples.",
            f"Warning: {who} what a training sample asks; the validation loss will look too good.",
        ]
