"""Tokens and prices -> a range of USD, and how many steps a budget pays for."""

from dataclasses import dataclass, replace

from tinkersmith.forecast.workload import Workload
from tinkersmith.models.known import prices_of
from tinkersmith.models.line_up import CACHED_SHARE, PRICES_DATE, PRICES_PAGE, Prices
from tinkersmith.settings.fields import Settings

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Rates:
    """What a million tokens cost, in USD, and who says so."""

    prefill: float
    sample: float
    train: float
    discounted: bool
    source: str
    cached: float | None = None  # of prompts that were read shortly before; None: as all prompts


def rates_of(settings: Settings, base_model: str, *, is_cloud: bool) -> Rates | None:
    """The prices of TOKEN_PRICE, or of the table for Tinker's cloud; None where nobody says.

    Args:
        is_cloud: whether the server may be Tinker's cloud, whose prices the table has.
    """
    if price := settings.token_price:
        return Rates(price["prefill"], price["sample"], price["train"], False, "by TOKEN_PRICE")
    known: Prices | None = prices_of(base_model) if is_cloud else None
    if known is None or known.train is None or known.prefill is None or known.sample is None:
        return None
    source = f"by the table of {PRICES_DATE}; today's prices: {PRICES_PAGE}"
    cached = CACHED_SHARE * known.prefill
    return Rates(known.prefill, known.sample, known.train, known.discounted, source, cached)


def least_cost(work: Workload, rates: Rates, steps: int, first: int = 0) -> float | None:
    """USD without a single sampled token, for the steps from `first` on; None: not counted.

    The questions of EVAL_FILES are the same at each measurement: all but the first may be cached.
    """
    trained = work.trained_tokens(steps, first)
    if trained is None:
        return None
    measured = work.measurements(steps) - work.measurements(first)
    again = max(measured - 1, 0) * work.prompt_tokens
    read = measured * (work.validation_tokens + work.prompt_tokens) - again
    cached = rates.prefill if rates.cached is None else rates.cached
    return (trained * rates.train + read * rates.prefill + again * cached) / MILLION


def most_cost(work: Workload, rates: Rates, steps: int, first: int = 0) -> float | None:
    """USD with the longest answers and no cached prompt, at today's prices; None: not counted."""
    least = least_cost(work, replace(rates, cached=None), steps, first)
    if least is None:
        return None
    measured = work.measurements(steps) - work.measurements(first)
    sampled = measured * work.answer_tokens + work.final_answer_tokens
    return least + sampled * rates.sample / MILLION


def steps_within(work: Workload, rates: Rates, budget: float, steps: int, first: int = 0) -> int:
    """How many of the steps from `first` on a budget pays for, with the longest answers."""
    low, high = first, steps  # the cost grows with the steps: bisection
    while low < high:
        middle = (low + high + 1) // 2
        cost = most_cost(work, rates, middle, first)
        if cost is None or cost <= budget:
            low = middle
        else:
            high = middle - 1
    return low


def dollars(amount: float) -> str:
    """An amount with as many digits as it needs."""
    return f"{amount:,.2f} USD" if amount >= 0.1 or amount == 0 else f"{amount:.2g} USD"
