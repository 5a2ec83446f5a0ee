"""Commands that only read data take the settings about reading, and no others."""

import json
from pathlib import Path

import pytest

from tinkersmith.cli.common import reading_settings
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError

RECORDS = [{"frage": f"q {number}", "antwort": "a"} for number in range(5)]
COLUMNS = 'COLUMNS={"instruction": "frage", "output": "antwort"}'


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.json").write_text(json.dumps(RECORDS))


@pytest.mark.parametrize("command", [["stats", "mine.json"], ["split", "--inputs", "mine.json"]])
@pytest.mark.parametrize("place", ["option", "config.py", "another file"])
def test_data_commands_take_columns_from_options_and_settings_files(
    command: list[str], place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = []
    if place == "option":
        options = ["--set", COLUMNS]
    elif place == "config.py":
        Path("config.py").write_text(COLUMNS)
    else:
        Path("other.py").write_text(COLUMNS)
        options = ["--config", "other.py"]
    assert main([*command, *options]) == 0
    assert "Read 5 samples from mine.json as the fields of COLUMNS" in capsys.readouterr().out


def test_a_setting_without_effect_on_a_data_command_is_refused() -> None:
    assert reading_settings("", [COLUMNS]).columns["output"] == "antwort"
    with pytest.raises(UserError, match=r"--set LORA_RANK has no effect .* COLUMNS and ENCODING"):
        reading_settings("", ["LORA_RANK=8"])
    with pytest.raises(UserError, match="LORA_RNK is not a setting; did you mean LORA_RANK"):
        reading_settings("", ["LORA_RNK=8"])
