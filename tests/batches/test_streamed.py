"""Streamed data trains on what data in memory trains on, in an order that only the seed decides."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.strict_models import MIXED, REASON, STRICT_TEMPLATE
from tests.support.tiny_models import make_tiny_model, make_tiny_tokenizer
from tinkersmith.batches.in_memory import TokensInMemory, read_into_memory
from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.source import Encoding
from tinkersmith.batches.streamed import TokenStream, open_stream
from tinkersmith.data import large_files
from tinkersmith.errors import UserError
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.templates import choose_template
from tinkersmith.text.token_cache import FOLDER
from tinkersmith.text.tokenize import TokenizedSample
from tinkersmith.text.tokenizer import load_tokenizer
from tinkersmith.training.train import train

pytestmark = pytest.mark.engine

COUNT = 300


@pytest.fixture(autouse=True)
def _small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_files, "STREAMED_ABOVE", 1000)
    monkeypatch.setattr(large_files, "_BLOCK_BYTES", 1000)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tiny_tokenizer(folder)
    return load_tokenizer(folder)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Every tenth answer is long; 18 and 200 are no samples; 77 and 250 are duplicates of 31."""
    records: list[Any] = [
        {"instruction": "Add.", "input": f"{n}", "output": f"中{n}" + "x" * (n % 10 == 0) * n}
        for n in range(COUNT)
    ]
    records[17], records[199] = {"instruction": "q"}, 7
    records[76] = records[249] = records[30]
    text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8")
    return settings_from(
        {
            "DATA_FILES": [str(tmp_path / "train.jsonl")],
            "OUTPUT_DIR": str(tmp_path / "runs"),
            "MAX_SEQUENCE_LENGTH": 150,
        }
    )


Open = Callable[..., TokenStream]


@pytest.fixture
def open_data(tokenizer: TextTokenizer) -> Iterator[Open]:
    """Streamed data that tokenises in the background until the test's end."""
    opened = []

    def open_it(
        settings: Settings, first_step: int = 0, template: str = "instruction"
    ) -> TokenStream:
        run = RunFolder.create(settings.output_dir, "run", datetime.now())
        chosen = choose_template(template, tokenizer, "some/model")
        encoding = Encoding(settings, chosen, tokenizer, settings.max_sequence_length)
        progress = Progress(print)
        data = open_stream(settings, progress).tokenized(encoding, progress)
        data.start(run, first_step)
        opened.append(data)
        return data

    yield open_it
    for data in opened:
        data.stop()


def in_memory(settings: Settings, tokenizer: TextTokenizer) -> TokensInMemory:
    template = choose_template("instruction", tokenizer, "some/model")
    encoding = Encoding(settings, template, tokenizer, settings.max_sequence_length)
    return read_into_memory(settings).tokenized(encoding, Progress(print))


def newest(settings: Settings) -> RunFolder:
    return RunFolder(
        max(Path(settings.output_dir).glob("run-*"), key=lambda path: path.stat().st_ctime_ns)
    )


def as_values(samples: list[TokenizedSample]) -> list[tuple[Any, ...]]:
    return [(sample.tokens.tolist(), sample.spans.tolist(), sample.source) for sample in samples]


def epoch_of(data: TokenStream, settings: Settings, epoch: int) -> list[TokenizedSample]:
    steps = steps_per_epoch(data.count, settings.batch_size)
    return [
        sample for step in range(epoch * steps, (epoch + 1) * steps) for sample in data.batch(step)
    ]


def cache_files(settings: Settings) -> dict[str, int]:
    folder = Path(settings.output_dir) / FOLDER
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.mark.parametrize("truncate", [True, False])
def test_each_epoch_trains_on_exactly_what_memory_would_hold(
    truncate: bool, settings: Settings, open_data: Open, tokenizer: TextTokenizer
) -> None:
    settings = settings.model_copy(update={"truncate_long_sequences": truncate})
    data, whole = open_data(settings), in_memory(settings, tokenizer)
    epochs = [as_values(epoch_of(data, settings, epoch)) for epoch in (0, 1)]
    expected = sorted(as_values(list(chain.from_iterable(whole.training))), key=str)
    assert [sorted(epoch, key=str) for epoch in epochs] == [expected, expected]
    records = [[source.record for _, _, source in epoch] for epoch in epochs]
    assert records[0] != records[1] != sorted(records[1])


def test_the_summary_and_the_files_say_what_they_say_of_data_in_memory(
    settings: Settings, open_data: Open, tokenizer: TextTokenizer
) -> None:
    for truncate in (True, False):
        settings = settings.model_copy(
            update={"truncate_long_sequences": truncate, "validation_ratio": 0.1}
        )
        data, whole = (
            open_data(settings),
            in_memory(settings.model_copy(update={"validation_ratio": 0.0}), tokenizer),
        )
        summary, expected = data.summary(), whole.summary()
        run = newest(settings)
        lines = sorted(run.lines("skipped.jsonl"), key=str)
        duplicates = run.lines("duplicates.jsonl")
        whole.start(run, 0)
        assert lines == sorted(run.lines("skipped.jsonl"), key=str)
        assert duplicates == run.lines("duplicates.jsonl")
        assert [(line["record"], line["copy_of"]["record"]) for line in duplicates] == [
            (77, 31),
            (250, 31),
        ]
        assert summary.training + len(data.validation) == expected.training
        assert summary.too_long == expected.too_long
        assert summary.truncated == expected.truncated
        assert summary.unusable == expected.unusable == 2
        assert len(summary.first_events) == 10
        assert summary.lengths.count == data.count


def test_lengths_are_those_of_data_in_memory(
    settings: Settings, open_data: Open, tokenizer: TextTokenizer
) -> None:
    data = open_data(settings)
    summary = data.summary()
    assert summary.lengths == in_memory(settings, tokenizer).lengths
    stored = json.loads(newest(settings).file("lengths.json").read_text())
    assert stored["total"] == summary.lengths.total


def test_a_step_has_the_same_batch_wherever_the_run_begins(
    settings: Settings, open_data: Open
) -> None:
    data = open_data(settings)
    steps = 2 * steps_per_epoch(data.count, settings.batch_size)
    batches = [as_values(data.batch(step)) for step in range(steps)]
    for first in (0, 5, steps // 2, steps - 1):
        shutil.rmtree(Path(settings.output_dir) / FOLDER, ignore_errors=True)
        other = open_data(settings, first)
        assert [as_values(other.batch(step)) for step in range(first, steps)] == batches[first:]
    reseeded = open_data(settings.model_copy(update={"seed": 7}))
    assert as_values(reseeded.batch(0)) != batches[0]


def test_batches_are_full_but_the_last_and_those_with_samples_that_are_too_long(
    settings: Settings, open_data: Open
) -> None:
    data = open_data(settings)
    assert data.count == COUNT - 2
    sizes = [len(data.batch(step)) for step in range(steps_per_epoch(data.count, 8))]
    assert sizes == [8] * 37 + [2]
    none = open_data(settings.model_copy(update={"max_sequence_length": 16}))
    assert none.batch(0) == []
    assert str(none.none_fits()).startswith("Not one of 298 samples fits into 16 tokens: even the")


def test_tokens_are_made_once_for_the_same_bytes_tokenizer_and_template(
    settings: Settings, open_data: Open
) -> None:
    open_data(settings).summary()
    made = cache_files(settings)
    shorter = settings.model_copy(update={"max_sequence_length": 120, "seed": 3})
    open_data(shorter).summary()
    assert cache_files(settings) == made
    open_data(settings, template="alpaca").summary()
    assert len(cache_files(settings)) == 2 * len(made)
    file = Path(settings.training_files[0])
    moved = file.rename(file.with_name("moved.jsonl"))
    with moved.open("a", encoding="utf-8") as appended:
        appended.write("\n" + json.dumps({"instruction": "new", "output": "x"}))
    data = open_data(settings.model_copy(update={"data_files": [str(moved)]}))
    assert data.count == COUNT - 1
    data.summary()
    assert len(cache_files(settings)) == 2 * len(made) + 1
    sources = {sample.source.file for sample in epoch_of(data, settings, 0)}
    assert sources == {moved.as_posix()}


def test_a_damaged_file_of_the_cache_is_made_again(settings: Settings, open_data: Open) -> None:
    data = open_data(settings)
    expected = as_values(data.batch(0))
    data.summary()
    for number, path in enumerate((Path(settings.output_dir) / FOLDER).iterdir()):
        path.write_bytes(path.read_bytes()[: 100 * (number % 3)])
    assert as_values(open_data(settings).batch(0)) == expected


def test_one_flipped_bit_in_the_cache_is_seen(settings: Settings, open_data: Open) -> None:
    data = open_data(settings)
    expected = as_values(data.batch(0))
    data.summary()
    for path in (Path(settings.output_dir) / FOLDER).iterdir():
        content = bytearray(path.read_bytes())
        content[-3] ^= 1  # the last array's numbers
        path.write_bytes(content)
        spoilt = path.read_bytes()
    again = open_data(settings)
    assert as_values(again.batch(0)) == expected
    again.summary()
    assert path.read_bytes() != spoilt


def test_a_file_that_changes_stops_the_loop_with_a_sentence(
    settings: Settings, open_data: Open
) -> None:
    data = open_data(settings)
    data.summary()
    file = Path(settings.training_files[0])
    file.write_bytes(file.read_bytes().replace(b"Add", b"Sub"))
    shutil.rmtree(Path(settings.output_dir) / FOLDER)
    with pytest.raises(UserError, match="has changed while it was trained on"):
        epoch_of(data, settings, 0)


def test_the_digest_changes_with_data_template_and_policy(
    settings: Settings, open_data: Open
) -> None:
    same = open_data(settings).digest()
    assert open_data(settings).digest() == same
    file = Path(settings.training_files[0])
    others = [
        open_data(settings, template="alpaca"),
        open_data(settings.model_copy(update={"max_sequence_length": 151})),
        open_data(settings.model_copy(update={"validation_ratio": 0.1})),
    ]
    for other in others:
        other.stop()
    file.write_bytes(file.read_bytes().replace(b"Add", b"Sub"))
    digests = {same, *(other.digest() for other in others), open_data(settings).digest()}
    assert len(digests) == 5


@pytest.mark.long
def test_a_resumed_run_goes_on_to_the_same_losses_to_the_last_bit(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_tiny_model(tmp_path / "base")
    settings = settings.model_copy(
        update={
            "base_model": str(base),
            "backend": "local",
            "num_epochs": 2,
            "save_every": 10,
            "lora_rank": 4,
            "sampling_max_tokens": 4,
            "validation_ratio": 0.05,
            "truncate_long_sequences": False,
            "keep_last": 0,  # its first states are resumed from below
        }
    )
    with train(settings) as trained:
        run = trained.run
    said = capsys.readouterr().out
    assert "they are read as a stream" in said
    assert "300 records = " in said and "2 unusable" in said
    first = [line for line in run.lines("metrics.jsonl") if "loss" in line]
    left_out = run.lines("skipped.jsonl")
    saved = run.lines("checkpoints.jsonl")
    (run.path / "samples.json").unlink()
    run.rewrite("checkpoints.jsonl", saved[:2])  # as if it had been killed after step 20
    with train(settings, resume=run.name) as trained:
        assert trained.run.path == run.path
    again = [line for line in run.lines("metrics.jsonl") if "loss" in line]
    assert [line["loss"] for line in again] == [line["loss"] for line in first]
    assert [line["samples"] for line in again] == [line["samples"] for line in first]
    assert trained.epoch_losses == [
        line["epoch_loss"] for line in run.lines("metrics.jsonl") if "epoch_loss" in line
    ]
    assert sorted(run.lines("skipped.jsonl"), key=str) == sorted(left_out, key=str)
    assert np.isfinite(trained.epoch_losses).all()


def test_thoughts_are_counted_in_the_first_pass_and_cut_ones_are_named(
    tmp_path: Path, settings: Settings, tokenizer: TextTokenizer
) -> None:
    answers = ["4", "<think>\nhm\n</think>\n\n4", "<think>\nhm", "4"]
    lines = [
        json.dumps({"instruction": f"q {n}", "output": text}) for n, text in enumerate(answers)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    stream, whole = open_stream(settings, Progress(print)), read_into_memory(settings)
    assert stream.thoughts == whole.thoughts
    assert (stream.thoughts.samples, stream.thoughts.with_thoughts) == (4, 1)
    assert stream.thoughts.first is not None and stream.thoughts.first.record == 2
    template = choose_template("chat", tokenizer, "some/model", thoughts=stream.thoughts)
    encoding = Encoding(settings, template, tokenizer, settings.max_sequence_length)
    run = RunFolder.create(settings.output_dir, "run", datetime.now())
    summaries = []
    for source in (stream, whole):
        data = source.tokenized(encoding, Progress(print))
        data.start(run, 0)
        summaries.append(data.summary())
        data.stop()
        (skipped,) = [json.loads(line) for line in run.file("skipped.jsonl").open()]
        assert skipped["record"] == 3 and skipped["reason"].endswith("and never closes it")
    assert [(one.training, one.untrained) for one in summaries] == [(3, 1), (3, 1)]


def test_records_that_the_template_refuses_are_skipped_and_named_or_all_stop_the_run(
    tmp_path: Path, settings: Settings, tokenizer: TextTokenizer
) -> None:
    strict = replace(tokenizer, chat_template=STRICT_TEMPLATE)
    template = choose_template("chat", strict, "some/model")
    encoding = Encoding(settings, template, strict, settings.max_sequence_length)
    file = tmp_path / "train.jsonl"
    lines = [json.dumps(record) + "\n" for record in MIXED]
    file.write_text("".join(lines), encoding="utf-8")
    sources = open_stream(settings, Progress(print)), read_into_memory(settings)
    for source in sources:
        run = RunFolder.create(settings.output_dir, "run", datetime.now())
        data = source.tokenized(encoding, Progress(print))
        data.start(run, 0)
        summary = data.summary()
        data.stop()
        assert (summary.training, summary.untrained, summary.records) == (2, 2, 4)
        skipped = run.lines("skipped.jsonl")
        assert [line["record"] for line in skipped] == [2, 4]
        assert all(REASON.rstrip(".") in line["reason"] for line in skipped)
        events = [str(event) for event in summary.first_events]
        assert f"Skipped {file.as_posix()}, record 2: the model's chat template ref" in events[0]
    file.write_text(lines[1] * 20, encoding="utf-8")
    whole, stream = read_into_memory(settings), open_stream(settings, Progress(print))
    reason = (
        r"Not one of 20 samples can be trained on. .*, record \d+: .*must alternate.*set PROMPT"
    )
    with pytest.raises(UserError, match=reason):
        whole.tokenized(encoding, Progress(print))
    data = stream.tokenized(encoding, Progress(print))
    data.start(RunFolder.create(settings.output_dir, "run", datetime.now()), 0)
    error = data.none_fits()
    data.stop()
    assert re.match(reason, str(error))
