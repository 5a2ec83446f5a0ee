"""What the command train does when the run is finished."""

from pathlib import Path

import pytest

from tinkersmith.cli.training.train import offer_export, train_command
from tinkersmith.errors import UserError
from tinkersmith.export import export
from tinkersmith.settings.comparing import comparable_setting
from tinkersmith.settings.reading import settings_from

PATH = "tinker://run/weights/step-000400"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(143)])
def test_an_export_that_a_signal_ends_says_how_to_export_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ending: BaseException
) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise ending

    monkeypatch.setattr(export, "export_model", interrupted)
    with pytest.raises(type(ending)):
        offer_export("merged", PATH, settings_from({"OUTPUT_DIR": "elsewhere"}))
    said = capsys.readouterr().out
    assert "Stopped. The run is finished; export it with: " in said
    assert f"--model-path {PATH} --set OUTPUT_DIR=elsewhere" in said


def test_without_an_export_the_command_for_it_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    offer_export("no", PATH, settings_from({}), options=())
    assert capsys.readouterr().out.startswith("Export   ")


def test_a_resumed_run_compares_weights_and_files_wherever_they_are_named_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = settings_from({"DATA_FILES": {"a.jsonl": 2, "sub/b.jsonl": 0.5}})
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    there = settings_from({"DATA_FILES": {"../a.jsonl": 2, "b.jsonl": 0.5}})
    other = settings_from({"DATA_FILES": {"../a.jsonl": 1, "b.jsonl": 0.5}})
    plain = settings_from({"DATA_FILES": ["../a.jsonl", "b.jsonl"]})
    seen = [comparable_setting(settings, "data_files") for settings in (there, other, plain)]
    monkeypatch.chdir(tmp_path)
    assert comparable_setting(here, "data_files") == seen[0]
    assert comparable_setting(here, "data_files") not in seen[1:]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--dry-run", "--rehearse"], "--dry-run has no effect with --rehearse"),
        (["--rehearse", "--resume", "run"], "--rehearse has no effect with --resume"),
        (["--rehearse", "--rehearsal", "one"], "--rehearse has no effect with --rehearsal"),
        (["--rehearse", "--allow-changes"], "--rehearse has no effect with --allow-changes"),
        (["--dry-run", "--from", "step-000001"], "--dry-run has no effect with --from"),
        (["--dry-run", "--resume", "run"], "--dry-run has no effect with --resume"),
        (["--rehearsal", "none"], "There is no rehearsal none in runs/rehearsals"),
        (["--allow-changes"], "--allow-changes has no effect: no rehearsal has these settings"),
    ],
)
def test_options_without_effect_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.json").write_text('[{"instruction": "a", "output": "b"}]')
    with pytest.raises(UserError, match=sentence):
        train_command([*options, "--set", "DATA_FILES=train.json"], prog="train")
