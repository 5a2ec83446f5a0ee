"""The protocols that implementations of the dense path keep to; see kernels/ for those.

Axes: T packed tokens, N rows, H hidden size, V vocabulary, R rank of the adapter, K targets a
position, F width of the MLP.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from tinkersmith.engine.model.projection import Projection, Update

if TYPE_CHECKING:
    from tinkersmith.engine.model.attention import KeysAndValues
    from tinkersmith.engine.model.dense import DenseModel, LayerUpdates, Turn


ROW_STEP = 64
BLOCK = 1024  # tokens: a draw finds its block first, then its token


class PackedAttention(Protocol):
    """Causal attention of documents that stand end to end, each alone; made from their lengths.

    Axes: T packed tokens, R = Q / G queries a key; a token's queries of one key stand together.
    """

    def numbers_kept(self, heads: int, key_heads: int, size: int) -> int:
        """How many numbers `attend` keeps when it is asked to."""
        ...

    def attend(
        self,
        query: torch.Tensor,  # (G, T R, D), scaled
        key: torch.Tensor,  # (G, T, D)
        value: torch.Tensor,  # (G, T, D)
        *,
        keep: bool,
    ) -> tuple[torch.Tensor, Any]:
        """(T, Q D), and what `backward` is to be given; with `keep`, all that makes it faster."""
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
    """The products of a layer, each with what is done to its result at once."""

    def project(
        self,
        x: torch.Tensor,  # (N, in)
        projection: Projection,
        update: Update | None,
        output: torch.Tensor,  # (N, out)
        low: torch.Tensor,  # (N, n R)
        residual: torch.Tensor | None = None,  # (N, out)
    ) -> None:
        """Writes x W^T + b, the adapter's part and the residual added, to `output`, and x A^T to
        `low`."""
        ...

    def project_swiglu(
        self,
        x: torch.Tensor,  # (N, in)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
        low: torch.Tensor,  # (N, n R)
    ) -> torch.Tensor:  # (N, F)
        """`project` into `gate_up`, and silu(gate) up."""
        ...

    def input_gradient(
        self,
        grad: torch.Tensor,  # (N, out)
        projection: Projection,
        update: Update | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The input's gradient (N, in), and that of x A^T (N, n R)."""
        ...

    def input_gradient_swiglu(
        self,
        grad: torch.Tensor,  # (N, out)
        projection: Projection,
        update: Update | None,
        gate_up: torch.Tensor,  # (N, 2 F)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Of a projection whose input is silu(gate) up: this input again (N, F), the gradient of
        `gate_up`, and that of x A^T."""
        ...

    def low_gradient(
        self, grad: torch.Tensor, update: Update | None
    ) -> torch.Tensor | None:  # (N, out) -> (N, n R)
        """The gradient of x A^T."""
        ...

    def add_gradients(
        self,
        update: Update | None,
        grad: torch.Tensor,  # (N, out)
        x: torch.Tensor,  # (N, in), what went in
        grad_low: torch.Tensor | None,  # (N, n R)
        low: torch.Tensor,  # (N, n R)
    ) -> None:
        """Adds the LoRA gradients of a block of rows to the adapter's."""
        ...


class DecodingLayers(Protocol):
    """A model's layers for rows that decode together, each in a slot with its keys and values."""

    lengths: list[int]  # positions in each slot; whoever decodes adds the new ones

    def put(self, slot: int, parts: "Sequence[KeysAndValues]") -> None:
        """Lets a row begin in this slot, after a past in some parts."""
        ...

    def move(self, source: int, target: int) -> None: ...

    def step(self, x: torch.Tensor, turn: "Turn") -> torch.Tensor:  # (B, H) -> (B, H)
        """A new token in each of the first B slots; their keys and values are kept."""
        ...


@dataclass(frozen=True, slots=True)
class ExactLogits:
    """What is known of rows of logits before they were rounded, in fp32."""

    highest: torch.Tensor  # (B, N), of each block
    likeliest: torch.Tensor  # (B, N) in int32, the tokens of those, the first of equals
    sums: torch.Tensor  # (B, N), of exp(logit - highest)
    of: Callable[[torch.Tensor], torch.Tensor]  # (B, K), tokens of each row -> their logits

    def normaliser(self) -> torch.Tensor:
        """(B, 1): logits less this are log-probabilities."""
        maximum = self.highest.amax(-1, keepdim=True)
        sums = self.sums * (self.highest - maximum).exp()
        return maximum + sums.sum(-1, keepdim=True).log()

    def argmax(self) -> torch.Tensor:
        """(B,); the first of equals."""
        block = self.highest.argmax(-1, keepdim=True)
        return self.likeliest.gather(-1, block)[:, 0].long()


class Logits(Protocol):
    def __call__(
        self,
        hidden: torch.Tensor,
        projection: Projection,
        update: Update | None,
        *,
        written: bool,
    ) -> tuple[torch.Tensor | None, ExactLogits]:
        """(B, H) -> (B, V), if `written`, and what was known of them before they were rounded."""
        ...


@dataclass(frozen=True, slots=True)
class Decoding:
    """What decodes a few rows at a time."""

    # With so many slots; of a model and what an adapter adds to its layers.
    layers: "Callable[[DenseModel, Sequence[LayerUpdates], int], DecodingLayers]"
    elementwise: Elementwise
    products: Products
    logits: "Logits | None" = None


@dataclass(frozen=True, slots=True)
class HeadWeights:
    base: torch.Tensor  # (V, H)
    bias: torch.Tensor | None  # (V,)
    a: torch.Tensor | None  # (R, H), with a row of zeros if the rank is odd
    b: torch.Tensor | None  # (V, R), times scaling
    scaling: float


class Head(Protocol):
    """The output layer and its soft-max, for some rows at a time: forward, then backward."""

    rows: int  # at most, at a time
    grad_a: torch.Tensor  # what backward passes added up, as the weights' shapes, in fp32
    grad_b: torch.Tensor

    def logprobs(
        self, hidden: torch.Tensor, targets: torch.Tensor, *, keep: bool
    ) -> torch.Tensor:  # (N, H), (N, K) -> (N, K)
        """`keep` what `backward` needs."""
        ...

    def backward(self, slope: torch.Tensor) -> torch.Tensor:
        """d loss / d log-probability (N, K) of the last rows -> d loss / d hidden (N, H), fp32.

        d loss / d logits = sum_k slope_k (onehot(target_k) - softmax).
        """
        ...


def pad_rows(matrix: torch.Tensor) -> torch.Tensor:
    """Rows of zeros at the end, to a multiple of ROW_STEP of them."""
    missing = -len(matrix) % ROW_STEP
    return pad(matrix, (0, 0, 0, missing)) if missing else matrix
