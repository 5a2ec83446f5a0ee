"""The choice of kernels, row by row as docs/explanation/implementations.md has it."""

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.dense_models import FAMILIES, save_uneven
from tinkersmith.engine.kernels.choose import (
    Means,
    Way,
    choose_kernels,
    choose_way,
    has_even_sizes,
    with_torch_kernels,
)
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.head import TorchHead
from tinkersmith.engine.kernels.native.build import Library
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.kernels.tile_attention import TileAttention
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.model.kernels import HeadWeights

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    save_uneven(FAMILIES["qwen3"](), folder)
    return load_base_model("qwen3", folder)


def a_library(products: bool) -> Library:
    return Library(functions=ctypes.CDLL(None), products=products)  # nothing of it is called


@pytest.mark.parametrize(
    ("dtype", "library", "odd", "way"),
    [
        (FP32, None, False, Way.TORCH),
        (BF16, None, False, Way.TORCH),
        (FP32, a_library(products=True), False, Way.NATIVE_FLOAT32),
        (FP32, a_library(products=False), True, Way.NATIVE_FLOAT32),
        (BF16, a_library(products=True), False, Way.NATIVE),
        (BF16, a_library(products=True), True, Way.NATIVE_ELEMENTWISE),
        (BF16, a_library(products=False), False, Way.NATIVE_ELEMENTWISE),
    ],
)
def test_precision_processor_and_sizes_decide_on_a_cpu(
    base: BaseModel, dtype: torch.dtype, library: Library | None, odd: bool, way: Way
) -> None:
    chosen = replace(base, dtype=dtype, vocab_size=base.vocab_size + odd)
    assert has_even_sizes(chosen) != odd
    assert choose_way(chosen, library) is way


def test_without_anything_at_hand_all_parts_are_torch(base: BaseModel) -> None:
    assert base.kernels is None
    kernels = with_torch_kernels(base).kernels
    assert kernels is not None and kernels.prepared is None
    assert isinstance(kernels.attention([3, 4]), TileAttention)
    assert kernels.elementwise == kernels.decoding.elementwise == TORCH_ELEMENTWISE
    assert isinstance(kernels.products, TorchProducts)
    assert isinstance(kernels.decoding.products, TorchProducts)
    weights = HeadWeights(base.unembed.weight.detach(), None, None, None, 0.0)
    assert isinstance(kernels.head(weights), TorchHead)


def test_what_is_at_hand_is_used_and_decoding_gets_no_compiled_functions(base: BaseModel) -> None:
    def copied(*arguments: Any) -> None:
        TORCH_ELEMENTWISE.rms_norm(*arguments)

    compiled = replace(TORCH_ELEMENTWISE, rms_norm=copied)
    kernels = choose_kernels(base, Means(compiled=compiled, varlen=True))
    assert getattr(kernels.attention, "func", None) is of_documents
    assert kernels.elementwise is compiled
    assert isinstance(kernels.products, TorchProducts)
    assert kernels.products.elementwise is compiled
    assert kernels.decoding.elementwise is TORCH_ELEMENTWISE


def test_a_model_of_another_family_keeps_its_own_layers(base: BaseModel) -> None:
    other = replace(base, dense=None)
    assert with_torch_kernels(other) is other
