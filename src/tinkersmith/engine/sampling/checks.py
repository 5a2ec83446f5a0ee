"""A sampling request and a base model -> a refusal, or the request as it fits, before any work."""

import dataclasses

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.images.placing import text_only, with_images
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.model.base_model import BaseModel

MAX_CELLS = 2**26  # of 8 bytes, in a table over the prompt that a request asks for
TOKENIZER = "tokenizer.json"  # in a model's folder


def with_prompt_images(base: BaseModel, request: SampleRequest) -> SampleRequest:
    """The request with its images at their places in the prompt.

    Raises:
        Refused: the model cannot see, or an image cannot be read.
    """
    if not request.chunks:
        return request
    prompt, images = with_images(
        base.vision, base.name, request.prompt, request.chunks, "the prompt"
    )
    return dataclasses.replace(request, prompt=prompt.tolist(), chunks=(), images=images)


def fitted(base: BaseModel, request: SampleRequest) -> SampleRequest:
    """The request, with a max_tokens beyond the context cut to what is left behind the prompt.

    Such an answer ends for its length, as it would at its max_tokens.
    """
    longest = most_tokens(base, request)
    if request.max_tokens is None or longest < 1 or request.max_tokens <= longest:
        return request
    return dataclasses.replace(request, max_tokens=longest)


def most_tokens(base: BaseModel, request: SampleRequest) -> int:
    """How many tokens can be sampled behind the prompt."""
    # The last sampled token is never read, hence the one more.
    return base.max_context - len(request.prompt) + 1


def check_request(base: BaseModel, request: SampleRequest) -> None:
    """Check everything that can be wrong with a request, before any work is done.

    Raises:
        Refused: with what is wrong.
    """
    prompt = np.asarray(request.prompt)
    if not prompt.size:
        raise Refused("the prompt has no tokens.")
    text = text_only(prompt, request.images)
    outside = text[(text < 0) | (text >= base.vocab_size)]
    if outside.size:
        raise Refused(
            f"the prompt's token id {int(outside[0])} is not in the vocabulary of "
            f"{base.vocab_size:,} tokens."
        )
    stop = request.stop or []
    if any(isinstance(text, str) for text in stop) and not (base.folder / TOKENIZER).is_file():
        raise Refused(
            f"the stop {stop!r} is a string, and {base.name} has no {TOKENIZER} to recognise it "
            "with; give token ids."
        )
    if most_tokens(base, request) < 1:
        raise Refused(
            f"the prompt has {len(prompt):,} tokens; {base.name} takes at most "
            f"{base.max_context:,}."
        )
    if request.max_tokens is not None and request.max_tokens < 1:
        raise Refused(f"max_tokens is {request.max_tokens:,}; it must be at least 1.")
    bounds = [
        ("temperature", request.temperature, 0 <= request.temperature <= 100, "0 to 100"),
        ("top_k", request.top_k, request.top_k >= -1, "-1 (off) or at least 1"),
        ("top_p", request.top_p, 0 < request.top_p <= 1, "above 0 and at most 1"),
    ]
    for name, value, good, allowed in bounds:
        if not good:
            raise Refused(f"{name} is {value}; it must be {allowed}.")
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        count = getattr(request, name)
        if not 0 <= count <= base.vocab_size:
            raise Refused(f"{name} is {count}; it must be 0 to {base.vocab_size}.")
        if name != "topk_sample_logprobs" and count * len(prompt) > MAX_CELLS:
            raise Refused(
                f"{name} is {count}; with a prompt of {len(prompt):,} tokens at most "
                f"{MAX_CELLS // len(prompt):,} are given."
            )
    last_n = request.prompt_logprobs_last_n
    if last_n is not None and not (request.prompt_logprobs and 1 <= last_n < len(prompt)):
        raise Refused(
            f"prompt_logprobs_last_n is {last_n}; it needs prompt_logprobs, and must be 1 to "
            f"{len(prompt) - 1}, the prompt's length less one."
        )
    targets = request.target_prompt_logprobs
    if targets is None:
        return
    if targets.ndim != 2 or len(targets) != len(prompt) - 1:
        raise Refused(
            f"target_prompt_logprobs has shape {list(targets.shape)}; its first axis must be the "
            f"prompt's length less one, {len(prompt) - 1}."
        )
    outside = targets[(targets < -1) | (targets >= base.vocab_size)]
    if outside.size:
        raise Refused(
            f"target_prompt_logprobs: token id {int(outside[0])} is not in the vocabulary of "
            f"{base.vocab_size:,} tokens (-1 asks for nothing)."
        )
