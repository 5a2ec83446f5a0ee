"""One measurement of benchmarks/sampling.py, in a process of its own: python -m ... JOB-AS-JSON.

Greedy, and no token ends an answer: its number of tokens is given. Warm-up: the longest and the
shortest prompt. `generate` gets its prompts sorted by length, which is best for it; it answers a
batch until the longest of its answers is done, as it must.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process_memory import resident_gb
from tinkersmith.engine.hardware.memory import keep_freed_memory

Prompt = tuple[list[int], int]  # tokens, and how many are to be sampled
Answers = Callable[[list[Prompt]], list[list[int]]]


def main() -> None:
    job = json.loads(sys.argv[1])
    what, folder = job["what"], Path(job["folder"])
    if what == "tinkersmith":
        keep_freed_memory()  # as the engine does at its start, before torch has threads
    import torch

    torch.set_num_threads(job["threads"])
    if what == "exactness":
        print(json.dumps(_exactness(folder)))
        return
    if what == "tinkersmith":
        answers = our_answers(folder)
    elif what == "continuous batching":
        answers = _continuous(folder)
    else:
        answers = generate_answers(folder, int(what.rsplit(" ", 1)[1]))
    prompts = random_prompts(job["lengths"], folder)
    by_length = sorted(prompts, key=lambda prompt: len(prompt[0]))
    answers([(tokens, 4) for tokens, _ in (by_length[0], by_length[-1])])
    start = time.perf_counter()
    found = answers(prompts)
    seconds = time.perf_counter() - start
    for (_, wanted), tokens in zip(prompts, found, strict=True):
        if len(tokens) != wanted:
            raise SystemExit(f"{len(tokens)} tokens were sampled where {wanted} were wanted.")
    print(
        json.dumps(
            {
                "seconds": seconds,
                "tokens": sum(wanted for _, wanted in prompts),
                "peak_memory_gb": resident_gb("VmHWM"),
            }
        )
    )


def random_prompts(lengths: list[list[int]], folder: Path) -> list[Prompt]:
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    generator = np.random.default_rng(1)
    return [(generator.integers(0, vocabulary, size).tolist(), wanted) for size, wanted in lengths]


def our_answers(folder: Path, dtype: str = "bfloat16") -> Answers:
    from tinkersmith.engine.messages import SampleRequest
    from tinkersmith.engine.model.base_model import load_base_model
    from tinkersmith.engine.runtime.fast_code import with_fast_code
    from tinkersmith.engine.sampling.sampler import sample

    base = with_fast_code(load_base_model("random", folder, dtype))

    def answers(prompts: list[Prompt]) -> list[list[int]]:
        requests = [
            SampleRequest(tokens, max_tokens=wanted, temperature=0, stop=[])
            for tokens, wanted in prompts
        ]
        return [result.sequences[0].tokens for result in sample(base, None, requests)]

    return answers


def _plain(folder: Path, dtype: str = "bfloat16", **settings: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), **settings)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def generate_answers(folder: Path, batch: int, dtype: str = "bfloat16") -> Answers:
    import torch

    model = _plain(folder, dtype)

    @torch.inference_mode()
    def answers(prompts: list[Prompt]) -> list[list[int]]:
        found: list[list[int]] = [[]] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index][0]))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            longest = max(len(prompts[index][0]) for index in part)
            ids = torch.zeros(len(part), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, index in enumerate(part):
                tokens = prompts[index][0]
                ids[row, longest - len(tokens) :] = torch.tensor(tokens)
                mask[row, longest - len(tokens) :] = 1
            wanted = max(prompts[index][1] for index in part)
            output = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=wanted
            )
            for row, index in enumerate(part):
                found[index] = output[row, longest : longest + prompts[index][1]].tolist()
        return found

    return answers


def _continuous(folder: Path) -> Answers:
    """transformers' continuous batching has one limit for all requests of a call."""
    from transformers import GenerationConfig

    model = _plain(folder, attn_implementation="sdpa")

    def answers(prompts: list[Prompt]) -> list[list[int]]:
        found: list[list[int]] = []
        config = GenerationConfig(
            max_new_tokens=max(wanted for _, wanted in prompts),
            do_sample=False,
            eos_token_id=-1,
            pad_token_id=0,
            use_cuda_graph=False,
        )
        outputs = model.generate_batch(
            inputs=[tokens for tokens, _ in prompts], generation_config=config, progress_bar=False
        )
        by_prompt = {tuple(one.prompt_ids): one.generated_tokens for one in outputs.values()}
        for tokens, wanted in prompts:
            found.append(list(by_prompt[tuple(tokens)])[:wanted])
        return found

    return answers


def _exactness(folder: Path) -> dict[str, int]:
    """Greedy answers in fp32, ours in one go and those of `generate` one by one."""
    prompts = random_prompts([[40, 24], [7, 24], [150, 24], [1, 24], [90, 24], [64, 24]], folder)
    ours = our_answers(folder, "float32")(prompts)
    theirs = generate_answers(folder, 1, "float32")(prompts)
    equal = sum(one == other for one, other in zip(ours, theirs, strict=True))
    return {"fp32 greedy answers": len(prompts), "of them equal to generate's": equal}


if __name__ == "__main__":
    main()
