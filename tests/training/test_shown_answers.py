"""The sample that is shown after training is one that was trained on."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.data import large_files
from tinkersmith.settings.reading import settings_from

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("kept_engines")]
CONTEXT = 128


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the runs of all tests, which so share an engine."""
    return make_tiny_model(tmp_path_factory.mktemp("shared") / "model", max_context=CONTEXT)


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_cloud(monkeypatch)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def shown(folder: Path, model: Path, records: list[Any], **changes: object) -> tuple[str, Any]:
    """What a run of one epoch prints after "The first training sample", and its samples.json."""
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    values: dict[str, object] = {
        "DATA_FILES": [str(data)],
        "BASE_MODEL": str(model),
        "OUTPUT_DIR": str(model.parent / "runs"),
        "NUM_EPOCHS": 1,
        "LORA_RANK": 4,
        "SAMPLING_MAX_TOKENS": 4,
        "PROMPT_TEMPLATE": "instruction",
    }
    output = io.StringIO()
    with contextlib.redirect_stdout(output), train(settings_from({**values, **changes})) as trained:
        stored = json.loads(trained.run.file("samples.json").read_text(encoding="utf-8"))
        losses = trained.run.lines("sample_losses.jsonl")
    records_trained = {
        row[0] for line in losses for rows in line["losses"].values() for row in rows
    }
    assert int(stored[0]["source"].rpartition(" ")[2]) in records_trained
    assert len(stored[0]["answers"]) == len(trained.answers) == 1
    _, _, after = output.getvalue().partition("The first training sample (")
    return after, stored[0]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_first_sample_that_was_too_long_is_not_shown(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    if streamed:
        monkeypatch.setattr(large_files, "STREAMED_ABOVE", 0)
    records = [
        {"instruction": "long " * CONTEXT, "output": "no"},
        {"instruction": "Say yes.", "output": "yes"},
        {"instruction": "Say no.", "output": "no"},
    ]
    text, stored = shown(tmp_path, model, records)
    assert "data.jsonl, record 2)" in text.splitlines()[0]
    assert stored["expected"] == "yes" and "Say yes." in stored["prompt"]


def test_of_a_conversation_the_last_answer_that_was_trained_is_shown(
    tmp_path: Path, model: Path
) -> None:
    turns = [
        ("user", "First?"),
        ("assistant", "one"),
        ("user", "Second?"),
        ("assistant", "two"),
        ("user", "far " * CONTEXT),
        ("assistant", "cut"),
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    text, stored = shown(tmp_path, model, [{"messages": messages}])
    assert "record 1), answer 2 of 3" in text.splitlines()[0]
    assert "... (after 2 earlier turns)\n    Second?\n  expected:\n    two\n" in text
    assert stored["expected"] == "two" and "far far" not in stored["prompt"]


def test_plain_text_is_continued(tmp_path: Path, model: Path) -> None:
    text, stored = shown(tmp_path, model, [{"text": "abcdefgh" * 4}])
    assert "record 1), a plain text, and how it goes on" in text.splitlines()[0]
    assert stored["prompt"] + stored["expected"] == "abcdefgh" * 4
    assert stored["prompt"] and stored["expected"]


def test_the_sample_is_not_one_that_is_held_out(tmp_path: Path, model: Path) -> None:
    records = [{"instruction": f"Say {n}.", "output": str(n)} for n in range(12)]
    for seed in (1, 2, 3):  # one of them holds out the first
        _, stored = shown(tmp_path, model, records, VALIDATION_RATIO=0.5, SEED=seed)
        assert stored["source"].endswith(f"record {int(stored['expected']) + 1}")
