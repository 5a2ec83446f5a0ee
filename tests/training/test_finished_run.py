"""One finished run, looked at from all sides: counts, losses, files, and what Python gets back."""

import contextlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.processes import PATIENCE
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith import TrainedRun, UserError, train
from tinkersmith.batches.order import batch_indices, learning_rate_at
from tinkersmith.runs.folder import RunFolder, newest_run
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

pytestmark = pytest.mark.engine

CONTEXT = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), max_context=CONTEXT)


@pytest.fixture(autouse=True, scope="module")
def _no_cloud() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        yield


@dataclass
class Finished:
    trained: TrainedRun
    settings: Settings
    output: str
    usable: list[dict[str, str]]

    @property
    def run(self) -> RunFolder:
        return self.trained.run

    def lines(self, key: str) -> list[dict[str, Any]]:
        return [line for line in self.run.lines("metrics.jsonl") if key in line]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Finished]:
    """13 usable records, one of them cut; one too long; two unusable; one file missing."""
    folder = tmp_path_factory.mktemp("finished")
    usable = records(12, seed=1)
    cut = {"instruction": "Go on.", "output": "word " * 100}
    too_long = {"instruction": "long " * 100, "output": "no"}
    data = write(folder / "data.json", [*usable, cut, too_long, 17, {"output": "x"}])
    settings = settings_from(
        {
            "DATA_FILES": [str(data), str(folder / "nowhere.json")],
            "VALIDATION_FILES": [str(write(folder / "validation.json", records(5, seed=2)))],
            "BASE_MODEL": str(model),
            "OUTPUT_DIR": str(folder / "runs"),
            "MODEL_NAME_PREFIX": "tuned",
            "BATCH_SIZE": 4,
            "NUM_EPOCHS": 2,
            "LORA_RANK": 4,
            "PROMPT_TEMPLATE": "instruction",
            "LEARNING_RATE": 0.01,
            "SAVE_EVERY": 3,
            "SAMPLING_MAX_TOKENS": 5,
            "SAMPLING_NUM_SAMPLES": 2,
            "EXPORT_AFTER_TRAINING": "no",
        }
    )
    with contextlib.redirect_stdout(io.StringIO()) as output:
        trained = train(settings)
    with trained:
        yield Finished(trained, settings, output.getvalue(), [*usable, cut])


def test_all_records_are_accounted_for(finished: Finished) -> None:
    summary = re.search(
        r"(\d+) records = (\d+) to train on, (\d+) for validation, (\d+) too long, (\d+) unusable; "
        r"(\d+) of them are cut",
        finished.output,
    )
    assert summary, finished.output
    read, trained, validation, too_long, unusable, cut = map(int, summary.groups())
    assert (read, trained, validation, too_long, unusable, cut) == (16 + 5, 13, 5, 1, 2, 1)
    skipped = finished.run.lines("skipped.jsonl")
    assert sorted(line["record"] for line in skipped) == [13, 14, 15, 16]
    assert all(line["reason"] for line in skipped)
    for epoch in (1, 2):
        steps = [line for line in finished.lines("loss") if line["epoch"] == epoch]
        assert sum(line["samples"] for line in steps) == trained


def test_the_user_sees_what_happens(finished: Finished) -> None:
    output = finished.output
    for expected in (
        "LORA_RANK                4",
        "nowhere.json does not exist",
        "14 samples from",
        "median",
        "p99",
        "data.json, record 13: ",
        "data.json, record 14: its prompt alone has",
        f"takes at most {CONTEXT}",
        "Epoch 2/2: mean loss",
        finished.run.name,
        finished.trained.sampler_path,
    ):
        assert expected in output
    assert re.fullmatch(r"tuned-\d{8}-\d{6}", finished.run.name)


def test_the_log_holds_what_was_printed(finished: Finished) -> None:
    assert (finished.run.path / "train.log").read_text(encoding="utf-8") == finished.output


def test_every_step_is_measured_once_and_in_order(finished: Finished) -> None:
    steps = finished.lines("loss")
    assert [line["step"] for line in steps] == list(range(1, 9))
    for line in steps:
        assert math.isfinite(line["loss"])
        assert line["tokens_per_second"] > 0
        assert line["learning_rate"] == learning_rate_at(line["step"] - 1, 8, 0.01, "linear", 0.03)


def test_an_epochs_loss_is_the_mean_over_completion_tokens(finished: Finished) -> None:
    for epoch, loss in enumerate(finished.trained.epoch_losses, start=1):
        steps = [line for line in finished.lines("loss") if line["epoch"] == epoch]
        weighted = sum(line["loss"] * line["completion_tokens"] for line in steps)
        assert loss == pytest.approx(weighted / sum(line["completion_tokens"] for line in steps))
    assert len(finished.trained.epoch_losses) == 2
    assert len(finished.trained.validation_losses) == 2


def test_the_first_steps_loss_is_that_of_plain_transformers(
    finished: Finished, model: Path
) -> None:
    """A new LoRA changes nothing yet, so the base model's own loss is the answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    losses = []
    for index in batch_indices(13, 4, finished.settings.seed, 0):
        sample = finished.usable[index]
        given = f"Input: {sample['input']}\n" if sample.get("input") else ""
        prompt = tokenizer.encode(f"Instruction: {sample['instruction']}\n{given}Response:\n")
        answer = [*tokenizer.encode(sample["output"]), tokenizer.eos_token_id]
        tokens = torch.tensor([(prompt + answer)[:CONTEXT]])  # (1, T)
        with torch.no_grad():
            logprobs = base(tokens).logits[0, :-1].log_softmax(-1)  # (T-1, V)
        picked = logprobs[torch.arange(tokens.shape[1] - 1), tokens[0, 1:]]
        losses.append(-picked[len(prompt) - 1 :])
    expected = torch.cat(losses).mean().item()
    assert finished.lines("loss")[0]["loss"] == pytest.approx(expected, rel=1e-5)


def test_every_sample_has_its_loss_in_each_epoch(finished: Finished) -> None:
    lines = finished.run.lines("sample_losses.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    for line, step in zip(lines, finished.lines("loss"), strict=True):
        assert line["epoch"] == step["epoch"]
        (rows,) = line["losses"].values()
        assert len(rows) == step["samples"]
        assert sum(tokens for _, tokens, _ in rows) == step["completion_tokens"]
        total = sum(tokens * loss for _, tokens, loss in rows)
        assert total / step["completion_tokens"] == pytest.approx(step["loss"], abs=2e-5)


def test_hard_samples_lists_every_sample_with_its_losses_and_texts(finished: Finished) -> None:
    lines = finished.run.lines("hard_samples.jsonl")
    assert sorted(line["record"] for line in lines) == list(range(1, 14))
    assert [line["rank"] for line in lines] == list(range(1, 14))
    for line in lines:
        record = finished.usable[line["record"] - 1]
        assert line["file"] == finished.settings.training_files[0] and len(line["losses"]) == 2
        assert line["question"].startswith(record["instruction"])
        assert record["output"].startswith(line["answer"].removesuffix("...").strip())


def test_training_lowers_the_loss(finished: Finished) -> None:
    first, last = finished.trained.epoch_losses
    assert last < first


def test_checkpoints_stand_at_every_save_and_at_each_epochs_end(finished: Finished) -> None:
    saved = finished.run.checkpoints()
    assert [(checkpoint.step, checkpoint.epoch) for checkpoint in saved] == [
        (3, 0),
        (4, 1),
        (6, 1),
        (8, 2),
    ]
    for checkpoint in saved:
        assert checkpoint.state_path.endswith(f"/weights/{checkpoint.name}")
        assert checkpoint.sampler_path.endswith(f"/sampler_weights/{checkpoint.name}")
    assert finished.trained.sampler_path == saved[-1].sampler_path
    assert finished.trained.state_path == saved[-1].state_path
    assert newest_run(finished.settings.output_dir).path == finished.run.path


def test_the_tuned_model_answers_the_first_sample(finished: Finished) -> None:
    (stored,) = json.loads((finished.run.path / "samples.json").read_text(encoding="utf-8"))
    assert stored["expected"] == finished.usable[0]["output"]
    assert finished.usable[0]["instruction"] in stored["prompt"]
    assert stored["answers"] == finished.trained.answers
    assert len(stored["answers"]) == 2


def test_the_sampling_client_works_from_python(finished: Finished) -> None:
    import tinker

    future = finished.trained.sampling_client.sample(
        tinker.ModelInput.from_ints([72, 105]), 1, tinker.SamplingParams(max_tokens=3, stop=[])
    )
    assert len(future.result(timeout=PATIENCE).sequences[0].tokens) == 3


def test_the_run_folder_tells_what_it_was_made_from(finished: Finished, model: Path) -> None:
    run = finished.run
    assert run.settings() == finished.settings
    assert run.base_model() == str(model.resolve())
    assert run.template().name == "instruction"
    assert json.loads((run.path / "lengths.json").read_text(encoding="utf-8"))["count"] == 14


def test_a_finished_run_is_not_resumed(finished: Finished) -> None:
    with pytest.raises(UserError, match="is finished"):
        train(resume=str(finished.run.path))


def test_train_takes_settings_by_name_in_either_case_and_refuses_unknown_ones() -> None:
    with pytest.raises(UserError, match="LORA_RANK is 0"):
        train(LORA_RANK=0)
    with pytest.raises(UserError, match="LORA_RANK"):
        train(lora_rnk=3)
