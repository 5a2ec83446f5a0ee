"""Damage every file of a checkpoint in every way, and see whether it is seen and told rightly.

    python -m benchmarks.reliability.damage [--size N]

N is how often each kind of damage is done, each time at another place (1 by default). Each case
works on its own copy of an engine's folder with two checkpoints of one run: the damage is done to
`last`, and the checkpoint `first` must still load.
"""

import argparse
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import AdamParams, BatchRequest, Datum, LoraConfig
from tinkersmith.engine.runtime.clients import Models
from tinkersmith.engine.storage.catalogue import Catalogue
from tinkersmith.engine.storage.database import DATABASE
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store
from tinkersmith.manifest import MANIFEST, write_manifest

[(MODEL, MODEL_FOLDER)] = list(BUNDLED_MODELS.items())[:1]
RUN = "0123456789abcdef:train:0"
OTHER_RUN = "fedcba9876543210:train:0"
FIRST, LAST, OTHER = (
    TinkerPath(run, "weights", name)
    for run, name in ((RUN, "first"), (RUN, "last"), (OTHER_RUN, "other"))
)
WEIGHTS, STATE, CONFIG = (
    "adapter_model.safetensors",
    "optimizer.safetensors",
    "adapter_config.json",
)
FILES = (WEIGHTS, STATE, CONFIG, MANIFEST)
Change = Callable[[Path, random.Random], None]


@dataclass(frozen=True, slots=True)
class DamageCase:
    """One kind of damage, to one file of the checkpoint `last` or to the database."""

    name: str
    file: str
    change: Change  # takes the file and a source of randomness
    words: str  # which the sentence must contain besides the file and the checkpoint


@dataclass(frozen=True, slots=True)
class DamageOutcome:
    """What became of a case."""

    seen: bool
    told_rightly: bool
    sentence: str


def cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(1, len(content))])


def emptied(file: Path, rng: random.Random) -> None:
    file.write_bytes(b"")


def garbled(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.randbytes(file.stat().st_size))


def longer(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(100))


def one_bit(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def gone(file: Path, rng: random.Random) -> None:
    file.unlink()


def renamed(file: Path, rng: random.Random) -> None:
    file.rename(file.with_name(f"old-{file.name}"))


def of_another_checkpoint(file: Path, rng: random.Random) -> None:
    shutil.copy(file.parent.with_name("first") / file.name, file)


def of_another_run(file: Path, rng: random.Random) -> None:
    root = file.parents[3]
    shutil.copy(root / OTHER_RUN.replace(":", "_") / "weights" / "other" / file.name, file)


def zeros_in_the_middle(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = len(content) // 2
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    file.write_bytes(content)


def not_a_number(value: float) -> Change:
    """Saved with the number in it, so that every checksum is right."""

    def change(file: Path, rng: random.Random) -> None:
        tensors = load_file(file)
        name = rng.choice([name for name, tensor in tensors.items() if tensor.ndim])
        tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = value
        save_file(tensors, file, metadata={"tinkersmith_manifest": "1"})
        saved = json.loads((file.parent / MANIFEST).read_text())
        facts = {key: saved[key] for key in saved if key not in ("format", "files")}
        facts.pop("sha256")
        write_manifest(file.parent, facts)

    return change


def page_change(pages: Callable[[int], list[int]]) -> Change:
    """Overwrite whole pages of the database; `pages` takes their number."""

    def change(file: Path, rng: random.Random) -> None:
        with sqlite3.connect(file) as connection:
            (size,) = connection.execute("PRAGMA page_size").fetchone()
        content = bytearray(file.read_bytes())
        for page in pages(len(content) // size):
            content[page * size : (page + 1) * size] = rng.randbytes(size)
        file.write_bytes(content)

    return change


def first_bytes(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[:16] = rng.randbytes(16)
    file.write_bytes(content)


def cut_in_half(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


SAVED = "saved"  # such as "its sha256 is not the one that was saved"
FILE_CASES = [
    DamageCase(f"{file}: {name}", file, change, words)
    for file in FILES
    for name, change, words in (
        ("cut", cut, "JSON" if file == MANIFEST else SAVED),
        ("empty", emptied, "empty"),
        ("garbled", garbled, "JSON" if file == MANIFEST else "sha256"),
        ("one bit", one_bit, "" if file == MANIFEST else "sha256"),
        ("gone", gone, "gone"),
        ("renamed", renamed, "gone"),
        ("of another checkpoint", of_another_checkpoint, "another" if file == MANIFEST else SAVED),
        ("of another run", of_another_run, "another" if file == MANIFEST else SAVED),
        ("longer", longer, "JSON" if file == MANIFEST else SAVED),
        ("zeros in it", zeros_in_the_middle, "" if file == MANIFEST else "sha256"),
    )
    # Two checkpoints of one run have equal configurations: to exchange them damages nothing.
    if not (file == CONFIG and change is of_another_checkpoint)
] + [
    DamageCase(f"{file}: {name}", file, not_a_number(value), "not finite")
    for file in (WEIGHTS, STATE)
    for name, value in (("NaN", float("nan")), ("infinity", float("inf")))
]
DATABASE_CASES = [
    DamageCase(f"{DATABASE}: {name}", DATABASE, change, "")
    for name, change in (
        ("gone", gone),
        ("empty", emptied),
        ("garbled", garbled),
        ("header", first_bytes),
        ("cut in half", cut_in_half),
        ("first page", page_change(lambda count: [0])),
        ("second page", page_change(lambda count: [1])),
        ("a page in the middle", page_change(lambda count: [count // 2])),
        ("last page", page_change(lambda count: [count - 1])),
        ("all but the first page", page_change(lambda count: list(range(1, count)))),
    )
]


def open_models(folder: Path) -> Models:
    """The engine's clients over `folder`, in this process."""
    return Models(Store(folder), Catalogue({MODEL: MODEL_FOLDER}), dtype="float32", threads=1)


def make_folder_of_checkpoints(folder: Path) -> None:
    """An engine's folder with the checkpoints FIRST, LAST and OTHER, of two short trainings."""
    models = open_models(folder)
    for seed, run, names in ((1, RUN, ("first", "last")), (2, OTHER_RUN, ("other",))):
        config = LoraConfig(rank=2 * seed, seed=seed)
        session = run.partition(":")[0]
        models.store.add_session(session, {"purpose": "damage"}, None)
        models.store.add_run(StoredRun(run, session, MODEL, config, None, time.time()))
        models.create(run, MODEL, config)
        for number, name in enumerate(names, 1):
            tokens = np.arange(5, 25) * number
            inputs = {"target_tokens": tokens[1:], "weights": np.ones(19, np.float32)}
            datum = Datum(tokens[:-1], inputs)
            models.batch(BatchRequest(run, number, [datum], "cross_entropy", {}, False), 0)
            models.optim_step(run, AdamParams(learning_rate=1e-2))
            models.save(run, TinkerPath(run, "weights", name), optimizer=True)()
    models.store.close()


@contextmanager
def damaged_copy(folder: Path, case: DamageCase, rng: random.Random) -> Iterator[Path]:
    """A copy of `folder` in which the damage is done."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "engine"
        shutil.copytree(folder, copy)
        inside = copy / "checkpoints" / RUN.replace(":", "_") / "weights" / "last"
        case.change((copy if case.file == DATABASE else inside) / case.file, rng)
        yield copy


def try_file_case(models: Models, copy: Path, case: DamageCase) -> DamageOutcome:
    """Resume from LAST, whose file is damaged, and from FIRST, which is whole."""
    models.store = Store(copy)
    sentence = ""
    try:
        models.create_from("new", MODEL, LoraConfig(rank=2, seed=1), LAST, True)
    except Refused as refusal:
        sentence = str(refusal)
    models.create_from("again", MODEL, LoraConfig(rank=2, seed=1), FIRST, True)
    for name in ("new", "again"):
        models.free(name)
    models.store.close()
    rightly = (
        sentence.startswith(f"{case.file} of {LAST} is damaged: ")
        and case.words in sentence
        and "earlier one" in sentence
    )
    return DamageOutcome(bool(sentence), rightly, sentence)


def try_database_case(models: Models, copy: Path, case: DamageCase) -> DamageOutcome:
    """Every checkpoint must be there, listed and whole, and the damaged file kept beside."""
    before = sorted(copy.rglob("*.safetensors"))
    damaged = (copy / DATABASE).stat().st_size if (copy / DATABASE).exists() else 0
    models.store = store = Store(copy)
    listed = {checkpoint.path for checkpoint in store.checkpoints()}
    for path in (FIRST, LAST, OTHER):
        config = store.run(path.run_id).lora
        models.create_from("again", MODEL, config, path, True)
        models.free("again")
    store.close()
    lost = len(before) - len(sorted(copy.rglob("*.safetensors")))
    aside = [
        file
        for file in copy.glob(f"{DATABASE}.damaged-*")
        if file.suffix[-4:] not in ("-wal", "-shm")
    ]
    kept = not damaged or [file.stat().st_size for file in aside] == [damaged]
    seen = listed == {FIRST, LAST, OTHER}
    return DamageOutcome(seen, seen and lost == 0 and kept, f"{lost} files lost")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=1, help="how often each kind is done")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    outcomes: dict[str, list[DamageOutcome]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "engine"
        make_folder_of_checkpoints(folder)
        models = open_models(folder)
        for case in FILE_CASES + DATABASE_CASES:
            attempt = try_database_case if case.file == DATABASE else try_file_case
            for number in range(options.size):
                rng = random.Random(f"{options.seed}/{case.name}/{number}")
                with damaged_copy(folder, case, rng) as copy:
                    outcomes.setdefault(case.name, []).append(attempt(models, copy, case))
    total = sum(map(len, outcomes.values()))
    seen = sum(outcome.seen for tries in outcomes.values() for outcome in tries)
    rightly = sum(outcome.told_rightly for tries in outcomes.values() for outcome in tries)
    for name, tries in outcomes.items():
        good = sum(outcome.told_rightly for outcome in tries)
        print(f"{name:45} {good} of {len(tries)}")
        for outcome in tries:
            if not outcome.told_rightly:
                print(f"    {outcome.sentence or 'not seen'}")
    print(f"{len(outcomes)} kinds: seen {seen} of {total}, told rightly {rightly} of {total}")
    path = write_results(
        "reliability_damage",
        f"python -m benchmarks.reliability.damage --size {options.size}",
        {
            "kinds": len(outcomes),
            "cases": total,
            "seen": seen,
            "told_rightly": rightly,
            "by_kind": {
                name: f"{sum(outcome.told_rightly for outcome in tries)} of {len(tries)}"
                for name, tries in outcomes.items()
            },
        },
    )
    print(f"written to {path}")
    return 0 if seen == rightly == total else 1


if __name__ == "__main__":
    sys.exit(main())
