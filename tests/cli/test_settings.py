"""`tinkersmith settings` says what a run would be made with, and why."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tinkersmith.cli.main import main
from tinkersmith.settings.fields import FIELDS, Settings


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["settings", *arguments]) == 0
    return capsys.readouterr().out


def test_every_setting_is_shown_with_its_value_and_its_origin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("run.yaml").write_text("# mine\nLORA_RANK: 8\nDATA_FILES: {a.jsonl: 2, b.jsonl: 0.5}\n")
    lines = shown(capsys, "--config", "run.yaml", "--set", "SEED=7").splitlines()
    rows = {line.split()[0]: line for line in lines}
    assert list(rows) == [field.upper() for field in FIELDS]
    assert rows["LORA_RANK"].split() == ["LORA_RANK", "8", "run.yaml,", "line", "2"]
    assert rows["SEED"].split() == ["SEED", "7", "--set"]
    assert rows["BATCH_SIZE"].split() == ["BATCH_SIZE", "8", "default"]
    assert '{"a.jsonl": 2.0, "b.jsonl": 0.5}' in rows["DATA_FILES"]


def test_config_py_of_the_folder_is_shown_without_an_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("config.py").write_text("SEED = 3\nfor rank in (4, 8):\n    LORA_RANK = rank\n")
    described = json.loads(shown(capsys, "--json", "--set", "BATCH_SIZE=2"))
    assert described["SEED"] == {"value": 3, "origin": "config.py, line 1"}
    assert described["LORA_RANK"] == {"value": 8, "origin": "config.py, line 3"}
    assert described["BATCH_SIZE"] == {"value": 2, "origin": "--set"}
    assert described["NUM_EPOCHS"] == {"value": 2, "origin": "default"}
    assert list(described) == [field.upper() for field in FIELDS]


def test_json_of_the_settings_is_a_settings_file(capsys: pytest.CaptureFixture[str]) -> None:
    described = json.loads(shown(capsys, "--json", "--set", "COLUMNS=output:答案"))
    values = {name: about["value"] for name, about in described.items()}
    Path("run.json").write_text(json.dumps({"$schema": "schema.json", **values}))
    again = json.loads(shown(capsys, "--json", "--config", "run.json"))
    assert {name: about["value"] for name, about in again.items()} == values


def problems(schema: dict[str, Any], given: Any) -> list[str]:
    """What a JSON Schema says against a value; every keyword that it uses must be known here."""
    known = {
        "description", "default", "$schema", "title", "type", "enum", "pattern", "maxLength",
        "minimum", "maximum", "exclusiveMinimum", "anyOf", "items", "minItems", "minProperties",
        "properties", "additionalProperties",
    }  # fmt: skip
    assert set(schema) <= known
    kinds: dict[str, Any] = {
        "string": str,
        "array": list,
        "object": dict,
        "boolean": bool,
        "integer": int,
    }
    kind, value = schema.get("type"), given
    number = isinstance(given, int | float) and not isinstance(given, bool)
    if kind and not (
        number
        if kind == "number"
        else isinstance(given, kinds[kind]) and (kind != "integer" or number)
    ):
        return [f"{value!r} is no {kind}"]
    against: list[str] = []
    if "enum" in schema and value not in schema["enum"]:
        against.append("enum")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        against.append("pattern")
    against += [
        keyword
        for keyword, is_wrong in {
            "maxLength": lambda limit: len(value) > limit,
            "minItems": lambda limit: len(value) < limit,
            "minProperties": lambda limit: len(value) < limit,
            "minimum": lambda limit: value < limit,
            "maximum": lambda limit: value > limit,
            "exclusiveMinimum": lambda limit: value <= limit,
        }.items()
        if keyword in schema and is_wrong(schema[keyword])
    ]
    if "anyOf" in schema and all(problems(option, value) for option in schema["anyOf"]):
        against.append("anyOf")
    if "items" in schema:
        against += [problem for item in value for problem in problems(schema["items"], item)]
    if kind == "object":
        named, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, inner in value.items():
            if name in named:
                against += problems(named[name], inner)
            elif others is False:
                against.append(f"{name} is unknown")
            elif others is not True:
                against += problems(others, inner)
    return against


def test_the_schema_takes_what_the_settings_take_and_nothing_else(
    capsys: pytest.CaptureFixture[str],
) -> None:
    schema = json.loads(shown(capsys, "--schema"))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    defaults = {field.upper(): value for field, value in Settings().model_dump().items()}
    assert set(schema["properties"]) == {"$schema", *defaults}
    assert problems(schema, defaults) == []
    assert all(schema["properties"][name]["default"] == defaults[name] for name in defaults)
    assert all(schema["properties"][name]["description"] for name in defaults)
    for good in (
        {"DATA_FILES": "a.json"},
        {"DATA_FILES": {"a.jsonl": 2}},
        {"LEARNING_RATE": 1e-4, "COLUMNS": {"instruction": "question"}},
    ):
        assert problems(schema, good) == []
    for bad in (
        {"LORA_RANK": 0},
        {"LORA_RANK": "16"},
        {"LORA_RANK": True},
        {"LEARNING_RATE": 0},
        {"BACKEND": "cloud"},
        {"DATA_FILES": []},
        {"DATA_FILES": {"a.jsonl": 0}},
        {"MODEL_NAME_PREFIX": "../x"},
        {"lora_rank": 16},
    ):
        assert problems(schema, bad) != []


def test_an_option_without_effect_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--schema", "--set", "SEED=1"]) == 1
    assert "--config and --set have no effect" in capsys.readouterr().err


def test_a_wrong_setting_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.toml").write_text("LORA_RANK = 0\n")
    assert main(["settings", "--config", "run.toml"]) == 1
    assert capsys.readouterr().err.startswith("Error: run.toml, line 1: LORA_RANK is 0; it must be")


def test_it_imports_no_torch_transformers_or_tinker() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "tinkersmith", "settings", "--json"]
    asked = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert json.loads(asked.stdout)["LORA_RANK"]["origin"].startswith("config.py, line ")
    imported = {line.rpartition("|")[2].strip() for line in asked.stderr.splitlines()}
    assert imported.isdisjoint({"torch", "transformers", "tinker", "numpy"})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "LORA_RANK: 8\n"),
        ("config.yml", "SEED: 1\nown: 2\n"),
        ("config.toml", "LORA_RANK = 8\n"),
        ("config.json", '{"LORA_RANK": 8}'),
    ],
)
def test_settings_that_lie_there_unread_are_an_error(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(text)
    assert main(["settings"]) == 1
    said = capsys.readouterr().err
    assert said.endswith(
        f"has settings that are not read unless you name it. Add: --config {name}\n"
    )
    Path("config.py").write_text("")
    shown(capsys)  # config.py is what is read


@pytest.mark.parametrize(
    ("name", "text"),
    [("config.json", '{"model_type": "qwen3"}'), ("config.yaml", "lr: 1\n"), ("config.toml", "[")],
)
def test_files_of_other_tools_are_left_alone(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_text(text)
    assert "LORA_RANK" in shown(capsys)
