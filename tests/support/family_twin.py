"""Tiny models of a family: the engine's figures against transformers' own model in float64.

The twin is the plain eager model, one sample at a time, with W + scaling B A in place of every
trained W; autograd differentiates it down to A and B. Nothing of the engine computes it.

Axes: T tokens of a sample, E experts, F width of an expert, H hidden size.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.support.adapters import filled_adapter, gradients
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.engine.messages import Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.step import forward, forward_backward

WINDOW = 8
# Samples shorter than the window, as long, one longer, and several times as long.
LENGTHS = (40, 7, 8, 9, 1, 33)

Changes = dict[str, torch.Tensor]  # the sum of a parameter and its LoRA, by the parameter's name


def concatenated_experts(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> dict[str, torch.Tensor]:  # (E, F, H), (E, F, H), (E, H, F)
    """How most families store an expert: gate before up, as a linear layer has them."""
    return {"gate_up_proj": torch.cat([gate, up], 1), "down_proj": down}


def alternating_experts(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> dict[str, torch.Tensor]:  # (E, F, H), (E, F, H), (E, H, F)
    """How gpt-oss stores an expert: columns of gate and up in turn, inputs before outputs."""
    both = torch.stack([gate, up], 2).flatten(1, 2)  # (E, 2 F, H)
    return {"gate_up_proj": both.transpose(1, 2), "down_proj": down.transpose(1, 2)}


def experts_without_gate(
    up: torch.Tensor, _none: None, down: torch.Tensor
) -> dict[str, torch.Tensor]:  # (E, F, H), -, (E, H, F)
    """How Nemotron 3 stores an expert, whose w1 is the projection up."""
    return {"up_proj": up, "down_proj": down}


@dataclass(frozen=True)
class TinyFamily:
    """A family as a tiny random model. `experts` says how its fused experts are stored.

    `joined` has the parts of projections that are one matrix in plain transformers, by its name,
    in the order of their rows. Rows that are left over are not trained.
    """

    name: str
    model: type[PreTrainedModel]
    config: PreTrainedConfig
    experts: Callable[..., dict[str, torch.Tensor]] = concatenated_experts
    lengths: Sequence[int] = LENGTHS
    joined: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


@dataclass(frozen=True)
class TwinDifferences:
    """The largest relative differences to the twin, and the adapter's weight that is worst."""

    logprob: float  # absolute
    loss: float
    gradient: float
    worst: str


def make_family(family: TinyFamily, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Save the model, with norms, biases and sinks that are not at their neutral values."""
    torch.manual_seed(0)
    model = family.model(family.config).float()  # type: ignore[call-arg]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(word in name for word in ("norm", "bias", "sinks")):
                parameter.add_(torch.randn(parameter.shape) * 0.2)
            if name.endswith("A_log"):
                # A state that fades fast sums up large exponents, whose differences lose digits in
                # float32: plain transformers then differ from float64 by 1e-4.
                parameter.sub_(4)
        for name, buffer in model.named_buffers():
            if name.endswith("bias"):  # of a router; zeros would not show whether it is used
                buffer.add_(torch.randn(buffer.shape) * 0.1)
    model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
    _undo_renaming(folder / "model.safetensors")
    make_tiny_tokenizer(folder)
    return folder


def _undo_renaming(file: Path) -> None:
    """Give a Kimi's layers their published names, of which transformers saves others."""
    tensors = load_file(file)
    renamed = {
        name.replace("language_model.model.blocks.", "language_model.model.layers."): tensor
        for name, tensor in tensors.items()
    }
    if renamed.keys() != tensors.keys():
        save_file(renamed, file, metadata={"format": "pt"})


def family_datums(family: TinyFamily, seed: int = 0) -> list[Datum]:
    rng = np.random.default_rng(seed)
    datums = []
    for length in family.lengths:
        tokens = rng.integers(0, 250, length + 1)
        weights = rng.choice([0.5, 1.0, -0.3], length).astype(np.float32)
        datums.append(Datum(tokens[:-1], {"target_tokens": tokens[1:], "weights": weights}))
    return datums


def plain_model(folder: Path) -> PreTrainedModel:
    """The twin's weights: transformers' own layers, eager, in float64."""
    config = AutoConfig.from_pretrained(folder)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    else:
        whole: Any = AutoModelForImageTextToText.from_pretrained(folder)
        text = config.get_text_config()
        model = AutoModelForCausalLM.from_config(text, attn_implementation="eager")
        model.model.load_state_dict(whole.model.language_model.state_dict())
        model.lm_head.load_state_dict(whole.lm_head.state_dict())
    model = model.eval().double().requires_grad_(False)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the only one for float64
    return model


def twin_logprobs(
    family: TinyFamily, model: PreTrainedModel, adapter: Adapter | None, datum: Datum
) -> torch.Tensor:  # (T,)
    """Log-probabilities of a sample's targets, differentiable down to the adapter's weights."""
    changed: Changes = {}
    if adapter is not None:
        changed = changed_parameters(model, adapter, family.experts, family.joined)
    ids = {"input_ids": torch.from_numpy(datum.tokens)[None], "use_cache": False}
    with all_in_float64(model):
        logits = torch.func.functional_call(model, changed, (), ids, tie_weights=False).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    return logits.double().log_softmax(-1).gather(-1, targets[:, None])[:, 0]


class _TorchOfFloat64:
    """torch as a module of transformers sees it, where float32 means float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def all_in_float64(model: PreTrainedModel) -> Iterator[None]:
    """Let a model's layers compute in float64 also where they ask for float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(sys.modules[type(model).__module__], "torch", _TorchOfFloat64())
        yield


def changed_parameters(
    model: PreTrainedModel,
    adapter: Adapter,
    experts: Callable[..., dict[str, torch.Tensor]] = concatenated_experts,
    joined: Mapping[str, Sequence[str]] | None = None,
    layers: str = "model.",  # what precedes "layers.0." in the model's names
) -> Changes:
    """The parameters that an adapter changes; see `TinyFamily` for `experts` and `joined`."""

    def product(path: str) -> torch.Tensor:  # ([E,] out, in)
        a, b = (adapter.weights[f"{path}.lora_{side}"].double() for side in "AB")
        return adapter.scaling * b @ a

    changed: Changes = {}
    parameters = dict(model.named_parameters())
    parts_of = {names[0]: (whole, names) for whole, names in (joined or {}).items()}
    others = {name for _, names in parts_of.values() for name in names[1:]}
    for path in adapter.module_paths:
        parent, _, part = path.rpartition(".")
        own = layers + parent.removeprefix("model.") if parent else ""
        name = f"{own}.{part}".removeprefix(".")
        if part in parts_of and hasattr(model.get_submodule(own), parts_of[part][0]):
            whole, names = parts_of[part]
            weight = model.get_parameter(f"{own}.{whole}.weight")
            change = torch.cat([product(f"{parent}.{name}") for name in names])
            change = torch.nn.functional.pad(change, (0, 0, 0, len(weight) - len(change)))
            changed[f"{own}.{whole}.weight"] = weight + change
        elif part in others and f"{name}.weight" not in parameters:
            continue
        elif not parent.endswith(".experts") or part not in ("w1", "w2", "w3"):
            changed[f"{name}.weight"] = model.get_parameter(f"{name}.weight") + product(path)
        elif part == "w1":
            parts = (
                product(f"{parent}.{name}")
                if f"{parent}.{name}.lora_A" in adapter.weights
                else None
                for name in ("w1", "w3", "w2")
            )
            for of, change in experts(*parts).items():
                changed[f"{own}.{of}"] = model.get_parameter(f"{own}.{of}") + change
    return changed


def training_differences(
    family: TinyFamily, base: BaseModel, *, rank: int = 8, config: LoraConfig | None = None
) -> TwinDifferences:
    """Losses and all LoRA gradients of one packed batch against the twin's."""
    adapter = filled_adapter(base, config or LoraConfig(rank, 0))
    datums, plain = family_datums(family), plain_model(base.folder)
    expected = (twin_logprobs(family, plain, adapter, datum) for datum in datums)
    return differences_from_twin(base, adapter, datums, expected)


def differences_from_twin(
    base: BaseModel, adapter: Adapter, datums: Sequence[Datum], twin: Iterable[torch.Tensor]
) -> TwinDifferences:
    """The same, where `twin` has the log-probabilities (T,) of each datum."""
    output = forward_backward(base, adapter, datums, "cross_entropy", {})
    ours = gradients(adapter)
    adapter.clear_gradients()
    total, worst = torch.zeros((), dtype=torch.float64), 0.0
    for datum, logprobs, expected in zip(datums, output.logprobs, twin, strict=True):
        worst = max(worst, float(np.abs(logprobs - expected.detach().numpy()).max()))
        total = total - (expected * torch.from_numpy(datum.inputs["weights"])).sum()
    total.backward()
    relative = {
        name: float((ours[name] - gradient).norm() / gradient.norm().clamp(min=1e-30))
        for name, gradient in gradients(adapter).items()
    }
    name = max(relative, key=lambda name: relative[name])
    loss = abs(output.metrics["loss:sum"] - total.item()) / abs(total.item())
    return TwinDifferences(worst, loss, relative[name], name)


def packing_difference(base: BaseModel, datums: Sequence[Datum]) -> tuple[float, float]:
    """A packed batch against its samples one by one: log-probabilities and gradients."""
    adapter = filled_adapter(base, LoraConfig(4, 0))
    together = forward_backward(base, adapter, datums, "cross_entropy", {}).logprobs
    packed = gradients(adapter)
    adapter.clear_gradients()
    alone = [
        forward_backward(base, adapter, [datum], "cross_entropy", {}).logprobs[0]
        for datum in datums
    ]
    worst = max(float(np.abs(a - b).max()) for a, b in zip(together, alone, strict=True))
    single = gradients(adapter)
    return worst, max(float((packed[n] - single[n]).norm() / single[n].norm()) for n in packed)


def family_requests(family: TinyFamily, *, max_tokens: int = 24) -> list[SampleRequest]:
    """Prompts of several lengths that decode together, and end at different times.

    Two samples of each, so that rows share a prompt.
    """
    rng = np.random.default_rng(1)
    begin = rng.integers(
        0, 250, 36
    ).tolist()  # prompts share it: a cached prefix, where there is one
    return [
        SampleRequest(
            prompt=[*begin[: max(0, length - 2)], *rng.integers(0, 250, min(2, length)).tolist()],
            num_samples=2,
            max_tokens=max_tokens - index,
            temperature=1.0,
            seed=index,
            stop=[],
            prompt_logprobs=True,
        )
        for index, length in enumerate([*family.lengths, 38])
    ]


def sampling_difference(base: BaseModel, requests: Sequence[SampleRequest]) -> tuple[float, float]:
    """Log-probabilities of sampled tokens, and of prompts, against the same tokens in training."""
    adapter = filled_adapter(base, LoraConfig(4, 0))
    placeholder = 0 if base.vision is None else base.vision.placeholder
    sampled = prompts = 0.0
    for request, result in zip(requests, sample(base, adapter, requests), strict=True):
        for sequence in result.sequences:
            tokens = np.array([*request.prompt, *sequence.tokens])
            targets = np.where(tokens < 0, placeholder, tokens)[1:]  # images have ids below 0
            datum = Datum(tokens[:-1], {"target_tokens": targets}, images=request.images)
            [expected] = forward(base, adapter, [datum], "cross_entropy", {}).logprobs
            answer = expected[len(request.prompt) - 1 :]
            sampled = max(sampled, float(np.abs(answer - sequence.logprobs).max()))
            if result.prompt_logprobs is not None and len(request.prompt) > 1:
                difference = expected[: len(request.prompt) - 1] - result.prompt_logprobs[1:]
                prompts = max(prompts, float(np.abs(difference).max()))
    return sampled, prompts
