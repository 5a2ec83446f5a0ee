"""BUDGET_USD and BUDGET_MINUTES -> a plan that fits, and a run that stops before they are spent."""

from dataclasses import dataclass

from tinkersmith.errors import UserError
from tinkersmith.forecast.costs import MILLION, Rates, dollars, most_cost, rates_of, steps_within
from tinkersmith.forecast.duration import LEAST_STEPS, Pace, shown_duration
from tinkersmith.forecast.workload import Workload
from tinkersmith.models.line_up import PRICES_PAGE
from tinkersmith.settings.fields import Settings

_TO_MEASURE = 0.1  # of BUDGET_USD at most, beside the fewest steps


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may still use; None where nothing limits it."""

    usd: float | None
    seconds: float | None
    rates: Rates | None
    measured: int = 0  # tokens of the steps that were trained to measure the time, and are billed

    def spent_by(self, seconds: float) -> str | None:
        """The setting whose limit a run of so many seconds would pass."""
        return "BUDGET_MINUTES" if self.seconds is not None and seconds > self.seconds else None

    def paid_by(self, trained: int, read: int, sampled: int) -> str | None:
        """The setting whose limit so many tokens would pass."""
        if self.usd is None or self.rates is None:
            return None
        cost = trained * self.rates.train + read * self.rates.prefill + sampled * self.rates.sample
        # The cut plan may spend the budget to the last token; sums of floats are not exact.
        return "BUDGET_USD" if cost / MILLION > self.usd * (1 + 1e-9) else None


def checked_rates(settings: Settings, base_model: str, *, is_cloud: bool) -> Rates | None:
    """What tokens cost; see `rates_of`.

    Raises:
        UserError: BUDGET_USD is set, and nobody says what tokens cost.
    """
    rates = rates_of(settings, base_model, is_cloud=is_cloud)
    if settings.budget_usd and rates is None:
        raise UserError(
            f"BUDGET_USD is {settings.budget_usd:g}, but the prices of {base_model} are not known. "
            'Set TOKEN_PRICE = {"prefill": P, "sample": S, "train": T}, in USD for a million '
            f"tokens (see {PRICES_PAGE}), or leave BUDGET_USD at 0."
        )
    return rates


def most_to_measure(work: Workload, rates: Rates, left: float, first: int) -> int:
    """How many tokens may be trained to measure the time of a step, which a server bills.

    Args:
        left: USD of BUDGET_USD.
        first: steps that are done already.

    Raises:
        UserError: with the fewest steps that are measured, not one step of the run is paid for.
    """
    tokens = sum((work.step_tokens or ())[:LEAST_STEPS])
    cost = tokens * rates.train / MILLION
    step = most_cost(work, rates, first + 1, first) or 0.0
    if cost + step > left:
        raise UserError(
            f"BUDGET_USD leaves {dollars(left)}. For BUDGET_MINUTES, {LEAST_STEPS} steps are "
            f"trained to measure their time, which cost up to {dollars(cost)}; one step of the run "
            f"costs up to {dollars(step)}. Raise BUDGET_USD, or leave BUDGET_MINUTES at 0."
        )
    return int(_TO_MEASURE * left / rates.train * MILLION) if rates.train else tokens


def spent_before(work: Workload, rates: Rates | None, trained: int, done: int) -> float:
    """USD that the steps of a resumed run have cost already, at today's prices.

    Args:
        trained: tokens, with those of steps that were trained to measure the time.
        done: steps.
    """
    if rates is None:
        return 0.0
    measured = work.measurements(done)
    read = measured * (work.validation_tokens + work.prompt_tokens)
    sampled = measured * work.answer_tokens
    return (trained * rates.train + read * rates.prefill + sampled * rates.sample) / MILLION


def cut_to_budget(
    settings: Settings,
    work: Workload,
    rates: Rates | None,
    pace: Pace | None,
    steps: int,
    first: int,
    spent: float,
) -> tuple[int, list[str]]:
    """How many of a run's steps its budgets allow, and what is said of it.

    Args:
        first: steps that are done already, which cost `spent` USD.

    Raises:
        UserError: not one step fits.
    """
    lines: list[str] = []
    fitting = steps
    if settings.budget_usd and rates is not None:
        left = max(settings.budget_usd - spent, 0.0)
        allowed = steps_within(work, rates, left, steps, first)
        if allowed == first < steps:
            one = most_cost(work, rates, first + 1, first) or 0.0
            raise UserError(
                f"BUDGET_USD is {settings.budget_usd:g}, of which {dollars(left)} are left; "
                f"one step with its measurements costs up to {dollars(one)}. Raise it, or set a "
                "smaller BATCH_SIZE, SAMPLING_MAX_TOKENS or EVAL_LIMIT."
            )
        if allowed < fitting:
            fitting = allowed
            lines.append(_cut("BUDGET_USD", settings.budget_usd, fitting, steps, work, settings))
    if settings.budget_minutes and pace is not None:
        seconds = 60 * settings.budget_minutes
        allowed = pace.steps_within(work, seconds, steps, first)
        if allowed == first < steps:
            one = pace.of(work, first + 1, first) or 0.0
            raise UserError(
                f"BUDGET_MINUTES is {settings.budget_minutes:g}; one step with its measurements "
                f"takes about {shown_duration(one)}. Raise it, or set a smaller BATCH_SIZE."
            )
        if allowed < fitting:
            fitting = allowed
            name, value = "BUDGET_MINUTES", settings.budget_minutes
            lines.append(_cut(name, value, fitting, steps, work, settings))
    return fitting, lines


def _cut(
    name: str, value: float, fitting: int, steps: int, work: Workload, settings: Settings
) -> str:
    epochs = fitting / work.steps_per_epoch
    return (
        f"Budget   {name} = {value:g} cuts the plan to {fitting:,} of {steps:,} steps: "
        f"{epochs:.2g} of {settings.num_epochs} epochs. LR_SCHEDULE ends at the last of them."
    )
