"""A run sends what its rehearsal sent, says so, and stops before it sends something else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.rehearsals import SETTINGS, World, compared, world
from tests.support.engine import KEY
from tests.support.recording import recorded_server, recorded_stand_in
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import REHEARSAL_FILE, REQUESTS_FILE, RunFolder, all_runs, newest_run
from tinkersmith.runs.rehearsals import Rehearsal, all_rehearsals
from tinkersmith.settings.fields import Settings
from tinkersmith.text import tokenizer
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.rehearsal.rehearse import rehearse
from tinkersmith.training.train import train

pytestmark = pytest.mark.engine

_SHORT = ("last answers of conversations", "validation and questions")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("rehearsals")) as made:
        yield made


def changed(settings: Settings, **names: Any) -> Settings:
    return settings.model_copy(update={name.lower(): value for name, value in names.items()})


@pytest.fixture
def settings(place: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with a data file and an OUTPUT_DIR of their own, and the server to train on."""
    monkeypatch.setenv("TINKER_API_KEY", KEY)
    monkeypatch.setenv("TINKER_BASE_URL", place.engine.url)
    data = tmp_path / "alpaca.json"
    data.write_bytes((place.folder / "alpaca.json").read_bytes())
    alike, _, _ = place.settings("Alpaca records")
    return changed(alike, DATA_FILES=[str(data)], OUTPUT_DIR=str(tmp_path / "runs"))


@pytest.fixture
def rehearsal(place: World, settings: Settings) -> Rehearsal:
    with recorded_stand_in(place.engine):
        return rehearse(settings, Interruption())


@pytest.mark.parametrize("name", _SHORT)
def test_a_run_sends_what_was_rehearsed_byte_for_byte(place: World, name: str) -> None:
    assert compared(place, name, starts=False) == []


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in SETTINGS if name not in _SHORT])
def test_a_run_of_any_settings_sends_what_was_rehearsed(place: World, name: str) -> None:
    if not place.state:  # that of another run, to start from
        assert compared(place, _SHORT[0], starts=False) == []
    assert compared(place, name) == []


def test_changed_data_is_named_before_anything_is_sent(
    place: World, settings: Settings, rehearsal: Rehearsal
) -> None:
    file = Path(settings.training_files[0])
    records = json.loads(file.read_text())
    records[6]["output"] += " more"
    file.write_text(json.dumps(records))
    with (
        recorded_server(place.engine.url, KEY) as sent,
        pytest.raises(UserError) as refused,
    ):
        train(settings)
    text = str(refused.value)
    assert f"{file} has changed since" in text and "record 7" in text
    assert rehearsal.name in text and "--allow-changes" in text
    assert sent.training() == [] and all_runs(settings.output_dir) == []


def test_a_named_rehearsal_of_other_settings_stops_the_run_until_that_is_allowed(
    settings: Settings, rehearsal: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(settings, LEARNING_RATE=0.125)
    with pytest.raises(UserError, match=r"LEARNING_RATE is 0\.125"):
        train(other, rehearsal=rehearsal.name)
    assert all_runs(settings.output_dir) == []
    with train(other, rehearsal=str(rehearsal.path), allow_changes=True) as trained:
        assert trained.run.checkpoints()
    said = capsys.readouterr().out
    assert "Warning" in said and "differ from those of" in said


def test_without_a_name_a_rehearsal_of_other_settings_is_said_and_not_compared_with(
    settings: Settings, rehearsal: Rehearsal, capsys: pytest.CaptureFixture[str]
) -> None:
    with train(changed(settings, SEED=5)) as trained:
        assert "rehearsal" not in trained.run.facts()
    said = capsys.readouterr().out
    assert f"{rehearsal.name} is of other settings, and not compared with: SEED is 5" in said
    assert "not rehearsed" in said


def test_a_run_stops_before_the_first_other_request_and_goes_on_when_that_is_allowed(
    place: World, settings: Settings, rehearsal: Rehearsal
) -> None:
    lines = [json.loads(line) for line in (rehearsal.path / REQUESTS_FILE).open()]
    for line in lines:
        if (line["step"], line["kind"]) == (3, "forward_backward"):
            line["digest"] = "0" * 64
            line["samples"] = line["samples"][:8] + "0" * 8 + line["samples"][16:]
    RunFolder(rehearsal.path).rewrite(REQUESTS_FILE, lines)
    with (
        recorded_server(place.engine.url, KEY) as sent,
        pytest.raises(UserError) as refused,
    ):
        train(settings)
    text = str(refused.value)
    assert "sample 2 in step 3" in text and "2 steps are trained and saved" in text
    assert [kind for kind, _ in sent.training()] == ["forward_backward", "optim_step"] * 2
    run = newest_run(settings.output_dir)
    assert run.checkpoints()[-1].step == 2
    with pytest.raises(UserError, match="sample 2 in step 3"):
        train(settings, resume=run.name)
    with train(settings, resume=run.name, allow_changes=True) as trained:
        assert trained.run.checkpoints()[-1].step == 5
    assert "1 of them differ from those of" in run.file("train.log").read_text()


def test_a_run_that_does_steps_again_has_the_requests_of_an_unbroken_one(
    settings: Settings, rehearsal: Rehearsal
) -> None:
    often = changed(settings, SAVE_EVERY=2)
    with train(often) as trained:
        run = trained.run
    with train(often, resume=run.name, from_checkpoint="step-000002"):
        pass
    assert run.file(REQUESTS_FILE).read_bytes() == (rehearsal.path / REQUESTS_FILE).read_bytes()
    assert run.file("requests.before-resume-1.jsonl").is_file()
    assert run.file("train.log").read_text().count(f"equal those of {rehearsal.name}") == 2


def test_what_no_time_was_left_for_is_noted_all_the_same(
    place: World, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded_stand_in(place.engine) as sent:
        rehearsal = rehearse(settings, Interruption(), seconds=0.0)
    assert sent.training() == []
    assert rehearsal.facts()["trained_steps"] == 0
    assert max(line["step"] for line in rehearsal.lines()) == 5
    said = capsys.readouterr().out
    assert "0 of 5 steps" in said
    [command] = [line for line in said.splitlines() if line.startswith("Run it")]
    assert " - " not in command, "the line can be pasted as it is"


def test_a_stand_in_of_our_own_is_started_for_a_model_that_nobody_has_here(
    place: World,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("TINKER_API_KEY")
    monkeypatch.delenv("TINKER_BASE_URL")
    # The tokenizer at hand is smaller than that model's own.
    monkeypatch.setattr(tokenizer, "vocabulary_size", lambda name: None)
    large = changed(settings, BASE_MODEL="Qwen/Qwen3-8B", TOKENIZER=str(place.base))
    with recorded_stand_in() as sent:
        rehearsal = rehearse(large, Interruption())
    said = capsys.readouterr().out
    assert "Training the stand-in: " in said
    assert set(re.findall(r"rehearsal-\d{8}-\d{6}", said)) == {rehearsal.name}, "it has one name"
    facts = rehearsal.facts()
    assert (facts["base_model"], facts["max_context"]) == ("Qwen/Qwen3-8B", 32768)
    assert facts["trained_steps"] == facts["total_steps"] == 5
    assert len(sent.training()) == 10 and b"Qwen/Qwen3-8B" in sent.others("create_model")[0]
    assert all_rehearsals(large.output_dir) == [rehearsal]
    assert not (rehearsal.path / "settings.json").exists()
    assert {file.name for file in rehearsal.path.iterdir()} == {REHEARSAL_FILE, REQUESTS_FILE}


def test_minutes_cannot_be_rehearsed(settings: Settings) -> None:
    with pytest.raises(UserError, match="BUDGET_MINUTES = 3 cuts the plan"):
        rehearse(changed(settings, BUDGET_MINUTES=3.0), Interruption())
