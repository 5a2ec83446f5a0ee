"""Damaged files of every kind -> the real readers: samples, sentences, and never a traceback.

Each file is damaged by seed, or replaced by what is no file. The promises: no traceback, no hang,
flat memory; an error is one line that names the file; a record is either a sample or named as
skipped.
"""

import argparse
import gzip
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.reliability.mutations import damaged, packed, put_something_else, remove
from benchmarks.reliability.promise import PATIENCE, Tally, grown_memory, report, wrong_sentence
from tinkersmith.data import large_files
from tinkersmith.data.load import LoadedSamples, load_samples
from tinkersmith.engine.storage.catalogue import make_catalogue
from tinkersmith.errors import UserError
from tinkersmith.export.adapter import read_layers
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.chat_template import write_chat_template
from tinkersmith.progress import watched
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder, newest_run, open_run, run_of
from tinkersmith.runs.provenance import Standing, differences, session
from tinkersmith.runs.pruning import old_states
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.settings.reading import settings_for_file, settings_from
from tinkersmith.sources.json_files import is_json_lines
from tinkersmith.text.templates import choose_template
from tinkersmith.text.token_cache import TokenCache
from tinkersmith.text.tokenizer import load_tokenizer

BY_COMMAND = 2000  # one data file in so many goes through the real command, in a process of its own
LOADED = 1000  # one file in so many is that of a base model which the engine loads whole
_ODD_NAME = "a\nb \x1b[31m 文件.jsonl"  # also for a command
_NAMES = ("data.json", "data.jsonl", "data.json.gz", "data.jsonl.gz", "data.ndjson", "data.txt")
_RECORDS = (
    {"instruction": "Add.", "input": "3 + 4", "output": "Answer: 7", "answer": 7, "level": [1, 2]},
    {"instruction": "Wie viel?", "output": "zwölf", "system": "kurz", "history": [["a", "b"]]},
    {"instruction": "多少？", "input": "", "output": "十二 😀", "meta": {"input": "x", "n": 1e-3}},
    {"instruction": "Add.", "input": "3 + 4", "output": "Answer: 7"},
)


@dataclass(frozen=True)
class Place:
    """A folder with one file that is damaged, and what reads it."""

    kind: str
    file: Path
    content: bytes
    read: Callable[[], None]
    share: float  # of all files


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-commands", action="store_true", help="no processes and no engine")
    wanted = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        grown = try_files(wanted.files, wanted.seed, Path(folder), tally)
        if not wanted.no_commands:
            try_models(max(1, wanted.files // LOADED), wanted.seed, Path(folder), tally)
            try_commands(max(1, wanted.files // BY_COMMAND), wanted.seed, Path(folder), tally)
        seconds = time.perf_counter() - start
    figures: dict[str, object] = {
        "files": sum(tally.by_kind.values()),
        "seed": wanted.seed,
        "read": tally.works,
        "refused in a sentence": tally.sentences,
        "by kind": _by_kind(tally),
    }
    command = f"python -m benchmarks.reliability.files --files {wanted.files} --seed {wanted.seed}"
    return report("reliability_files", command, figures, tally, grown, seconds)


def try_files(count: int, seed: int, folder: Path, tally: Tally) -> int:
    """Damage `count` files in `folder` one after another, and read each; MiB that memory grew."""
    rng = random.Random(seed)
    places = [*data_places(folder), *run_places(folder), *model_places(folder)]
    others = [place.content for place in places]
    shares = [place.share for place in places]

    def try_some(number: int) -> None:
        for place in rng.choices(places, shares, k=number):
            _try(place, rng, others, tally)

    warm_up = count // 5
    try_some(warm_up)
    return grown_memory(lambda: try_some(count - warm_up))


def _try(place: Place, rng: random.Random, others: list[bytes], tally: Tally) -> None:
    if rng.random() < 0.05:
        what = put_something_else(place.file, rng)
    else:
        what, content = damaged(place.content, rng, others)
        if place.file.name.endswith(".gz") or rng.random() < 0.02:
            content = packed(content, rng)
        place.file.write_bytes(content)
    names = (place.file.name, place.file.parent.name, "LoRA")
    try:
        tally.run(f"{place.kind}: {what}", place.read, names)
    finally:
        if place.file.is_symlink() or not place.file.is_file():  # else it is written over
            remove(place.file)
        place.file.write_bytes(place.content)


# ---- data files


def data_places(folder: Path) -> list[Place]:
    """Data files of all forms, each read as a whole, and as a stream where that is possible."""
    places: list[Place] = []
    for name in _NAMES:
        file = folder / f"data-{name.partition('.')[2].replace('.', '-')}" / name
        file.parent.mkdir(parents=True)
        lines = b"".join(json.dumps(record).encode() + b"\n" for record in _RECORDS)
        content = json.dumps(list(_RECORDS), ensure_ascii=False).encode()
        content = content if "json." in name + "." and "jsonl" not in name else lines
        file.write_bytes(content)
        places.append(Place(f"data {name[4:]}", file, content, lambda file=file: _read(file), 10))
    return places


def _read(file: Path) -> None:
    try:
        loaded = load_samples([str(file)])
    except UserError as error:
        if is_json_lines(file):
            _refused_as_a_stream_too(file, str(error))
        raise
    _all_are_accounted_for(file, loaded)
    if is_json_lines(file) and not loaded.said:  # a stream guesses no encoding
        _same_as_a_stream(file, loaded)


def _all_are_accounted_for(file: Path, loaded: LoadedSamples) -> None:
    numbers = [sample.source.record for sample in loaded.samples]
    numbers += [skipped.source.record for skipped in loaded.skipped]
    assert sorted(numbers) == list(range(1, len(numbers) + 1)), "records are lost or counted twice"
    assert all(skipped.reason for skipped in loaded.skipped)
    assert len(numbers) == _records_in(file), "a record is neither a sample nor skipped"


def _records_in(file: Path) -> int:
    """The number of records by Python's own means."""
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    # The damage writes UTF-16 and UTF-32 as well, which are read.
    encoding: str = json.detect_encoding(data)  # pyright: ignore[reportAttributeAccessIssue]
    text = data.decode(encoding, "replace").lstrip("\ufeff")
    with suppress(ValueError):
        value = json.loads(text)
        return len(value) if isinstance(value, list) else 1
    return sum(bool(line.strip()) for line in text.split("\n"))


def _same_as_a_stream(file: Path, loaded: LoadedSamples) -> None:
    with watched(lambda _: None) as progress:
        stream = large_files.scan([str(file)], [], 0.0, 0, progress)
    pairs = [large_files.read_chunk(chunk) for chunk in stream.chunks]
    assert [sample for samples, _ in pairs for sample in samples] == loaded.samples
    streamed = [str(record) for _, skipped in pairs for record in skipped]
    assert streamed == [str(record) for record in loaded.skipped]


def _refused_as_a_stream_too(file: Path, whole: str) -> None:
    try:
        with watched(lambda _: None) as progress:
            large_files.scan([str(file)], [], 0.0, 0, progress)
    except UserError as error:
        assert not wrong_sentence(str(error), [file.name]), str(error)
        return
    if "empty array" not in whole and " instead of an array" not in whole:
        raise AssertionError(f"only the whole file is refused: {whole}")


# ---- files of a run


def run_places(folder: Path) -> list[Place]:
    """The files of a run, read through `RunFolder` and by those who look for a trained model."""
    from tinkersmith.bundled import BUNDLED_MODELS

    name, bundled = next(iter(BUNDLED_MODELS.items()))
    tokenizer = load_tokenizer(bundled)
    runs = folder / "runs"
    settings = settings_from({"OUTPUT_DIR": str(runs), "DATA_FILES": ["a.json"]})
    run = RunFolder(runs / "my-model-1")
    run.path.mkdir(parents=True)
    template = choose_template("instruction", tokenizer, name)
    standing = Standing("0" * 32, "1" * 64, "2" * 64, "3" * 64, {"dtype": "float32"})
    facts: dict[str, Any] = {"base_model": name, "backend": "embedded", **standing.facts()}
    facts["sessions"] = [session(standing, settings_for_file(settings, run.path), 0)]
    run.write_facts(settings, template, **facts, training_samples=4, total_steps=6)
    for step in (2, 4, 6):
        state = f"tinker://a:train:0/weights/s{step}"
        sampler = f"tinker://a:train:0/sampler_weights/s{step}"
        saved = {"name": f"s{step}", "step": step, "epoch": 1}
        run.append("checkpoints.jsonl", [saved | {"state_path": state, "sampler_path": sampler}])
    numbers = {"loss": 1.5, "epoch": 1, "completion_tokens": 9, "seconds": 0.5, "grad_norm": 0.1}
    run.append("metrics.jsonl", [{"step": step, **numbers} for step in range(1, 7)])

    def read_run() -> None:
        opened = open_run(run.name, runs)
        opened.settings()
        opened.template()
        opened.base_model()
        opened.fact("data_digest")
        opened.fact("total_steps")
        opened.checkpoints()
        opened.metrics()
        facts = opened.facts()
        differences(facts, standing, session(standing, facts["settings"], 2))
        old_states(opened.checkpoints(), opened.metrics(), 1)
        newest_run(runs)
        run_of("tinker://a:train:0/weights/s4", runs)
        find_trained_model(settings)

    def place(file: str, share: float) -> Place:
        path = run.file(file)
        return Place(file, path, path.read_bytes(), read_run, share)

    return [
        place("settings.json", 8),
        place("checkpoints.jsonl", 6),
        place("metrics.jsonl", 4),
        *_cache_place(folder, tokenizer),
    ]


def _cache_place(folder: Path, tokenizer: TextTokenizer) -> list[Place]:
    """A file of the token cache: damaged or not, the tokens are right."""
    data = folder / "cached" / "data.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(record) + "\n" for record in _RECORDS))
    with watched(lambda _: None) as progress:
        [chunk] = large_files.scan([str(data)], [], 0.0, 0, progress).chunks
    template = choose_template("instruction", tokenizer, "some/model")
    cache = TokenCache(folder / "cached", template, tokenizer, "all")
    right = cache.tokens_of(chunk).tokens.tolist()
    [file] = cache.folder.iterdir()

    def read_cache() -> None:
        assert cache.tokens_of(chunk).tokens.tolist() == right

    return [Place("token cache", file, file.read_bytes(), read_cache, 2)]


# ---- folders of models


def model_places(folder: Path) -> list[Place]:
    """The files of a base model, read by the recipe and the engine, and those of an export."""
    base = small_base_folder(folder / "base")

    def read_model() -> None:
        tokenizer = load_tokenizer(base)
        for setting in ("instruction", "chat"):
            choose_template(setting, tokenizer, "base")
        read_base(base)
        make_catalogue([f"base={base}"]).to_json()

    shares = {"config.json": 3, "model.safetensors.index.json": 3, "tokenizer.json": 0.5}
    places = [
        Place(f"base {file.name}", file, file.read_bytes(), read_model, shares.get(file.name, 1.5))
        for file in sorted(base.iterdir())
    ]
    adapter = small_adapter(folder / "adapter")
    whole = read_base(base)

    def read_adapter() -> None:
        read_layers(adapter, whole)

    places += [
        Place(f"export {file.name}", file, file.read_bytes(), read_adapter, 2.5)
        for file in sorted(adapter.iterdir())
    ]
    tokenizer_config = folder / "export" / "tokenizer_config.json"
    tokenizer_config.parent.mkdir()
    shutil.copy(base / "tokenizer_config.json", tokenizer_config)
    template = choose_template("instruction", load_tokenizer(base), "base")

    def write_template() -> None:
        write_chat_template(template, tokenizer_config.parent)

    content = tokenizer_config.read_bytes()
    return [*places, Place("export tokenizer", tokenizer_config, content, write_template, 0.5)]


def small_base_folder(folder: Path) -> Path:
    """A base model of one small layer in two shards, with everything that readers look at."""
    import torch
    from safetensors.torch import save_file

    from tests.support.tiny_models import make_tiny_tokenizer

    make_tiny_tokenizer(folder)
    shards = {
        "model-00001-of-00002.safetensors": {"model.embed_tokens.weight": torch.ones(8, 4)},
        "model-00002-of-00002.safetensors": {
            "model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4),
            "model.norm.weight": torch.ones(4),
        },
    }
    for name, tensors in shards.items():
        save_file(tensors, folder / name, metadata={"format": "pt"})
    weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": 212}, "weight_map": weight_map}
    config = {"model_type": "qwen3", "text_config": {}, "max_position_embeddings": 64}
    end = {"eos_token_id": 0}
    for name, value in (
        ("model.safetensors.index.json", index),
        ("config.json", config | end),
        ("generation_config.json", end),
        ("special_tokens_map.json", {"eos_token": "<|endoftext|>"}),
    ):
        (folder / name).write_text(json.dumps(value))
    return folder


def small_adapter(folder: Path) -> Path:
    """A LoRA on the layer of `small_base_folder`, as a server sends it."""
    import torch
    from safetensors.torch import save_file

    from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_config

    folder.mkdir()
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{path}.lora_A.weight": torch.ones(2, 4), f"{path}.lora_B.weight": torch.ones(4, 2)}
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    config = adapter_config("base", 2, 32, ["q_proj"], rank_pattern={"q_proj": 2})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config))
    return folder


def try_models(count: int, seed: int, folder: Path, tally: Tally) -> None:
    """Damage files of a small base model, and load it as the engine does."""
    from transformers.utils import logging

    from tests.support.damaged_models import in_two_shards
    from tests.support.tiny_models import make_tiny_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    rng = random.Random(seed + 2)
    base = in_two_shards(make_tiny_model(folder / "loaded"))
    contents = {file: file.read_bytes() for file in sorted(base.iterdir())}
    weights = [4.0 if file.name == "config.json" else 1.0 for file in contents]
    for file in rng.choices(list(contents), weights, k=count):
        what, content = damaged(contents[file], rng, list(contents.values()))
        file.write_bytes(content)
        tally.run(f"loaded {file.name}: {what}", partial(_load, base), [str(base)])
        file.write_bytes(contents[file])


def _load(base: Path) -> None:
    from tinkersmith.engine.model.base_model import load_base_model

    load_base_model("m", base)


# ---- through the commands


def try_commands(count: int, seed: int, folder: Path, tally: Tally) -> None:
    """Give damaged data files to the commands `stats` and `split`, each in a process of its own."""
    rng = random.Random(seed + 1)
    places = data_places(folder / "commands")
    odd = folder / "commands" / _ODD_NAME
    places += [replace(place, file=odd, kind="odd name") for place in places[1:2]]
    others = [place.content for place in places]
    for number in range(count):
        place = rng.choice(places)
        what, content = damaged(place.content, rng, others)
        place.file.write_bytes(content)
        command = "stats" if number % 2 else "split"
        arguments = [str(place.file)]
        if command == "split":
            outputs = [str(place.file.parent / f"{side}-{number}.json") for side in ("a", "b")]
            arguments = [
                "--inputs",
                *arguments,
                "--train-out",
                outputs[0],
                "--test-out",
                outputs[1],
            ]
        tally.by_kind[f"tinkersmith {command}: {what}"] += 1
        problem = _command_problem([command, *arguments])
        if problem:
            tally.broken.append(f"tinkersmith {command}: {what}: {problem}")


def _command_problem(arguments: list[str]) -> str:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tinkersmith", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=6 * PATIENCE,  # Python and its libraries start, too
        )
    except subprocess.TimeoutExpired:
        return "it does not end"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    if done.returncode == 1 and len(lines) == 1 and lines[0].startswith("Error: "):
        return ""
    return f"status {done.returncode}: {done.stderr[-300:]}"


def _by_kind(tally: Tally) -> dict[str, int]:
    kinds: dict[str, int] = {}
    for name, count in sorted(tally.by_kind.items()):
        kind = name.partition(": ")[0]
        kinds[kind] = kinds.get(kind, 0) + count
    return kinds


if __name__ == "__main__":
    sys.exit(main())
