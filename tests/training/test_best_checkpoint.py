"""The best checkpoint by the answers during training: kept, taken, and the same after any stop.

A small random model learns to say yes or no. Its score on nine questions goes up and down, so that
the best checkpoint is in the middle.
"""

import contextlib
import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import tinker

from tests.support.clocks import Lines
from tests.support.environment import without_cloud
from tests.support.paths import ROOT
from tests.support.processes import eventually
from tests.support.sample_files import write, yes_or_no
from tests.support.tiny_models import make_tiny_model
from tinkersmith.batches.length_report import LengthReport
from tinkersmith.cli.main import main
from tinkersmith.errors import UserError
from tinkersmith.progress import watched
from tinkersmith.runs.folder import RunFolder, newest_run
from tinkersmith.runs.resume import Resume
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.loop import Loop
from tinkersmith.training.plan import prepare
from tinkersmith.training.train import train

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]


@pytest.fixture(autouse=True, scope="module")
def _no_cloud() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, questions and a model."""
    folder = tmp_path_factory.mktemp("best")
    write(folder / "train.json", yes_or_no(40, seed=1))
    questions = yes_or_no(9, seed=2)
    questions[4]["instruction"] = yes_or_no(40, seed=1)[7]["instruction"]  # which is trained on
    write(folder / "ask.json", questions)
    make_tiny_model(folder / "model")
    return folder


def names(project: Path, runs: Path, **more: object) -> dict[str, object]:
    return {
        "DATA_FILES": [str(project / "train.json")],
        "EVAL_FILES": [str(project / "ask.json")],
        "EVAL_EVERY": 3,
        "BASE_MODEL": str(project / "model"),
        "OUTPUT_DIR": str(runs),
        "LORA_RANK": 4,
        "TRAIN_UNEMBED": "yes",  # without, the first measurement is the best
        "LEARNING_RATE": 0.02,
        "BATCH_SIZE": 2,
        "NUM_EPOCHS": 2,
        "SEED": 1,
        "KEEP_LAST": 1,
        "PROMPT_TEMPLATE": "instruction",
        "SAMPLING_MAX_TOKENS": 6,
        "EXPORT_AFTER_TRAINING": "no",
        "BACKEND": "local",
        **more,
    }


def curve(run: RunFolder) -> list[dict[str, Any]]:
    """All that was measured, without the times."""
    timed = ("tokens_per_second", "seconds", "eval/seconds")
    return [
        {name: value for name, value in line.items() if name not in timed}
        for line in run.lines("metrics.jsonl")
    ]


def scores(run: RunFolder) -> dict[int, float]:
    return {
        line["step"]: line["eval/final_answer"]
        for line in run.lines("metrics.jsonl")
        if "eval/n" in line
    }


def best(run: RunFolder) -> dict[str, Any]:
    return json.loads(run.file("best.json").read_text())


@dataclass
class Whole:
    """A run to its end, in which nothing was interrupted."""

    run: RunFolder
    sampler_path: str
    output: str
    curve: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole(project: Path) -> Whole:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        trained = train(settings_from(names(project, project / "runs")))
    trained.close()
    return Whole(trained.run, trained.sampler_path, output.getvalue(), curve(trained.run))


def test_the_best_checkpoint_is_kept_and_recorded_and_ties_go_to_the_earlier(whole: Whole) -> None:
    measured = scores(whole.run)
    assert list(measured) == [*range(3, 19, 3), 20, *range(21, 40, 3), 40]
    highest = max(measured.values())
    first = next(step for step, score in measured.items() if score == highest)
    assert list(measured.values()).count(highest) > 1, "there is no tie"
    assert first < 40, "the best is the last"
    record = best(whole.run)
    assert (record["checkpoint"], record["step"]) == (f"step-{first:06}", first)
    assert (record["by"], record["value"], record["n"]) == ("final_answer", highest, 9)
    (saved,) = [point for point in whole.run.checkpoints() if point.step == first]
    assert not saved.state_deleted and saved.sampler_path == whole.sampler_path
    # Each checkpoint that was the best for a while was saved; KEEP_LAST deleted their states.
    former = [point for point in whole.run.checkpoints() if point.step < first]
    assert former and all(point.state_deleted for point in former)


def test_answers_to_the_same_five_questions_are_stored_with_each_measurement(whole: Whole) -> None:
    lines = whole.run.lines("shown_answers.jsonl")
    by_step: dict[int, list[str]] = {}
    for line in lines:
        by_step.setdefault(line["step"], []).append(line["source"])
        assert line["epoch"] == (1 if line["step"] <= 20 else 2)
        assert line["prompt"] and line["expected"] and len(line["answers"]) == 1
    assert list(by_step) == list(scores(whole.run))
    (sources,) = {tuple(sources) for sources in by_step.values()}
    assert len(set(sources)) == 5


def test_scores_are_said_with_interval_and_n_and_with_their_cost(whole: Whole) -> None:
    n_of_each = [line["eval/n"] for line in whole.curve if "eval/n" in line]
    assert set(n_of_each) == {9}
    for words in (
        "Asked during training: 9 questions of EVAL_FILES.",
        " of 9 questions of EVAL_FILES ",
        "also trained on, so the scores are too good (the first: ",
        "Step 9: final answer ",
        ", n = 9",
        f"Best     {best(whole.run)['checkpoint']} by final answer ",
        "--checkpoint last takes step-000040",
        "Scored   15 times on 9 questions of EVAL_FILES, ",
    ):
        assert words in whole.output
    assert whole.run.file("train.log").read_text().count("final answer") >= 15


def test_evaluate_takes_the_best_and_gives_its_score(
    whole: Whole, project: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Greedy answers to the questions in a file of their own are those of the training."""
    step, out = best(whole.run)["step"], tmp_path / "scores.json"
    sets = [f"OUTPUT_DIR={whole.run.path.parent}", "SAMPLING_MAX_TOKENS=6", "BACKEND=local"]
    more = [part for text in sets for part in ("--set", text)]
    asked = ["--test-data", str(project / "ask.json"), "--output", str(out)]
    assert main(["evaluate", *asked, *more]) == 0
    said = capsys.readouterr().out
    assert f"step-{step:06} of {whole.run.name}, the best checkpoint by final answer" in said
    rate = json.loads(out.read_text())["metrics"]["final_answer"]["rate"]
    assert rate == pytest.approx(scores(whole.run)[step])


def test_metrics_are_measured_during_training_and_a_lower_perplexity_is_better(
    project: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("def size(produced):\n    return -len(produced)\n")
    metrics = ["auto", "labels", "token_f1", "bleu", "perplexity", "judge", f"{mine}:size"]
    judge = {"JUDGE_URL": "http://127.0.0.1:1/v1", "JUDGE_MODEL": "m"}  # nobody is there
    wanted = names(project, tmp_path / "runs", METRICS=metrics, BEST_BY="perplexity", **judge)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        with_others = train(settings_from(wanted | {"NUM_EPOCHS": 1, "EVAL_EVERY": 4}))
    with_others.close()
    measured = [line for line in with_others.run.lines("metrics.jsonl") if "eval/n" in line]
    assert [line["step"] for line in measured] == [4, 8, 12, 16, 20]
    for line in measured:
        assert line["eval/size"] <= 0 and 0 <= line["eval/token_f1"] <= 1
        assert {"eval/label", "eval/sentence_bleu", "eval/bits_per_byte"} <= set(line)
        assert line["eval/perplexity_low"] < line["eval/perplexity"] < line["eval/perplexity_high"]
    lowest = min(measured, key=lambda line: line["eval/perplexity"])
    record = best(with_others.run)
    assert (record["by"], record["step"]) == ("perplexity", lowest["step"])
    assert lowest["eval/perplexity"] < measured[0]["eval/perplexity"], "nothing was learned"
    said = output.getvalue()
    assert "The judge is not asked during training" in said
    assert (
        f"Best     step-{lowest['step']:06} by perplexity {lowest['eval/perplexity']:.4g} (" in said
    )


def command(config: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_with_config.py"), "--config", str(config), *more]


@pytest.fixture
def config(project: Path, tmp_path: Path) -> Path:
    """Settings of a run whose patience is spent before its end."""
    file = tmp_path / "config.py"
    wanted = names(project, tmp_path / "runs", PATIENCE=4)
    file.write_text("".join(f"{name} = {value!r}\n" for name, value in wanted.items()))
    return file


@pytest.mark.long
def test_a_run_stops_early_at_the_same_step_also_when_it_was_killed_and_can_go_on_to_its_end(
    config: Path, tmp_path: Path, whole: Whole, capsys: pytest.CaptureFixture
) -> None:
    best_step = best(whole.run)["step"]
    after = [step for step in scores(whole.run) if step > best_step]
    stop = after[3]
    assert stop < 40

    with subprocess.Popen(
        command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:

        def has_measured() -> bool:
            files = list(tmp_path.glob("runs/*/metrics.jsonl"))
            return any(file.read_bytes().count(b'"eval/n"') >= 4 for file in files)

        assert eventually(has_measured), "the run did not get that far"
        process.kill()
    run = newest_run(tmp_path / "runs")
    assert not run.file("samples.json").exists(), "it was killed too late"
    options = ["train", "--config", str(config), "--resume", run.name]
    assert main(options) == 0
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if "Stopped early" in line]
    assert f"Stopped early at step {stop} of 40 (PATIENCE): 4 measurements in a row" in line
    assert f"than that of step {best_step}: final answer " in line
    assert curve(run) == [line for line in whole.curve if line["step"] <= stop]
    assert best(run) == best(whole.run)
    assert run.checkpoints()[-1].step == stop

    for changes, words in (
        ({}, "stopped early at step"),
        ({"PATIENCE": 3}, "stopped early at step"),
        ({"PATIENCE": -1}, "PATIENCE is -1; it must be between 0"),
        ({"NUM_EPOCHS": 3}, "NUM_EPOCHS cannot be changed when a run is resumed"),
    ):
        with contextlib.redirect_stdout(io.StringIO()), pytest.raises(UserError, match=words):
            train(resume=str(run.path), resume_with=changes)
    assert main([*options, "--set", "PATIENCE=0"]) == 0
    assert curve(run) == whole.curve
    assert best(run) == best(whole.run)


@dataclass
class InterruptedGeneration:
    """A notebook interrupts its thread while the third answers are made."""

    client: Any
    rounds: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def save_weights_and_get_sampling_client(self) -> Any:
        self.rounds += 1
        if self.rounds == 3:
            raise KeyboardInterrupt
        return self.client.save_weights_and_get_sampling_client()


def trained_until(settings: Settings, resume: Resume | None, interrupts: bool) -> RunFolder:
    with watched(Lines().say) as progress, ExitStack() as guard:
        plan = prepare(settings, resume, guard, progress)
        plan.data.start(plan.run, plan.first_step)
        lengths = LengthReport(plan.data, False, progress)
        if interrupts:
            client = cast("tinker.TrainingClient", InterruptedGeneration(plan.client))
            with pytest.raises(KeyboardInterrupt):
                changed = dataclasses.replace(plan, client=client)
                Loop(changed, lengths, progress, Interruption()).run()
        else:
            Loop(plan, lengths, progress, Interruption()).run()
        return plan.run


@pytest.mark.long
def test_an_interruption_of_the_answers_saves_and_the_step_is_measured_when_it_goes_on(
    project: Path, tmp_path: Path, whole: Whole
) -> None:
    settings = settings_from(names(project, tmp_path / "runs", SAVE_EVERY_MINUTES=0.0))
    run = trained_until(settings, None, interrupts=True)
    assert run.checkpoints()[-1].step == 9 and max(scores(run)) == 6
    trained_until(settings, Resume(run), interrupts=False)
    assert curve(run) == whole.curve
    assert best(run) == best(whole.run)
    assert not list(run.path.glob("*before-resume*")), "something was done twice"
