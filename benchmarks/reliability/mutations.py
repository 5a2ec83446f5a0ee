"""Content of a file -> damaged content, by seed: what crashes, copies and people do to files."""

import gzip
import json
import os
import random
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

ODD_NUMBERS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"null",
    b"1e999",
    b"-1",
    b"0",
    b"1.5",
    b"true",
    b'"7"',
    b"[]",
    b"{}",
    b"9" * 400,
    b"9" * 5000,
    b"18446744073709551616",
)
ODD_TEXTS = (
    b'""',
    b'" "',
    b'"\\ud800"',
    b'"\\u0000"',
    b'"../../etc/passwd"',
    b'"/dev/zero"',
    b'"\xe3\x80\x80"',
    b'"a\\nb"',
    b"null",
    b"3",
    b"[1]",
    b'{"a": 1}',
    b'"' + b"x" * 3000 + b'"',
)
ODD_VALUES = (None, True, False, 0, -1, 3, 2.5, float("nan"), float("inf"), 10**30, "", " ", "x")
ODD_VALUES += ("\ud800", "\0", "../x", "tinker://a", [], [[]], {}, [None], {"a": 1}, "y" * 300)
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')

Damage = Callable[[bytes, random.Random], bytes]


def cut_short(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def garbled(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.randrange(1, 64)) + data[place + rng.randrange(64) :]


def one_bit(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def odd_number(data: bytes, rng: random.Random) -> bytes:
    return _replaced(_NUMBER, data, rng.choice(ODD_NUMBERS), rng)


def odd_text(data: bytes, rng: random.Random) -> bytes:
    return _replaced(_STRING, data, rng.choice(ODD_TEXTS), rng)


def odd_value(data: bytes, rng: random.Random) -> bytes:
    """Another value, anywhere in a JSON file or in one of its lines."""
    lines = data.split(b"\n") if rng.random() < 0.5 else [data]
    place = rng.randrange(len(lines))
    try:
        value = json.loads(lines[place])
    except (ValueError, RecursionError):
        return odd_text(data, rng)
    with suppress(RecursionError):
        lines[place] = json.dumps(_changed(value, rng)).encode()
    return b"\n".join(lines)


def invalid_utf8(data: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(data) + 1)
    bad = rng.choice((b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5", b"\x80", b"\xe3\x80"))
    return data[:place] + bad + data[place:]


def nul_bytes(data: bytes, rng: random.Random) -> bytes:
    place, count = rng.randrange(len(data) + 1), rng.choice((1, 7, 4096))
    return rng.choice((data[:place] + b"\0" * count + data[place:], b"\0" * max(1, len(data))))


def other_encoding(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "latin-1"))
    return text.encode(encoding, "replace")


def blanks(data: bytes, rng: random.Random) -> bytes:
    blank = rng.choice(
        ("\u3000", "\u2003", "\u00a0", " \r\n", "\u2028", "\ufeff", "\u200b", "\x0b")
    )
    return (blank * rng.randrange(1, 50) + rng.choice(("", "\n"))).encode() + (
        b"" if rng.random() < 0.6 else data
    )


def deep(data: bytes, rng: random.Random) -> bytes:
    depth = rng.choice((50, 101, 900, 1100, 20_000, 100_000))
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}")))
    nested = opened * depth + b"1" + closed * depth
    return rng.choice((nested, _replaced(_STRING, data, nested, rng)))


def key_twice(data: bytes, rng: random.Random) -> bytes:
    keys = list(re.finditer(rb'"[^"\\]*"\s*:', data))
    if not keys:
        return data
    key = rng.choice(keys)
    return data[: key.start()] + key.group() + rng.choice((b'"q",', b"1,")) + data[key.start() :]


def doubled(data: bytes, rng: random.Random) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return data[:end] + data[start:end] * rng.choice((1, 1, 3)) + data[end:]


def lines_mixed(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    extra = rng.choice((b"7", b"[1]", b"null", b'"x"', b"{}", b"", b"{", b"\xe3\x80\x80"))
    lines.insert(rng.randrange(len(lines) + 1), extra)
    if rng.random() < 0.4:
        rng.shuffle(lines)
    return b"\n".join(lines)


def packed(data: bytes, rng: random.Random) -> bytes:
    """A gzip file: whole, cut, with garbage, of several members, packed twice, or of one bit."""
    whole = gzip.compress(data, 1)
    half = len(data) // 2
    return rng.choice(
        (
            whole,
            cut_short(whole, rng),
            whole + rng.randbytes(9),
            whole + b"\0" * 512,
            gzip.compress(data[:half], 1) + gzip.compress(data[half:], 1),
            gzip.compress(whole, 1),
            one_bit(whole, rng),
            gzip.compress(b"", 1),
            whole[:10],
        )
    )


DAMAGES: tuple[Damage, ...] = (
    cut_short,
    empty,
    garbled,
    one_bit,
    one_bit,
    odd_number,
    odd_text,
    odd_value,
    odd_value,
    invalid_utf8,
    nul_bytes,
    other_encoding,
    blanks,
    deep,
    key_twice,
    doubled,
    lines_mixed,
)


def damaged(data: bytes, rng: random.Random, others: Sequence[bytes]) -> tuple[str, bytes]:
    """The name of a damage, and the content after it; `others` are contents of other files."""
    if rng.random() < 0.04:
        return "wrong file", rng.choice(others)
    damage = rng.choice(DAMAGES)
    changed = damage(data, rng)
    if rng.random() < 0.1:  # two at once
        changed = rng.choice(DAMAGES)(changed, rng)
    return damage.__name__.replace("_", " "), changed


def put_something_else(path: Path, rng: random.Random) -> str:
    """Put what is no regular file at `path`; returns what it is."""
    remove(path)
    kind = rng.choice(
        (
            "gone",
            "folder",
            "pipe",
            "socket",
            "loop",
            "dangling link",
            "device",
            "huge",
            "file above",
        )
    )
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, suppress(OSError):  # too long a name for one
            made.bind(str(path))
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling link":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 42)  # 4 TB of which the disk stores nothing
    elif kind == "file above":
        path.symlink_to("/etc/hostname/below")
    return kind


def remove(path: Path) -> None:
    """Remove a file, a link, or an empty folder."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def _replaced(pattern: "re.Pattern[bytes]", data: bytes, new: bytes, rng: random.Random) -> bytes:
    places = list(pattern.finditer(data))
    if not places:
        return new
    place = rng.choice(places)
    return data[: place.start()] + new + data[place.end() :]


def _changed(value: object, rng: random.Random) -> object:
    """The JSON value with something in it exchanged, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        changed = dict(value)
        chance = rng.random()
        if chance < 0.2:
            del changed[key]
        elif chance < 0.3:
            changed[rng.choice(("unknown", "", key + "x", "a\nb"))] = rng.choice(ODD_VALUES)
        else:
            changed[key] = _changed(value[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD_VALUES)
