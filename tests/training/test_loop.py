"""The loop of a run whose server answers late says what it waits for."""

import concurrent.futures
import dataclasses
import threading
import types
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import tinker

from tests.support.clocks import Lines, hurried_clock
from tests.support.environment import without_cloud
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.batches.length_report import LengthReport
from tinkersmith.batches.source import TokenizedData
from tinkersmith.progress import watched
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.finish import finish
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.loop import Curves, Loop
from tinkersmith.training.plan import prepare

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]


@dataclasses.dataclass
class Late:
    """An SDK future whose result comes only after another line has said what is waited for."""

    pending: Any
    said: Lines

    def future(self) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        before = len(self.said.texts)

        def answer() -> None:
            self.said.wait_for("  Still ", after=before)
            future.set_result(self.pending.result())

        threading.Thread(target=answer, daemon=True).start()
        return future


@dataclasses.dataclass
class LateClient:
    client: Any
    said: Lines

    def __getattr__(self, name: str) -> Callable[..., Late]:
        method = getattr(self.client, name)
        return lambda *values, **named: Late(method(*values, **named), self.said)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the runs of all tests, which so share an engine."""
    return make_tiny_model(tmp_path_factory.mktemp("shared") / "model")


def test_steps_validation_and_checkpoints_are_said_to_be_under_way(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_cloud(monkeypatch)
    settings = settings_from(
        {
            "DATA_FILES": [str(write(tmp_path / "data.json", records(6, seed=1)))],
            "VALIDATION_FILES": [str(write(tmp_path / "validation.json", records(2, seed=2)))],
            "BASE_MODEL": str(model),
            "OUTPUT_DIR": str(model.parent / "runs"),
            "BATCH_SIZE": 3,
            "NUM_EPOCHS": 1,
            "LORA_RANK": 4,
            "SAMPLING_MAX_TOKENS": 4,
        }
    )
    said = Lines()
    with (
        watched(said.say, clock=hurried_clock(), look_every=0.01) as progress,
        ExitStack() as guard,
    ):
        plan = prepare(settings, None, guard, progress)
        plan.data.start(plan.run, plan.first_step)
        late = cast("tinker.TrainingClient", LateClient(plan.client, said))
        lengths = LengthReport(plan.data, True, progress)
        late_plan = dataclasses.replace(plan, client=late)
        curves = Loop(late_plan, lengths, progress, Interruption()).run()
        with finish(plan, curves, lengths, guard, progress) as trained:
            assert trained.epoch_losses == curves.epochs
    for doing in (
        "training step 1 of 2",
        "measuring the validation loss",
        "saving the checkpoint of step 2",
    ):
        assert any(text.startswith(f"  Still {doing} (") for text in said.texts), doing
    assert any("step 2/2  loss" in text for text in said.texts)
    assert len(plan.run.checkpoints()) == 1


def _small(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run of 12 steps on our own engine."""
    without_cloud(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return settings_from(
        {
            "DATA_FILES": [str(write(tmp_path / "data.json", records(24, seed=1)))],
            "BASE_MODEL": str(model),
            "OUTPUT_DIR": str(model.parent / "runs"),
            "BATCH_SIZE": 2,
            "NUM_EPOCHS": 1,
            "LORA_RANK": 4,
        }
    )


def test_a_checkpoint_by_time_changes_no_loss(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _small(tmp_path, model, monkeypatch)
    losses: dict[float, list[float]] = {}
    saved: dict[float, list[str]] = {}
    for minutes in (0.0, 0.5):
        changed = settings.model_copy(update={"save_every_minutes": minutes})
        with watched(Lines().say) as progress, ExitStack() as guard:
            plan = prepare(changed, None, guard, progress)
            plan.data.start(plan.run, plan.first_step)
            lengths = LengthReport(plan.data, True, progress)
            # Each look at the clock is a second later: a step takes several.
            loop = Loop(plan, lengths, progress, Interruption(), hurried_clock())
            losses[minutes] = loop.run().steps
            saved[minutes] = [point.name for point in plan.run.checkpoints()]
    assert losses[0.0] == losses[0.5]
    assert saved[0.0] == ["step-000012"]
    assert 2 <= len(saved[0.5]) < 12 and saved[0.5][-1] == "step-000012"


@dataclasses.dataclass
class Withheld:
    """An SDK future whose result comes only after a line has said how to continue."""

    pending: Any
    said: Lines

    def future(self) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def answer() -> None:
            assert self.said.wait_for("the run continues from step-000004. Continue with: ")
            future.set_result(self.pending.result())

        threading.Thread(target=answer, daemon=True).start()
        return future


@dataclasses.dataclass
class SlowFifthStep:
    client: Any
    said: Lines
    steps: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def forward_backward(self, *values: Any) -> Any:
        self.steps += 1
        pending = self.client.forward_backward(*values)
        return Withheld(pending, self.said) if self.steps == 5 else pending


@dataclasses.dataclass
class InterruptedAtTheSixthBatch:
    """A notebook interrupts its thread without a signal, while a batch is prepared."""

    data: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def batch(self, step: int) -> Any:
        if step == 5:
            raise KeyboardInterrupt
        return self.data.batch(step)


def test_an_interruption_says_how_to_continue_before_it_waits_and_then_saves(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step under way may take longer than the patience of whoever sent a signal."""
    settings = _small(tmp_path, model, monkeypatch).model_copy(update={"save_every": 4})
    said = Lines()
    with watched(said.say) as progress, ExitStack() as guard:
        plan = prepare(settings, None, guard, progress)
        plan.data.start(plan.run, plan.first_step)
        lengths = LengthReport(plan.data, True, progress)
        client = cast("tinker.TrainingClient", SlowFifthStep(plan.client, said))
        data = cast(TokenizedData, InterruptedAtTheSixthBatch(plan.data))
        loop = Loop(
            dataclasses.replace(plan, client=client, data=data), lengths, progress, Interruption()
        )
        with pytest.raises(KeyboardInterrupt):
            loop.run()
        assert [point.step for point in plan.run.checkpoints()] == [4, 5]
        assert [line["step"] for line in plan.run.metrics()] == [1, 2, 3, 4, 5]
    assert "  Step 5 is saved." in said.texts


@dataclasses.dataclass
class WithoutLogprobs:
    """A server that sends the sum of the losses alone."""

    client: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def forward_backward(self, *values: Any) -> Any:
        return WithoutOutputs(self.client.forward_backward(*values))


@dataclasses.dataclass
class WithoutOutputs:
    pending: Any

    def future(self) -> "concurrent.futures.Future[Any]":
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        future.set_result(types.SimpleNamespace(metrics=self.pending.result().metrics))
        return future


def test_a_server_that_sends_no_losses_of_tokens_is_said_once_and_the_run_ends_well(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Lines()
    with watched(said.say) as progress, ExitStack() as guard:
        plan = prepare(_small(tmp_path, model, monkeypatch), None, guard, progress)
        plan.data.start(plan.run, plan.first_step)
        lengths = LengthReport(plan.data, True, progress)
        client = cast("tinker.TrainingClient", WithoutLogprobs(plan.client))
        plan = dataclasses.replace(plan, client=client)
        curves = Loop(plan, lengths, progress, Interruption()).run()
        with finish(plan, curves, lengths, guard, progress):
            assert len(curves.steps) == 12
    sentence = "  The server does not send the losses of single tokens: "
    assert sum(text.startswith(sentence) for text in said.texts) == 1
    assert not plan.run.file("hard_samples.jsonl").exists()
    assert not any("Warning" in text for text in said.texts)


def test_curves_read_from_metrics_go_on_as_if_they_had_never_stopped() -> None:
    whole = Curves()
    lines: list[dict[str, Any]] = []
    for step, (loss, tokens) in enumerate([(0.1, 7), (0.7, 5), (0.3, 11), (0.9, 2)], start=1):
        whole.add_step(loss, tokens)
        epoch = (step + 1) // 2
        lines.append({"step": step, "epoch": epoch, "loss": loss, "completion_tokens": tokens})
        if step == 2:
            lines.append({"step": step, "epoch_loss": whole.end_epoch()})
            lines.append({"step": step, "validation_loss": 0.5})
            whole.validation.append(0.5)
    assert Curves.of(lines, epochs_done=1) == whole
    assert whole.epochs == [(0.1 * 7 + 0.7 * 5) / 12]
