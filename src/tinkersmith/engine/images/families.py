"""Families that see: the whole model of a folder -> its text part, and a vision tower.

The text part becomes a model of its own, with the names that Tinker's cloud gives its layers. That
of Qwen3-VL is a Qwen3 but for the positions of images, and Qwen3 has fast kernels.
"""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tinkersmith.engine.errors import Refused


@dataclass(frozen=True, slots=True)
class _TextPart:
    kind: type[PreTrainedConfig]
    # How many pairs of numbers of a head turn by a token's time, row and column, where config.json
    # says nothing.
    sections: tuple[int, ...]
    stands_alone: bool  # whether a folder without the part that sees is one of a model of text


_TEXT = {  # by the model type in config.json
    "qwen3_vl": _TextPart(Qwen3Config, (24, 20, 20), False),
    "qwen3_vl_moe": _TextPart(Qwen3MoeConfig, (24, 20, 20), False),
    "qwen3_5": _TextPart(Qwen3_5TextConfig, (11, 11, 10), True),  # Qwen3.6 and 3.8, too
    "qwen3_5_moe": _TextPart(Qwen3_5MoeTextConfig, (11, 11, 10), True),
}
TOWER = re.compile(r"(?:^|\.)visual\.")  # names of the tensors of the part that sees
# The text part's own names for what the other classes do not have, or have another default for.
_NOT_TAKEN = {"model_type", "architectures", "rope_parameters", "layer_types", "dtype"}


def sees(model_type: str, has_tower: Callable[[], bool]) -> bool:
    """Whether a model of this type is loaded with the part that sees.

    Args:
        has_tower: whether its folder has that part; asked only where that decides.
    """
    text = _TEXT.get(model_type)
    return text is not None and (not text.stands_alone or has_tower())


def config_of_text(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text part, as a model of its own."""
    text, kind = config.get_text_config(), _TEXT[config.model_type].kind
    tied = bool(getattr(config, "tie_word_embeddings", False))
    if isinstance(text, kind):
        own = copy.deepcopy(text)
        own.tie_word_embeddings = tied
        return own
    rope = {
        name: value for name, value in text.rope_parameters.items() if not name.startswith("mrope")
    }
    values = {name: value for name, value in text.to_dict().items() if name not in _NOT_TAKEN}
    values["tie_word_embeddings"] = tied
    if config.model_type == "qwen3_vl_moe":
        values["norm_topk_prob"] = True  # it always does
    return kind(**{**values, "rope_parameters": rope})


def sections(config: PreTrainedConfig) -> tuple[int, ...]:
    """How many pairs of numbers of a head turn by a token's time, row and column."""
    default = _TEXT[config.model_type].sections
    return tuple(config.get_text_config().rope_parameters.get("mrope_section", default))


def take_apart(whole: PreTrainedModel, attention: str) -> tuple[PreTrainedModel, nn.Module]:
    """The text part of a model, with an attention of this name, and its frozen vision tower."""
    inner: Any = whole.base_model
    config = config_of_text(whole.config)
    with torch.device("meta"):
        text: Any = AutoModelForCausalLM.from_config(
            config, dtype=whole.dtype, attn_implementation=attention
        )
    text.model.rotary_emb = type(text.model.rotary_emb)(config)  # its numbers are in no file
    strict = text.model.load_state_dict(inner.language_model.state_dict(), assign=True)
    assert not strict.missing_keys and not strict.unexpected_keys
    text.lm_head.weight = (
        text.model.embed_tokens.weight if config.tie_word_embeddings else whole.lm_head.weight
    )
    text.generation_config = whole.generation_config
    left = [name for name, tensor in text.named_parameters() if tensor.is_meta]
    if left:
        raise Refused(f"{left[0]} of its text part has no weights.")
    tower = inner.visual.eval().requires_grad_(False)
    return text.to(whole.device), tower
