"""The model and data that ship with the project are what their card says, and can be made again."""

import itertools
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.paths import ROOT
from tinkersmith.bundled import BUNDLED_MODELS

sys.path.insert(0, str(ROOT / "tools"))

from make_dataset import make_problems, make_samples
from pretraining_text import documents
from wordproblems import FAMILIES, draw_problem

FOLDER = BUNDLED_MODELS["tinkersmith/tiny-math"]
SAMPLES = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))


def test_the_model_loads_offline_and_is_as_small_as_its_card_says() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER)
    facts = json.loads((FOLDER / "pretraining.json").read_text())
    count = sum(parameter.numel() for parameter in model.parameters())
    card = (FOLDER / "MODEL_CARD.md").read_text()
    assert count == facts["parameters"] and f"{count:,}" in card
    assert f"{facts['solved_in_prose'] * 100:.1f} %" in card
    assert f"{facts['final_loss']:.3f}" in card
    assert (FOLDER / "model.safetensors").stat().st_size < 3_000_000
    assert model.config.max_position_embeddings == 1024 and model.config.tie_word_embeddings


def test_the_tokenizer_encodes_any_text_with_single_digits_and_adds_nothing() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for text in ["Step 1: 12 + 5 = 17", "第一步：答案", "\\frac{1}{2} 🙂 é\n\ttab", ""]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("12345")["input_ids"]) == 5
    assert tokenizer.eos_token == "<|endoftext|>"


def test_the_data_set_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    out = tmp_path / "again.json"
    subprocess.run(
        [sys.executable, ROOT / "tools" / "make_dataset.py", "--out", out], check=True, cwd=tmp_path
    )
    assert out.read_bytes() == (ROOT / "data" / "word_problems.json").read_bytes()


def test_all_problems_differ_and_every_answer_follows_from_its_steps() -> None:
    assert len(SAMPLES) == 2000
    assert len({problem.key() for problem in make_problems()}) == 2000
    assert Counter(sample["language"] for sample in SAMPLES).keys() == {"en", "zh"}
    for sample in SAMPLES:
        assert sample["output"].endswith(sample["answer"])
        for line in sample["output"].splitlines()[:-1]:
            words = line.split("：")[-1].split(": ")[-1]
            left, operator, right = _equation(words)
            results = {"+": left + right, "-": left - right, "×": left * right, "÷": left / right}
            assert f"= {int(results[operator])}" in words


def _equation(words: str) -> tuple[int, str, int]:
    digits_on = words[next(i for i, letter in enumerate(words) if letter.isdigit()) :]
    left, operator, right = digits_on.split(" = ")[0].split(" ")
    return int(left), operator, int(right)


def test_pretraining_never_sees_a_problem_of_the_sample_set_or_its_format() -> None:
    forbidden = {problem.key() for problem in make_problems()}
    stories = {sample["input"] for sample in make_samples()}
    for text in itertools.islice(documents(random.Random(99), forbidden), 5000):
        assert not any(story in text for story in stories if story[:12] in text)
        assert not ("Response:" in text and ("Step " in text or "第一步" in text))


def test_some_wordings_are_held_out_of_pretraining() -> None:
    for family in FAMILIES:
        for language in ("en", "zh"):
            assert not set(family.held_out[language]) & set(family.stories[language])
    rng = random.Random(3)
    assert any(draw_problem(rng, held_out=1.0).story != draw_problem(rng).story for _ in range(10))


def test_every_token_of_the_sample_set_was_seen_often_in_pretraining() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    forbidden = {problem.key() for problem in make_problems()}
    texts = list(itertools.islice(documents(random.Random(7), forbidden), 15_000))
    seen = Counter(itertools.chain.from_iterable(tokenizer(texts)["input_ids"]))
    outputs = [sample["output"] for sample in SAMPLES]
    needed = Counter(itertools.chain.from_iterable(tokenizer(outputs)["input_ids"]))
    rare = {
        tokenizer.decode([token]): (count, seen[token])
        for token, count in needed.items()
        if count >= 5 and seen[token] < 5
    }
    assert not rare


def test_the_base_model_does_not_answer_instructions() -> None:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for sample in SAMPLES[:5]:
        prompt = f"Instruction: {sample['instruction']}\nInput: {sample['input']}\nResponse:\n"
        tokens = tokenizer(prompt, return_tensors="pt")
        output = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
            **tokens, max_new_tokens=100, do_sample=False
        )
        produced = tokenizer.decode(output[0, tokens["input_ids"].shape[1] :])
        assert sample["output"] not in produced
