"""A forecast -> the lines that a run and --dry-run print before the first step."""

from dataclasses import dataclass

from tinkersmith.export.ways import export_ways
from tinkersmith.forecast.costs import Rates, dollars, least_cost, most_cost
from tinkersmith.forecast.duration import Pace, shown_duration
from tinkersmith.forecast.memory import MemoryNeed
from tinkersmith.forecast.workload import Workload
from tinkersmith.models.known import adapter_weights, known_model
from tinkersmith.models.line_up import PRICES_PAGE, STORAGE_PRICE, KnownModel
from tinkersmith.plurals import counted
from tinkersmith.service.initial import will_train_output_layer
from tinkersmith.settings.fields import Settings

_GB = 1e9
# Bytes of an adapter's weight. A sampler's are stored in bfloat16 or float32, a state's with two
# moments of the optimizer; which of them the cloud takes is not published.
_SAMPLER_BYTES = (2, 4)
_STATE_BYTES = (6, 12)
_THINKING = {
    "none": "the model does not think",
    "always": "the model always thinks",
    "switch": "the model can think or answer at once",
    "effort": "the model thinks at several levels",
}


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is known of a run before its first step."""

    settings: Settings
    base_model: str
    kind: str  # of the server: "embedded" | "cloud" | "url"
    work: Workload
    steps: int  # after a budget
    first: int  # steps that are done already
    rates: Rates | None
    pace: Pace | None
    memory: MemoryNeed | None = None  # of --dry-run on this machine


def forecast_lines(forecast: Forecast) -> list[str]:
    """The lines, each with a title of its own."""
    lines = _work_lines(forecast)
    if forecast.kind != "embedded":
        model = known_model(forecast.base_model)
        lines += _price_lines(forecast)
        lines += _storage_lines(forecast)
        lines.append(f"Thinking {_thinking(forecast.settings, model)}")
        lines += _export_lines(forecast)
    lines.append(f"Time     {_time(forecast)}")
    return lines


def _work_lines(forecast: Forecast) -> list[str]:
    work, settings = forecast.work, forecast.settings
    tokens = work.trained_tokens(forecast.steps, forecast.first)
    epochs = counted(settings.num_epochs, "epoch")
    steps = counted(forecast.steps - forecast.first, "step")
    samples = counted(work.samples, "sample")
    if work.step_tokens is None or tokens is None:
        return [
            f"Work     {samples} an epoch, {epochs}, {steps}; tokens are counted as they are read"
        ]
    epoch = sum(work.step_tokens[: work.steps_per_epoch])
    line = (
        f"Work     {samples} and {epoch:,} tokens an epoch, {epochs}, {steps}, "
        f"{tokens:,} tokens to train on"
    )
    measured = work.measurements(forecast.steps) - work.measurements(forecast.first)
    read = measured * (work.validation_tokens + work.prompt_tokens)
    if read:
        line += f"; {counted(measured, 'measurement')} read {read:,} tokens"
    if work.answer_tokens:
        line += f" and sample at most {measured * work.answer_tokens:,}"
    return [line]


def _price_lines(forecast: Forecast) -> list[str]:
    rates, work = forecast.rates, forecast.work
    if rates is None:
        return [
            f"Price    not known for {forecast.base_model}; see {PRICES_PAGE}, or set TOKEN_PRICE"
        ]
    least = least_cost(work, rates, forecast.steps, forecast.first)
    most = most_cost(work, rates, forecast.steps, forecast.first)
    if least is None or most is None:
        return [
            f"Price    {rates.train:g} USD for a million tokens that are trained on, {rates.source}"
        ]
    upper = 2 * most if rates.discounted else most
    amount = dollars(least)
    if dollars(upper) != amount:
        why = ["with the longest answers"] if most > least else []
        why += ["if the discount ends"] if rates.discounted else []
        amount = f"{amount} to {dollars(upper)} (the second {' and '.join(why)})"
    return [f"Price    {amount}, {rates.source}"]


def _storage_lines(forecast: Forecast) -> list[str]:
    settings = forecast.settings
    weights = adapter_weights(forecast.base_model, settings.lora_rank)
    if weights is None:
        return ["Storage  not known: the table does not have this model's adapter"]
    samplers = max(forecast.work.measurements(forecast.steps), 1)
    if settings.save_every:
        samplers += forecast.steps // settings.save_every
    states = samplers
    if settings.keep_last:
        states = min(samplers, settings.keep_last + settings.num_epochs + 1)
    low, high = (
        weights * (samplers * sampler + states * state) / _GB
        for sampler, state in zip(_SAMPLER_BYTES, _STATE_BYTES, strict=True)
    )
    kept = (
        f"for {counted(settings.checkpoint_ttl_days, 'day')} (CHECKPOINT_TTL_DAYS)"
        if settings.checkpoint_ttl_days
        else "until you delete them"
    )
    return [
        f"Storage  {low:,.1f} to {high:,.1f} GB of checkpoints, {dollars(low * STORAGE_PRICE)} to "
        f"{dollars(high * STORAGE_PRICE)} a month, {kept}"
    ]


def _thinking(settings: Settings, model: KnownModel | None) -> str:
    about = "not known of this model" if model is None else _THINKING[model.thinking]
    return f"{about}; THINKING is {settings.thinking!r}"


def _export_lines(forecast: Forecast) -> list[str]:
    settings, name = forecast.settings, forecast.base_model
    ways = export_ways(
        name,
        attention=settings.train_attn,
        mlp=settings.train_mlp,
        unembed=will_train_output_layer(settings, name),
        rank=settings.lora_rank,
    )
    if not ways.family:
        return [
            f"Export   not tested for {name}: a PEFT adapter or a merged model may be refused "
            "after training"
        ]
    first, *more = ways.lines()
    return [f"Export   {first}", *(f"         {line}" for line in more)]


def _time(forecast: Forecast) -> str:
    if forecast.pace is None:
        return "is not known before the first steps of a run on this server, which show it"
    seconds = forecast.pace.of(forecast.work, forecast.steps, forecast.first)
    measured = f"by {counted(forecast.pace.steps, 'measured step')}"
    if seconds is None:
        return "not known"
    answers = ", without the answers to EVAL_FILES" if forecast.work.answer_tokens else ""
    return f"about {shown_duration(seconds)} of training, {measured}{answers}"
