"""Run folders: what survives a kill, how runs are found again, what damaged ones lead to."""

import json
import os
import re
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import (
    DELETED_CHECKPOINTS_FILE,
    IMPROVEMENT_FACT,
    REQUESTS_FILE,
    SAMPLES_FILE,
    Checkpoint,
    RunFolder,
    all_runs,
    lost_lines,
    newest_run,
    open_run,
    run_of,
)
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer

NOON = datetime(2026, 1, 31, 12, 0, 0)


def checkpoint(step: int, client: str = "abc:train:0") -> Checkpoint:
    name = f"step-{step}"
    return Checkpoint(
        name=name,
        step=step,
        epoch=0,
        state_path=f"tinker://{client}/weights/{name}",
        sampler_path=f"tinker://{client}/sampler_weights/{name}",
    )


def run_with_facts(output_dir: Path, prefix: str = "model", age: int = 0) -> RunFolder:
    """A run that is `age` seconds old."""
    make_tiny_tokenizer(output_dir / "tokenizer")
    tokenizer = load_tokenizer(output_dir / "tokenizer")
    template = choose_template("instruction", tokenizer, "some/model")
    run = RunFolder.create(output_dir / "runs", prefix, NOON)
    settings = settings_from({"LORA_RANK": 4, "OUTPUT_DIR": str(output_dir / "runs")})
    run.write_facts(settings, template, base_model="some/model", backend="embedded")
    written = NOON.timestamp() - age
    os.utime(run.path / "settings.json", (written, written))
    return run


def test_a_run_is_named_for_its_model_and_time(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "deep" / "runs", "my-model", NOON)
    assert run.name == "my-model-20260131-120000"
    assert run.path.is_dir()


def test_two_runs_of_one_second_get_two_folders(tmp_path: Path) -> None:
    first, second = (RunFolder.create(tmp_path, "my-model", NOON) for _ in range(2))
    assert first.path != second.path
    assert second.path.is_dir()


def test_folders_that_a_kill_left_half_made_go_and_nothing_else_does(tmp_path: Path) -> None:
    def half_made(name: str, *files: str, age: float = 7200) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_text("{}")
        then = time.time() - age
        os.utime(folder, (then, then))
        return folder

    left = half_made(".my-model-20260101-120000.abcdef12.tmp", ".settings.json.x.tmp")
    empty = half_made(".my-model-20260101-120000-2.abc_ef12.tmp")
    kept = [
        half_made(".my-model-20260101-120001.abcdef12.tmp", "settings.json", age=60),
        half_made(".my-model-20260101-120000.abcdef13.tmp", "settings.json", "checkpoints.jsonl"),
        half_made(".notes.tmp", "settings.json"),
        half_made(".engine"),
    ]
    RunFolder.create(tmp_path, "my-model", datetime.now())
    assert not left.exists() and not empty.exists()
    assert all(folder.exists() for folder in kept)


def test_an_output_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR"):
        RunFolder.create(tmp_path / "taken", "my-model", NOON)


def test_the_facts_come_back_as_they_were(tmp_path: Path) -> None:
    run = run_with_facts(tmp_path)
    assert run.settings() == settings_from({"LORA_RANK": 4, "OUTPUT_DIR": str(tmp_path / "runs")})
    assert run.base_model() == "some/model"
    assert run.facts()["backend"] == "embedded"
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    assert run.template() == choose_template("instruction", tokenizer, "some/model")


@pytest.mark.parametrize(
    ("text", "named"),
    [(None, "settings.json"), ("{", "settings.json"), ("[]", "settings.json")],
    ids=["missing", "cut short", "an array"],
)
def test_facts_that_cannot_be_read_are_a_sentence(
    tmp_path: Path, text: str | None, named: str
) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    if text is not None:
        (run.path / "settings.json").write_text(text)
    with pytest.raises(UserError, match=named):
        run.settings()


# ---- appended lines


def test_lines_come_back_in_order_with_any_text(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    records = [
        {"step": 1, "text": 'two\nlines, "quotes", 中文 and 😀'},
        {"step": 2, "text": "ends of line in Unicode: \u2028 \u2029 \x85 \x0b \x0c \x1c"},
        {"step": 3, "loss": 1e-30},
    ]
    run.append("metrics.jsonl", records[:1])
    run.append("metrics.jsonl", records[1:])
    assert run.lines("metrics.jsonl") == records
    run.rewrite("metrics.jsonl", records[1:])
    assert run.lines("metrics.jsonl") == records[1:]


def test_a_file_that_is_not_there_has_no_lines(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    assert run.lines("metrics.jsonl") == []
    assert run.checkpoints() == []


@pytest.mark.parametrize("kept", range(0, 25, 4))
def test_a_last_line_that_a_kill_cut_short_does_not_count(tmp_path: Path, kept: int) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    run.append("metrics.jsonl", [{"step": 1, "loss": 2.5}])
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "loss": 1.25})[:kept])
    assert run.lines("metrics.jsonl") == [{"step": 1, "loss": 2.5}]


def test_what_is_appended_after_a_line_cut_short_is_not_lost(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    run.append("checkpoints.jsonl", [{"step": 1}])
    with (run.path / "checkpoints.jsonl").open("a") as file:
        file.write('{"step": 2, "na')
    run.append("checkpoints.jsonl", [{"step": 3}])
    assert run.lines("checkpoints.jsonl") == [{"step": 1}, {"step": 3}]


def test_a_damaged_line_in_the_middle_is_named_and_not_taken_for_the_end(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        run.lines("metrics.jsonl")


def test_appended_lines_survive_a_kill(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from tinkersmith.runs.folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]))\n"
        "for step in range(5): run.append('metrics.jsonl', [{'step': step}])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)])
    assert [line["step"] for line in run.lines("metrics.jsonl")] == list(range(5))


def test_a_line_that_a_full_disk_refuses_leaves_the_file_usable(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands in for a full disk: the write is cut short, then refused."""
    run = RunFolder.create(tmp_path, "my-model", NOON)
    run.append("metrics.jsonl", [{"step": 1}])
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from tinkersmith.runs.folder import RunFolder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))\n"
        "try: RunFolder(Path(sys.argv[1])).append('metrics.jsonl', [{'text': 'x' * 50}])\n"
        "except OSError: sys.exit(7)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    ended = subprocess.run([sys.executable, "-c", code, str(run.path)])
    assert ended.returncode == 7
    run.append("metrics.jsonl", [{"step": 2}])
    assert run.lines("metrics.jsonl") == [{"step": 1}, {"step": 2}]


# ---- finding runs again


def test_checkpoints_come_back_oldest_first(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "my-model", NOON)
    for step in (10, 20):
        run.add_checkpoint(checkpoint(step))
    assert run.checkpoints() == [checkpoint(10), checkpoint(20)]


def test_the_newest_run_must_have_saved_something_and_else_another_is_named(
    tmp_path: Path,
) -> None:
    old, middle, empty = (
        run_with_facts(tmp_path, prefix, age)
        for prefix, age in (("z-old", 30), ("a-middle", 20), ("m-empty", 10))
    )
    for run in (old, middle):
        run.add_checkpoint(checkpoint(1))
    with pytest.raises(UserError, match="has no checkpoint") as refusal:
        newest_run(tmp_path / "runs")
    assert empty.name in str(refusal.value) and middle.name in str(refusal.value)
    empty.add_checkpoint(checkpoint(1))
    assert newest_run(tmp_path / "runs") == empty
    assert [run.name for run in all_runs(tmp_path / "runs")] == [
        run.name for run in (empty, middle, old)
    ]


def test_no_run_at_all_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "not-there"):
        with pytest.raises(UserError, match=r"tinkersmith train --set OUTPUT_DIR="):
            newest_run(folder)


def test_a_run_opens_by_name_and_by_folder_and_not_otherwise(tmp_path: Path) -> None:
    run = run_with_facts(tmp_path)
    assert open_run(run.name, tmp_path / "runs").path == run.path
    assert open_run(str(run.path), tmp_path / "elsewhere").path == run.path
    with pytest.raises(UserError) as caught:
        open_run("modle-20260131-120000", tmp_path / "runs")
    assert "modle-20260131-120000" in str(caught.value)
    assert run.name in str(caught.value)


def test_a_tinker_path_leads_to_its_run_and_checkpoint(tmp_path: Path) -> None:
    first, second = (run_with_facts(tmp_path, prefix) for prefix in ("one", "two"))
    first.add_checkpoint(checkpoint(1, "abc:train:0"))
    for step in (1, 2):
        second.add_checkpoint(checkpoint(step, "def:train:0"))
    wanted = checkpoint(2, "def:train:0")
    for path in (wanted.state_path, wanted.sampler_path):
        assert run_of(path, tmp_path / "runs") == (second, wanted)
    assert run_of("tinker://nobody:train:0/weights/x", tmp_path / "runs") is None
    assert run_of(wanted.state_path, tmp_path / "not-there") is None


# ---- names of files


def test_a_run_finds_its_files_again_from_another_folder_and_after_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    make_tiny_tokenizer(project / "tokenizer")
    template = choose_template("instruction", load_tokenizer(project / "tokenizer"), "some/model")
    run = RunFolder.create("runs", "model", NOON)
    run.write_facts(settings_from({"DATA_FILES": "a.json"}), template, base_model="some/model")
    assert (run.settings().data_files, run.settings().output_dir) == (["a.json"], "runs")
    monkeypatch.chdir(tmp_path)
    moved = RunFolder(project.rename(tmp_path / "moved") / run.path)
    assert moved.settings().data_files == ["moved/a.json"]
    assert moved.settings().output_dir == "moved/runs"


def test_the_names_of_a_run_of_version_0_1_start_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_with_facts(tmp_path)
    facts = run.facts()
    del facts["relative_names_start_from"]
    facts["settings"]["DATA_FILES"] = ["data/a.json"]
    (run.path / "settings.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path)
    assert run.settings().data_files == ["data/a.json"]


def written(run: RunFolder, *changes: tuple[int, dict[str, object]]) -> None:
    """Three checkpoints, with changed fields in some lines; None removes a field."""
    lines = [json.loads(json.dumps(asdict(checkpoint(step)))) for step in (1, 2, 3)]
    for place, fields in changes:
        lines[place] |= fields
    text = "".join(
        json.dumps({name: value for name, value in line.items() if value != "gone"}) + "\n"
        for line in lines
    )
    run.file("checkpoints.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"step": "gone"}, '"step" is missing'),
        ({"step": "2"}, '"step" is "2"; it must be a whole number of at least 0'),
        ({"step": float("nan")}, '"step" is the number nan; it must be a whole number'),
        ({"step": True}, '"step" is true; it must be a whole number'),
        ({"step": 0}, "its step 0 comes after step 1"),
        ({"epoch": None}, '"epoch" is null; it must be a whole number'),
        ({"name": ""}, '"name" is ""; it must be a string that is not empty'),
        (
            {"state_path": "/etc/passwd"},
            '"state_path" is "/etc/passwd"; it must be a tinker:// path',
        ),
        (
            {"sampler_path": "tinker://a\nb"},
            '"sampler_path" is "tinker://a.nb"; it must be a tinker',
        ),
        ({"state_deleted": 1}, '"state_deleted" is the number 1; it must be true or false'),
    ],
)
def test_a_checkpoint_with_odd_fields_is_named_with_line_and_field(
    tmp_path: Path, fields: dict[str, object], reason: str
) -> None:
    run = run_with_facts(tmp_path)
    written(run, (1, fields))
    place = re.escape(f"{run.file('checkpoints.jsonl')}, line 2 is damaged: ")
    with pytest.raises(UserError, match=f"{place}{reason}.*Remove that line"):
        run.checkpoints()


@pytest.mark.parametrize("line", ["7", "[1]", "null", '"x"', "true"])
def test_a_line_that_is_no_object_is_damaged(tmp_path: Path, line: str) -> None:
    run = run_with_facts(tmp_path)
    written(run)
    file = run.file("checkpoints.jsonl")
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"line 4 is damaged: it is .* instead of an object"):
        run.checkpoints()


def test_fields_of_a_newer_version_and_lines_that_are_there_twice_do_no_harm(
    tmp_path: Path,
) -> None:
    run = run_with_facts(tmp_path)
    written(run, (0, {"state_deleted": True}), (1, {"colour": "red"}))
    file = run.file("checkpoints.jsonl")
    file.write_text(file.read_text() + file.read_text().splitlines(keepends=True)[-1])
    assert [(saved.step, saved.state_deleted) for saved in run.checkpoints()] == [
        (1, True),
        (2, False),
        (3, False),
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"loss": 1.0}, '"step" is missing'),
        ({"step": 1, "loss": 1.0, "epoch": 1}, '"completion_tokens" is missing'),
        ({"step": 1, "validation_loss": None}, '"validation_loss" is null; it must be a number'),
    ],
)
def test_metrics_whose_numbers_are_none_are_named(
    tmp_path: Path, record: dict[str, object], reason: str
) -> None:
    run = run_with_facts(tmp_path)
    run.append("metrics.jsonl", [{"step": 1, "epoch_loss": float("nan")}, record])
    with pytest.raises(UserError, match=rf"metrics.jsonl, line 2 is damaged: {reason}"):
        run.metrics()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"settings": []}, '"settings" is a list; it must be an object'),
        ({"settings": {"LORA_RANK": None}}, "LORA_RANK is None; it must be a whole number"),
        ({"settings": {"SHINE": 1}}, "has the setting 'SHINE', which Tinkersmith .* does not know"),
        ({"prompt_template": {"kind": "text"}}, 'The stored prompt template .*"name" is missing'),
        (
            {"relative_names_start_from": "\ud800"},
            '"relative_names_start_from" is .*; it must be the name of a folder',
        ),
        ({"base_model": 3}, '"base_model" is the number 3; it must be a string'),
        ({"total_steps": float("inf")}, '"total_steps" is the number inf; it must be a whole'),
        ({"data_digest": ""}, '"data_digest" is ""; it must be a string that is not empty'),
        ({"sessions": [{}, 3]}, '"sessions" is a list; it must be a list of objects'),
        ({"relative_names_start_from": None}, '"relative_names_start_from" is null'),
    ],
)
def test_facts_of_wrong_types_are_named(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    run = run_with_facts(tmp_path)
    file = run.file("settings.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError, match=f"settings.json.*{reason}") as caught:
        run.settings()
        run.template()
    assert "backup, or start a new run." in str(caught.value)


def test_a_fact_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'settings.json is damaged: "data_digest" is missing'):
        run_with_facts(tmp_path).fact("data_digest")


def test_a_damaged_run_does_not_stand_before_the_others(tmp_path: Path) -> None:
    good, bad = run_with_facts(tmp_path, age=100), run_with_facts(tmp_path, "bad")
    good.add_checkpoint(checkpoint(5))
    bad.file("checkpoints.jsonl").write_text("7\n")
    path = checkpoint(5).state_path
    assert run_of(path, tmp_path / "runs") == (good, checkpoint(5))
    with pytest.raises(UserError, match=r"bad-.*checkpoints.jsonl, line 1 is damaged"):
        run_of("tinker://other:train:0/weights/x", tmp_path / "runs")


def test_a_pipe_in_place_of_a_file_of_a_run_is_not_waited_for(tmp_path: Path) -> None:
    run = run_with_facts(tmp_path)
    for name in ("settings.json", "checkpoints.jsonl", "metrics.jsonl"):
        run.file(name).unlink(missing_ok=True)
        os.mkfifo(run.file(name))
        with pytest.raises(UserError, match=f"{name} cannot be read: it is a named pipe"):
            (run.facts if name == "settings.json" else lambda name=name: run.lines(name))()


def test_a_run_that_lost_its_settings_is_named_with_what_is_left_of_it(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    sound = run_with_facts(tmp_path, "sound", age=9)
    sound.add_checkpoint(checkpoint(3, "sound:train:0"))
    lost = run_with_facts(tmp_path, "lost")
    lost.append(REQUESTS_FILE, [{"step": 1}])
    lost.file("settings.json").unlink()
    assert [run.name for run in all_runs(runs)] == [lost.name, sound.name]
    for opened in (open_run(lost.name, runs), open_run(str(lost.path), runs)):
        with pytest.raises(UserError, match=r"has lost its settings\.json\. .* or start a"):
            opened.settings()
    lost.add_checkpoint(checkpoint(5, "lost:train:0"))
    last = checkpoint(5, "lost:train:0").sampler_path
    with pytest.raises(UserError, match=f"or use its last checkpoint by its path, {last}$"):
        newest_run(runs).base_model()  # no older run is taken in its place, silently
    assert run_of(last, runs) is None, "the path is used as that of any model without a run"
    assert run_of(checkpoint(3, "sound:train:0").sampler_path, runs) is not None


def test_a_folder_of_another_kind_is_no_run(tmp_path: Path) -> None:
    other = tmp_path / "runs" / "other"
    other.mkdir(parents=True)
    (other / "metrics.jsonl").write_text("{}\n")  # other programs write such files
    (other / "checkpoints.jsonl").write_text("{}\n")
    assert all_runs(tmp_path / "runs") == []
    for name in ("other", str(other)):
        with pytest.raises(UserError, match=f"{other} is no run: a run is a folder with a setti"):
            open_run(name, tmp_path / "runs")


def test_lines_that_no_kill_loses_are_missed(tmp_path: Path) -> None:
    run = run_with_facts(tmp_path)
    assert lost_lines(run, run.metrics()) == []
    steps = [{"step": n, "loss": 1.0, "epoch": 1, "completion_tokens": 1} for n in range(1, 6)]
    run.append("metrics.jsonl", steps)
    run.add_checkpoint(checkpoint(4))
    assert lost_lines(run, run.metrics()) == []
    run.rewrite("metrics.jsonl", [*steps[:1], *steps[2:]])
    (said,) = lost_lines(run, run.metrics())
    assert said == (
        f"{run.file('metrics.jsonl')} has lost 1 step of the 4 before the last checkpoint."
    )
    run.rewrite("metrics.jsonl", [])
    assert "has lost 4 steps of the 4" in lost_lines(run, run.metrics())[0]
    run.file("checkpoints.jsonl").unlink()
    assert lost_lines(run, run.metrics()) == [], "it was stopped before it saved"
    run.file(SAMPLES_FILE).write_text("[]")
    assert "checkpoints.jsonl has lost its lines" in lost_lines(run, run.metrics())[0]
    run.file(DELETED_CHECKPOINTS_FILE).write_text("")
    assert lost_lines(run, run.metrics()) == []
    run.add_checkpoint(checkpoint(4))
    facts = {**run.facts(), IMPROVEMENT_FACT: {}}
    run.file("settings.json").write_text(json.dumps(facts))
    assert lost_lines(run, run.metrics()) == [], "a round of an improvement has one line"
