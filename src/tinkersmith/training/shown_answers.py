"""The trained model -> its answers to a sample that it was trained on, shown and stored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tinkersmith.data.samples import Sample
from tinkersmith.files import write_json
from tinkersmith.plurals import counted
from tinkersmith.prompts.guards import unguarded
from tinkersmith.runs.folder import SAMPLES_FILE
from tinkersmith.service.answers import answer_within, request_answers
from tinkersmith.training.hard_samples import last_question
from tinkersmith.training.plan import Plan

if TYPE_CHECKING:
    import tinker

_TRIED = 100  # samples, to find one whose prompt leaves space for an answer
_SHOWN = 2000  # characters of a prompt, of an expected and of a sampled answer
_BEGINNING = 48  # tokens of a plain text, which the model continues


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the model is asked, and what its training says."""

    sample: Sample
    prompt: str
    tokens: np.ndarray  # (T,) of the prompt
    expected: str
    heading: str  # completes "The first training sample ..."


def answer_a_sample(
    plan: Plan, sampler: "tinker.SamplingClient", say: Callable[[str], None]
) -> list[str]:
    """Sample answers to the first sample that was trained on, and show them beside its own.

    They are stored in samples.json, which is the last file of a run.
    """
    asked = _first_asked(plan)
    answers: list[str] = []
    if asked is None:
        say("  The prompts of the training samples fill the context; no answer is sampled.")
    else:
        answers = _sampled(plan, sampler, asked)
        _show(asked, answers, say)
    stored = [] if asked is None else [_stored(asked, answers)]
    write_json(plan.run.file(SAMPLES_FILE), stored)
    return answers


def _first_asked(plan: Plan) -> _Asked | None:
    """The first trained sample whose prompt, as it was trained, leaves space for an answer."""
    for start, stop in ((0, 1), (1, _TRIED)):  # a stream reads its files for those asked for
        sources = list(islice(plan.data.trained_sources(), start, stop))
        samples = plan.source.find(set(sources))
        for source in sources:
            if (asked := _asked(plan, samples[source])) is not None:
                return asked
    return None


def _asked(plan: Plan, sample: Sample) -> _Asked | None:
    context = plan.service.max_context
    most = min(plan.max_length, context if context is not None else plan.max_length)
    if sample.turns[-1].role == "text":
        tokens = plan.tokenizer.encode(sample.output)
        cut = min(_BEGINNING, len(tokens) // 2)
        if not cut:
            return None
        prompt, rest = plan.tokenizer.decode(tokens[:cut]), plan.tokenizer.decode(tokens[cut:])
        return _Asked(sample, prompt, tokens[:cut], rest, ", a plain text, and how it goes on")
    ends = _trained_ends(sample, plan.settings.train_on)
    for end in ends:
        trained = replace(sample, turns=sample.turns[:end])
        prompt = plan.template.render_prompt(trained)
        tokens = plan.tokenizer.encode(prompt)
        whole = len(tokens) + len(plan.tokenizer.encode(plan.template.render(trained).completion))
        # The length policy keeps whole answers, and cuts only the first.
        if whole <= most or (end == ends[-1] and len(tokens) < most):
            number, count = _answers(trained), _answers(sample)
            heading = f", answer {number} of {count}" if count > 1 else ""
            return _Asked(trained, prompt, tokens, trained.output, heading)
    return None


def _trained_ends(sample: Sample, train_on: str) -> list[int]:
    """Where answers end that are trained on, the last one first: numbers of turns."""
    answers = [
        (place, turn.trained)
        for place, turn in enumerate(sample.turns, start=1)
        if turn.role == "assistant"
    ]
    last = answers[-1][0] if answers else 0
    return [
        place
        for place, flag in reversed(answers)
        if flag or (flag is None and (train_on != "last" or place == last))
    ]


def _answers(sample: Sample) -> int:
    return sum(turn.role == "assistant" for turn in sample.turns)


def _sampled(plan: Plan, sampler: "tinker.SamplingClient", asked: _Asked) -> list[str]:
    future = request_answers(
        sampler,
        asked.tokens,
        plan.settings,
        plan.template,
        plan.tokenizer,
        plan.service.max_context,
        plan.settings.sampling_num_samples,
    )
    response = plan.service.wait(future, "sampling the tuned model")
    if asked.sample.turns[-1].role == "text":
        return [plan.tokenizer.decode(sequence.tokens) for sequence in response.sequences]
    return [
        answer_within(sequence.tokens, plan.template, plan.tokenizer)
        for sequence in response.sequences
    ]


def _show(asked: _Asked, answers: list[str], say: Callable[[str], None]) -> None:
    say("")
    say(f"The first training sample ({asked.sample.source}){asked.heading}")
    earlier = len(asked.sample.context) - 1
    if _answers(asked.sample) > 1:
        say(f"    ... (after {counted(earlier, 'earlier turn')})")
        say(_indented(_ending(last_question(asked.sample))))
    else:
        say(_indented(_ending(unguarded(asked.prompt))))
    say("  expected:")
    say(_indented(_beginning(asked.expected)))
    for answer in answers:
        say("  the tuned model:")
        say(_indented(_beginning(answer) or "(no answer: the thought did not end in time)"))


def _stored(asked: _Asked, answers: list[str]) -> dict[str, object]:
    return {
        "source": str(asked.sample.source),
        "prompt": unguarded(asked.prompt),
        "expected": asked.expected,
        "answers": answers,
    }


def _ending(text: str) -> str:
    """The end of a long prompt: the last question is there."""
    return text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}"


def _beginning(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").split("\n"))
