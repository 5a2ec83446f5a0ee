"""A rule of llama.cpp is taken only where it gives the tokenizer's own ids."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer

from tests.support.paths import ROOT
from tests.support.tiny_models import make_tiny_tokenizer
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.export.targets.pre_tokenizers import RULES, _with_rule, ids, matching_rule

BUNDLED = BUNDLED_MODELS["tinkersmith/tiny-math"]
LETTERS = "abstmdlrv XYZ  \n\t'\".,!?()[]<>|=+-*/0123456789，。“”？！小明有多少个球欢场🙂éñ—×÷"


def demo_texts() -> list[str]:
    records = json.loads((ROOT / "data" / "word_problems.json").read_text(encoding="utf-8"))
    return [
        f"Instruction: {record['instruction']}\nInput: {record.get('input', '')}\nResponse:\n"
        f"{record['output']}<|endoftext|>"
        for record in records
    ]


def test_the_bundled_tokenizer_splits_the_demo_as_gpt_2_does():
    assert matching_rule(BUNDLED, demo_texts()) == "gpt-2"


def test_in_random_text_only_an_apostrophe_before_a_word_can_differ():
    values = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    own = Tokenizer.from_str(json.dumps(values))
    other = Tokenizer.from_str(json.dumps(_with_rule(values, RULES["gpt-2"])))
    chance = random.Random(0)
    texts = ["".join(chance.choices(LETTERS, k=chance.randint(1, 60))) for _ in range(2000)]
    different = [text for text in texts if ids(own, text) != ids(other, text)]
    assert all("'" in text for text in different)
    assert len(different) < 0.01 * len(texts)
    assert all(ids(own, t.replace("'", "")) == ids(other, t.replace("'", "")) for t in texts)


def test_a_tokenizer_that_splits_in_its_own_way_gets_no_rule(tmp_path: Path):
    values = json.loads((BUNDLED / "tokenizer.json").read_text(encoding="utf-8"))
    split = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
    values["pre_tokenizer"]["pretokenizers"][0] = split
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert matching_rule(tmp_path, []) == ""


def test_the_texts_of_training_decide(tmp_path: Path):
    make_tiny_tokenizer(tmp_path)
    assert matching_rule(tmp_path, ["How many are 3 + 4?"]) in RULES


def test_a_folder_without_a_fast_tokenizer_gets_no_rule(tmp_path: Path):
    assert matching_rule(tmp_path, []) == ""
