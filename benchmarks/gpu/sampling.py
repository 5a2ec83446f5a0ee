"""Greedy samples from a real shape: tokens a second. No token ends an answer."""

import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from benchmarks.gpu import paths
from benchmarks.gpu.models import filled_adapter, shaped_config, shaped_model
from benchmarks.gpu.runner import Figures
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.model.attention import NAME as OUR_ATTENTION
from tinkersmith.engine.sampling.sampler import sample

OURS, OURS_ADAPTED = "tinkersmith", "tinkersmith, with an adapter"
GENERATE, VLLM = "generate", "vLLM"
_WARM_UP = 4  # new tokens
Answers = Callable[[list[list[int]], int], int]  # prompts, new tokens -> tokens sampled


def speed(
    what: str,
    shape: dict[str, int],
    vocabulary: int,
    prompts: int,
    prompt_tokens: int,
    new_tokens: int,
    device: str,
) -> Iterator[Figures]:
    """Sample `new_tokens` after each prompt, all prompts at once, after a short warm-up."""
    start = time.perf_counter()
    make = {GENERATE: _generate, VLLM: _vllm}.get(what, _ours)
    answers = make(what, shape, vocabulary, device, prompt_tokens + new_tokens)
    rng = np.random.default_rng(1)
    token_ids = rng.integers(0, vocabulary, (prompts, prompt_tokens)).tolist()
    answers(token_ids, _WARM_UP)
    figures: Figures = {
        "prompts": prompts,
        "tokens a prompt": prompt_tokens,
        "new tokens a prompt": new_tokens,
        "seconds until ready": time.perf_counter() - start,
    }
    yield figures
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    sampled = answers(token_ids, new_tokens)
    seconds = time.perf_counter() - start  # the tokens are on the CPU, so the GPU has ended
    if sampled != prompts * new_tokens:
        raise ValueError(f"{sampled} tokens were sampled, not {prompts * new_tokens}")
    figures |= {
        "seconds": seconds,
        "tokens a second": sampled / seconds,
        "milliseconds a token of every prompt": 1e3 * seconds / new_tokens,
    }
    if device == "cuda" and what != VLLM:  # it takes its memory beforehand
        figures["peak memory, GB"] = torch.cuda.max_memory_allocated() / 1e9
    yield figures


def _ours(what: str, shape: dict[str, int], vocabulary: int, device: str, longest: int) -> Answers:
    base = paths.base_on(paths.DEFAULT, shaped_model(shape, vocabulary, device, OUR_ATTENTION))
    adapter = filled_adapter(base, shape["LoRA rank"]) if what == OURS_ADAPTED else None

    def answers(prompts: list[list[int]], new_tokens: int) -> int:
        requests = [
            SampleRequest(prompt, max_tokens=new_tokens, temperature=0, stop=[])
            for prompt in prompts
        ]
        return sum(len(result.sequences[0].tokens) for result in sample(base, adapter, requests))

    return answers


def _generate(
    what: str, shape: dict[str, int], vocabulary: int, device: str, longest: int
) -> Answers:
    """transformers' `generate`, all prompts in one batch; they are equally long: no padding."""
    model: Any = shaped_model(shape, vocabulary, device, "sdpa").eval()

    @torch.inference_mode()
    def answers(prompts: list[list[int]], new_tokens: int) -> int:
        ids = torch.tensor(prompts, device=device)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings
        )
        return output[:, ids.shape[1] :].cpu().numel()

    return answers


def _vllm(what: str, shape: dict[str, int], vocabulary: int, device: str, longest: int) -> Answers:
    """vLLM with random weights of its own. Written for vLLM 0.33."""
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        config = shaped_config(shape, vocabulary)
        config.architectures = ["Qwen3ForCausalLM"]
        config.save_pretrained(folder)
        llm = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=longest + 1,
        )

    def answers(prompts: list[list[int]], new_tokens: int) -> int:
        settings = SamplingParams(
            temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False
        )
        inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = llm.generate(inputs, settings, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in outputs)

    return answers
