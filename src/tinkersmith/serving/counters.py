"""Requests, tokens and times of a serving process, in Prometheus' text form."""

import bisect
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
_DURATION = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds
_PREFIX = "tinkersmith_serve_"


@dataclass(slots=True)
class Histogram:
    """How many values were at most each bound."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list[int])
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        lines, below = [f"# TYPE {name} histogram"], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


@dataclass(slots=True)
class Counters:
    """What a serving process has done. Used on its event loop only."""

    open_requests: int = 0
    requests: Counter[tuple[str, str, int]] = field(
        default_factory=Counter[tuple[str, str, int]]
    )  # by route, model and status
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    uncounted: int = 0  # streams whose usage the client did not ask for
    left: int = 0  # clients that closed their connection before the end
    first_token: Histogram = field(default_factory=lambda: Histogram(_FIRST_TOKEN))
    duration: Histogram = field(default_factory=lambda: Histogram(_DURATION))
    started: float = field(default_factory=time.time)

    def add_usage(self, model: str, usage: Mapping[str, Any]) -> None:
        """Count the tokens that an answer reports, in OpenAI's or Anthropic's words."""
        for kind, names in (
            ("prompt", ("prompt_tokens", "input_tokens")),
            ("completion", ("completion_tokens", "output_tokens")),
        ):
            for name in names:
                count = usage.get(name)
                if isinstance(count, int):
                    self.tokens[(model, kind)] += count

    def text(self, restarts: int) -> str:
        """All of it as Prometheus reads it."""
        lines: list[str] = []
        lines += _counter(
            "requests_total",
            (
                ({"route": route, "model": model, "status": str(status)}, count)
                for (route, model, status), count in sorted(self.requests.items())
            ),
        )
        lines += _counter(
            "tokens_total",
            (
                ({"model": model, "kind": kind}, count)
                for (model, kind), count in sorted(self.tokens.items())
            ),
        )
        lines += _counter("streams_without_usage_total", [({}, self.uncounted)])
        lines += _counter("clients_left_total", [({}, self.left)])
        lines += _counter("engine_restarts_total", [({}, restarts)])
        name = f"{_PREFIX}open_requests"
        lines += [f"# TYPE {name} gauge", f"{name} {self.open_requests}"]
        name = f"{_PREFIX}start_time_seconds"
        lines += [f"# TYPE {name} gauge", f"{name} {self.started:.3f}"]
        lines += self.first_token.lines(f"{_PREFIX}time_to_first_token_seconds")
        lines += self.duration.lines(f"{_PREFIX}request_seconds")
        return "\n".join(lines) + "\n"


def usage_of(value: object) -> Mapping[str, Any]:
    """The usage that an answer or an event reports; empty where it reports none."""
    if not isinstance(value, dict):
        return {}
    fields = cast("dict[str, Any]", value)
    message = fields.get("message")  # Anthropic's first event
    inner = cast("dict[str, Any]", message).get("usage") if isinstance(message, dict) else None
    usage = fields.get("usage") or inner
    return cast("dict[str, Any]", usage) if isinstance(usage, dict) else {}


def _counter(name: str, values: Iterable[tuple[Mapping[str, str], int]]) -> list[str]:
    name = f"{_PREFIX}{name}"
    lines = [f"# TYPE {name} counter"]
    for labels, value in values:
        shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
