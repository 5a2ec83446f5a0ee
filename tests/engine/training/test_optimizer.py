"""Steps: AdamW in float64, the clip, exact resume through files, adapters that take turns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import adapter_state, load_adapter_state, new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.optimizer import (
    OptimizerState,
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.training.step import forward_backward

PARAMS = AdamParams(learning_rate=1e-2, weight_decay=0.05, grad_clip_norm=5.0)
Batches = list[list[Datum]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_with_torch("tiny", make_tiny_model(folder))


def batches(seed: int, count: int) -> Batches:
    rng = np.random.default_rng(seed)
    return [random_datums(rng, 4) for _ in range(count)]


def train(base: BaseModel, adapter: Adapter, state: OptimizerState, batch: list[Datum]) -> float:
    loss = forward_backward(base, adapter, batch, "cross_entropy", {}).metrics["loss:sum"]
    optim_step(adapter, state, PARAMS)
    return loss


def weights(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in adapter.weights.items()}


def assert_same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_steps_follow_the_adamw_formula_in_float64_with_new_settings_each_step(
    base: BaseModel,
) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = new_state(adapter)
    theta = {name: weight.double().numpy() for name, weight in weights(adapter).items()}
    first = {name: np.zeros_like(value) for name, value in theta.items()}
    second = {name: np.zeros_like(value) for name, value in theta.items()}
    for step, batch in enumerate(batches(seed=1, count=4), start=1):
        params = AdamParams(1e-2 / step, 0.9, 0.95, weight_decay=0.1 * step)  # eps 1e-12
        forward_backward(base, adapter, batch, "cross_entropy", {})
        slopes = {name: grad.double().numpy() for name, grad in gradients(adapter).items()}
        optim_step(adapter, state, params)
        for name, slope in slopes.items():
            first[name] = 0.9 * first[name] + 0.1 * slope
            second[name] = 0.95 * second[name] + 0.05 * slope**2
            mean, square = first[name] / (1 - 0.9**step), second[name] / (1 - 0.95**step)
            theta[name] *= 1 - params.learning_rate * params.weight_decay
            theta[name] -= params.learning_rate * mean / (np.sqrt(square) + params.eps)
            now = adapter.weights[name].detach().numpy()
            np.testing.assert_allclose(now, theta[name], rtol=1e-4, atol=2e-6, err_msg=name)


def test_a_clip_far_below_the_norm_freezes_the_weights(base: BaseModel) -> None:
    batch = batches(seed=2, count=1)[0]
    moved = []
    for clip in (0.0, 1e-9):
        adapter = filled_adapter(base, LoraConfig(4, 0))
        before = weights(adapter)
        forward_backward(base, adapter, batch, "cross_entropy", {})
        # Adam divides by the gradient's own size: eps must be larger than what the clip leaves.
        params = AdamParams(1e-2, eps=1e-6, grad_clip_norm=clip)
        norm = optim_step(adapter, new_state(adapter), params)["grad_norm"]
        assert norm > 1  # as it was before the clip
        moved.append(max(float((weights(adapter)[n] - before[n]).abs().max()) for n in before))
    assert moved[0] > 9e-3
    assert moved[1] < 1e-3 * moved[0]


def test_a_clip_above_the_norm_changes_no_bit(base: BaseModel) -> None:
    batch = batches(seed=3, count=1)[0]
    ends = []
    for clip in (0.0, 1e9):
        adapter = filled_adapter(base, LoraConfig(4, 0))
        forward_backward(base, adapter, batch, "cross_entropy", {})
        optim_step(adapter, new_state(adapter), AdamParams(1e-2, grad_clip_norm=clip))
        ends.append(weights(adapter))
    assert_same_bits(*ends)


def test_the_clip_counts_all_accumulated_gradients_together(base: BaseModel) -> None:
    batch = batches(seed=4, count=1)[0]
    adapter = filled_adapter(base, LoraConfig(4, 0))
    forward_backward(base, adapter, batch[:2], "cross_entropy", {})
    forward_backward(base, adapter, batch[2:], "cross_entropy", {})
    total = sum(float(grad.double().square().sum()) for grad in gradients(adapter).values())
    metrics = optim_step(adapter, new_state(adapter), AdamParams(grad_clip_norm=0.5))
    assert metrics["grad_norm"] == pytest.approx(total**0.5, rel=1e-5)
    assert all(weight.grad is None for weight in adapter.weights.values())


def test_weight_decay_is_decoupled_from_the_gradient(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    before = weights(adapter)
    silent = [
        Datum(datum.tokens, {**datum.inputs, "weights": np.zeros(len(datum.tokens), np.float32)})
        for datum in batches(seed=5, count=1)[0]
    ]
    forward_backward(base, adapter, silent, "cross_entropy", {})
    optim_step(adapter, new_state(adapter), AdamParams(0.1, weight_decay=0.5))
    for name, weight in weights(adapter).items():
        torch.testing.assert_close(weight, before[name] * 0.95)


def test_training_resumes_from_files_bit_for_bit(base: BaseModel, tmp_path: Path) -> None:
    steps = batches(seed=6, count=6)
    adapter = new_adapter(base, LoraConfig(8, seed=1))
    state = new_state(adapter)
    for batch in steps[:3]:
        train(base, adapter, state, batch)
    save_file(adapter_state(adapter), tmp_path / "adapter.safetensors")
    save_file(state_tensors(state), tmp_path / "optimizer.safetensors")
    expected = [train(base, adapter, state, batch) for batch in steps[3:]]

    reloaded = load_with_torch("tiny", base.folder)
    resumed = new_adapter(reloaded, LoraConfig(8, seed=99))
    load_adapter_state(resumed, load_file(tmp_path / "adapter.safetensors"))
    resumed_state = load_state_tensors(resumed, load_file(tmp_path / "optimizer.safetensors"))
    other = filled_adapter(reloaded, LoraConfig(2, 5))
    other_state = new_state(other)
    losses = []
    for batch in steps[3:]:
        losses.append(train(reloaded, resumed, resumed_state, batch))
        train(reloaded, other, other_state, batch[:1])
    assert losses == expected
    assert_same_bits(weights(resumed), weights(adapter))
    assert_same_bits(state_tensors(resumed_state), state_tensors(state))


def test_adapters_of_different_rank_and_parts_take_turns_as_if_each_were_alone(
    base: BaseModel,
) -> None:
    configs = [LoraConfig(2, 1), LoraConfig(16, 2), LoraConfig(8, 3, train_unembed=False)]
    data = [batches(seed, count=3) for seed in (7, 8, 9)]
    alone = []
    for config, own in zip(configs, data, strict=True):
        adapter = new_adapter(base, config)
        state = new_state(adapter)
        losses = [train(base, adapter, state, batch) for batch in own]
        alone.append((losses, weights(adapter)))

    adapters = [new_adapter(base, config) for config in configs]
    states = [new_state(adapter) for adapter in adapters]
    together: list[list[float]] = [[], [], []]
    for step in range(3):
        for index in (0, 1, 2):  # forward_backward of all before the first step of any
            batch = data[index][step]
            output = forward_backward(base, adapters[index], batch, "cross_entropy", {})
            together[index].append(output.metrics["loss:sum"])
        sample(base, adapters[0], [SampleRequest([1, 2, 3], max_tokens=3)])
        for index in (2, 0, 1):
            optim_step(adapters[index], states[index], PARAMS)
    for index, (losses, end) in enumerate(alone):
        assert together[index] == losses
        assert_same_bits(weights(adapters[index]), end)


def test_gradients_that_are_not_finite_change_nothing_and_are_dropped(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = new_state(adapter)
    train(base, adapter, state, batches(seed=10, count=1)[0])
    before, state_before = weights(adapter), state_tensors(state)
    state_before = {name: tensor.clone() for name, tensor in state_before.items()}
    forward_backward(base, adapter, batches(seed=11, count=1)[0], "cross_entropy", {})
    name = next(iter(adapter.weights))
    grad = adapter.weights[name].grad
    assert grad is not None
    grad[0, 0] = float("inf")
    with pytest.raises(Refused, match="not finite"):
        optim_step(adapter, state, PARAMS)
    assert_same_bits(weights(adapter), before)
    assert_same_bits(state_tensors(state), state_before)
    assert all(weight.grad is None for weight in adapter.weights.values())


def test_the_state_of_another_adapter_is_refused(base: BaseModel) -> None:
    small, large = (new_adapter(base, LoraConfig(rank, 0)) for rank in (2, 4))
    with pytest.raises(Refused, match="does not fit the adapter at"):
        load_state_tensors(small, state_tensors(new_state(large)))
    without = new_adapter(base, LoraConfig(2, 0, train_unembed=False))
    with pytest.raises(Refused, match="lm_head"):
        load_state_tensors(small, state_tensors(new_state(without)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("eps", -1e-9),
        ("weight_decay", float("inf")),
        ("grad_clip_norm", -1.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(Refused, match=f"{field} is {value}"):
        AdamParams(**{field: value})
