"""The GPU's attention in the dense path, with a plain stand-in for its kernel: no GPU is needed."""

import logging
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.support.adapters import filled_adapter, gradients
from tests.support.batches import random_datums
from tests.support.dense_models import assert_equal_gradients
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.kernels import varlen_attention
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.training import dense_pass
from tinkersmith.engine.training.step import forward_backward


def plain_varlen(
    query: torch.Tensor,  # (T, Q, D)
    key: torch.Tensor,  # (T, G, D)
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,  # (N + 1,)
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> torch.Tensor:
    """What torch.nn.attention.varlen documents for causal attention, document by document."""
    assert window_size == (-1, 0) and torch.equal(cu_seq_q, cu_seq_k)
    ends = cu_seq_q.tolist()
    assert max_q == max_k == max(np.diff(ends))
    parts = []
    for start, end in pairwise(ends):
        q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
        part = scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=scale, enable_gqa=enable_gqa
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts)


def varlen_of_torch_2_11(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: object = None,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
) -> torch.Tensor:
    """Its kernel takes grouped heads without being told, and refuses the word."""
    assert scale is not None and return_aux is None
    given = (query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)
    return plain_varlen(*given, scale=scale, window_size=window_size, enable_gqa=True)


@pytest.fixture(autouse=True, params=[plain_varlen, varlen_of_torch_2_11], ids=["2.13", "2.11"])
def _stand_in(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(varlen_attention, "varlen_attn", request.param)


def test_it_gives_what_tiles_give_forward_and_back() -> None:
    worst = varlen_attention._difference(6, 2, 16, torch.float32, torch.device("cpu"))
    assert worst < 1e-5


@pytest.mark.parametrize("kept", [True, False])
def test_a_training_step_with_it_equals_one_with_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    if not kept:  # every layer is computed twice
        monkeypatch.setattr(dense_pass, "free_memory", lambda device: 0)
    base = load_with_torch("tiny", make_tiny_model(tmp_path))
    assert base.kernels is not None
    adapter = filled_adapter(base, LoraConfig(4, 0))
    datums = random_datums(np.random.default_rng(), 7)
    expected = forward_backward(base, adapter, datums, "cross_entropy", {}).metrics["loss:sum"]
    theirs = gradients(adapter)
    adapter.clear_gradients()
    attention = partial(of_documents, device=base.device)
    varlen = replace(base, kernels=replace(base.kernels, attention=attention))
    output = forward_backward(varlen, adapter, datums, "cross_entropy", {})
    assert output.metrics["loss:sum"] == pytest.approx(expected, rel=1e-5)
    assert_equal_gradients(gradients(adapter), theirs)


@pytest.mark.parametrize(
    ("error", "said"), [(1.0, "is off by"), (RuntimeError("no kernel\nat all"), "here: no kernel")]
)
def test_a_kernel_that_is_wrong_or_absent_is_not_used_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: float | Exception,
    said: str,
) -> None:
    def difference(*shape: object) -> float:
        if isinstance(error, Exception):
            raise error
        return error

    monkeypatch.setattr(varlen_attention, "_difference", difference)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        assert not varlen_attention.works(6, 2, 16, torch.bfloat16, torch.device("cuda"))
    assert said in caplog.text
