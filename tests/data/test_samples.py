"""Files in all their forms become samples; nothing is dropped without a word."""

import gzip
import json
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.paths import S1K
from tinkersmith.data.load import load_samples
from tinkersmith.data.report import read_lines
from tinkersmith.data.samples import Sample, Skipped, Source, Turn, overlap, record_text
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError

GOOD = {"instruction": "q", "input": "", "output": "a"}


def write(path: Path, data: object) -> str:
    if isinstance(data, bytes):
        path.write_bytes(data)
    elif isinstance(data, str):
        path.write_text(data, encoding="utf-8")
    else:
        path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return str(path)


RECORDS = [{**GOOD, "instruction": f"中文 {n}", "topic": {"n": n}} for n in range(3)]
ARRAY = json.dumps(RECORDS, ensure_ascii=False).encode()
LINES = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in RECORDS).encode()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)  # the time would be part of the test's name


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", ARRAY),
        ("a.json", b"\xef\xbb\xbf" + ARRAY),
        ("a.json", b"\n  " + ARRAY + b"\n"),
        ("a.json", LINES),
        ("a.jsonl", LINES + b"\n"),
        ("a.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("a.jsonl", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl", ARRAY),
        ("a.json.gz", zipped(ARRAY)),
        ("a.jsonl.gz", zipped(LINES)),
        ("gzip-without-the-name.json", zipped(LINES)),
    ],
)
def test_every_file_form_gives_the_same_samples(tmp_path: Path, name: str, data: bytes) -> None:
    loaded = load_samples([write(tmp_path / name, data)])
    assert [sample.turns[0].text for sample in loaded.samples] == ["中文 0", "中文 1", "中文 2"]
    assert [sample.source.record for sample in loaded.samples] == [1, 2, 3]
    assert loaded.samples[2].extra == {"topic": {"n": 2}}
    assert loaded.counts == {(tmp_path / name).as_posix(): 3}


def test_json_lines_with_one_record_is_told_by_its_name(tmp_path: Path) -> None:
    assert len(load_samples([write(tmp_path / "a.jsonl", json.dumps(GOOD))]).samples) == 1


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path: Path) -> None:
    lines = "\n".join(
        json.dumps({**GOOD, "output": f"a\u2028b\x85{n}"}, ensure_ascii=False) for n in range(2)
    )
    assert load_samples([write(tmp_path / "a.jsonl", lines)]).samples[1].output == "a\u2028b\x851"


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b" \n\t", "is empty"),
        ("a.json", zipped(b""), "is empty"),
        ("a.json", b"[]", "holds an empty array"),
        ("a.json", b'{"a": 1}', "holds an object instead of an array. Enclose the records in"),
        ("a.json", b'{"a": 1, "x": [{"a": 1}]}', 'instead of an array. Its "x" holds'),
        ("a.json", b'{"messages": [{"role": "user"}]}', "of an array. Enclose the records in"),
        ("a.json", b'"text"', "holds a string instead of an array"),
        ("a.json", b"7", "holds the number 7 instead of an array"),
        ("a.json", b'[\n{"a": 1},\n{"b"', "line 3, column 5: not JSON: it ends too early"),
        ("a.json", b'[{"a": "the text goes on', "line 1, column 8: not JSON: it ends too early"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "line 2, column 1: not JSON: Expecting ',' delim"),
        ("a.json", b'[{"a": "x\x01"}]', "line 1, column 10: not JSON: Invalid control"),
        ("a.json", b"instruction,output\n", "holds no record. Add records"),
        ("a.json", b"{\n", "line 2, column 1: not JSON: it ends too early"),
        ("a.json", b'{"a": 1}\n{"a": 2\n{"a": 3}', "line 2, column 8: not JSON: it ends too early"),
        ("a.jsonl", b'{"a": 1}\n\n[1,}\n', "line 3, column 4: not JSON: "),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.json", b"[" + b"1" * 5000 + b"x]", "a number has too many digits"),
        ("a.json", "[]".encode("utf-16"), "holds an empty array"),
        (
            "a.json",
            '[\n{"instruction": "你好"}]'.encode("gbk"),
            "line 2, column 18: the byte 0xC4 is not UTF-8. It may be ",
        ),
        (
            "a.json",
            '[{"a": "Der Käse ist schön und für alle da"}]'.encode("latin-1"),
            "the byte 0xE4 is not UTF-8. It may be Windows-1252",
        ),
        ("a.json", zipped(ARRAY)[:-20], "is a damaged gzip file"),
        ("a.json", zipped(ARRAY)[:5], "is a damaged gzip file"),
    ],
)
def test_a_file_that_is_no_data_stops_the_run_with_the_place(
    tmp_path: Path, name: str, data: bytes, sentence: str
) -> None:
    bad = write(tmp_path / name, data)
    good = write(tmp_path / "good.json", [GOOD])
    with pytest.raises(UserError) as caught:
        load_samples([good, bad])
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("record", "field", "sentence"),
    [
        (" \u3000", "", "the record is empty. Fill it in, or remove the record."),
        (None, "", "the record is null; it must be an object"),
        ([1], "", "the record is a list; it must be an object"),
        (3, "", "the record is the number 3; it must be an object"),
        ({"output": "a"}, "instruction", '"instruction" is missing. Add it, or remove'),
        ({"instruction": "q"}, "output", '"output" is missing. Add it, or remove the record.'),
        ({"instruction": None, "output": "a"}, "instruction", '"instruction" is null.'),
        ({"instruction": "q", "output": 128}, "output", '"output" is the number 128; it must be'),
        ({"instruction": "q", "output": True}, "output", '"output" is true; it must be'),
        ({"instruction": " \n", "output": "a"}, "instruction", '"instruction" is empty.'),
        ({"instruction": "q", "output": ""}, "output", '"output" is empty.'),
        ({**GOOD, "input": 5}, "input", '"input" is the number 5; it must be a string'),
        ({**GOOD, "input": ["x"]}, "input", '"input" is a list; it must be a string'),
        ({**GOOD, "system": {}}, "system", '"system" is an object; it must be a string'),
        ({**GOOD, "history": "x"}, "history", '"history" must be a list of [question, answer]'),
        ({**GOOD, "history": [["q"]]}, "history", '"history" must be a list of'),
        ({**GOOD, "history": [["q", None]]}, "history", '"history" must be a list of'),
        ({**GOOD, "history": [{"role": "user"}]}, "history", '"history" must be a list of'),
        ({"messages": [{"role": "user"}]}, "messages", '"content" of message 1 is null.'),
        ({"conversations": [{"from": "human"}]}, "conversations", "of message 1 is null."),
        ({"role": "user", "content": "q"}, "", "is one chat message"),
        ({**GOOD, "output": "half \ud83d"}, "output", '"output" contains an unpaired'),
        ({**GOOD, "history": [["q", "\ude00"]]}, "history", '"history" contains an unpaired'),
    ],
)
def test_a_bad_record_is_skipped_with_its_field_and_reason(
    record: Any, field: str, sentence: str
) -> None:
    skipped = check_record(record, Source("data/train.json", 17))
    assert isinstance(skipped, Skipped)
    assert skipped.field == field
    assert sentence in skipped.reason
    assert str(skipped).startswith("data/train.json, record 17: ")
    json.dumps(skipped.to_json(), ensure_ascii=False).encode()
    assert json.loads(skipped.record_text) == record


def test_null_and_absent_input_system_and_history_are_empty() -> None:
    bare = check_record({"instruction": "q", "output": "a"}, Source("a", 1))
    nulls = {"input": None, "system": None, "history": None}
    assert check_record({"instruction": "q", "output": "a", **nulls}, Source("a", 1)) == bare
    assert isinstance(bare, Sample)
    assert bare == Sample((Turn("user", "q"), Turn("assistant", "a")), Source("a", 1))


def test_unpaired_surrogates_and_nul_bytes_crash_nothing(tmp_path: Path) -> None:
    text = (
        '[{"instruction": "\\u0000", "output": "a\\u0000b"},'
        ' {"instruction": "q", "output": "\\ud83d"},'
        ' {"instruction": "q", "output": "\\ud83d\\ude00", "note": "\\udfff", "n": NaN}]'
    )
    loaded = load_samples([write(tmp_path / "a.json", text)])
    assert [sample.output for sample in loaded.samples] == ["a\x00b", "😀"]
    assert [skipped.source.record for skipped in loaded.skipped] == [2]
    assert record_text(loaded.samples[1].extra) == '{"note": "\\udfff", "n": NaN}'


def test_a_missing_file_is_reported_and_the_others_are_loaded(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [GOOD])
    loaded = load_samples(["nowhere.json", good])
    assert loaded.missing_files == ["nowhere.json"]
    assert len(loaded.samples) == 1
    (warning,) = read_lines({}, loaded.missing_files)
    assert warning.startswith("Warning: nowhere.json does not exist (looked in ")
    assert warning.endswith("; going on without it.")


def test_no_file_at_all_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_samples(["a.json", "b.json"])
    assert "a.json, b.json do not exist (looked in " in str(caught.value)
    assert str(tmp_path / "data") in str(caught.value)


def test_files_are_found_as_given_then_in_data_and_never_beside_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, program = tmp_path / "here", tmp_path / "venv" / "bin"
    (here / "data").mkdir(parents=True)
    program.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.argv", [str(program / "tinkersmith")])
    write(program / "a.json", [GOOD])
    with pytest.raises(UserError) as caught:
        load_samples(["a.json"])
    assert str(program) not in str(caught.value)
    write(here / "data" / "a.json", [GOOD])
    assert str(load_samples(["a.json"]).samples[0].source) == "data/a.json, record 1"
    write(here / "a.json", [GOOD])
    assert load_samples(["a.json"]).samples[0].source.file == "a.json"


def test_one_file_under_two_names_is_refused(tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", [GOOD])
    with pytest.raises(UserError, match="named twice"):
        load_samples([good, str(tmp_path / "." / "good.json")])


def test_a_file_of_bad_records_only_is_an_error_that_shows_the_first(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.json", [{"instruction": "q"}, 7])
    with pytest.raises(UserError, match=r"Not one of 2 records can be used.*record 1: \"output\""):
        load_samples([bad])


def test_overlap_is_found_despite_white_space(tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.json",
        [GOOD, GOOD, {**GOOD, "output": "b"}, {**GOOD, "instruction": "two  words\n"}],
    )
    test = write(
        tmp_path / "test.json",
        [{**GOOD, "instruction": "new"}, {**GOOD, "instruction": " two words"}, GOOD],
    )
    trained, tested = load_samples([train]), load_samples([test])
    assert [(a.record, b.record) for a, b in overlap(trained.samples, tested.samples)] == [
        (4, 2),
        (1, 3),
    ]


def random_record(rng: np.random.Generator) -> Any:
    values: list[Any] = [None, "", " ", "q", "中文\u2028\x00", 7, 1.5, True, [], ["a", "b"], {}]
    if rng.random() < 0.1:
        return values[rng.integers(len(values))]
    names = ["instruction", "input", "output", "system", "history", "messages", "note"]
    record = {name: values[rng.integers(len(values))] for name in names if rng.random() < 0.4}
    if rng.random() < 0.6:
        record.update(GOOD)
    return record


def test_every_random_record_is_either_a_sample_or_named(tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    records = [GOOD, *(random_record(rng) for _ in range(500))]
    as_array = load_samples([write(tmp_path / "a.json", records)])
    lines = "\n".join(json.dumps(record) for record in records)
    as_lines = load_samples([write(tmp_path / "a.jsonl", lines)])
    for loaded in (as_array, as_lines):
        numbers = [s.source.record for s in (*loaded.samples, *loaded.skipped)]
        assert sorted(numbers) == list(range(1, len(records) + 1))
    assert [s.source.record for s in as_array.samples] == [
        s.source.record for s in as_lines.samples
    ]


def test_random_damage_to_a_file_gives_samples_or_one_sentence(tmp_path: Path) -> None:
    seed = int(np.random.default_rng().integers(2**32))
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)
    refused = 0
    for number in range(300):
        data = bytearray(ARRAY if number % 2 else LINES)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        cut = rng.integers(len(data)) if rng.random() < 0.3 else len(data)
        path = write(tmp_path / "a.json", bytes(data[:cut]))
        try:
            loaded = load_samples([path])
            assert loaded.samples
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 30


@pytest.mark.skipif(
    not S1K.exists(), reason="the real data set s1k_1.1.json is not on this machine"
)
def test_all_thousand_samples_of_a_real_data_set_load() -> None:
    loaded = load_samples([str(S1K)])
    assert (len(loaded.samples), loaded.skipped) == (1000, [])
    assert max(len(sample.output) for sample in loaded.samples) == 6904


RECORD = b'{"instruction": "q", "output": "a"}'


@pytest.mark.parametrize(
    "blank", ["\u3000", "\u3000\n\u2003", "\x1c\n", "\u00a0\r\n", "\ufeff\u3000"]
)
@pytest.mark.parametrize("name", ["data.jsonl", "data.json"])
def test_a_file_of_blanks_of_any_script_is_empty(tmp_path: Path, blank: str, name: str) -> None:
    file = write(tmp_path / name, blank.encode())
    with pytest.raises(UserError, match=f"{name} is empty. Add records"):
        load_samples([file])


@pytest.mark.parametrize("name", ["twice.json", "twice.jsonl", "twice.txt"])
def test_a_field_that_a_record_names_twice_is_skipped_and_not_chosen(
    tmp_path: Path, name: str
) -> None:
    twice = b'{"instruction": "q", "output": "a", "output": "b", "input": "\\"output\\": x"}'
    data = RECORD + b"\n" + twice + b"\n"
    if name.endswith("json"):
        data = b"[" + RECORD + b", " + twice + b"]"
    loaded = load_samples([write(tmp_path / name, data)])
    assert [sample.source.record for sample in loaded.samples] == [1]
    [skipped] = loaded.skipped
    assert (skipped.source.record, skipped.field) == (2, "output")
    assert skipped.reason == '"output" is there twice. Keep one, or remove the record.'


def test_a_name_with_an_escaped_letter_does_not_hide_one_that_is_there_twice(
    tmp_path: Path,
) -> None:
    twice = b'{"instruction": "q", "output": "a", "output": "b"}\n'
    escaped = b'{"instruction": "q", "outp\\u0075t": "a"}\n'
    loaded = load_samples([write(tmp_path / "a.jsonl", twice + escaped)])
    assert [sample.output for sample in loaded.samples] == ["a"]
    [skipped] = loaded.skipped
    assert skipped.reason == '"output" is there twice. Keep one, or remove the record.'


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_record_is_the_same_beside_one_that_names_a_field_twice(
    tmp_path: Path, name: str
) -> None:
    """Two parsers read the file then, and a number of 40 digits is not the same in both."""
    large = b'{"instruction": "q", "output": "a", "number": ' + b"7" * 40 + b"}"
    twice = b'{"instruction": "q", "output": "a", "output": "b"}'
    form = (b"[%s]", b", ") if name == "a.json" else (b"%s\n", b"\n")
    alone, beside = (
        load_samples([write(tmp_path / name, form[0] % form[1].join(records))])
        for records in ([large], [large, twice])
    )
    assert beside.samples == alone.samples and len(beside.skipped) == 1


def test_fields_of_that_name_inside_other_fields_are_left_alone(tmp_path: Path) -> None:
    record = (
        b'{"instruction": "q", "output": "a", "meta": {"output": 1, "output": 2}, "k": "input"}'
    )
    [sample] = load_samples([write(tmp_path / "a.jsonl", record)]).samples
    assert sample.output == "a"


@pytest.mark.parametrize(("depth", "skipped"), [(90, 0), (101, 1), (900, 1)])
def test_a_record_nested_too_deeply_to_be_written_is_skipped(
    tmp_path: Path, depth: int, skipped: int
) -> None:
    nested = b"[" * depth + b"]" * depth
    data = b"[" + RECORD + b', {"instruction": "q", "output": "a", "meta": ' + nested + b"}]"
    loaded = load_samples([write(tmp_path / "a.json", data)])
    assert len(loaded.samples) == 2 - skipped
    assert [record.record_text[:1] for record in loaded.skipped] in ([], ['"'], ["{"])


@pytest.mark.parametrize("kind", ["pipe", "socket", "loop", "device"])
def test_what_is_no_regular_file_is_told_and_not_waited_for(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has at most 108 bytes
    file = Path("data.jsonl")
    words = f"it is a {kind}"
    if kind == "pipe":
        os.mkfifo(file)
        words = "it is a named pipe, which can be read only once. Write its content to a file"
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(file))
    elif kind == "loop":
        file.symlink_to(file.name)
        words = "its links lead in a circle"
    else:
        file.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"data\.jsonl cannot be read: {words}"):
        load_samples([str(file)])


def test_a_name_that_is_no_name_is_a_missing_file_or_a_sentence(tmp_path: Path) -> None:
    good = write(tmp_path / "a.jsonl", RECORD)
    assert load_samples([good, "a\0b"]).missing_files == ["a\0b"]
    with pytest.raises(UserError, match=r"read: File name too long\. Name a regular file"):
        load_samples([good, "x" * 5000])


def test_a_gzip_file_may_have_several_members_and_nothing_else(tmp_path: Path) -> None:
    members = zipped(RECORD + b"\n") + zipped(RECORD + b"\n")
    assert len(load_samples([write(tmp_path / "a.jsonl.gz", members)]).samples) == 2
    with pytest.raises(
        UserError, match=r"damaged gzip file .other bytes follow after its end.[.)]"
    ):
        load_samples([write(tmp_path / "b.jsonl.gz", members + b"garbage")])
    with pytest.raises(UserError, match=r"damaged gzip file .it ends before its content does"):
        load_samples([write(tmp_path / "c.jsonl.gz", members[:-12])])


def test_a_file_that_would_fill_the_memory_is_refused_before_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinkersmith.sources.records.most_bytes", lambda: 1_000_000)
    bomb = write(tmp_path / "bomb.jsonl.gz", zipped((RECORD + b"\n") * 40_000))
    with pytest.raises(UserError, match=r"unpacks to more than 0 GB.*tinkersmith convert "):
        load_samples([bomb])
    sparse = tmp_path / "sparse.json"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has more than 0 GB, which would not fit"):
        load_samples([str(sparse)])


def test_a_file_that_a_crash_filled_with_nul_is_told_as_that(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only NUL bytes, as a crash may leave them"):
        load_samples([write(tmp_path / "a.json", b"\0" * 500)])
