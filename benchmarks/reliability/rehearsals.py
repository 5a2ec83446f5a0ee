"""Settings -> what a rehearsal sent and what the run sent to a server, byte for byte.

    python -m benchmarks.reliability.rehearsals --size 22

The promise: what the unmodified SDK sends in training, validation and sampling is equal byte for
byte but for ids, and requests.jsonl of the run is that of the rehearsal. A proxy before each of two
real engines records it. The size is the number of settings, of 22.

The cost of the digests is measured as well: their share of a run of the bundled model. --size 0
measures that alone, which takes a minute and wants a quiet machine.
"""

import argparse
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results_file import write_results
from tests.support.engine import (
    KEY,
    MODEL,
    RunningEngine,
    no_proxy_for_loopback,
    running_engine,
)
from tests.support.recording import Recording, recorded_server, recorded_stand_in
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.batches.in_memory import read_into_memory
from tinkersmith.batches.requests import LOSS, step_request
from tinkersmith.batches.source import Encoding
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data import large_files
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import REQUESTS_FILE
from tinkersmith.service.digests import step_lines
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenizer import load_tokenizer
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.rehearsal.rehearse import rehearse
from tinkersmith.training.train import train

_SAMPLE_DATA = Path(__file__).parents[2] / "data" / "word_problems.json"
_SUMS = ["alpaca.json"]
_CHAT = ["chat.json"]
_THOUGHTS = ["thoughts.json"]
# Without a server: what it would say is taken from the settings and the table.
OFFLINE = "offline"
STREAMED = "streamed"
SETTINGS: dict[str, dict[str, Any]] = {
    "Alpaca records": {},
    "last answers of conversations": {"DATA_FILES": _CHAT, "TRAIN_ON": "last"},
    "validation and questions": {
        "VALIDATION_RATIO": 0.25,
        "EVAL_FILES": ["questions.json"],
        "EVAL_LIMIT": 5,
        "EVAL_EVERY": 2,
        "SAMPLING_NUM_SAMPLES": 2,
        "SAMPLING_TEMPERATURE": 0.7,
    },
    "batches of 3, cosine": {
        "BATCH_SIZE": 3,
        "NUM_EPOCHS": 3,
        "LR_SCHEDULE": "cosine",
        "WARMUP_RATIO": 0.2,
    },
    "batches of 16, constant": {"BATCH_SIZE": 16, "LR_SCHEDULE": "constant", OFFLINE: True},
    "all answers, chat": {"DATA_FILES": _CHAT, "PROMPT_TEMPLATE": "chat"},
    "every token": {"DATA_FILES": _CHAT, "TRAIN_ON": "all_text"},
    "thoughts stripped": {"DATA_FILES": _THOUGHTS, "THINKING": "strip"},
    "thoughts kept": {"DATA_FILES": _THOUGHTS, "THINKING": "keep"},
    "plain text": {"DATA_FILES": ["text.json"]},
    "another seed": {"SEED": 7, OFFLINE: True},
    "validation files, patience": {
        "VALIDATION_FILES": ["validation.json"],
        "EVAL_EVERY": 3,
        "PATIENCE": 50,
    },
    "Dimuon": {"OPTIMIZER": "dimuon"},
    "weight decay, betas, clipping": {
        "WEIGHT_DECAY": 0.1,
        "ADAM_BETAS": [0.8, 0.99],
        "GRAD_CLIP_NORM": 0.3,
        OFFLINE: True,
    },
    "from a checkpoint": {"INITIAL_CHECKPOINT": "tinker://"},
    "saved often": {"SAVE_EVERY": 2, "KEEP_LAST": 1, "CHECKPOINT_TTL_DAYS": 30},
    "rank 32, attention and output": {
        "LORA_RANK": 32,
        "TRAIN_MLP": False,
        "TRAIN_UNEMBED": "yes",
        OFFLINE: True,
    },
    "long samples cut": {"MAX_SEQUENCE_LENGTH": 60},
    "long samples left out": {
        "MAX_SEQUENCE_LENGTH": 66,
        "TRUNCATE_LONG_SEQUENCES": False,
        "BATCH_SIZE": 2,
    },
    "two files by weight": {"DATA_FILES": {"alpaca.json": 2.0, "more.json": 0.5}},
    "a stream": {"DATA_FILES": ["stream.jsonl"], STREAMED: True},
    "a budget that cuts": {
        "TOKEN_PRICE": {"prefill": 1.0, "sample": 1.0, "train": 1000.0},
        "BUDGET_USD": 1.5,
        "SAMPLING_MAX_TOKENS": 4,
    },
}
COMMON: dict[str, Any] = {
    "DATA_FILES": _SUMS,
    "BASE_MODEL": MODEL,
    "BACKEND": "tinker",
    "BATCH_SIZE": 4,
    "NUM_EPOCHS": 1,
    "LORA_RANK": 4,
    "MAX_SEQUENCE_LENGTH": 256,
    "SAMPLING_MAX_TOKENS": 8,
    "EXPORT_AFTER_TRAINING": "no",
}


@dataclass
class World:
    """A folder with data, and a server that trains."""

    folder: Path
    base: Path
    engine: RunningEngine
    state: str = ""  # of a run there, for INITIAL_CHECKPOINT

    def settings(self, name: str) -> tuple[Any, bool, bool]:
        """The settings of this name, whether no server is asked, and whether files are streamed."""
        values = {**COMMON, **SETTINGS[name]}
        offline, streamed = values.pop(OFFLINE, False), values.pop(STREAMED, False)
        if values.get("INITIAL_CHECKPOINT"):
            values["INITIAL_CHECKPOINT"] = self.state
        for setting in ("DATA_FILES", "VALIDATION_FILES", "EVAL_FILES"):
            files = values.get(setting, [])
            named = [str(self.folder / file) for file in files]
            is_weighted = isinstance(files, dict)
            values[setting] = (
                dict(zip(named, files.values(), strict=True)) if is_weighted else named
            )
        if offline:
            values["TOKENIZER"] = str(self.base)
        values["OUTPUT_DIR"] = str(self.folder / "runs" / name.replace(" ", "-"))
        return settings_from(values), offline, streamed


@contextlib.contextmanager
def world(folder: Path) -> Iterator[World]:
    """Data files in `folder`, and a real engine that serves a tiny model."""
    no_proxy_for_loopback()
    _write_data(folder)
    base = make_tiny_model(folder / "base", max_context=512)
    with running_engine(folder / "server", base) as engine:
        yield World(folder, base, engine)


def compared(place: World, name: str, *, starts: bool = True) -> list[str]:
    """Rehearse and train with the settings of this name; what is not equal, in words.

    Args:
        starts: False lets the server stand in for itself, which saves the start of an engine.
    """
    settings, offline, streamed = place.settings(name)
    with pytest.MonkeyPatch.context() as patch:
        if streamed:
            patch.setattr(large_files, "STREAMED_ABOVE", 1000)
            patch.setattr(large_files, "_BLOCK_BYTES", 1000)
        patch.delenv("TINKER_API_KEY", raising=False)
        patch.delenv("TINKER_BASE_URL", raising=False)
        if not offline:
            patch.setenv("TINKER_API_KEY", KEY)
            patch.setenv("TINKER_BASE_URL", place.engine.url)
        with recorded_stand_in(None if starts else place.engine) as rehearsed:
            rehearsal = rehearse(settings, Interruption(), seconds=600.0)
        with recorded_server(place.engine.url, KEY) as sent, train(settings) as trained:
            place.state = place.state or trained.state_path
        run = trained.run
    problems = _differences(name, settings.eval_every > 0, rehearsed, sent)
    if run.file(REQUESTS_FILE).read_bytes() != (rehearsal.path / REQUESTS_FILE).read_bytes():
        problems.append(f"{name}: requests.jsonl of the run is not that of the rehearsal")
    if not any("equal those of" in line for line in run.file("train.log").read_text().split("\n")):
        problems.append(f"{name}: the run does not say that all is equal")
    return problems


def _differences(
    name: str, losses_decide: bool, rehearsed: Recording, sent: Recording
) -> list[str]:
    problems: list[str] = []
    before, after = rehearsed.training(), sent.training()
    if not before or before != after:
        places = (place for place, both in enumerate(zip(before, after)) if both[0] != both[1])  # noqa: B905
        first = next(places, min(len(before), len(after)))
        problems.append(f"{name}: {len(before)} and {len(after)} requests, the first other {first}")
    kinds = ["asample"]
    if not losses_decide:  # which checkpoint is the best, and therefore saved
        kinds += ["save_weights", "save_weights_for_sampler"]
    if "INITIAL_CHECKPOINT" not in SETTINGS[name]:  # that the stand-in cannot have
        kinds.append("create_model")
    for kind in kinds:
        if not rehearsed.others(kind) or rehearsed.others(kind) != sent.others(kind):
            problems.append(f"{name}: {kind} differs")
    return problems


def _write_data(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)
    write(folder / "alpaca.json", records(18, 1))
    write(folder / "more.json", records(9, 2))
    write(folder / "validation.json", records(5, 4))
    write(folder / "questions.json", records(8, 5))
    chat = [
        {
            "messages": [
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": f"What is {n}?"},
                {"role": "assistant", "content": f"A number, {n}."},
                {"role": "user", "content": "And its double?"},
                {"role": "assistant", "content": f"It is {2 * n}." + " So." * rng.randrange(4)},
            ]
        }
        for n in range(14)
    ]
    write(folder / "chat.json", chat)
    thoughts = [
        {"instruction": f"Double {n}.", "output": f"<think>{n} + {n}</think>{2 * n}"}
        for n in range(14)
    ]
    write(folder / "thoughts.json", thoughts)
    write(folder / "text.json", [{"text": f"Line {n} of a long story. " * 3} for n in range(14)])
    lines = [json.dumps(record) for record in records(40, 6)]
    (folder / "stream.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def cost_of_digests(
    folder: Path, batch_size: int, samples: int = 400, repeats: int = 5
) -> Mapping[str, float]:
    """Milliseconds of a step's digests and datums, the best of some, and of the step itself.

    The step is the mean of a run on the sample data.
    """
    few = json.loads(_SAMPLE_DATA.read_text(encoding="utf-8"))[:samples]
    write(folder / "few.json", few)
    settings = settings_from(
        {
            "DATA_FILES": [str(folder / "few.json")],
            "BATCH_SIZE": batch_size,
            "NUM_EPOCHS": 1,
            "BACKEND": "local",
            "OUTPUT_DIR": str(folder / f"runs-{batch_size}"),
            "EXPORT_AFTER_TRAINING": "no",
        }
    )
    with train(settings) as trained:
        lines = [line for line in trained.run.metrics() if "tokens" in line]
    counted = sum(line["tokens"] for line in lines)
    step = counted / lines[-1]["tokens_per_second"] / len(lines)
    [(name, model)] = BUNDLED_MODELS.items()
    tokenizer = load_tokenizer(model)
    template = choose_template("instruction", tokenizer, name)
    encoding = Encoding(settings, template, tokenizer, 1024)
    data = read_into_memory(settings).tokenized(encoding, Progress(lambda line: None))
    steps = max(samples // batch_size, 1)
    requests = [step_request(data, settings, steps, number) for number in range(steps)]
    made = [request for request in requests if request is not None]

    def seconds(act: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(repeats):
            begun = time.perf_counter()
            act()
            times.append(time.perf_counter() - begun)
        return min(times)

    digests = seconds(lambda: [step_lines(1, made_.datums, LOSS, made_.params) for made_ in made])
    datums = seconds(lambda: [step_request(data, settings, steps, n) for n in range(steps)])
    tokens = sum(request.tokens for request in made) / len(made)
    return {
        "samples of a step": batch_size,
        "tokens of a step": round(tokens),
        "digests, ms": round(1000 * digests / len(made), 3),
        "datums, ms": round(1000 * datums / len(made), 3),
        "step, ms": round(1000 * step, 1),
        "digests, % of a run": round(100 * digests / len(made) / step, 2),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=len(SETTINGS), help="settings to compare")
    size = parser.parse_args().size
    begun, problems, equal = time.monotonic(), list[str](), 0
    with tempfile.TemporaryDirectory() as name, world(Path(name)) as place:
        for chosen in list(SETTINGS)[:size]:
            heard = io.StringIO()
            with contextlib.redirect_stdout(heard):
                found = compared(place, chosen)
            print(f"{chosen:32} {'equal' if not found else '; '.join(found)}", flush=True)
            problems += found
            equal += not found
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        cost = [cost_of_digests(Path(name), batch) for batch in (8, 32)]
    figures: dict[str, object] = {
        "settings": min(size, len(SETTINGS)),
        "equal byte for byte": equal,
        "not equal": problems,
        "cost of a step": cost,
        "seconds": round(time.monotonic() - begun, 1),
    }
    for what, figure in figures.items():
        print(f"{what:24} {figure}")
    command = f"python -m benchmarks.reliability.rehearsals --size {size}"
    results = "reliability_rehearsals" if size else "reliability_rehearsals_cost"
    print("written:", write_results(results, command, figures))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
