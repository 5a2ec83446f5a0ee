"""Settings in YAML, JSON and TOML: read as the setting needs it, or refused in one sentence."""

from pathlib import Path

import pytest

from tinkersmith.errors import UserError
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import load_settings


def load(tmp_path: Path, name: str, text: str | bytes) -> Settings:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(file)


FULL = {
    "run.yaml": """
# a comment
DATA_FILES:
  a.jsonl: 2.0
  "b, c.jsonl": .5
COLUMNS: {instruction: question, output: 答案}
LORA_RANK: 8
LEARNING_RATE: 1e-4
BATCH_SIZE: 1_0
EXPORT_AFTER_TRAINING: no
SHOW_LENGTH_WARNINGS: no
TRUNCATE_LONG_SEQUENCES: off
MODEL_NAME_PREFIX: 2024-01-01
PROMPT_TEMPLATE: "Q: {instruction}\\nA: "
""",
    "run.json": """{
  "DATA_FILES": {"a.jsonl": 2, "b, c.jsonl": 0.5},
  "COLUMNS": {"instruction": "question", "output": "答案"},
  "LORA_RANK": 8, "LEARNING_RATE": 1e-4, "BATCH_SIZE": 10,
  "EXPORT_AFTER_TRAINING": "no", "SHOW_LENGTH_WARNINGS": false, "TRUNCATE_LONG_SEQUENCES": false,
  "MODEL_NAME_PREFIX": "2024-01-01", "PROMPT_TEMPLATE": "Q: {instruction}\\nA: "
}""",
    "run.toml": """
LORA_RANK = 8
LEARNING_RATE = 1e-4
BATCH_SIZE = 1_0
EXPORT_AFTER_TRAINING = "no"
SHOW_LENGTH_WARNINGS = false
TRUNCATE_LONG_SEQUENCES = false
MODEL_NAME_PREFIX = "2024-01-01"
PROMPT_TEMPLATE = "Q: {instruction}\\nA: "
[DATA_FILES]
"a.jsonl" = 2
"b, c.jsonl" = 0.5
[COLUMNS]
instruction = "question"
output = "答案"
""",
    "config.py": """
LORA_RANK = 8; LEARNING_RATE = 1e-4; BATCH_SIZE = 10; EXPORT_AFTER_TRAINING = "no"
SHOW_LENGTH_WARNINGS = TRUNCATE_LONG_SEQUENCES = False
MODEL_NAME_PREFIX = "2024-01-01"; PROMPT_TEMPLATE = "Q: {instruction}\\nA: "
DATA_FILES = {"a.jsonl": 2, "b, c.jsonl": .5}
COLUMNS = {"instruction": "question", "output": "答案"}
""",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", FULL)
def test_the_same_settings_come_from_every_format(
    name: str, encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "config.py" and encoding == "utf-16":
        with pytest.raises(UserError, match=r"config\.py is in UTF-16\. Save it as UTF-8"):
            load(tmp_path, name, FULL[name].encode(encoding))
        return
    settings = load(tmp_path, name, FULL[name].encode(encoding))
    changed = {
        field: value
        for field, value in settings.model_dump().items()
        if value != getattr(Settings(), field)
    }
    assert {field: value for field, value in changed.items() if field != "output_dir"} == {
        "data_files": {str(tmp_path / "a.jsonl"): 2.0, str(tmp_path / "b, c.jsonl"): 0.5}
        if changed["data_files"].keys() != {"a.jsonl", "b, c.jsonl"}
        else {"a.jsonl": 2.0, "b, c.jsonl": 0.5},
        "columns": {"instruction": "question", "output": "答案"},
        "lora_rank": 8,
        "learning_rate": 1e-4,
        "batch_size": 10,
        "export_after_training": "no",
        "show_length_warnings": False,
        "truncate_long_sequences": False,
        "model_name_prefix": "2024-01-01",
        "prompt_template": "Q: {instruction}\nA: ",
    }


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        # names
        ("r.yaml", "SEED: 1\nlora_rank: 8\n", "line 2: lora_rank is not a setting; write LORA_RA"),
        ("r.json", '{"SEED": 1,\n"lora_rank": 8}', "line 2: lora_rank is not a setting; write LO"),
        ("r.toml", "SEED = 1\nlora_rank = 8\n", "line 2: lora_rank is not a setting; write LORA_"),
        ("r.yml", "learning-rate: 1\n", "learning-rate is not a setting; write LEARNING_RATE."),
        ("r.yaml", "own: 1\n", "line 1: own is not a setting; "),
        ("r.json", '{"LORA_RNK": 8}', "LORA_RNK is not a setting; did you mean LORA_RANK?"),
        ("r.yaml", "lora_alpha: 16\n", "line 1: lora_alpha is not a setting: a server of this API"),
        ("r.toml", 'loss = "ppo"\n', "loss is not a setting: samples with an expected answer can"),
        ("r.json", '{"loraDropout": 0.1}', "loraDropout is not a setting: the SDK has no dropout"),
        ("r.yaml", "TINKER_API_KEY: k9\n", 'export TINKER_API_KEY="..."'),
        ("r.json", '{"TINKER_API_KEY": "k9"}', 'export TINKER_API_KEY="..."'),
        ("r.toml", 'tinker_api_key = "k9"\n', 'export TINKER_API_KEY="..."'),
        # twice
        ("r.yaml", "SEED: 1\nSEED: 2\n", "line 2: SEED is named twice (r.yaml, line 1 sets it"),
        ("r.json", '{"SEED": 1,\n"SEED": 2}', "line 2: SEED is named twice"),
        ("r.toml", "SEED = 1\nSEED = 2\n", "line 2: SEED is named twice"),
        ("r.yaml", "DATA_FILES:\n  a: 1\n  a: 2\n", "line 3: a is named twice"),
        ("r.yaml", "DATA_FILES:\n  a: 1\n  b: 1\n  a: 2\n", "(r.yaml, line 2 sets it as well)"),
        ("r.yaml", 'COLUMNS: {output: a,\n "output": b}', "line 2: output is named twice"),
        ("r.json", '{"DATA_FILES": {"a": 1, "a": 2}}', "line 1: a is named twice"),
        (
            "r.json",
            '{"COLUMNS": {"output": "a"},\n"DATA_FILES": {"a": 1,\n"b": 1,\n"\\u0061": 2}}',
            "line 4: a is named twice (r.json, line 2 sets it as well)",
        ),
        ("r.toml", 'DATA_FILES = {"a" = 1, "a" = 2}', "line 1: a is named twice"),
        ("r.toml", '[DATA_FILES]\n"a" = 1\n"a" = 2', "line 3: a is named twice"),
        ("r.toml", 'DATA_FILES."a" = 1\nDATA_FILES."a" = 2\n', "line 2: a is named twice"),
        ("r.toml", 'DATA_FILES = [\n"a"]\nDATA_FILES = [\n"a"]\n', "line 3: DATA_FILES is named"),
        ("r.toml", "[COLUMNS]\n[COLUMNS]\n", "line 2: COLUMNS is named twice"),
        # sections
        ("r.yaml", "train:\n  LORA_RANK: 8\n", "line 1: train is a section. Settings stand at the"),
        ("r.json", '{"train": {"LORA_RANK": 8}}', "train is a section."),
        ("r.toml", "[train]\nLORA_RANK = 8\n", "line 1: train is a section."),
        ("r.toml", "[DATA_FILES]\na.jsonl = 2.0\n", 'Put a name with a dot in quotes: "a.jsonl".'),
        ("r.yaml", "- LORA_RANK: 8\n", "does not hold names with values"),
        ("r.json", '[{"LORA_RANK": 8}]', "does not hold an object"),
        # values
        ("r.yaml", "SEED: 1\nLORA_RANK: 0\n", "line 2: LORA_RANK is 0; it must be between"),
        ("r.json", '{"SEED": 1,\n"LORA_RANK": 0}', "line 2: LORA_RANK is 0; it must be between"),
        ("r.toml", "SEED = 1\nLORA_RANK = 0\n", "line 2: LORA_RANK is 0; it must be between"),
        ("r.yaml", "LORA_RANK: '8'\n", 'LORA_RANK is "8"; it must be a whole number'),
        ("r.yaml", "LORA_RANK: 010\n", 'LORA_RANK is "010"; it must be a whole number'),
        ("r.yaml", "SAVE_EVERY: 1:30\n", 'SAVE_EVERY is "1:30"; it must be a whole number'),
        ("r.yaml", "LORA_RANK: 2024-01-01\n", 'LORA_RANK is "2024-01-01"; it must be'),
        ("r.yaml", "LEARNING_RATE: .nan\n", 'LEARNING_RATE is ".nan"; it must be a number'),
        ("r.json", '{"LEARNING_RATE": NaN}', "LEARNING_RATE is nan; it must be"),
        ("r.toml", "LEARNING_RATE = inf\n", "LEARNING_RATE is inf; it must be"),
        ("r.yaml", "LORA_RANK: [8]\n", 'LORA_RANK is ["8"]; it must be a whole number'),
        ("r.yaml", "LORA_RANK:\n", "line 1: LORA_RANK has no value. Write one, or remove"),
        ("r.json", '{"LORA_RANK": null}', "LORA_RANK has no value."),
        ("r.toml", "MODEL_NAME_PREFIX = 2024-01-01\n", "is a date or a time. Put it in quotes."),
        ("r.yaml", "DATA_FILES: a.json, b.json\n", 'Write a list of files: ["a.json", "b.json"]'),
        ("r.yaml", "DATA_FILES: {a.jsonl: 0}\n", "the weight 0, so that it is never trained on"),
        ("r.yaml", "VALIDATION_FILES: {a: 1}\n", "takes no weights"),
        ("r.yaml", "LORA_RANK: !!python/name:os.system 8\n", "is not read. Remove it."),
        ("r.yaml", "SEED: &a [*a]\n", "nested too deeply"),
        (
            "r.yaml",
            "SEED: 1\nENCODING: klingon\n",
            'line 2: ENCODING is "klingon", which is no enc',
        ),
        ("r.toml", 'COLUMNS = {outptu = "a"}', 'line 1: COLUMNS names "outptu", which is no field'),
        ("r.json", '{"COLUMNS": {"input": "a",\n"output": "a"}}', 'COLUMNS["output"] are both "a"'),
        # formats
        ("r.yaml", "LORA_RANK: [8\n", "The file is not YAML as settings need it."),
        ("r.yaml", "SEED: 1\n---\nSEED: 2\n", "The file is not YAML as settings need it."),
        ("r.yaml", "\tSEED: 1\n", "The file is not YAML as settings need it."),
        ("r.json", '{"SEED": 1 // one\n}', "line 1: JSON has no comments"),
        ("r.json", '# one\n{"SEED": 1}', "line 1: JSON has no comments"),
        ("r.json", '{"SEED": 1,}', "a comma stands before the closing bracket"),
        ("r.json", "{'SEED': 1}", "JSON has texts in double quotes"),
        ("r.json", '{"SHOW_LENGTH_WARNINGS": False}', "False is written false in JSON"),
        ("r.toml", "LORA_RANK = eight\n", "The file is not TOML as settings need it."),
        ("r.yaml", "LORA_RANK = 8\nSEED = 1\n", "It looks like Python: give it a name that ends"),
        ("r.json", "LORA_RANK = 8\n", "It looks like Python: give it a name that ends with .py"),
        ("r.json", "LORA_RANK: 8\n", "It looks like YAML: give it a name that ends with .yaml."),
        ("r.toml", '{"LORA_RANK": 8}', "It looks like JSON: give it a name that ends with .json"),
        ("r.yaml", "[DATA_FILES]\na = 1\n", "It looks like TOML: give it a name that ends with"),
        ("r.yaml", "# nothing\n", "r.yaml sets nothing. A setting is written as LORA_RANK: 16."),
        ("r.json", "{}", 'r.json sets nothing. A setting is written as {"LORA_RANK": 16}.'),
        ("r.toml", "", "r.toml sets nothing. A setting is written as LORA_RANK = 16."),
        ("r.yaml", b"SEED: 1\n# caf\xe9\n", "line 2: the byte 0xE9 is not utf-8. Save the"),
        ("r.json", b'{"SEED": 1}\0', "there is a NUL in it"),
        ("r.txt", "# nothing\n", "r.txt sets nothing. A settings file is Python"),
    ],
)
def test_what_is_wrong_with_a_settings_file_is_one_sentence_with_its_place(
    name: str, text: str | bytes, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        load_settings(name)
    assert sentence in str(caught.value)
    assert str(caught.value).startswith(name) or "nested" in sentence
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert "k9" not in str(caught.value)


def test_names_of_files_start_from_the_folder_of_the_file_in_every_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, text in (
        ("r.yaml", "DATA_FILES: {a.json: 2}\n"),
        ("r.json", '{"DATA_FILES": {"a.json": 2}}'),
        ("r.toml", '[DATA_FILES]\n"a.json" = 2\n'),
    ):
        settings = load(tmp_path / "sub", name, text)
        assert settings.data_files == {"sub/a.json": 2.0}
        assert settings.training_files == ["sub/a.json"]
        assert settings.output_dir == "sub/runs"
