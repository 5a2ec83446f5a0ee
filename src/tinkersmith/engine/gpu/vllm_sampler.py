"""Sampling by vLLM on a GPU; the engine samples itself what vLLM cannot do.

Experimental: written for vLLM 0.33, and never run on a GPU. Its log-probabilities are compared with
the engine's, once for the base model and once for each adapter. Where it fails or disagrees, a
warning says so and the engine samples itself.
"""

import gc
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.hardware.memory import free_memory, return_freed_memory
from tinkersmith.engine.log import log
from tinkersmith.engine.messages import Answering, SampledSequence, SampleRequest, SampleResult
from tinkersmith.engine.model.adapters import save_adapter
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.prompt_scores import asks_about_prompt
from tinkersmith.engine.sampling.rows import ends_of
from tinkersmith.engine.sampling.sampler import sample

_SHARE = 0.5  # of the GPU's free memory; the rest is for training
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of max_lora_rank that vLLM allows
_LEAST_RANK = 64  # so that another adapter seldom needs another vLLM
_TOP = 20  # most likely tokens of a position that it gives by default, at most
_COLDEST = 0.01  # a lower temperature it would raise to this
_CHECKED_TOKENS = 8
_TOLERANCE = 0.1  # of a log-probability, on average: bfloat16 in two programs


def check_installed() -> None:
    """Check that vLLM can be imported.

    Raises:
        Refused: it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise Refused(
            "--sampler vllm needs vLLM, which is not installed. Install it (pip install vllm), or "
            "leave --sampler out."
        )


@dataclass(slots=True)
class _Loaded:
    """One vLLM, on the base model that was last sampled from."""

    base_name: str
    llm: Any
    rank: int  # the largest that it can have
    adapters: dict[str, Any] = field(default_factory=dict)  # by sampler: a LoRARequest or None
    disagreeing: set[str] = field(default_factory=set)  # samplers that it gets wrong


class VllmSampler:
    """A `Sampler` that keeps vLLM loaded for one base model at a time, with files of adapters."""

    groups_adapters = False

    def __init__(self) -> None:
        self._loaded: _Loaded | None = None
        self._failed: set[tuple[str, int]] = set()  # bases and ranks
        self._folders: dict[str, tempfile.TemporaryDirectory] = {}
        self._made = 0
        self._memory = CacheMemory()  # of what the engine samples itself

    def batch(
        self, base: BaseModel, weights_id: str, decode: Callable[[list[int]], str] | None
    ) -> "VllmBatch":
        own = Batch(base, decode, self._memory)
        return VllmBatch(
            own, lambda adapter, requests: self.answers(base, weights_id, adapter, requests)
        )

    def answers(
        self,
        base: BaseModel,
        sampler_id: str,
        adapter: Adapter | None,
        requests: Sequence[SampleRequest],
    ) -> list[SampleResult | None]:
        """vLLM's answer to each request; None where it cannot give one."""
        answers: list[SampleResult | None] = [None] * len(requests)
        chosen = [i for i, request in enumerate(requests) if _takes(base, request)]
        rank = 0 if adapter is None else adapter.config.rank
        if not chosen or rank > _RANKS[-1]:
            return answers
        if (loaded := self._vllm(base, rank)) is None:
            return answers
        try:
            if sampler_id not in loaded.adapters:
                self._add(loaded, base, sampler_id, adapter)
            if sampler_id in loaded.disagreeing:
                return answers
            lora = loaded.adapters[sampler_id]
            results = _generate(base, loaded.llm, lora, [requests[i] for i in chosen])
        except Exception as error:
            self._give_up(base, loaded.rank, error)
            return answers
        for i, result in zip(chosen, results, strict=True):
            if _finite(result):  # else the engine's sampler says what is wrong
                answers[i] = result
        return answers

    def forget(self, weights_id: str) -> None:
        """Remove the adapter's files of a sampling client that has ended."""
        if self._loaded is not None:
            self._loaded.adapters.pop(weights_id, None)
            self._loaded.disagreeing.discard(weights_id)
        if weights_id in self._folders:
            self._folders.pop(weights_id).cleanup()

    def _vllm(self, base: BaseModel, rank: int) -> _Loaded | None:
        loaded = self._loaded
        if loaded is not None and loaded.base_name == base.name and loaded.rank >= rank:
            return loaded
        largest = next(allowed for allowed in _RANKS if allowed >= max(rank, _LEAST_RANK))
        if (base.name, largest) in self._failed:
            return None
        self._unload()
        try:
            llm = _load(base, largest)
        except Exception as error:
            self._give_up(base, largest, error)
            return None
        self._loaded = _Loaded(base.name, llm, largest)
        log.info("%s is sampled from by vLLM", base.name)
        return self._loaded

    def _unload(self) -> None:
        if self._loaded is not None:
            self._loaded = None
            gc.collect()
            return_freed_memory()

    def _give_up(self, base: BaseModel, rank: int, error: Exception) -> None:
        log.warning(
            "%s is sampled from without vLLM, which failed: %s", base.name, _first_line(error)
        )
        self._failed.add((base.name, rank))
        self._unload()

    def _add(
        self, loaded: _Loaded, base: BaseModel, sampler_id: str, adapter: Adapter | None
    ) -> None:
        request = None
        if adapter is not None:
            from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

            if sampler_id not in self._folders:
                self._folders[sampler_id] = tempfile.TemporaryDirectory(prefix="tinkersmith-")
                save_adapter(base, adapter, Path(self._folders[sampler_id].name))
            self._made += 1  # vLLM knows adapters by their numbers
            request = LoRARequest(sampler_id, self._made, self._folders[sampler_id].name)
        loaded.adapters[sampler_id] = request
        try:
            off = _disagreement(base, adapter, loaded.llm, request)
            reason = f"log-probabilities differ by {off:.2f}" if not off < _TOLERANCE else ""
        except Exception as error:  # some models' output layers cannot have an adapter there
            reason = _first_line(error)
        if reason:
            loaded.disagreeing.add(sampler_id)
            log.warning("%s is sampled from without vLLM: %s", sampler_id, reason)


class VllmBatch:
    """Requests that vLLM answers together, in one step; the engine answers what it cannot."""

    def __init__(
        self,
        own: Batch,
        answers: Callable[[Adapter | None, Sequence[SampleRequest]], list[SampleResult | None]],
    ) -> None:
        self._own, self._answers = own, answers
        self._adapter: Adapter | None = None  # of all requests
        self._joined: list[Answering] = []
        self._whose: dict[Answering, Answering] = {}  # the engine's own -> what `add` gave

    @property
    def sequences(self) -> int:
        return self._own.sequences + sum(one.request.num_samples for one in self._joined)

    @property
    def is_ready(self) -> bool:
        return bool(self._joined) or self._own.is_ready

    def add(self, request: SampleRequest, adapter: Adapter | None) -> Answering:
        self._adapter = adapter
        answering = Answering(request, SampleResult([]))
        self._joined.append(answering)
        return answering

    def step(self) -> list[Answering]:
        joined, self._joined = self._joined, []
        wanted = [one for one in joined if not one.gives_up]
        finished = [one for one in joined if one.gives_up]
        answers = self._answers(self._adapter, [one.request for one in wanted]) if wanted else []
        for answering, answer in zip(wanted, answers, strict=True):
            if answer is not None:
                answering.result = answer
                finished.append(answering)
            else:
                self._whose[self._own.add(answering.request, self._adapter)] = answering
        for own, answering in self._whose.items():
            own.cancelled = answering.cancelled
        for own in self._own.step() if self._own.sequences else []:
            answering = self._whose.pop(own)
            answering.result, answering.error = own.result, own.error
            finished.append(answering)
        return finished


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load(base: BaseModel, rank: int) -> Any:
    # In this process: one of its own would outlive an engine that is killed.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM  # pyright: ignore[reportMissingImports]

    return LLM(
        model=str(base.folder),
        skip_tokenizer_init=not (base.folder / "tokenizer.json").is_file(),
        dtype=str(base.dtype).removeprefix("torch."),
        max_model_len=base.max_context,
        gpu_memory_utilization=gpu_share(base.device),
        enable_lora=True,
        max_lora_rank=rank,
        enable_prefix_caching=True,
        logprobs_mode="raw_logprobs",  # the model's own, before temperature
        generation_config="vllm",  # nothing from the model's folder changes what a request says
    )


def gpu_share(device: torch.device) -> float:
    """The share of the GPU's memory that vLLM may use."""
    total = torch.cuda.get_device_properties(device).total_memory
    return round(_SHARE * free_memory(device) / total, 3)


def _limit(base: BaseModel, request: SampleRequest) -> int:
    """vLLM counts the last sampled token into the context, although nothing reads it."""
    return request.max_tokens or base.max_context - len(request.prompt)


def _takes(base: BaseModel, request: SampleRequest) -> bool:
    limit = _limit(base, request)
    return (
        not asks_about_prompt(request)
        and request.grammar is None
        and not request.images
        and limit > 0
        and len(request.prompt) + limit <= base.max_context
        and request.topk_sample_logprobs <= _TOP
        and not 0 < request.temperature < _COLDEST
        and "" not in (request.stop or [])
    )


def _generate(
    base: BaseModel, llm: Any, adapter: Any, requests: Sequence[SampleRequest]
) -> list[SampleResult]:
    from vllm import SamplingParams  # pyright: ignore[reportMissingImports]

    outputs = llm.generate(
        [{"prompt_token_ids": list(request.prompt)} for request in requests],
        [SamplingParams(**sampling_params(base, request)) for request in requests],
        use_tqdm=False,
        lora_request=adapter,
    )
    return [_result(output, request) for output, request in zip(outputs, requests, strict=True)]


def sampling_params(base: BaseModel, request: SampleRequest) -> dict[str, Any]:
    """A request as arguments of vLLM's SamplingParams."""
    stop = ends_of(base, request)
    texts = [text for text in stop if isinstance(text, str)]
    return {
        "n": request.num_samples,
        "temperature": request.temperature,
        "top_k": request.top_k,
        "top_p": request.top_p,
        "seed": None if request.seed is None else request.seed % 2**63,
        "max_tokens": _limit(base, request),
        "stop_token_ids": [token for token in stop if isinstance(token, int)],
        "stop": texts,
        "ignore_eos": True,  # the stops above end an answer
        "detokenize": bool(texts),
        "skip_special_tokens": False,
        "logprobs": request.topk_sample_logprobs,  # 0: of the sampled token alone
    }


def _result(output: Any, request: SampleRequest) -> SampleResult:
    sequences = []
    for answer in sorted(output.outputs, key=lambda answer: answer.index):
        tokens = [int(token) for token in answer.token_ids]
        if answer.logprobs is None or len(answer.logprobs) != len(tokens):
            raise ValueError("vLLM has not given a log-probability for each token.")
        logprobs = [
            float(at[token].logprob) for token, at in zip(tokens, answer.logprobs, strict=True)
        ]
        sequence = SampledSequence(
            tokens, logprobs, "stop" if answer.finish_reason == "stop" else "length"
        )
        if width := request.topk_sample_logprobs:
            top = [
                sorted(at.items(), key=lambda item: item[1].rank)[:width] for at in answer.logprobs
            ]
            sequence.topk = (
                np.array([[token for token, _ in at] for at in top], np.int32),
                np.array([[entry.logprob for _, entry in at] for at in top], np.float32),
            )
        sequences.append(sequence)
    hits = getattr(output, "num_cached_tokens", None) or 0
    return SampleResult(sequences, prompt_cache_hit_tokens=hits)


def _finite(result: SampleResult) -> bool:
    return all(np.isfinite(sequence.logprobs).all() for sequence in result.sequences)


def _disagreement(base: BaseModel, adapter: Adapter | None, llm: Any, request: Any) -> float:
    """The average difference of log-probabilities, of vLLM's greedy answers, to the engine's."""
    generator = np.random.default_rng(0)
    longest = base.max_context - _CHECKED_TOKENS
    prompts = [
        generator.integers(0, base.vocab_size, min(length, longest)).tolist()
        for length in (3, 17, 64)
    ]
    asked = [
        SampleRequest(prompt, max_tokens=_CHECKED_TOKENS, temperature=0.0, stop=[])
        for prompt in prompts
    ]
    theirs = [result.sequences[0] for result in _generate(base, llm, request, asked)]
    whole = [
        SampleRequest(prompt + answer.tokens, max_tokens=1, temperature=0.0, prompt_logprobs=True)
        for prompt, answer in zip(prompts, theirs, strict=True)
    ]
    gaps = []
    for prompt, answer, result in zip(prompts, theirs, sample(base, adapter, whole), strict=True):
        assert result.prompt_logprobs is not None
        gaps.append(np.abs(result.prompt_logprobs[len(prompt) :] - np.array(answer.logprobs)))
    return float(np.mean(np.concatenate(gaps)))
