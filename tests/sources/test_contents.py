"""Compressed files are unpacked as far as memory allows; damage and bombs are sentences."""

import bz2
import gzip
import json
import lzma
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tinkersmith.errors import UserError
from tinkersmith.sources import contents
from tinkersmith.sources import records as records_module
from tinkersmith.sources.records import iterate_records, read_records

RECORDS = [{"instruction": f"q {n}", "output": "中文 " * n} for n in range(300)]
LINES = b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in RECORDS)
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("kind", PACK)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_each_compression_is_unpacked_in_one_frame_or_several(
    tmp_path: Path, kind: str, name: str
) -> None:
    pack = PACK[kind]
    middle = len(LINES) // 2
    for data in (pack(LINES), pack(LINES[:middle]) + pack(LINES[middle:])):
        file = tmp_path / name  # the content says how it is packed
        file.write_bytes(data)
        assert read_records(file).records == RECORDS == list(iterate_records(file))


def test_a_frame_to_be_skipped_and_a_frame_without_a_size_are_read(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(LINES)
    (tmp_path / "x.zst").write_bytes(skipped + unsized)
    assert read_records(tmp_path / "x.zst").records == RECORDS


@pytest.mark.parametrize("kind", PACK)
def test_a_damaged_or_cut_file_is_a_sentence(tmp_path: Path, kind: str) -> None:
    data = PACK[kind](LINES)
    file = tmp_path / "x.jsonl"
    for damaged in (data[:-1], data[: len(data) // 2], data[:7], data + b"more of it"):
        file.write_bytes(damaged)
        for read in (read_records, lambda path: list(iterate_records(path))):
            with pytest.raises(UserError) as caught:
                read(file)
            assert str(caught.value).startswith(f"{file} is a damaged {kind} file (")
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
    with pytest.raises(UserError) as caught:
        read_records(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", PACK)
def test_what_would_fill_the_memory_is_refused_before_it_does(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "most_bytes", lambda: 1_000_000)
    file = tmp_path / "bomb.jsonl.z"
    file.write_bytes(PACK[kind](LINES[:100].ljust(50_000_000)))
    assert file.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"unpacks to more than 0 GB.*tinkersmith convert"):
        read_records(file)


def test_a_stream_that_is_a_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "_BOMB_SIZE", 1_000_000)
    file = tmp_path / "bomb.jsonl.zst"
    file.write_bytes(zstandard.compress(LINES + b"\n" * 30_000_000))
    with pytest.raises(UserError, match=r"unpacks to more than 1,000 times its size.*zstd -d "):
        list(iterate_records(file))


def test_a_frame_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=0)
    packer = zstandard.ZstdCompressor(compression_params=parameters)
    file = tmp_path / "x.jsonl.zst"
    with file.open("wb") as raw, packer.stream_writer(raw) as stream:
        stream.write(LINES)
    with pytest.raises(UserError, match=r"needs more than 134 MB of memory to be unpacked"):
        read_records(file)


def test_a_file_that_is_packed_twice_says_so(tmp_path: Path) -> None:
    file = tmp_path / "x.json.gz"
    file.write_bytes(gzip.compress(zstandard.compress(LINES)))
    with pytest.raises(UserError, match="is packed twice: its content is a zstd file"):
        read_records(file)


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "loop"])
def test_what_is_no_regular_file_is_never_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x.parquet", "x.csv", "x.xlsx", "x.zst"):
        file = Path(name)
        if kind == "pipe":
            os.mkfifo(file)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(name)
        else:
            file.symlink_to("/dev/zero" if kind == "device" else name)
        for read in (read_records, lambda path: list(iterate_records(path))):
            with pytest.raises(UserError, match=f"{name} cannot be read: "):
                read(file)
