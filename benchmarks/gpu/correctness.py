"""Tiny models on a device against the CPU: loss, log-probabilities, gradients, optimizer, samples.

The reference goes through transformers' own layers and autograd on the CPU, in float32, with the
weights that the device has. The adapter is not empty, documents are packed, some tokens have no
weight.

Axes: T tokens of a document.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from benchmarks.gpu import paths
from benchmarks.gpu.models import base_of, filled_adapter, moved, tiny_model
from benchmarks.gpu.runner import Figures, Wrong
from tinkersmith.engine.gpu.float8 import dequantise, quantise
from tinkersmith.engine.messages import AdamParams, Datum, SampleRequest
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.optimizer import new_state, optim_step
from tinkersmith.engine.training.step import forward, forward_backward

# How far results may be off: relative differences, but for log-probabilities (mean difference).
# bfloat16 has 8 binary digits, and with the last of them a token's choice of experts can change.
LIMITS: dict[str, dict[str, float]] = {
    "float32": {"loss": 1e-5, "log-probabilities": 1e-4, "gradients": 1e-4},
    "bfloat16": {"loss": 0.01, "log-probabilities": 0.05, "gradients": 0.05},
    "bfloat16, routed": {"loss": 0.02, "log-probabilities": 0.2, "gradients": 0.4},
    "float8": {"loss": 0.05, "log-probabilities": 0.4, "gradients": 0.4},
    "float8, rounded": {"loss": 0.02, "log-probabilities": 0.3, "gradients": 0.25},
}
DOCUMENTS = (300, 1, 150, 64, 9)  # tokens: several tiles, and a document of one
WORST_TENSOR = "gradients, worst tensor"
_NEW_TOKENS = 24
_EQUAL = "answers equal to the CPU's"


def training(
    family: str, path: str, device: str, dtypes: Sequence[str] = ("float32", "bfloat16")
) -> Iterator[Figures]:
    """Loss, log-probabilities and LoRA gradients of one batch on one path, in each precision."""
    figures: Figures = {}
    for dtype in dtypes:
        model = tiny_model(family, getattr(torch, dtype))
        base = paths.base_on(path, moved(model, device, getattr(torch, dtype)))
        # A pass of one shape becomes a CUDA graph when it comes a second time.
        passes = 3 if path == paths.GRAPHS else 1
        figures[dtype] = _compare(base, _reference(model), passes)
        yield figures
        if path == paths.GRAPHS and not paths.count_graphs(base):
            raise Wrong("no pass was made a CUDA graph")
    for dtype, differences in figures.items():
        routed = family == "qwen3_moe" and dtype == "bfloat16"
        _within(differences, LIMITS[f"{dtype}, routed" if routed else dtype], dtype)


def float8_training(device: str) -> Iterator[Figures]:
    """A base in float8 against one that is not rounded, and against one rounded on the CPU."""
    model = tiny_model("qwen3", torch.bfloat16)
    base = paths.base_on(paths.FLOAT8, moved(model, device, torch.bfloat16))
    rounded = _reference(model)
    for path in (*rounded.parts["attention"], *rounded.parts["mlp"]):
        layer = rounded.linears[path]
        layer.base = _Rounding(layer.base)  # type: ignore[assignment]
    figures = {
        "float8": _compare(base, _reference(model)),
        "float8, rounded": _compare(base, rounded),
    }
    yield figures
    for name, differences in figures.items():
        _within(differences, LIMITS[name], name)


class _Rounding(nn.Module):
    """A linear layer whose weight and input are rounded to float8, computed in float32.

    The gradient passes the rounding of the input unchanged.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = dequantise(*quantise(layer.weight.detach()), torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in) -> (..., out)
        rounded = dequantise(*quantise(x.detach()), x.dtype)
        return linear(x + (rounded - x).detach(), self.weight)


def optimizer(device: str) -> Iterator[Figures]:
    """Three steps of AdamW with clipping and weight decay, from equal gradients."""
    model = tiny_model("qwen3", torch.float32)
    adapters = [
        filled_adapter(base_of(moved(model, place, torch.float32))) for place in (device, "cpu")
    ]
    states = [new_state(adapter) for adapter in adapters]
    settings = AdamParams(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        for name, weight in adapters[1].weights.items():
            gradient = torch.randn(weight.shape, generator=generator)
            for adapter in adapters:
                ours = adapter.weights[name]
                ours.grad = gradient.to(ours.device, copy=True)
        norms = [
            optim_step(adapter, state, settings)["grad_norm"]
            for adapter, state in zip(adapters, states, strict=True)
        ]
    ours, expected = (_flat(adapter.weights.values()) for adapter in adapters)
    figures = {
        "float32": {
            "weights": _relative(ours, expected),
            "gradient norm": abs(norms[0] - norms[1]) / norms[1],
        }
    }
    yield figures
    _within(figures["float32"], {"weights": 1e-5, "gradient norm": 1e-5}, "float32")


def sampling(
    family: str, device: str, dtypes: Sequence[str] = ("float32", "bfloat16")
) -> Iterator[Figures]:
    """Greedy and seeded samples: tokens as on the CPU, log-probabilities as training gives them."""
    figures: Figures = {}
    for dtype in dtypes:
        model = tiny_model(family, getattr(torch, dtype))
        base = paths.base_on(paths.DEFAULT, moved(model, device, getattr(torch, dtype)))
        adapter = filled_adapter(base)
        requests = _requests(base.vocab_size)
        answers = [result.sequences[0] for result in sample(base, adapter, requests)]
        figures[dtype] = {"log-probabilities": _off_from_forward(base, adapter, requests, answers)}
        if dtype == "float32":  # rounded further, the likeliest token may be another
            reference = _reference(model)
            theirs = sample(reference, filled_adapter(reference), requests)
            equal = [
                answer.tokens == result.sequences[0].tokens
                for answer, result in zip(answers, theirs, strict=True)
            ]
            figures[dtype] |= {"answers": len(equal), _EQUAL: sum(equal)}
        yield figures
    answers, equal = (figures["float32"][name] for name in ("answers", _EQUAL))
    if equal < answers:
        raise Wrong(f"float32: {equal} of {answers} answers equal the CPU's")
    for dtype, differences in figures.items():
        limits = {"log-probabilities": LIMITS[dtype]["log-probabilities"]}
        _within(differences, limits, dtype)


def vllm(device: str) -> Iterator[Figures]:
    """Greedy answers by vLLM, for the base model and for an adapter, against our own sampler's."""
    sampler = paths.vllm_sampler(device)
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model("qwen3", torch.bfloat16).to(torch.bfloat16)  # type: ignore[arg-type]
        model.save_pretrained(folder)
        base = paths.base_on(paths.DEFAULT, moved(model, device, torch.bfloat16))
        base = replace(base, folder=Path(folder))
        requests = [request for request in _requests(base.vocab_size) if not request.temperature]
        figures: Figures = {}
        for name, adapter in (("base model", None), ("adapter", filled_adapter(base))):
            results = sampler.answers(base, name, adapter, requests)
            answers = [result.sequences[0] for result in results if result is not None]
            if len(answers) < len(requests):
                raise Wrong(f"{name}: the engine does not take vLLM's answers; the log says why")
            figures[name] = {
                "log-probabilities": _off_from_forward(base, adapter, requests, answers)
            }
            yield figures
    for name, differences in figures.items():
        _within(differences, {"log-probabilities": 0.1}, name)


def _reference(model: PreTrainedModel) -> BaseModel:
    """`model` through transformers' own layers, in float32 on the CPU."""
    return base_of(moved(model, "cpu", torch.float32))


def _compare(base: BaseModel, reference: BaseModel, passes: int = 1) -> dict[str, float]:
    """The worse of batches with and without the tokens that have no weight."""
    worst: dict[str, float] = {}
    datums = _documents(base.vocab_size)
    for only_graded in (False, True):
        adapters = [filled_adapter(base), filled_adapter(reference)]
        how = {"only_graded": only_graded}
        for _ in range(passes):
            adapters[0].clear_gradients()
            ours = forward_backward(base, adapters[0], datums, "cross_entropy", {}, **how)
        theirs = forward_backward(reference, adapters[1], datums, "cross_entropy", {}, **how)
        gradients, expected_gradients = (_gradients(adapter) for adapter in adapters)
        loss, expected = ours.metrics["loss:sum"], theirs.metrics["loss:sum"]
        differences = {
            "loss": abs(loss - expected) / abs(expected),
            "log-probabilities": _mean_difference(ours.logprobs, theirs.logprobs),
            "gradients": _relative(_flat(gradients.values()), _flat(expected_gradients.values())),
            WORST_TENSOR: max(
                _relative(gradients[name], expected_gradients[name]) for name in gradients
            ),
        }
        worst = {name: max(value, worst.get(name, 0.0)) for name, value in differences.items()}
    return worst


def _gradients(adapter: Adapter) -> dict[str, torch.Tensor]:
    gradients = {}
    for name, weight in adapter.weights.items():
        if weight.grad is None:
            raise Wrong(f"{name} has no gradient")
        gradients[name] = weight.grad.cpu()
    return gradients


def _documents(vocabulary: int) -> list[Datum]:
    """Random documents in which every third token has no weight, and some half of it."""
    rng = np.random.default_rng(0)
    datums = []
    for length in DOCUMENTS:
        tokens = rng.integers(0, vocabulary, length + 1)
        weights = np.array([0.0, 1.0, 0.5], np.float32)[np.arange(length) % 3]
        weights[-1] = 1
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    return datums


def _requests(vocabulary: int) -> list[SampleRequest]:
    """Greedy and seeded ones, with prompts of several lengths of which two begin alike."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, vocabulary, length).tolist() for length in (1, 40, 7, 200)]
    prompts.append(prompts[3][:150] + prompts[1])
    return [
        SampleRequest(prompt, max_tokens=_NEW_TOKENS, temperature=temperature, seed=7, stop=[])
        for temperature in (0.0, 1.0)
        for prompt in prompts
    ]


def _off_from_forward(base: BaseModel, adapter: Adapter | None, requests, answers) -> float:
    """The mean difference of sampled tokens' log-probabilities from those of a training pass."""
    datums = []
    for request, answer in zip(requests, answers, strict=True):
        tokens = np.array(request.prompt + answer.tokens)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:]}))
    output = forward(base, adapter, datums, "cross_entropy", {})
    theirs = [
        logprobs[-len(answer.tokens) :]
        for logprobs, answer in zip(output.logprobs, answers, strict=True)
    ]
    return _mean_difference([np.array(answer.logprobs) for answer in answers], theirs)


def _mean_difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    return float(np.abs(np.concatenate(ours) - np.concatenate(theirs)).mean())


def _flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().cpu() for tensor in tensors])


def _relative(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


def _within(figures: dict[str, float], limits: dict[str, float], name: str) -> None:
    for what, limit in limits.items():
        if not figures[what] <= limit:  # also if it is not a number
            raise Wrong(f"{name}: {what} off by {figures[what]:.1e}, limit {limit:.0e}")
