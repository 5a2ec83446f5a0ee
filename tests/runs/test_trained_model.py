"""Which model evaluation and export take."""

from pathlib import Path

import pytest

from tests.support.run_folders import checkpoint, run_of_settings
from tinkersmith.errors import UserError
from tinkersmith.runs.folder import RunFolder
from tinkersmith.runs.trained_model import find_trained_model
from tinkersmith.settings.reading import settings_from


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """The validation loss is lowest at the first of two checkpoints."""
    folder = run_of_settings(tmp_path / "runs" / "mine", VALIDATION_RATIO=0.1)
    for step, loss in ((10, 1.0), (20, 2.0)):
        folder.add_checkpoint(checkpoint(step))
        folder.append("metrics.jsonl", [{"step": step, "validation_loss": loss}])
    return folder


def test_the_best_checkpoint_of_the_newest_run_is_taken_and_said(run: RunFolder) -> None:
    settings = settings_from({"OUTPUT_DIR": str(run.path.parent)})
    model = find_trained_model(settings)
    assert model.sampler_path == checkpoint(10).sampler_path
    assert model.state_path == checkpoint(10).state_path
    assert "step-000010 of mine, the best checkpoint by validation loss 1.0000" in model.chosen
    assert "--checkpoint last" in model.chosen
    last = find_trained_model(settings, checkpoint="last")
    assert last.sampler_path == checkpoint(20).sampler_path
    named = find_trained_model(settings, checkpoint="step-000020")
    assert named.sampler_path == last.sampler_path


def test_a_path_is_taken_as_it_is_and_leaves_nothing_to_choose(run: RunFolder) -> None:
    settings = settings_from({"OUTPUT_DIR": str(run.path.parent)})
    path = checkpoint(20).sampler_path
    model = find_trained_model(settings, path)
    assert model.sampler_path == path and not model.chosen
    with pytest.raises(UserError, match="The checkpoint 'best' has no effect, since the model"):
        find_trained_model(settings, path, checkpoint="best")


def test_a_damaged_line_of_metrics_is_named_and_the_last_can_still_be_taken(
    run: RunFolder,
) -> None:
    with run.file("metrics.jsonl").open("a") as file:
        file.write("{broken\n")
    settings = settings_from({"OUTPUT_DIR": str(run.path.parent)})
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 3 is damaged"):
        find_trained_model(settings)
    assert find_trained_model(settings, checkpoint="last").sampler_path.endswith("000020")
