"""Families that see: the whole model of a folder -> its text part, and a vision tower.

The text parts are those of Qwen3 but for the positions of images, and Qwen3 has fast kernels. So
they become models of these classes, with the names that Tinker's cloud gives their layers.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3MoeConfig,
)

from tinkersmith.engine.errors import Refused

_TEXT: dict[str, type[PreTrainedConfig]] = {"qwen3_vl": Qwen3Config, "qwen3_vl_moe": Qwen3MoeConfig}
NAMES = frozenset(_TEXT)  # of model types, as config.json gives them
# The text part's own names for what the other classes do not have, or have another default for.
_NOT_TAKEN = {"model_type", "architectures", "rope_parameters", "layer_types", "dtype"}
_SECTIONS = (24, 20, 20)  # where config.json says nothing


def sees(config: PreTrainedConfig) -> bool:
    """Whether models with this configuration are loaded with the part that sees images."""
    return config.model_type in NAMES


def config_of_text(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the text part, as a model of its own."""
    text = config.get_text_config()
    rope = {
        name: value for name, value in text.rope_parameters.items() if not name.startswith("mrope")
    }
    values = {name: value for name, value in text.to_dict().items() if name not in _NOT_TAKEN}
    values["tie_word_embeddings"] = bool(getattr(config, "tie_word_embeddings", False))
    if config.model_type == "qwen3_vl_moe":
        values["norm_topk_prob"] = True  # it always does
    return _TEXT[config.model_type](**{**values, "rope_parameters": rope})


def sections(config: PreTrainedConfig) -> tuple[int, ...]:
    """How many pairs of numbers of a head turn by a token's time, row and column."""
    return tuple(config.get_text_config().rope_parameters.get("mrope_section", _SECTIONS))


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
