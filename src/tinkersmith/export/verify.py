"""An exported folder -> proof that plain transformers (and peft) load it whole and agree with us.

Compares log-probabilities of given tokens with expected ones, which the caller brings.
Axes: T tokens, V vocabulary.
"""

import os
import re
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.errors import UserError, one_line
from tinkersmith.export.base_folder import read_model_json
from tinkersmith.export.placement import text_path
from tinkersmith.fingerprint import safetensors_header
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PEFT_PREFIX

if TYPE_CHECKING:
    from torch import Tensor, nn

TIGHT = 1e-4  # allowed difference of a log-probability where nothing is rounded
# Rounding moves each weight by up to half of its last bit. How far that moves the log-probabilities
# is seen by moving the weights again, at random; several times that is no rounding any more. For a
# service that computes in bfloat16, the moved model does so, too.
_ROUNDING_DRAWS, _ROUNDING_MEAN, _ROUNDING_MAX = 2, 3.0, 5.0
_SINGLE_EXPERT = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)\.lora_([AB])\.weight")
_MATRICES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_AGAIN = "Export it again with --force."
_OTHER_BASE = (
    "Copy the base model again, or name another folder with --base-folder. Without the check: "
    "--no-verify"
)


@dataclass(frozen=True, slots=True)
class Verification:
    """How far an export agrees with the service."""

    tokens: int
    tensors: int  # that were loaded: of the LoRA, or of the whole model
    largest: float  # difference of a token's log-probability
    mean: float  # difference
    limits: tuple[float, float]  # of the largest and of the mean difference
    loaded_with: str

    @property
    def passed(self) -> bool:
        """Whether the differences are within what rounding explains."""
        return self.largest <= self.limits[0] and self.mean <= self.limits[1]

    def __str__(self) -> str:
        largest, mean = self.limits
        limit = f"{largest:.2g}" + (f", mean at most {mean:.2g}" if mean < largest else "")
        return (
            f"{self.loaded_with} loaded all {self.tensors:,} tensors; over {self.tokens:,} tokens "
            f"the log-probabilities differ by at most {self.largest:.1e} "
            f"(mean {self.mean:.1e}; allowed: {limit})"
        )


def verify_export(
    folder: Path | str,
    token_lists: Sequence[Sequence[int]],
    expected: Sequence[Sequence[float | None]],
    *,
    base_folder: Path | str | None = None,
    exact: bool = True,
    rounded_to: str = "",
) -> Verification:
    """Load `folder` in fp32 and compare its log-probabilities with `expected`.

    Args:
        token_lists: the sequences to compare.
        expected: their log-probabilities, as the SDK's compute_logprobs returns them.
        base_folder: the base model, for adapters whose adapter_config.json names no folder.
        exact: whether both sides compute in fp32 with the same weights.
        rounded_to: "bfloat16" or "float16" if both compute in fp32, and the folder's weights are
            those of the service rounded to it; "" if the service may compute in bfloat16.

    Raises:
        UserError: a tensor was not loaded, peft is missing, or the numbers differ too much.
    """
    folder = Path(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter:
        model, tensors = load_exported_adapter(folder, base_folder)
    else:
        model, tensors = load_whole_model(folder)
    differences: list[float] = []
    for tokens, wanted in zip(token_lists, expected, strict=True):
        ours = _logprobs(model, tokens)
        if len(wanted) != len(tokens):
            raise UserError(
                f"The service returned {len(wanted)} log-probabilities for {len(tokens)} tokens."
            )
        pairs = zip(ours, wanted[1:], strict=True)
        differences += [abs(a - b) for a, b in pairs if b is not None]
    if not differences:
        raise UserError("There is nothing to compare: no text has two tokens or more.")
    limits = (TIGHT, TIGHT)
    if not exact:
        limits = _limits_of_rounding(model, token_lists, rounded_to)
    result = Verification(
        tokens=len(differences),
        tensors=tensors,
        largest=max(differences),
        mean=sum(differences) / len(differences),
        limits=limits,
        loaded_with="transformers + peft" if is_adapter else "transformers",
    )
    if not result.passed:  # NaN does not pass either
        raise UserError(
            f"The export in {folder} is not the trained model: {result}. Check that the base model "
            "is the one that was trained on, and export it again with --force."
        )
    return result


def _limits_of_rounding(
    model: "nn.Module", token_lists: Sequence[Sequence[int]], dtype: str
) -> tuple[float, float]:
    """What a rounding of the matrices explains: differences at most, and their mean.

    The matrices of `model` are changed.

    Args:
        dtype: of the rounded matrices; "" where all that is computed is rounded to bfloat16.
    """
    import torch

    last_bit = float(torch.finfo(getattr(torch, dtype or "bfloat16")).eps)
    chance = torch.Generator().manual_seed(0)
    before = [value for tokens in token_lists for value in _logprobs(model, tokens)]
    largest = mean = 0.0
    for _ in range(_ROUNDING_DRAWS):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() < 2:  # no LoRA changes a vector
                    continue
                # Half of the last bit of w is eps / 2 of the power of two below w.
                half = torch.exp2(weight.abs().clamp_min(1e-30).log2().floor()) * (last_bit / 2)
                moved = torch.rand(weight.shape, generator=chance, dtype=weight.dtype)
                weight.add_(half * (2 * moved - 1))
        if not dtype:
            model.bfloat16()
        after = [value for tokens in token_lists for value in _logprobs(model, tokens)]
        if not dtype:
            model.float()
        moves = [abs(a - b) for a, b in zip(before, after, strict=True)]
        largest = max(largest, *moves)
        mean = max(mean, sum(moves) / len(moves))
        before = after
    # Without any rounding, both sides still differ by the order of their sums.
    return max(_ROUNDING_MAX * largest, TIGHT), max(_ROUNDING_MEAN * mean, TIGHT)


def logprobs_of_folder(folder: Path, token_lists: Sequence[Sequence[int]]) -> list[list[float]]:
    """The log-probabilities by transformers, in fp32, of all tokens of each list but the first.

    Raises:
        UserError: transformers cannot load the folder.
    """
    model, _ = load_whole_model(folder)
    return [_logprobs(model, tokens) for tokens in token_lists]


def load_exported_adapter(folder: Path, base_folder: Path | str | None) -> "tuple[nn.Module, int]":
    """The adapter in a folder on its base model by plain peft, and how many tensors it has.

    Raises:
        UserError: peft is missing, or does not load all of it.
    """
    try:
        import peft
    except ImportError:
        raise UserError(
            "Verifying an adapter needs peft. Install it with: pip install peft"
        ) from None
    import torch
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    config = read_model_json(folder / ADAPTER_CONFIG)
    name = base_folder or config.get("base_model_name_or_path")
    if not isinstance(name, str | Path) or not str(name):
        raise UserError(f"{folder / ADAPTER_CONFIG} names no base model. {_AGAIN}")
    base, _ = load_whole_model(Path(name), _OTHER_BASE)
    with _explained(folder), warnings.catch_warnings():
        # It warns of a LoRA on a tied output layer, which it does apply, and of missing keys, which
        # the code below finds.
        warnings.simplefilter("ignore")
        model: Any = peft.PeftModel.from_pretrained(base, folder)  # type: ignore[arg-type]
        loaded: Any = peft.get_peft_model_state_dict(  # pyright: ignore[reportUnknownMemberType]
            model, save_embedding_layers=False
        )
    with _explained(folder):
        safetensors_header(folder / ADAPTER_WEIGHTS)  # never waits, unlike the library
        stored = load_file(folder / ADAPTER_WEIGHTS)
    expected = _as_loaded(stored)
    ours = {_without_prefix(name): tensor for name, tensor in loaded.items()}
    wrong = list(expected.keys() ^ ours.keys())
    wrong += [
        name
        for name in expected.keys() & ours.keys()
        if expected[name].shape != ours[name].shape
        or not torch.equal(*_fp32(ours[name], expected[name]))
    ]
    if wrong:
        raise UserError(
            f"peft did not load {folder} whole: {min(wrong)} is not as it was written. Export a "
            "merged model with --merged."
        )
    return model.eval(), len(stored)


def _without_prefix(name: str) -> str:
    """A tensor's name without what differs between a family's files and its modules."""
    name = name.removeprefix(PEFT_PREFIX).replace(".block_sparse_moe.", ".mlp.")
    return text_path(name)


def _as_loaded(stored: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """What peft must have loaded: experts that are stored one by one lie in stacks then."""
    import torch

    expected: dict[str, Tensor] = {}
    experts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in stored.items():
        match = _SINGLE_EXPERT.fullmatch(name)
        if match is None:
            expected[_without_prefix(name)] = tensor
        else:
            layer = _without_prefix(match[1])
            matrix = f"{_MATRICES.get(match[3], match[3])}.{match[4]}"
            experts.setdefault(layer, {}).setdefault(int(match[2]), {})[matrix] = tensor
    for layer, by_number in experts.items():
        ordered = [by_number[number] for number in sorted(by_number)]
        gates = [torch.cat([one["gate_proj.A"], one["up_proj.A"]]) for one in ordered]
        diagonal: Any = cast(Any, torch).block_diag
        blocks: list[Any] = [diagonal(one["gate_proj.B"], one["up_proj.B"]) for one in ordered]
        expected[f"{layer}.base_layer.lora_A.weight"] = torch.cat(gates)
        expected[f"{layer}.base_layer.lora_B.weight"] = torch.stack(blocks, -1).flatten(1)
        expected[f"{layer}.lora_A.weight"] = torch.cat([one["down_proj.A"] for one in ordered])
        downs = torch.stack([one["down_proj.B"] for one in ordered], -1)
        expected[f"{layer}.lora_B.weight"] = downs.flatten(1)
    return expected


def load_whole_model(folder: Path, advice: str = _AGAIN) -> "tuple[nn.Module, int]":
    """The model in a folder by plain transformers, in fp32, and how many tensors it has.

    Args:
        advice: what to do if it cannot be loaded, as the end of a sentence or some.

    Raises:
        UserError: transformers cannot load it, or not whole.
    """
    import torch
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not folder.is_dir() and os.sep in str(folder) and folder.is_absolute():
        raise UserError(f"The folder {folder} does not exist. {advice}")
    with _explained(folder, advice):
        auto: Any = AutoConfig
        config: Any = auto.from_pretrained(str(folder))
        mapping: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        known = type(config) in mapping
        kind: Any = AutoModelForCausalLM if known else AutoModelForImageTextToText
        model, about = kind.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if problems := about.get(kind):
            raise UserError(
                f"transformers loads {folder} with {kind.replace('_', ' ')}: "
                f"{one_line(str(problems), 300)}. {advice}"
            )
    # Some weights of a quantised model stay in bfloat16 when it is loaded.
    return model.float().eval(), len(model.state_dict())


@contextmanager
def _explained(folder: Path, advice: str = _AGAIN) -> Generator[None, None, None]:
    """Whatever goes wrong when other libraries load `folder` becomes a sentence."""
    try:
        yield
    except Exception as error:  # they raise all kinds for damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{folder} cannot be loaded: {reason.rstrip('.')}. {advice}") from None


def _fp32(*tensors: Any) -> list[Any]:
    return [tensor.float().cpu() for tensor in tensors]


def _logprobs(model: "nn.Module", tokens: Sequence[int]) -> list[float]:
    """The log-probability of each token but the first, given the tokens before it."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([list(tokens)])  # (1, T)
        logits = model(input_ids=ids).logits[0, :-1].float()  # (T - 1, V)
        logprobs = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])  # (T - 1, 1)
    return logprobs[:, 0].tolist()
