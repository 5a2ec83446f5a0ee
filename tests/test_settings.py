"""What users write in config.py, on the command line, and what they are told when it is wrong."""

import runpy
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.errors import UserError
from tinkersmith.models import resolve_base_model
from tinkersmith.settings import FIELDS, Settings, load_settings, settings_from, settings_table


def write_config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_config_py_names_every_setting_and_nothing_else() -> None:
    namespace = runpy.run_path(str(ROOT / "config.py"))
    named = {name.lower() for name in namespace if name.isupper()}
    assert named == set(FIELDS)


def test_config_py_holds_the_values_for_the_bundled_demo() -> None:
    settings = load_settings(ROOT / "config.py")
    assert settings.data_files == ["data/train_set.json"]
    assert (settings.lora_rank, settings.learning_rate) == (16, 5e-3)
    assert (settings.batch_size, settings.num_epochs) == (8, 2)


def test_every_setting_in_config_py_stands_under_a_comment() -> None:
    lines = (ROOT / "config.py").read_text(encoding="utf-8").splitlines()
    bare = []
    for number, line in enumerate(lines):
        if not line.partition(" = ")[0].isupper() or " = " not in line:
            continue
        above = number - 1
        while lines[above].partition(" = ")[0].isupper() and " = " in lines[above]:
            above -= 1  # several settings may share one comment
        if not lines[above].startswith("#"):
            bare.append(line)
    assert bare == []


def test_defaults_come_without_a_file_and_overrides_win_over_the_file(tmp_path: Path) -> None:
    assert load_settings(None) == Settings()
    config = write_config(tmp_path, "LORA_RANK = 4\nSEED = 1\n")
    settings = load_settings(config, ["LORA_RANK=32", "learning_rate=1e-4"])
    assert (settings.lora_rank, settings.seed, settings.learning_rate) == (32, 1, 1e-4)


def test_imports_functions_private_and_lower_case_names_are_left_alone(tmp_path: Path) -> None:
    config = write_config(
        tmp_path,
        "import os as OS\nfrom enum import Enum as E\n_PRIVATE = 1\nhere = 2\n"
        "def LOUD(): pass\nLORA_RANK = 2 * here\n",
    )
    assert load_settings(config).lora_rank == 4


@pytest.mark.parametrize(
    ("overrides", "name", "value"),
    [
        (["DATA_FILES=a.json"], "data_files", ["a.json"]),
        (["DATA_FILES=['a.json', 'b.json']"], "data_files", ["a.json", "b.json"]),
        (["MODEL_NAME_PREFIX=2024"], "model_name_prefix", "2024"),
        (["TRUNCATE_LONG_SEQUENCES=false"], "truncate_long_sequences", False),
        (["GRAD_CLIP_NORM=0"], "grad_clip_norm", 0.0),
        (["BASE_MODEL='Qwen/Qwen3-8B'"], "base_model", "Qwen/Qwen3-8B"),
        (["PROMPT_TEMPLATE=Q={instruction}"], "prompt_template", "Q={instruction}"),
    ],
)
def test_an_override_is_read_as_the_user_means_it(
    overrides: list[str], name: str, value: object
) -> None:
    assert getattr(settings_from({}, overrides), name) == value


def test_a_path_or_a_tuple_of_paths_is_a_list_of_files() -> None:
    assert settings_from({"DATA_FILES": Path("a.json")}).data_files == ["a.json"]
    assert settings_from({"DATA_FILES": ("a", Path("b"))}).data_files == ["a", "b"]


RANK = "between 1 and 512 (a usual choice: 8 to 64)."


@pytest.mark.parametrize(
    ("namespace", "sentence"),
    [
        ({"LORA_RANK": 0}, f"LORA_RANK is 0; it must be {RANK}"),
        ({"LORA_RANK": "16"}, f'LORA_RANK is "16"; it must be a whole number {RANK}'),
        ({"LORA_RANK": True}, f"LORA_RANK is True; it must be a whole number {RANK}"),
        ({"LORA_RANK": 16.0}, f"LORA_RANK is 16.0; it must be a whole number {RANK}"),
        ({"LORA_RANK": None}, f"LORA_RANK is None; it must be a whole number {RANK}"),
        ({"LEARNING_RATE": -1e-4}, "LEARNING_RATE is -1e-4; it must be above 0 and at most 1"),
        ({"LEARNING_RATE": float("nan")}, "LEARNING_RATE is nan; it must be above 0"),
        ({"LEARNING_RATE": True}, "LEARNING_RATE is True; it must be a number above 0"),
        ({"SHOW_LENGTH_WARNINGS": 1}, "SHOW_LENGTH_WARNINGS is 1; it must be True or False."),
        ({"BACKEND": "cloud"}, 'BACKEND is "cloud"; it must be one of "auto", "tinker", "local".'),
        ({"DATA_FILES": []}, "DATA_FILES is []; it must be a list of at least one file name."),
        ({"DATA_FILES": ["a", 7]}, "DATA_FILES[1] is 7; it must be the name of a file."),
        ({"DATA_FILES": ""}, 'DATA_FILES[0] is ""; it must be the name of a file.'),
        ({"MODEL_NAME_PREFIX": "../x"}, 'MODEL_NAME_PREFIX is "../x"; it must be a name of'),
        ({"LORA_RNK": 8}, "LORA_RNK is not a setting; did you mean LORA_RANK?"),
        ({"COLOUR": 8}, "COLOUR is not a setting; the README lists all"),
        ({"EVAL_EVERY": 5}, "EVAL_EVERY is 5, but there is no validation data to measure."),
        (
            {"VALIDATION_FILES": ["v.json"], "VALIDATION_RATIO": 0.1},
            "VALIDATION_FILES and VALIDATION_RATIO = 0.1 are both set",
        ),
        ({"PROMPT_TEMPLATE": "alpacca"}, 'PROMPT_TEMPLATE is "alpacca"; it must be one of "auto"'),
        ({"PROMPT_TEMPLATE": "{question}"}, "PROMPT_TEMPLATE has the field {question}; only"),
        ({"PROMPT_TEMPLATE": "{input}"}, "PROMPT_TEMPLATE has no {instruction}."),
        ({"PROMPT_TEMPLATE": 3}, 'PROMPT_TEMPLATE is 3; it must be "auto"'),
    ],
)
def test_a_wrong_setting_is_refused_with_its_value_and_what_it_must_be(
    namespace: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        settings_from(namespace)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_an_override_without_a_value_or_with_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="--set LORA_RANK has no value"):
        settings_from({}, ["LORA_RANK"])
    with pytest.raises(UserError, match="--set: NUM_EPOCH is not a setting; did you mean NUM_EPO"):
        settings_from({}, ["NUM_EPOCH=1"])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("LORA_RANK = 8\nSEED = = 1\n", "config.py, line 2: invalid syntax"),
        ("SEED = 1\n\nLORA_RANK = rank\n", "config.py, line 3: NameError: name 'rank'"),
        ("import sys\nsys.exit(3)\n", "config.py, line 2: SystemExit: 3"),
        ("LORA_RNK = 8\n", "config.py: LORA_RNK is not a setting"),
    ],
)
def test_a_mistake_in_config_py_is_named_with_file_and_line(
    tmp_path: Path, text: str, sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_settings(write_config(tmp_path, text))
    assert sentence in str(caught.value)


def test_a_config_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings file .*other\.py does not exist"):
        load_settings(tmp_path / "other.py")


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 1


def test_the_table_has_one_row_per_setting_with_its_default() -> None:
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1].lower() for row in rows] == list(FIELDS)
    assert all(row.count(" | ") == 3 for row in rows)
    (rate,) = [row for row in rows if "`LEARNING_RATE`" in row]
    assert "| `5e-4` |" in rate and "above 0 and at most 1" in rate


def test_a_model_that_users_call_by_half_its_name_is_resolved_and_said() -> None:
    name, said = resolve_base_model("Qwen/Qwen3-30B-A3B-Instruct")
    assert name == "Qwen/Qwen3-30B-A3B-Instruct-2507"
    assert said is not None and name in said
    assert resolve_base_model("Qwen/Qwen3-8B") == ("Qwen/Qwen3-8B", None)
