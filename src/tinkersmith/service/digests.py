"""What the SDK is given to send -> lines of requests.jsonl, each with a digest.

A digest is the SHA-256 of a canonical form of what the SDK's own types hold: token ids, targets,
weights and parameters, in fixed sizes and little-endian. Ids of sessions, models and requests,
which differ from run to run, are not in it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tinkersmith.runs.rehearsals import SAMPLE_DIGITS

if TYPE_CHECKING:
    import tinker

_WEIGHTS = "weights"


def content_digest(datum: "tinker.Datum") -> bytes:
    """The SHA-256 of a datum without the sizes of its weights, which the whole batch decides."""
    digest = hashlib.sha256()
    for chunk in datum.model_input.chunks:
        tokens = getattr(chunk, "tokens", None)
        if tokens is None:  # an image
            digest.update(chunk.model_dump_json().encode())
        else:
            digest.update(f"tokens {len(tokens)}\n".encode())
            digest.update(np.asarray(tokens, dtype="<i8").tobytes())
    for name in sorted(datum.loss_fn_inputs):
        tensor: Any = datum.loss_fn_inputs[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        values = tensor.to_numpy()
        if name == _WEIGHTS:
            digest.update((values != 0).tobytes())
            continue
        kind = "<f4" if tensor.dtype == "float32" else "<i8"
        digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return digest.digest()


def _weighted(content: bytes, datum: "tinker.Datum") -> bytes:
    weights: Any = datum.loss_fn_inputs.get(_WEIGHTS)
    values = b"" if weights is None else np.ascontiguousarray(weights.to_numpy(), "<f4").tobytes()
    return hashlib.sha256(content + values).digest()


def step_lines(
    step: int, datums: Sequence["tinker.Datum"], loss: str, params: Any
) -> list[dict[str, Any]]:
    """The lines of a step's two requests: forward and backward, and the optimizer.

    Args:
        step: counted from 1.
        params: the SDK's parameters of the optimizer.
    """
    return [_datums_line(step, "forward_backward", [datums], loss), optim_line(step, params)]


def optim_line(step: int, params: Any) -> dict[str, Any]:
    """The line of an optimizer's step, with its parameters as they are sent."""
    content = {"type": type(params).__name__, **params.model_dump(mode="json")}
    return _content_line(step, "optim_step", content)


def forward_line(
    step: int, batches: Sequence[Sequence["tinker.Datum"]], loss: str
) -> dict[str, Any]:
    """The line of the requests that measure the validation loss after a step."""
    return _datums_line(step, "forward", batches, loss)


def sample_line(
    step: int, asked: Iterable[tuple[np.ndarray, "tinker.SamplingParams"]], draws: int
) -> dict[str, Any]:
    """The line of the requests that ask EVAL_FILES after a step.

    Args:
        asked: the tokens of each prompt, (T,), and how it is to be answered.
    """
    digest, count, tokens = hashlib.sha256(f"sample {draws}\n".encode()), 0, 0
    for prompt, params in asked:
        digest.update(_canonical(params.model_dump(mode="json")))
        digest.update(prompt.astype("<i8").tobytes())
        count, tokens = count + 1, tokens + len(prompt)
    return {
        "step": step,
        "kind": "sample",
        "requests": count,
        "tokens": tokens,
        "digest": digest.hexdigest(),
    }


def creation_line(content: Mapping[str, Any]) -> dict[str, Any]:
    """The line of the request that makes the training client."""
    return _content_line(0, "create", content)


def _datums_line(
    step: int, kind: str, batches: Sequence[Sequence["tinker.Datum"]], loss: str
) -> dict[str, Any]:
    digest = hashlib.sha256(f"{loss}\n".encode())
    contents: list[bytes] = []
    for batch in batches:
        digest.update(f"{len(batch)}\n".encode())
        for datum in batch:
            contents.append(content_digest(datum))
            digest.update(_weighted(contents[-1], datum))
    return {
        "step": step,
        "kind": kind,
        "requests": len(batches),
        "datums": len(contents),
        # One more than the input has: the last token is a target alone.
        "tokens": sum(datum.model_input.length + 1 for batch in batches for datum in batch),
        "digest": digest.hexdigest(),
        "samples": "".join(content.hex()[:SAMPLE_DIGITS] for content in contents),
    }


def _content_line(step: int, kind: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "requests": 1,
        "content": dict(content),
        "digest": hashlib.sha256(_canonical(content)).hexdigest(),
    }


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
