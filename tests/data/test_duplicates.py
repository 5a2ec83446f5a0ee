"""Samples that equal an earlier one are counted and named, in files of any size."""

from pathlib import Path

import numpy as np

from tinkersmith.batches.summary import write_duplicates
from tinkersmith.data.duplicates import DuplicateFinder, find_duplicates
from tinkersmith.data.report import duplicate_lines
from tinkersmith.data.samples import Sample, Source, alpaca_sample
from tinkersmith.runs.folder import RunFolder

FILES = ["a.json", "b.jsonl", "a.json"]  # a file may be listed twice


def random_samples(rng: np.random.Generator, count: int) -> list[Sample]:
    """Of so few texts that many are equal; some records between them are no samples."""
    texts = ["", "a", "b", "ab", "中", "\ud800"]

    def text() -> str:
        return texts[rng.integers(len(texts))]

    samples, record = [], 0
    for index in range(count):
        record += int(rng.integers(1, 3))
        file = FILES[index * len(FILES) // count]
        history = tuple((text(), text()) for _ in range(rng.integers(0, 2)))
        samples.append(alpaca_sample(text(), text(), "c", Source(file, record), text(), history))
    return samples


def test_every_duplicate_is_found_with_the_first_sample_that_it_equals() -> None:
    samples = random_samples(np.random.default_rng(), 3000)
    first: dict[tuple, Source] = {}
    expected = []
    for sample in samples:
        if sample.turns in first:
            expected.append((sample.source, first[sample.turns]))
        first.setdefault(sample.turns, sample.source)
    duplicates = find_duplicates(samples)
    assert list(duplicates) == expected
    assert len(duplicates) == len(expected) > 100


def test_texts_that_join_to_the_same_are_not_equal() -> None:
    source = Source("a.json", 1)
    sample = alpaca_sample("ab", "", "c", source, history=(("d", "e"),))
    others = [
        alpaca_sample("a", "b", "c", source, history=(("d", "e"),)),
        alpaca_sample("ab", "", "c", source, history=(("de", ""),)),
        alpaca_sample("ab", "", "c", source, system="d", history=(("e", ""),)),
        alpaca_sample("ab", "", "c", source, system="de"),
        alpaca_sample("ab", "c", "", source, history=(("d", "e"),)),
    ]
    assert not find_duplicates([sample, *others])


def test_white_space_and_what_is_not_trained_on_do_and_do_not_make_a_difference() -> None:
    sample = alpaca_sample("q", "", "a", Source("a.json", 1))
    assert not find_duplicates([sample, alpaca_sample("q ", "", "a", Source("a.json", 2))])
    assert find_duplicates(
        [sample, alpaca_sample("q", "", "a", Source("a.json", 2), extra={"answer": "7"})]
    )


def test_no_samples_have_no_duplicates() -> None:
    assert list(DuplicateFinder().duplicates()) == []


def test_the_first_duplicate_is_printed_and_all_are_written(tmp_path: Path) -> None:
    samples = [alpaca_sample("q", "", "a", Source("a.json", record)) for record in (2, 5, 9)]
    duplicates = find_duplicates(samples)
    assert duplicate_lines([duplicates], listed=True) == [
        "Found 2 exact duplicates, listed in duplicates.jsonl. The first: a.json, record 5, equals "
        "a.json, record 2.",
        "  tinkersmith check also finds near-duplicates, and what else may be wrong.",
    ]
    assert duplicate_lines([find_duplicates(samples[:2])], listed=False) == [
        "Found 1 exact duplicate. The first: a.json, record 5, equals a.json, record 2."
    ]
    run = RunFolder(tmp_path)
    for _ in range(2):  # a resumed run writes them anew
        write_duplicates(run, [duplicates, find_duplicates(samples[:2])])
        of = {"file": "a.json", "record": 2}
        assert run.lines("duplicates.jsonl") == [
            {"file": "a.json", "record": record, "copy_of": of} for record in (5, 9, 5)
        ]


def test_a_run_without_duplicates_has_no_file_of_them(tmp_path: Path) -> None:
    write_duplicates(
        RunFolder(tmp_path), [find_duplicates([alpaca_sample("q", "", "a", Source("a.json", 1))])]
    )
    assert not (tmp_path / "duplicates.jsonl").exists()
