"""How far a base in 8 bits is from bfloat16 and float32, on the bundled model and data.

Loss and LoRA gradients of one batch; then the loss of samples set apart, after some steps of
training. On a CPU, which computes what a GPU computes, slowly: this says nothing about speed.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch

from benchmarks.exactness import MODEL, fill
from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.load import load_samples
from tinkersmith.engine.gpu.float8 import FLOAT8, float8_products
from tinkersmith.engine.kernels.choose import Means, choose_kernels, with_torch_kernels
from tinkersmith.engine.messages import AdamParams, Datum, LoraConfig
from tinkersmith.engine.model.adapters import new_adapter
from tinkersmith.engine.model.base_model import BaseModel, load_base_model, memory_of_weights
from tinkersmith.engine.training.optimizer import new_state, optim_step
from tinkersmith.engine.training.step import forward, forward_backward
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenize import tokenize
from tinkersmith.text.tokenizer import load_tokenizer

DTYPES = ("float32", "bfloat16", "float8")
BATCH = 32
APART = 200  # samples whose loss is taken after training
LEARNING_RATE = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/word_problems.json")
    parser.add_argument("--steps", type=int, default=40)
    arguments = parser.parse_args()

    folder = BUNDLED_MODELS[MODEL]
    tokenizer = load_tokenizer(folder)
    template = choose_template("instruction", tokenizer, MODEL)
    samples = load_samples([arguments.data]).samples[: APART + BATCH * arguments.steps]
    datums = [
        Datum(
            tokens=one.tokens[:-1].astype(np.int64),
            inputs={
                "target_tokens": one.tokens[1:].astype(np.int64),
                "weights": one.weights[1:].astype(np.float32),
            },
        )
        for one in tokenize(samples, template, tokenizer, max_length=1024, truncate=True).sequences
    ]
    apart, trained = datums[:APART], datums[APART:]
    bases = {
        dtype: with_torch_kernels(load_base_model(MODEL, folder, dtype))
        for dtype in ("float32", "bfloat16")
    }
    narrow = load_base_model(MODEL, folder, "bfloat16", storage=FLOAT8)
    means = Means(products=float8_products(narrow))
    bases["float8"] = replace(narrow, kernels=choose_kernels(narrow, means))
    # Through the model's own layers, which round the weights to 8 bits and not what goes in.
    bases["float8, weights only"] = replace(narrow, kernels=None)
    figures: dict[str, object] = {"samples in the batch": BATCH}
    figures |= _one_batch(bases, trained[:BATCH])
    figures |= {"training steps": arguments.steps, "samples set apart": len(apart)}
    for dtype in DTYPES:
        before, after = _training(bases[dtype], trained, apart, arguments.steps)
        figures[f"loss per token before training, {dtype}"] = before
        figures[f"loss per token after training, {dtype}"] = after
    for dtype in ("float32", "bfloat16"):
        figures[f"bytes of weights, {dtype}"] = memory_of_weights(folder, dtype, "cpu")
    in_8_bits = memory_of_weights(folder, "bfloat16", "cpu", FLOAT8)
    figures["bytes of weights, float8"] = in_8_bits
    for name, value in figures.items():
        print(f"{name:75} {value}")
    print("written:", write_results("float8", "python -m benchmarks.float8", figures))


def _one_batch(bases: dict[str, BaseModel], datums: list[Datum]) -> dict[str, object]:
    losses: dict[str, float] = {}
    gradients: dict[str, dict[str, torch.Tensor]] = {}
    for name, base in bases.items():
        adapter = new_adapter(base, _config())
        fill(adapter)  # or A would get no gradient
        output = forward_backward(base, adapter, datums, "cross_entropy", {})
        losses[name] = output.metrics["loss:sum"]
        gradients[name] = {
            path: weight.grad for path, weight in adapter.weights.items() if weight.grad is not None
        }
    figures: dict[str, object] = {f"first loss, {name}": loss for name, loss in losses.items()}
    pairs = [("bfloat16", "float32"), *((name, "float32") for name in bases if "float8" in name)]
    for name, other in [*pairs, ("float8", "bfloat16")]:
        against = f"{name} against {other}"
        errors = sorted(
            float((gradients[name][path] - exact).norm() / exact.norm())
            for path, exact in gradients[other].items()
        )
        whole, exact = (
            torch.cat([gradient.flatten() for gradient in gradients[one].values()])
            for one in (name, other)
        )
        relative = abs(losses[name] - losses[other]) / losses[other]
        figures[f"first loss, relative difference, {against}"] = relative
        figures[f"LoRA gradients, worst relative difference, {against}"] = errors[-1]
        figures[f"LoRA gradients, median relative difference, {against}"] = float(np.median(errors))
        cosine = torch.cosine_similarity(whole.double(), exact.double(), dim=0)
        figures[f"LoRA gradients, cosine of the whole, {against}"] = float(cosine)
    return figures | {"LoRA tensors compared": len(gradients["float32"])}


def _training(
    base: BaseModel, trained: list[Datum], apart: list[Datum], steps: int
) -> tuple[float, float]:
    """The loss per token of `apart` before and after."""
    adapter = new_adapter(base, _config())
    state, before = new_state(adapter), 0.0
    for step in range(steps + 1):
        if step in (0, steps):
            loss = forward(base, adapter, apart, "cross_entropy", {}).metrics["loss:sum"]
            loss /= sum(float(datum.inputs["weights"].sum()) for datum in apart)
            if step == steps:
                return before, loss
            before = loss
        batch = trained[step * BATCH : (step + 1) * BATCH]
        forward_backward(base, adapter, batch, "cross_entropy", {})
        optim_step(adapter, state, AdamParams(learning_rate=LEARNING_RATE))
    raise AssertionError("no step was the last")


def _config() -> LoraConfig:
    return LoraConfig(rank=16, seed=0, train_attn=True, train_mlp=True, train_unembed=True)


if __name__ == "__main__":
    main()
