"""A file of samples -> token ids: ours against the bare tokenizer, and against TRL's preparation.

All use the same tokenizer (a byte-level BPE trained on the data) and chat template. Ours begins
with the file and ends with what training takes: the ids of each sample under the length policy. The
bare tokenizer gets the finished texts and gives lists of ids: its `encode_batch` is the limit. TRL
gets a data set of conversations in memory; its own `_prepare_dataset` does the rest, as SFTTrainer
calls it.
"""

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results_file import write_results
from benchmarks.training_data import REAL_DATA

ROOT = Path(__file__).resolve().parent.parent
OURS, BARE, TRL = "tinkersmith", "encode_batch", "TRL"
VOCABULARY = 32_000
# How Qwen's and most other recent tokenizers cut a text into words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=Path,
        default=REAL_DATA,
        help="a JSON array of samples with instruction and output",
    )
    parser.add_argument("--copies", type=int, default=10, help="how often the file is repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--shape",
        choices=("alpaca", "messages"),
        default="alpaca",
        help="write each sample as it is, or two of them as a conversation (default: alpaca)",
    )
    options = parser.parse_args()
    if not options.data.is_file():
        parser.error(f"{options.data} is not there; name a file with --data")
    os.environ["HF_HUB_OFFLINE"] = "1"
    records: Any = json.loads(options.data.read_text(encoding="utf-8")) * options.copies
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _make_tokenizer(folder, [one["instruction"] + one["output"] for one in records[:2000]])
        if options.shape == "messages":
            records = _conversations(records)
        file = folder / "samples.json"
        file.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        contestants: dict[str, Callable[[], int]] = {
            OURS: _ours(folder, file),
            BARE: _bare(folder, file),
        }
        packages: tuple[str, ...] = ()
        if options.shape == "messages":
            print("TRL prepares other records than these and is left out.", flush=True)
        elif all(importlib.util.find_spec(name) for name in ("trl", "datasets")):
            contestants[TRL] = _trl(folder, records)
            packages = ("trl", "datasets")
        else:
            print("TRL is not installed and is left out: see benchmarks/README.md.", flush=True)
        seconds: dict[str, list[float]] = {name: [] for name in contestants}
        tokens: dict[str, int] = {}
        for number in range(options.rounds):
            for name, prepare in contestants.items():
                start = time.perf_counter()
                tokens[name] = prepare()
                seconds[name].append(time.perf_counter() - start)
                print(f"{number + 1} {name:14} {seconds[name][-1]:7.2f} s", flush=True)
        if tokens[OURS] != tokens[BARE]:
            raise SystemExit(f"The contestants made different tokens: {tokens}")
        megabytes = file.stat().st_size / 1e6
    figures: dict[str, object] = {
        "data": f"{options.data.name}, {options.copies} times",
        "shape": options.shape,
        "samples": len(records),
        "megabytes": round(megabytes, 1),
        "tokens": tokens[OURS],
        "rounds": options.rounds,
        "seconds": {name: round(median(values), 3) for name, values in seconds.items()},
        "megabytes a second": round(megabytes / median(seconds[OURS]), 2),
        "speed against encode_batch": round(_ratio(seconds[BARE], seconds[OURS]), 3),
    }
    if TRL in seconds:
        figures["speed against TRL, times"] = round(_ratio(seconds[TRL], seconds[OURS]), 2)
    print(json.dumps(figures, indent=2))
    name, command = "preparation", "python -m benchmarks.preparation"
    if options.shape != "alpaca":
        name, command = f"{name}_{options.shape}", f"{command} --shape {options.shape}"
    print("written:", write_results(name, command, figures, packages=packages))


def _conversations(records: list[dict[str, str]]) -> list[dict[str, object]]:
    """Every two samples as one conversation of four messages."""

    def messages(record: dict[str, str]) -> list[dict[str, str]]:
        return [
            {"role": "user", "content": record["instruction"]},
            {"role": "assistant", "content": record["output"]},
        ]

    pairs = zip(records[::2], records[1::2], strict=False)
    return [{"messages": messages(first) + messages(second)} for first, second in pairs]


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over the rounds."""
    return median(one / other for one, other in zip(theirs, ours, strict=True))


def _make_tokenizer(folder: Path, texts: list[str]) -> None:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from tests.support.tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _ours(folder: Path, file: Path) -> Callable[[], int]:
    from tinkersmith.data.load import load_samples
    from tinkersmith.text.templates import choose_template
    from tinkersmith.text.tokenize import tokenize
    from tinkersmith.text.tokenizer import load_tokenizer

    def prepare() -> int:
        tokenizer = load_tokenizer(folder)
        template = choose_template("chat", tokenizer, "benchmark")
        data = tokenize(load_samples([str(file)]).samples, template, tokenizer, 16384, True)
        return sum(data.lengths)

    return prepare


def _bare(folder: Path, file: Path) -> Callable[[], int]:
    from tokenizers import Tokenizer

    from tinkersmith.data.load import load_samples
    from tinkersmith.text.templates import choose_template
    from tinkersmith.text.tokenizer import load_tokenizer

    template = choose_template("chat", load_tokenizer(folder), "benchmark")
    texts = [
        piece.text
        for sample in load_samples([str(file)]).samples
        for sequence in template.render_all(sample, "all")
        for piece in sequence.pieces
    ]

    def prepare() -> int:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids: list[list[int]] = []
        for start in range(0, len(texts), 2000):  # quicker than all at once
            part = texts[start : start + 2000]
            # _fast leaves out where each token stands in the text, which training does not ask
            rows = tokenizer.encode_batch_fast(part, add_special_tokens=False)
            ids.extend(row.ids for row in rows)
        return sum(map(len, ids))

    return prepare


def _trl(folder: Path, records: list[dict[str, str]]) -> Callable[[], int]:
    import datasets  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from tests.support.tiny_models import make_tiny_model

    datasets.disable_caching()
    datasets.disable_progress_bars()
    conversations = [
        {
            "prompt": [{"role": "user", "content": one["instruction"]}],
            "completion": [{"role": "assistant", "content": one["output"]}],
        }
        for one in records
    ]
    whole = datasets.Dataset.from_list(conversations)
    model = make_tiny_model(folder / "model")
    settings: Any = SFTConfig(output_dir=str(folder / "trl"), report_to=[], use_cpu=True)
    trainer = SFTTrainer(
        model=str(model),
        args=settings,
        train_dataset=datasets.Dataset.from_list(conversations[:2]),
        processing_class=AutoTokenizer.from_pretrained(str(folder)),
    )

    def prepare() -> int:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        return len(trainer._prepare_dataset(whole, tokenizer, settings, False, None, "train"))

    return prepare


if __name__ == "__main__":
    main()
