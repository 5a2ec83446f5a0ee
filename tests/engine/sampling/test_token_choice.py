"""Tokens from logits, by blocks of the vocabulary, against the plain fp64 way over all of it."""

import itertools

import numpy as np
import pytest
import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import SampleRequest
from tinkersmith.engine.model.kernels import BLOCK
from tinkersmith.engine.sampling import token_choice
from tinkersmith.engine.sampling.token_choice import choose_tokens

VOCABULARY = 3 * BLOCK + 100  # the last block is not full


def plain_draw(logits: torch.Tensor, request: SampleRequest, uniform: float) -> int:
    """The inverse of the cumulative distribution over token ids, all in fp64."""
    if request.temperature == 0:
        return int(logits.argmax())
    probabilities = (logits.double() / request.temperature).softmax(-1)
    ordered, ids = probabilities.sort(descending=True, stable=True)
    if request.top_k > 0:
        ordered[request.top_k :] = 0
    mass = ordered.cumsum(-1)
    ordered[mass - ordered >= request.top_p * mass[-1]] = 0
    cumulative = torch.zeros_like(ordered).scatter(-1, ids, ordered).cumsum(-1)
    place = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
    return int(place)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_tokens_and_logprobs_equal_those_over_the_whole_vocabulary(
    spread: float, dtype: torch.dtype
) -> None:
    rng = np.random.default_rng()
    settings = [
        {},
        {"temperature": 0},
        {"temperature": 0.4},
        {"temperature": 2.0},
        {"top_k": 1},
        {"top_k": 20},
        {"top_k": 2000, "top_p": 0.9},
        {"top_p": 0.3},
        {"top_p": 0.97},
        {"top_k": 40, "top_p": 0.8, "temperature": 0.7},
        {"top_k": 10**6},
    ]
    requests = [SampleRequest([0], **setting) for setting in settings * 30]
    noise = rng.normal(size=(len(requests), VOCABULARY)) * spread
    logits = torch.from_numpy(noise).to(dtype)
    logits[::2, -1] += 4 * spread  # the vocabulary's last token is drawn too
    uniforms = rng.random(len(requests))
    tokens, normaliser = choose_tokens(logits, requests, torch.from_numpy(uniforms))
    expected = [
        plain_draw(row, request, uniform)
        for row, request, uniform in zip(logits, requests, uniforms, strict=True)
    ]
    differing = np.flatnonzero(tokens.numpy() != np.asarray(expected))
    # A uniform number may fall within a rounding error of the border between two tokens.
    assert len(differing) <= 2, [settings[i % len(settings)] for i in differing]
    exact = logits.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(normaliser.double(), exact, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.3, 1.0, 2.0, 5.0])
def test_top_p_looks_at_more_tokens_until_their_mass_is_reached(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_choice, "_NUCLEUS", 4)
    rng = np.random.default_rng()
    asked = itertools.product((0.05, 0.5, 0.9, 0.999), (0.5, 1.0, 2.0))
    requests = [SampleRequest([0], top_p=share, temperature=heat) for share, heat in asked] * 8
    logits = torch.from_numpy(rng.normal(size=(len(requests), VOCABULARY)) * spread).float()
    logits[::3] = logits[::3].round()  # many are equal
    uniforms = rng.random(len(requests))
    tokens, _ = choose_tokens(logits, requests, torch.from_numpy(uniforms))
    expected = [
        plain_draw(row, request, uniform)
        for row, request, uniform in zip(logits, requests, uniforms, strict=True)
    ]
    assert np.count_nonzero(tokens.numpy() != np.asarray(expected)) <= 1


def test_the_first_of_equal_logits_is_the_greedy_choice() -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[0, [BLOCK + 5, BLOCK + 6, 2 * BLOCK]] = 1.0
    logits[1, -1] = 1.0
    tokens, _ = choose_tokens(logits, [SampleRequest([0], temperature=0)] * 2, torch.zeros(2))
    assert tokens.tolist() == [BLOCK + 5, VOCABULARY - 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    logits = torch.zeros(2, VOCABULARY)
    logits[1] = torch.nan
    requests = [SampleRequest([0], temperature=temperature)] * 2
    with pytest.raises(Refused, match="its weights are broken; use an earlier checkpoint"):
        choose_tokens(logits, requests, torch.zeros(2, dtype=torch.float64))
