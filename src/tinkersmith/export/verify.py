"""An exported folder -> proof that plain transformers (and peft) load all of it and agree with us.

Compares log-probabilities of given tokens; who computed the expected ones is the caller's matter.
Axes: T tokens, V vocabulary.
"""

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.errors import UserError
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

if TYPE_CHECKING:
    from torch import nn

# Of a log-probability. The loose ones are for services that compute in bfloat16, or for merged
# weights rounded to it: its 8 bits are 0.4 % of each weight.
TIGHT = 1e-4
LOOSE_MAX, LOOSE_MEAN = 1.0, 0.05


@dataclass(frozen=True, slots=True)
class Verification:
    tokens: int
    tensors: int  # of the LoRA, or of the whole model
    largest: float  # difference of a token's log-probability
    mean: float
    exact: bool  # whether both sides compute in fp32 with the same weights
    loaded_with: str

    @property
    def passed(self) -> bool:
        if self.exact:
            return self.largest <= TIGHT
        return self.largest <= LOOSE_MAX and self.mean <= LOOSE_MEAN

    def __str__(self) -> str:
        limit = f"{TIGHT:g}" if self.exact else f"{LOOSE_MAX:g}, mean at most {LOOSE_MEAN:g}"
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
) -> Verification:
    """Load `folder` in fp32 and compare with `expected`, as the SDK's compute_logprobs gives it.

    `base_folder` is needed for adapters whose adapter_config.json names no folder.

    Raises:
        UserError: a tensor was not loaded, peft is missing, or the numbers differ too much.
    """
    folder = Path(folder)
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    if is_adapter:
        model, tensors = _load_adapter(folder, base_folder)
    else:
        model, tensors = _load_model(folder)
    differences: list[float] = []
    for tokens, wanted in zip(token_lists, expected, strict=True):
        found = _logprobs(model, tokens)
        if len(wanted) != len(tokens):
            raise UserError(
                f"The service gave {len(wanted)} log-probabilities for {len(tokens)} tokens."
            )
        pairs = zip(found, wanted[1:], strict=True)
        differences += [abs(a - b) for a, b in pairs if b is not None]
    if not differences:
        raise UserError("There is nothing to compare: no text of two tokens or more was given.")
    result = Verification(
        tokens=len(differences),
        tensors=tensors,
        largest=max(differences),
        mean=sum(differences) / len(differences),
        exact=exact,
        loaded_with="transformers + peft" if is_adapter else "transformers",
    )
    if not result.passed:  # NaN does not pass either
        raise UserError(f"The export in {folder} is not the trained model: {result}.")
    return result


def _load_adapter(folder: Path, base_folder: Path | str | None) -> "tuple[nn.Module, int]":
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError:
        raise UserError(
            "Verifying an adapter needs peft. Install it with: pip install peft"
        ) from None
    import torch
    from safetensors.torch import load_file

    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base, _ = _load_model(Path(base_folder or config["base_model_name_or_path"]))
    with warnings.catch_warnings():
        # It warns of a LoRA on a tied output layer, which it does apply, and of missing keys, which
        # are looked for below.
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(base, folder)  # type: ignore[arg-type]
        loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    stored = load_file(folder / ADAPTER_WEIGHTS)
    experts = [name for name in stored if ".experts." in name]  # peft fuses these while it loads
    plain = stored.keys() - set(experts)
    absent = sorted(plain - loaded.keys())
    absent += sorted(
        name
        for name in plain & loaded.keys()
        if not torch.equal(*_fp32(loaded[name], stored[name]))
    )
    extra = [name for name in loaded.keys() - plain if ".experts." not in name]
    if absent or extra:
        name = [*absent, *extra][0]
        raise UserError(f"peft did not load {folder} completely: {name} is not as it was written.")
    return model.eval(), len(stored)


def _load_model(folder: Path) -> "tuple[nn.Module, int]":
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if not folder.is_dir() and os.sep in str(folder) and folder.is_absolute():
        raise UserError(f"The base model's folder {folder} does not exist. Name another.")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"transformers cannot load {folder}: {reason}") from None
    model, about = loaded
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := about.get(kind):
            raise UserError(f"transformers loads {folder} with {kind.replace('_', ' ')}: {found}.")
    return model.eval(), len(model.state_dict())


def _fp32(*tensors: Any) -> list[Any]:
    return [tensor.float().cpu() for tensor in tensors]


def _logprobs(model: "nn.Module", tokens: Sequence[int]) -> list[float]:
    """Of each token but the first, given those before it."""
    import torch

    with torch.no_grad():
        ids = torch.tensor([list(tokens)])  # (1, T)
        logits = model(input_ids=ids).logits[0, :-1].float()  # (T - 1, V)
        found = logits.log_softmax(-1).gather(-1, ids[0, 1:, None])  # (T - 1, 1)
    return found[:, 0].tolist()
