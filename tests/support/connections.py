"""A connection without clients, which is all that a download needs."""

from typing import Any, cast

from tinkersmith.progress import Progress
from tinkersmith.service.connection import Service
from tinkersmith.service.probe import Probe


def bare_connection(url: str, patience: float = 0.0) -> Service:
    """A `Service` to `url` on which nothing was opened; `patience` is in seconds."""
    return Service(
        client=cast(Any, None),
        rest=cast(Any, None),
        kind="url",
        base_model="",
        max_contexts={},
        sampled_only=frozenset(),
        progress=Progress(print),
        probe=Probe(url, None),
        patience=patience,
        connect=cast(Any, None),
    )
