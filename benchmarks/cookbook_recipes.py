"""Every recipe of the installed tinker-cookbook against one engine, with its default settings.

Only sizes, data and the model behind a name are replaced: each name that a recipe asks for is the
bundled model, and each data set a few rows that this script makes. Losses, renderers, schedules,
samplers and evaluations are the recipe's own. Writes benchmarks/results/cookbook_recipes.json, of
which tools/compatibility.py makes a table. Exits with 1 if a recipe fails.
"""

import argparse
import ast
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.cookbook_data import MODELS, SEEING, make_data, make_model, make_pictures
from benchmarks.results_file import RESULTS, write_results

PATIENCE = 240  # seconds for one recipe
_DOCKER = "its sandbox is a Docker image"
_AUDIO = "its prompts hold sound, which the engine refuses"
_OF_IMAGES = "it goes through checkpoints of vlm_classifier.train, which runs"
_NETWORK = "it asks a service on the network: {}"
_HELPER = "a part of other recipes, without training or sampling of its own"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe's module below tinker_cookbook.recipes, and how it is started."""

    module: str
    settings: Mapping[str, object] = field(default_factory=dict)
    log: str | None = "log_path"  # the setting for the folder of its metrics, if it has one
    typed: str = ""  # what is typed into it
    dashes: bool = False  # --name=value instead of name=value
    needs: str | None = None  # a package that the recipe imports and the cookbook does not install
    reason: str | None = None  # why it cannot run here at all
    note: str = ""  # what its settings here leave out


_RL = {"max_steps": 2, "groups_per_batch": 2, "group_size": 4}
RECIPES = (
    Recipe("sl_loop", {"batch_size": 64, "max_length": 512}),
    Recipe("rl_loop", {"batch_size": 2, "group_size": 4, "max_tokens": 16, "max_steps": 2}),
    Recipe("sl_basic", {"max_steps": 2}),
    Recipe("rl_basic", {"max_tokens": 4, "max_steps": 1}),
    Recipe("chat_sl.train", {"batch_size": 8, "max_steps": 2}),
    Recipe(
        "chat_sl.sweep",
        {
            "recipe": "sft",
            "training_budget_examples": 16,
            "base.batch_size": 8,
            "learning_rates": "[1e-4]",
            "lora_ranks": "[8]",
        },
        log=None,
    ),
    Recipe("math_rl.train", _RL),
    Recipe("preference.dpo.train", {"batch_size": 4, "max_steps": 2}),
    Recipe("preference.shorter.train", {"batch_size": 2, "group_size": 4, "max_steps": 2}),
    Recipe(
        "preference.rlhf.rlhf_pipeline",
        {"batch_size": 4, "max_steps": 2, "rl_max_tokens": 16, "lora_rank": 8},
        log=None,
    ),
    Recipe("rubric.generate_data", reason=_HELPER),
    Recipe(
        "rubric.train",
        {"groups_per_batch": 1, "train_group_size": 2, "max_tokens": 16, "max_steps": 1},
    ),
    Recipe(
        "rubric.prometheus_experimental",
        {"groups_per_batch": 1, "train_group_size": 2, "max_tokens": 16, "max_steps": 1},
    ),
    Recipe("rubric.debug_env", log=None),
    Recipe("rl_numerics_check.train", {**_RL, "max_tokens": 32, "max_trajectory_tokens": 3000}),
    Recipe(
        "multiplayer_rl.guess_number.train",
        {"batch_size": 2, "group_size": 4, "max_tokens": 8, "max_steps": 2, "eval_every": 0},
    ),
    Recipe(
        "multiplayer_rl.twenty_questions.train",
        {"batch_size": 2, "group_size": 2, "max_tokens": 8, "max_steps": 1, "eval_every": 0},
    ),
    Recipe(
        "multiplayer_rl.text_arena.train",
        {
            "batch_size": 4,
            "num_train_datapoints": 8,
            "num_test_datapoints": 4,
            "max_tokens": 4,  # more, and so small a model ends its turn twice, which is an error
            "max_steps": 2,
        },
        needs="textarena",
    ),
    Recipe("distillation.off_policy_reasoning", {"batch_size": 4, "max_steps": 2}),
    Recipe("distillation.on_policy_distillation", {**_RL, "max_tokens": 32}),
    Recipe(
        "distillation.on_policy_multi_teacher",
        {
            "deepmath_groups_per_batch": 2,
            "tulu3_groups_per_batch": 2,
            "max_tokens": 32,
            "max_steps": 2,
        },
    ),
    Recipe(
        "sdft.train",
        {"groups_per_batch": 4, "max_tokens": 32, "max_steps": 2, "eval_every": 0},
        note="its evaluation fails in the cookbook, before anything is sent: switched off",
    ),
    Recipe(
        "sdft.run_continual_learning",
        {
            "data_dir": "continual",
            "batch_size": 4,
            "max_tokens": 256,
            "learning_rates": "1e-3",
            "lora_rank": 8,
        },
        log="log_root",
    ),
    Recipe(
        "sdft.benchmark",
        {
            "data_dir": "continual",
            "groups_per_batch": 4,
            "max_tokens": 32,
            "max_steps": 2,
            "sft_batch_size": 4,
            "sft_max_steps": 2,
            "lora_rank": 8,
        },
        log="log_root",
    ),
    Recipe("prompt_distillation.create_data", {"output_file": "distilled.jsonl"}, log=None),
    Recipe("prompt_distillation.train", {"file_path": "sums.jsonl", "batch_size": 8}),
    Recipe(
        "forecasting.train",
        {
            "data_path": "arena.csv",
            "group_size": 4,
            "groups_per_batch": 2,
            "validation_group_size": 2,
            "max_train_questions": 4,
            "max_validation_questions": 2,
            "max_tokens": 32,
            "max_steps": 2,
        },
    ),
    Recipe(
        "decisions.forecasting",
        {
            "data_path": "arena.csv",
            "model_name": "Qwen/Qwen3.5-4B",
            "max_train_questions": 6,
            "max_validation_questions": 2,
            "batch_size": 2,
            "max_steps": 2,
        },
        dashes=True,
    ),
    Recipe(
        "decisions.demo",
        {"model_name": "Qwen/Qwen3.5-4B"},
        log=None,
        typed="How do I pick a learning rate?\n",
        dashes=True,
    ),
    Recipe("true_thinking_score.run_small_experiment", log=None),
    Recipe("true_thinking_score.analyze", {"n_problems": 2, "max_tokens": 64}),
    Recipe(
        "verifiers_rl.train",
        reason="it fails in the cookbook, before it trains: its rollouts take no `termination`",
    ),
    Recipe(
        "verifiers_rl.evaluate",
        reason="it samples, and then fails in the cookbook: its report expects errors to list",
    ),
    Recipe(
        "code_rl.train",
        {"groups_per_batch": 2, "group_size": 2, "max_tokens": 16, "max_steps": 2},
        needs="aiohttp",
        note="so small a model writes no program, so that its sandbox is never asked",
    ),
    Recipe("harbor_rl.scripts.train_terminal_bench", reason=_DOCKER),
    Recipe("harbor_rl.scripts.eval_harbor_rl", reason=_DOCKER),
    Recipe("distillation.on_policy_distillation_harbor_multi_turn", reason=_DOCKER),
    Recipe("search_tool.train", reason=_NETWORK.format("Gemini's embeddings, and Chroma")),
    Recipe("search_tool.offline_eval", reason=_NETWORK.format("Gemini's embeddings, and Chroma")),
    Recipe("forecasting.data", reason=_HELPER),
    Recipe("chat_sl.sweep.launch_all", reason="it starts `chat_sl.sweep` for every cloud model"),
    Recipe("chat_sl.sweep.analyze", reason=_NETWORK.format("W&B")),
    Recipe(
        "multiplayer_rl.text_arena.play", reason="it is played by hand, with a saved checkpoint"
    ),
    Recipe("audio.asr.rl_train", reason=_AUDIO),
    Recipe("audio.asr.sl_train", reason=_AUDIO),
    Recipe("audio.medical_asr.train", reason=_AUDIO),
    Recipe("audio.emotion.rl_train", reason=_AUDIO),
    Recipe("audio.emotion.sl_train", reason=_AUDIO),
    Recipe("audio.emotion.evaluate", reason=_AUDIO),
    Recipe("audio.emotion.prepare_data", reason=_HELPER),
    Recipe(
        "vlm_classifier.train",
        {
            "model_name": SEEING,
            "renderer_name": "qwen3_vl_instruct",
            "batch_size": 8,
            "max_steps": 2,
            "n_eval": 4,
        },
        log="experiment_dir",
        note="its model is a random Qwen3-VL",
    ),
    Recipe("vlm_classifier.eval", reason=_OF_IMAGES),
    Recipe("vlm_classifier.eval_sweep", reason=_OF_IMAGES),
    Recipe(
        "vlm_classifier.sweep", reason="it starts many runs of vlm_classifier.train, which runs"
    ),
)


def runnable_modules() -> set[str]:
    """The modules below tinker_cookbook.recipes that are programs."""
    spec = find_spec("tinker_cookbook.recipes")
    assert spec is not None and spec.submodule_search_locations is not None
    [root] = spec.submodule_search_locations
    found = set()
    for file in Path(root).rglob("*.py"):
        if _is_program(file.read_text(encoding="utf-8")):
            name = ".".join(file.relative_to(root).with_suffix("").parts)
            # `python -m tinker_cookbook.recipes.chat_sl.sweep` runs its __main__ and cli.
            found.add(name.removesuffix(".__main__").removesuffix("sweep.cli") or name)
    return {name.removesuffix(".") + (".sweep" if name.endswith(".") else "") for name in found}


def _is_program(source: str) -> bool:
    """Whether a module has `if __name__ == "__main__"` at its top level."""
    return any(
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.left, ast.Name)
        and node.test.left.id == "__name__"
        for node in ast.parse(source).body
    )


def run(recipe: Recipe, world: Path, url: str, key: str) -> dict[str, Any]:
    """Start a recipe as its README says; return its row of the table."""
    if recipe.reason is not None:
        return {"recipe": recipe.module, "result": "not run", "reason": recipe.reason}
    log = world / "runs" / recipe.module
    shutil.rmtree(log, ignore_errors=True)  # of an earlier run: a recipe would ask about it
    settings = dict(recipe.settings)
    if recipe.log is not None:
        settings[recipe.log] = log
    marks = "--" if recipe.dashes else ""
    command = [
        *(sys.executable, "-m", f"tinker_cookbook.recipes.{recipe.module}"),
        *(f"{marks}{name}={value}" for name, value in settings.items()),
    ]
    started = time.monotonic()
    try:
        done = subprocess.run(
            command,
            cwd=world,
            env={
                **os.environ,
                "TINKER_BASE_URL": url,
                "TINKER_API_KEY": key,
                "TINKER_COOKBOOK_RUNS_DIR": str(world / "runs" / recipe.module),
                "HF_HUB_OFFLINE": "1",
                "HF_HOME": str(world / "hf"),
                "HOME": str(world / "home"),
                "OMP_NUM_THREADS": "1",
            },
            input=recipe.typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        status, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as expired:
        status, output = -1, f"no end after {PATIENCE} s\n{_text(expired.stderr)}"
    (world / "output").mkdir(exist_ok=True)
    (world / "output" / f"{recipe.module}.txt").write_text(output)
    steps = list(_metrics(log))
    wrong = _wrong(status, output, steps, with_metrics=recipe.log == "log_path")
    return {
        "recipe": recipe.module,
        "result": "fails" if wrong else "runs",
        "reason": wrong or recipe.note,
        "settings": {name: str(value) for name, value in recipe.settings.items()},
        "steps": len(steps),
        "seconds": round(time.monotonic() - started, 1),
    }


def _text(output: object) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else str(output or "")


def _metrics(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.rglob("metrics.jsonl")):
        for line in file.read_text().splitlines():
            yield json.loads(line)


def _wrong(status: int, output: str, steps: list[dict[str, Any]], *, with_metrics: bool) -> str:
    """What went wrong, in a sentence; "" if nothing did."""
    if status:
        last = [line for line in output.splitlines() if line.strip()]
        return f"exit status {status}: {last[-1].strip() if last else 'no output'}"[:300]
    # Some recipes go on after an error of the engine and only log it.
    for sign in ("RequestFailedError", "BadRequestError", "NotFoundError"):
        if sign in output:
            [line, *_] = [line for line in output.splitlines() if sign in line]
            return line.strip()[:300]
    if with_metrics and not steps and "true_thinking" not in output:
        return "it ended without a line of metrics"
    for step in steps:
        for name, value in step.items():
            if isinstance(value, float) and not math.isfinite(value):
                return f"its metric {name} is {value}"
    return ""


def make_world(world: Path) -> tuple[Path, list[str]]:
    """Fill `world` with models and data; gives a model and the options that serve all by name."""
    from tests.support.seeing_models import make_seeing

    model = make_model(world / "model")
    make_data(world, model)
    make_pictures(world, train=16, test=4)
    folders = {**dict.fromkeys(MODELS, model), SEEING: make_seeing(world / SEEING)}
    served = [
        part for name, folder in folders.items() for part in ("--base-model", f"{name}={folder}")
    ]
    return model, served


def installed(recipe: Recipe) -> bool:
    return recipe.needs is None or find_spec(recipe.needs) is not None


def main() -> int:
    from tests.support.engine import KEY, no_proxy_for_loopback, running_engine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="run these, and keep the other recorded rows")
    parser.add_argument("--keep", type=Path, help="keep the world with all outputs in this folder")
    options = parser.parse_args()
    no_proxy_for_loopback()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        world = options.keep or Path(temporary)
        world.mkdir(parents=True, exist_ok=True)
        model, served = make_world(world)
        with (
            (world / "engine.log").open("wb") as log,
            running_engine(world / "engine", model, *served, stderr=log) as engine,
        ):
            for recipe in RECIPES:
                if options.only and recipe.module not in options.only:
                    continue
                if not installed(recipe):
                    row = {
                        "recipe": recipe.module,
                        "result": "not run",
                        "reason": f"the package {recipe.needs} is not installed",
                    }
                else:
                    row = run(recipe, world, engine.url, KEY)
                rows.append(row)
                print(*(f"{row.get(key, '')}" for key in ("recipe", "result", "steps", "seconds")))
                if row.get("reason"):
                    print("   ", row["reason"])
                sys.stdout.flush()
    if options.only:
        recorded = json.loads((RESULTS / "cookbook_recipes.json").read_text())
        known = {row["recipe"]: row for row in recorded["figures"]["recipes"]}
        known |= {row["recipe"]: row for row in rows}
        rows = [known[recipe.module] for recipe in RECIPES if recipe.module in known]
    if rows:
        packages = tuple(sorted({r.needs for r in RECIPES if r.needs is not None and installed(r)}))
        write_results(
            "cookbook_recipes",
            "python -m benchmarks.cookbook_recipes",
            {"tinker-cookbook": version("tinker-cookbook"), "recipes": rows},
            packages=packages,
        )
    return int(any(row["result"] == "fails" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
