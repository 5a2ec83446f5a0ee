"""The compiled element-wise work against the plain functions that it was made from."""

import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.dense_models import SHAPE, assert_equal_gradients
from tests.support.loading import load_with_torch
from tinkersmith.engine.kernels.choose import Means, choose_kernels
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime import compilation
from tinkersmith.engine.runtime.compilation import compiled_elementwise
from tinkersmith.engine.training.step import forward_backward

pytestmark = pytest.mark.slow

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler is installed"
)


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    config = Qwen3Config(**SHAPE, head_dim=16)
    config.max_position_embeddings = 2048
    Qwen3ForCausalLM(config).float().save_pretrained(tmp_path / "model")
    return load_with_torch("qwen3", tmp_path / "model")


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@needs_compiler
@pytest.mark.long
def test_compiled_functions_give_the_same_loss_and_gradients_and_compile_only_at_loading(
    base: BaseModel, tmp_path: Path
) -> None:
    functions = compiled_elementwise(base, Means(), tmp_path / "code")
    assert functions is not None
    compiled = replace(base, kernels=choose_kernels(base, Means(compiled=functions)))
    assert (tmp_path / "code").stat().st_mode & 0o077 == 0
    adapter = filled_adapter(base, LoraConfig(rank=4, seed=1))
    for count in (1, 5, 30, 60):
        datums = random_datums(np.random.default_rng(), count)
        expected = forward_backward(base, adapter, datums, "cross_entropy", {})
        theirs = gradients(adapter)
        adapter.clear_gradients()
        with torch.compiler.set_stance("fail_on_recompile"):
            output = forward_backward(compiled, adapter, datums, "cross_entropy", {})
        assert_equal_gradients(gradients(adapter), theirs)
        adapter.clear_gradients()
        difference = output.metrics["loss:sum"] - expected.metrics["loss:sum"]
        assert abs(difference) < 1e-5 * abs(expected.metrics["loss:sum"])


def test_a_machine_that_cannot_compile_trains_without_and_says_so(
    base: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def no_compiler(base: BaseModel) -> None:
        raise RuntimeError("no working C++ compiler was found\nand more")

    monkeypatch.setattr(compilation, "_warm_up", no_compiler)
    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        assert compiled_elementwise(base, Means(), tmp_path / "code") is None
    assert "without compiled functions, somewhat slower: no working C++" in caplog.text
    assert "and more" not in caplog.text
