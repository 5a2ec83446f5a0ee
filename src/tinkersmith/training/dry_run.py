"""Settings -> what a run would do, cost and need, without training: `dry_run`.

A server that bills is asked for nothing that costs. On this machine, a few steps of a scratch
adapter are trained to measure the time; nothing is saved.
"""

from contextlib import ExitStack
from functools import partial

from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.read import read_data
from tinkersmith.forecast.budget import checked_rates, cut_to_budget
from tinkersmith.forecast.duration import measured_pace
from tinkersmith.forecast.lines import Forecast, forecast_lines
from tinkersmith.forecast.memory import memory_lines, memory_need
from tinkersmith.forecast.workload import workload_of
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.preview.opening import opening_lines
from tinkersmith.progress import watched
from tinkersmith.service.connection import name_on_server, open_service, server_of
from tinkersmith.service.initial import initial_weights, template_line
from tinkersmith.settings.fields import Settings
from tinkersmith.text.tokenizer import given_tokenizer
from tinkersmith.trackers.available import check_trackers
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.plan import encoding_for, measurements_of
from tinkersmith.training.scored_questions import eval_lines, read_eval_files


def dry_run(settings: Settings, signals: Interruption) -> Forecast:
    """Check all that a run needs, and print what it would do.

    Raises:
        UserError: something the user can fix, in one sentence, as a run would say it.
    """
    with watched(partial(print, flush=True)) as progress, ExitStack() as guard:
        base_model, note = resolve_base_model(settings.base_model)
        settings = settings.model_copy(update={"base_model": base_model})
        if note:
            progress.say(note)
        check_trackers(settings.trackers)
        given = given_tokenizer(settings.tokenizer, base_model)
        is_cloud = server_of(settings)[0] != "embedded"
        rates = checked_rates(settings, name_on_server(base_model), is_cloud=is_cloud)
        weights = initial_weights(settings)
        progress.say("Data")
        chosen = read_eval_files(settings, progress)
        source = read_data(settings, progress)
        with progress.doing("comparing the samples"):
            lines = source.report(listed=False)
            lines += [] if chosen is None else eval_lines(chosen, settings.seed)
        for line in lines:
            progress.say(f"  {line}")
        signals.check()
        service = guard.enter_context(open_service(settings, progress=progress, weights=weights))
        service.check = signals.check
        service.use_tokenizer(given)
        service.check_trainable()
        if weights is not None:
            service.check_weights(weights, settings)
            progress.say(f"  Starting from {weights.about}.")
        with progress.doing("loading the tokenizer"):
            tokenizer = service.tokenizer()
        encoding = encoding_for(settings, None, service, tokenizer, source, progress.say)
        if line := template_line(weights, encoding.template):
            progress.say(f"  {line}")
        data = source.tokenized(encoding, progress)
        guard.callback(data.stop)
        for line in opening_lines(source, data, encoding):
            progress.say(f"  {line}".rstrip())
        questions, _ = measurements_of(data, encoding, chosen, progress)
        work = workload_of(data, settings, questions)
        steps = steps_per_epoch(data.count, settings.batch_size) * settings.num_epochs
        progress.say("Forecast")
        where = "this machine" if service.kind == "embedded" else service.probe.url
        progress.say(f"  Model    {service.base_model} on {where}: it can be trained there")
        folder, need = local_model_folder(service.base_model), None
        if service.kind == "embedded" and folder is not None:
            longest = max((len(part.tokens) for part in data.batch(0)), default=0)
            if work.step_tokens is not None:
                longest = data.summary().lengths.max
            need = memory_need(folder, settings, longest, max(work.step_tokens or [longest]))
            for line in memory_lines(need) if need is not None else []:
                progress.say(f"  {line}")
        pace = None
        if service.kind == "embedded" and work.step_tokens is not None:
            pace = measured_pace(service, settings, data, steps)
        steps, cuts = cut_to_budget(settings, work, rates, pace, steps, 0, 0.0)
        forecast = Forecast(
            settings, service.base_model, service.kind, work, steps, 0, rates, pace, need
        )
        for line in [*forecast_lines(forecast), *cuts]:
            progress.say(f"  {line}")
        if settings.budget_minutes and pace is None:
            progress.say(
                "  Budget   BUDGET_MINUTES cuts the plan when training starts: the time of a step "
                "is measured then"
            )
        progress.say("Nothing was trained and nothing was saved.")
    return forecast
