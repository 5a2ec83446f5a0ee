"""What it costs that an answer must follow a JSON schema: to compile it, and for each token.

The masks of allowed tokens are measured alone, for the bundled model's vocabulary and for a made-up
one of 151,936 tokens, along answers that follow the schema. Choosing a token from the logits of the
larger vocabulary is measured with and without a schema. Then the engine's sampler writes the same
number of tokens with and without a schema, with the bundled model.
"""

import argparse
import itertools
import json
import os
import random
import string
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.hardware.threads import wait_passively
from tinkersmith.engine.json_grammar import Grammars, JsonGrammar, Vocabulary, vocabulary_of
from tinkersmith.engine.messages import Answering, SampledSequence, SampleRequest, SampleResult
from tinkersmith.prompts.text_tokenizer import TextTokenizer, read_tokenizer

if TYPE_CHECKING:
    from tinkersmith.engine.model.base_model import BaseModel
    from tinkersmith.engine.sampling.rows import Row

BUNDLED = "tinkersmith/tiny-math"
LARGE = 151_936  # tokens
END = "<|endoftext|>"
_PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "born": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
        "kind": {"enum": ["buyer", "seller", "agent", None]},
        "scores": {"type": "array", "items": {"type": "number"}, "maxItems": 8},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "integer"}},
            "required": ["street"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "kind", "address"],
    "additionalProperties": False,
}
_TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "parts"],
    "additionalProperties": False,
}


def _tree(depth: int) -> dict[str, Any]:
    return {"name": "a", "parts": [_tree(depth - 1)] if depth else []}


SCHEMAS: dict[str, tuple[Mapping[str, Any], Any]] = {  # each with an answer that follows it
    "one integer": (
        {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]},
        {"answer": 1234567},
    ),
    "nested objects": (
        {"type": "array", "items": _PERSON},
        [
            {
                "name": "Ada König",
                "born": "1815-12-10",
                "kind": "agent",
                "scores": [1.5, -2, 3e8],
                "address": {"street": "Große Straße", "number": 12},
            },
            {"name": "王小明", "kind": None, "address": {"street": "南京路"}},
        ],
    ),
    "tree of itself": (_TREE, _tree(20)),
    "enum of 2,000": ({"enum": [f"item {n * 7919 % 100_003}" for n in range(2_000)]}, "item 7919"),
    "pattern": ({"type": "string", "pattern": "^([a-z]+ ){1,200}[0-9]{3}$"}, "abc " * 60 + "123"),
    "any object": ({"type": "object"}, {"a": [1, {"b": "text"}, None], "c": {"d": True}}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=30, help="of each answer")
    parser.add_argument("--tokens", type=int, default=128, help="of an answer of the sampler")
    options = parser.parse_args()
    folder = BUNDLED_MODELS[BUNDLED]
    with tempfile.TemporaryDirectory() as temporary:
        large = make_large_tokenizer(Path(temporary))
        tokenizers = {
            "bundled": _tokenizer(folder),
            f"{LARGE:,} tokens": _tokenizer(large),
        }
    masks: dict[str, Any] = {}
    vocabulary: Any = None
    for title, tokenizer in tokenizers.items():
        begun = time.perf_counter()
        vocabulary = vocabulary_of(title, tokenizer)
        masks[title] = {"reading the vocabulary, ms": _ms(time.perf_counter() - begun)}
        for name, (schema, answer) in SCHEMAS.items():
            masks[title][name] = measure(vocabulary, tokenizer, schema, answer, options.repeats)
    sampling = measure_sampling(folder, options.tokens)
    choosing = measure_choosing(vocabulary)  # by one thread from here on
    figures = {"masks": masks, f"choosing among {LARGE:,} tokens": choosing, "sampling": sampling}
    print(json.dumps(figures, indent=2))
    command = f"python -m benchmarks.json_grammar --repeats {options.repeats}"
    command += f" --tokens {options.tokens}"
    print("written:", write_results("json_grammar", command, figures, packages=("llguidance",)))


def make_large_tokenizer(folder: Path) -> Path:
    """Every byte, and random words and numbers of 2 to 10 characters."""
    generator = random.Random(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = dict.fromkeys(alphabet)
    while len(names) < LARGE - 1:
        letters = string.digits if generator.random() < 0.05 else string.ascii_letters
        word = "".join(generator.choices(letters, k=generator.randint(2, 10)))
        names[("Ġ" if generator.random() < 0.4 else "") + word] = None
    backend = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return folder


def measure(
    vocabulary: Vocabulary,
    tokenizer: TextTokenizer,
    schema: Mapping[str, Any],
    answer: Any,
    repeats: int,
) -> dict[str, float]:
    """Milliseconds to compile a schema, and to know the allowed tokens at each place."""
    compiling: list[float] = []
    for _ in range(5):
        begun = time.perf_counter()
        grammar = Grammars(vocabulary).of(schema)
        compiling.append(time.perf_counter() - begun)
    tokens = [int(token) for token in tokenizer.encode(json.dumps(answer, ensure_ascii=False))]
    masks: list[float] = []
    first: list[float] = []
    for _ in range(repeats):
        # What one answer computes speeds up the next of the same compiled schema, as it is used.
        state = grammar.begin()
        for number, token in enumerate(tokens):
            begun = time.perf_counter()
            allowed = state.allowed()
            assert allowed[token]
            state.add(token)
            (masks if number else first).append(time.perf_counter() - begun)
    masks.sort()
    return {
        "compiling, ms": _ms(median(compiling)),
        "tokens": len(tokens),
        "first token, ms": _ms(median(first)),
        "a token, median ms": _ms(median(masks)),
        "a token, 99th percentile ms": _ms(masks[int(0.99 * (len(masks) - 1))]),
    }


def measure_choosing(vocabulary: Vocabulary) -> dict[str, dict[str, float]]:
    """Milliseconds of a step to choose a token for each row, by one thread, without the model."""
    import torch

    from tinkersmith.engine.sampling.rows import take_tokens

    torch.set_num_threads(1)
    grammars = {
        "no schema": None,
        "a number": Grammars(vocabulary).of(
            {"type": "array", "minItems": 3_000, "items": {"type": "integer"}}
        ),
        "a string": Grammars(vocabulary).of({"type": "string", "minLength": 4_000}),
    }
    figures: dict[str, dict[str, float]] = {}
    for count, top_p in itertools.product((1, 32), (1.0, 0.9)):
        logits = 5 * torch.randn(count, LARGE, generator=torch.Generator().manual_seed(0))
        for name, grammar in grammars.items():
            rows, times = _rows(count, grammar, top_p), list[float]()
            for _ in range(9):
                begun = time.perf_counter()
                take_tokens(logits, None, rows)
                times.append(time.perf_counter() - begun)
            title = f"{count} at once" + (f", top_p {top_p}" if top_p < 1 else "")
            figures.setdefault(title, {})[f"{name}, ms"] = _ms(median(times))
    return figures


def _rows(count: int, grammar: JsonGrammar | None, top_p: float) -> "list[Row]":
    from tinkersmith.engine.sampling.rows import Row
    from tinkersmith.engine.sampling.token_choice import generator

    rows: list[Row] = []
    for number in range(count):
        request = SampleRequest([1, 2], max_tokens=100, grammar=grammar, top_p=top_p)
        answering = Answering(request, SampleResult([SampledSequence()]))
        row = Row(
            answering=answering,
            adapter=None,
            sequence=answering.result.sequences[0],
            rng=generator(number, 0),
            limit=100,
            stop_ids=frozenset([LARGE - 1]),
            stop_texts=(),
            number=0,
            longest=102,
            grammar=None if grammar is None else grammar.begin(),
        )
        rows.append(row)
    return rows


def measure_sampling(folder: Path, tokens: int) -> dict[str, dict[str, float]]:
    """Tokens a second of the sampler with a schema and without one."""
    wait_passively(os.environ)  # as the engine does, before torch is imported
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code

    base = with_fast_code(load_base_model(BUNDLED, folder))
    vocabulary = vocabulary_of(BUNDLED, _tokenizer(folder))
    # A string that is longer than the answer, so that both write as many tokens.
    endless = Grammars(vocabulary).of({"type": "string", "minLength": 4_000})
    figures: dict[str, dict[str, float]] = {}
    for rows in (1, 32):
        speeds: dict[str, list[float]] = {"free": [], "bound": []}
        for _ in range(5):  # in turn, so that other programs slow both
            for name, grammar in (("free", None), ("bound", endless)):
                speeds[name].append(_tokens_a_second(base, rows, tokens, grammar))
        free, bound = median(speeds["free"]), median(speeds["bound"])
        figures[f"{rows} at once"] = {
            "tokens a second without a schema": round(free, 1),
            "tokens a second with a schema": round(bound, 1),
            "ms more for each step": _ms(rows / bound - rows / free),
            "speed with / without": round(bound / free, 3),
        }
    return figures


def _tokens_a_second(
    base: "BaseModel", rows: int, tokens: int, grammar: JsonGrammar | None
) -> float:
    requests = [
        SampleRequest(
            [number % 200 + 5, 17, 31], max_tokens=tokens, seed=number, stop=[], grammar=grammar
        )
        for number in range(rows)
    ]
    from tinkersmith.engine.sampling.sampler import sample

    begun = time.perf_counter()
    results = sample(base, None, requests)
    seconds = time.perf_counter() - begun
    count = sum(len(sequence.tokens) for result in results for sequence in result.sequences)
    assert count == rows * tokens, count
    return count / seconds


def _tokenizer(folder: Path) -> TextTokenizer:
    tokenizer = read_tokenizer(folder)
    assert tokenizer is not None
    return tokenizer


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 4)


if __name__ == "__main__":
    main()
