"""PATHs of all kinds -> the models that are served, and their answers."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.serving import openai_of, serving
from tests.support.small_run import SmallRun, small_run
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.serving.models import models_to_serve

pytestmark = pytest.mark.engine
ASKED: Any = [{"role": "user", "content": "Add.\n12 + 12"}]


@dataclass(frozen=True)
class Exports:
    small: SmallRun
    adapter: Path
    merged: Path


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    small, folder = small_run(), tmp_path_factory.mktemp("exports")
    for name, merged in (("adapter", False), ("merged", True)):
        export_model(small.settings, out=folder / name, merged=merged, say=lambda line: None)
    yield Exports(small, folder / "adapter", folder / "merged")


def answers(models: Any) -> dict[str, str]:
    with serving(models) as server:
        client = openai_of(server)
        return {
            model.name: client.chat.completions.create(
                model=model.name, messages=ASKED, temperature=0, max_tokens=24
            )
            .choices[0]
            .message.content
            or ""
            for model in models.models
        }


def test_an_exported_adapter_answers_as_its_run(exports: Exports, tmp_path: Path) -> None:
    """Another rank and strength in one of its layers, and PEFT's sum stays."""
    changed = shutil.copytree(exports.adapter, tmp_path / "changed")
    tensors = load_file(changed / "adapter_model.safetensors")
    config = json.loads((changed / "adapter_config.json").read_text())
    name = next(name for name in tensors if name.endswith("q_proj.lora_A.weight"))
    layer = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    for side, axis in (("A", 0), ("B", 1)):
        key = name.replace("lora_A", f"lora_{side}")
        tensors[key] = tensors[key].repeat_interleave(2, axis).contiguous()
    config["rank_pattern"] = {layer: 2 * config["r"]}
    config["alpha_pattern"] = {layer: config["lora_alpha"]}
    save_file(tensors, changed / "adapter_model.safetensors")
    (changed / "adapter_config.json").write_text(json.dumps(config))
    paths = [f"run={exports.small.run.path}", str(exports.adapter), str(changed)]
    found = answers(models_to_serve(paths, exports.small.settings))
    assert found["adapter"] == found["run"] == found["changed"]
    assert found["base"] != found["run"]


def test_a_merged_export_answers_as_its_run(exports: Exports) -> None:
    run = answers(models_to_serve([], exports.small.settings))
    models = models_to_serve([str(exports.merged)], exports.small.settings)
    assert [(model.name, model.kind) for model in models.models] == [("merged", "tuned")]
    assert answers(models) == {"merged": run[exports.small.run.name]}


def test_another_base_model_than_that_of_the_path_is_refused(exports: Exports) -> None:
    settings, run = exports.small.settings, exports.small.run
    for paths in ([], [str(run.path)], [run.checkpoints()[-1].sampler_path]):
        with pytest.raises(UserError, match=f"{run.name} was trained on .*, not on the base model"):
            models_to_serve(paths, settings, base_model="Qwen/Qwen3-8B")
        assert models_to_serve(paths, settings, base_model=run.base_model()).base_name == "base"
    with pytest.raises(UserError, match="merged is a full model, and needs no base model"):
        models_to_serve([str(exports.merged)], settings, base_model="Qwen/Qwen3-8B")


def test_an_adapter_that_does_not_fit_is_refused_in_a_sentence(
    exports: Exports, tmp_path: Path
) -> None:
    models = models_to_serve(
        [str(exports.adapter)], exports.small.settings, base_model=next(iter(BUNDLED_MODELS))
    )
    with pytest.raises(UserError, match=r"adapter cannot be served: .*(does not have here|needs)"):
        answers(models)
    damaged = shutil.copytree(exports.adapter, tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        answers(models_to_serve([str(damaged)], exports.small.settings))


def test_a_path_that_is_not_stored_is_told_with_what_is_and_what_to_do(exports: Exports) -> None:
    settings, run = exports.small.settings, exports.small.run
    known = run.checkpoints()[-1].sampler_path
    unknown = "tinker://nobody:train:0/sampler_weights/last"
    for path, sentence in (
        (unknown, r"the run nobody:train:0 is not stored in .*\. Name a path that is there"),
        (f"{known}-other", rf"its run has .*{known.rpartition('/')[2]}.*set OUTPUT_DIR"),
    ):
        models = models_to_serve([path], settings, base_model=run.base_model())
        with pytest.raises(UserError, match=f"{path} does not exist here: {sentence}"):
            answers(models)


def test_models_of_two_bases_or_with_one_name_are_refused(exports: Exports) -> None:
    settings = exports.small.settings
    run = str(exports.small.run.path)
    with pytest.raises(UserError, match="Models of one base are served together"):
        models_to_serve([run, str(exports.merged)], settings)
    with pytest.raises(UserError, match="Two models have the name"):
        models_to_serve([run, run], settings)
    with pytest.raises(UserError, match="--checkpoint last has no effect"):
        models_to_serve([str(exports.adapter)], settings, checkpoint="last")
    with pytest.raises(UserError, match="There is no run nowhere"):
        models_to_serve(["nowhere"], settings)


def test_without_a_path_the_newest_run_is_taken_and_said(exports: Exports) -> None:
    models = models_to_serve([], exports.small.settings, checkpoint="last")
    assert models.models[0].name == exports.small.run.name
    assert models.models[0].about.endswith("the last checkpoint")
    assert models.models[-1].kind == "base"
