"""The written-out training pass against the model's own layers and autograd, on random inputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.dense_models import FAMILIES, assert_equal_gradients, flat, save_uneven
from tests.support.loading import load_with_torch
from tinkersmith.engine.kernels import head, tile_attention
from tinkersmith.engine.kernels.tile_attention import attend, attend_backward, tiles
from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.training.dense_pass import DensePass
from tinkersmith.engine.training.head_pass import Pass, head_pass
from tinkersmith.engine.training.losses import has_gradient
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.slow


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    save_uneven(FAMILIES[request.param](), tmp_path)
    return load_with_torch(request.param, tmp_path)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, blocks and tiles also for tiny inputs."""
    monkeypatch.setattr(head, "CPU_BLOCK", (50, 70))
    monkeypatch.setattr(tile_attention, "TILE_TOKENS", 32)
    monkeypatch.setattr("tinkersmith.engine.training.dense_pass._ROWS", 45)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"train_unembed": False},
        {"train_mlp": False},
        {"train_attn": False},
        {"train_attn": False, "train_mlp": False},
    ],
    ids=str,
)
def test_loss_logprobs_and_gradients_equal_those_of_autograd(
    base: BaseModel, parts: dict[str, bool], small_blocks: None
) -> None:
    assert base.dense is not None
    datums = random_datums(np.random.default_rng(), 12)
    ours, theirs = (filled_adapter(base, LoraConfig(4, 0, **parts)) for _ in range(2))
    found = forward_backward(base, ours, datums, "cross_entropy", {})
    expected = forward_backward(replace(base, kernels=None), theirs, datums, "cross_entropy", {})
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    for left, right in zip(found.logprobs, expected.logprobs, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-4)
    assert_equal_gradients(gradients(ours), gradients(theirs))


@pytest.mark.parametrize("kept_layers", [0, 2])
def test_layers_computed_again_give_the_same_gradients(base: BaseModel, kept_layers: int) -> None:
    assert base.dense is not None and base.kernels is not None
    tokens, lengths = torch.randint(300, (90,)), [50, 40]
    results = []
    for kept in (None, kept_layers):
        adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=False))
        one_pass = DensePass(
            base.dense, base.kernels, adapter, lengths, backward=True, kept_layers=kept
        )
        hidden = one_pass.forward(tokens)
        one_pass.backward(hidden.square())
        results.append(gradients(adapter))
    for name, gradient in results[0].items():
        assert torch.equal(gradient, results[1][name]), name


def test_half_precision_stays_near_full_precision(base: BaseModel) -> None:
    halved = load_with_torch("half", base.folder, "bfloat16")
    datums = random_datums(np.random.default_rng(), 12)
    full, half = filled_adapter(base, LoraConfig(4, 0)), filled_adapter(halved, LoraConfig(4, 0))
    expected = forward_backward(base, full, datums, "cross_entropy", {})
    found = forward_backward(halved, half, datums, "cross_entropy", {})
    error = np.concatenate(found.logprobs) - np.concatenate(expected.logprobs)
    assert np.abs(error).mean() < 0.1
    exact, rounded = flat(full), flat(half)
    assert torch.cosine_similarity(exact, rounded, dim=0) > 0.98


def test_tiles_of_packed_documents_attend_as_each_alone(small_blocks: None) -> None:
    lengths = [5, 1, 40, 70, 3, 9, 25, 33]
    groups, share, size = 2, 3, 8
    total = sum(lengths)
    query = torch.randn(groups, total * share, size)
    key, value = (torch.randn(groups, total, size) for _ in range(2))
    grad = torch.randn_like(query)
    layout = tiles(lengths, share, torch.float32, torch.device("cpu"))
    found = attend(query, key, value, layout)
    found_grads = attend_backward(grad, query, key, value, layout)

    leaves = [tensor.double().requires_grad_() for tensor in (query, key, value)]
    heads = leaves[0].view(groups, total, share, size).transpose(1, 2).flatten(0, 1)
    start, parts = 0, []
    for length in lengths:
        part = slice(start, start + length)
        parts.append(
            scaled_dot_product_attention(
                heads[:, part],
                leaves[1][:, part].repeat_interleave(share, 0),
                leaves[2][:, part].repeat_interleave(share, 0),
                is_causal=True,
                scale=1.0,
            )
        )
        start += length
    joined = torch.cat(parts, 1).view(groups, share, total, size).transpose(1, 2)
    expected = joined.reshape(query.shape)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
    expected.backward(grad.double())
    for ours, leaf in zip(found_grads, leaves, strict=True):
        torch.testing.assert_close(ours.double(), leaf.grad, atol=1e-5, rtol=0)


@pytest.mark.parametrize("targets", [1, 3])
def test_the_head_equals_a_full_soft_max_in_float64(
    base: BaseModel, targets: int, small_blocks: None
) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    hidden = torch.randn(120, 48)
    inputs = {
        "target_tokens": torch.randint(300, (120, targets)),
        "weights": torch.randn(120, targets) * (torch.rand(120, 1) > 0.3),
    }
    found = head_pass(
        Pass(base, adapter, "cross_entropy", {}, backward=True),
        hidden,
        inputs,
        has_gradient("cross_entropy", inputs),
    )

    path = base.unembed.path
    leaf = hidden.double().requires_grad_()
    a, b = (adapter.weights[f"{path}.lora_{side}"].detach().double() for side in "AB")
    a.requires_grad_()
    b.requires_grad_()
    logits = leaf @ base.unembed.weight.double().T + adapter.scaling * (leaf @ a.T @ b.T)
    expected = logits.log_softmax(-1).gather(-1, inputs["target_tokens"])
    (-expected * inputs["weights"]).sum().backward()
    torch.testing.assert_close(found.logprobs.double(), expected, atol=1e-4, rtol=0)
    assert found.grad_hidden is not None and leaf.grad is not None
    torch.testing.assert_close(found.grad_hidden.double(), leaf.grad, atol=1e-4, rtol=1e-4)
    for side, twin in (("A", a), ("B", b)):
        gradient = adapter.weights[f"{path}.lora_{side}"].grad
        assert gradient is not None and twin.grad is not None
        assert (gradient - twin.grad).norm() / twin.grad.norm() < 1e-5


def test_rows_without_a_gradient_can_be_left_out(base: BaseModel) -> None:
    datums = random_datums(np.random.default_rng(), 6)
    whole, less = (filled_adapter(base, LoraConfig(4, 0)) for _ in range(2))
    expected = forward_backward(base, whole, datums, "cross_entropy", {})
    found = forward_backward(base, less, datums, "cross_entropy", {}, only_graded=True)
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    for datum, ours, theirs in zip(datums, found.logprobs, expected.logprobs, strict=True):
        graded = datum.inputs["weights"] != 0
        np.testing.assert_allclose(ours[graded], theirs[graded], atol=1e-5)
        assert not ours[~graded].any()
    assert_equal_gradients(gradients(less), gradients(whole))
    alone = forward(base, less, datums, "cross_entropy", {}, only_graded=True)
    np.testing.assert_allclose(np.concatenate(alone.logprobs), np.concatenate(found.logprobs))


@pytest.mark.parametrize("name", ["importance_sampling", "ppo", "cispo", "dro"])
def test_other_losses_equal_those_of_autograd(
    base: BaseModel, name: str, small_blocks: None
) -> None:
    rng = np.random.default_rng()
    ours, theirs = (filled_adapter(base, LoraConfig(4, 0)) for _ in range(2))
    datums = []
    for length in (30, 55, 12):
        tokens = rng.integers(0, 300, length + 1)
        target = {"target_tokens": tokens[1:]}
        now = forward(base, ours, [Datum(tokens[:-1], target)], "cross_entropy", {}).logprobs[0]
        inputs = {
            "logprobs": now + rng.normal(size=length).astype(np.float32) * 0.3,
            "advantages": (rng.normal(size=length) * (rng.random(length) > 0.4)).astype(np.float32),
        }
        datums.append(Datum(tokens[:-1], target | inputs))
    config = {"beta": 0.1} if name == "dro" else {}
    found = forward_backward(base, ours, datums, name, config)
    expected = forward_backward(replace(base, kernels=None), theirs, datums, name, config)
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], abs=1e-3)
    assert_equal_gradients(gradients(ours), gradients(theirs))


def test_targets_of_different_number_share_a_pack(base: BaseModel) -> None:
    rng = np.random.default_rng()
    datums = []
    for count in (1, 3, 2):
        tokens = rng.integers(0, 300, 20)
        datums.append(Datum(tokens, {"target_tokens": rng.integers(0, 300, (20, count))}))
    adapter = filled_adapter(base, LoraConfig(4, 0))
    together = forward(base, adapter, datums, "cross_entropy", {})
    alone = [forward(base, adapter, [datum], "cross_entropy", {}) for datum in datums]
    for logprobs, single in zip(together.logprobs, alone, strict=True):
        np.testing.assert_allclose(logprobs, single.logprobs[0], atol=1e-4)
    total = sum(single.metrics["loss:sum"] for single in alone)
    assert together.metrics["loss:sum"] == pytest.approx(total, rel=1e-5)


def test_logits_far_above_those_of_the_first_block_do_not_overflow(
    base: BaseModel, small_blocks: None
) -> None:
    with torch.no_grad():
        base.unembed.weight[120:125] *= 150  # logits of hundreds; exp(89) overflows
    hidden, targets = torch.randn(120, 48), torch.randint(118, 127, (120, 1))
    inputs = {"target_tokens": targets, "weights": torch.ones(120, 1)}
    found = head_pass(
        Pass(base, None, "cross_entropy", {}, backward=True),
        hidden,
        inputs,
        has_gradient("cross_entropy", inputs),
    )
    leaf = hidden.double().requires_grad_()
    logits = leaf @ base.unembed.weight.double().T
    assert logits.max() > 100
    expected = logits.log_softmax(-1).gather(-1, targets)
    (-expected).sum().backward()
    torch.testing.assert_close(found.logprobs.double(), expected, atol=1e-2, rtol=1e-4)
    assert found.grad_hidden is not None and leaf.grad is not None
    torch.testing.assert_close(found.grad_hidden.double(), leaf.grad, atol=5e-2, rtol=1e-2)
