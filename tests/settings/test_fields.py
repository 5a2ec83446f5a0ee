"""What users write in config.py, on the command line, and what they are told when it is wrong."""

import os
import runpy
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.errors import UserError
from tinkersmith.models.names import resolve_base_model
from tinkersmith.settings.fields import FIELDS, Settings, settings_table
from tinkersmith.settings.reading import load_settings, settings_for_file, settings_from


def write_config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.py"
    path.write_text(text, encoding="utf-8")
    return path


def test_config_py_names_every_setting_and_nothing_else() -> None:
    namespace = runpy.run_path(str(ROOT / "config.py"))
    named = {name.lower() for name in namespace if name.isupper()}
    assert named == set(FIELDS)


@pytest.mark.parametrize("script", ["config.py", "tinker_finetune.py"])
def test_scripts_hold_the_same_values_as_the_built_in_defaults(script: str) -> None:
    namespace = runpy.run_path(str(ROOT / script))
    named = {name: value for name, value in namespace.items() if name.isupper()}
    assert len(named) > 10
    defaults = {name.upper(): value for name, value in Settings().model_dump().items()}
    assert {name: defaults[name] for name in named} == named


def test_the_defaults_suit_the_bundled_demo() -> None:
    settings = load_settings(None)
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
        (["ADAM_BETAS=0.8,0.99"], "adam_betas", [0.8, 0.99]),
        (["ADAM_BETAS=[0.8, 0.99]"], "adam_betas", [0.8, 0.99]),
        (["ADAM_BETAS=(0, .99)"], "adam_betas", [0, 0.99]),
        (["TRAIN_UNEMBED=no"], "train_unembed", "no"),
        (["TRAIN_MLP=no"], "train_mlp", False),
    ],
)
def test_an_override_is_read_as_the_user_means_it(
    overrides: list[str], name: str, value: object
) -> None:
    assert getattr(settings_from({}, overrides), name) == value


def test_the_folder_of_an_initial_adapter_starts_from_that_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "project" / "adapter").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    settings = settings_from({"INITIAL_CHECKPOINT": "adapter"}, folder="project")
    assert settings.initial_checkpoint == "project/adapter"
    written = settings_for_file(settings, "project/runs/a")
    assert written["INITIAL_CHECKPOINT"] == "../../adapter"
    named = settings_from({"INITIAL_CHECKPOINT": "my-run"}, folder="project")
    assert named.initial_checkpoint == "my-run"


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
        ({"DATA_FILES": []}, "DATA_FILES is []; it must be a list of at least one file name, or"),
        ({"DATA_FILES": ["a", 7]}, "DATA_FILES[1] is 7; it must be the name of a file."),
        ({"DATA_FILES": ""}, 'DATA_FILES[0] is ""; it must be the name of a file.'),
        ({"MODEL_NAME_PREFIX": "../x"}, 'MODEL_NAME_PREFIX is "../x"; it must be a name of'),
        ({"LORA_RNK": 8}, "LORA_RNK is not a setting; did you mean LORA_RANK?"),
        ({"HUE_OF_IT": 8}, "HUE_OF_IT is not a setting; config.py of `tinkersmith init` has all"),
        ({"lora_rank": 8}, "lora_rank is not a setting; write LORA_RANK."),
        (
            {"TINKER_API_KEY": "tml-x"},
            "TINKER_API_KEY is not a setting. Set it in the environment, where it is not saved "
            'with the run: export TINKER_API_KEY="..."',
        ),
        ({"ADAM_BETAS": [0.9]}, "ADAM_BETAS is [0.9]; it must be a list of two numbers from 0 to"),
        ({"ADAM_BETAS": [0.9, 1]}, "ADAM_BETAS is [0.9, 1.0]; it must be two numbers from 0 to"),
        ({"ADAM_BETAS": [0.9, "b"]}, 'ADAM_BETAS[1] is "b"; it must be a number from 0 to below'),
        ({"ADAM_BETAS": 0.9}, "ADAM_BETAS is 0.9; it must be a list of two numbers from 0 to"),
        (
            {"TRAIN_ATTN": False, "TRAIN_MLP": False, "TRAIN_UNEMBED": "no"},
            'TRAIN_ATTN and TRAIN_MLP are False and TRAIN_UNEMBED is "no": nothing would train.',
        ),
        (
            {"OPTIMIZER": "dimuon", "WEIGHT_DECAY": 0.1},
            'WEIGHT_DECAY is 0.1, which only AdamW has, and OPTIMIZER is "dimuon". Remove one of',
        ),
        ({"TRAIN_UNEMBED": True}, 'TRAIN_UNEMBED is True; it must be one of "auto", "yes", "no".'),
        ({"INITIAL_OPTIMIZER": True}, "INITIAL_OPTIMIZER is True, but INITIAL_CHECKPOINT names no"),
        ({"EVAL_EVERY": 5}, "EVAL_EVERY is 5, but nothing is measured during training. Set VALID"),
        ({"PATIENCE": 2}, "PATIENCE is 2, but nothing is measured during training. Set VALIDATION"),
        ({"EVAL_LIMIT": 50}, "EVAL_LIMIT is 50, but EVAL_FILES names no questions. Set EVAL_FILES"),
        (
            {"EVAL_FILES": {"a.json": 1.0}},
            'EVAL_FILES is {"a.json": 1.0}; it takes no weights, since each sample is measured',
        ),
        ({"EVAL_FILES": ["a.json", 7]}, "EVAL_FILES[1] is 7; it must be the name of a file."),
        (
            {"EVAL_FILES": ["a.json"], "BEST_BY": "validation_loss"},
            'BEST_BY is "validation_loss", but there is no validation data to measure.',
        ),
        (
            {"VALIDATION_RATIO": 0.1, "BEST_BY": "final_answer"},
            'BEST_BY is "final_answer", which is measured on EVAL_FILES, and EVAL_FILES names no',
        ),
        (
            {"EVAL_FILES": ["a.json"], "BEST_BY": "final_anser"},
            'BEST_BY is "final_anser", which nothing measures; did you mean "final_answer"?',
        ),
        ({"BEST_BY": ""}, 'BEST_BY is ""; it must be "auto", "validation_loss" or the name of a'),
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
        ("LORA_RNK = 8\n", "config.py, line 1: LORA_RNK is not a setting"),
        (
            "TINKER_API_KEY = 'tml-x'\n",
            "config.py, line 1: TINKER_API_KEY is not a setting. Set it in the",
        ),
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


def test_a_config_file_that_sets_nothing_has_the_defaults(tmp_path: Path) -> None:
    assert load_settings(write_config(tmp_path, "# LORA_RANK = 8\n")).lora_rank == 16


# ---- names of files


FILES = """
DATA_FILES = ["train.json", "more.json", "/else/where.json"]
VALIDATION_FILES = ["sub/check.json"]
EVAL_FILES = ["sub/ask.json", "more.json"]
OUTPUT_DIR = "my runs"
BASE_MODEL = "models/small"
"""


def names(settings: Settings) -> tuple[list[str], list[str], str, str]:
    return (
        settings.training_files,
        settings.validation_files,
        settings.output_dir,
        settings.base_model,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "more.json").write_text("[]")
    (folder / "models" / "small").mkdir(parents=True)
    (folder / "models" / "small" / "config.json").write_text("{}")
    write_config(folder, FILES)
    return folder


def test_names_in_a_settings_file_start_from_its_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    assert names(load_settings("project/config.py")) == (
        ["project/train.json", "project/data/more.json", "/else/where.json"],
        ["project/sub/check.json"],
        "project/my runs",
        "./project/models/small",
    )
    asked = load_settings("project/config.py").eval_files
    assert asked == ["project/sub/ask.json", "project/data/more.json"]
    monkeypatch.chdir("/")
    here = project.relative_to("/")
    assert load_settings(project / "config.py").output_dir == str(here / "my runs")
    monkeypatch.chdir(project / "models")
    assert load_settings("../config.py").output_dir == str(project / "my runs")


def test_names_stay_as_they_are_written_in_the_folder_of_the_settings_file(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for config in ("config.py", project / "config.py", "../project/config.py"):
        assert names(load_settings(config)) == (
            ["train.json", "more.json", "/else/where.json"],
            ["sub/check.json"],
            "my runs",
            "models/small",
        )


def test_names_on_the_command_line_start_from_the_current_folder(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    overrides = ["DATA_FILES=train.json", "output_dir=runs", "BASE_MODEL=./small"]
    assert names(load_settings("project/config.py", overrides)) == (
        ["train.json"],
        ["project/sub/check.json"],
        "runs",
        "./small",
    )


def test_a_name_that_a_settings_file_leaves_out_starts_from_its_folder_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(project, "BASE_MODEL = 'Qwen/Qwen3-8B'\n")
    monkeypatch.chdir(project.parent)
    settings = load_settings("project/config.py")
    assert settings.data_files == ["project/data/train_set.json"]
    assert settings.output_dir == "project/runs"
    assert settings.base_model == "Qwen/Qwen3-8B"  # a name, where no such folder is


def test_settings_come_back_from_a_file_after_the_project_has_moved(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    run = project / "my runs" / "model-1"
    run.mkdir(parents=True)
    (project / "train.json").write_text("[]")
    settings = load_settings("config.py")
    written = settings_for_file(settings, run)
    back = settings_from(written, folder=run)
    assert back.data_files == ["train.json", "data/more.json", "/else/where.json"]
    assert back.eval_files == ["sub/ask.json", "data/more.json"]
    places = {"data_files": back.data_files, "eval_files": back.eval_files}
    assert back == settings.model_copy(update={**places, "base_model": "./models/small"})
    moved = project.rename(project.parent / "elsewhere")
    monkeypatch.chdir(moved.parent)
    assert names(settings_from(written, folder=moved / "my runs" / "model-1")) == (
        ["elsewhere/train.json", "elsewhere/data/more.json", "/else/where.json"],
        ["elsewhere/sub/check.json"],
        "elsewhere/my runs",
        "./elsewhere/models/small",
    )


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 1


def test_the_table_has_one_row_per_setting_with_its_default() -> None:
    rows = settings_table().splitlines()[2:]
    assert [row.split("`")[1].lower() for row in rows] == list(FIELDS)
    assert all(row.count(" | ") == 3 for row in rows)
    (rate,) = [row for row in rows if "`LEARNING_RATE`" in row]
    assert "| `5e-3` |" in rate and "above 0 and at most 1" in rate


def test_a_model_that_users_call_by_half_its_name_is_resolved_and_said() -> None:
    name, said = resolve_base_model("Qwen/Qwen3.8-27B-Instruct")
    assert name == "Qwen/Qwen3.8-27B"
    assert said is not None and name in said
    assert resolve_base_model("Qwen/Qwen3-8B") == ("Qwen/Qwen3-8B", None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xca\x0d\x0d\x0a\0\0", "is not plain text in UTF-8: there is a NUL at byte 4"),
        ("LORA_RANK = 8\n".encode("utf-16"), "is in UTF-16. Save it as UTF-8"),
        (b"LORA_RANK = 8\n# caf\xe9\n", "line 2: the byte 0xE9 is not utf-8"),
        (b"# -*- coding: nonsense -*-\n", "unknown encoding"),
        (b"raise BaseException('no')\n", r"line 1: BaseException: no\. Fix that line"),
        (b"raise Exception('a\\nb')\n", r"line 1: Exception: a b\. Fix that line"),
        (b"class E(Exception):\n  __str__ = None\nraise E\n", r"line 3: E\. Fix that line"),
        (b"LORA_RANK = 1 << 20000\n", "LORA_RANK is a value of the type int; it must be"),
        (b"a = []\na.append(a)\nDATA_FILES = a\n", r"DATA_FILES\[0\] is \[+\.\.\.|a value of"),
        (b"OUTPUT_DIR = 'a\\0b'\n", r'OUTPUT_DIR is "a\\x00b"; it contains a NUL'),
        (b"BASE_MODEL = 'x' * 300\n", "BASE_MODEL is .*; it is too long for a file's name"),
    ],
)
def test_a_settings_file_that_is_no_settings_file_is_one_sentence(
    tmp_path: Path, content: bytes, words: str
) -> None:
    file = tmp_path / "config.py"
    file.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load_settings(file)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_what_is_no_regular_settings_file_is_told_and_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "config.py"
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"config\.py cannot be read: it is a named pipe"):
        load_settings(file)
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"config\.py cannot be read: it is a folder"):
        load_settings(file)
    file.rmdir()
    file.symlink_to("nowhere.py")
    with pytest.raises(UserError, match=r"is a link to a file that does not exist"):
        load_settings(file)


@pytest.mark.parametrize("name", ["SAVE_EVERY", "EVAL_EVERY", "KEEP_LAST"])
def test_a_number_that_no_file_can_hold_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} is .*must be between 0 and 1000000000"):
        settings_from({name: 1 << 20000})
