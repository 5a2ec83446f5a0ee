"""Packing changes nothing but the speed, and neither a (T, T) nor a (T, V) matrix is ever made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.training import step
from tinkersmith.engine.training.packing import PACK_TOKENS, gpu_budget, packs
from tinkersmith.engine.training.step import forward_backward


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_with_torch("tiny", make_tiny_model(folder))


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return result


def test_a_longer_sequence_stands_alone_and_the_others_fill_packs_well() -> None:
    assert packs([3, 3, 20, 4, 6, 1], budget=10) == [[2], [4, 3], [0, 1, 5]]
    assert packs([10, 10], budget=10) == [[0], [1]]
    assert packs([], budget=10) == []


def test_a_gpus_packs_are_as_large_as_its_memory_allows() -> None:
    # Qwen3-8B: some 3.1 MB a token in all layers.
    assert gpu_budget(64e9, 3.1e6) == 8192
    assert gpu_budget(40e9, 3.1e6) == 6451
    assert gpu_budget(8e9, 3.1e6) == PACK_TOKENS  # the others are computed twice then


def test_one_pack_and_many_packs_give_the_same_loss_and_gradients(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    datums = random_datums(np.random.default_rng(3), 10)
    together, apart = (filled_adapter(base, LoraConfig(4, 0)) for _ in range(2))
    whole = forward_backward(base, together, datums, "cross_entropy", {})
    monkeypatch.setattr(step, "packs", lambda lengths, _: packs(lengths, budget=1))
    alone = forward_backward(base, apart, datums, "cross_entropy", {})
    assert alone.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)
    for ours, theirs in zip(whole.logprobs, alone.logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    expected = gradients(together)
    for name, gradient in gradients(apart).items():
        assert (gradient - expected[name]).norm() / expected[name].norm() < 1e-5, name


def test_a_neighbour_in_the_pack_cannot_be_seen(base: BaseModel) -> None:
    first = torch.arange(20)
    lengths = [20, 30, 20]
    one, other = (torch.cat([first, torch.full((30,), token), first]) for token in (7, 9))
    hidden_one, hidden_other = (base.hidden(tokens, lengths, None) for tokens in (one, other))
    assert torch.equal(hidden_one[:20], hidden_other[:20])
    assert torch.equal(hidden_one[50:], hidden_other[50:])
    torch.testing.assert_close(hidden_one[50:], hidden_one[:20], atol=1e-5, rtol=0)
    assert not torch.equal(hidden_one[20:50], hidden_other[20:50])


@pytest.mark.parametrize("path", ["dense", "generic"])
def test_no_matrix_of_tokens_by_tokens_or_tokens_by_vocabulary_lives(
    path: str, tmp_path: Path
) -> None:
    base = load_with_torch(
        "tiny", make_tiny_model(tmp_path / "model", vocab_size=1300, max_context=2048)
    )
    if path == "generic":
        base.kernels = None
    rng = np.random.default_rng(0)
    length, count = 2000, 2
    datums = []
    for _ in range(count):
        tokens = rng.integers(0, 250, length + 1)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:]}))
    adapter = filled_adapter(base, LoraConfig(4, 0))
    with LargestTensor() as largest:
        forward_backward(base, adapter, datums, "cross_entropy", {})
    hidden = count * length * 32  # (T, H): what must live
    # Not even one document's logits at once, let alone the whole pack's; nor its attention matrix.
    assert hidden <= largest.elements < length * base.vocab_size < length**2
