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


@pytest.mark.parametrize("command", [["stats", "mine.json"], ["split", "--inputs", "mine.json"]])
def test_thousands_of_bad_records_are_a_few_lines(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [{"instruction": "a", "input": 5, "output": "b"}] * 5000
    good = [{"instruction": f"q {number}", "output": "b"} for number in range(3)]
    Path("mine.json").write_text(json.dumps([*bad, *good]))
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) < 40
    [place] = [place for place, line in enumerate(lines) if line.startswith("Skipped 5,000 record")]
    assert lines[place + 1].endswith(
        'mine.json, record 1: "input" is the number 5; it must be a string. (5,000 records)'
    )
