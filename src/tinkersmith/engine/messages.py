"""Requests and results between the server half and the torch half: plain values, no torch, no HTTP.

Axes: T tokens, K targets or alternatives of a position.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.json_grammar import JsonGrammar

LossConfig = Mapping[str, float | str]

MAX_RANK = 512
MAX_SAMPLES = 4096  # of one sampling request


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Size and place of an adapter.

    Raises:
        Refused: the rank is out of range.
    """

    rank: int
    seed: int | None = None
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= MAX_RANK:
            raise Refused(f"rank is {self.rank}; it must be between 1 and {MAX_RANK}.")


@dataclass(frozen=True, slots=True)
class ImageChunk:
    """An image in a sequence, as a client sends it."""

    data: bytes  # of a PNG or JPEG file
    place: int  # how many of the sequence's text tokens are before it
    expected_tokens: int | None = None  # the client's count, to be checked


@dataclass(frozen=True, slots=True)
class Datum:
    """One sequence to train on."""

    tokens: np.ndarray  # (T,) int64: position i predicts target_tokens[i]
    inputs: dict[str, np.ndarray]  # each (T,) or (T, K)
    has_provenance: bool = False  # whether it names the sampled sequences that its tokens come from
    chunks: Sequence[ImageChunk] = ()  # that are not among the tokens yet
    images: Sequence[object] = ()  # that are: what tokens below 0 stand for, see engine/images


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A numbered forward or forward_backward of one training client."""

    model_id: str
    seq_id: int
    datums: list[Datum] | Refused  # Refused: the reason why they cannot be read
    loss_fn: str
    config: LossConfig
    forward_only: bool


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The result of a `BatchRequest`."""

    logprobs: list[np.ndarray]  # of the targets, one array for each datum: float32, (T,) or (T, K)
    metrics: dict[str, float]  # by "name:reduction", which the SDK requires


@dataclass(frozen=True, slots=True)
class AdamParams:
    """Parameters of one optimizer step; the defaults are the SDK's.

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
class DimuonParams:
    """Parameters of one step of a client that was created with Dimuon; the defaults are the SDK's.

    Raises:
        Refused: a value is out of range.
    """

    learning_rate: float
    grad_clip_norm: float = 0.0  # 0 or less: off
    beta1: float = 0.9

    def __post_init__(self) -> None:
        if not (math.isfinite(self.learning_rate) and self.learning_rate >= 0):
            raise Refused(
                f"learning_rate is {self.learning_rate}; it must be a finite number of at least 0."
            )
        if not math.isfinite(self.grad_clip_norm):
            raise Refused(f"grad_clip_norm is {self.grad_clip_norm}; it must be a finite number.")
        if not 0 <= self.beta1 < 1:
            raise Refused(f"beta1 is {self.beta1}; it must be from 0 to below 1.")


OptimParams = AdamParams | DimuonParams
ADAMW, DIMUON = "adamw", "dimuon"  # the optimizers, by the SDK's names


@dataclass(frozen=True, slots=True)
class SparseLayout:
    """Which N cells of a matrix of R rows are given, in compressed rows (CSR)."""

    row_starts: np.ndarray  # (R + 1,): row r has the cells row_starts[r] to row_starts[r + 1]
    columns: np.ndarray  # (N,)

    def cells(self) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each cell, two arrays of shape (N,): an index for numpy."""
        counts = np.diff(self.row_starts)
        return np.repeat(np.arange(len(counts)), counts), self.columns


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token of a sequence, reported as soon as it is sampled."""

    number: int  # of its sequence, among its request's samples
    token: int
    logprob: float
    topk: tuple[np.ndarray, np.ndarray] | None  # ids and log-probabilities, each (K,)
    stop_reason: str | None  # of the sequence, if this is its last token


@dataclass(slots=True, eq=False)
class SampleProgress:
    """What connects a request that is being answered with the client that waits for it.

    `take` is called on the engine thread. A sampler that does not work token by token never calls
    it: the request's result holds everything in any case.
    """

    take: Callable[[SampledToken], None] | None = None  # None: the client takes all at the end
    cancelled: bool = False  # nobody waits any more: the request's places are freed
    prompt_tokens: int = 0  # with those of images, once the request has joined a batch


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """What to sample from one prompt, and which log-probabilities to return.

    Raises:
        Refused: the number of samples is out of range. Other fields are checked with the model.
    """

    prompt: list[int]
    num_samples: int = 1
    max_tokens: int | None = None  # None: up to the end of the context
    temperature: float = 1.0  # 0: greedy
    top_k: int = -1  # -1: off
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[int | str] | None = None  # None: the model's end tokens; []: none at all
    stop_at_ends: bool = False  # the model's end tokens besides `stop`
    prompt_logprobs: bool = False
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: np.ndarray | None = None  # (T - 1, K) token ids; -1: none requested
    target_layout: SparseLayout | None = None  # the requested cells, if the client sent only those
    prompt_alt_tokens_k: int = 0
    grammar: JsonGrammar | None = None  # which tokens may follow; logprobs are those without it
    progress: SampleProgress | None = None
    chunks: Sequence[ImageChunk] = ()  # as in `Datum`
    images: Sequence[object] = ()
    tempered_logprobs: bool = False  # of sampled tokens: at the temperature they are sampled at

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise Refused(
                f"num_samples is {self.num_samples}; it must be from 1 to {MAX_SAMPLES:,}."
            )


@dataclass(slots=True)
class SampledSequence:
    """One sampled completion."""

    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    stop_reason: str = "length"  # or "stop"
    topk: tuple[np.ndarray, np.ndarray] | None = None  # ids and log-probabilities, each (tokens, K)


@dataclass(slots=True)
class SampleResult:
    """The result of a `SampleRequest`. Pairs of arrays are token ids and log-probabilities."""

    sequences: list[SampledSequence]
    prompt_logprobs: np.ndarray | None = None  # (T,) float32, NaN where unknown
    topk_prompt_logprobs: tuple[np.ndarray, np.ndarray] | None = None  # (T, K)
    target_prompt_logprobs: np.ndarray | None = None  # (T - 1, K)
    prompt_alt_tokens: tuple[np.ndarray, np.ndarray] | None = None  # (T - 1, K)
    # Tokens of the prompt whose keys and values another request had computed.
    prompt_cache_hit_tokens: int = 0


@dataclass(slots=True, eq=False)
class Answering:
    """A request in a batch, with its result so far."""

    request: SampleRequest
    result: SampleResult
    error: BaseException | None = None  # why it could not be answered
    cancelled: bool = False  # its client is gone; any thread may say so

    @property
    def gives_up(self) -> bool:
        """Whether nobody waits for more tokens."""
        progress = self.request.progress
        return self.cancelled or (progress is not None and progress.cancelled)
