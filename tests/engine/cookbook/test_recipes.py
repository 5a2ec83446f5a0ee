"""tinker-cookbook's own example loops, unchanged, against a real engine.

`make test` installs the cookbook (tests/cookbook.txt); without it these tests are skipped.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.cookbook_world import BASE_MODEL, make_world, read_rows, run_recipe
from tests.support.engine import RunningEngine, running_engine

pytestmark = pytest.mark.cookbook

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is not installed: see `make test`")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cookbook"))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Iterator[RunningEngine]:
    folder = world / BASE_MODEL
    with running_engine(
        tmp_path_factory.mktemp("engine"), folder, "--base-model", f"{BASE_MODEL}={folder}"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def supervised_log(world: Path, engine: RunningEngine) -> Path:
    """The log folder of a finished run of the cookbook's sl_loop."""
    run_recipe(
        *(world, engine, "sl_loop"),
        model_name=BASE_MODEL,
        log_path=world / "sl",
        batch_size=16,
        learning_rate=0.01,
        lora_rank=16,
        save_every=10,
        train_on_what="last_assistant_message",
    )
    return world / "sl"


def test_the_supervised_example_loop_lowers_its_loss(supervised_log: Path) -> None:
    losses = [row["train_mean_nll"] for row in read_rows(supervised_log / "metrics.jsonl")]
    assert len(losses) == 20
    assert losses[0] > 3
    # One of about ten answer tokens is left to chance (0.64 nats), so 0 would be wrong too.
    assert 0.03 < np.mean(losses[-3:]) < 0.2
    names = [row["name"] for row in read_rows(supervised_log / "checkpoints.jsonl")]
    assert names == ["000010", "final"]


def test_the_reinforcement_learning_example_loop_raises_its_reward(
    world: Path, engine: RunningEngine, supervised_log: Path
) -> None:
    """It takes over from the supervised state, which boxes 3 or 7; only 7 is rewarded.

    With its own loss, stable_reinforce.
    """
    taught = read_rows(supervised_log / "checkpoints.jsonl")[-1]
    log = world / "rl"
    log.mkdir()
    (log / "checkpoints.jsonl").write_text(json.dumps({**taught, "batch": 0}) + "\n")
    run_recipe(
        *(world, engine, "rl_loop"),
        model_name=BASE_MODEL,
        log_path=log,
        batch_size=4,
        group_size=8,
        learning_rate=0.001,
        max_tokens=16,
        max_steps=16,
    )
    rewards = [row["reward/total"] for row in read_rows(log / "metrics.jsonl")]
    assert len(rewards) == 16
    assert rewards[0] < 0.6
    assert np.mean(rewards[-4:]) > 0.8


@pytest.mark.long
def test_dpo_learns_what_is_preferred(world: Path, engine: RunningEngine) -> None:
    """Its loss is computed on the client's side, by forward_backward_custom."""
    run_recipe(
        *(world, engine, "preference.dpo.train"),
        model_name=BASE_MODEL,
        renderer_name="role_colon",
        dataset="hhh",
        log_path=world / "dpo",
        batch_size=16,
        learning_rate=0.001,
    )
    rows = read_rows(world / "dpo" / "metrics.jsonl")
    losses = [row["dpo_loss"] for row in rows if "dpo_loss" in row]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)  # the policy is its reference
    assert losses[-1] < 0.5
    assert rows[-1]["accuracy"] == 1
