"""Small models of several families, saved in Hugging Face format."""

from pathlib import Path

import torch
from transformers import (
    PreTrainedConfig,
)

from tests.support.tiny_models import make_tiny_tokenizer

SIZES = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}


def save(folder: Path, kind: type, config: PreTrainedConfig) -> Path:
    make_tiny_tokenizer(folder)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder
