"""benchmarks/gpu.py trains the same in all its contestants; here on a CPU, with tiny shapes."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu import OURS, PLAIN, SPARING, TINY, _model, measure
from benchmarks.training_data import random_samples
from benchmarks.training_worker import own_loss, plain_loss
from tests.support.paths import ROOT

LENGTHS = [[10, 40], [3, 21]]


@pytest.mark.parametrize("shape", list(TINY))
def test_ours_and_the_plain_loops_begin_with_one_model_and_one_loss(shape: str) -> None:
    found = {
        what: measure(what, TINY[shape], 512, LENGTHS, "cpu") for what in (OURS, PLAIN, SPARING)
    }
    losses = [one["loss of the first step"] for one in found.values()]
    assert losses == pytest.approx([losses[1]] * 3, rel=0.01)  # bf16
    assert all(
        one["loss of the last step"] < one["loss of the first step"] for one in found.values()
    )
    assert all(one["tokens a second"] > 0 for one in found.values())


@pytest.mark.parametrize("shape", list(TINY))
def test_the_loss_that_ligers_kernels_replace_is_that_of_the_plain_loop(shape: str) -> None:
    model = _model(TINY[shape], 512, "cpu", "sdpa").float()
    samples = random_samples(LENGTHS, 512)
    ours, plain = own_loss(model, samples), plain_loss(model, samples)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "There is no GPU here" in done.stderr
    assert json.dumps("Traceback") not in done.stderr
