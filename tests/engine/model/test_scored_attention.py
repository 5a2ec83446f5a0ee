"""Attention by blocks of queries against one mask of all queries by all keys, in float64.

The tiny families are shorter than a block; these documents are several blocks long.
"""

from itertools import pairwise

import pytest
import torch

from tinkersmith.engine.model import scored_attention
from tinkersmith.engine.model.attention import PackedDocuments
from tinkersmith.engine.model.scored_attention import Scoring

pytestmark = pytest.mark.engine

HEADS, GROUPS, SIZE, WINDOW = 4, 2, 16, 100

# Tokens of each document of a pack, and of the past before each.
PACKS = [
    pytest.param([300], [0], id="one document"),
    pytest.param([300, 170], [0, 0], id="two documents"),
    pytest.param([300], [150], id="a past"),
    pytest.param([150, 300, 1], [0, 130, 99], id="documents with and without a past"),
]
SCORINGS = [
    pytest.param(Scoring(0.4, window, cap, sinks), id=name)
    for window, in_name in ((WINDOW, "a window"), (None, "all before it"))
    for cap, sinks, name in (
        (None, None, in_name),
        (2.0, None, f"{in_name} and a soft-cap"),
        (None, torch.linspace(-2, 3, HEADS), f"{in_name} and sinks"),
        (2.0, torch.linspace(-2, 3, HEADS), f"{in_name}, a soft-cap and sinks"),
    )
]


def masked_attention(
    query: torch.Tensor,  # (Q, T, D)
    key: torch.Tensor,  # (G, S, D)
    value: torch.Tensor,  # (G, S, D)
    seen: torch.Tensor,  # (T, S)
    scoring: Scoring,
) -> torch.Tensor:  # (Q, T, D)
    """Plain attention under one mask; a sink is a further key whose value is 0."""
    key, value = (tensor.repeat_interleave(HEADS // GROUPS, 0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) * scoring.scale
    if scoring.softcap is not None:
        scores = scoring.softcap * (scores / scoring.softcap).tanh()
    scores = scores.masked_fill(~seen, -torch.inf)
    if scoring.sinks is None:
        return scores.softmax(-1) @ value
    sinks = scoring.sinks.to(scores)[:, None, None].expand(-1, len(seen), 1)
    return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ value


def mask_of_a_pack(lengths: list[int], pasts: list[int], window: int | None) -> torch.Tensor:
    """(T, S): the keys of each document stand behind those of its past."""
    ends = torch.tensor([past + length for past, length in zip(pasts, lengths, strict=True)])
    document = torch.arange(len(lengths)).repeat_interleave(ends)  # of each key
    position = torch.cat([torch.arange(end) for end in ends.tolist()])
    is_query = torch.cat(
        [torch.arange(end) >= past for end, past in zip(ends.tolist(), pasts, strict=True)]
    )
    before = position[is_query][:, None] - position
    seen = (document[is_query][:, None] == document) & (before >= 0)
    return seen if window is None else seen & (before < window)


def random_heads(lengths: list[int], pasts: list[int]) -> list[torch.Tensor]:
    """Queries (Q, T, D), and keys and values (G, S, D) with those of the pasts."""
    generator = torch.Generator().manual_seed(0)
    tokens, keys = sum(lengths), sum(lengths) + sum(pasts)
    sizes = [(HEADS, tokens), (GROUPS, keys), (GROUPS, keys)]
    return [torch.randn(*size, SIZE, generator=generator).requires_grad_() for size in sizes]


def in_blocks(
    heads: list[torch.Tensor], lengths: list[int], pasts: list[int], scoring: Scoring
) -> torch.Tensor:  # (Q, T, D)
    """What the engine computes for a pack, with the pasts that it keeps in a cache."""
    query, key, value = heads
    counts = [count for pair in zip(pasts, lengths, strict=True) for count in pair]
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    parts = [(key[:, a:b], value[:, a:b]) for a, b in pairwise(starts)]
    before = [[part] if past else None for part, past in zip(parts[::2], pasts, strict=True)]
    own_key, own_value = (torch.cat(tensors, 1) for tensors in zip(*parts[1::2], strict=True))
    context = PackedDocuments(lengths, pasts=before)
    return context.attend(0, query[None], own_key[None], own_value[None], scoring)[0]


def assert_equal_to_one_mask(lengths: list[int], pasts: list[int], scoring: Scoring) -> None:
    heads = random_heads(lengths, pasts)
    output = in_blocks(heads, lengths, pasts, scoring)
    doubles = [tensor.detach().double().requires_grad_() for tensor in heads]
    query, key, value = doubles
    seen = mask_of_a_pack(lengths, pasts, scoring.window)
    expected = masked_attention(query, key, value, seen, scoring)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    (output * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(heads, doubles, strict=True):
        assert ours.grad is not None and theirs.grad is not None
        torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("scoring", SCORINGS)
@pytest.mark.parametrize(("lengths", "pasts"), PACKS)
def test_documents_of_several_blocks_equal_one_mask_of_the_whole_pack(
    lengths: list[int], pasts: list[int], scoring: Scoring
) -> None:
    assert max(lengths) > 2 * scored_attention._CPU_BLOCK
    assert_equal_to_one_mask(lengths, pasts, scoring)


@pytest.mark.parametrize("scoring", [SCORINGS[0], SCORINGS[3], SCORINGS[7]])
@pytest.mark.parametrize("tokens", [1, 99, 100, 101, 128, 129, 256, 257])
def test_lengths_around_a_window_and_a_block_equal_one_mask(tokens: int, scoring: Scoring) -> None:
    assert_equal_to_one_mask([tokens], [0], scoring)


@pytest.mark.parametrize("scoring", [SCORINGS[0], SCORINGS[3], SCORINGS[7]])
def test_blocks_that_memory_makes_smaller_equal_one_mask(
    monkeypatch: pytest.MonkeyPatch, scoring: Scoring
) -> None:
    monkeypatch.setattr(scored_attention, "_SCORES", 37 * HEADS * (WINDOW + 128))
    heads = random_heads([300], [150])
    blocks = list(scored_attention._blocks(heads[0][None], heads[1][None], scoring.window))
    assert len(blocks) > 8
    assert_equal_to_one_mask([300], [150], scoring)


def test_values_smaller_than_keys_need_no_matrix_of_all_queries_by_all_keys() -> None:
    query, key, value = (heads[None] for heads in random_heads([300], [0]))
    value = value[..., : SIZE // 2]  # as those of latent attention (DeepSeek)
    largest = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = scored_attention.attend_document(query, key, value, Scoring(0.4))
    assert largest < 300 * 300
    seen = mask_of_a_pack([300], [0], None)
    expected = masked_attention(query[0], key[0], value[0], seen, Scoring(0.4))
    torch.testing.assert_close(output[0], expected, atol=1e-5, rtol=1e-5)


def test_the_blocks_of_a_window_share_their_mask() -> None:
    query, key, value = (heads[None] for heads in random_heads([1500], [0]))
    masks = dict[int, int]()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim == 2 and not tensor.requires_grad:
            masks[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scored_attention.attend_document(query, key, value, Scoring(0.4, WINDOW))
    assert 0 < sum(masks.values()) < 4 * 128 * (128 + WINDOW)  # of 12 blocks
