"""Log-probabilities of expected answers under a model -> perplexity and bits per byte."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds an expected answer."""

    nats: float  # the negative log-probability of all its tokens
    tokens: int
    bytes: int  # of its text in UTF-8

    def scores(self) -> dict[str, float]:
        return {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

    @property
    def perplexity(self) -> float:
        # A token of probability 0 has no finite perplexity: the largest number stands for it.
        return math.exp(min(self.nats / self.tokens, 700.0))

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes


def likelihood(logprobs: Sequence[float | None], text: str) -> Likelihood | None:
    """The likelihood of an answer with these log-probabilities; None for an empty one.

    Raises:
        ValueError: a log-probability is missing or no number.
    """
    values = [value for value in logprobs if value is not None]
    if len(values) < len(logprobs) or any(value != value for value in values):
        raise ValueError("the server gave no log-probability for a token of the answer")
    size = len(text.encode("utf-8", "surrogatepass"))
    if not values or not size:
        return None
    return Likelihood(min(-math.fsum(values), 1e300), len(values), size)


def all_together(likelihoods: Sequence[Likelihood]) -> Likelihood | None:
    """The likelihood of several answers, in which a long one counts more."""
    if not likelihoods:
        return None
    return Likelihood(
        math.fsum(answer.nats for answer in likelihoods),
        sum(answer.tokens for answer in likelihoods),
        sum(answer.bytes for answer in likelihoods),
    )


def likelihood_summary(likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
    """What the file of results says of one model."""
    every = all_together(likelihoods)
    return {
        "answers": len(likelihoods),
        "tokens": every.tokens if every else 0,
        "bytes": every.bytes if every else 0,
        "perplexity": every.perplexity if every else None,
        "bits_per_byte": every.bits_per_byte if every else None,
    }


def likelihood_lines(summary: dict[str, Any]) -> list[str]:
    """The summary of one model in a sentence."""
    if summary["perplexity"] is None:
        return []
    return [
        f"Perplexity of the expected answers, over all {summary['tokens']:,} tokens: "
        f"{summary['perplexity']:.4g}; bits per byte: {summary['bits_per_byte']:.4f}."
    ]
