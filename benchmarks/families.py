"""Every family that the engine knows, as a tiny random model, against transformers in float64.

For each: the loss, LoRA gradients and log-probabilities of one packed batch, against transformers'
own model one sample at a time; what sampling says of its tokens and prompts, against a training
pass; whether training goes on to the last bit from files; and what an exported adapter gives when
the engine reads it again. Families that see have images in samples and prompts. Exits with 1 if a
limit is passed.

python -m benchmarks.families [--quick], then python -m benchmarks.family_tables
"""

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.utils.logging import disable_progress_bar

from benchmarks.results_file import write_results
from tests.support import families, seeing_models, state_families, window_families
from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.exports import export
from tests.support.family_twin import (
    TinyFamily,
    differences_from_twin,
    family_datums,
    family_requests,
    make_family,
    packing_difference,
    plain_model,
    sampling_difference,
    twin_logprobs,
)
from tests.support.seeing_models import (
    SeeingTwin,
    make_seeing,
    seeing_datum,
    seeing_request,
    seeing_sequences,
)
from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import (
    adapter_state,
    load_adapter_state,
    load_finite,
    new_adapter,
)
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.storage.catalogue import model_config
from tinkersmith.engine.training.optimizer import (
    OptimizerState,
    load_state_tensors,
    new_state,
    optim_step,
    state_tensors,
)
from tinkersmith.engine.training.step import forward, forward_backward

# The most that tests/engine/model allows, too.
LIMITS = {
    "loss": 1e-5,
    "gradient": 1e-5,
    "log-probability": 2e-5,
    "packed": 1e-5,
    "sampled": 1e-4,
    "prompt": 1e-4,
    "exported": 1e-5,
}
RATE = AdamParams(learning_rate=0.01)
SHOWN = {  # the names of the tests, where a reader knows another
    "qwen3": "Qwen3",
    "llama3": "Llama 3",
    "qwen3_moe": "Qwen3-MoE",
    "qwen3_moe with a dense layer": "Qwen3-MoE with a dense layer",
    "qwen2_moe with shared experts": "Qwen2-MoE with shared experts",
    "granitemoe": "Granite-MoE",
    "mixtral": "Mixtral",
    "qwen3_5": "Qwen3.5",
    "qwen3_5_moe": "Qwen3.5-MoE",
    "qwen3_next": "Qwen3-Next",
    "deepseek_v3": "DeepSeek V3",
    "nemotron_h": "Nemotron 3",
    "nemotron_h with latent experts": "Nemotron 3 with latent experts",
    "qwen3_vl with images": "Qwen3-VL with images",
    "qwen3_vl_moe with images": "Qwen3-VL-MoE with images",
    "qwen3_5 with images": "Qwen3.5 with images",
    "qwen3_5_moe with images": "Qwen3.5-MoE with images",
}


@dataclass(frozen=True)
class Family:
    """A tiny model, and what it is trained and asked with."""

    name: str
    make: Callable[[Path], object]
    datums: Callable[[BaseModel, int], list[Datum]]  # of a step
    requests: Callable[[BaseModel], list[SampleRequest]]
    # Log-probabilities (T,) of the datums of step 0 by transformers in float64, one by one.
    twin: Callable[[BaseModel, Adapter], Iterator[torch.Tensor]]


def all_families() -> list[Family]:
    plain = [TinyFamily(name, *parts) for name, parts in families.FAMILIES.items()]
    part_of_folder = state_families.SEEING_FAMILIES
    text = [*plain, *window_families.FAMILIES, *state_families.FAMILIES, *part_of_folder]
    return [*map(_of_text, text), *map(_of_images, seeing_models.FAMILIES)]


def _of_text(tiny: TinyFamily) -> Family:
    def twin(base: BaseModel, adapter: Adapter) -> Iterator[torch.Tensor]:
        plain = plain_model(base.folder)
        return (twin_logprobs(tiny, plain, adapter, datum) for datum in family_datums(tiny))

    return Family(
        SHOWN.get(tiny.name, tiny.name),
        partial(make_family, tiny),
        lambda _base, step: family_datums(tiny, step),
        lambda _base: family_requests(tiny),
        twin,
    )


def _of_images(name: str) -> Family:
    return Family(
        SHOWN[f"{name} with images"],
        partial(make_seeing, family=name),
        _seeing_datums,
        _seeing_requests,
        _seeing_twin,
    )


def _seeing_datums(base: BaseModel, step: int) -> list[Datum]:
    sequences = enumerate(seeing_sequences(step))
    return [seeing_datum(base, parts, 10 * step + number) for number, parts in sequences]


def _seeing_requests(base: BaseModel) -> list[SampleRequest]:
    settings = {"num_samples": 2, "temperature": 1.0, "stop": [], "prompt_logprobs": True}
    return [
        seeing_request(base, parts, seed=number, max_tokens=24 - number, **settings)
        for number, parts in enumerate(seeing_sequences())
    ]


def _seeing_twin(base: BaseModel, adapter: Adapter) -> Iterator[torch.Tensor]:
    twin, datums = SeeingTwin(base.folder), _seeing_datums(base, 0)
    for datum, parts in zip(datums, seeing_sequences(), strict=True):
        yield twin.logprobs(adapter, datum, parts)


def measure(family: Family, folder: Path) -> dict[str, object]:
    """The figures of one family, by the names of `LIMITS`."""
    family.make(folder)
    base = with_fast_code(load_base_model(family.name, folder, "float32", "cpu"))
    adapter, datums = filled_adapter(base, LoraConfig(8, 0)), family.datums(base, 0)
    trained = differences_from_twin(base, adapter, datums, family.twin(base, adapter))
    sampled, prompts = sampling_difference(base, family.requests(base))
    return {
        "model_type": model_config(folder)["model_type"],
        "loss": trained.loss,
        "gradient": trained.gradient,
        "log-probability": trained.logprob,
        "packed": max(packing_difference(base, datums)),
        "sampled": sampled,
        "prompt": prompts,
        "exported": export_difference(base, datums, folder),
        "resumed bit for bit": resumes(family, base, folder),
    }


def export_difference(base: BaseModel, datums: list[Datum], folder: Path) -> float:
    """Log-probabilities of a trained adapter, and of the adapter that is read from its export."""
    adapter = filled_adapter(base, LoraConfig(4, 0))
    checkpoint = save_as_peft(base, adapter, folder / "checkpoint")
    loaded = read_exported_adapter(base, export(checkpoint, folder, folder / "out", merged=False))
    logprobs = (
        forward(base, weights, datums, "cross_entropy", {}).logprobs
        for weights in (adapter, loaded)
    )
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(*logprobs, strict=True))


def resumes(family: Family, base: BaseModel, folder: Path) -> bool:
    """Whether steps after files of the adapter and its optimizer equal those without a stop."""
    config = LoraConfig(4, 0)
    adapter = filled_adapter(base, config)
    state = new_state(adapter)
    _train(family, base, adapter, state, range(2))
    save_file(adapter_state(adapter), folder / "adapter.safetensors")
    save_file(state_tensors(state), folder / "optimizer.safetensors")
    resumed = new_adapter(base, config)
    load_adapter_state(resumed, load_finite(folder / "adapter.safetensors"))
    resumed_state = load_state_tensors(resumed, load_finite(folder / "optimizer.safetensors"))
    losses = _train(family, base, adapter, state, range(2, 5))
    return (
        losses == _train(family, base, resumed, resumed_state, range(2, 5))
        and _equal(adapter_state(adapter), adapter_state(resumed))
        and _equal(state_tensors(state), state_tensors(resumed_state))
    )


def _train(
    family: Family, base: BaseModel, adapter: Adapter, state: OptimizerState, steps: range
) -> list[float]:
    losses: list[float] = []
    for step in steps:
        datums = family.datums(base, step)
        output = forward_backward(base, adapter, datums, "cross_entropy", {})
        losses.append(output.metrics["loss:sum"])
        optim_step(adapter, state, RATE)
    return losses


def _equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        torch.equal(tensor, theirs[name]) for name, tensor in ours.items()
    )


def broken(figures: Mapping[str, object]) -> list[str]:
    """The names of figures beyond their limits."""
    beyond = [name for name, limit in LIMITS.items() if not float(str(figures[name])) < limit]
    return beyond + [name for name, value in figures.items() if value is False]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="every fourth family; nothing is written"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    torch.set_num_threads(1)  # such small products only wait for further threads
    chosen = all_families()[:: 4 if arguments.quick else 1]
    measured: dict[str, dict[str, object]] = {}
    wrong = False
    print(f"{'':42}" + "".join(f"{name:>17}" for name in LIMITS) + "  resumed")
    for family in chosen:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(family, Path(folder))
        measured[family.name] = figures
        same = "yes" if figures["resumed bit for bit"] else "NO"
        line = "".join(f"{figures[column]:17.1e}" for column in LIMITS)
        print(f"{family.name:42}{line}  {same}", flush=True)
        if beyond := broken(figures):
            wrong = True
            print(f"  beyond its limit: {', '.join(beyond)}")
    if not arguments.quick and not wrong:
        results: dict[str, object] = {"limits": LIMITS, "families": measured}
        print("written:", write_results("families", "python -m benchmarks.families", results))
    sys.exit(wrong)


if __name__ == "__main__":
    main()
