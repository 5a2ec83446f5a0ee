"""The base in 8 bits: rounding, products, a training step and sampling, on fresh random inputs.

On a CPU, where torch has the same products; what is marked so runs on a GPU only, and never has.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import (
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tests.support.adapters import filled_adapter, gradients
from tests.support.answers import assert_equal_answers
from tests.support.batches import random_datums
from tests.support.dense_models import FAMILIES, SHAPE, assert_equal_gradients, flat, save_uneven
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.gpu import float8
from tinkersmith.engine.gpu.float8 import (
    FLOAT8,
    Float8Linear,
    Float8Products,
    check_device,
    dequantise,
    float8_products,
    quantise,
)
from tinkersmith.engine.kernels.choose import Means, choose_kernels
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import snapshot
from tinkersmith.engine.model.base_model import BaseModel, load_base_model, memory_of_weights
from tinkersmith.engine.model.dense import dense_model
from tinkersmith.engine.model.lora import Adapter, LoraLinear
from tinkersmith.engine.model.projection import Projection, update_of
from tinkersmith.engine.runtime.base_models import BaseModels
from tinkersmith.engine.runtime.experimental import Experimental
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.training.step import forward_backward

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs a GPU with products in 8 bits",
)


def has_products_on_the_cpu() -> bool:
    try:
        float8.worst_difference(CPU)
    except RuntimeError:
        return False
    return True


needs_products = pytest.mark.skipif(
    not has_products_on_the_cpu(),
    reason="this torch computes products with a scale for each row on GPUs alone, as 2.11 does",
)


class Rounding(nn.Module):
    """A layer with the weights of `layer` in float32, whose input is rounded; in plain autograd."""

    def __init__(self, layer: Float8Linear) -> None:
        super().__init__()
        self.weight = dequantise(layer.weight, layer.scale, torch.float32)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rounded = dequantise(*quantise(x.detach()), x.dtype)
        return linear(x + (rounded - x).detach(), self.weight, self.bias)


@pytest.fixture(params=["qwen3", "qwen2", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_uneven(FAMILIES[request.param](), tmp_path)
    return tmp_path


def projections(base: BaseModel) -> list[LoraLinear]:
    return [base.linears[path] for part in ("attention", "mlp") for path in base.parts[part]]


def in_full_precision(folder: Path) -> BaseModel:
    """Layers in 8 bits, and all else in fp32, so that nothing but the 8 bits rounds."""
    base = load_with_torch("narrow", folder)
    float8.quantise_layers(projections(base), CPU)
    base.dense = dense_model(base.model)
    return with_float8_kernels(base)


def with_float8_kernels(base: BaseModel) -> BaseModel:
    return replace(base, kernels=choose_kernels(base, Means(products=float8_products(base))))


def load_in_8_bits(name: str, folder: Path, device: str = "cpu") -> BaseModel:
    return with_float8_kernels(load_base_model(name, folder, "bfloat16", device, FLOAT8))


def twin(folder: Path) -> BaseModel:
    """The same function through the model's own layers and autograd."""
    base = load_with_torch("twin", folder)
    for layer in projections(base):
        layer.base = Rounding(Float8Linear(layer.base, CPU))  # type: ignore[assignment]
    return replace(base, kernels=None)


# ---- rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_keeps_four_digits_of_every_number_that_is_not_tiny_in_its_row(
    dtype: torch.dtype,
) -> None:
    matrix = (torch.randn(60, 160) * torch.logspace(-30, 30, 60)[:, None]).to(dtype)
    values, scale = quantise(matrix)
    assert values.dtype == torch.float8_e4m3fn and scale.shape == (60, 1)
    exact, largest = matrix.double(), matrix.double().abs().amax(1, keepdim=True)
    error = (values.double() * scale.double() - exact).abs()
    # Half of the last of 4 binary digits; below 2^-6 of scale, half of the smallest step.
    assert (error <= torch.maximum(exact.abs() / 16, scale.double() * 2.0**-10)).all()
    mantissa = torch.frexp(scale).mantissa
    assert (mantissa == 0.5).all()
    assert (largest <= 448 * scale.double()).all() and (largest > 223 * scale.double()).all()


def test_cast_back_it_is_exact_in_bfloat16_too() -> None:
    values, scale = quantise(torch.randn(40, 160) * torch.logspace(-3, 3, 40)[:, None])
    exact = values.double() * scale.double()
    assert torch.equal(dequantise(values, scale, torch.bfloat16).double(), exact)
    again, same = quantise(exact.float())
    assert torch.equal(again.double() * same.double(), exact)


@pytest.mark.parametrize("broken", [torch.inf, -torch.inf, torch.nan])
def test_a_number_that_is_not_finite_stays_one_and_rows_of_zeros_stay_zero(broken: float) -> None:
    matrix = torch.randn(3, 32)
    matrix[0], matrix[1, 5] = 0, broken
    rounded = dequantise(*quantise(matrix), torch.float32)
    assert (
        (rounded[0] == 0).all() and not rounded[1].isfinite().any() and rounded[2].isfinite().all()
    )


# ---- products


@needs_products
def test_torchs_products_equal_plain_ones_of_the_rounded_numbers() -> None:
    assert float8.worst_difference(CPU) < 0.004  # bfloat16 has 8 digits


@needs_gpu
def test_the_gpus_products_equal_plain_ones_of_the_rounded_numbers() -> None:
    check_device(torch.device("cuda"))
    assert float8.worst_difference(torch.device("cuda")) < 0.01


@pytest.fixture
def joined(folder: Path) -> tuple[BaseModel, Projection, Adapter]:
    base = in_full_precision(folder)
    assert base.dense is not None
    return base, base.dense.layers[1].qkv, filled_adapter(base, LoraConfig(4, 0))


@needs_products
def test_a_projection_and_its_gradient_equal_those_in_float64(
    joined: tuple[BaseModel, Projection, Adapter],
) -> None:
    base, projection, adapter = joined
    update, products = update_of(projection, adapter), float8_products(base)(TORCH_ELEMENTWISE)
    assert update is not None and isinstance(products, Float8Products)
    x, grad = torch.randn(37, 48), torch.randn(37, sum(projection.sizes))
    output, low = torch.empty_like(grad), x.new_empty(37, len(update.a))
    products.project(x, projection, update, output, low)
    grad_x, _ = products.input_gradient(grad, projection, update)

    weight = dequantise(projection.weight, products.scales[projection.paths], torch.float64)
    expected = dequantise(*quantise(x), torch.float64) @ weight.T
    if projection.bias is not None:
        expected += projection.bias.double()
    delta = torch.zeros_like(weight)
    for part in update.parts:
        delta[part.columns] = part.b.double() @ update.a[part.ranks].double()
    expected += x.double() @ delta.T
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        grad_x.double(), grad.double() @ (weight + delta), atol=1e-5, rtol=1e-5
    )


# ---- the model


@pytest.fixture
def unrounded_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without steps in the function, sums in another order give the same but for their last digits.

    With them, a number on a border between two of 8 bits changes what comes behind it.
    """

    def exact_product(
        x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, output: torch.Tensor
    ) -> None:
        output.copy_(x @ dequantise(weight, scale, x.dtype).T)

    monkeypatch.setattr(float8, "scaled_product", exact_product)


def test_a_training_step_equals_that_of_a_model_with_the_rounded_weights(
    folder: Path, unrounded_inputs: None
) -> None:
    narrow = in_full_precision(folder)
    datums = random_datums(np.random.default_rng(), 12)
    ours, theirs = (filled_adapter(narrow, LoraConfig(4, 0)) for _ in range(2))
    found = forward_backward(narrow, ours, datums, "cross_entropy", {})
    wide = replace(narrow, kernels=None)
    expected = forward_backward(wide, theirs, datums, "cross_entropy", {})
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert_equal_gradients(gradients(ours), gradients(theirs))


def test_greedy_samples_equal_those_of_a_model_with_the_rounded_weights(
    folder: Path, unrounded_inputs: None
) -> None:
    narrow = in_full_precision(folder)
    adapter = snapshot(filled_adapter(narrow, LoraConfig(4, 0)))
    found = sample(narrow, adapter, greedy_requests())
    expected = sample(replace(narrow, kernels=None), adapter, greedy_requests())
    assert_equal_answers(found, expected)


def greedy_requests() -> list[SampleRequest]:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 300, length).tolist() for length in (1, 9, 30, 17, 50, 4)]
    return [SampleRequest(prompt, max_tokens=12, temperature=0.0) for prompt in prompts]


@needs_products
def test_a_training_step_with_rounded_inputs_agrees_with_autograd(folder: Path) -> None:
    narrow, wide = in_full_precision(folder), twin(folder)
    datums = random_datums(np.random.default_rng(), 12)
    ours, theirs = (filled_adapter(base, LoraConfig(4, 0)) for base in (narrow, wide))
    found = forward_backward(narrow, ours, datums, "cross_entropy", {})
    expected = forward_backward(wide, theirs, datums, "cross_entropy", {})
    assert found.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=0.02)
    assert torch.cosine_similarity(flat(ours), flat(theirs), dim=0) > 0.995


@needs_products
def test_samples_have_the_log_probabilities_that_the_twin_gives_their_tokens(folder: Path) -> None:
    narrow, wide = in_full_precision(folder), twin(folder)
    errors = []
    for request, result in zip(
        greedy_requests(), sample(narrow, None, greedy_requests()), strict=True
    ):
        sequence = result.sequences[0]
        tokens = torch.tensor([*request.prompt, *sequence.tokens])
        logits = wide.logits(wide.hidden(tokens, [len(tokens)], None), None)
        logits = logits[len(request.prompt) - 1 : -1].detach()
        expected = logits.log_softmax(-1).gather(-1, tokens[len(request.prompt) :, None])[:, 0]
        errors.append((torch.tensor(sequence.logprobs) - expected).abs())
    assert torch.cat(errors).mean() < 0.05


@needs_products
def test_a_training_step_stays_near_that_in_bfloat16_and_full_precision(folder: Path) -> None:
    datums = random_datums(np.random.default_rng(), 12)
    losses, steps = {}, {}
    for dtype in ("float32", "bfloat16", "float8"):
        load = load_in_8_bits if dtype == "float8" else partial(load_with_torch, dtype=dtype)
        base = load(dtype, folder)
        adapter = filled_adapter(base, LoraConfig(4, 0))
        output = forward_backward(base, adapter, datums, "cross_entropy", {})
        losses[dtype], steps[dtype] = np.concatenate(output.logprobs), flat(adapter)
    for wide in ("float32", "bfloat16"):
        # Three random layers, whose numbers have 4 binary digits, on logits of some units.
        assert np.abs(losses["float8"] - losses[wide]).mean() < 0.5
        assert torch.cosine_similarity(steps["float8"], steps[wide], dim=0) > 0.9


# ---- memory


def test_nothing_is_held_twice_and_the_accounting_knows(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path, hidden=256)
    base = load_in_8_bits("narrow", folder)
    assert base.dense is not None and base.dtype == torch.bfloat16
    held = memory_held(base)
    expected = memory_of_weights(folder, "bfloat16", "cpu", FLOAT8)
    assert expected <= held < 1.05 * expected  # scales besides
    in_projections = sum(layer.weight.numel() for layer in projections(base))
    assert memory_of_weights(folder, "bfloat16", "cpu") - expected == in_projections > 0
    first = base.linears["model.layers.0.self_attn.k_proj"].base.weight
    assert first.dtype == torch.float8_e4m3fn
    assert first.untyped_storage().data_ptr() == base.dense.layers[0].qkv.weight.data_ptr()


def memory_held(base: BaseModel) -> int:
    """Bytes of the model's tensors and those of its dense path, each storage counted once."""
    assert base.dense is not None and base.kernels is not None
    assert isinstance(base.kernels.products, Float8Products)
    weights = [projection.weight for layer in base.dense.layers for projection in layer.projections]
    scales = base.kernels.products.scales.values()
    tensors = [*base.model.parameters(), *base.model.buffers(), *weights, *scales]
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


# ---- what is refused


def test_a_gpu_without_such_products_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(Refused, match=r"capability 8\.9 or more.* this one has 8\.0"):
        check_device(torch.device("cuda"))


@pytest.mark.parametrize(
    ("answer", "said"),
    [(0.5, r"wrong .* off by 5\.0e-01"), (RuntimeError("no kernel\nat all"), "no kernel Use")],
)
def test_a_gpu_whose_products_are_wrong_or_absent_is_refused(
    monkeypatch: pytest.MonkeyPatch, answer: float | Exception, said: str
) -> None:
    def worst_difference(device: torch.device) -> float:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(float8, "worst_difference", worst_difference)
    with pytest.raises(Refused, match=said):
        check_device(torch.device("cuda"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Phi3ForCausalLM(Phi3Config(**SHAPE, pad_token_id=0)),
        lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2)),
    ],
)
def test_models_without_the_dense_path_are_refused(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    make().save_pretrained(tmp_path)
    asked = Experimental(float8=True)
    models = BaseModels(Catalogue({"other": tmp_path}), "bfloat16", "cpu", 1, asked)
    with pytest.raises(Refused, match=r"other .* cannot be loaded with --dtype float8"):
        models.get("other")


def test_sizes_that_the_products_cannot_have_are_refused(tmp_path: Path) -> None:
    MistralForCausalLM(MistralConfig(**SHAPE, head_dim=12)).save_pretrained(tmp_path)
    with pytest.raises(Refused, match=r"has 48 inputs and 72 outputs; .* multiples of 16"):
        load_in_8_bits("odd", tmp_path)


# ---- on a GPU


@needs_gpu
@needs_products
def test_a_training_step_on_a_gpu_equals_that_on_a_cpu(folder: Path) -> None:
    datums = random_datums(np.random.default_rng(), 12)
    steps = []
    for device in ("cpu", "cuda"):
        base = load_in_8_bits(device, folder, device)
        adapter = filled_adapter(base, LoraConfig(4, 0))
        forward_backward(base, adapter, datums, "cross_entropy", {})
        steps.append(flat(adapter).cpu())
    assert torch.cosine_similarity(*steps, dim=0) > 0.98
