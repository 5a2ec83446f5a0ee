"""The C++ functions against float64 on the same rounded numbers, and their twins in torch."""

import itertools
import logging
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import silu
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.dense_models import FAMILIES, SHAPE, flat, save_uneven
from tests.support.loading import load_with_torch
from tests.support.native_code import library_with_products
from tinkersmith.engine.kernels.choose import Way, choose_way
from tinkersmith.engine.kernels.decoding import TorchLayers
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.head import TorchHead
from tinkersmith.engine.kernels.native import build
from tinkersmith.engine.kernels.native.build import Library, cache_folder, native_library
from tinkersmith.engine.kernels.native.decoding import (
    NativeLayers,
    native_float32_logits,
    native_logits,
)
from tinkersmith.engine.kernels.native.head import NativeHead
from tinkersmith.engine.kernels.native.kernels import (
    NativeAttention,
    NativeProducts,
    native_elementwise,
)
from tinkersmith.engine.kernels.native.row_updates import native_row_updates
from tinkersmith.engine.kernels.native.small_batch import small_batch_product
from tinkersmith.engine.kernels.products import TorchProducts, add_row_updates
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.messages import Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model import base_model, dtype_cast
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.kernels import (
    BLOCK,
    Elementwise,
    Head,
    HeadTransform,
    HeadWeights,
    PackedAttention,
    Products,
)
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.model.projection import (
    Part,
    Projection,
    RowUpdates,
    Update,
    update_of,
)
from tinkersmith.engine.runtime.fast_code import with_native_code
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.dense_pass import DensePass
from tinkersmith.engine.training.head_pass import Pass, head_pass
from tinkersmith.engine.training.losses import has_gradient
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.slow

NEAR: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-5}
ROUNDING = 4e-3  # of a result in bf16, relative to the norm of all: half a unit is 2^-9


@pytest.fixture(scope="module")
def library() -> Library:
    found = native_library(cache_folder())
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.fixture
def products(library: Library) -> NativeProducts:
    library = library_with_products(library)
    return NativeProducts(library, native_elementwise(library, torch.bfloat16))


def bf16(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(shape) * scale).bfloat16()


def off(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The difference relative to the norm of what is expected."""
    return float((ours.double() - expected.double()).norm() / expected.double().norm())


# ---- element-wise work


def elementwise_calls(dtype: torch.dtype) -> dict[str, tuple[list, list[int]]]:
    """Arguments for every function, and which of them it writes to."""
    n, width, groups, share, size = 37, 50, 3, 2, 16

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape).to(dtype)

    room = torch.zeros
    turn = torch.randn(n, 1, size)  # more than is taken: rows are not end to end
    cosine, sine = turn[:, :, : size // 2], turn[:, :, size // 2 :]
    qkv = random(n, groups * (share + 2) * size)
    transform = HeadTransform(random(size), random(size), 1e-6, cosine, sine, 0.3)
    heads = random(groups, n, share, size), torch.randn(groups, n, size)
    into = random(groups, n, share, size), random(groups, n, size), random(groups, n, size)
    before = random(n, width)
    return {
        "rms_norm": ([random(n, width), random(width), 1e-6, random(n, width)], [3]),
        "rms_norm_backward": (
            [random(n, width), random(n, width), random(width), 1e-6, before, random(n, width)],
            [4, 5],
        ),
        "swiglu": ([random(n, 2 * width), random(n, width)], [1]),
        "swiglu_backward": (
            [random(n, width), random(n, 2 * width), random(n, width), random(n, 2 * width)],
            [2, 3],
        ),
        "split_heads": ([qkv, transform, *into], [2, 3, 4]),
        "split_heads_backward": (
            [qkv, transform, *heads, heads[1] + 1, random(*qkv.shape)],
            [5],
        ),
        "exponentials": (
            [random(n, width), torch.randn(n, 1), room(n), room(n, width, dtype=dtype)],
            [2, 3],
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", [field.name for field in fields(Elementwise)])
def test_element_wise_work_is_that_of_torch(
    library: Library, dtype: torch.dtype, name: str
) -> None:
    arguments, written = elementwise_calls(dtype)[name]
    theirs = [one.clone() if isinstance(one, torch.Tensor) else one for one in arguments]
    getattr(native_elementwise(library, dtype), name)(*arguments)
    getattr(TORCH_ELEMENTWISE, name)(*theirs)
    for index in written:
        limit = 1e-6 if arguments[index].dtype == torch.float32 else ROUNDING
        assert off(arguments[index], theirs[index]) < limit, index


@pytest.mark.parametrize("norms", [True, False])
def test_heads_without_a_norm_are_only_turned(library: Library, norms: bool) -> None:
    arguments, _ = elementwise_calls(torch.float32)["split_heads"]
    back, _ = elementwise_calls(torch.float32)["split_heads_backward"]
    if not norms:
        for given in (arguments, back):
            given[1] = given[1]._replace(query_norm=None, key_norm=None)
    ours, plain = native_elementwise(library, torch.float32), TORCH_ELEMENTWISE
    expected = [one.clone() for one in arguments[-3:]]
    ours.split_heads(*arguments)
    plain.split_heads(*arguments[:-3], *expected)
    for one, other in zip(arguments[-3:], expected, strict=True):
        assert off(one, other) < 1e-6
    expected = back[-1].clone()
    ours.split_heads_backward(*back)
    theirs = [*back[:-1], expected]
    plain.split_heads_backward(*theirs)
    assert off(back[-1], expected) < 1e-6


def test_what_is_no_number_stays_none(library: Library) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, 64).to(dtype)
        x[1, 7] = torch.nan
        output = torch.empty(4, 32, dtype=dtype)
        native_elementwise(library, dtype).swiglu(x, output)
        assert output.isnan().sum() == 1 and output[1, 7].isnan()


# ---- products


def projection_of(sizes: tuple[int, ...], width: int, bias: bool) -> Projection:
    weight = bf16(sum(sizes), width, scale=width**-0.5)
    paths = tuple(f"part{index}" for index in range(len(sizes)))
    return Projection(weight, weight.dtype, bf16(sum(sizes)) if bias else None, paths, sizes)


def adapter_of(projection: Projection, rank: int, trained: set[int]) -> Adapter:
    weights = {}
    for index, (path, size) in enumerate(zip(projection.paths, projection.sizes, strict=True)):
        if index in trained:
            a = torch.randn(rank, projection.weight.shape[1]) * 0.1
            weights[f"{path}.lora_A"] = torch.nn.Parameter(a)
            weights[f"{path}.lora_B"] = torch.nn.Parameter(torch.randn(size, rank) * 0.1)
    return Adapter(LoraConfig(rank, 0), weights)


CASES = [
    pytest.param(rows, sizes, width, rank, trained, bias, id=f"{rows}-{sizes}-{width}-{rank}")
    for rows, sizes, width, rank, trained, bias in [
        (37, (64, 32, 32), 48, 4, {0, 1, 2}, True),
        (6, (50, 22, 22), 70, 3, {0, 2}, False),
        (1, (130,), 34, 1, {0}, False),
        (300, (200,), 5000, 6, {0}, True),  # deeper than a panel
        (450, (12, 20), 66, 70, {1}, True),
    ]
]


@pytest.mark.parametrize(("rows", "sizes", "width", "rank", "trained", "bias"), CASES)
def test_a_projection_and_its_gradients_equal_those_in_float64(
    products: Products,
    rows: int,
    sizes: tuple[int, ...],
    width: int,
    rank: int,
    trained: set[int],
    bias: bool,
) -> None:
    projection = projection_of(sizes, width, bias)
    adapter = adapter_of(projection, rank, trained)
    update = update_of(projection, adapter)
    assert update is not None
    x, grad, residual = bf16(rows, width), bf16(rows, sum(sizes)), bf16(rows, sum(sizes))
    output, low = torch.empty_like(grad), x.new_empty(rows, len(update.a))
    products.project(x, projection, update, output, low, residual)
    grad_x, grad_low = products.input_gradient(grad, projection, update)
    assert grad_low is not None
    for _ in range(2):  # what is there already stays
        products.add_gradients(update, grad, x, grad_low, low)

    # Only where a rounded number is passed on do the twins start from it.
    expected_low = x.double() @ update.a.double().T
    assert off(low, expected_low) < ROUNDING
    expected = x.double() @ projection.weight.double().T + residual.double()
    if projection.bias is not None:
        expected += projection.bias.double()
    expected_grad_low = torch.zeros_like(expected_low)
    for part in update.parts:
        expected[:, part.columns] += low[:, part.ranks].double() @ part.b.double().T
        expected_grad_low[:, part.ranks] = grad[:, part.columns].double() @ part.b.double()
        of_b = 2 * adapter.scaling * grad[:, part.columns].double().T @ low[:, part.ranks].double()
        of_a = 2 * grad_low[:, part.ranks].double().T @ x.double()
        assert off(update.gradient(part, "B"), of_b[:, :rank]) < 1e-5
        assert off(update.gradient(part, "A"), of_a[:rank]) < 1e-5
    assert off(output, expected) < ROUNDING
    assert off(grad_low, expected_grad_low) < ROUNDING
    expected = grad.double() @ projection.weight.double() + grad_low.double() @ update.a.double()
    assert off(grad_x, expected) < ROUNDING


@pytest.mark.parametrize("rows", [43, 200])
@pytest.mark.parametrize("trained", [{0, 1}, {0}, {1}, set()], ids=str)
def test_the_mlp_between_its_products_equals_that_in_float64(
    products: Products, trained: set[int], rows: int
) -> None:
    width, hidden, rank = 70, 50, 6
    into = projection_of((width, width), hidden, bias=True)
    outof = projection_of((hidden,), width, bias=False)
    first = update_of(into, adapter_of(into, rank, trained))
    last = update_of(outof, adapter_of(outof, rank, trained & {0}))
    x, grad = bf16(rows, hidden), bf16(rows, hidden)
    gate_up, low = x.new_empty(rows, 2 * width), x.new_empty(rows, len(trained) * rank)
    activated = products.project_swiglu(x, into, first, gate_up, low)
    again, inner, grad_low = products.input_gradient_swiglu(grad, outof, last, gate_up)

    assert into.bias is not None
    expected = x.double() @ into.weight.double().T + into.bias.double()
    for part in first.parts if first else ():
        expected[:, part.columns] += low[:, part.ranks].double() @ part.b.double().T
    assert off(gate_up, expected) < ROUNDING
    leaf = gate_up.double().requires_grad_()
    gate, up = leaf.chunk(2, -1)
    middle = silu(gate) * up
    assert off(activated, middle.detach()) < ROUNDING
    assert torch.equal(activated, again)
    of_middle = grad.double() @ outof.weight.double()
    if last is not None and grad_low is not None:
        of_middle += grad_low.double() @ last.a.double()
    middle.backward(of_middle)
    assert leaf.grad is not None
    assert off(inner, leaf.grad) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("rows", [3, 30, 150], ids="{} rows of an adapter".format)
def test_rows_of_several_adapters_in_bf16_get_the_numbers_that_they_get_alone(
    products: NativeProducts, rows: int
) -> None:
    sizes, width = (70, 30, 30), 34
    projection = projection_of(sizes, width, bias=True)
    trained = ({0, 1, 2}, {1}, {0, 2})
    updates = [
        update_of(projection, adapter_of(projection, rank, parts))
        for rank, parts in zip((4, 9, 16), trained, strict=True)
    ]
    # Some rows in front, between and behind have no adapter.
    places = [slice(2, 2 + rows), slice(2 + rows, 5 + rows), slice(7 + rows, 7 + 2 * rows)]
    groups = tuple((at, own) for at, own in zip(places, updates, strict=True) if own is not None)
    count = 10 + 2 * rows
    x, residual = bf16(count, width), bf16(count, sum(sizes))
    # What is not an adapter's must not spoil what is.
    x[2 + rows : 5 + rows] = torch.nan
    together = torch.empty_like(residual)
    products.project(x, projection, RowUpdates(groups), together, x.new_empty(count, 0), residual)
    for row in range(count):
        own = next((update for at, update in groups if at.start <= row < at.stop), None)
        part, alone = slice(row, row + 1), torch.empty_like(residual[:1])
        low = x.new_empty(1, 0 if own is None else len(own.a))
        products.project(x[part], projection, own, alone, low, residual[part])
        if 2 + rows <= row < 5 + rows:
            assert together[row].isnan().all()
            continue
        assert torch.equal(together[part], alone), row
        expected = x[part].double() @ projection.weight.double().T + residual[part].double()
        assert projection.bias is not None
        expected += projection.bias.double()
        for trained_part in own.parts if own else ():
            expected[:, trained_part.columns] += (
                low[:, trained_part.ranks].double() @ trained_part.b.double().T
            )
        assert off(alone, expected) < 2 * ROUNDING


@torch.no_grad()
def test_logits_of_several_adapters_in_bf16_are_those_of_each_alone(
    products: NativeProducts,
) -> None:
    projection, hidden = projection_of((2500,), 66, bias=True), bf16(40, 66, scale=5.0)
    own = [update_of(projection, adapter_of(projection, rank, {0})) for rank in (6, 17)]
    places = slice(3, 20), slice(20, 38)
    groups = tuple((at, one) for at, one in zip(places, own, strict=True) if one is not None)
    tokens = torch.randint(2500, (40, 3))
    logits, exact = native_logits(hidden, projection, RowUpdates(groups), products)
    assert logits is not None
    for at, one in [(slice(0, 3), None), *groups, (slice(38, 40), None)]:
        part, count = hidden[at], at.stop - at.start
        alone = RowUpdates(() if one is None else ((slice(0, count), one),))
        theirs, theirs_exact = native_logits(part, projection, alone, products)
        assert theirs is not None and torch.equal(logits[at], theirs)
        for name in ("highest", "likeliest", "sums"):
            assert torch.equal(getattr(exact, name)[at], getattr(theirs_exact, name))
        torch.testing.assert_close(exact.of(tokens)[at], theirs_exact.of(tokens[at]), **NEAR)


# ---- small-batch products in fp32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_small_batch_products_are_right_for_every_number_of_rows(
    library: Library, dtype: torch.dtype
) -> None:
    product = small_batch_product(library)
    assert product is not dtype_cast.linear_product
    for rows in [*range(1, 12), 31, 32, 33, 100, 140]:
        outputs, width = (int(torch.randint(1, 150, (1,))) for _ in range(2))
        x, weight = torch.randn(rows, 2 * width)[:, :width], torch.randn(outputs, width).to(dtype)
        output = torch.full((rows, outputs + 9), 7.0)
        product(x, weight, output[:, 5:-4])
        assert off(output[:, 5:-4], x.double() @ weight.double().T) < 1e-6
        assert (output[:, :5] == 7).all() and (output[:, -4:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outputs", [3, 16, 90])  # fewer than a vector, one vector, many
def test_a_row_has_the_same_digits_in_any_company(
    library: Library, dtype: torch.dtype, outputs: int
) -> None:
    product, x = small_batch_product(library), torch.randn(70, 75)
    weight = torch.randn(outputs, 75).to(dtype)
    together = torch.empty(70, outputs)
    product(x, weight, together)
    for few in range(1, 20):
        apart = torch.empty(70, outputs)
        for rows, found in zip(x.split(few), apart.split(few), strict=True):
            product(rows, weight, found)
        assert torch.equal(together, apart), few


@torch.no_grad()
@pytest.mark.parametrize("vocabulary", [5, BLOCK, 2500, 3 * BLOCK])
@pytest.mark.parametrize("rows", [1, 40, 200])
def test_logits_in_fp32_come_with_the_sums_that_a_draw_needs(
    library: Library, rows: int, vocabulary: int
) -> None:
    elementwise = native_elementwise(library, torch.float32)
    product = small_batch_product(library)
    products = TorchProducts(elementwise, product, native_row_updates(library, product))
    weight, bias = torch.randn(vocabulary, 66), torch.randn(vocabulary)
    # Equals, whatever the order of the sums: the first of them is the most likely.
    weight[[0, -1]], bias[[0, -1]] = 0.0, 300.0
    projection = Projection(weight, torch.float32, bias, ("unembed",), (vocabulary,))
    hidden = torch.randn(rows, 66)
    b = torch.randn(6, vocabulary).T
    b[[0, -1]] = 0.0
    part = Part("", slice(0, vocabulary), slice(0, 6), b)
    update = Update(Adapter(LoraConfig(6), {}), torch.randn(6, 66), [part])
    updates = RowUpdates(((slice(rows // 2, rows), update),))
    logits, exact = native_float32_logits(hidden, projection, updates, products, library)
    expected = hidden.double() @ weight.double().T + bias.double()
    low = hidden[rows // 2 :].double() @ update.a.double().T
    expected[rows // 2 :] += low @ part.b.double().T
    assert off(logits, expected) < 1e-6
    for index, block in enumerate(logits.split(BLOCK, -1)):
        assert torch.equal(exact.highest[:, index], block.amax(-1))
        assert torch.equal(exact.likeliest[:, index].long(), block.argmax(-1) + index * BLOCK)
        sums = (block.double() - block.amax(-1, keepdim=True)).exp().sum(-1)
        torch.testing.assert_close(exact.sums[:, index].double(), sums, rtol=1e-5, atol=0)
    assert torch.equal(exact.argmax(), logits.argmax(-1)) and not exact.argmax().any()
    torch.testing.assert_close(
        exact.normaliser()[:, 0].double(), logits.double().logsumexp(-1), atol=1e-5, rtol=1e-6
    )
    tokens = torch.randint(vocabulary, (rows, 3))
    assert torch.equal(exact.of(tokens), logits.gather(-1, tokens))


@torch.no_grad()
@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_logits_in_fp32_that_are_no_numbers_are_seen_in_the_normaliser(
    library: Library, broken: float
) -> None:
    products = TorchProducts(TORCH_ELEMENTWISE)
    weight, hidden = torch.randn(2500, 8), torch.randn(3, 8)
    bias = torch.zeros(2500)
    bias[BLOCK : 2 * BLOCK] = broken
    projection = Projection(weight, torch.float32, bias, ("unembed",), (2500,))
    logits, exact = native_float32_logits(hidden, projection, RowUpdates(()), products, library)
    # Tokens that can never follow are no error, not even a whole block of them.
    assert bool(exact.normaliser().isfinite().all()) == (broken == -torch.inf)
    if broken == -torch.inf:
        expected = logits.logsumexp(-1, keepdim=True)
        torch.testing.assert_close(exact.normaliser(), expected, atol=1e-5, rtol=1e-6)
        assert torch.equal(exact.argmax(), logits.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 8, 40])
def test_what_adapters_add_to_their_rows_is_right_and_the_same_whoever_has_the_others(
    library: Library, rows: int
) -> None:
    add = native_row_updates(library, small_batch_product(library))
    width = 2 * rows + 3
    x, output = torch.randn(width, 70), torch.randn(width, 96 + 31)
    groups: list[tuple[slice, Update]] = []
    for first, rank, sizes in ((0, 2, (96, 31)), (rows, 16, (31,)), (2 * rows, 64, (96,))):
        parts, a = list[Part](), torch.randn(rank * len(sizes), 70)
        for number, size in enumerate(sizes):
            start = 0 if size == 96 else 96
            b = torch.randn(rank, size).T
            ranks = slice(number * rank, (number + 1) * rank)
            parts.append(Part("", slice(start, start + size), ranks, b))
        adapter = Adapter(LoraConfig(rank), {})
        count = 2 if first == 2 * rows else rows
        groups.append((slice(first, first + count), Update(adapter, a, parts)))
    expected = output.double()
    for chosen, update in groups:
        low = x[chosen].double() @ update.a.double().T
        for part in update.parts:
            expected[chosen, part.columns] += low[:, part.ranks] @ part.b.double().T
    together = output.clone()
    add(x, RowUpdates(tuple(groups)), together)
    assert off(together, expected) < 1e-6
    assert torch.equal(together[-1], output[-1])  # the row of no adapter
    if rows > 32:
        return  # torch computes so many, and rounds as it likes
    for number in range(width):
        of_row = [(slice(0, 1), own) for at, own in groups if at.start <= number < at.stop]
        alone = output[number : number + 1].clone()
        if of_row:
            add(x[number : number + 1], RowUpdates(tuple(of_row)), alone)
        assert torch.equal(together[number], alone[0])


def test_wrong_products_of_adapters_are_not_used(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    class Idle:
        def tinkersmith_add_row_updates(self, *arguments: object) -> None: ...

    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        product = dtype_cast.linear_product
        chosen = native_row_updates(replace(library, functions=Idle()), product)
    assert isinstance(chosen, partial) and chosen.func is add_row_updates
    assert "native products of adapters are off by" in caplog.text


def test_wrong_small_batch_products_are_not_used(
    library: Library, caplog: pytest.LogCaptureFixture
) -> None:
    class Idle:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments: None

    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        assert small_batch_product(replace(library, functions=Idle())) is dtype_cast.linear_product
    assert "native small-batch products are off by" in caplog.text


# ---- attention


@pytest.mark.parametrize(
    ("lengths", "groups", "share", "size"),
    [
        ([5, 1, 40, 70, 3, 9, 25, 33, 130], 2, 3, 8),
        ([5, 1, 40, 70, 3, 9, 25, 33, 130], 3, 1, 34),
        ([200, 3, 67], 2, 2, 128),
        ([900], 1, 2, 80),  # one document and one group: its keys are divided among the threads
    ],
    ids=str,
)
def test_attention_equals_that_of_each_document_in_float64(
    library: Library, lengths: list[int], groups: int, share: int, size: int
) -> None:
    library = library_with_products(library)
    tokens = sum(lengths)
    query = bf16(groups, tokens * share, size, scale=size**-0.5)
    key, value = bf16(groups, tokens, size), bf16(groups, tokens, size)
    grad = bf16(tokens, groups * share * size)
    ours: PackedAttention = NativeAttention(lengths, library, share)
    output, kept = ours.attend(query, key, value, keep=True)
    found = [output, *ours.backward(grad, query, key, value, output, kept)]
    exact: PackedAttention = TileAttention(lengths, share, torch.float64, torch.device("cpu"))
    q, k, v = (part.double() for part in (query, key, value))
    expected, remembered = exact.attend(q, k, v, keep=True)
    twins = [expected, *exact.backward(grad.double(), q, k, v, expected, remembered)]
    for index, (one, other) in enumerate(zip(found, twins, strict=True)):
        assert off(one, other) < ROUNDING, index


# ---- the output layer


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("rank", [0, 1, 4])
@pytest.mark.parametrize("far", [False, True], ids=["", "targets far below the largest logit"])
def test_the_head_equals_a_full_soft_max_in_float64(
    products: NativeProducts, targets: int, rank: int, far: bool
) -> None:
    rows, vocabulary, hidden = 75, 1030, 66
    x, weight, bias = bf16(rows, hidden), bf16(vocabulary, hidden, scale=0.2), bf16(vocabulary)
    chosen = torch.randint(vocabulary, (rows, targets))
    if far:  # exp of the gap to them overflows
        bias[7] += 200
        chosen[chosen == 7] = 8
    a = b = None
    if rank:
        even = rank + rank % 2
        a, b = bf16(even, hidden, scale=0.1), bf16(vocabulary, even, scale=0.3)
    ours: Head = NativeHead(HeadWeights(weight, bias, a, b, 2.0), products)
    slope = torch.randn(rows, targets) * (torch.rand(rows, 1) > 0.3)
    logprobs = ours.logprobs(x, chosen, keep=True)
    grad = ours.backward(slope)

    leaf = x.double().requires_grad_()
    logits = leaf @ weight.double().T + bias.double()
    leaf_a = leaf_b = None
    if a is not None and b is not None:
        leaf_a, leaf_b = a.double().requires_grad_(), (b.double() / 2).requires_grad_()
        logits = logits + 2 * leaf @ leaf_a.T @ leaf_b.T
    expected = logits.log_softmax(-1).gather(-1, chosen)
    (expected * slope).sum().backward()
    torch.testing.assert_close(logprobs.double(), expected, atol=0.02, rtol=1e-3)
    assert leaf.grad is not None and off(grad, leaf.grad) < 2 * ROUNDING
    for found, twin in ((ours.grad_a, leaf_a), (ours.grad_b, leaf_b)):
        if twin is not None:
            assert twin.grad is not None and off(found, twin.grad) < 3 * ROUNDING
    alone = ours.logprobs(x, chosen, keep=False)
    torch.testing.assert_close(alone, logprobs, atol=1e-6, rtol=1e-6)


# ---- decoding


@pytest.mark.parametrize("rows", [1, 17, 40, 100])
@pytest.mark.parametrize("rank", [0, 6])
def test_logits_come_with_the_sums_that_a_draw_needs(
    products: NativeProducts, rows: int, rank: int
) -> None:
    projection = projection_of((2500,), 66, bias=True)
    update = update_of(projection, adapter_of(projection, rank, {0})) if rank else None
    hidden = bf16(rows, 66, scale=5.0)
    updates = RowUpdates(() if update is None else ((slice(0, rows), update),))
    logits, exact = native_logits(hidden, projection, updates, products)
    nothing, alone = native_logits(hidden, projection, updates, products, written=False)
    assert logits is not None and nothing is None
    assert torch.equal(exact.sums, alone.sums) and torch.equal(exact.likeliest, alone.likeliest)
    assert projection.bias is not None
    expected = hidden.double() @ projection.weight.double().T + projection.bias.double()
    if update is not None:
        low = (hidden.double() @ update.a.double().T).bfloat16()
        expected += low.double() @ update.parts[0].b.double().T
    assert off(logits, expected) < ROUNDING
    blocks = zip(expected.split(BLOCK, -1), logits.split(BLOCK, -1), strict=True)
    for index, (block, rounded) in enumerate(blocks):
        highest = block.amax(-1, keepdim=True)
        torch.testing.assert_close(exact.highest[:, index, None].double(), highest, **NEAR)
        likeliest = exact.likeliest[:, index, None].long() - index * BLOCK
        torch.testing.assert_close(block.gather(-1, likeliest), highest, **NEAR)
        sums = (block - highest).exp().sum(-1)
        torch.testing.assert_close(exact.sums[:, index].double(), sums, rtol=1e-4, atol=0)
        assert torch.equal(exact.highest[:, index].bfloat16(), rounded.amax(-1))
    torch.testing.assert_close(
        exact.normaliser()[:, 0].double(), expected.logsumexp(-1), atol=1e-4, rtol=1e-5
    )
    greatest = expected.gather(-1, exact.argmax()[:, None])
    torch.testing.assert_close(greatest, expected.amax(-1, keepdim=True), **NEAR)
    tokens = torch.randint(2500, (rows, 3))
    theirs = expected.gather(-1, tokens)
    torch.testing.assert_close(exact.of(tokens).double(), theirs, **NEAR)


# ---- decoding in fp32


def in_fp32(base: BaseModel, library: Library, dtype: str, monkeypatch: pytest.MonkeyPatch):
    """The model computed in fp32, by torch and by C++, its weights in `dtype`."""
    monkeypatch.setattr(base_model, "multiplies_bf16", lambda: False)
    exact = load_with_torch("exact", base.folder, dtype)
    native = with_native_code(exact, library)
    assert native.dtype == torch.float32 and native.kernels is not None
    return exact, native


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("parts", [{}, {"train_attn": False}, {"train_mlp": False}, None], ids=str)
def test_rows_in_fp32_that_grow_move_and_end_get_the_logits_of_torch(
    base: BaseModel,
    library: Library,
    dtype: str,
    parts: dict[str, bool] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng()
    prompts = [rng.integers(0, 300, n).tolist() for n in (40, 1, 33, 70, 2, 130, 0, 21, *[3] * 15)]
    steps: list[list[torch.Tensor]] = []
    for model in in_fp32(base, library, dtype, monkeypatch):
        draws = np.random.default_rng(0)
        adapter = None if parts is None else filled_adapter(model, LoraConfig(3, 0, **parts))
        decoder = DenseDecoder(model, len(prompts))
        assert isinstance(decoder.layers, NativeLayers) == bool(steps)
        runs = [TokenRun(tokens, adapter) for tokens in prompts]
        decoder.prefill([run for run in runs if run.tokens], [False] * (len(runs) - 1))
        for slot, run in enumerate(runs):
            decoder.put(slot, run)
        active, seen = len(prompts), []
        for number in range(60):  # beyond what a slot has room for at first
            tokens = draws.integers(0, 300, active).tolist()
            logits, _ = decoder.step(tokens, range(active), [adapter] * active)
            assert logits is not None
            seen.append(logits)
            if number % 3 == 2 and active > 3:  # slot 1 has ended; the last takes its place
                active -= 1
                decoder.move(active, 1)
            if number == 40:
                decoder.put(active, runs[3])
                active += 1
        steps.append(seen)
    assert max(off(ours, theirs) for theirs, ours in zip(*steps, strict=True)) < 2e-5


@pytest.fixture
def any_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize(
    ("dtype", "large"),
    [("float32", False), ("float32", True), ("bfloat16", False)],
    ids=["fp32, rows shared", "fp32, outputs shared", "bf16"],
)
def test_a_row_decodes_to_the_same_digits_in_any_company_with_any_threads(
    library: Library,
    tmp_path: Path,
    any_threads: None,
    dtype: str,
    large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(base_model, "multiplies_bf16", lambda: True)
    # The larger one's weights do not stay in the caches: threads share its products.
    sizes = {"hidden_size": 256, "intermediate_size": 6144} if large else {}
    shape: dict[str, Any] = SHAPE | {"num_hidden_layers": 2} | sizes
    config = Qwen3Config(**shape, head_dim=40)
    save_uneven(Qwen3ForCausalLM(config), tmp_path)
    library = library_with_products(library) if dtype == "bfloat16" else library
    native = with_native_code(load_with_torch("x", tmp_path, dtype), library)
    assert native.kernels is not None and native.kernels.decoding.layers.func is NativeLayers
    assert native.dtype == getattr(torch, dtype)
    one, other = (filled_adapter(native, LoraConfig(rank, rank)) for rank in (4, 7))
    adapters = [*[None] * 20, *[one] * 15, *[other] * 15]  # of 50 rows
    tokens = np.random.default_rng().integers(0, 300, (12, 50)).tolist()
    expected: list[torch.Tensor] = []
    everybody = list(range(50))
    companies = [everybody, [0], [20], [3, 25, 40], [19, 20, 34, 35, 49], [*range(18, 38)]]
    for threads, company in [(1, everybody), *itertools.product((1, 2, 5), companies)]:
        torch.set_num_threads(threads)
        decoder = DenseDecoder(native, len(company))
        slots = [(3 * row) % len(company) for row in range(len(company))]
        if len(set(slots)) < len(slots):
            slots = list(range(len(company)))[::-1]
        for slot in slots:
            decoder.put(slot, TokenRun([]))
        for number, step in enumerate(tokens):
            of_rows = [step[row] for row in company], slots, [adapters[row] for row in company]
            logits, _ = decoder.step(*of_rows)
            assert logits is not None
            if len(expected) < len(tokens):
                expected.append(logits)
            assert torch.equal(logits, expected[number][company]), (threads, company, number)


def test_decoding_that_is_wrong_is_left_to_torch_and_the_log_says_so(
    base: BaseModel,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = NativeLayers.step
    monkeypatch.setattr(NativeLayers, "step", lambda self, *rest: step(self, *rest).abs())
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        _, native = in_fp32(base, library, "float32", monkeypatch)
    assert native.kernels is not None
    assert native.kernels.decoding.layers.func is TorchLayers
    assert native.kernels.elementwise != TORCH_ELEMENTWISE
    assert "native decoding is off by" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("company", [0, 3, 140])
def test_what_the_sampler_says_of_its_tokens_is_what_training_says_of_them_in_bf16(
    base: BaseModel, library: Library, company: int
) -> None:
    native = with_native_code(base, library_with_products(library))
    adapter = filled_adapter(native, LoraConfig(5, 0))
    rng = np.random.default_rng()
    prompt = rng.integers(0, 300, 80).tolist()
    asked = SampleRequest(
        prompt, num_samples=2, max_tokens=60, stop=[], seed=3, prompt_logprobs=True
    )
    others = [
        SampleRequest(rng.integers(0, 300, n).tolist(), max_tokens=20, stop=[])
        for n in rng.integers(1, 90, company)
    ]
    [result, *_] = sample(native, adapter, [asked, *others])
    alone = sample(native, adapter, [asked])[0]
    for sequence, twin in zip(result.sequences, alone.sequences, strict=True):
        assert sequence.tokens == twin.tokens  # also in bf16, whoever else is sampled
        tokens = np.array([*prompt, *sequence.tokens])
        datum = Datum(tokens[:-1], {"target_tokens": tokens[1:]})
        [trained] = forward(native, adapter, [datum], "cross_entropy", {}).logprobs
        np.testing.assert_allclose(sequence.logprobs, trained[len(prompt) - 1 :], atol=2e-4)
        assert result.prompt_logprobs is not None
        np.testing.assert_allclose(
            result.prompt_logprobs[1:], trained[: len(prompt) - 1], atol=2e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("parts", [{}, {"train_attn": False}, {"train_mlp": False}], ids=str)
def test_rows_that_grow_move_and_end_get_the_logits_of_full_precision(
    base: BaseModel, library: Library, parts: dict[str, bool]
) -> None:
    native = with_native_code(base, library_with_products(library))
    exact = load_with_torch("exact", base.folder, "float32")
    rng = np.random.default_rng()
    prompts = [rng.integers(0, 300, n).tolist() for n in (40, 1, 33, 70, 2, 130, 0, 21)]
    config = LoraConfig(3, 0, **parts)
    errors: dict[str, list[float]] = {"torch": [], "native": []}
    exactly: list[torch.Tensor] = []
    for name, model in (("exact", exact), ("torch", base), ("native", native)):
        draws = np.random.default_rng(0)
        adapter = filled_adapter(model, config)
        decoder = DenseDecoder(model, len(prompts))
        assert isinstance(decoder.layers, NativeLayers) == (name == "native")
        runs = [TokenRun(tokens, adapter) for tokens in prompts]
        decoder.prefill([run for run in runs if run.tokens], [False] * (len(runs) - 1))
        for slot, run in enumerate(runs):
            decoder.put(slot, run)
        active, seen = len(prompts), []
        for number in range(120):  # beyond what a slot has room for at first
            tokens = draws.integers(0, 300, active).tolist()
            logits, _ = decoder.step(tokens, range(active), [adapter] * active)
            assert logits is not None
            seen.append(logits.float())
            if number % 17 == 16 and active > 3:  # slot 1 has ended; the last takes its place
                active -= 1
                decoder.move(active, 1)
            if number == 40:
                decoder.put(active, runs[3])
                active += 1
        if name == "exact":
            exactly = seen
            continue
        errors[name] = [off(one, other) for one, other in zip(seen, exactly, strict=True)]
    assert np.mean(errors["native"]) < 1.3 * np.mean(errors["torch"]) < 0.2
    assert max(errors["native"]) < 2 * max(errors["torch"])


# ---- whole steps


@pytest.fixture(params=FAMILIES)
def base(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BaseModel:
    monkeypatch.setattr(base_model, "multiplies_bf16", lambda: True)  # however slowly
    make: Callable[[], PreTrainedModel] = FAMILIES[request.param]
    model = make().float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.bfloat16().save_pretrained(tmp_path)
    return load_with_torch(request.param, tmp_path, "bfloat16")


@pytest.mark.parametrize("parts", [{}, {"train_unembed": False}, {"train_attn": False}], ids=str)
def test_a_step_in_bf16_is_as_near_to_fp32_as_one_by_torch(
    base: BaseModel, library: Library, parts: dict[str, bool]
) -> None:
    native = with_native_code(base, library_with_products(library))
    assert native.kernels is not None and isinstance(native.kernels.products, NativeProducts)
    exact = load_with_torch("exact", base.folder, "float32")
    datums = random_datums(np.random.default_rng(), 12)
    losses, errors, reference = [], [], None
    for model in (exact, base, native):
        adapter = filled_adapter(model, LoraConfig(5, 0, **parts))
        losses.append(
            forward_backward(model, adapter, datums, "cross_entropy", {}).metrics["loss:sum"]
        )
        reference = flat(adapter) if reference is None else reference
        errors.append(off(flat(adapter), reference))
    assert errors[2] < 1.3 * errors[1] < 0.2
    scale = sum(np.abs(datum.inputs["weights"]).sum() for datum in datums)
    assert abs(losses[2] - losses[0]) / scale < 0.02


def test_a_step_in_fp32_is_that_of_torch(base: BaseModel, library: Library) -> None:
    exact = load_with_torch("exact", base.folder, "float32")
    native = with_native_code(exact, library)
    assert native.kernels is not None and isinstance(native.kernels.products, TorchProducts)
    assert native.kernels.elementwise != TORCH_ELEMENTWISE
    datums = random_datums(np.random.default_rng(), 12)
    ours, theirs = filled_adapter(exact, LoraConfig(4, 0)), filled_adapter(exact, LoraConfig(4, 0))
    found = forward_backward(native, ours, datums, "cross_entropy", {}).metrics["loss:sum"]
    expected = forward_backward(exact, theirs, datums, "cross_entropy", {}).metrics["loss:sum"]
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients(ours).items():
        assert off(gradient, gradients(theirs)[name]) < 1e-5, name


def test_layers_computed_again_give_the_same_gradients(base: BaseModel, library: Library) -> None:
    native = with_native_code(base, library_with_products(library))
    assert native.dense is not None and native.kernels is not None
    tokens, results = torch.randint(300, (90,)), []
    for kept in (None, 0, 2):
        adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=False))
        one_pass = DensePass(
            native.dense,
            native.kernels,
            adapter,
            [50, 40],
            backward=True,
            kept_layers=kept,
        )
        one_pass.backward(one_pass.forward(tokens).square())
        results.append(flat(adapter))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_rows_without_a_gradient_get_their_log_probabilities(
    base: BaseModel, library: Library
) -> None:
    native = with_native_code(base, library_with_products(library))
    hidden = bf16(150, 48)
    inputs = {
        "target_tokens": torch.randint(300, (150, 1)),
        "weights": (torch.arange(150) % 3 > 0).float()[:, None],
    }
    found = head_pass(
        Pass(native, None, "cross_entropy", {}, backward=True),
        hidden,
        inputs,
        has_gradient("cross_entropy", inputs),
    )
    plain: Head = TorchHead(
        HeadWeights(base.unembed.weight.detach(), None, None, None, 0.0),
        *(torch.bfloat16, torch.device("cpu")),
        TORCH_ELEMENTWISE,
    )
    expected = plain.logprobs(hidden[:128], inputs["target_tokens"][:128], keep=False)
    torch.testing.assert_close(found.logprobs[:128], expected, atol=0.03, rtol=0.01)
    assert found.grad_hidden is not None and not found.grad_hidden[::3].any()


# ---- where it is not used


@pytest.mark.long
def test_a_library_is_compiled_once(library: Library, tmp_path: Path) -> None:
    folder = tmp_path / "code"
    assert native_library(folder) is not None
    [made] = folder.iterdir()
    before = made.stat()
    assert folder.stat().st_mode & 0o077 == 0
    assert native_library(folder) is not None
    assert list(folder.iterdir()) == [made]
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_without_a_compiler_torch_does_the_work_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        assert native_library(tmp_path / "code") is None
    assert "no C++ compiler (g++) is installed" in caplog.text


def test_a_compiler_that_fails_leaves_nothing_behind_and_its_reason_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "broken-compiler"
    compiler.write_text(
        "#!/bin/sh\n[ $1 = --version ] && exit 0\necho cannot do this >&2; exit 3\n"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        assert native_library(tmp_path / "code") is None
    assert "cannot do this" in caplog.text
    assert not list((tmp_path / "code").iterdir())


def test_native_code_that_is_wrong_is_not_used_and_the_log_says_so(
    base: BaseModel,
    library: Library,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(self, x, weight, output, *rest) -> None:
        output.fill_(1)

    monkeypatch.setattr(NativeProducts, "linear", wrong)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        assert with_native_code(base, library_with_products(library)) is base
    assert "and is not used" in caplog.text


def test_odd_sizes_are_left_to_torch(base: BaseModel, library: Library) -> None:
    odd = replace(base, vocab_size=base.vocab_size + 1)
    assert choose_way(odd, library_with_products(library)) is Way.NATIVE_ELEMENTWISE
    assert choose_way(base, library_with_products(library)) is Way.NATIVE


def test_the_sources_compile_without_a_warning(library: Library, tmp_path: Path) -> None:
    """Of our own code: a processor without these products gets the rest."""
    source = Path(build.__file__).parent / "elementwise.cpp"
    command = ["g++", "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-fopenmp", "-c"]
    done = subprocess.run(
        [*command, str(source), "-o", str(tmp_path / "plain.o")], capture_output=True, text=True
    )
    if "not found" in done.stderr:
        pytest.skip("g++ is not installed")
    assert not done.returncode, done.stderr
