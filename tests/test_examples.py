"""Every example runs as its first lines say, here beside one engine that all of them use."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.engine import KEY, RunningEngine, running_engine
from tests.support.paths import ROOT
from tinkersmith.bundled import BUNDLED_MODELS

EXAMPLES = ROOT / "examples"
MODEL = "tinkersmith/tiny-math"
NOTEBOOK = EXAMPLES / "first_steps.ipynb"

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("engine"), BUNDLED_MODELS[MODEL]) as running:
        yield running


def run_example(engine: RunningEngine | None, folder: Path, *words: str) -> str:
    """What a program printed; it ran in `folder`, and used the engine as a server by URL."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TINKER_")},
        "NO_PROXY": "127.0.0.1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    if engine is not None:
        environment |= {"TINKER_BASE_URL": engine.url, "TINKER_API_KEY": KEY}
    ended = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == 0, f"{words}: {ended.stdout[-2000:]}{ended.stderr[-4000:]}"
    return ended.stdout


def python_example(engine: RunningEngine, folder: Path, name: str, *words: str) -> str:
    return run_example(engine, folder, sys.executable, str(EXAMPLES / name), *words)


def numbers(pattern: str, text: str) -> list[float]:
    return [float(value) for value in re.findall(pattern, text, re.MULTILINE)]


def test_own_data_teaches_what_the_base_does_not_know(
    engine: RunningEngine, tmp_path: Path
) -> None:
    python_example(engine, tmp_path, "01_own_data.py")
    results = json.loads((tmp_path / "runs/own-data/results.json").read_text(encoding="utf-8"))
    scores = results["metrics"], results["base"]["metrics"]
    assert scores[0]["exact_match"]["rate"] > scores[1]["exact_match"]["rate"] + 0.3
    assert results["counts"]["overlap_with_training"] == 0


def test_an_answer_of_weight_zero_is_no_sequence_to_learn(
    engine: RunningEngine, tmp_path: Path
) -> None:
    said = python_example(engine, tmp_path, "02_conversations.py")
    losses = numbers(r"(\d\.\d+)[,\]]", said.split("Mean loss of each epoch:")[1])
    assert losses[1] < losses[0]


def test_thoughts_are_trained_and_stripped(engine: RunningEngine, tmp_path: Path) -> None:
    said = python_example(engine, tmp_path, "03_thinking.py")
    kept, stripped = numbers(r"^Lengths: 24 samples (\d+) tokens", said.replace(",", ""))
    assert kept > 1.3 * stripped


def test_a_run_goes_on_from_an_earlier_checkpoint(engine: RunningEngine, tmp_path: Path) -> None:
    said = python_example(engine, tmp_path, "04_continue_training.py")
    before, after = numbers(r"(\d+\.\d+)", said.split("Mean loss of the last epoch:")[1])
    assert before != after
    assert len(list((tmp_path / "runs").glob("my-model-*"))) == 1


def test_a_sweep_ranks_its_runs(engine: RunningEngine, tmp_path: Path) -> None:
    run_example(engine, tmp_path, "bash", str(EXAMPLES / "05_sweep.sh"))
    assert len(list((tmp_path / "runs").glob("sweep-*-*-*-*"))) == 2


def test_an_improvement_asks_trains_and_is_scored(engine: RunningEngine, tmp_path: Path) -> None:
    said = run_example(engine, tmp_path, "bash", str(EXAMPLES / "06_improve.sh"))
    assert re.search(r"\d+ of 240 answers are right", said)
    assert re.search(r"^Best +(round 1|the start)", said, re.MULTILINE)


def test_a_reward_is_earned(engine: RunningEngine, tmp_path: Path) -> None:
    said = python_example(engine, tmp_path, "07_rl_with_a_reward.py")
    rewards = numbers(r"mean reward (\d\.\d+)", said)
    assert max(rewards[2:]) > rewards[0] + 0.3


def test_preferences_are_learned(engine: RunningEngine, tmp_path: Path) -> None:
    said = python_example(engine, tmp_path, "08_preferences.py")
    losses = numbers(r"loss (\d\.\d+)", said)
    assert losses[0] == pytest.approx(0.693, abs=1e-3)  # the model is its own reference
    assert losses[-1] < 0.5


def test_the_openai_client_gets_an_answer(engine: RunningEngine, tmp_path: Path) -> None:
    said = python_example(engine, tmp_path, "09_openai_client.py")
    assert MODEL in said.splitlines()[0]
    assert len(said.splitlines()[1]) > 3


@pytest.mark.parametrize("name", ["09_openai_client.py", "10_cloud.py"])
def test_an_example_that_needs_a_key_says_so(tmp_path: Path, name: str) -> None:
    without = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        cwd=tmp_path,
        env={**without, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: TINKER_API_KEY is not set.")


def test_the_cloud_example_lists_and_trains(engine: RunningEngine, tmp_path: Path) -> None:
    assert MODEL in python_example(engine, tmp_path, "10_cloud.py").splitlines()
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "1 + 1", "completion": "2"}\n' * 2, encoding="utf-8")
    said = python_example(engine, tmp_path, "10_cloud.py", MODEL, str(data))
    assert "tinkersmith export --model-path tinker://" in said


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    engine: RunningEngine, tmp_path: Path
) -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    assert all(not cell.get("outputs") for cell in cells)  # no one's outputs are committed
    said = run_example(engine, tmp_path, sys.executable, "-c", code)
    losses = numbers(r"^ +\d+ #* (\d+\.\d+)$", said)
    assert losses[-1] < losses[0] / 2
    assert "The model says: Answer:" in said
