"""What an epoch takes of files with weights, as the preview says it and training does it."""

import json
from pathlib import Path

import pytest

from tinkersmith.batches.in_memory import TokensInMemory, read_into_memory
from tinkersmith.cli.main import main
from tinkersmith.data import large_files
from tinkersmith.preview.epoch import FileCounts, epoch_counts
from tinkersmith.preview.plan import local_encoding
from tinkersmith.progress import Progress
from tinkersmith.settings.reading import settings_from

WEIGHTS = {"a.jsonl": 2.0, "b.jsonl": 0.5, "c.jsonl": 1.0}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place, name in enumerate(WEIGHTS):
        lines = [
            json.dumps({"instruction": f"{name} {n}", "output": "word " * (5 + 10 * place)})
            for n in range(10)
        ]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def trained_in_an_epoch() -> tuple[int, int, int]:
    """The samples and tokens of an epoch, and those of them that are trained on."""
    settings = settings_from({"DATA_FILES": WEIGHTS, "BATCH_SIZE": 1})
    source = read_into_memory(settings)
    encoding, _ = local_encoding(settings, source)
    data = source.tokenized(encoding, Progress(print))
    assert isinstance(data, TokensInMemory)
    batches = [data.batch(step) for step in range(data.count)]
    tokens = sum(len(sequence.tokens) for batch in batches for sequence in batch)
    trained = sum(sequence.completion_length for batch in batches for sequence in batch)
    return data.count, tokens, trained


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_preview_says_what_an_epoch_takes(
    is_stream: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, tokens, trained = trained_in_an_epoch()
    assert samples == 35
    if is_stream:
        monkeypatch.setattr(large_files, "STREAMED_ABOVE", 100)
    weights = json.dumps(WEIGHTS)
    assert main(["preview", "--set", f"DATA_FILES={weights}"]) == 0
    shown = capsys.readouterr().out
    assert "An epoch takes 2 x 10 samples of a.jsonl, 5 of 10 samples of b.jsonl and" in shown
    expected = (
        "With the weights of DATA_FILES, an epoch takes 35 samples, about 35 sequences and "
        f"{tokens:,} tokens, {trained:,} of them trained ({trained / tokens:.1%})"
    )
    assert expected in shown
    assert "30 samples, 30 sequences, " in shown, "all samples are looked at"
    assert main(["preview", "--set", f"DATA_FILES={weights}", "--html", "p.html"]) == 0
    page = Path("p.html").read_text(encoding="utf-8")
    assert f'"epoch":{{"samples":35,"sequences":35,"tokens":{tokens},"trained":{trained},' in page


def test_without_weights_there_is_nothing_to_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preview", *WEIGHTS]) == 0
    assert "an epoch takes" not in capsys.readouterr().out.lower()


def test_whole_weights_are_exact_and_files_of_one_name_share_its_weight() -> None:
    Path("d").mkdir()
    for name in ("d/e.jsonl", "d/f.jsonl"):
        Path(name).write_text("{}")
    files = {name: FileCounts(10, 12, 100, 40) for name in ("a.jsonl", "d/e.jsonl", "d/f.jsonl")}
    counts = epoch_counts(files, {"a.jsonl": 3.0, "d": 1.0, "b.jsonl": 9.0})
    assert counts is not None and counts.exact
    assert (counts.samples, counts.sequences) == (50, 60)
    assert (counts.tokens, counts.trained) == (500, 200)
    assert epoch_counts(files, {}) is None
