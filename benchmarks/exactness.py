"""How far the engine is from plain `transformers` + `peft`, in fp32, on the bundled model and data.

Loss and LoRA gradients of the first batch, logits of both exports, greedy samples token for token.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.results_file import write_results
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.data.load import load_samples
from tinkersmith.engine.messages import Datum, LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import adapter_state, new_adapter, peft_config
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.step import forward_backward
from tinkersmith.export.adapter import read_layers
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.merge import write_merged
from tinkersmith.text.templates import choose_template
from tinkersmith.text.tokenize import tokenize
from tinkersmith.text.tokenizer import load_tokenizer

MODEL = "tinkersmith/tiny-math"
BATCH = 32
PROMPTS = 50
NEW_TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/word_problems.json")
    arguments = parser.parse_args()

    folder = BUNDLED_MODELS[MODEL]
    tokenizer = load_tokenizer(folder)
    template = choose_template("instruction", tokenizer, MODEL)
    samples = load_samples([arguments.data]).samples
    tokenized = tokenize(
        samples[:BATCH], template, tokenizer, max_length=1024, truncate=True
    ).sequences
    prompts = [template.render_prompt(one) for one in samples[:PROMPTS]]

    base = with_fast_code(load_base_model(MODEL, folder, dtype="float32", device="cpu"))
    adapter = new_adapter(
        base, LoraConfig(rank=16, seed=0, train_attn=True, train_mlp=True, train_unembed=True)
    )
    fill(adapter)
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as temporary:
        exported = Path(temporary) / "adapter"
        exported.mkdir()
        save_file(adapter_state(adapter), exported / "adapter_model.safetensors")
        config = peft_config(base, adapter, str(folder))
        (exported / "adapter_config.json").write_text(json.dumps(config))
        merged = Path(temporary) / "merged"
        merged.mkdir()
        files = read_base(folder)
        write_merged(read_layers(exported, files), files, merged, dtype="float32")

        plain_base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        plain = PeftModel.from_pretrained(plain_base, exported, is_trainable=True).eval()
        merged_model = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()

        figures |= _gradients(base, adapter, plain, tokenized)
        figures |= _logits(base, adapter, plain, merged_model, tokenized)
        figures |= _greedy(base, adapter, plain, AutoTokenizer.from_pretrained(folder), prompts)
    for name, value in figures.items():
        print(f"{name:45} {value}")
    print("written:", write_results("exactness", "python -m benchmarks.exactness", figures))


def fill(adapter: Adapter) -> None:
    """Random B matrices: with B = 0, as a new adapter has it, A would get no gradient."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            if name.endswith("lora_B"):
                weight.normal_(0, 0.01, generator=generator)


def _gradients(base, adapter: Adapter, plain, tokenized) -> dict[str, object]:
    datums = [
        Datum(
            tokens=one.tokens[:-1].astype(np.int64),
            inputs={
                "target_tokens": one.tokens[1:].astype(np.int64),
                "weights": one.weights[1:].astype(np.float32),
            },
        )
        for one in tokenized
    ]
    ours = forward_backward(base, adapter, datums, "cross_entropy", {}).metrics["loss:sum"]
    theirs = 0.0
    for one in tokenized:
        tokens = torch.from_numpy(one.tokens.astype(np.int64))[None]
        logits = plain(tokens[:, :-1]).logits.float()
        logprobs = torch.log_softmax(logits, -1).gather(-1, tokens[:, 1:, None])[0, :, 0]
        loss = -(logprobs * torch.from_numpy(one.weights[1:].astype(np.float32))).sum()
        loss.backward()
        theirs += loss.item()
    plain_gradients = {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): parameter.grad
        for name, parameter in plain.named_parameters()
        if parameter.grad is not None
    }
    assert plain_gradients.keys() == adapter.weights.keys()
    worst = 0.0
    for name, weight in adapter.weights.items():
        assert weight.grad is not None
        difference = (weight.grad - plain_gradients[name]).norm() / plain_gradients[name].norm()
        worst = max(worst, difference.item())
    return {
        "samples in the batch": len(tokenized),
        "first loss, engine": ours,
        "first loss, transformers + peft": theirs,
        "first loss, relative difference": abs(ours - theirs) / abs(theirs),
        "LoRA gradients, worst relative difference": worst,
        "LoRA tensors compared": len(adapter.weights),
    }


@torch.no_grad()
def _logits(base, adapter: Adapter, plain, merged_model, tokenized) -> dict[str, object]:
    by_adapter = by_merged = 0.0
    for one in tokenized:
        tokens = torch.from_numpy(one.tokens.astype(np.int64))
        hidden = base.hidden(tokens, [len(tokens)], adapter)
        ours = base.logits(hidden, adapter).float()
        by_adapter = max(by_adapter, (plain(tokens[None]).logits[0] - ours).abs().max().item())
        by_merged = max(by_merged, (merged_model(tokens[None]).logits[0] - ours).abs().max().item())
    return {
        "logits, adapter export, largest difference": by_adapter,
        "logits, merged export, largest difference": by_merged,
    }


def _greedy(base, adapter: Adapter, plain, tokenizer, prompts: list[str]) -> dict[str, object]:
    encoded = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    requests = [
        SampleRequest(prompt=tokens, max_tokens=NEW_TOKENS, temperature=0.0) for tokens in encoded
    ]
    results = sample(base, adapter, requests)
    equal = tokens_compared = 0
    for tokens, result in zip(encoded, results, strict=True):
        output = plain.generate(
            input_ids=torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
        expected = output[0, len(tokens) :].tolist()
        equal += expected == result.sequences[0].tokens
        tokens_compared += len(expected)
    return {
        "greedy prompts": len(prompts),
        "greedy prompts equal token for token": equal,
        "greedy tokens compared": tokens_compared,
    }


if __name__ == "__main__":
    main()
