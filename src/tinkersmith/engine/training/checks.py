"""A batch and a base model -> a refusal, before any work is done."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.images.placing import text_only, with_images
from tinkersmith.engine.messages import Datum, LossConfig
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.training.losses import INPUT_NAMES, LOSSES, LossFunction, loss_options


def with_datum_images(base: BaseModel, datums: Sequence[Datum]) -> list[Datum]:
    """The datums with their images at their places among the tokens.

    Raises:
        Refused: the model cannot see, or an image cannot be read.
    """
    placed: list[Datum] = []
    for index, datum in enumerate(datums):
        if datum.chunks:
            tokens, images = with_images(
                base.vision, base.name, datum.tokens, datum.chunks, f"datum {index}"
            )
            datum = replace(datum, tokens=tokens, chunks=(), images=images)
        placed.append(datum)
    return placed


def check_datums(base: BaseModel, datums: Sequence[Datum], name: str, config: LossConfig) -> None:
    """Check everything that can be wrong with a batch, before any work is done.

    Raises:
        Refused: with the datum's number and what is wrong with it.
    """
    if name not in LOSSES:
        raise Refused(f"loss_fn {name!r} is not one of {', '.join(LOSSES)}.")
    loss_options(name, config)
    if not datums:
        raise Refused("the batch holds no datum.")
    for index, datum in enumerate(datums):
        _check_datum(base, datum, name, f"datum {index}")


def _check_datum(base: BaseModel, datum: Datum, name: str, where: str) -> None:
    length = len(datum.tokens)
    if length == 0:
        raise Refused(f"{where} has no tokens.")
    if length > base.max_context:
        raise Refused(
            f"{where} has {length:,} tokens; {base.name} takes at most {base.max_context:,}."
        )
    text = text_only(datum.tokens, datum.images)
    _check_token_ids(text, base.vocab_size, f"{where}, model_input")
    loss = LOSSES[name]
    missing = sorted(loss.inputs - datum.inputs.keys())
    if missing:
        raise Refused(f"{where}: {name} needs loss_fn_inputs[{missing[0]!r}].")
    unknown = sorted(datum.inputs.keys() - INPUT_NAMES)
    if unknown:
        raise Refused(
            f"{where}: there is no loss_fn_inputs[{unknown[0]!r}]; the names are "
            f"{', '.join(sorted(INPUT_NAMES))}."
        )
    targets = datum.inputs["target_tokens"]
    if targets.ndim not in (1, 2) or targets.shape[0] != length or targets.size == 0:
        raise Refused(
            f"{where}: target_tokens has shape {list(targets.shape)}, "
            f"but model_input has {length} tokens."
        )
    if targets.dtype.kind != "i":
        raise Refused(f"{where}: target_tokens has dtype {targets.dtype}; it must be int64.")
    if name != "cross_entropy" and targets.ndim != 1:
        raise Refused(f"{where}: {name} takes one target token a position.")
    _check_token_ids(targets, base.vocab_size, f"{where}, target_tokens")
    for key, values in datum.inputs.items():
        if values.shape != targets.shape:
            raise Refused(
                f"{where}: {key} has shape {list(values.shape)}, "
                f"but target_tokens has {list(targets.shape)}."
            )
        if not np.isfinite(values).all():
            raise Refused(f"{where}: {key} holds a value that is not finite.")
    if name == "stable_reinforce" and not datum.has_provenance:
        raise Refused(
            f"{where}: stable_reinforce needs to know which sampled sequence its tokens come from; "
            "annotate the datum with with_provenance()."
        )
    _check_clips(datum, loss, f"{where}, {name}")
    if name == "gspo":
        unmarked = not (datum.inputs["sequence_ratio_mask"] != 0).any()
        if unmarked and (datum.inputs["advantages"] != 0).any():
            raise Refused(
                f"{where}: sequence_ratio_mask marks no token, so gspo has no ratio for the "
                "advantages that are not 0."
            )


def ignored_inputs(datums: Sequence[Datum], name: str) -> list[str]:
    """The inputs of a batch that its loss does not use, sorted."""
    return sorted({key for datum in datums for key in datum.inputs} - LOSSES[name].used)


def _check_clips(datum: Datum, loss: LossFunction, where: str) -> None:
    low, high = (
        datum.inputs.get(key) if key in loss.optional else None
        for key in ("clip_low_threshold", "clip_high_threshold")
    )
    if low is not None and high is not None and (low > high).any():
        position = int(np.argmax(np.ravel(low > high)))
        raise Refused(
            f"{where}: clip_low_threshold is above clip_high_threshold at position {position}."
        )


def _check_token_ids(tokens: np.ndarray, vocab_size: int, where: str) -> None:
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise Refused(
            f"{where}: token id {int(outside.flat[0])} is not in the vocabulary of "
            f"{vocab_size:,} tokens."
        )
