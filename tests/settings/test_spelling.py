"""Values of --set: every usual spelling is read, every other one is refused with what to write."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinkersmith.errors import UserError
from tinkersmith.settings.fields import FIELDS
from tinkersmith.settings.reading import settings_from
from tinkersmith.settings.spelling import number_from, override_text


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


TWO = ["a.json", "b.json"]


@pytest.mark.parametrize(
    "text",
    [
        "prefill:0.2,sample:0.6,train:0.44",
        "{prefill: 0.2, sample: 0.6, train: 0.44}",
        '{"prefill": 0.2, "sample": 0.6, "train": 0.44}',
    ],
)
def test_prices_are_read_in_any_usual_spelling(text: str) -> None:
    prices = settings_from({}, [f"TOKEN_PRICE={text}"]).token_price
    assert prices == {"prefill": 0.2, "sample": 0.6, "train": 0.44}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("prefill:x,sample:1,train:1", 'TOKEN_PRICE["prefill"] is "x"; it must be a price'),
        ("prefill:nan,sample:1,train:1", 'TOKEN_PRICE["prefill"] is "nan"; it must be a price'),
        ("prefill:1e308,sample:1,train:1", "cost in USD: 0 to 1,000,000."),
        ("prefill:-1,sample:1,train:1", "cost in USD: 0 to 1,000,000."),
        ("{1: 2}", "TOKEN_PRICE has the name 1; it must be a dict with"),
        ("cheap", "Write it as --set TOKEN_PRICE=prefill:0.2,sample:0.6,train:0.44"),
    ],
)
def test_a_price_that_is_none_is_named(given: str, sentence: str) -> None:
    with pytest.raises(UserError) as told:
        settings_from({}, [f"TOKEN_PRICE={given}"])
    assert sentence in str(told.value)


@pytest.mark.parametrize(
    ("text", "files"),
    [
        ("a.json", ["a.json"]),
        ("a.json,b.json", TWO),
        ("a.json, b.json", TWO),
        ("a.json, b.json,", TWO),
        ("a.json;b.json", TWO),
        ("a.json，b.json", TWO),
        ("[a.json, b.json]", TWO),
        ("(a.json, b.json)", TWO),
        ('["a.json","b.json"]', TWO),
        ("['a.json','b.json']", TWO),
        ('"a.json","b.json"', TWO),
        ('"a.json", b.json', TWO),
        ("'a.json'", ["a.json"]),
        ("[a.json]", ["a.json"]),
        ("a.json b.json", TWO),
        ("my file.json", ["my file.json"]),
        ("my file.json, b.json", ["my file.json", "b.json"]),
        ("it's.json,b.json", ["it's.json", "b.json"]),
        ("'a,b.json',c.json", ["a,b.json", "c.json"]),
        ("数据.json,b.json", ["数据.json", "b.json"]),
        ("data/*.json", ["data/*.json"]),
        ("data/{a,b}.json", ["data/{a,b}.json"]),
        (r"C:\data\a.json,b.json", [r"C:\data\a.json", "b.json"]),
        ("hf:org/name", ["hf:org/name"]),
        ("2024", ["2024"]),
        ('{"a.jsonl": 2.0, "b.jsonl": 0.5}', {"a.jsonl": 2.0, "b.jsonl": 0.5}),
        ("{a.jsonl: 2, b.jsonl: 0.5}", {"a.jsonl": 2.0, "b.jsonl": 0.5}),
        ("a.jsonl:2,b.jsonl:0.5", {"a.jsonl": 2.0, "b.jsonl": 0.5}),
        (r"C:\a.jsonl:2", {r"C:\a.jsonl": 2.0}),
        ("hf:org/name:2.5", {"hf:org/name": 2.5}),
        ("x y.jsonl:1e-2", {"x y.jsonl": 0.01}),
    ],
)
def test_files_are_read_in_any_usual_spelling(text: str, files: object) -> None:
    assert settings_from({}, [f"DATA_FILES={text}"]).data_files == files


@pytest.mark.parametrize(
    "name", ["a.json,b.json", "[a.json]", "a.json b.json", "a:2", "{a, b}", "[1]"]
)
def test_a_file_that_really_has_such_a_name_is_meant(name: str) -> None:
    Path(name).write_text("[]")
    assert settings_from({}, [f"DATA_FILES={name}"]).data_files == [name]
    Path("data").mkdir()
    Path(name).rename(Path("data") / name)
    assert settings_from({}, [f"DATA_FILES={name}"]).data_files == [name]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("instruction:question,output:answer", {"instruction": "question", "output": "answer"}),
        ("instruction=question, output=answer", {"instruction": "question", "output": "answer"}),
        ('{"instruction": "question"}', {"instruction": "question"}),
        ("{instruction: my question}", {"instruction": "my question"}),
        ("instruction：问题，output：答案", {"instruction": "问题", "output": "答案"}),
        ('instruction:"a, b",output:a:b', {"instruction": "a, b", "output": "a:b"}),
        ("{}", {}),
    ],
)
def test_columns_are_read_in_any_usual_spelling(text: str, columns: dict[str, str]) -> None:
    assert settings_from({}, [f"COLUMNS={text}"]).columns == columns


@pytest.mark.parametrize("word", ["true", "True", "TRUE", "yes", "on", "1"])
def test_what_means_yes_is_true_and_its_opposite_false(word: str) -> None:
    opposite = {"1": "0", "yes": "no", "on": "off"}.get(word, "False")
    assert settings_from({}, [f"SHOW_LENGTH_WARNINGS={word}"]).show_length_warnings is True
    assert settings_from({}, [f"SHOW_LENGTH_WARNINGS={opposite}"]).show_length_warnings is False


@pytest.mark.parametrize(
    ("text", "number"),
    [("16", 16), ("1_000", 1000), ("1e-4", 1e-4), (".5", 0.5), ("+8", 8), ("-1", -1), ("0", 0)],
)
def test_numbers_are_read_as_they_are_usually_written(text: str, number: float) -> None:
    assert number_from(text) == number
    assert type(number_from(text)) is type(number)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("BATCH_SIZE=16k", 'BATCH_SIZE is "16k"; it must be a whole number between 1 and 65536'),
        ("BATCH_SIZE=1,000", 'BATCH_SIZE is "1,000"; it must be a whole number'),
        ("BATCH_SIZE=8.0", "BATCH_SIZE is 8.0; it must be a whole number"),
        ("BATCH_SIZE=010", 'BATCH_SIZE is "010"; it must be a whole number'),
        ("BATCH_SIZE=２", 'BATCH_SIZE is "２"; it must be a whole number'),
        ("BATCH_SIZE=True", 'BATCH_SIZE is "True"; it must be a whole number'),
        ("BATCH_SIZE=", 'BATCH_SIZE is ""; it must be a whole number'),
        ("LEARNING_RATE=1e-4x", 'LEARNING_RATE is "1e-4x"; it must be a number'),
        ("LEARNING_RATE=5%", 'LEARNING_RATE is "5%"; it must be a number'),
        ("SHOW_LENGTH_WARNINGS=ja", 'SHOW_LENGTH_WARNINGS is "ja"; it must be True or False.'),
        ("DATA_FILES=", 'DATA_FILES[0] is ""; it must be the name of a file.'),
        ("DATA_FILES=[]", "DATA_FILES is []; it must be a list of at least one"),
        ("DATA_FILES=a.jsonl:0", "gives a.jsonl the weight 0, so that it is never trained on."),
        ("DATA_FILES=a.jsonl:-1", "the weight -1; it must be a number between 0.001 and 1000"),
        ("DATA_FILES={a.jsonl: x}", 'gives a.jsonl the weight "x"; it must be a number'),
        ("DATA_FILES=a.jsonl:1e9", "the weight 1000000000.0; it must be a number between"),
        ("DATA_FILES={a.jsonl}", "has no name and value in a.jsonl. Write it as --set DATA_FILES="),
        ("DATA_FILES=a:1,a:2", "--set DATA_FILES names a twice. Name it once."),
        ('DATA_FILES={"a": 1, "a": 2}', "--set DATA_FILES names a twice. Name it once."),
        ("DATA_FILES={'a': 1, \"a\": 2}", "--set DATA_FILES names a twice. Name it once."),
        ("COLUMNS={'output': 'a', 'output': 'b'}", "--set COLUMNS names output twice."),
        ('COLUMNS={"output": "a", "output": null}', "--set COLUMNS names output twice."),
        (
            "COLUMNS=text:a,output:b",
            'COLUMNS has "output" and "text", which no sample has together',
        ),
        ("ENCODING=ansi", 'ENCODING is "ansi", which is no encoding;'),
        ("VALIDATION_FILES=a.jsonl:2", "VALIDATION_FILES is {"),
        ("COLUMNS=question", "has no name and value in question. Write it as --set COLUMNS="),
        ('COLUMNS={"instruction": 3}', 'COLUMNS["instruction"] is 3; it must be the name of a'),
        ("TINKER_API_KEY=k9", "--set: TINKER_API_KEY is not a setting. Set it in the environment"),
        ("TINKER_API_KEY", "--set TINKER_API_KEY has no value"),
    ],
)
def test_a_value_that_cannot_be_read_is_shown_as_it_was_typed(override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        settings_from({}, [override])
    assert sentence in str(caught.value)
    assert "k9" not in str(caught.value)


def test_a_setting_that_is_given_twice_is_an_error_that_says_what_to_write() -> None:
    with pytest.raises(UserError, match=r"--set LORA_RANK is given twice: 8 and 16\. Give it once"):
        settings_from({}, ["LORA_RANK=8", "lora_rank=16"])
    with pytest.raises(UserError) as caught:
        settings_from({}, ["DATA_FILES=a.json", "DATA_FILES=b.json"])
    assert str(caught.value).endswith("Write both in one: --set DATA_FILES=a.json,b.json")


TEXTS = [
    field
    for field in FIELDS
    if FIELDS[field].annotation is str
    and field not in ("prompt_template", "model_name_prefix", "encoding", "best_by", "judge_url")
]


@given(field=st.sampled_from(TEXTS), value=st.text(min_size=1, max_size=30))
def test_a_printed_override_reads_back_as_the_same_text(field: str, value: str) -> None:
    if not value.strip() or "\0" in value or any(0xD800 <= ord(c) < 0xE000 for c in value):
        return
    judge = {"METRICS": ["judge"], "JUDGE_URL": "http://localhost/v1", "JUDGE_MODEL": "m"}
    needed = judge if field.startswith("judge_") else {}
    settings = settings_from(needed, [override_text(field, value)], folder="/")
    assert getattr(settings, field) == value


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.floats(0.001, 1000), max_size=4))
def test_a_dict_of_python_or_json_is_read_as_it_stands(weights: dict[str, Any]) -> None:
    if not all(name.strip() and "\0" not in name for name in weights) or not weights:
        return
    assert settings_from({}, [f"DATA_FILES={weights!r}"]).file_weights == weights


def test_white_space_belongs_to_a_format_string_and_a_typed_backslash_n_is_none() -> None:
    kept = settings_from({}, ["PROMPT_TEMPLATE=Q: {instruction} A: "]).prompt_template
    assert kept == "Q: {instruction} A: "
    quoted = settings_from({}, ['PROMPT_TEMPLATE="Q: {instruction}\\nA: "']).prompt_template
    assert quoted == "Q: {instruction}\nA: "
    with pytest.raises(UserError, match=r"a backslash and an n.*put the text in quotes: --set '"):
        settings_from({}, ["PROMPT_TEMPLATE=Q: {instruction}\\nA: "])


def test_one_weight_alone_is_not_taken_for_a_name() -> None:
    with pytest.raises(UserError, match=r"gives only some files a weight\. Give each one"):
        settings_from({}, ["DATA_FILES=A.jsonl:2,B.jsonl"])
