"""One measurement of benchmarks/training.py, in a process of its own: python -m ... JOB-AS-JSON.

Warm-up: one step of the step's longest and shortest sample. Then the whole step is timed.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.process_memory import resident_gb
from benchmarks.training_data import RANK, Lengths, Sample, random_samples
from tinkersmith.engine.hardware.memory import keep_freed_memory

if TYPE_CHECKING:
    from tinkersmith.engine.model.base_model import BaseModel
    from tinkersmith.engine.model.lora import Adapter

Step = Callable[[list[Sample]], float]  # -> loss a completion token

LEARNING_RATE = 1e-4
TRL_SETTINGS: dict[str, dict] = {
    # 16 samples a step, and nothing cut: all else is TRL's default
    "TRL defaults": {
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
        "max_length": None,
    },
    "TRL batch 1, no checkpointing": {
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
        "max_length": None,
    },
    "TRL packed, no checkpointing": {
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": False,
        "packing": True,
        "padding_free": True,
        "max_length": 4096,
    },
}


def main() -> None:
    job = json.loads(sys.argv[1])
    what = job["what"]
    if what.startswith("tinkersmith"):
        keep_freed_memory()  # as the engine does at its start, before torch has threads
    import torch

    torch.set_num_threads(job["threads"])
    if what == "peak":
        answer = {"gflops": product_peak()}
    elif what == "exactness":
        answer = _exactness(Path(job["folder"]))
    else:
        answer = _measured(what, Path(job["folder"]), job["lengths"])
    print(json.dumps(answer))


def _measured(what: str, folder: Path, lengths: Lengths) -> dict[str, float]:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    samples = random_samples(lengths, vocabulary)
    by_length = sorted(samples, key=lambda sample: len(sample[0]))
    warm_up = [by_length[0], by_length[-1]]
    if what.startswith("tinkersmith"):
        step, loading = our_step(folder, output_layer=what != "tinkersmith")
    elif what.startswith("plain"):
        step, loading = plain_step(folder, 1 if what == "plain, batch 1" else 2), {}
    else:
        return _trl(folder, TRL_SETTINGS[what], warm_up, samples) | _memory(samples)
    first, _ = timed(step, warm_up)
    seconds, loss = timed(step, samples)
    answer = {"seconds": seconds, "loss": loss} | _memory(samples) | loading
    if loading:
        answer |= {"first_step": first, "same_step_later": timed(step, warm_up)[0]}
    return answer


def timed(work: Callable[[Any], Any], given: Any) -> tuple[float, Any]:
    """Seconds, and the answer."""
    start = time.perf_counter()
    answer = work(given)
    return time.perf_counter() - start, answer


def _memory(samples: list[Sample]) -> dict[str, float]:
    return {
        "tokens": sum(len(tokens) - 1 for tokens, _ in samples),
        "peak_memory_gb": resident_gb("VmHWM"),
    }


def datums(samples: list[Sample]):
    from tinkersmith.engine.messages import Datum

    return [
        Datum(
            tokens[:-1],
            {
                "target_tokens": tokens[1:],
                "weights": (np.arange(len(tokens) - 1) >= prompt).astype(np.float32),
            },
        )
        for tokens, prompt in samples
    ]


def graded(samples: list[Sample]) -> int:
    return sum(len(tokens) - 1 - prompt for tokens, prompt in samples)


def our_step(
    folder: Path,
    fast: "Callable[[BaseModel], BaseModel] | None" = None,  # None: as the engine does it
    *,
    output_layer: bool = False,  # whether it is trained, too
    dtype: str = "bfloat16",
) -> tuple[Step, dict[str, float]]:
    from tinkersmith.engine.messages import LoraConfig
    from tinkersmith.engine.model.adapters import new_adapter
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code

    start = time.perf_counter()
    base = load_base_model("random", folder, dtype)
    loading = {"load_seconds": time.perf_counter() - start}
    start = time.perf_counter()
    base = (fast or with_fast_code)(base)
    loading["compile_seconds"] = time.perf_counter() - start
    adapter = new_adapter(base, LoraConfig(RANK, 0, train_unembed=output_layer))
    return step_on(base, adapter), loading


def step_on(base: "BaseModel", adapter: "Adapter") -> Step:
    """A step of the engine's, its loss a token."""
    from tinkersmith.engine.messages import AdamParams
    from tinkersmith.engine.training.optimizer import new_state, optim_step
    from tinkersmith.engine.training.step import forward_backward

    state = new_state(adapter)

    def step(samples: list[Sample]) -> float:
        output = forward_backward(
            base, adapter, datums(samples), "cross_entropy", {}, only_graded=True
        )
        optim_step(adapter, state, AdamParams(learning_rate=LEARNING_RATE))
        return output.metrics["loss:sum"] / graded(samples)

    return step


def _peft(folder: Path, dtype: str = "bfloat16"):
    """transformers + peft; "all-linear" leaves the output layer out, as ours does here."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    lora = LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora)


def _labelled(samples: list[Sample]):
    """Padded to the longest: tokens, targets (-100: no loss) and mask, each (B, T)."""
    import torch

    longest = max(len(tokens) for tokens, _ in samples) - 1
    tokens_in = torch.zeros(len(samples), longest, dtype=torch.long)
    targets = torch.full((len(samples), longest), -100)
    mask = torch.zeros(len(samples), longest, dtype=torch.long)
    for row, (tokens, prompt) in enumerate(samples):
        count = len(tokens) - 1
        tokens_in[row, :count] = torch.from_numpy(tokens[:-1])
        targets[row, prompt:count] = torch.from_numpy(tokens[1 + prompt :])
        mask[row, :count] = 1
    return tokens_in, targets, mask


def plain_loss(model, samples: list[Sample]):
    import torch

    tokens, targets, mask = (part.to(model.device) for part in _labelled(samples))
    logits = model(input_ids=tokens, attention_mask=mask if len(samples) > 1 else None).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), reduction="sum"
    )


def own_loss(model, samples: list[Sample]):
    """The same by the model itself, which Liger's kernels do without a matrix of logits."""
    tokens, targets, mask = (part.to(model.device) for part in _labelled(samples))
    return model(
        input_ids=tokens,
        attention_mask=mask if len(samples) > 1 else None,
        labels=targets,
        shift_labels=targets,  # they are shifted
        num_items_in_batch=1,  # so that it is the sum
    ).loss


def plain_step(folder: Path, batch: int, dtype: str = "bfloat16") -> Step:
    import torch

    model = _peft(folder, dtype)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(samples: list[Sample]) -> float:
        samples = sorted(samples, key=lambda sample: len(sample[0]))
        total = 0.0
        for start in range(0, len(samples), batch):
            loss = plain_loss(model, samples[start : start + batch])
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total / graded(samples)

    return step


def _trl(
    folder: Path, settings: dict, warm_up: list[Sample], samples: list[Sample]
) -> dict[str, float]:
    """Tokenised data goes in: what SFTTrainer does with text before is no part of the step."""
    import torch
    from datasets import Dataset  # pyright: ignore[reportMissingImports] # optional
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    from tinkersmith.bundled import BUNDLED_MODELS

    class Watch(TrainerCallback):
        start = seconds = 0.0
        steps = 0

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            self.seconds = time.perf_counter() - self.start
            self.steps += 1

    tokenizer = AutoTokenizer.from_pretrained(BUNDLED_MODELS["tinkersmith/tiny-math"])
    model = _peft(folder)
    answer: dict[str, float] = {}
    for part in (warm_up, samples):
        # Trainer shifts: position i predicts token i + 1, the same pairs as ours.
        data = Dataset.from_list(
            [
                {
                    "input_ids": tokens.tolist(),
                    "completion_mask": [0] * (prompt + 1) + [1] * (len(tokens) - 1 - prompt),
                }
                for tokens, prompt in part
            ]
        )
        watch = Watch()
        with tempfile.TemporaryDirectory() as output:
            arguments = {
                "output_dir": output,
                "bf16": True,
                "use_cpu": not torch.cuda.is_available(),
                "learning_rate": LEARNING_RATE,
                "num_train_epochs": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
                "completion_only_loss": True,
                "gradient_accumulation_steps": 16,  # at most: an epoch's end makes the step
                **settings,
            }
            trainer = SFTTrainer(
                model=model,
                args=SFTConfig(**arguments),
                train_dataset=data,
                processing_class=tokenizer,
                callbacks=[watch],
            )
            loss = trainer.train().training_loss
        if watch.steps != 1:
            raise SystemExit(f"TRL made {watch.steps} steps of {len(part)} samples, not 1.")
        answer = {"seconds": watch.seconds, "loss": loss}
    return answer


def product_peak() -> float:
    """GFLOP/s of the best bf16 product among sizes that suit different machines."""
    import torch

    best = 0.0
    for rows, depth, columns in ((4096, 4096, 4096), (2048, 512, 4096), (4096, 512, 3072)):
        left = torch.randn(rows, depth).to(torch.bfloat16)
        right = torch.randn(columns, depth).to(torch.bfloat16)
        for _ in range(6):
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            seconds = time.perf_counter() - start
            best = max(best, 2 * rows * depth * columns / seconds / 1e9)
    return best


def _exactness(folder: Path) -> dict[str, float]:
    """fp32, the same adapter on both sides, B not zero: loss and every LoRA gradient."""
    import torch

    from tinkersmith.engine.messages import LoraConfig
    from tinkersmith.engine.model.adapters import new_adapter
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code
    from tinkersmith.engine.training.step import forward_backward

    lengths = [[40, 120], [90, 33], [5, 300], [64, 64]]
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    samples = random_samples(lengths, vocabulary)
    base = with_fast_code(load_base_model("random", folder, "float32"))
    adapter = new_adapter(base, LoraConfig(RANK, 0, train_unembed=False))
    plain = _peft(folder, "float32")
    theirs = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter
        for name, parameter in plain.named_parameters()
        if parameter.requires_grad
    }
    assert theirs.keys() == adapter.weights.keys()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.normal_(0, 0.01, generator=generator)
            theirs[name].copy_(weight)
    ours = forward_backward(
        base, adapter, datums(samples), "cross_entropy", {}, only_graded=True
    ).metrics["loss:sum"]
    loss = plain_loss(plain, samples[:1]) + sum(
        plain_loss(plain, [sample]) for sample in samples[1:]
    )
    loss.backward()
    worst = 0.0
    for name, weight in adapter.weights.items():
        gradient, expected = weight.grad, theirs[name].grad
        assert gradient is not None and expected is not None
        worst = max(worst, float((gradient - expected).norm() / expected.norm()))
    return {
        "fp32 loss, relative difference": abs(ours - loss.item()) / abs(loss.item()),
        "fp32 LoRA gradients, worst relative difference": worst,
        "fp32 LoRA tensors compared": len(theirs),
    }


if __name__ == "__main__":
    main()
