"""The lines about what was read agree in number, and nothing is left out without a word."""

from tinkersmith.data.duplicates import find_duplicates
from tinkersmith.data.report import (
    SHOWN,
    duplicate_lines,
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


def test_skipped_records_are_all_shown_unless_a_file_lists_them() -> None:
    assert skipped_lines([], 0) == []
    assert skipped_lines(skipped(1), 1) == [
        "Skipped 1 record:",
        "  a.json, record 1: it is empty.",
    ]
    assert len(skipped_lines(skipped(200), 200)) == 201
    lines = skipped_lines(skipped(SHOWN + 5), 1200, "skipped.jsonl")
    assert lines[0] == "Skipped 1,200 records, listed in skipped.jsonl:"
    assert lines[1:-1] == [f"  {record}" for record in skipped(SHOWN)]
    assert lines[-1] == "  ... and 1,190 more"


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
