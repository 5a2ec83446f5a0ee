"""Tiny random models in Hugging Face format, made on the spot: no test needs a hub."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tiny_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer (one token per byte, 256 + 3 entries) saved in `folder`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(alphabet)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL_TOKENS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_tiny_model(
    folder: Path,
    *,
    vocab_size: int = 259,
    hidden: int = 32,
    layers: int = 2,
    tied: bool = True,
    max_context: int = 512,
    seed: int = 0,
) -> Path:
    """A random Qwen3 with logits sharp enough for sampling tests, and its tokenizer."""
    tokenizer = make_tiny_tokenizer(folder)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert isinstance(end, int)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=max_context,
        tie_word_embeddings=tied,
        eos_token_id=end,
        pad_token_id=end,
        bos_token_id=None,
        initializer_range=0.2,
    )
    model = Qwen3ForCausalLM(config).float()
    model.save_pretrained(folder)
    return folder
