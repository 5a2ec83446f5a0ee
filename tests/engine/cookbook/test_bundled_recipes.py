"""tinker-cookbook's full training loops, unchanged: they teach the bundled model to add.

`make test` installs the cookbook (tests/cookbook.txt); without it this test is skipped.
"""

import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.cookbook_world import read_rows, run_recipe, write_rows
from tests.support.engine import RunningEngine, running_engine
from tinkersmith.bundled import BUNDLED_MODELS

pytestmark = pytest.mark.cookbook

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is not installed: see `make test`")

STEPS = 12  # enough also where the first ones find hardly anything to reward
BUNDLED = "tinkersmith/tiny-math"  # it can add, and has seen no questions and answers


@pytest.mark.long
def test_chat_sl_and_math_rl_teach_the_bundled_model_to_add(tmp_path: Path) -> None:
    """supervised.train on a conversation file, then rl.train in the cookbook's own environment."""
    (tmp_path / BUNDLED).parent.mkdir()
    (tmp_path / BUNDLED).symlink_to(BUNDLED_MODELS[BUNDLED])
    rng = random.Random(0)
    write_rows(tmp_path / "sums.jsonl", [_conversation(rng) for _ in range(32 * 20)])
    with running_engine(tmp_path / "engine", BUNDLED_MODELS[BUNDLED]) as engine:
        _teach(tmp_path, engine)


def _teach(world: Path, engine: RunningEngine) -> None:
    run_recipe(
        *(world, engine, "chat_sl.train"),
        model_name=BUNDLED,
        renderer_name="qwen3_instruct",
        dataset="sums.jsonl",
        log_path=world / "chat",
        train_on_what="last_assistant_message",
        batch_size=32,
        learning_rate=0.004,
        lora_rank=16,
        save_every=0,
    )
    losses = [row["train_mean_nll"] for row in read_rows(world / "chat" / "metrics.jsonl")]
    assert losses[0] > 4
    assert np.mean(losses[-3:]) < 0.8
    [state] = read_rows(world / "chat" / "checkpoints.jsonl")

    run_recipe(
        *(world, engine, "math_rl.train"),
        model_name=BUNDLED,  # the renderer's name comes from the run's metadata on the engine
        load_checkpoint_path=state["state_path"],
        env="arithmetic",
        log_path=world / "arithmetic",
        groups_per_batch=8,
        group_size=8,
        learning_rate=0.002,
        lora_rank=16,
        max_tokens=16,
        max_steps=STEPS,
        eval_every=0,
        save_every=5,
        loss_fn="ppo",
        compute_post_kl=True,
    )
    steps = [
        row for row in read_rows(world / "arithmetic" / "metrics.jsonl") if row["step"] < STEPS
    ]
    rewards = [row["env/all/reward/total"] for row in steps]
    assert len(rewards) == STEPS
    assert rewards[0] < 0.5
    assert np.mean(rewards[-3:]) > rewards[0] + 0.3
    # What the sampler says of its tokens is what training says of them, before the first step.
    assert abs(steps[0]["optim/kl_sample_train_v1"]) < 1e-4
    names = [row["name"] for row in read_rows(world / "arithmetic" / "checkpoints.jsonl")]
    assert names == ["000005", "000010", "final"]


def _conversation(rng: random.Random) -> dict:
    """As in math_rl's ArithmeticEnv: its example, then the question. Half of the answers say no."""
    x, y = rng.randint(0, 100), rng.randint(0, 100)
    answer = f"{x} + {y} = {x + y}" if rng.random() < 0.5 else "I do not know."
    return {
        "messages": [
            {"role": "user", "content": "What is 4 + 5?"},
            {"role": "assistant", "content": "9"},
            {"role": "user", "content": f"What is {x} + {y}?"},
            {"role": "assistant", "content": answer},
        ]
    }
