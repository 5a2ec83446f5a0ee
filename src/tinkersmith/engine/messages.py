"""What passes between the wire and the computation: plain values, no torch, no HTTP.

Axes: T tokens, K targets or alternatives a position.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tinkersmith.engine.errors import Refused

LossConfig = Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class LoraConfig:
    rank: int
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


@dataclass(frozen=True, slots=True)
class Datum:
    tokens: np.ndarray  # (T,) int64: position i predicts target_tokens[i]
    inputs: dict[str, np.ndarray]  # each (T,) or (T, K)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A numbered forward or forward_backward of one training client."""

    model_id: str
    seq_id: int
    datums: list[Datum] | Refused  # Refused: its number is known, so its future must say it
    loss_fn: str
    config: LossConfig
    forward_only: bool


@dataclass(frozen=True, slots=True)
class LossOutput:
    logprobs: list[np.ndarray]  # of each datum's targets, float32, (T,) or (T, K)
    metrics: dict[str, float]  # "name:reduction", as the SDK wants them


@dataclass(frozen=True, slots=True)
class AdamParams:
    """Defaults as in the SDK.

    Raises:
        Refused: a value is out of range.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0  # 0: off

    def __post_init__(self) -> None:
        for name in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise Refused(f"{name} is {value}; it must be a finite number of at least 0.")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise Refused(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """Which cells of a matrix are given (compressed rows): N of them, in R rows."""

    row_starts: np.ndarray  # (R + 1,): row r has the cells row_starts[r] to row_starts[r + 1]
    columns: np.ndarray  # (N,)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Their rows and columns, as numpy indexes a matrix."""
        counts = np.diff(self.row_starts)
        return np.repeat(np.arange(len(counts)), counts), self.columns


@dataclass(frozen=True, slots=True)
class SampleRequest:
    prompt: list[int]
    num_samples: int = 1
    max_tokens: int | None = None  # None: as many as the context has room for
    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int = -1  # -1: off
    top_p: float = 1.0
    seed: int | None = None
    stop: list[int] | list[str] | None = None  # None: the model's end tokens; []: none at all
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: np.ndarray | None = None  # (T - 1, K) token ids; -1: not asked
    target_layout: SparseLayout | None = None  # the asked cells, if the client named only those
    prompt_alt_tokens_k: int = 0


@dataclass(slots=True)
class SampledSequence:
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str = "length"  # or "stop"
    topk: tuple[np.ndarray, np.ndarray] | None = None  # ids and log-probabilities, (len, K)


@dataclass(slots=True)
class SampleResult:
    sequences: list[SampledSequence]
    prompt_logprobs: np.ndarray | None = None  # (T,) float32, NaN where unknown
    topk_prompt_logprobs: tuple[np.ndarray, np.ndarray] | None = None  # (T, K)
    target_prompt_logprobs: np.ndarray | None = None  # (T - 1, K)
    prompt_alt_tokens: tuple[np.ndarray, np.ndarray] | None = None  # (T - 1, K)
