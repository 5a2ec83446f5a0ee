"""A loaded model gets kernels for this machine, and keeps torch's where nothing else is right."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.kernels.elementwise import TORCH_ELEMENTWISE
from tinkersmith.engine.kernels.native.build import cache_folder, native_library
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.runtime import fast_code
from tinkersmith.engine.runtime.experimental import Experimental
from tinkersmith.engine.runtime.fast_code import with_fast_code


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder: Path = tmp_path_factory.mktemp("model")
    return load_base_model("tiny", make_tiny_model(folder))


def test_cpp_functions_are_used_where_they_compile(base: BaseModel) -> None:
    if native_library(cache_folder()) is None:
        pytest.skip("no C++ compiler is installed")
    kernels = with_fast_code(base).kernels
    assert kernels is not None
    assert kernels.elementwise != TORCH_ELEMENTWISE
    assert kernels.decoding.elementwise == kernels.elementwise
    assert base.kernels is None  # the loaded model itself is unchanged


def test_without_a_compiler_torch_computes_all_parts(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_code, "native_library", lambda folder, products: None)
    kernels = with_fast_code(base).kernels
    assert kernels is not None and kernels.elementwise == TORCH_ELEMENTWISE


def test_cpp_functions_with_other_gradients_are_not_used_and_the_log_says_so(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if native_library(cache_folder()) is None:
        pytest.skip("no C++ compiler is installed")
    monkeypatch.setattr(fast_code, "gradient_difference", lambda plain, faster: 0.5)
    with caplog.at_level(logging.WARNING, "tinkersmith.engine"):
        kernels = with_fast_code(base).kernels
    assert kernels is not None and kernels.elementwise == TORCH_ELEMENTWISE
    assert "native code is off by 5.0e-01 and is not used" in caplog.text


def test_a_model_of_another_family_keeps_its_own_layers_and_has_no_graphs(base: BaseModel) -> None:
    other = replace(base, dense=None)
    assert with_fast_code(other) is other
    with pytest.raises(Refused, match="--gpu-graphs is for Llama, Mistral, Qwen2 and Qwen3"):
        with_fast_code(other, Experimental(graphs=True))
