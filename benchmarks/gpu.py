"""Training on one GPU: Qwen3-8B, Qwen3-30B-A3B and Qwen3-0.6B shapes, random weights, in bf16.

Documents of 4,096 tokens, LoRA on all linear layers, against plain transformers + peft with and
without Liger's kernels and checkpointing. Every measurement has its own process, which makes the
model on the GPU: no weights are read. `--quick` runs tiny shapes wherever it is, as a check that
all works.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.results_file import write_results
from benchmarks.training_data import Lengths, random_samples, useful_flops

ROOT = Path(__file__).resolve().parent.parent
OURS, FLOAT8 = "tinkersmith", "tinkersmith, float8 base"
GRAPHS = "tinkersmith, CUDA graphs"
PLAIN, SPARING = "plain", "plain, checkpointing"
LIGER, LIGER_SPARING = "plain, Liger kernels", "plain, Liger kernels, checkpointing"
PEAK = 989e12  # bf16 operations a second of an H100 or H200, as its maker gives it
STEPS = 4  # after the first
_COMMON = {"head": 128, "LoRA rank": 32}
SHAPES: dict[str, dict[str, int]] = {
    "Qwen3-8B": _COMMON
    | {"hidden": 4096, "layers": 36, "heads": 32, "key/value heads": 8, "mlp": 12288},
    # "mlp" is that of the experts that a token has, for the count of operations
    "Qwen3-30B-A3B": _COMMON
    | {"hidden": 2048, "layers": 48, "heads": 32, "key/value heads": 4, "mlp": 8 * 768}
    | {"experts": 128, "experts a token": 8},
    "Qwen3-0.6B": _COMMON
    | {"hidden": 1024, "layers": 28, "heads": 16, "key/value heads": 8, "mlp": 3072},
}
TINY: dict[str, dict[str, int]] = {
    "tiny": {"head": 16, "LoRA rank": 4}
    | {"hidden": 64, "layers": 2, "heads": 4, "key/value heads": 2, "mlp": 96},
    "tiny, experts": {"head": 16, "LoRA rank": 4}
    | {"hidden": 64, "layers": 2, "heads": 4, "key/value heads": 2, "mlp": 2 * 48}
    | {"experts": 4, "experts a token": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--tokens", type=int, default=4096, help="of a document")
    parser.add_argument("--documents", type=int, default=8, help="a step")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, on a CPU too")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        print(json.dumps(measure(**json.loads(options.job))))
        return
    import torch

    if not options.quick and not torch.cuda.is_available():
        sys.exit("There is no GPU here; --quick checks on a CPU that the benchmark works.")
    shapes = TINY if options.quick else {name: SHAPES[name] for name in options.shapes}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job: dict[str, Any] = {"device": device, "vocabulary": 151_936}
    lengths = [[options.tokens // 4, options.tokens - options.tokens // 4]] * options.documents
    if options.quick:
        job["vocabulary"], lengths = 512, [[10, 40]] * 4
    figures: dict[str, Any] = {"documents": lengths, "shapes": shapes, "runs": {}}
    if device == "cuda":
        figures["gpu"] = torch.cuda.get_device_name()
    for name, shape in shapes.items():
        runs = figures["runs"][name] = {}
        for what in _contestants(shape, device):
            runs[what] = found = _run({**job, "what": what, "shape": shape, "lengths": lengths})
            print(f"{name:16} {what:26}", json.dumps(found), flush=True)
    target = "gpu_quick" if options.quick else "gpu"
    command = f"python -m benchmarks.gpu{' --quick' if options.quick else ''}"
    print("written:", write_results(target, command, figures))


def _contestants(shape: dict[str, int], device: str) -> list[str]:
    if device == "cpu":
        return [OURS, PLAIN, SPARING]
    ours = [OURS] if "experts" in shape else [OURS, GRAPHS, FLOAT8]
    return [*ours, PLAIN, SPARING, LIGER, LIGER_SPARING]


def _run(job: dict[str, Any]) -> dict[str, Any]:
    """In a process of its own; what fails, by want of memory above all, is a result, too."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--job", json.dumps(job)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:300]}
    return json.loads(done.stdout.splitlines()[-1])


def measure(
    what: str, shape: dict[str, int], vocabulary: int, lengths: Lengths, device: str
) -> dict[str, float]:
    """Losses a token of the first steps, and the median of the later ones' speed."""
    import torch

    samples = random_samples(lengths, vocabulary)
    make = _ours if what in (OURS, GRAPHS, FLOAT8) else _plain
    step = make(what, shape, vocabulary, device)

    def timed() -> tuple[float, float]:
        start = time.perf_counter()
        loss = step(samples)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start, loss

    first, loss = timed()
    later = [timed() for _ in range(STEPS)]
    seconds = median(one for one, _ in later)
    answer = {
        "tokens a second": sum(map(sum, lengths)) / seconds,
        "share of the bf16 peak": useful_flops(lengths, vocabulary, shape) / seconds / PEAK,
        "first step / a later one": first / seconds,
        "loss of the first step": loss,
        "loss of the last step": later[-1][1],
    }
    if device == "cuda":
        answer["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return answer


def _model(shape: dict[str, int], vocabulary: int, device: str, attention: str):
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape["hidden"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["key/value heads"],
        "head_dim": shape["head"],
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
    }
    if "experts" in shape:
        active = shape["experts a token"]
        config = Qwen3MoeConfig(
            **common,
            num_experts=shape["experts"],
            num_experts_per_tok=active,
            moe_intermediate_size=shape["mlp"] // active,
            norm_topk_prob=True,
        )
    else:
        config = Qwen3Config(**common, intermediate_size=shape["mlp"])
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )


def _ours(
    what: str, shape: dict[str, int], vocabulary: int, device: str
) -> Callable[[list[tuple[np.ndarray, int]]], float]:
    import torch

    from benchmarks.training_worker import step_on
    from tinkersmith.engine.kernels.choose import with_torch_kernels
    from tinkersmith.engine.messages import LoraConfig
    from tinkersmith.engine.model.adapters import new_adapter
    from tinkersmith.engine.model.attention import NAME
    from tinkersmith.engine.model.base_model import base_model_of
    from tinkersmith.engine.runtime.experimental import Experimental
    from tinkersmith.engine.runtime.fast_code import with_fast_code

    place = torch.device(device)
    experimental = Experimental(float8=what == FLOAT8, graphs=what == GRAPHS)
    if device == "cuda":
        experimental.check(place)
    model = _model(shape, vocabulary, device, NAME)
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        base = base_model_of(what, Path(folder), model, place, experimental.storage())
    base = with_fast_code(base, experimental) if device == "cuda" else with_torch_kernels(base)
    adapter = new_adapter(base, LoraConfig(shape["LoRA rank"], 0, train_unembed=False))
    return step_on(base, adapter)


def _plain(
    what: str, shape: dict[str, int], vocabulary: int, device: str
) -> Callable[[list[tuple[np.ndarray, int]]], float]:
    import torch
    from peft import LoraConfig, get_peft_model

    from benchmarks.training_worker import LEARNING_RATE, graded, own_loss, plain_loss

    model, loss_of = _model(shape, vocabulary, device, "sdpa"), plain_loss
    if what in (LIGER, LIGER_SPARING):
        _apply_liger(model)
        loss_of = own_loss
    rank = shape["LoRA rank"]
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    model.train()
    if what in (SPARING, LIGER_SPARING):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(samples: list[tuple[np.ndarray, int]]) -> float:
        total = 0.0
        for sample in samples:  # one at a time: documents of one length need no padding
            loss = loss_of(model, [sample])
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total / graded(samples)

    return step


def _apply_liger(model: Any) -> None:
    """Fused norms, rotary positions, SwiGLU, and the output layer with its loss in chunks."""
    from liger_kernel import transformers as liger  # pyright: ignore[reportMissingImports]

    if model.config.model_type == "qwen3":
        liger.apply_liger_kernel_to_qwen3(model=model)
    else:
        liger.apply_liger_kernel_to_qwen3_moe(model=model)


if __name__ == "__main__":
    main()
