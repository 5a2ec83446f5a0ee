"""Prompts read by the C++ functions against their twin in torch."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.support.adapters import filled_adapter
from tests.support.dense_models import FAMILIES, SHAPE, save_uneven
from tests.support.loading import load_with_torch
from tinkersmith.engine.kernels.native.build import Library, cache_folder, native_library
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model import base_model
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.fast_code import with_native_code
from tinkersmith.engine.sampling import dense_decoder
from tinkersmith.engine.sampling.dense_decoder import DenseDecoder
from tinkersmith.engine.sampling.prefixes import TokenRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def library() -> Library:
    found = native_library(cache_folder())
    if found is None:
        pytest.skip("no C++ compiler is installed")
    return found


@pytest.fixture
def any_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def read(
    base: BaseModel,
    prompts: list[list[int]],
    adapters: Sequence[Adapter | None],
    which: list[int],
) -> list[list[torch.Tensor]]:
    """Hidden states, keys and values of some prompts; those with odd numbers have a parent."""
    decoder, beginning = DenseDecoder(base, 0), list(range(100, 140))
    parents = [TokenRun(beginning, adapters[index]) if index % 2 else None for index in which]
    runs = [
        TokenRun(prompts[index], adapters[index], parent)
        for index, parent in zip(which, parents, strict=True)
    ]
    first = [parent for parent in parents if parent is not None]
    if first:
        decoder.prefill(first, [False] * len(first))
    hidden = decoder.prefill(runs, [True] * len(runs))
    found: list[list[torch.Tensor]] = []
    for run, states in zip(runs, hidden, strict=True):
        assert states is not None and run.past is not None
        found.append([states, *itertools.chain(*run.past)])
    return found


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_with_parents_and_adapters_are_read_as_by_torch(
    family: str,
    dtype: str,
    threads: int,
    library: Library,
    tmp_path: Path,
    any_threads: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(threads)
    save_uneven(FAMILIES[family](), tmp_path)
    monkeypatch.setattr(base_model, "multiplies_bf16", lambda: False)
    exact = load_with_torch(family, tmp_path, dtype)
    native = with_native_code(exact, library)
    assert native.kernels is not None and native.kernels.decoding.reading is not None
    rng = np.random.default_rng()
    # Longer than what goes through the layers together, and of every size beside a panel's.
    prompts = [rng.integers(0, 300, n).tolist() for n in (300, 1, 31, 33, 64, 2, 17, 16, 90)]
    one, other = (filled_adapter(native, LoraConfig(rank, rank)) for rank in (4, 3))
    mixed: list[Adapter | None] = [one, None, other, one, None, None, other, None, one]
    for adapters in ([None] * 9, mixed):
        ours, theirs = (
            itertools.chain(*read(model, prompts, adapters, list(range(9))))
            for model in (native, exact)
        )
        for one_of_ours, one_of_theirs in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one_of_ours, one_of_theirs, atol=2e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("large", [False, True], ids=["rows shared", "outputs shared"])
def test_a_prompt_is_read_to_the_same_digits_in_any_company_with_any_threads(
    library: Library, tmp_path: Path, any_threads: None, large: bool
) -> None:
    sizes = {"hidden_size": 256, "intermediate_size": 6144} if large else {}
    shape: dict[str, Any] = SHAPE | {"num_hidden_layers": 2} | sizes
    save_uneven(Qwen3ForCausalLM(Qwen3Config(**shape, head_dim=40)), tmp_path)
    native = with_native_code(load_with_torch("x", tmp_path, "float32"), library)
    rng = np.random.default_rng()
    prompts = [rng.integers(0, 300, n).tolist() for n in (60, 1, 270, 33, 7)]
    adapters: list[Adapter | None] = [None] * 5
    adapters[1] = filled_adapter(native, LoraConfig(4, 0))
    torch.set_num_threads(1)
    expected = read(native, prompts, adapters, list(range(5)))
    companies: list[list[int]] = [[0, 1, 2, 3, 4], [0], [2], [4, 1]]
    for threads, company in itertools.product((1, 2, 5), companies):
        torch.set_num_threads(threads)
        found = read(native, prompts, adapters, company)
        for index, ours in zip(company, found, strict=True):
            pairs = zip(ours, expected[index], strict=True)
            assert all(torch.equal(*pair) for pair in pairs), (threads, company, index)


@torch.no_grad()
def test_a_prompt_read_in_parts_has_the_digits_of_one_read_at_once(
    library: Library, tmp_path: Path
) -> None:
    save_uneven(FAMILIES["qwen3"](), tmp_path)
    native = with_native_code(load_with_torch("x", tmp_path, "float32"), library)
    tokens = np.random.default_rng().integers(0, 300, 90).tolist()
    decoder, whole, first = DenseDecoder(native, 0), TokenRun(tokens), TokenRun(tokens[:37])
    rest = TokenRun(tokens[37:], None, first)
    decoder.prefill([whole], [False])
    decoder.prefill([first], [False])
    decoder.prefill([rest], [False])
    assert whole.past is not None and first.past is not None and rest.past is not None
    for at_once, before, after in zip(whole.past, first.past, rest.past, strict=True):
        for side in (0, 1):
            assert torch.equal(at_once[side], torch.cat([before[side], after[side]], 1))


@torch.no_grad()
def test_a_long_prompt_is_read_by_torch_and_a_short_one_beside_it_is_not(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_uneven(FAMILIES["qwen3"](), tmp_path)
    exact = load_with_torch("x", tmp_path, "float32")
    native = with_native_code(exact, library)
    prompts = [np.random.default_rng().integers(0, 300, n).tolist() for n in (20, 70, 30)]
    adapters: list[Adapter | None] = [filled_adapter(native, LoraConfig(4, 0)), None, None]
    expected = read(native, prompts, adapters, [0, 1, 2])  # the second begins at position 40
    by_torch = read(exact, prompts, adapters, [1])
    monkeypatch.setattr(dense_decoder, "_READ_POSITIONS", 50)
    found = read(native, prompts, adapters, [0, 1, 2])
    for index, same in ((0, expected[0]), (2, expected[2]), (1, by_torch[0])):
        for ours, theirs in zip(found[index], same, strict=True):
            # Only the long one's beginning was read by the kernels of decoding.
            tolerance = 1e-5 if index == 1 else 0.0
            torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert not all(map(torch.equal, found[1], expected[1]))
