"""Tiny random Qwen3-VL and Qwen3.5 models, pictures for them, and their twin in float64.

Axes: T tokens of a sequence.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.family_twin import all_in_float64, changed_parameters
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.engine.messages import Datum, ImageChunk, SampleRequest
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.checks import with_prompt_images
from tinkersmith.engine.training.checks import with_datum_images

VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
THINK_TOKENS = ["<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VISION_START, VISION_END, IMAGE_PAD = 259, 260, 261  # behind those of the tiny tokenizer
_TEXT: dict[str, Any] = {
    "vocab_size": 265,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "eos_token_id": 258,
    "pad_token_id": 256,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [4, 2, 2],
        "mrope_interleaved": True,
    },
}
_DELTA_NET: dict[str, Any] = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
}
_EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
_SHARED_EXPERT: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
_VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 32,
    "num_position_embeddings": 16,
    "initializer_range": 0.2,
}
_DEEPSTACK: dict[str, Any] = {**_VISION, "deepstack_visual_indexes": [0, 1]}
_TOKENS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": 262,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}

Parts = Sequence[bytes | Sequence[int]]  # of a sequence: files of images, and text
JOINED = {"in_proj_qkv": ("in_proj_q", "in_proj_k", "in_proj_v")}  # see TinyFamily


# Classes, and what configures the text part and the part that sees, by the name of a family.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any], dict[str, Any]]] = {
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration, _TEXT, _DEEPSTACK),
    "qwen3_vl_moe": (
        Qwen3VLMoeConfig,
        Qwen3VLMoeForConditionalGeneration,
        {**_TEXT, **_EXPERTS},
        _DEEPSTACK,
    ),
    "qwen3_5": (
        Qwen3_5Config,
        Qwen3_5ForConditionalGeneration,
        {**_TEXT, **_DELTA_NET},
        _VISION,
    ),
    "qwen3_5_moe": (
        Qwen3_5MoeConfig,
        Qwen3_5MoeForConditionalGeneration,
        {**_TEXT, **_DELTA_NET, **_SHARED_EXPERT},
        _VISION,
    ),
}


def make_seeing(folder: Path, family: str = "qwen3_vl", *, tied: bool = False) -> Path:
    """A model whose images have a token for every 8 x 8 pixels, between 1 and 64 of them."""
    config_kind, kind, text, vision = FAMILIES[family]
    config = config_kind(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, **_TOKENS
    )
    torch.manual_seed(0)
    model = kind(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
            if name.endswith("A_log"):
                parameter.sub_(4)  # see make_family
        # Not likely in answers: `generate` takes a placeholder in them for a part of an image.
        model.lm_head.weight[[IMAGE_PAD, _TOKENS["video_token_id"]]] = 0
    model.save_pretrained(folder)
    if "qwen3_5" in family:  # published folders have this part, which nobody loads
        file = folder / "model.safetensors"
        more = {"mtp.fc.weight": torch.zeros(8, 4)}
        save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    size = {"shortest_edge": 64, "longest_edge": 64 * 64}
    Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size=size
    ).save_pretrained(folder)
    make_seeing_tokenizer(folder)
    return folder


def make_seeing_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": VISION_TOKENS})
    tokenizer.add_tokens(THINK_TOKENS)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return tokenizer


def picture(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """The file of an image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


WIDE, SQUARE, TALL = picture(40, 16, 1), picture(24, 24, 2), picture(8, 48, 3, "JPEG")


def shown(image: bytes) -> list[bytes | list[int]]:
    """An image between the tokens that renderers put around it."""
    return [[VISION_START], image, [VISION_END]]


def seeing_sequences(seed: int = 0) -> list[Parts]:
    """Text with images of three shapes: in it, before it, behind it, several, and none."""
    rng = np.random.default_rng(seed)

    def words(count: int) -> list[int]:
        return rng.integers(0, 250, count).tolist()

    return [
        [words(5), *shown(WIDE), words(6)],
        [words(12)],
        [*shown(SQUARE), words(9), *shown(TALL), words(2)],
        [SQUARE, words(4)],
        [words(3), TALL],
        [words(1), WIDE, words(1), WIDE, words(1), SQUARE],
    ]


def split_parts(parts: Parts) -> tuple[list[int], tuple[ImageChunk, ...]]:
    """The text tokens of a sequence, and its images with their places."""
    tokens: list[int] = []
    chunks: list[ImageChunk] = []
    for part in parts:
        if isinstance(part, bytes):
            chunks.append(ImageChunk(part, len(tokens)))
        else:
            tokens += part
    return tokens, tuple(chunks)


def seeing_datum(base: BaseModel, parts: Parts, seed: int = 0) -> Datum:
    """A datum with random targets and weights, its images at their places."""
    tokens, chunks = split_parts(parts)
    [datum] = with_datum_images(base, [Datum(np.asarray(tokens, np.int64), {}, chunks=chunks)])
    rng, length = np.random.default_rng(seed), len(datum.tokens)
    datum.inputs["target_tokens"] = rng.integers(0, 250, length)
    datum.inputs["weights"] = rng.choice([0.5, 1.0, -0.3], length).astype(np.float32)
    return datum


def seeing_request(base: BaseModel, parts: Parts, **options: Any) -> SampleRequest:
    tokens, chunks = split_parts(parts)
    return with_prompt_images(base, SampleRequest(tokens, chunks=chunks, **options))


@dataclass
class SeeingTwin:
    """transformers' own model, eager and in float64. It computes one sequence at a time."""

    folder: Path
    model: Any = field(init=False)

    def __post_init__(self) -> None:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            self.folder, attn_implementation="eager"
        )
        self.model = model.double().eval().requires_grad_(False)
        if hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the only one for float64

    def inputs(self, tokens: Sequence[int], parts: Parts) -> dict[str, torch.Tensor]:
        """What the model reads; tokens below 0 are those of images."""
        ids = torch.tensor(tokens)[None]
        inputs = {"input_ids": ids.where(ids >= 0, IMAGE_PAD)}
        images = [Image.open(io.BytesIO(part)) for part in parts if isinstance(part, bytes)]
        if images:
            processor: Any = AutoImageProcessor.from_pretrained(self.folder, backend="pil")
            seen = processor(images=images, return_tensors="pt")
            inputs["pixel_values"] = seen["pixel_values"].double()
            inputs["image_grid_thw"] = seen["image_grid_thw"]
            inputs["mm_token_type_ids"] = (ids < 0).int()
        return inputs

    def logprobs(self, adapter: Adapter | None, datum: Datum, parts: Parts) -> torch.Tensor:  # (T,)
        """Log-probabilities of the targets, differentiable down to the adapter's weights."""
        changed: dict[str, torch.Tensor] = {}
        if adapter is not None:
            layers = "model.language_model."
            changed = changed_parameters(self.model, adapter, joined=JOINED, layers=layers)
        inputs = {**self.inputs(datum.tokens.tolist(), parts), "use_cache": False}
        with all_in_float64(self.model):
            output = torch.func.functional_call(self.model, changed, (), inputs, tie_weights=False)
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        return output.logits[0].log_softmax(-1).gather(-1, targets[:, None])[:, 0]
