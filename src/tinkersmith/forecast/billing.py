"""A finished run -> what it used beside the forecast, and what the server bills, if it says."""

import datetime as dt
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tinkersmith.forecast.costs import MILLION, Rates, dollars
from tinkersmith.service.connection import Service

_PATIENCE = 20.0  # seconds
_LONGEST = dt.timedelta(days=14)  # of one question to the server


@dataclass(frozen=True, slots=True)
class Billed:
    """What a server bills for a model in some hours; it lags by up to a few hours."""

    trained: int  # tokens
    read: int
    sampled: int
    usd: float | None  # None: it does not say


def billed_since(service: Service, begun: dt.datetime, now: dt.datetime) -> Billed | None:
    """The server's billing usage of our base model in the hours since then; None if it is silent.

    It takes billing access in the organisation. Whole hours are counted, so that other runs on the
    same model are among them.
    """
    import tinker

    start = begun.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0)
    end = now.astimezone(dt.UTC).replace(minute=0, second=0, microsecond=0) + dt.timedelta(hours=1)
    start = max(start, end - _LONGEST)
    address: dict[str, Any] = {} if service.kind == "cloud" else {"base_url": service.probe.url}

    # The run is finished: whatever goes wrong here, be it a refusal, an older SDK or a server that
    # fails, must not delay or spoil its end.
    with service.progress.doing("asking what was billed"), suppress(Exception):
        admin = tinker.AdminClient(api_key=service.key, **address)
        usage = admin.get_billing_usage(start, end).future().result(timeout=_PATIENCE)
        return _sum(usage, service.base_model)
    return None


def _sum(usage: Any, base_model: str) -> Billed:
    trained = read = sampled = 0
    usd: float | None = None
    for event in usage.events:
        if event.base_model not in (None, base_model):
            continue
        kind = event.event_info.type
        if kind == "training":
            trained += event.event_info.token_count
        elif kind == "sampling_prefill":
            read += event.event_info.token_count
        elif kind == "sampling_sample":
            sampled += event.event_info.token_count
        if event.estimated_cost_usd is not None:
            usd = (usd or 0.0) + event.estimated_cost_usd
    return Billed(trained, read, sampled, usd)


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
    lines.append(
        f"Billed   {billed.trained:,} tokens trained on, {billed.read:,} read and "
        f"{billed.sampled:,} sampled{usd}, with whatever else ran on this model in these hours; "
        "it lags by hours"
    )
    return lines
