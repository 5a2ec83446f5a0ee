"""Outcomes -> rows of a table, and a JSON file that is written anew after each."""

import datetime as dt
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import sampling, training
from benchmarks.gpu.blocks import CORRECTNESS, ENVIRONMENT, SAMPLING, TRAINING
from benchmarks.gpu.correctness import WORST_TENSOR
from benchmarks.gpu.runner import Figures, Outcome
from tinkersmith.files import write_json

HEAD = f"{'block':62} {'result':8} {'s':>6}  figures"
_REASON = 160  # characters


def row(outcome: Outcome) -> str:
    seconds = f"{outcome.seconds:6.1f}" if outcome.status != "not run" else f"{'-':>6}"
    text = _FORMS[outcome.block.kind](outcome.figures) if outcome.figures else ""
    text = "; ".join(filter(None, [outcome.reason[:_REASON], text]))
    return f"{outcome.block.name:62} {outcome.status:8} {seconds}  {text}"


def write(path: Path, command: str, outcomes: Sequence[Outcome]) -> None:
    """All outcomes so far, with what each block wrote to its output."""
    write_json(
        path,
        {
            "command": command,
            "date": dt.date.today().isoformat(),
            "blocks": [
                {
                    "name": outcome.block.name,
                    "kind": outcome.block.kind,
                    "status": outcome.status,
                    "seconds": round(outcome.seconds, 1),
                    "reason": outcome.reason,
                    "figures": outcome.figures,
                    "arguments": dict(outcome.block.arguments),
                    "log": outcome.log,
                }
                for outcome in outcomes
            ],
        },
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    counts = Counter(outcome.status for outcome in outcomes)
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def comparisons(outcomes: Sequence[Outcome]) -> list[str]:
    """How fast ours is beside each other contestant of its shape, and whether first losses agree.

    Contestants that train the attention layers only are compared with each other.
    """
    fields: dict[tuple[str, str, bool], list[Outcome]] = {}
    for outcome in outcomes:
        if "tokens a second" in outcome.figures:
            what, shape = (outcome.block.arguments[name] for name in ("what", "shape"))
            attention_only = what.endswith(training.ATTENTION_ONLY)
            fields.setdefault((outcome.block.kind, str(shape), attention_only), []).append(outcome)
    ours = {training.OURS, training.OURS_ATTENTION, sampling.OURS}
    return [
        _comparison(first, peer)
        for field in fields.values()
        for first in field
        if first.block.arguments["what"] in ours
        for peer in field
        if peer is not first
    ]


def _comparison(ours: Outcome, peer: Outcome) -> str:
    ratio = ours.figures["tokens a second"] / peer.figures["tokens a second"]
    line = f"{ours.block.name} is {ratio:.2f} times as fast as {peer.block.arguments['what']}"
    if ours.figures.get("documents") != peer.figures.get("documents"):
        return f"{line}, with documents of another length"
    name = "loss of the first step"
    if name not in ours.figures or name not in peer.figures:
        return line
    theirs = peer.figures[name]
    return f"{line}; first losses differ by {abs(ours.figures[name] - theirs) / theirs:.2%}"


def is_defect(outcome: Outcome) -> bool:
    """Whether a path of ours is wrong or does not run; a peer may lack memory without harm."""
    return outcome.block.kind == CORRECTNESS and outcome.status in ("wrong", "failed")


def _environment(figures: Figures) -> str:
    parts = [figures.get("gpu", "no GPU")]
    if "memory, GB" in figures:
        parts.append(f"{figures['memory, GB']:.0f} GB")
    for name in ("bf16 product, TFLOP/s", "copy, TB/s"):
        if name in figures:
            parts.append(f"{name} {figures[name]:,.1f}")
    parts += [f"{name} {number}" for name, number in figures.get("versions", {}).items()]
    parts += [f"{name} {number}" for name, number in figures.get("optional", {}).items()]
    for name in ("variable-length FlashAttention", "float8"):
        if name in figures:
            parts.append(f"{name}: {figures[name]}")
    return ", ".join(parts)


def _correctness(figures: Figures) -> str:
    return "; ".join(
        f"{name}: "
        + ", ".join(
            f"{what} {_number(value)}"
            for what, value in differences.items()
            if what != WORST_TENSOR
        )
        for name, differences in figures.items()
    )


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.0e}"


def _training(figures: Figures) -> str:
    if "tokens a second" not in figures:
        return ""
    parts = [f"{figures['tokens a second']:,.0f} tokens/s"]
    if "share of the bf16 peak" in figures:
        parts.append(f"{figures['share of the bf16 peak']:.0%} of the bf16 peak")
    if "peak memory, GB" in figures:
        parts.append(f"{figures['peak memory, GB']:.1f} GB")
    documents = figures["documents"]
    parts.append(f"{len(documents)} documents of {sum(documents[0]):,} tokens")
    if "loss of the first step" in figures:
        parts.append(f"first loss {figures['loss of the first step']:.4f}")
    parts.append(f"first step {figures['seconds of the first step']:.1f} s")
    return ", ".join(parts)


def _sampling(figures: Figures) -> str:
    if "tokens a second" not in figures:
        return ""
    parts = [f"{figures['tokens a second']:,.0f} tokens/s"]
    parts.append(f"{figures['milliseconds a token of every prompt']:.1f} ms a step")
    if "peak memory, GB" in figures:
        parts.append(f"{figures['peak memory, GB']:.1f} GB")
    parts.append(
        f"{figures['prompts']} prompts of {figures['tokens a prompt']} tokens, "
        f"{figures['new tokens a prompt']} new each"
    )
    return ", ".join(parts)


_FORMS = {
    ENVIRONMENT: _environment,
    CORRECTNESS: _correctness,
    TRAINING: _training,
    SAMPLING: _sampling,
}
