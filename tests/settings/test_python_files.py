"""A config.py never ignores in silence what looks like a setting."""

from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.errors import UserError
from tinkersmith.settings.reading import load_settings


def load(tmp_path: Path, text: str, name: str = "config.py") -> object:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return load_settings(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("LOSS = 'ppo'\n", "line 1: LOSS is not a setting: samples with an expected answer can"),
        ("lora_alpha = 32\n", "line 1: lora_alpha is not a setting: a server of this API decides"),
        ("learning_rate = 1e-4\n", "line 1: learning_rate is not a setting; write LEARNING_RATE."),
        ("LORA_RANK = 8\nlora_rank = 4\n", "line 2: lora_rank is not a setting; write LORA_RANK."),
        ("Learning_Rate = 1e-4\n", "line 1: Learning_Rate is not a setting; write LEARNING_RATE."),
        ("learningRate = 1e-4\n", "learningRate is not a setting; write LEARNING_RATE."),
        ("lora_rnk = 8\n", "lora_rnk is not a setting; did you mean LORA_RANK?"),
        ("data_file = 'a.json'\n", "data_file is not a setting; did you mean DATA_FILES?"),
        ("if True:\n    epochs = 3\n", "line 2: epochs is not a setting; did you mean NUM_EPOCHS?"),
        ("lr: float = 1e-4\n", "lr is not a setting; did you mean LEARNING_RATE?"),
        ("a, seed = 1, 2\nSEED = a\n", "line 1: seed is not a setting; write SEED."),
        ("DATA_FILES = {'a': 1,\n'a': 2}\n", "line 2: DATA_FILES names a twice. Name it once."),
        ("w = {'a': 1, 'a': 2}\nDATA_FILES = w\n", "line 1: DATA_FILES names a twice."),
        ("COLUMNS: dict = {'output': 'a', \"output\": 'b'}\n", "COLUMNS names output twice."),
        ("if True:\n    DATA_FILES = {**{'a': 1, 'a': 2}}\n", "line 2: DATA_FILES names a twice"),
        ("tinker_api_key = 'k'\n", "Set TINKER_API_KEY in the environment"),
        ("API_KEY = 'k'\n", "API_KEY is not a setting. Set TINKER_API_KEY in the environment"),
        ("LORA_RANK: 8\n", "line 1: LORA_RANK: 8 sets nothing; a setting is written as LORA_RANK"),
        ("SEED = 1\nLORA_RANK == 8\n", "line 2: LORA_RANK == 8 sets nothing"),
        ('{"LORA_RANK": 8}\n', "line 1: {'LORA_RANK': 8} sets nothing"),
        ("class Run:\n    LORA_RANK = 8\n", "line 2: LORA_RANK inside the class Run has no effect"),
        ("run = {'LORA_RANK': 8}\n", "line 1: settings inside run have no effect"),
        ("import random as SEED\n", "SEED is <module 'random'"),
        ("LORA_RANK = 0\n", "config.py, line 1: LORA_RANK is 0; it must be between"),
        ("SEED = 1\nLORA_RANK = 8\nLORA_RANK = 'x'\n", "config.py, line 3: LORA_RANK is"),
        ("PROMPT_TEMPLATE = 'x'\n", 'config.py, line 1: PROMPT_TEMPLATE is "x"; it must be'),
        ("DATA_FILES = 'a.json, b.json'\n", 'Write a list of files: ["a.json", "b.json"]'),
        ("DATA_FILES:\n  - a.json\n", "config.py, line 1: invalid syntax. It looks like YAML"),
        ("[run]\nLORA_RANK = 8\n", "config.py, line 1: [run] sets nothing"),
    ],
)
def test_what_looks_like_a_setting_and_is_none_is_an_error(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value) and "'k'" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "seed = 4\nSEED = seed\n",
        "data_file = 'a.json'\nDATA_FILES = [data_file]\n",
        "from math import log as learning_rate\n",
        "size = 3\nnote = 'my own'\nhere = 1\n",
        "def learning_rate(): return 1e-4\nLEARNING_RATE = learning_rate()\n",
        "_seed = 1\n",
        "mine = {'a': 1, 'a': 2}\nprint(mine)\n",
        "usual = {'a': 1}\nDATA_FILES = {**usual, 'a': 2}\n",
        "for rank in (1, 2): LORA_RANK = rank\n",
        '"""A docstring."""\n"a comment"\n...\nprint("hello")\n',
        "import os\napi_key = 'x'\nos.environ['SOME_NAME_OF_A_TEST'] = api_key\n",
    ],
)
def test_names_of_the_users_own_are_left_alone(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_NAME_OF_A_TEST", "")
    load(tmp_path, text)


def test_nothing_runs_in_a_file_that_has_a_line_without_effect(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="sets nothing"):
        load(tmp_path, f"open({str(tmp_path / 'made')!r}, 'w')\nLORA_RANK: 8\n")
    assert not (tmp_path / "made").exists()


def test_a_script_with_its_settings_at_its_top_is_held_to_the_same(tmp_path: Path) -> None:
    script = (ROOT / "tinker_finetune.py").read_text(encoding="utf-8")
    changed = script.replace("LEARNING_RATE = 5e-3", "learning_rate = 1e-4")
    file = tmp_path / "tinker_finetune.py"
    file.write_text(changed, encoding="utf-8")
    import runpy

    namespace = runpy.run_path(str(file))
    from tinkersmith.settings.reading import settings_from

    with pytest.raises(UserError, match=r"line \d+: learning_rate is not a setting; write LEARN"):
        settings_from(namespace, where=str(file))
    file.write_text(script, encoding="utf-8")
    assert settings_from(runpy.run_path(str(file)), where=str(file)).learning_rate == 5e-3
