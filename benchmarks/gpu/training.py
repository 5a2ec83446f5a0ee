"""Training steps of real shapes: tokens a second, share of the GPU's peak, peak memory.

Each contestant begins with the same random model and makes the same steps: some documents forward
and backward, then AdamW. Ours packs documents; the plain loop takes one at a time, which needs no
padding.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from benchmarks.gpu import paths
from benchmarks.gpu.models import shaped_model
from benchmarks.gpu.runner import Figures
from benchmarks.training_data import Lengths, Sample, random_samples, useful_flops
from benchmarks.training_worker import LEARNING_RATE, graded, own_loss, plain_loss, step_on
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.attention import NAME as OUR_ATTENTION

PEAK = 989e12  # bf16 operations a second of an H100 or H200, as its maker gives it
STEPS = 3  # after the first
OURS = "tinkersmith"
FLOAT8 = "tinkersmith, float8 base"
GRAPHS = "tinkersmith, CUDA graphs"
UNCOMPILED = "tinkersmith, nothing compiled"
ATTENTION_ONLY = ", attention only"  # of models whose experts' LoRAs take much memory
OURS_ATTENTION = OURS + ATTENTION_ONLY
PLAIN, SPARING = "plain", "plain, checkpointing"
SPARING_ATTENTION = SPARING + ATTENTION_ONLY
LIGER, LIGER_SPARING = "plain, Liger kernels", "plain, Liger kernels, checkpointing"
TRL = "TRL"
# The others take the default path.
_PATHS = {FLOAT8: paths.FLOAT8, GRAPHS: paths.GRAPHS, UNCOMPILED: paths.VARLEN}


@dataclass(frozen=True, slots=True)
class Contestant:
    step: Callable[[list[Sample]], float]  # -> loss a completion token
    trained: Sequence[nn.Parameter]
    way: str  # through the model, for a reader of the results


def speed(
    what: str, shape: dict[str, int], vocabulary: int, lengths: Lengths, device: str
) -> Iterator[Figures]:
    """Losses a token of the first and the last step, and the median speed of all but the first.

    Documents that do not fit into memory are halved, down to a quarter of 1,024 tokens.
    """
    start = time.perf_counter()
    make = _ours if what.startswith(OURS) else _plain
    contestant = make(what, shape, vocabulary, device)
    _finish(device)
    figures: Figures = {
        "way": contestant.way,
        "seconds until the model is ready": time.perf_counter() - start,
    }
    yield figures
    samples, (first, loss), lengths = _first_step(contestant, lengths, vocabulary, device)
    figures |= {
        "documents": lengths,
        "seconds of the first step": first,
        "loss of the first step": loss,
    }
    yield figures
    times = []
    for _ in range(STEPS):
        seconds, loss = _timed(contestant.step, samples, device)
        times.append(seconds)
        figures |= _speed(times, lengths, device)
        if device == "cuda" and not what.endswith(ATTENTION_ONLY):  # fewer operations
            figures |= _share(figures, lengths, vocabulary, shape)
        figures["loss of the last step"] = loss
        yield figures


def _first_step(
    contestant: Contestant, lengths: Lengths, vocabulary: int, device: str
) -> tuple[list[Sample], tuple[float, float], Lengths]:
    """A step with documents that fit into memory: its samples, its time and loss, their lengths."""
    while True:
        samples = random_samples(lengths, vocabulary)
        try:
            return samples, _timed(contestant.step, samples, device), lengths
        except torch.OutOfMemoryError:
            if max(map(sum, lengths)) <= 256:
                raise
        # Behind the handler: the error holds what was in memory.
        lengths = [[prompt // 2, completion // 2] for prompt, completion in lengths]
        for weight in contestant.trained:
            weight.grad = None
        gc.collect()
        torch.cuda.empty_cache()


def _timed(
    step: Callable[[list[Sample]], float], samples: list[Sample], device: str
) -> tuple[float, float]:
    """Seconds, and the loss."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    loss = step(samples)
    _finish(device)
    return time.perf_counter() - start, loss


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _speed(times: Sequence[float], lengths: Lengths, device: str) -> Figures:
    figures: Figures = {
        "seconds of the later steps": list(times),
        "tokens a second": sum(map(sum, lengths)) / median(times),
    }
    if device == "cuda":
        figures["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    return figures


def _share(figures: Figures, lengths: Lengths, vocabulary: int, shape: dict[str, int]) -> Figures:
    seconds = median(figures["seconds of the later steps"])
    return {"share of the bf16 peak": useful_flops(lengths, vocabulary, shape) / seconds / PEAK}


def _ours(what: str, shape: dict[str, int], vocabulary: int, device: str) -> Contestant:
    model = shaped_model(shape, vocabulary, device, OUR_ATTENTION)
    base = paths.base_on(_PATHS.get(what, paths.DEFAULT), model)
    config = LoraConfig(
        shape["LoRA rank"], 0, train_mlp=what != OURS_ATTENTION, train_unembed=False
    )
    adapter = new_adapter(base, config)
    return Contestant(step_on(base, adapter), list(adapter.weights.values()), paths.described(base))


def _plain(what: str, shape: dict[str, int], vocabulary: int, device: str) -> Contestant:
    """transformers + peft; "all-linear" trains experts and their router, not the output layer."""
    model, loss_of = shaped_model(shape, vocabulary, device, "sdpa"), plain_loss
    if what in (LIGER, LIGER_SPARING):
        _apply_liger(model)
        loss_of = own_loss
    model = _with_lora(model, shape, what)
    model.train()
    if what in (SPARING, SPARING_ATTENTION, LIGER_SPARING):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def step(samples: list[Sample]) -> float:
        total = 0.0
        for sample in samples:  # one at a time: no padding
            loss = loss_of(model, [sample])
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        return total / graded(samples)

    return Contestant(step, trained, "transformers and peft")


def _with_lora(model: PreTrainedModel, shape: dict[str, int], what: str) -> Any:
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    config = PeftConfig(
        r=shape["LoRA rank"],
        lora_alpha=shape["LoRA rank"],
        target_modules=attention if what.endswith(ATTENTION_ONLY) else "all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _apply_liger(model: Any) -> None:
    """Fused norms, rotary positions, SwiGLU, and the output layer with its loss in chunks."""
    from liger_kernel import transformers as liger  # pyright: ignore[reportMissingImports]

    if model.config.model_type == "qwen3":
        liger.apply_liger_kernel_to_qwen3(model=model)
    else:
        liger.apply_liger_kernel_to_qwen3_moe(model=model)


def trl(
    what: str, shape: dict[str, int], vocabulary: int, lengths: Lengths, device: str
) -> Iterator[Figures]:
    """TRL's trainer, one document at a time, with its default of checkpointing.

    Tokenised data goes in: what the trainer does with text before is no part of a step.
    """
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    class Watch(TrainerCallback):
        start = 0.0
        times: list[float] = []  # noqa: RUF012 # of this one watch

        def on_step_begin(self, args, state, control, **kwargs) -> None:
            _finish(device)
            self.start = time.perf_counter()

        def on_step_end(self, args, state, control, **kwargs) -> None:
            _finish(device)
            self.times.append(time.perf_counter() - self.start)

    samples = random_samples(lengths, vocabulary) * (1 + STEPS)
    data = Dataset.from_list(
        [
            {
                "input_ids": tokens.tolist(),
                # It shifts: position i predicts token i + 1.
                "completion_mask": [0] * (prompt + 1) + [1] * (len(tokens) - 1 - prompt),
            }
            for tokens, prompt in samples
        ]
    )
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model=_with_lora(shaped_model(shape, vocabulary, device, "sdpa"), shape, what),
            args=SFTConfig(
                output_dir=folder,
                bf16=True,
                use_cpu=device == "cpu",
                learning_rate=LEARNING_RATE,
                max_steps=1 + STEPS,
                per_device_train_batch_size=1,
                gradient_accumulation_steps=len(lengths),
                max_length=None,
                completion_only_loss=True,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=data,
            processing_class=_tokenizer(),
            callbacks=[watch],
        )
        loss = trainer.train().training_loss
    first, *later = watch.times
    figures: Figures = {
        "documents": lengths,
        "seconds of the first step": first,
        "mean loss of all steps": loss,
    }
    figures |= _speed(later, lengths, device)
    if device == "cuda":
        figures |= _share(figures, lengths, vocabulary, shape)
    yield figures


def _tokenizer() -> PreTrainedTokenizerFast:
    """The trainer wants one; nothing is tokenised with it."""
    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")
