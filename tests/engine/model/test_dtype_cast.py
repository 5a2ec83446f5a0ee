"""Weights in bfloat16 computed in float32: as a model in float32 computes with the same weights."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from tests.support.adapters import filled_adapter, gradients
from tests.support.answers import assert_equal_answers
from tests.support.batches import random_datums
from tests.support.dense_models import FAMILIES, SHAPE, assert_equal_gradients, save_uneven
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.hardware.processor import multiplies_bf16
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.model import base_model, dtype_cast
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime import base_models
from tinkersmith.engine.runtime.base_models import BaseModels
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.training.step import forward_backward


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has no instructions for it; and several tiles also of tiny weights."""
    for module in (base_model, base_models):
        monkeypatch.setattr(module, "multiplies_bf16", lambda: False)
    monkeypatch.setattr(dtype_cast, "_TILE", 1000)


@pytest.fixture(params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model in bfloat16, so that its weights are the same numbers in float32."""
    save_uneven(FAMILIES[request.param](), tmp_path, torch.bfloat16)
    return tmp_path


@pytest.mark.parametrize("tile", [1, 700, 10**6])  # numbers: a row, some rows, all of them
def test_products_are_those_of_the_weight_in_float32(
    tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtype_cast, "_TILE", tile)
    weight, x, grad = torch.randn(70, 33).bfloat16(), torch.randn(5, 33), torch.randn(5, 70)
    output = torch.empty(5, 100)[:, 20:90]  # columns of a wider matrix
    dtype_cast.linear_product(x, weight, output)
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)
    found = dtype_cast.input_gradient(grad, weight)
    assert found.dtype == torch.float32
    expected = grad.double() @ weight.double()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_matrices_keep_their_width_and_nothing_else_does(folder: Path, without_bf16: None) -> None:
    base = load_with_torch("model", folder, "bfloat16")
    assert base.dtype == torch.float32
    for name, parameter in base.model.named_parameters():
        narrow = parameter.ndim == 2
        assert parameter.dtype == (torch.bfloat16 if narrow else torch.float32), name
    assert base.tied == load_with_torch("model", folder, "float32").tied
    assert base.dense is not None
    for layer in base.dense.layers:
        assert {part.weight.dtype for part in layer.projections} == {torch.bfloat16}


@pytest.mark.parametrize("way", ["fast code", "torch", "the model's own layers"])
def test_a_training_step_equals_that_of_the_model_in_float32(
    folder: Path, without_bf16: None, way: str
) -> None:
    narrow, wide = (load_with_torch("model", folder, dtype) for dtype in ("bfloat16", "float32"))
    narrow = in_way(narrow, way)
    datums = random_datums(np.random.default_rng(), 12)
    ours, theirs = (filled_adapter(wide, LoraConfig(4, 0)) for _ in range(2))
    found = forward_backward(narrow, ours, datums, "cross_entropy", {})
    expected = forward_backward(replace(wide, kernels=None), theirs, datums, "cross_entropy", {})
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert_equal_gradients(gradients(ours), gradients(theirs))


def in_way(base: BaseModel, way: str) -> BaseModel:
    if way == "fast code":
        return with_fast_code(base)
    return base if way == "torch" else replace(base, kernels=None)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_greedy_samples_equal_those_of_the_model_in_float32(
    folder: Path, without_bf16: None, dtype: str
) -> None:
    ours, wide = (load_with_torch("model", folder, one) for one in (dtype, "float32"))
    adapter = snapshot(filled_adapter(wide, LoraConfig(4, 0)))
    rng = np.random.default_rng()
    prompts = [rng.integers(0, 300, length).tolist() for length in (1, 9, 30, 17, 50, 4)]
    requests = [SampleRequest(prompt, max_tokens=12, temperature=0.0) for prompt in prompts]
    found = sample(with_fast_code(ours), adapter, requests)
    expected = sample(replace(wide, kernels=None), adapter, requests)
    assert_equal_answers(found, expected)


def test_the_log_says_in_what_the_weights_are_kept_and_computed(
    tmp_path: Path, without_bf16: None, caplog: pytest.LogCaptureFixture
) -> None:
    models = BaseModels(Catalogue({"model": make_tiny_model(tmp_path)}), "bfloat16", threads=1)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        models.get("model")
    assert "loaded model (torch.bfloat16, computed in torch.float32, cpu)" in caplog.text
    assert "slow" not in caplog.text


def test_other_families_compute_in_bfloat16_and_the_log_warns(
    tmp_path: Path, without_bf16: None, caplog: pytest.LogCaptureFixture
) -> None:
    model = Phi3ForCausalLM(Phi3Config(**SHAPE, pad_token_id=0))
    save_uneven(model, tmp_path, torch.bfloat16)
    models = BaseModels(Catalogue({"phi": tmp_path}), "bfloat16", threads=1)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        assert models.get("phi").dtype == torch.bfloat16
    assert "phi will be slow; --dtype float32 is faster" in caplog.text


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor widens weights")
def test_a_processor_with_instructions_for_bfloat16_computes_in_it(folder: Path) -> None:
    base = load_with_torch("model", folder, "bfloat16")
    assert base.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.bfloat16}
