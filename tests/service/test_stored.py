"""Which states of a run are deleted from the server."""

import json
from pathlib import Path

from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.service.stored import states_to_delete


def test_the_last_good_state_of_a_run_that_diverged_stays(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    facts = {"settings": {}, "prompt_template": {}}
    run.file("settings.json").write_text(json.dumps(facts))
    for step in (2, 4, 6, 8):
        path = f"tinker://r/weights/{step}"
        run.add_checkpoint(Checkpoint(f"step-{step:06}", step, 0, path, path))
    assert [point.step for point in states_to_delete(run, 1)] == [2, 4, 6]
    assert [point.step for point in states_to_delete(run, 1, protected_step=7)] == [2, 4]
    run.append("metrics.jsonl", [{"step": 8, "diverged": True, "last_sound_step": 5}])
    assert [point.step for point in states_to_delete(run, 1)] == [2, 6]
