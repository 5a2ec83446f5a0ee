"""Loss, log-probabilities and gradients against plain transformers + peft and float64 formulas."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.support.adapters import filled_adapter, gradients, save_as_peft
from tests.support.batches import random_datums
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.kernels import head
from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.training.checks import check_datums
from tinkersmith.engine.training.losses import token_losses
from tinkersmith.engine.training.optimizer import (
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.training.packing import packs
from tinkersmith.engine.training.step import forward, forward_backward


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return load_with_torch("tiny", make_tiny_model(tmp_path / "model"))


def test_loss_and_lora_gradients_equal_plain_transformers_and_peft(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "CPU_BLOCK", (16, 50))  # several chunks a document
    adapter = filled_adapter(base, LoraConfig(8, 0))
    datums = random_datums(np.random.default_rng(), 12)
    output = forward_backward(base, adapter, datums, "cross_entropy", {})
    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base.folder),
        save_as_peft(base, adapter, tmp_path / "adapter"),
        is_trainable=True,
    )
    total = torch.zeros(())
    for datum, logprobs in zip(datums, output.logprobs, strict=True):
        logits = plain(torch.from_numpy(datum.tokens)[None]).logits[0]
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        np.testing.assert_allclose(logprobs, expected.detach(), atol=1e-4)
        total = total - (expected * torch.from_numpy(datum.inputs["weights"])).sum()
    total.backward()
    assert output.metrics["loss:sum"] == pytest.approx(total.item(), rel=1e-5)
    theirs = {
        name.removeprefix("base_model.model.").removesuffix(".default.weight"): parameter.grad
        for name, parameter in plain.named_parameters()
        if parameter.grad is not None
    }
    ours = gradients(adapter)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() / theirs[name].norm() < 1e-5, name


def test_two_halves_accumulate_to_the_whole(base: BaseModel) -> None:
    datums = random_datums(np.random.default_rng(), 8)
    whole, halves = (filled_adapter(base, LoraConfig(4, 0)) for _ in range(2))
    forward_backward(base, whole, datums, "cross_entropy", {})
    forward_backward(base, halves, datums[:4], "cross_entropy", {})
    forward_backward(base, halves, datums[4:], "cross_entropy", {})
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(halves)[name], gradient, atol=1e-4, rtol=1e-4)


def test_forward_alone_leaves_no_gradient_and_several_targets_are_answered(
    base: BaseModel,
) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    tokens = np.arange(20)
    targets = np.stack([tokens + 1, tokens + 2, tokens + 3], axis=1)
    wide = forward(base, adapter, [Datum(tokens, {"target_tokens": targets})], "cross_entropy", {})
    narrow = Datum(tokens, {"target_tokens": tokens + 2})
    single = forward(base, adapter, [narrow], "cross_entropy", {})
    assert wide.logprobs[0].shape == (20, 3)
    np.testing.assert_allclose(wide.logprobs[0][:, 1], single.logprobs[0], atol=1e-6)
    assert all(weight.grad is None for weight in adapter.weights.values())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("importance_sampling", {}),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("ppo", {}),
        ("cispo", {}),
        ("cispo", {"clip_low_threshold": 0.7, "clip_high_threshold": 1.3}),
        ("dro", {"beta": 0.05}),
    ],
)
def test_each_loss_and_its_gradient_equal_the_formula_in_float64(name: str, config: dict) -> None:
    rng = np.random.default_rng()
    current, old, advantage = -rng.random(50) * 3, -rng.random(50) * 3, rng.normal(size=50)

    def formula(logprobs: np.ndarray) -> np.ndarray:
        ratio = np.exp(logprobs - old)
        low = config.get("clip_low_threshold", {"ppo": 0.8, "cispo": 0.0}.get(name))
        high = config.get("clip_high_threshold", {"ppo": 1.2, "cispo": 4.0}.get(name))
        if name == "importance_sampling":
            return -ratio * advantage
        if name == "ppo":
            return -np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
        if name == "cispo":  # the coefficient is a constant: taken at the current point
            return -np.clip(np.exp(current - old), low, high) * advantage * logprobs
        return -(logprobs * advantage - 0.5 * config["beta"] * (logprobs - old) ** 2)

    logprobs = torch.tensor(current, requires_grad=True)
    inputs = {"logprobs": torch.tensor(old), "advantages": torch.tensor(advantage)}
    losses = token_losses(name, logprobs, inputs, config)
    np.testing.assert_allclose(losses.detach(), formula(current), rtol=1e-10)
    losses.sum().backward()
    step = 1e-6
    slope = (formula(current + step) - formula(current - step)) / (2 * step)
    assert logprobs.grad is not None
    np.testing.assert_allclose(logprobs.grad, slope, rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_not_finite_names_the_datum(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    datums = random_datums(np.random.default_rng(0), 3)
    with torch.no_grad():
        adapter.weights["lm_head.lora_B"].fill_(float("nan"))
    with pytest.raises(Refused, match="datum 0 is nan"):
        forward_backward(base, adapter, datums, "cross_entropy", {})


@pytest.mark.parametrize(
    ("datum", "sentence"),
    [
        (Datum(np.zeros(0, np.int64), {"target_tokens": np.zeros(0, np.int64)}), "no tokens"),
        (Datum(np.array([1, 2]), {"target_tokens": np.array([1])}), "model_input has 2 tokens"),
        (Datum(np.array([1, -2]), {"target_tokens": np.array([1, 2])}), "-2 is not in the vocab"),
        (Datum(np.array([1]), {"target_tokens": np.array([999])}), "999 is not in the vocab"),
        (Datum(np.array([1]), {}), "needs loss_fn_inputs"),
    ],
)
def test_a_wrong_datum_is_named(base: BaseModel, datum: Datum, sentence: str) -> None:
    good = Datum(np.array([1]), {"target_tokens": np.array([2])})
    with pytest.raises(Refused, match=f"datum 1.*{sentence}"):
        check_datums(base, [good, datum], "cross_entropy", {})


def test_the_optimizer_is_torch_adamw_with_a_clip_and_resumes_bit_for_bit(base: BaseModel) -> None:
    params = AdamParams(3e-3, 0.9, 0.95, 1e-8, weight_decay=0.1, grad_clip_norm=0.5)
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = new_state(adapter)
    twin = {
        name: weight.detach().clone().requires_grad_() for name, weight in adapter.weights.items()
    }
    adamw = torch.optim.AdamW(
        twin.values(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, foreach=False
    )
    rng = np.random.default_rng()
    for step in range(5):
        forward_backward(base, adapter, random_datums(rng, 4), "cross_entropy", {})
        for name, weight in adapter.weights.items():
            assert weight.grad is not None
            twin[name].grad = weight.grad.clone()
        norm = torch.nn.utils.clip_grad_norm_(twin.values(), 0.5)
        adamw.step()
        if step == 3:  # continue on a copy that went through the saved form
            state = load_state_tensors(adapter, state_tensors(state))
        metrics = optim_step(adapter, state, params)
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, weight in adapter.weights.items():
        torch.testing.assert_close(weight, twin[name], atol=1e-6, rtol=1e-5)


def test_a_step_without_gradients_changes_nothing_as_in_torch(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    before = {name: weight.detach().clone() for name, weight in adapter.weights.items()}
    state = new_state(adapter)
    assert optim_step(adapter, state, AdamParams(0.1, weight_decay=0.5)) == {"grad_norm": 0.0}
    assert state.step == 0
    for name, weight in adapter.weights.items():
        assert torch.equal(weight, before[name])
    twin = next(iter(before.values())).requires_grad_()
    torch.optim.AdamW([twin], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(twin, before[next(iter(before))])


def test_packs_hold_every_sequence_once_within_the_budget() -> None:
    rng = np.random.default_rng()
    lengths = rng.integers(1, 5000, 200).tolist()
    groups = packs(lengths, 4096)
    assert sorted(index for group in groups for index in group) == list(range(200))
    assert all(len(g) == 1 or sum(lengths[i] for i in g) <= 4096 for g in groups)
