"""A tokenizer that llama.cpp's converter does not know -> one of llama.cpp's ways to split words.

llama.cpp splits text into words by rules that it has in its code, under names. A rule fits if a
tokenizer with it gives every text the ids that the own rule gives.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from tinkersmith.export.base_folder import read_model_json

_CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
_GPT_2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_QWEN_2 = (
    rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# llama.cpp's names and their regular expressions, the one that most programs know first.
RULES = {"gpt-2": [_GPT_2], "smollm": [r"\p{N}", _GPT_2], "qwen2": [_QWEN_2]}
_PROBES = (
    " two  spaces\n\nlines \t tabs 12345 3.14 x=y+1 (a) [b] {c} <d|e> «f» …",
    "I've said: it's don't, O'Neill's 'quoted' \"words\"!!! --- `code` #1 @you $5 50% a_b~c^d&e*f",
    "数学题：小明有3个苹果，又买了15个，一共多少？“十八”。答案！（对）",
    "Füße, naïve, ΑΒΓ, привет, שלום, مرحبا, नमस्ते, 한국어, 日本語、テスト。 🚀🦙",
)


def matching_rule(folder: Path, texts: Sequence[str]) -> str:
    """The name of the first rule that gives `texts` the tokenizer's own ids; "" if none does.

    Only byte-level BPE is looked at: llama.cpp's converter asks for a name of no other kind.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        return ""
    values = read_model_json(file)
    if not _is_byte_level(values):
        return ""
    own = Tokenizer.from_file(str(file))
    wanted = [ids(own, text) for text in (*texts, *_PROBES)]
    for name, expressions in RULES.items():
        other = Tokenizer.from_str(json.dumps(_with_rule(values, expressions)))
        if [ids(other, text) for text in (*texts, *_PROBES)] == wanted:
            return name
    return ""


def ids(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a text, without begin and end tokens."""
    return tokenizer.encode(text, add_special_tokens=False).ids


def _is_byte_level(values: dict[str, Any]) -> bool:
    model: object = values.get("model")
    if not isinstance(model, dict) or cast("dict[str, Any]", model).get("type") != "BPE":
        return False
    return '"ByteLevel"' in json.dumps(values.get("pre_tokenizer"))


def _with_rule(values: dict[str, Any], expressions: list[str]) -> dict[str, Any]:
    """The contents of a tokenizer.json that splits words by these expressions."""
    changed = copy.copy(values)
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated", "invert": False}
        for rule in expressions
    ]
    bytes_ = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    }
    changed["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [*splits, bytes_]}
    return changed
