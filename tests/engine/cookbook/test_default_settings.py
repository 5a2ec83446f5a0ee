"""tinker-cookbook's recipes with their own losses and settings: those once refused, and all.

benchmarks/cookbook_recipes.py has the recipes with the sizes and data that they run with here.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.cookbook_recipes import (
    RECIPES,
    Recipe,
    installed,
    make_world,
    run,
    runnable_modules,
)
from tests.support.engine import KEY, RunningEngine, running_engine

pytestmark = pytest.mark.cookbook

pytest.importorskip("tinker_cookbook", reason="tinker-cookbook is not installed: see `make test`")

BY_MODULE = {recipe.module: recipe for recipe in RECIPES}
# Their default loss is stable_reinforce, without a published formula. The fifth, rl_loop, is
# in test_recipes.py, where it has something to learn.
ONCE_REFUSED = (
    "math_rl.train",
    pytest.param("rl_basic", marks=pytest.mark.long),
    pytest.param("rubric.train", marks=pytest.mark.long),
    pytest.param("preference.shorter.train", marks=pytest.mark.long),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cookbook")


@pytest.fixture(scope="module")
def engine(world: Path) -> Iterator[RunningEngine]:
    model, served = make_world(world)
    with (
        (world / "log").open("wb") as log,
        running_engine(world / "engine", model, *served, stderr=log) as running,
    ):
        yield running


def test_every_program_of_the_cookbook_is_in_the_table() -> None:
    assert runnable_modules() == set(BY_MODULE)


@pytest.mark.parametrize("module", ONCE_REFUSED)
def test_a_recipe_that_was_refused_runs_with_its_default_loss(
    world: Path, engine: RunningEngine, module: str
) -> None:
    assert not {"loss_fn", "renderer_name"} & set(BY_MODULE[module].settings)
    row = run(BY_MODULE[module], world, engine.url, KEY)
    assert row["result"] == "runs", row["reason"]
    assert row["steps"] > 0
    assert "Tinker publishes no formula of stable_reinforce" in (world / "log").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "recipe",
    [recipe for recipe in RECIPES if recipe.reason is None],
    ids=lambda recipe: recipe.module,
)
def test_a_recipe_runs_with_its_default_settings(
    world: Path, engine: RunningEngine, recipe: Recipe
) -> None:
    if not installed(recipe):
        pytest.skip(f"{recipe.needs} is not installed")
    row = run(recipe, world, engine.url, KEY)
    assert row["result"] == "runs", row["reason"]
