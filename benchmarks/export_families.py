"""A LoRA in the cloud's names on a tiny model of each family: what its two exports compute.

For each family, and for its quantised form where the published models have one: log-probabilities
of the merged model and of the adapter in peft, both loaded by plain transformers in float32,
against base and LoRA added up in float64. Beside it, how many of the trained matrices the adapter
has, and how many of its tensors vLLM's loader takes by name and shape. Exits with 1 if a difference
is over its limit, or a matrix is missing.

python -m benchmarks.export_families [--quick], then python -m benchmarks.family_tables
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils.logging import disable_progress_bar

from benchmarks.results_file import write_results
from tests.support.export_families import (
    FAMILIES,
    RANK,
    TOKENS,
    load_plain,
    logprobs,
    make_cloud_lora,
    make_family,
)
from tests.support.exports import export
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.verify import verify_export
from tinkersmith.export.vllm_shapes import check_vllm_folder
from tinkersmith.peft_format import ADAPTER_WEIGHTS

LIMIT = 1e-5
QUICK = ("Qwen3", "gpt-oss")
# What peft cannot load: the layers to leave out so that it can, or all.
PEFT_LEAVES = {("Nemotron-3", False): "out_proj", ("Kimi K2", True): "all"}


def measure(name: str, quantised: bool, folder: Path) -> dict[str, Any]:
    """Differences of the merged model and of the adapter in peft, and what the LoRA changes."""
    base = folder / "base"
    model = make_family(base, name, quantised=quantised)
    before = logprobs(model)
    trained = make_cloud_lora(folder / "lora", name, model)
    wanted = logprobs(model)
    merged = export(folder / "lora", base, folder / "merged", merged=True, dtype="float32")
    figures: dict[str, Any] = {
        "base": FAMILIES[name].quantised if quantised else "bfloat16",
        "changed by the LoRA": float((wanted - before).abs().max()),
        "merged": float((logprobs(load_plain(merged)) - wanted).abs().max()),
        "adapter in peft": None,
        "adapter without": "",
        "trained matrices": sum(_matrices(trained, key) for key in trained if "lora_B" in key),
    }
    whole = export(folder / "lora", base, folder / "whole", merged=False)
    tensors = load_file(whole / ADAPTER_WEIGHTS)
    # Every trained matrix has this rank, and those that share a pair of tensors add up.
    ranks = sum(tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key)
    figures["matrices in the adapter"] = ranks / RANK
    check = check_vllm_folder(whole, read_base(base))
    figures["vLLM takes"] = f"{check.accepted}/{check.tensors}"
    figures["vLLM says"] = list(check.problems)
    leave = PEFT_LEAVES.get((name, quantised), "")
    if leave == "all":
        return figures
    lora = folder / "lora"
    if leave:
        model = make_family(base, name, quantised=quantised)
        lora = folder / "less"
        make_cloud_lora(lora, name, model, leave=leave)
        wanted = logprobs(model)
    adapter = export(lora, base, folder / "adapter", merged=False)
    result = verify_export(adapter, [TOKENS], [[None, *wanted.tolist()]], base_folder=base)
    return {**figures, "adapter in peft": result.largest, "adapter without": leave}


def _matrices(trained: dict[str, torch.Tensor], key: str) -> int:
    """How many matrices a tensor of the cloud's LoRA stands for: one, or one for each expert."""
    sides = trained[key], trained[key.replace("lora_B", "lora_A")]
    if not all(side.numel() for side in sides):
        return 0  # what this kind of expert does not have
    return max(side.shape[0] for side in sides) if sides[0].ndim == 3 else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two families; nothing is written")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    disable_progress_bar()
    torch.set_num_threads(1)  # such small products only wait for further threads
    measured: list[dict[str, object]] = []
    wrong = False
    for name, family in FAMILIES.items():
        if arguments.quick and name not in QUICK:
            continue
        for quantised in (False, True) if family.quantised else (False,):
            with tempfile.TemporaryDirectory() as folder:
                figures = measure(name, quantised, Path(folder))
            measured.append({"family": name, **figures})
            differences = [figures["merged"], figures["adapter in peft"]]
            shown = ["-" if one is None else f"{one:.1e}" for one in differences]
            counts = [figures[key] for key in ("trained matrices", "matrices in the adapter")]
            print(
                f"{name:34}{figures['base']!s:10}{shown[0]:>10}{shown[1]:>10}"
                f"{counts[0]:>6} matrices{figures['vLLM takes']:>10} in vLLM",
                flush=True,
            )
            if counts[0] != counts[1]:
                wrong = True
                print(f"  the adapter has {counts[1]:g} of {counts[0]} trained matrices")
            if any(isinstance(one, float) and not one < LIMIT for one in differences):
                wrong = True
                print(f"  over the limit of {LIMIT:g}")
    if not arguments.quick and not wrong:
        results: dict[str, object] = {"limit": LIMIT, "tokens": len(TOKENS), "exports": measured}
        path = write_results("export_families", "python -m benchmarks.export_families", results)
        print("written:", path)
    sys.exit(wrong)


if __name__ == "__main__":
    main()
