"""What benchmarks/training.py trains: lengths as real data has them, random tokens, a random model.

Speed depends on lengths and shapes, not on which tokens or weights they are.
"""

import argparse
import json
from pathlib import Path

import numpy as np

REAL_DATA = Path(__file__).resolve().parents[2] / "shared/data/s1k_1.1.json"
SAMPLES = 16  # a step
MEAN_TOKENS = 505  # of s1k-1.1 under a tokenizer of 151,936 entries
RANK = 32
SHAPE = {
    "hidden": 512,
    "layers": 8,
    "heads": 8,
    "key/value heads": 4,
    "head": 64,
    "mlp": 1536,
    "LoRA rank": RANK,
    "samples a step": SAMPLES,
}

Lengths = list[list[int]]  # [prompt, completion] tokens of each sample
Sample = tuple[np.ndarray, int]  # tokens, how many of them are prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every benchmark that takes lengths from data."""
    parser.add_argument(
        "--data",
        type=Path,
        default=REAL_DATA,
        help="samples whose lengths are taken; without the file, lengths are drawn",
    )
    parser.add_argument("--threads", type=int, default=2)


def data_lengths(data: Path, count: int) -> tuple[np.ndarray, str]:
    """[prompt, completion] lengths of some samples, (count, 2), and where they come from.

    The file, its characters scaled to tokens; without it, a fit of its distribution.
    """
    generator = np.random.default_rng(0)
    if data.is_file():
        records = json.loads(data.read_text(encoding="utf-8"))
        characters = np.array(
            [
                (len(one["instruction"] + one.get("input", "")), len(one["output"]))
                for one in records
            ],
            dtype=float,
        )
        scale = MEAN_TOKENS / characters.sum(1).mean()
        pairs = characters[generator.permutation(len(characters))[:count]] * scale
        return pairs, f"{data.name}, characters scaled to a mean of {MEAN_TOKENS} tokens"
    # s1k-1.1: mean 505, median 348, longest 2634, 76 % of the tokens in completions
    total = np.minimum(generator.lognormal(np.log(348), 0.863, count), 2634)
    source = "drawn: log-normal, median 348, at most 2634, 76 % of each in the completion"
    return np.stack([total * 0.24, total * 0.76], axis=1), source


def step_lengths(data: Path, steps: int, longest: int) -> tuple[list[Lengths], str]:
    """Lengths of `steps` steps, and where they come from."""
    pairs, source = data_lengths(data, steps * SAMPLES)
    whole = [_cut(max(2, int(a)), max(2, int(b)), longest) for a, b in pairs]
    return [whole[i : i + SAMPLES] for i in range(0, len(whole), SAMPLES)], source


def _cut(prompt: int, completion: int, longest: int) -> list[int]:
    prompt = min(prompt, longest - 2)
    return [prompt, min(completion, longest - prompt)]


def random_tokens(lengths: Lengths, vocabulary: int) -> list[np.ndarray]:
    """Tokens of each sample, one more than its length: inputs are [:-1], targets are [1:]."""
    generator = np.random.default_rng(1)
    return [generator.integers(0, vocabulary, prompt + rest + 1) for prompt, rest in lengths]


def random_samples(lengths: Lengths, vocabulary: int) -> list[Sample]:
    tokens = random_tokens(lengths, vocabulary)
    return [(row, prompt) for row, (prompt, _) in zip(tokens, lengths, strict=True)]


def random_model(folder: Path, vocabulary: int) -> Path:
    """A random Qwen3 in bf16, saved in `folder`."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=SHAPE["hidden"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["key/value heads"],
        head_dim=SHAPE["head"],
        intermediate_size=SHAPE["mlp"],
        max_position_embeddings=16384,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(folder)
    return folder


def useful_flops(lengths: Lengths, vocabulary: int, shape: dict[str, int] = SHAPE) -> float:
    """Operations that a step needs, however it is computed; padding and recomputation add none."""
    return sum(useful_parts(lengths, vocabulary, shape).values())


def useful_parts(
    lengths: Lengths, vocabulary: int, shape: dict[str, int] = SHAPE
) -> dict[str, float]:
    """The same, by what needs them.

    A product of (m, k) and (k, n) is 2mkn. Frozen weights: forward and the input's gradient, 4 a
    weight and token, but no input gradient for the first layer's q/k/v. LoRA: 6. Output layer: 4,
    only at completion tokens. Attention: 2 products over n(n+1)/2 pairs forward and 4 backward.
    Element-wise work, soft-max and the optimizer are not counted.
    """
    hidden, mlp, layers = shape["hidden"], shape["mlp"], shape["layers"]
    query = shape["heads"] * shape["head"]
    key = shape["key/value heads"] * shape["head"]
    linears = [
        *((hidden, query), (hidden, key), (hidden, key), (query, hidden)),
        *((hidden, mlp), (hidden, mlp), (mlp, hidden)),
    ]
    frozen = sum(a * b for a, b in linears)
    lora = sum(shape["LoRA rank"] * (a + b) for a, b in linears)
    first = 2 * hidden * (query + 2 * key)
    tokens = sum(prompt + rest for prompt, rest in lengths)
    graded = sum(rest for _, rest in lengths)
    pairs = sum((a + b) * (a + b + 1) / 2 for a, b in lengths)
    return {
        "layers' products": tokens * (layers * (4 * frozen + 6 * lora) - first),
        "attention, forward": layers * pairs * 2 * 2 * query,
        "attention, backward": layers * pairs * 4 * 2 * query,
        "output layer": graded * 4 * hidden * vocabulary,
    }
