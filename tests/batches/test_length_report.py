"""The counts of records and sequences add up, in memory and in a stream alike."""

import json
import random
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how_to_test
from hypothesis import strategies as st

from tests.support.tiny_models import make_tiny_tokenizer
from tests.support.turn_template import TurnTemplate
from tinkersmith.batches.in_memory import TokensInMemory, read_into_memory
from tinkersmith.batches.length_report import LengthReport
from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.source import Encoding
from tinkersmith.batches.streamed import TokenStream, open_stream
from tinkersmith.batches.summary import DataSummary
from tinkersmith.data import large_files
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture(autouse=True)
def _small_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(large_files, "_BLOCK_BYTES", 2000)


def conversation(rng: random.Random) -> dict[str, Any]:
    """One to four answers; some long, some not trained on, some a sequence of their own."""

    def answer() -> str:
        return rng.choice(["", "", "", "-"]) + "a" * rng.choice([1, 5, 40, 150])

    turns = [["q" * rng.choice([1, 10, 60]), answer()] for _ in range(rng.randrange(4))]
    record = {"instruction": "q" * rng.choice([1, 10, 120]), "output": answer(), "history": turns}
    mark = rng.choice(["", "", "*", "*", "*", "!"] if rng.random() < 0.5 else ["", "*"])
    first = turns[0] if turns else None
    if first:
        first[0] = mark + first[0]
    else:
        record["instruction"] = mark + record["instruction"]
    return record


def write(seed: int, count: int, name: str) -> None:
    rng = random.Random(seed)
    records: list[Any] = [conversation(rng) for _ in range(count)]
    records[rng.randrange(count)] = {"instruction": "no output"}
    Path(name).write_text("\n".join(map(json.dumps, records)))


def encoding(settings: Settings, tokenizer: TextTokenizer) -> Encoding:
    template: Any = TurnTemplate()
    return Encoding(settings, template, tokenizer, settings.max_sequence_length)


def in_memory(settings: Settings, tokenizer: TextTokenizer) -> TokensInMemory:
    return read_into_memory(settings).tokenized(encoding(settings, tokenizer), Progress(print))


def streamed(settings: Settings, tokenizer: TextTokenizer) -> tuple[TokenStream, RunFolder]:
    progress = Progress(print)
    data = open_stream(settings, progress).tokenized(encoding(settings, tokenizer), progress)
    run = RunFolder.create(settings.output_dir, "run", datetime.now())
    data.start(run, 0)
    return data, run


def counts(summary: DataSummary) -> dict[str, Any]:
    names = set(DataSummary.__dataclass_fields__) - {"first_events"}
    return {name: getattr(summary, name) for name in names}


@how_to_test(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    seed=st.integers(0, 10_000),
    limit=st.integers(16, 400),
    truncate=st.booleans(),
    separate=st.booleans(),
)
def test_memory_and_streams_keep_and_count_the_same(
    tokenizer: TextTokenizer, seed: int, limit: int, truncate: bool, separate: bool
) -> None:
    write(seed, 40, "train.jsonl")
    write(seed + 1, 12, "check.jsonl")
    settings = settings_from(
        {
            "DATA_FILES": "train.jsonl",
            "VALIDATION_FILES": ["check.jsonl"] if separate else [],
            "MAX_SEQUENCE_LENGTH": limit,
            "TRUNCATE_LONG_SEQUENCES": truncate,
        }
    )
    data, run = streamed(settings, tokenizer)
    summary = data.summary()
    data.stop()
    if not summary.training:
        with pytest.raises(UserError, match="Not one of"):
            in_memory(settings, tokenizer)
        return
    whole = in_memory(settings, tokenizer)
    assert counts(summary) == counts(whole.summary())
    assert summary.records == 40 + (12 if separate else 0)
    assert summary.unusable == (2 if separate else 1)
    # What is trained on is the same, and is what the counts say.
    steps = steps_per_epoch(data.count, settings.batch_size)
    batches = [data.batch(step) for step in range(steps)]
    of_stream = sorted(map(str, chain.from_iterable(batches)))
    of_memory = list(chain.from_iterable(whole.training))
    assert of_stream == sorted(map(str, of_memory))
    assert len(of_memory) == summary.sequences
    assert sum(sequence.completion_length for sequence in of_memory) == summary.trained_tokens
    assert len(whole.training) == summary.training
    assert [len(sequence.tokens) for sequence in data.validation] == [
        len(sequence.tokens) for sequence in whole.validation
    ]
    assert len(data.validation) == summary.validation_sequences
    # Each sequence has something to train on, and ends within the limit.
    for sequence in (*of_memory, *whole.validation):
        assert sequence.completion_length > 0 and len(sequence.tokens) <= limit
        assert sequence.weights.sum() == sequence.completion_length
    lines = sorted(run.lines("skipped.jsonl"), key=str)
    whole.start(run, 0)
    assert lines == sorted(run.lines("skipped.jsonl"), key=str)
    kinds = [line["kind"] for line in lines]
    assert kinds.count("bad record") == summary.unusable
    assert kinds.count("truncated") == summary.cut_sequences


def test_the_report_adds_up_for_records_and_for_sequences(
    tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        {"instruction": "*q", "output": "yes", "history": [["*q", "yes"], ["q", "yes"]]},  # three
        {"instruction": "q", "output": "yes"},
        {"instruction": "q", "output": "y" * 60},  # cut
        {"instruction": "q" * 99, "output": "y"},  # too long
        {"instruction": "q", "output": "-no"},  # not trained on
        {"instruction": "!q", "output": "no"},  # no sequence
        {"instruction": "*", "output": "y" * 99, "history": [["*", "yes"]]},  # one of two is cut
        {"instruction": "q" * 99, "output": "y", "history": [["*", "yes"]]},  # one of two is left
        {"instruction": "q"},  # unusable
    ]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = {"DATA_FILES": "train.jsonl", "MAX_SEQUENCE_LENGTH": 70}
    whole = in_memory(settings_from(names), tokenizer)
    data, _ = streamed(settings_from(names), tokenizer)
    for tokens in (whole, data):
        LengthReport(tokens, False, Progress(print)).summary()
        said = capsys.readouterr().out
        assert (
            "  9 records = 5 to train on, 1 too long, 2 with nothing to train on, 1 unusable; 2 of "
            "them are cut." in said
        )
        assert "Lengths: 11 sequences, " in said
        assert "more; all of them" not in said
        trained = sum(
            sequence.completion_length for sequence in chain.from_iterable(whole.training)
        )
        assert (
            f"  11 sequences = 8 to train on with {trained} trained tokens, 3 skipped; 2 of them "
            "are cut." in said
        )
    data.stop()


def test_samples_of_one_sequence_are_counted_once(
    tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"instruction": "q", "output": "y" * size} for size in (1, 99, 1)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = {"DATA_FILES": "train.jsonl", "MAX_SEQUENCE_LENGTH": 64}
    LengthReport(in_memory(settings_from(names), tokenizer), True, Progress(print)).summary()
    said = capsys.readouterr().out
    assert "3 records = 3 to train on, 0 too long, 0 unusable; 1 of them are cut." in said
    assert "sequences =" not in said and "more; all of them" not in said


def test_every_event_that_is_not_shown_is_counted(
    tokenizer: TextTokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [{"instruction": "q", "output": ("-" if n % 3 else "") + "y" * 99} for n in range(30)]
    Path("train.jsonl").write_text("\n".join(map(json.dumps, records)))
    names = {"DATA_FILES": "train.jsonl", "MAX_SEQUENCE_LENGTH": 64}
    LengthReport(in_memory(settings_from(names), tokenizer), True, Progress(print)).summary()
    said = capsys.readouterr().out
    assert said.count("train.jsonl, record") == 10
    assert "... and 20 more; all of them are in skipped.jsonl." in said
    data = in_memory(settings_from(names), tokenizer)
    LengthReport(data, True, Progress(print), listed=False).summary()
    assert "... and 20 more.\n" in capsys.readouterr().out
