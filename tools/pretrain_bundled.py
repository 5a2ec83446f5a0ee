"""Train the bundled base model from scratch on text that `pretraining_text.py` makes.

Fixed seeds, steps and threads: a rerun on the same kind of machine gives the same model.
"""

import argparse
import itertools
import json
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from make_dataset import make_problems, make_samples
from pretraining_text import END, documents
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from wordproblems import draw_problem

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.files import new_folder, write_json

SEED = 20261124
STEPS = 1800
ROWS, CONTEXT = 4, 1024  # (B, T): as many tokens a step as 16 rows of 256
VOCABULARY = 1700
SPECIAL_TOKENS = [END, "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Words keep the space before them, every digit stands alone, line ends are tokens of their own.
WORDS = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUNDLED_MODELS["tinkersmith/tiny-math"])
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    forbidden = {problem.key() for problem in make_problems()}

    start = time.perf_counter()
    tokenizer = train_tokenizer(itertools.islice(documents(random.Random(SEED), forbidden), 40_000))
    end = tokenizer.convert_tokens_to_ids(END)
    assert isinstance(end, int)
    model = new_model(len(tokenizer), end)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(tokenizer):,} tokens in the vocabulary", flush=True)
    batches = packed_rows(documents(random.Random(SEED + 1), forbidden), tokenizer)
    loss = pretrain(model, batches, arguments.steps)
    minutes = (time.perf_counter() - start) / 60

    model = model.bfloat16().float().eval()  # measured as it is saved
    scores = {
        "parameters": parameters,
        "vocabulary": len(tokenizer),
        "steps": arguments.steps,
        "tokens_seen": arguments.steps * ROWS * CONTEXT,
        "final_loss": round(loss, 4),
        "minutes": round(minutes, 1),
        "solved_in_prose": solved_in_prose(model, tokenizer, forbidden),
        "solved_in_instruction_format": solved_in_instruction_format(model, tokenizer),
    }
    print(json.dumps(scores, indent=2))
    card = arguments.out / "MODEL_CARD.md"
    kept_card = card.read_bytes() if card.exists() else None
    with new_folder(arguments.out, overwrite=True) as folder:
        tokenizer.save_pretrained(folder)
        model.bfloat16().save_pretrained(folder)
        write_json(folder / "pretraining.json", scores)
        if kept_card is not None:
            (folder / "MODEL_CARD.md").write_bytes(kept_card)
    print(f"saved in {arguments.out}")


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits; every byte has a token, so any text can be encoded."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(vocabulary: int, end: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def packed_rows(texts: Iterator[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Documents end to end, an end token after each, cut into (ROWS, CONTEXT + 1)."""
    end = tokenizer.convert_tokens_to_ids(END)
    wanted = ROWS * (CONTEXT + 1)
    buffer: list[int] = []
    while True:
        while len(buffer) < wanted:
            for ids in tokenizer(list(itertools.islice(texts, 200)))["input_ids"]:
                buffer += [*ids, end]
        yield torch.tensor(buffer[:wanted]).view(ROWS, CONTEXT + 1)
        del buffer[:wanted]


def pretrain(model: Qwen3ForCausalLM, batches: Iterator[torch.Tensor], steps: int) -> float:
    """Muon on the layers' matrices, AdamW on the rest; returns the mean loss of the last steps."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    momenta = [torch.zeros_like(matrix) for matrix in matrices]
    adam = torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0)
    recent: list[float] = []
    start = time.perf_counter()
    for step in range(steps):
        rate = min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))
        rows = next(batches)  # (B, T + 1)
        logits = model(rows[:, :-1]).logits  # (B, T, V)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = 3e-3 * rate
        adam.step()
        muon_step(matrices, momenta, 0.02 * rate)
        model.zero_grad(set_to_none=True)
        recent = [*recent[-49:], loss.item()]
        if (step + 1) % 50 == 0:
            left = (time.perf_counter() - start) / (step + 1) * (steps - step - 1) / 60
            print(
                f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.4f}"
                f"  {left:.1f} minutes left",
                flush=True,
            )
    return sum(recent) / len(recent)


@torch.no_grad()
def muon_step(
    matrices: list[nn.Parameter], momenta: list[torch.Tensor], rate: float, momentum: float = 0.95
) -> None:
    """Momentum whose update is made orthogonal (K. Jordan et al., Muon, 2024)."""
    for matrix, velocity in zip(matrices, momenta, strict=True):
        assert matrix.grad is not None
        velocity.lerp_(matrix.grad, 1 - momentum)
        update = orthogonal(matrix.grad.lerp(velocity, momentum))
        matrix.add_(update, alpha=-rate * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Nearly U V^T of the matrix' SVD, by five quintic Newton-Schulz iterations (same source)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@torch.no_grad()
def solved_in_prose(model, tokenizer, forbidden, count: int = 300) -> float:
    """The share of fresh problems whose prose solution ends with the right number, greedily."""
    rng = random.Random(SEED + 2)
    solved = tried = 0
    while tried < count:
        problem = draw_problem(rng)
        if problem.key() in forbidden:
            continue
        tried += 1
        numbers = re.findall(r"\d+", continuation(model, tokenizer, problem.story))
        solved += bool(numbers) and int(numbers[-1]) == problem.answer
    return round(solved / count, 4)


@torch.no_grad()
def solved_in_instruction_format(model, tokenizer, count: int = 200) -> float:
    """The share of the sample set answered exactly in the format that fine-tuning teaches."""
    solved = 0
    for sample in make_samples()[:count]:
        prompt = f"Instruction: {sample['instruction']}\nInput: {sample['input']}\nResponse:\n"
        solved += continuation(model, tokenizer, prompt).strip() == sample["output"]
    return round(solved / count, 4)


def continuation(model, tokenizer, prompt: str) -> str:
    tokens = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**tokens, max_new_tokens=160, do_sample=False)
    return tokenizer.decode(output[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main()
