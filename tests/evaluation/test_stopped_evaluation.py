"""Evaluations that are killed or interrupted, and go on where they stopped."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.evaluation_kills import stop_and_go_on
from tests.support.processes import PATIENCE, eventually
from tests.support.sample_files import write
from tests.support.small_run import SmallRun, small_run
from tinkersmith.errors import UserError
from tinkersmith.evaluation import evaluate as evaluate_module
from tinkersmith.evaluation.answers_file import AnswersFile, stored_answers, unfinished_file
from tinkersmith.evaluation.evaluate import evaluate
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.spelling import override_text

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]
SUMS = [
    {"instruction": "Add.", "input": f"{n} + {n}", "output": f"Answer: {2 * n}"}
    for n in range(40, 100)
]


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.mark.long
def test_a_killed_evaluation_comes_to_the_same_result_and_asks_nothing_again(tmp_path: Path):
    trials = stop_and_go_on(tmp_path, 2, 7, questions=60, second_stops=0)
    assert [trial.broken for trial in trials] == [[], []]
    assert sum(len(trial.stops) for trial in trials) >= 2
    assert sum(trial.answered_before for trial in trials) > 10


class Stopped(Exception):
    """Ends an evaluation in the middle."""


def stop(*_: Any) -> None:
    raise Stopped


def stopped_after(count: int, settings: Settings, **options: Any) -> None:
    """An evaluation that ends when the answers to so many questions are on disk."""
    real, added = AnswersFile.add, 0

    def add(file: AnswersFile, *arguments: Any) -> None:
        nonlocal added
        if added == count:
            raise Stopped
        real(file, *arguments)
        added += 1

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(AnswersFile, "add", add)
        evaluate(settings, say=lambda line: None, **options)


def test_ctrl_c_prints_the_command_that_goes_on_and_the_command_works(
    small: SmallRun, tmp_path: Path
):
    write(tmp_path / "test.json", SUMS)
    folder = override_text("output_dir", small.settings.output_dir)
    words = ["evaluate", "--test-data", "test.json", "--set", folder]
    words += ["--set", "SAMPLING_MAX_TOKENS=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tinkersmith", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    file = tmp_path / "evaluation_results.unfinished.jsonl"
    assert eventually(lambda: file.exists() and file.read_bytes().count(b"\n") > 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in output
    match = re.search(
        r"Stopped\. (\d+) answers? to 60 questions (?:is|are) in \S+\. Go on with: (.*)", output
    )
    assert match, output
    assert int(match[1]) >= 3
    going_on = subprocess.run(
        shlex.split(match[2]), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert going_on.returncode == 0, going_on.stdout + going_on.stderr
    assert "Going on with" in going_on.stdout and "n = 60;" in going_on.stdout
    assert not file.exists() and (tmp_path / "evaluation_results.csv").exists()


def test_what_is_said_to_be_on_disk_is_what_a_stop_left_there(small: SmallRun, tmp_path: Path):
    """A signal may come when an answer is written and nothing has counted it."""
    write(tmp_path / "test.json", SUMS)
    real = AnswersFile.add

    def add(file: AnswersFile, *arguments: Any) -> None:
        real(file, *arguments)
        raise KeyboardInterrupt

    lines = list[str]()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(AnswersFile, "add", add)
        evaluate(
            small.settings,
            test_file=str(tmp_path / "test.json"),
            output_file=tmp_path / "out.json",
            say=lines.append,
        )
    stored = stored_answers(unfinished_file(tmp_path / "out.json"))
    assert stored is not None and stored.count > 0
    said = re.search(r"Stopped\. (\d+) answers? to 60 questions (?:is|are) in", "".join(lines))
    assert said is not None and int(said[1]) == stored.count


def test_answers_are_never_mixed_with_those_of_other_settings(small: SmallRun, tmp_path: Path):
    write(tmp_path / "test.json", SUMS)
    output = tmp_path / "out.json"
    options: dict[str, Any] = {"test_file": str(tmp_path / "test.json"), "output_file": output}
    stopped_after(5, small.settings, **options)
    file = unfinished_file(output)
    content = file.read_bytes()

    def refused(settings: dict[str, Any], **changes: Any) -> str:
        wanted = small.settings.model_copy(update=settings)
        with pytest.raises(UserError) as caught:
            evaluate(wanted, say=lambda line: None, **{**options, "resume": True, **changes})
        assert file.read_bytes() == content
        return str(caught.value)

    assert "holds" in refused({}, resume=False) and "--resume" in refused({}, resume=False)
    assert "SAMPLING_MAX_TOKENS is 9; it was 24" in refused({"sampling_max_tokens": 9})
    assert "SEED is 77; it was" in refused({"seed": 77})
    assert "--limit is 3; it was 0" in refused({}, limit=3)
    assert "--compare-base is True; it was False" in refused({}, compare_base=True)
    write(tmp_path / "test.json", SUMS[1:])
    assert "the test questions changed" in refused({})
    write(tmp_path / "test.json", SUMS)
    said: list[str] = []
    result = evaluate(small.settings, say=said.append, resume=True, **options)
    assert len(result.trained.records) == 60 and not file.exists()
    assert any(line.startswith("Going on with") for line in said)
    with pytest.raises(UserError, match="--resume has no effect: no evaluation was stopped"):
        evaluate(small.settings, say=said.append, resume=True, **options)


def test_a_question_without_all_its_draws_is_asked_again(small: SmallRun, tmp_path: Path):
    write(tmp_path / "test.json", SUMS)
    settings = small.settings.model_copy(
        update={"sampling_temperature": 1.0, "sampling_num_samples": 3}
    )
    options: dict[str, Any] = {"test_file": str(tmp_path / "test.json")}
    whole = evaluate(settings, say=lambda line: None, output_file=tmp_path / "1.json", **options)
    output = tmp_path / "2.json"
    stopped_after(2, settings, output_file=output, **options)
    file = unfinished_file(output)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:3], lines[3][:20]]))  # a kill within the first question
    result = evaluate(settings, say=lambda line: None, output_file=output, resume=True, **options)
    assert result.trained.records == whole.trained.records


def test_the_results_are_written_although_every_answer_is_known(small: SmallRun, tmp_path: Path):
    write(tmp_path / "test.json", [*SUMS[:7], SUMS[0]])  # the last one is asked already
    output = tmp_path / "out.json"
    options: dict[str, Any] = {"test_file": str(tmp_path / "test.json"), "output_file": output}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(evaluate_module, "write_results", stop)
        evaluate(small.settings, say=lambda line: None, **options)
    before = stored_answers(unfinished_file(output))
    assert before is not None and before.count == 7
    result = evaluate(small.settings, say=lambda line: None, resume=True, **options)
    assert len(result.trained.records) == 8 and output.exists()
    assert result.trained.seconds >= before.seconds["trained"]
