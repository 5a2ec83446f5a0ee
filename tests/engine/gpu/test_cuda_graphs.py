"""Training passes as CUDA graphs against plain ones.

No GPU is needed: a stand-in for a CUDA graph keeps the operations on tensors that a pass consists
of, and repeats these alone, on the same memory.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.support.adapters import filled_adapter, gradients
from tests.support.dense_models import assert_equal_gradients
from tests.support.loading import load_with_torch
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.gpu import cuda_graphs
from tinkersmith.engine.gpu.cuda_graphs import (
    CudaGraphs,
    _with_graphs,
    shape_of,
    with_cuda_graphs,
)
from tinkersmith.engine.kernels import varlen_attention
from tinkersmith.engine.kernels.choose import with_torch_kernels
from tinkersmith.engine.kernels.varlen_attention import of_documents
from tinkersmith.engine.messages import Datum, LoraConfig
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.experimental import Experimental
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.training.dense_pass import DensePass
from tinkersmith.engine.training.step import forward, forward_backward


class Recording(TorchDispatchMode):
    """What a CUDA graph keeps of some work: no Python, no numbers, only operations on memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[override]
        # A number that Python reads would be that of the recording for ever.
        assert func is not torch.ops.aten._local_scalar_dense.default, "a tensor's value was read"
        output = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, output))
        return output

    def launch(self) -> None:
        for func, args, kwargs, output in self.calls:
            returns = [one.alias_info for one in func._schema.returns]
            if any(alias is not None and not alias.is_write for alias in returns):
                continue  # a view of memory that is filled again anyway
            found = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for before, now in zip(tree_leaves(output), tree_leaves(found), strict=True):
                    if isinstance(before, torch.Tensor):
                        before.copy_(now)


def capture(work: Callable[[], None], graphs: CudaGraphs) -> Callable[[], None]:
    recording = Recording()
    with recording:
        work()
    return torch.no_grad()(recording.launch)


def masked_varlen(
    query: torch.Tensor,  # (T, Q, D)
    key: torch.Tensor,  # (T, G, D)
    value: torch.Tensor,
    *,
    cu_seq_q: torch.Tensor,  # (N + 1,)
    **settings: Any,
) -> torch.Tensor:
    """Causal attention of documents, as one matrix with a mask made from their ends."""
    assert cu_seq_q is settings["cu_seq_k"] and settings["scale"] == 1
    places = torch.arange(len(query))
    document = torch.searchsorted(cu_seq_q[1:].long(), places, right=True)
    visible = (document[:, None] == document) & (places[:, None] >= places)
    share = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(share, 1).transpose(0, 1) for part in (key, value))
    scores = query.transpose(0, 1) @ key.transpose(1, 2)  # (Q, T, T)
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return (probabilities @ value).transpose(0, 1)


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    monkeypatch.setattr(varlen_attention, "varlen_attn", masked_varlen)
    monkeypatch.setattr(cuda_graphs, "capture", capture)
    monkeypatch.setattr(cuda_graphs, "_STEP", 128)
    loaded = load_with_torch("tiny", make_tiny_model(tmp_path))
    assert loaded.kernels is not None
    attention = partial(of_documents, device=loaded.device)
    return replace(loaded, kernels=replace(loaded.kernels, attention=attention))


def documents(*lengths: int) -> list[Datum]:
    rng = np.random.default_rng()
    datums = []
    for length in lengths:
        tokens = rng.integers(0, 250, length + 1)
        weights = rng.choice([0.0, 0.5, 1.0], length).astype(np.float32)
        weights[-1] = 1
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    return datums


def one_pass(base: BaseModel, adapter: Adapter, datums: list[Datum], **how: Any):
    adapter.clear_gradients()
    output = forward_backward(base, adapter, datums, "cross_entropy", {}, **how)
    return output, gradients(adapter)


@pytest.mark.parametrize("parts", [{}, {"train_unembed": False}, {"train_attn": False}], ids=str)
@pytest.mark.parametrize("only_graded", [False, True])
def test_packs_of_one_shape_are_launched_as_captured_and_right(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, parts: dict[str, bool], only_graded: bool
) -> None:
    graphs = _with_graphs(base)
    adapters = [filled_adapter(base, LoraConfig(4, seed, **parts)) for seed in range(2)]
    packs = [documents(50, 40, 2), documents(33, 64, 17)]  # of one shape
    expected = [
        [one_pass(base, adapter, pack, only_graded=only_graded) for adapter in adapters]
        for pack in packs
    ]
    for pack in packs:  # the second is captured
        assert shape_of([len(datum.tokens) for datum in pack]) == shape_of([50, 40, 2])
        one_pass(graphs, adapters[0], pack)

    def fail(*arguments: Any) -> None:
        raise AssertionError("a plain pass was made")

    monkeypatch.setattr(DensePass, "forward", fail)
    monkeypatch.setattr(DensePass, "backward", fail)
    for pack, of_adapters in zip(packs, expected, strict=True):
        for adapter, (output, grads) in zip(adapters, of_adapters, strict=True):
            found, ours = one_pass(graphs, adapter, pack, only_graded=only_graded)
            assert found.metrics["loss:sum"] == pytest.approx(output.metrics["loss:sum"], rel=1e-5)
            for left, right in zip(found.logprobs, output.logprobs, strict=True):
                np.testing.assert_allclose(left, right, atol=1e-4)
            assert_equal_gradients(ours, grads)
            alone = forward(graphs, adapter, pack, "cross_entropy", {}, only_graded=only_graded)
            np.testing.assert_array_equal(alone.logprobs[0], found.logprobs[0])


def test_gradients_of_several_passes_add_up(base: BaseModel) -> None:
    graphs, adapter = _with_graphs(base), filled_adapter(base, LoraConfig(3, 0))
    packs = [documents(70, 20), documents(64, 3), documents(20, 65)]
    for pack in packs:
        forward_backward(base, adapter, pack, "cross_entropy", {})
    theirs = gradients(adapter)
    for _ in range(2):
        adapter.clear_gradients()
        for pack in packs:
            forward_backward(graphs, adapter, pack, "cross_entropy", {})
        assert_equal_gradients(gradients(adapter), theirs)


def test_a_pack_fits_into_its_shape() -> None:
    rng = np.random.default_rng()
    for _ in range(200):
        lengths = rng.integers(1, 1500, rng.integers(1, 40)).tolist()
        shape, missing = shape_of(lengths), -sum(lengths) % 1024
        assert shape.tokens == sum(lengths) + missing
        assert len(lengths) < shape.documents <= 2 * (len(lengths) + 1)
        assert max(*lengths, missing) <= shape.longest <= 2 * max(*lengths, missing)


def test_only_what_comes_again_and_is_small_is_captured_and_the_oldest_is_forgotten(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base.dense is not None and base.kernels is not None
    adapter = filled_adapter(base, LoraConfig(4, 0))
    monkeypatch.setattr(cuda_graphs, "_MOST", 2)
    passes = CudaGraphs(base.dense, base.kernels)
    shapes = [[50], [200], [300]]
    assert [passes.begin(adapter, lengths) for lengths in shapes] == [None] * 3
    assert passes.begin(adapter, [50]) is None  # forgotten
    kept = passes.begin(adapter, [310])
    assert kept is not None and kept is passes.begin(adapter, [290])
    for name, value in (("_LAUNCH_BOUND", 1), ("free_memory", lambda device: 0)):
        with monkeypatch.context() as patch:
            patch.setattr(cuda_graphs, name, value)
            assert passes.begin(adapter, [500]) is passes.begin(adapter, [500]) is None
            assert passes.begin(adapter, [310]) is kept  # it has its memory


def test_a_model_is_checked_and_refused_where_graphs_do_not_work(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = with_cuda_graphs(base)
    assert checked.kernels is not None and checked.kernels.prepared is not None

    def idle(work: Callable[[], None], graphs: CudaGraphs) -> Callable[[], None]:
        work()
        return lambda: None

    def broken(work: Callable[[], None], graphs: CudaGraphs) -> Callable[[], None]:
        raise RuntimeError("capturing failed\nat length")

    for stand_in, reason in (
        (idle, "--gpu-graphs gives wrong gradients for tiny: off by"),
        (broken, "--gpu-graphs does not work here: capturing failed$"),
    ):
        monkeypatch.setattr(cuda_graphs, "capture", stand_in)
        with pytest.raises(Refused, match=reason):
            with_cuda_graphs(base)


def test_models_that_cannot_have_graphs_are_refused(base: BaseModel) -> None:
    with pytest.raises(Refused, match="needs variable-length FlashAttention"):
        with_cuda_graphs(with_torch_kernels(base))
    with pytest.raises(Refused, match="is for Llama, Mistral, Qwen2 and Qwen3, not for qwen3"):
        with_cuda_graphs(replace(base, kernels=None))


def test_a_capture_that_fails_leaves_the_pass_plain_and_the_earlier_ones_in_use(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    graphs, adapter = _with_graphs(base), filled_adapter(base, LoraConfig(4, 0))
    packs = [documents(50, 40), documents(200), documents(300, 20)]
    expected = [one_pass(base, adapter, pack)[1] for pack in packs]
    for _ in range(2):
        one_pass(graphs, adapter, packs[0])

    def short_of_memory(work: Callable[[], None], graphs: CudaGraphs) -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(cuda_graphs, "capture", short_of_memory)
    with caplog.at_level(logging.INFO, "tinkersmith.engine"):
        for _ in range(3):
            for pack, grads in zip(packs, expected, strict=True):
                assert_equal_gradients(one_pass(graphs, adapter, pack)[1], grads)
    [said] = caplog.messages
    assert said == (
        "no more passes are captured as CUDA graphs: CUDA out of memory. Tried to allocate 2 GiB."
    )
    assert graphs.kernels is not None and graphs.kernels.prepared is not None
    assert graphs.kernels.prepared(adapter, [50, 40]) is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_cuda_graphs_equal_plain_ones(tmp_path: Path) -> None:
    loaded = load_base_model("tiny", make_tiny_model(tmp_path), "bfloat16", "cuda")
    with_fast_code(loaded, Experimental(graphs=True))  # its graphs end here, and with them its pool
    base, graphs = with_fast_code(loaded), with_fast_code(loaded, Experimental(graphs=True))
    adapter, pack = filled_adapter(base, LoraConfig(4, 0)), documents(500, 300, 90)
    _, expected = one_pass(base, adapter, pack)
    for _ in range(3):
        _, found = one_pass(graphs, adapter, pack)
    ours, theirs = (torch.cat([g.flatten() for g in part.values()]) for part in (found, expected))
    assert (ours - theirs).norm() / theirs.norm() < 0.03
