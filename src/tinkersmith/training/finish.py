"""A trained `Plan` and its curves -> answers, advice, and the `TrainedRun` that the caller gets."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tinkersmith.batches.length_report import LengthReport
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.progress import Progress
from tinkersmith.runs.folder import RunFolder
from tinkersmith.service.answers import answer_within, request_answers
from tinkersmith.service.stored import stored_line
from tinkersmith.text.guards import unguarded
from tinkersmith.training.advice import advice
from tinkersmith.training.loop import Curves
from tinkersmith.training.plan import Plan

if TYPE_CHECKING:
    import tinker


@dataclass
class TrainedRun:
    """A finished run. Its sampling client works until `close`, or the program's end."""

    run: RunFolder
    sampling_client: "tinker.SamplingClient"
    sampler_path: str
    state_path: str
    epoch_losses: list[float]  # mean loss per completion token
    validation_losses: list[float]
    answers: list[str]  # to the first training sample
    _open: ExitStack = field(repr=False)

    def close(self) -> None:
        """End the session, and the embedded engine if there is one."""
        self._open.close()

    def __enter__(self) -> "TrainedRun":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def finish(
    plan: Plan, curves: Curves, lengths: LengthReport, guard: ExitStack, progress: Progress
) -> TrainedRun:
    """Answer the first training sample, and print where the model is and what to try next.

    Args:
        guard: keeps the connection; the `TrainedRun` takes it over.
    """
    last = plan.run.checkpoints()[-1]
    with progress.doing("answering the first training sample"):
        sampler = plan.service.create_sampling_client(last.sampler_path)
        answers = _answers(plan, sampler, progress.say)
    summary = lengths.summary()
    suggestions = advice(
        curves.epochs, curves.validation, curves.steps, summary.truncated / summary.training
    )
    progress.say("")
    progress.say(f"Model    {plan.run.name}")
    progress.say(f"Path     {last.sampler_path}")
    progress.say(f"State    {last.state_path}")
    progress.say(f"Folder   {plan.run.path}")
    with suppress(UserError):  # a server need not list what it stores
        progress.say(f"Stored   {stored_line(plan.service, plan.run, plan.settings)}")
    for line in suggestions:
        progress.say(f"Advice   {line}")
    return TrainedRun(
        run=plan.run,
        sampling_client=sampler,
        sampler_path=last.sampler_path,
        state_path=last.state_path,
        epoch_losses=curves.epochs,
        validation_losses=curves.validation,
        answers=answers,
        _open=guard.pop_all(),
    )


def _answers(plan: Plan, sampler: "tinker.SamplingClient", say: Callable[[str], None]) -> list[str]:
    """The tuned model's answers to the first sample, shown beside the expected one and saved."""
    sample, context = plan.first_sample, plan.service.max_context
    prompt = plan.template.render_prompt(sample)
    tokens = plan.tokenizer.encode(prompt)
    if context is not None and len(tokens) >= context:
        say("  The first training sample's prompt fills the context; no answer is drawn.")
        return []
    future = request_answers(
        sampler,
        tokens,
        plan.settings,
        plan.template,
        plan.tokenizer,
        context,
        plan.settings.sampling_num_samples,
    )
    response = plan.service.wait(future, "sampling the tuned model")
    answers = [
        answer_within(sequence.tokens, plan.template, plan.tokenizer)
        for sequence in response.sequences
    ]
    say("")
    say(f"The first training sample ({sample.source})")
    say(_indented(unguarded(prompt)))
    say("  expected:")
    say(_indented(sample.output))
    for answer in answers:
        say("  the tuned model:")
        say(_indented(answer or "(no answer: the thought did not end in time)"))
    stored = {
        "source": str(sample.source),
        "prompt": unguarded(prompt),
        "expected": sample.output,
        "answers": answers,
    }
    write_json(plan.run.file("samples.json"), [stored])
    return answers


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").split("\n"))
