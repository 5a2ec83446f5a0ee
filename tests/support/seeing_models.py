"""Tiny random Qwen3-VL models, pictures for them, and their twin: plain transformers in float64.

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
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.engine.messages import Datum, ImageChunk, SampleRequest
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.checks import with_prompt_images
from tinkersmith.engine.training.checks import with_datum_images

VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
VISION_START, VISION_END, IMAGE_PAD = 259, 260, 261  # behind those of the tiny tokenizer
_TEXT: dict[str, Any] = {
    "vocab_size": 263,
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
_EXPERTS: dict[str, Any] = {
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
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
    "deepstack_visual_indexes": [0, 1],
    "initializer_range": 0.2,
}
_TOKENS = {
    "image_token_id": IMAGE_PAD,
    "video_token_id": 262,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}

Parts = Sequence[bytes | Sequence[int]]  # of a sequence: files of images, and text


def make_seeing(folder: Path, *, experts: bool = False, tied: bool = False) -> Path:
    """A Qwen3-VL whose images have a token for every 8 x 8 pixels, between 1 and 64 of them."""
    kinds: tuple[Any, Any] = Qwen3VLConfig, Qwen3VLForConditionalGeneration
    text = _TEXT
    if experts:
        kinds, text = (Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration), {**_TEXT, **_EXPERTS}
    config = kinds[0](text_config=text, vision_config=_VISION, tie_word_embeddings=tied, **_TOKENS)
    torch.manual_seed(0)
    model = kinds[1](config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder)
    size = {"shortest_edge": 64, "longest_edge": 64 * 64}
    Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size=size
    ).save_pretrained(folder)
    make_seeing_tokenizer(folder)
    return folder


def make_seeing_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": VISION_TOKENS})
    tokenizer.save_pretrained(folder)
    return tokenizer


def picture(width: int, height: int, seed: int = 0, kind: str = "PNG") -> bytes:
    """The file of an image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


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
        for path in [] if adapter is None else adapter.module_paths:
            name = path.replace("model.layers", "model.language_model.layers")
            changed |= self._changed(adapter, path, name)
        inputs = self.inputs(datum.tokens.tolist(), parts)
        output = torch.func.functional_call(
            self.model, changed, (), {**inputs, "use_cache": False}, tie_weights=False
        )
        targets = torch.from_numpy(datum.inputs["target_tokens"])
        return output.logits[0].log_softmax(-1).gather(-1, targets[:, None])[:, 0]

    def _changed(self, adapter: Any, path: str, name: str) -> dict[str, torch.Tensor]:
        def product(of: str) -> torch.Tensor:  # ([experts,] out, in)
            a, b = (adapter.weights[f"{of}.lora_{side}"].double() for side in "AB")
            return adapter.scaling * b @ a

        parent, _, last = path.rpartition(".")
        if not parent.endswith(".experts"):
            return {f"{name}.weight": self.model.get_parameter(f"{name}.weight") + product(path)}
        if last != "w1":
            return {}
        experts = name.rpartition(".")[0]
        gate, up, down = (product(f"{parent}.{part}") for part in ("w1", "w3", "w2"))
        gate_up = f"{experts}.gate_up_proj"
        return {
            gate_up: self.model.get_parameter(gate_up) + torch.cat([gate, up], 1),
            f"{experts}.down_proj": self.model.get_parameter(f"{experts}.down_proj") + down,
        }
