"""A finished run -> what it used beside the forecast, and what the server bills, if it says.

The sessions of a run are labelled with its name, by which a bill tells its tokens from others.
"""

import datetime as dt
import queue
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinkersmith.forecast.costs import MILLION, Rates, dollars
from tinkersmith.runs.provenance import RUN_LABEL
from tinkersmith.service.connection import SLICE, Service

if TYPE_CHECKING:
    import tinker

_PATIENCE = 20.0  # seconds
_LONGEST = dt.timedelta(days=14)  # of one question to the server


@dataclass(frozen=True, slots=True)
class Billed:
    """What a server bills for a model in some hours; it lags by up to a few hours."""

    trained: int  # tokens
    read: int
    sampled: int
    usd: float | None  # None: it does not say
    of_run: bool = False  # whether only the sessions of the run are counted


def billed_since(
    service: Service,
    run: str,
    begun: dt.datetime,
    now: dt.datetime,
    patience: float = _PATIENCE,
) -> Billed | None:
    """The server's billing usage of a run in the hours since then; None if it is silent.

    It takes billing access in the organisation. Where the server knows no session of the run, all
    that ran on its base model in these whole hours is counted.
    """
    import tinker

    start = begun.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    end = now.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0) + dt.timedelta(hours=1)
    start = max(start, end - _LONGEST)
    address: dict[str, Any] = {} if service.kind == "cloud" else {"base_url": service.probe.url}

    answers: queue.SimpleQueue[Billed] = queue.SimpleQueue()

    # The run is finished: whatever goes wrong here, be it a refusal, an older SDK or a server that
    # fails, must not delay or spoil its end.
    def ask() -> None:
        with suppress(Exception):
            admin = tinker.AdminClient(api_key=service.key, **address)  # waits for the server, too
            answers.put(_sum(admin.get_billing_usage(start, end).result(), run, service.base_model))

    with service.progress.doing("asking what was billed"), suppress(queue.Empty):
        asking = threading.Thread(target=ask, name="billing", daemon=True)
        asking.start()
        deadline = time.monotonic() + patience
        while asking.is_alive() and time.monotonic() < deadline:
            asking.join(SLICE)
        return answers.get_nowait()
    return None


def _sum(usage: "tinker.types.BillingUsageResponse", run: str, base_model: str) -> Billed:
    sessions = {
        name
        for name, session in usage.sessions.items()
        if (session.user_metadata or {}).get(RUN_LABEL) == run
    }
    trained = read = sampled = 0
    usd: float | None = None
    for event in usage.data:
        if event.session_id not in sessions if sessions else event.base_model != base_model:
            continue
        info = event.event_info
        if info.type == "training":
            trained += info.token_count
        elif info.type == "sampling_prefill":
            read += info.token_count
        elif info.type == "sampling_sample":
            sampled += info.token_count
        if event.estimated_cost_usd is not None:
            usd = (usd or 0.0) + event.estimated_cost_usd
    return Billed(trained, read, sampled, usd, of_run=bool(sessions))


def used_lines(
    predicted: int | None, counted: int, rates: Rates | None, billed: Billed | None
) -> list[str]:
    """What was predicted, counted and billed, beside each other.

    Args:
        predicted: tokens to train on, by the plan; None where they were not counted before.
        counted: tokens that were trained on.
    """
    cost = "" if rates is None else f", {dollars(counted * rates.train / MILLION)} of training"
    planned = "" if predicted is None else f" of {predicted:,} predicted"
    lines = [f"Used     {counted:,}{planned} tokens trained on{cost}"]
    if billed is None:
        lines.append("Billed   the server does not say (it takes billing access)")
        return lines
    usd = "" if billed.usd is None else f", {dollars(billed.usd)}"
    others = "" if billed.of_run else ", with whatever else ran on this model in these hours"
    lines.append(
        f"Billed   {billed.trained:,} tokens trained on, {billed.read:,} read and "
        f"{billed.sampled:,} sampled{usd}{others}; the bill lags by hours"
    )
    return lines
