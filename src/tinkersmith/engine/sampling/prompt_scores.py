"""Hidden states of a prompt -> the log-probabilities that its request asks for.

Axes: T prompt tokens, H hidden size, K candidates of a position.
"""

import numpy as np
import torch

from tinkersmith.engine.messages import SampleRequest, SampleResult
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.decoder import Decoder
from tinkersmith.engine.sampling.token_choice import generator, sample_alternatives

EMPTY_LOGPROB = -99999.0  # the wire's mark for an empty top-k cell
_CHUNK_ROWS = 256


def asks_about_prompt(request: SampleRequest) -> bool:
    return bool(
        request.prompt_logprobs
        or request.topk_prompt_logprobs
        or request.target_prompt_logprobs is not None
        or request.prompt_alt_tokens_k
    )


def score_prompt(
    decoder: Decoder,
    device: torch.device,
    adapter: Adapter | None,
    request: SampleRequest,
    result: SampleResult,
    hidden: torch.Tensor,  # (T - 1, H), of all but the prompt's last token
    placeholder: int,  # the token that is scored in place of an image's
) -> None:
    """Write the requested log-probabilities of the prompt; position 0 has nothing before it."""
    length = len(request.prompt)
    top_k, alternatives_k = request.topk_prompt_logprobs, request.prompt_alt_tokens_k
    targets = request.target_prompt_logprobs
    if targets is None:
        targets = np.zeros((length - 1, 0), np.int32)
    following = torch.tensor(request.prompt[1:], dtype=torch.int64, device=device)[:, None]
    following = following.where(following >= 0, placeholder)
    wanted = torch.from_numpy(targets.astype(np.int64)).to(device)
    top_ids = following.new_zeros(length - 1, top_k)
    alternatives = following.new_zeros(length - 1, alternatives_k)
    rng = generator(request.seed, 2**32 - 1)
    for first in range(0, length - 1 if top_k or alternatives_k else 0, _CHUNK_ROWS):
        last = min(first + _CHUNK_ROWS, length - 1)
        logits = decoder.logits(hidden[first:last], adapter).float()
        if top_k:
            top_ids[first:last] = logits.topk(top_k).indices
        if alternatives_k:
            uniforms = torch.from_numpy(rng.random((last - first, alternatives_k))).to(device)
            alternatives[first:last] = sample_alternatives(logits, request.temperature, uniforms)
    columns = (following, wanted, alternatives, top_ids)
    scores = torch.empty(length - 1, sum(column.shape[1] for column in columns))
    if length > 1:
        scores = decoder.logprobs(hidden, adapter, torch.cat(columns, -1).clamp(min=0))
    following_scores, wanted_scores, alternative_scores, top_scores = scores.split(
        [column.shape[1] for column in columns], -1
    )
    # In the order of the scores: the logits that chose them may have been rounded.
    top_scores, order = top_scores.sort(dim=-1, descending=True, stable=True)
    skipped = 0  # positions that prompt_logprobs_last_n leaves out
    if request.prompt_logprobs_last_n is not None:
        skipped = max(length - request.prompt_logprobs_last_n - 1, 0)
    if request.prompt_logprobs:
        result.prompt_logprobs = np.full(length, np.nan, np.float32)
        result.prompt_logprobs[1 + skipped :] = following_scores[skipped:, 0].cpu().numpy()
    if top_k:
        ids = np.zeros((length, top_k), np.int32)
        values = np.full((length, top_k), EMPTY_LOGPROB, np.float32)
        ids[1 + skipped :] = top_ids.gather(-1, order)[skipped:].cpu().numpy()
        values[1 + skipped :] = top_scores[skipped:].cpu().numpy()
        result.topk_prompt_logprobs = (ids, values)
    if request.target_prompt_logprobs is not None:
        result.target_prompt_logprobs = wanted_scores.where(wanted >= 0, 0.0).cpu().numpy()
    if alternatives_k:
        result.prompt_alt_tokens = (
            alternatives.cpu().numpy().astype(np.int32),
            alternative_scores.cpu().numpy(),
        )
