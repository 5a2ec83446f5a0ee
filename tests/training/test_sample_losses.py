"""The losses of samples in a step, from the log-probabilities that the server sends."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from tinkersmith.data.samples import Source
from tinkersmith.runs.folder import SAMPLE_LOSSES_FILE, RunFolder
from tinkersmith.text.tokenize import TokenizedSample
from tinkersmith.training.sample_losses import SampleLosses, losses_of


def sequence(record: int, length: int, *spans: tuple[int, int]) -> TokenizedSample:
    tokens = np.arange(length, dtype=np.int32)
    return TokenizedSample(tokens, np.array(spans), Source("data.json", record))


def output(*logprobs: float) -> dict[str, Any]:
    return {"logprobs": tinker.TensorData.from_numpy(np.array(logprobs, dtype=np.float32))}


def test_a_samples_loss_is_the_mean_over_the_trained_tokens_of_all_its_sequences() -> None:
    batch = [sequence(1, 4, (2, 4)), sequence(2, 3, (1, 2)), sequence(1, 5, (1, 2), (3, 4))]
    outputs = [output(-9, -1, -2), output(-0.5, -9), output(-3, -9, -4, -9)]
    losses = losses_of(batch, outputs)
    assert losses == {
        Source("data.json", 1): (4, pytest.approx(2.5)),
        Source("data.json", 2): (1, pytest.approx(0.5)),
    }


@pytest.mark.parametrize(
    "outputs",
    [[], [{}], [output(-1.0)], [{"logprobs": None}], [output(-1.0, -1.0), output(-1.0, -1.0)]],
)
def test_what_does_not_belong_to_the_batch_is_no_loss(outputs: list[dict[str, Any]]) -> None:
    assert losses_of([sequence(1, 3, (1, 3))], outputs) is None


def test_lines_reach_the_file_in_order_when_they_are_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    losses = SampleLosses(run)
    batch = [sequence(7, 3, (1, 3))]
    for step in (1, 2, 3):
        assert losses.add(step, 1, batch, [output(-step, -step)])
    assert run.lines(SAMPLE_LOSSES_FILE) == []
    losses.write()
    losses.write()
    assert [line["step"] for line in run.lines(SAMPLE_LOSSES_FILE)] == [1, 2, 3]
    (rows,) = run.lines(SAMPLE_LOSSES_FILE)[2]["losses"].values()
    assert rows == [[7, 2, 3.0]]
    assert list(run.each_line(SAMPLE_LOSSES_FILE)) == run.lines(SAMPLE_LOSSES_FILE)


def test_memory_holds_a_bounded_number_of_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    losses = SampleLosses(run)
    for step in range(1, 502):
        losses.add(step, 1, [sequence(step, 2, (1, 2))], [output(-1)])
    assert len(run.lines(SAMPLE_LOSSES_FILE)) == 400
