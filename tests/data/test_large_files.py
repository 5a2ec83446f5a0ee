"""Large JSON Lines files are walked in chunks: the same samples, in memory that does not grow."""

import gzip
import itertools
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tinkersmith.cli.main import main
from tinkersmith.data import large_files
from tinkersmith.data.large_files import LargeFiles, are_streamed, iterate_samples, read_chunk, scan
from tinkersmith.data.load import load_samples
from tinkersmith.data.report import skipped_lines
from tinkersmith.data.samples import Sample, overlap
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress

BOM = b"\xef\xbb\xbf"

# Python 3.13 names the comma, and older ones the bracket after it.
AFTER_THE_LAST_VALUE = 20 if sys.version_info >= (3, 13) else 21


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "STREAMED_ABOVE", 1000)
    monkeypatch.setattr(large_files, "_BLOCK_BYTES", 500)


def records(count: int) -> list[dict[str, str]]:
    return [
        {"instruction": f"中文 {n}", "input": "\u2028" * (n % 3), "output": "x" * (n % 90 + 1)}
        for n in range(count)
    ]


def lines(some: list[dict[str, str]], end: bytes = b"\n") -> bytes:
    return end.join(json.dumps(record, ensure_ascii=False).encode() for record in some)


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def scanned(
    *files: Path,
    validation_files: Sequence[str] = (),
    ratio: float = 0.0,
    seed: int = 42,
    progress: Progress | None = None,
    encoding: str = "auto",
) -> LargeFiles:
    names = [str(file) for file in files]
    progress = progress or Progress(print)
    return scan(names, validation_files, ratio, seed, progress, encoding=encoding)


def everything(files: LargeFiles) -> list[Sample]:
    return [sample for chunk in files.chunks for sample in read_chunk(chunk)[0]]


@pytest.mark.parametrize(
    "data",
    [
        lines(records(40)),
        lines(records(40)) + b"\n",
        lines(records(40), b"\r\n") + b"\r\n\r\n",
        BOM + b"\n\n" + lines(records(40), b"\n \n"),
        lines(records(20)) + b'\n{"instruction": "q"}\n7\n' + lines(records(20)),
        lines(records(20)) + b'\n{"instruction": "q", "output": NaN}\n' + lines(records(20)),
        lines(records(20)) + b"\n" * 2000 + lines(records(20)),
    ],
)
def test_the_chunks_hold_what_loading_the_file_at_once_gives(tmp_path: Path, data: bytes) -> None:
    file = write(tmp_path / "a.jsonl", data)
    whole = load_samples([str(file)])
    files = scanned(file)
    assert len(files.chunks) > 3
    assert everything(files) == whole.samples == list(iterate_samples([str(file)]))
    assert files.counts == whole.counts
    assert files.first == whole.samples[0]
    skipped = [record for chunk in files.chunks for record in read_chunk(chunk)[1]]
    assert skipped == files.first_skipped == whole.skipped
    assert files.skipped_count == len(skipped)


def test_several_files_are_one_walk_each_with_its_own_record_numbers(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", lines(records(20)))
    second = write(tmp_path / "b.json", lines(records(30)))
    files = scanned(first, second, tmp_path / "nowhere.jsonl")
    assert everything(files) == load_samples([str(first), str(second)]).samples
    assert list(files.counts.values()) == [20, 30]
    assert files.missing_files == [str(tmp_path / "nowhere.jsonl")]
    assert "going on without it" in "\n".join(files.report())


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (b'{"instruction": "q",}', f"line 31, column {AFTER_THE_LAST_VALUE}: not JSON: "),
        (b'{"instruction": "q"', "line 31, column 20: not JSON: it ends too early"),
        ("{'Käse'}".encode("latin-1"), "line 31, column 4: the byte 0xE4 is not UTF-8"),
    ],
)
def test_a_broken_line_stops_before_anything_is_spent(
    tmp_path: Path, bad: bytes, sentence: str
) -> None:
    data = lines(records(30)) + b"\n" + bad + b"\n" + lines(records(30))
    file = write(tmp_path / "a.jsonl", data)
    with pytest.raises(UserError) as caught:
        scanned(file)
    assert str(caught.value).startswith(f"{file}, {sentence}")


def test_a_file_of_bad_records_only_is_an_error_that_shows_the_first(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'{"instruction": "q"}\n' * 100)
    with pytest.raises(UserError, match=r"Not one of 100 records can be used.*record 1: \"output"):
        scanned(file)


def test_bad_records_are_counted_by_reason_in_a_stream_as_in_memory(tmp_path: Path) -> None:
    bad = b'{"instruction": "q"}\n' * 100 + b'{"instruction": "q", "output": ""}\n' * 3
    file = write(tmp_path / "a.jsonl", bad + lines(records(1)))
    files = scanned(file)
    assert files.skipped_count == 103
    start = files.report().index("Skipped 103 records, listed in skipped.jsonl:")
    shown = files.report()[start + 1 : start + 3]
    missing, empty = '"output" is missing. Add it', '"output" is empty. Fill it in'
    assert [line.strip() for line in shown] == [
        f"{file}, record 1: {missing}, or remove the record. (100 records)",
        f"{file}, record 101: {empty}, or remove the record. (3 records)",
    ]
    loaded = load_samples([str(file)])
    assert files.report()[start : start + 3] == skipped_lines(loaded.skipped, 103, "skipped.jsonl")


def test_a_file_that_changes_while_it_is_used_is_noticed(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", lines(records(40)))
    chunk = scanned(file).chunks[2]
    write(file, lines(records(40)).replace(b"x", b"y"))
    with pytest.raises(UserError, match="has changed while it was trained on"):
        read_chunk(chunk)


def test_small_files_are_not_streamed_nor_are_those_that_are_no_json_lines(
    tmp_path: Path,
) -> None:
    small = write(tmp_path / "small.jsonl", lines(records(3)))
    large = write(tmp_path / "large.jsonl", lines(records(40)))
    array = write(tmp_path / "array.jsonl", json.dumps(records(40)).encode())
    zipped = write(tmp_path / "zipped.json", gzip.compress(json.dumps(records(900)).encode()))
    spread = write(tmp_path / "spread.json", json.dumps(records(40)[0], indent=2).encode() * 30)
    assert not are_streamed([small])
    assert are_streamed([large]) and are_streamed([large, small])
    for other in (array, zipped, spread, tmp_path):
        assert not are_streamed([large, other])
    assert len(list(iterate_samples([str(array)]))) == 40


def test_very_large_data_that_cannot_be_streamed_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_files, "_WHOLE_AT_MOST", 2000)
    array = write(tmp_path / "a.json", json.dumps(records(40)).encode())
    with pytest.raises(UserError, match=r"a\.json cannot be read line by line.*") as caught:
        are_streamed([array])
    command = shlex.split(str(caught.value).partition("with: ")[2])
    assert command[0] == "tinkersmith" and main(command[1:]) == 0
    lines_file = Path(command[-1])
    assert are_streamed([lines_file])
    outputs = [sample.output for sample in load_samples([str(array)]).samples]
    assert [sample.output for sample in iterate_samples([str(lines_file)])] == outputs


def test_a_stream_in_another_encoding_is_the_stream_in_utf8(tmp_path: Path) -> None:
    text = lines(records(60)[::3]).decode()
    utf8 = write(tmp_path / "utf8.jsonl", text.encode())
    gbk = write(tmp_path / "gbk.jsonl", text.encode("gbk"))
    packed = write(tmp_path / "gbk.jsonl.gz", gzip.compress(text.encode("gbk")))
    expected = [sample.turns for sample in everything(scanned(utf8))]
    assert are_streamed([gbk], "gbk")
    for file in (gbk, packed):
        stream = scanned(file, encoding="gbk")
        assert len(stream.chunks) > 1
        assert [sample.turns for sample in everything(stream)] == expected
        again = iterate_samples([str(file)], encoding="gbk")
        assert [sample.turns for sample in again] == expected
        with pytest.raises(UserError, match=r"is not UTF-8\. It may be GB18030"):
            scanned(file)


def test_a_stream_that_is_not_in_the_encoding_is_refused_with_the_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", b'{"a": 1}\n' * 300 + b'{"instruction": "\xff\xff"}\n')
    with pytest.raises(UserError, match=r"line 301, column 18: the byte 0xFF is not EUC-KR"):
        scanned(file, encoding="euc-kr")


def test_the_part_for_validation_depends_on_the_seed_alone_and_is_not_trained_on(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "a.jsonl", lines(records(200)))
    files = scanned(file, ratio=0.1)
    again = scanned(file, ratio=0.1)
    other = scanned(file, ratio=0.1, seed=7)
    assert (files.chunks, files.validation) == (again.chunks, again.validation)
    assert files.validation != other.validation
    assert len(files.validation) == len(other.validation) == 20
    places = [(chunk, place) for chunk in files.chunks for place in chunk.training_places()]
    trained = [read_chunk(chunk)[0][place] for chunk, place in places]
    assert len(trained) == 180
    assert sorted(sample.source.record for sample in [*trained, *files.validation]) == [
        *range(1, 201)
    ]
    assert files.first == trained[0]


def test_held_out_samples_that_ask_what_a_training_sample_asks_are_counted(tmp_path: Path) -> None:
    repeats = [{"instruction": f" 中文  {n}", "output": "other"} for n in range(0, 200, 5)]
    file = write(tmp_path / "a.jsonl", lines([*records(200), *repeats]))
    files = scanned(file, ratio=0.2)
    places = [(chunk, place) for chunk in files.chunks for place in chunk.training_places()]
    trained = [read_chunk(chunk)[0][place] for chunk, place in places]
    assert files.shared == len(overlap(trained, files.validation)) > 3
    assert f"{files.shared} validation samples ask what" in "\n".join(files.report())
    assert scanned(write(file, lines(records(200))), ratio=0.2).shared == 0


def test_validation_files_are_compared_with_the_whole_stream(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", lines(records(100)))
    shared = [{**records(90)[-1], "output": "other"}, {"instruction": "new", "output": "x"}]
    check = write(tmp_path / "check.json", json.dumps(shared).encode())
    files = scanned(file, validation_files=[str(check), "nowhere.json"])
    assert files.counts == {file.as_posix(): 100, check.as_posix(): 2}
    assert files.missing_files == ["nowhere.json"]
    assert (len(files.validation), files.shared) == (2, 1)
    assert "1 validation sample asks what" in "\n".join(files.report())


# In a process of its own: the peak counts what all threads of a process allocate.
PEAK = """
import sys, tracemalloc
from tinkersmith.data import large_files
from tinkersmith.progress import Progress

large_files.STREAMED_ABOVE, large_files._BLOCK_BYTES = 1000, 50_000

def walk(file):
    for chunk in large_files.scan([file], [], 0.0, 42, Progress(lambda line: None)).chunks:
        large_files.read_chunk(chunk)

walk(sys.argv[1])  # what is made once
for file in sys.argv[1:]:
    tracemalloc.start()
    walk(file)
    print(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
"""


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    long = lines([{"instruction": "q" * 1000, "output": "a" * 1000}] * 500)
    files = [
        write(tmp_path / f"{copies}.jsonl", b"\n".join([long] * copies))
        for copies in (1, 10)  # 1 and 10 MB
    ]
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *map(str, files)], capture_output=True, text=True, check=True
    )
    small, large = map(int, ended.stdout.split())
    assert large < small + 300_000


def test_a_long_walk_says_how_far_it_is(tmp_path: Path) -> None:
    said: list[str] = []
    seconds = itertools.count()  # each look at the clock is a second later
    progress = Progress(said.append, clock=lambda: float(next(seconds)))
    scanned(write(tmp_path / "a.jsonl", lines(records(200))), progress=progress)
    assert said[0].startswith("  Checked 0.0 of 0.0 GB") and len(said) > 3


@pytest.mark.parametrize("members", [1, 3])
def test_a_gzip_file_is_streamed_like_its_content(
    tmp_path: Path, members: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkersmith.sources.packed._APART", 1200)
    monkeypatch.setattr(large_files, "_AT_ONCE", 700)
    content = BOM + lines(records(80)) + b'\n{"instruction": "q"}\n' + lines(records(90)) + b"\n"
    length = len(content) // members + 1
    packed = b"".join(
        gzip.compress(content[place : place + length]) for place in range(0, len(content), length)
    )
    plain = write(tmp_path / "plain.jsonl", content)
    file = write(tmp_path / "packed.jsonl.gz", packed + b"\0" * 100)
    expected, streamed = scanned(plain), scanned(file)
    assert streamed.chunks[0].packed is not None and len(streamed.chunks[0].packed.places) > 3
    assert [(c.start, c.size, c.digest, c.usable) for c in streamed.chunks] == [
        (c.start, c.size, c.digest, c.usable) for c in expected.chunks
    ]
    for chunk, same in reversed(list(zip(streamed.chunks, expected.chunks, strict=True))):
        texts = [sample.output for sample in read_chunk(chunk)[0]]
        assert texts == [sample.output for sample in read_chunk(same)[0]]
    assert len(list(iterate_samples([str(file)]))) == len(everything(expected)) == 170
    assert are_streamed([file])


def test_a_gzip_file_that_is_damaged_far_inside_is_a_sentence(tmp_path: Path) -> None:
    packed = gzip.compress(lines(records(2000)))
    for damaged, reason in (
        (packed[:-200], "it ends before its content does"),
        (packed[:-8] + bytes(8), "incorrect data check"),
        (packed + b"more", "other bytes follow after its end"),
    ):
        file = write(tmp_path / "a.jsonl.gz", damaged)
        with pytest.raises(UserError, match=rf"a\.jsonl\.gz is a damaged gzip file .*{reason}"):
            scanned(file)


def test_a_gzip_bomb_is_refused_while_it_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkersmith.sources.packed._BOMB_SIZE", 100_000)
    file = write(tmp_path / "a.jsonl.gz", gzip.compress(lines(records(1)) + b"\n" * 10**7))
    with pytest.raises(UserError, match=r"unpacks to more than 200 times its size.*gunzip -k"):
        scanned(file)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "_LONGEST_LINE", 2000)
    file = write(tmp_path / "a.jsonl", lines(records(9)) + b'\n{"instruction": "' + b"x" * 5000)
    with pytest.raises(UserError, match=r"a\.jsonl, line 10 has more than 2,000 bytes"):
        scanned(file)


def test_a_file_that_vanishes_while_it_is_trained_on_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", lines(records(40)))
    [chunk, *_] = scanned(file).chunks
    file.unlink()
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read: No such file"):
        read_chunk(chunk)


@pytest.mark.parametrize("data", [b"\n \n" * 900, "\u3000\n".encode() * 900])
def test_a_large_file_of_blanks_holds_no_record(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(UserError, match="hold no record at all"):
        scanned(write(tmp_path / "a.jsonl", data))
