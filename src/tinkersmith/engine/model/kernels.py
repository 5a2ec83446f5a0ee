"""The protocols of the dense path's implementations, and the value that holds one of each.

The implementations are in kernels/.

Axes: T packed tokens, M rows of T that reach the output layer, N rows of a block, B rows that
decode together, H hidden size, F width of the MLP, V vocabulary, Y blocks of the vocabulary,
Q query heads, G key/value heads, J = Q / G queries per key, D head size, R rank of the adapter
(made even), C trained layers of a projection, I, O inputs and outputs of a projection, K targets
of a position.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinkersmith.engine.model.attention import KeysAndValues
from tinkersmith.engine.model.dense import (
    DenseModel,
    LayerRowUpdates,
    RotaryTables,
)
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.model.projection import Projection, RowUpdates, Update

ROW_STEP = 64  # rows: products get multiples of it, so that few shapes occur
BLOCK = 1024  # tokens: sampling finds its block first, then its token


class PackedAttention(Protocol):
    """Causal attention of documents that stand end to end, each alone; made from their lengths.

    A token's queries of one key stand together.
    """

    def numbers_kept(self, heads: int, key_heads: int, size: int) -> int:
        """How many numbers `attend` keeps for `backward` with `keep`."""
        ...

    def attend(
        self,
        query: torch.Tensor,  # (G, T J, D), scaled
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, Any]:
        """(T, Q D), and what `backward` takes as `kept`; with `keep`, all that makes it faster."""
        ...

    def backward(
        self,
        grad: torch.Tensor,  # (T, Q D)
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        output: torch.Tensor,  # (T, Q D); may be 0 where grad is
        kept: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gradients of query, key and value; the last two may be in fp32."""
        ...


class HeadTransform(NamedTuple):
    """What a layer does to its heads between the projection and attention: norm, rotation, scale.

    Axes: N rows of a block, D head size.
    """

    query_norm: torch.Tensor | None  # (D,), if the model norms its heads
    key_norm: torch.Tensor | None  # (D,)
    eps: float  # of the norms
    cosine: torch.Tensor  # (N, 1, D/2), the rotary tables, in fp32
    sine: torch.Tensor  # (N, 1, D/2)
    scale: float  # of the queries


@dataclass(frozen=True, slots=True)
class Elementwise:
    """The work between two products, by plain torch, compiled by torch, or in C++.

    Every function writes to its last parameters, in the model's dtype unless noted; inputs stay as
    they are. kernels/elementwise.py has the formulas.

    Axes: N rows of a block, H hidden size, F width of the MLP, G key/value heads, J queries per
    key, D head size, W tokens of a block of the vocabulary.
    """

    # x (N, H), weight (H,), eps -> output (N, H)
    rms_norm: Callable[[Tensor, Tensor, float, Tensor], None]
    # grad (N, H) of the output, x (N, H), weight (H,), eps
    # -> total (N, H), to which the gradient of x is added, and output (N, H) again
    rms_norm_backward: Callable[[Tensor, Tensor, Tensor, float, Tensor, Tensor], None]
    # gate_up (N, 2 F) -> output (N, F)
    swiglu: Callable[[Tensor, Tensor], None]
    # grad (N, F) of the output, gate_up (N, 2 F) -> output (N, F) again, gradient (N, 2 F)
    swiglu_backward: Callable[[Tensor, Tensor, Tensor, Tensor], None]
    # qkv (N, (G J + 2 G) D), transform -> query (G, N, J, D), key (G, N, D), value (G, N, D)
    split_heads: Callable[[Tensor, HeadTransform, Tensor, Tensor, Tensor], None]
    # qkv (N, (G J + 2 G) D), transform, gradients of query (G, N, J, D), key (G, N, D) and
    # value (G, N, D), the last two in fp32 or as query -> gradient (N, (G J + 2 G) D)
    split_heads_backward: Callable[[Tensor, HeadTransform, Tensor, Tensor, Tensor, Tensor], None]
    # logits (N, W), shift (N, 1) in fp32
    # -> sums (N,) in fp32 of exp(logits - shift), and these powers (N, W), if wanted
    exponentials: Callable[[Tensor, Tensor, Tensor, Tensor | None], None]


class Products(Protocol):
    """The matrix products of a layer, each with the work on its result that follows."""

    def project(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        output: torch.Tensor,  # (N, O)
        low: torch.Tensor,  # (N, C R)
        residual: torch.Tensor | None = None,  # (N, O)
    ) -> None:
        """Write x W^T + b, plus the adapter's product and the residual, to `output`.

        x A^T of one adapter is written to `low`; of several, each for some rows, it is not.
        """
        ...

    def project_swiglu(
        self,
        x: torch.Tensor,  # (N, I)
        projection: Projection,
        update: Update | RowUpdates | None,
        gate_up: torch.Tensor,  # (N, 2 F)
        low: torch.Tensor,  # (N, C R)
    ) -> torch.Tensor:  # (N, F)
        """`project` into `gate_up`, and silu(gate) up."""
        ...

    def input_gradient(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input's gradient (N, I), and that of x A^T (N, C R)."""
        ...

    def input_gradient_swiglu(
        self,
        grad: torch.Tensor,  # (N, O)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The backward pass of a projection whose input is silu(gate) up.

        Gives this input again (N, F), the gradient of `gate_up` (N, 2 F), and that of x A^T.
        """
        ...

    def low_gradient(
        self, grad: torch.Tensor, update: Update | None
    ) -> torch.Tensor | None:  # (N, O) -> (N, C R)
        """The gradient of x A^T."""
        ...

    def add_gradients(
        self,
        update: Update | None,
        grad: torch.Tensor,  # (N, O)
        x: torch.Tensor,  # (N, I), the projection's input
        grad_low: torch.Tensor | None,  # (N, C R)
        low: torch.Tensor,  # (N, C R)
    ) -> None:
        """Add the LoRA gradients of a block of rows to the adapter's."""
        ...


class DecodingLayers(Protocol):
    """A model's layers for rows that decode together, each in a slot of the KV cache."""

    lengths: list[int]  # positions in each slot; the caller of `step` adds the new ones

    def put(self, slot: int, parts: Sequence[KeysAndValues]) -> None:
        """Begin a row in this slot, after a past that is given in parts."""
        ...

    def move(self, source: int, target: int) -> None: ...

    def resize(self, slots: int, /) -> None:
        """Have so many slots from now on; rows beyond them have ended."""
        ...

    def held(self) -> int:
        """Bytes of the KV cache."""
        ...

    def step(
        self,
        x: torch.Tensor,  # (B, H)
        slots: Sequence[int],  # of each row: the first B, in any order
        rotary: RotaryTables,  # of the slots in their own order
        updates: Sequence[LayerRowUpdates],  # of the layers
    ) -> torch.Tensor:  # (B, H)
        """Compute a new token in each of the first B slots, and cache its keys and values."""
        ...


class PromptReading(Protocol):
    """A model's layers for tokens of prompts."""

    def read(
        self,
        x: torch.Tensor,  # (T, H), of all runs, one after the other
        lengths: Sequence[int],  # tokens of each run
        pasts: Sequence[Sequence[KeysAndValues]],  # of the tokens before each run, in parts
        rotary: RotaryTables,  # of the tokens
        updates: Sequence[LayerRowUpdates],  # of the layers
        *,
        cache_only: bool,
    ) -> list[KeysAndValues]:
        """Keys and values of each run; `x` becomes the last layer's output unless `cache_only`."""
        ...


@dataclass(frozen=True, slots=True)
class ExactLogits:
    """Sums and maxima of rows of logits before they were rounded, in fp32."""

    highest: torch.Tensor  # (B, Y), of each block
    likeliest: torch.Tensor  # (B, Y) in int32, the tokens of those, the first of equals
    sums: torch.Tensor  # (B, Y), of exp(logit - highest)
    of: Callable[[torch.Tensor], torch.Tensor]  # (B, K), tokens of each row -> their logits

    def only(self, rows: list[int]) -> "ExactLogits":
        """Select some of the rows."""

        def logits_of(tokens: torch.Tensor) -> torch.Tensor:
            whole = tokens.new_zeros(len(self.sums), tokens.shape[1])
            whole[rows] = tokens
            return self.of(whole)[rows]

        return ExactLogits(self.highest[rows], self.likeliest[rows], self.sums[rows], logits_of)

    def normaliser(self) -> torch.Tensor:
        """(B, 1): logits less this are log-probabilities."""
        maximum = self.highest.amax(-1, keepdim=True)
        sums = self.sums * (self.highest - maximum).exp()
        return maximum + sums.sum(-1, keepdim=True).log()

    def argmax(self) -> torch.Tensor:
        """The most likely token of each row, (B,); the first of equals."""
        block = self.highest.argmax(-1, keepdim=True)
        return self.likeliest.gather(-1, block)[:, 0].long()


class Logits(Protocol):
    def __call__(
        self,
        hidden: torch.Tensor,
        projection: Projection,
        updates: RowUpdates,
        *,
        written: bool,
    ) -> tuple[torch.Tensor | None, ExactLogits]:
        """(B, H) -> logits (B, V), if `written`, and what is known of them before rounding."""
        ...


@dataclass(frozen=True, slots=True)
class Decoding:
    """The implementations that decode a few rows at a time."""

    layers: Callable[[DenseModel, int], DecodingLayers]  # made from a model and a number of slots
    elementwise: Elementwise
    products: Products
    logits: Logits | None = None
    # Made from a model; None: prompts are read by the parts that training uses.
    reading: Callable[[DenseModel], PromptReading] | None = None
    by_rank: bool = True  # whether adapters are added faster if B lies in memory as (R, O)


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """The output layer and its LoRA."""

    base: torch.Tensor  # (V, H)
    bias: torch.Tensor | None  # (V,)
    a: torch.Tensor | None  # (R, H), with a row of zeros if the rank is odd
    b: torch.Tensor | None  # (V, R), times scaling
    scaling: float
    softcap: float | None = None  # logits z become softcap tanh(z / softcap); torch's head only


class Head(Protocol):
    """The output layer and its soft-max, for some rows at a time: forward, then backward."""

    rows: int  # the most that it takes at a time
    grad_a: torch.Tensor  # sums over backward passes, in the weights' shapes, in fp32
    grad_b: torch.Tensor

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:  # (N, H), (N, K) -> (N, K)
        """Log-probabilities of targets; `keep` what `backward` needs."""
        ...

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """d loss / d log-probability (N, K) of the last rows -> d loss / d hidden (N, H), fp32.

        d loss / d logits = sum_k slope_k (onehot(target_k) - softmax).
        """
        ...


class TrainingPass(Protocol):
    """A forward pass over a pack, and the backward pass that belongs to it."""

    def forward(self, tokens: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """(T,) -> (T, H), the input of the output layer; or (M, H), of some rows only."""
        ...

    def backward(self, grad: torch.Tensor) -> None:
        """Add the gradients of the adapter's weights; `grad` has the shape that `forward` gave."""
        ...


@dataclass(frozen=True, slots=True)
class Kernels:
    """The implementations that compute a model's dense path; kernels/choose.py chooses them."""

    attention: Callable[[Sequence[int]], PackedAttention]  # from the lengths of documents
    elementwise: Elementwise
    products: Products
    head: Callable[[HeadWeights], Head]
    decoding: Decoding
    # A pass prepared earlier for an adapter and the lengths of documents, or None where there is
    # none; the pass is then computed by the parts above, layer by layer.
    prepared: Callable[[Adapter, Sequence[int]], TrainingPass | None] | None = None


def pad_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Add rows of zeros at the end, to a multiple of ROW_STEP."""
    missing = -len(matrix) % ROW_STEP
    return pad(matrix, (0, 0, 0, missing)) if missing else matrix
