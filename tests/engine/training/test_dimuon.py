"""Dimuon: against the singular value decomposition in float64, its state, and through the SDK."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load_file, save_file
from tinker import types

from tests.support.adapters import filled_adapter
from tests.support.batches import random_datums
from tests.support.engine import MODEL, RunningEngine
from tests.support.engine import random_datums as sdk_datums
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams, Datum, DimuonParams, LoraConfig
from tinkersmith.engine.model.adapters import adapter_state, load_adapter_state, new_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.training.dimuon import COEFFICIENTS, direction, matrix_sign
from tinkersmith.engine.training.optimizer import (
    OptimizerState,
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.training.step import forward_backward

PARAMS = DimuonParams(learning_rate=0.01)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_with_torch("tiny", make_tiny_model(tmp_path_factory.mktemp("model")))


def batches(seed: int, count: int) -> list[list[Datum]]:
    rng = np.random.default_rng(seed)
    return [random_datums(rng, 4) for _ in range(count)]


def train(
    base: BaseModel,
    adapter: Adapter,
    state: OptimizerState,
    batch: list[Datum],
    params: DimuonParams = PARAMS,
) -> dict[str, float]:
    forward_backward(base, adapter, batch, "cross_entropy", {})
    return optim_step(adapter, state, params)


def twin_sign(matrix: np.ndarray, of_value: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The matrix with each singular value, in units of the Frobenius norm, replaced."""
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    length = np.sqrt((s**2).sum())
    return (u * of_value(s / length if length else s)) @ vt


def iterated(values: np.ndarray) -> np.ndarray:
    """What the iteration makes of a number; of those above 0.001, 1."""
    for a, b, c in COEFFICIENTS:
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", [(4, 40), (40, 4), (32, 32), (3, 8, 20)])
def test_the_sign_of_a_matrix_is_that_of_its_singular_value_decomposition(
    shape: tuple[int, ...],
) -> None:
    matrix = np.random.default_rng(0).normal(size=shape)
    short = min(shape[-2:])
    # Condition 100: far worse than a random matrix.
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    matrix = (u * np.geomspace(1, 0.01, short)) @ vt
    found = matrix_sign(torch.from_numpy(matrix.astype(np.float32))).double().numpy()
    flat, given = found.reshape(-1, *shape[-2:]), matrix.reshape(-1, *shape[-2:])
    for sign, of in zip(flat, given, strict=True):
        np.testing.assert_allclose(sign, twin_sign(of, np.ones_like), atol=2e-5)


def test_every_number_above_a_thousandth_is_taken_to_one() -> None:
    np.testing.assert_allclose(iterated(np.linspace(1e-3, 1, 5000)), 1, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_direction_has_the_norm_of_the_rank_whatever_the_momentum_s_scale(scale: float) -> None:
    momentum = torch.randn(8, 30, generator=torch.Generator().manual_seed(0)) * scale
    assert float(torch.linalg.matrix_norm(direction(momentum, 8))) == pytest.approx(8**0.5)
    wide = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)) * scale  # below the rank
    assert float(torch.linalg.matrix_norm(direction(wide, 8))) == pytest.approx(8**0.5)


def test_no_momentum_gives_no_direction() -> None:
    assert torch.equal(direction(torch.zeros(4, 9), 4), torch.zeros(4, 9))


def test_steps_follow_the_formula_in_float64_with_new_settings_each_step(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = new_state(adapter, "dimuon")
    theta = {name: weight.detach().double().numpy() for name, weight in adapter.weights.items()}
    theta = {name: value.copy() for name, value in theta.items()}
    momentum = {name: np.zeros_like(value) for name, value in theta.items()}
    for step, batch in enumerate(batches(seed=1, count=4), start=1):
        params = DimuonParams(0.02 / step, beta1=0.8 + 0.04 * step)
        forward_backward(base, adapter, batch, "cross_entropy", {})
        gradients = {
            name: weight.grad.double().numpy().copy()
            for name, weight in adapter.weights.items()
            if weight.grad is not None
        }
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients.values()))
        metrics = optim_step(adapter, state, params)
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)
        squares = 0.0
        for name, gradient in gradients.items():
            mean = params.beta1 * momentum[name] + (1 - params.beta1) * gradient
            momentum[name] = mean
            sign = twin_sign(mean, iterated)
            change = sign * np.sqrt(4) / np.sqrt((sign**2).sum())
            theta[name] -= params.learning_rate * change
            squares += (
                (params.learning_rate * change) ** 2
                @ np.ones(change.shape[-1])
                @ np.ones(change.shape[0])
            )
        assert metrics["dimuon_update_norm"] == pytest.approx(np.sqrt(squares), rel=1e-4)
        for name, weight in adapter.weights.items():
            np.testing.assert_allclose(weight.detach().numpy(), theta[name], atol=2e-5)


@pytest.mark.parametrize(("clip", "is_on"), [(0.0, False), (-1.0, False), (0.5, True)])
def test_only_a_positive_limit_clips_the_gradients(
    base: BaseModel, clip: float, is_on: bool
) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = new_state(adapter, "dimuon")
    [batch] = batches(seed=2, count=1)
    metrics = train(base, adapter, state, batch, DimuonParams(0.0, grad_clip_norm=clip, beta1=0.0))
    assert metrics["grad_norm"] > 0.5
    kept = torch.stack([average.norm() for average in state.averages["momentum"].values()]).norm()
    expected = clip if is_on else metrics["grad_norm"]
    assert float(kept) == pytest.approx(expected, rel=1e-5)


def test_training_resumes_from_files_bit_for_bit(base: BaseModel, tmp_path: Path) -> None:
    steps = batches(seed=6, count=4)
    adapter = new_adapter(base, LoraConfig(8, seed=1))
    state = new_state(adapter, "dimuon")
    for batch in steps[:2]:
        train(base, adapter, state, batch)
    save_file(adapter_state(adapter), tmp_path / "adapter.safetensors")
    save_file(state_tensors(state), tmp_path / "optimizer.safetensors")
    expected = [train(base, adapter, state, batch) for batch in steps[2:]]
    resumed = new_adapter(base, LoraConfig(8, seed=99))
    load_adapter_state(resumed, load_file(tmp_path / "adapter.safetensors"))
    saved = load_file(tmp_path / "optimizer.safetensors")
    resumed_state = load_state_tensors(resumed, saved, "dimuon")
    assert [train(base, resumed, resumed_state, batch) for batch in steps[2:]] == expected
    for name, weight in resumed.weights.items():
        assert torch.equal(weight, adapter.weights[name]), name
    with pytest.raises(Refused, match=r"is of dimuon, and this training client has adamw"):
        load_state_tensors(resumed, saved)


def test_the_parameters_of_the_other_optimizer_change_nothing(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    forward_backward(base, adapter, batches(seed=3, count=1)[0], "cross_entropy", {})
    before = {name: weight.detach().clone() for name, weight in adapter.weights.items()}
    for kind, params in (("dimuon", AdamParams()), ("adamw", PARAMS)):
        with pytest.raises(Refused, match=f"created with {kind} .* one client has one optimizer"):
            optim_step(adapter, new_state(adapter, kind), params)
    for name, weight in adapter.weights.items():
        assert torch.equal(weight, before[name])
        assert weight.grad is not None  # the step can be sent again, rightly


@pytest.mark.parametrize(
    ("field", "value"),
    [("learning_rate", -1.0), ("grad_clip_norm", float("nan")), ("beta1", 1.0)],
)
def test_a_setting_out_of_range_is_named(field: str, value: float) -> None:
    with pytest.raises(Refused, match=f"{field} is {value}"):
        DimuonParams(**{"learning_rate": 0.1, field: value})


@pytest.mark.engine
def test_the_sdk_trains_with_dimuon_and_resumes_to_the_last_bit(engine: RunningEngine) -> None:
    config, params = types.DimuonOptimizerConfig(), types.DimuonParams(learning_rate=0.01)
    batch = sdk_datums(4, seed=1)

    def step(client: tinker.TrainingClient) -> float:
        loss = client.forward_backward(batch, "cross_entropy")
        client.optim_step(params).result()
        return loss.result().metrics["loss:sum"]

    with engine.client() as service:
        client = service.create_lora_training_client(
            MODEL, rank=4, seed=1, optimizer=config
        ).result()
        assert client.get_info().optimizer_config.model_dump() == config.model_dump()
        losses = [step(client) for _ in range(3)]
        assert losses[-1] < losses[0]
        client.forward_backward(batch, "cross_entropy").result()
        with pytest.raises(tinker.RequestFailedError, match="one client has one optimizer"):
            client.optim_step(types.AdamParams()).result()
        client.optim_step(params).result()

        state = client.save_state("halfway").result().path
        rest = tinker.RestClient(base_url=engine.url, api_key="tml-local")
        info = rest.get_weights_info_by_tinker_path(state).result()
        assert info.optimizer_config.model_dump() == config.model_dump()
        expected = [step(client) for _ in range(2)]
        resumed = service.create_training_client_from_state_with_optimizer(state).result()
        assert resumed.get_info().optimizer_config.type == "dimuon"
        assert [step(resumed) for _ in range(2)] == expected

        plain = service.create_training_client_from_state(state).result()
        assert plain.get_info().optimizer_config.type == "adamw"
        with pytest.raises(tinker.RequestFailedError, match="saved optimizer state is of dimuon"):
            plain.load_state_with_optimizer(state).result()
        again = service.create_training_client_from_state(state, optimizer=config).result()
        again.forward_backward(batch, "cross_entropy").result()
        metrics = again.optim_step(params).result().metrics
        assert metrics is not None and metrics["dimuon_update_norm"] > 0
