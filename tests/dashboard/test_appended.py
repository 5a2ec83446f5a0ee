"""Reading what was added to a file, against a slow twin that reads all of it every time."""

import json
import os
import random
from pathlib import Path

import pytest

from tinkersmith.dashboard.appended import AppendedLines, last_records, record_of
from tinkersmith.errors import UserError


def whole_lines(file: Path) -> list[bytes]:
    """The slow twin: every whole line of the file."""
    return file.read_bytes().split(b"\n")[:-1] if file.exists() else []


@pytest.mark.parametrize("seed", range(20))
def test_new_lines_add_up_to_what_rereading_the_whole_file_gives(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    file = tmp_path / "metrics.jsonl"
    reader, seen = AppendedLines(file), list[bytes]()
    number = 0
    for _ in range(300):
        act = chance.choice(["add", "add", "add", "half", "cut", "cut and grow", "replace", "gone"])
        lines = whole_lines(file)
        if act in ("cut", "cut and grow") and lines:
            keep = chance.randrange(len(lines))
            with file.open("r+b") as handle:
                handle.truncate(sum(len(line) + 1 for line in lines[:keep]))
        if act == "replace" and file.exists():
            new = tmp_path / "new"
            new.write_bytes(file.read_bytes()[: chance.randrange(500)])
            os.replace(new, file)
        if act == "gone":
            file.unlink(missing_ok=True)
        if act in ("add", "cut and grow", "half"):
            with file.open("ab") as handle:
                for _ in range(chance.choice([1, 3, 60])):
                    number += 1
                    handle.write(json.dumps({"step": number, "loss": chance.random()}).encode())
                    handle.write(b"\n")
                if act == "half":  # a kill cut the last line short; the next write ends it
                    handle.write(b'{"step": ')
        if chance.random() < 0.7:
            new = reader.read()
            seen = new.lines if new.restarted else seen + new.lines
            assert seen == whole_lines(file), f"seed {seed}, after {act}"


def test_a_look_at_a_long_file_reads_only_what_is_new(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"".join(b'{"step": %d, "loss": 0.5}\n' % step for step in range(100_000)))
    reader = AppendedLines(file)
    assert len(reader.read().lines) == 100_000
    size = file.stat().st_size
    assert reader.bytes_read == size
    with file.open("ab") as handle:
        handle.write(b'{"step": 100000, "loss": 0.5}\n')
    assert reader.read().lines == [b'{"step": 100000, "loss": 0.5}']
    assert reader.bytes_read < size + 1000
    assert reader.read().lines == []
    assert reader.bytes_read < size + 1500


def test_the_first_look_may_begin_near_the_end(tmp_path: Path) -> None:
    file = tmp_path / "train.log"
    file.write_bytes(b"".join(b"line %d\n" % number for number in range(10_000)))
    reader = AppendedLines(file)
    lines = reader.read(most_at_first=1000).lines
    assert lines[-1] == b"line 9999" and 90 < len(lines) < 110
    assert lines[0] == b"line %d" % (10_000 - len(lines))
    assert reader.bytes_read <= 1000
    with file.open("ab") as handle:
        handle.write(b"line 10000\n")
    assert reader.read(most_at_first=1000).lines == [b"line 10000"]


def test_a_damaged_line_is_no_record_and_nan_is_a_number() -> None:
    assert record_of(b'{"loss": NaN}') is not None
    for line in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000):
        assert record_of(line) is None


def test_the_last_records_are_those_of_whole_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert last_records(file) == []
    file.write_text("".join(f'{{"step": {step}}}\n' for step in range(50)) + '{"step": 5')
    assert last_records(file, most=100)[-1] == {"step": 49}
    assert len(last_records(file, most=100)) == 6
    with pytest.raises(UserError, match="it is a folder"):
        last_records(tmp_path)
    file.write_text("nonsense\n[1]\n")
    with pytest.raises(UserError, match="no line at its end is a JSON object"):
        last_records(file)


def test_a_line_without_an_end_is_not_read_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "endless"
    with file.open("wb") as handle:
        handle.truncate(1 << 30)  # a sparse file of zeros
    reader = AppendedLines(file)
    assert reader.read().lines == []
    assert reader.bytes_read < 40 << 20
