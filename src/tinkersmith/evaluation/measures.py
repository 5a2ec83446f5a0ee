"""Answers and METRICS -> all their scores, and what is said of all answers together.

The scores of `grading` are there already. Metrics of single answers come first, then those that
need the model (perplexity), then the judge.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.data.samples import Sample, Source
from tinkersmith.errors import UserError
from tinkersmith.evaluation.answers_file import beside
from tinkersmith.evaluation.report import wrapped
from tinkersmith.evaluation.results import Record
from tinkersmith.metrics.choose import Answered, ChosenMetrics, metrics_for
from tinkersmith.metrics.judge import (
    JudgeCounts,
    Judged,
    JudgePlan,
    JudgeReport,
    JudgeVerdict,
    cost_lines,
    judge_all,
    judge_lines,
    try_judge,
)
from tinkersmith.metrics.judge_client import (
    JUDGE_KEY,
    JudgeClient,
    is_open_to_readers,
    open_judge,
)
from tinkersmith.metrics.judge_replies import JudgeReplies
from tinkersmith.metrics.labels import confusion, confusion_lines, confusion_rows
from tinkersmith.metrics.likelihood import (
    Likelihood,
    likelihood_lines,
    likelihood_summary,
)
from tinkersmith.metrics.overlap import corpus_bleu
from tinkersmith.metrics.structured import (
    match_fields,
    read_structure,
    structure_lines,
    structure_summary,
)
from tinkersmith.metrics.words import writing_of
from tinkersmith.plurals import counted
from tinkersmith.service.likelihood import answers_to_measure, expected_likelihoods
from tinkersmith.text.pieces import user_text
from tinkersmith.text.thoughts import answer_alone

if TYPE_CHECKING:
    from tinkersmith.evaluation.asking import Asking
    from tinkersmith.progress import Progress
    from tinkersmith.settings.fields import Settings

_TITLES = {"trained": "The trained model", "base": "The base model"}
OpenModel = Callable[[str], "Any"]  # "trained" or "base" -> a sampling client


@dataclass(frozen=True, slots=True)
class Measures:
    """What an evaluation measures, and the judge if there is one."""

    chosen: ChosenMetrics
    samples: Mapping[Source, Sample]
    judge: JudgeClient | None
    plan: JudgePlan | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The records with all scores, and what concerns all answers of a model."""

    records: dict[str, list[Record]]  # of "trained" and, if it was asked, "base"
    content: dict[str, Any]  # for the file of results
    lines: list[str]  # for the report
    matrix: list[list[object]] = field(default_factory=list[list[object]])  # of labels, as rows


@contextmanager
def opened_measures(
    settings: "Settings",
    samples: Sequence[Sample],
    compare_base: bool,
    progress: "Progress",
    output_file: Path,
    resume: bool,
) -> Generator[Measures, None, None]:
    """The metrics that METRICS names, tried out before anything is sampled.

    Raises:
        UserError: one of them cannot be computed.
    """
    expected = [answer_alone(sample.turns[-1]) for sample in samples]
    chosen = metrics_for(settings.metrics, expected)
    for line in chosen.said:
        progress.say(line)
    measures = Measures(chosen, {sample.source: sample for sample in samples}, None, None)
    try_scorers(chosen, samples, expected)
    if not chosen.judge:
        yield measures
        return
    if settings.judge_mode == "pairwise" and not compare_base:
        raise UserError(
            'JUDGE_MODE is "pairwise", which compares with the base model. Add --compare-base, or '
            'use "graded".'
        )
    plan = JudgePlan(
        mode=settings.judge_mode,
        language="zh"
        if writing_of([*expected, *map(question_for_a_judge, samples)]) == "zh"
        else "en",
        rubric=settings.judge_rubric,
        price=settings.judge_price,
    )
    client = open_judge(settings.judge_url, settings.judge_model)
    try:
        client.replies = JudgeReplies(judge_file(output_file), goes_on=resume)
        if len(client.replies):
            progress.say(
                f"Going on with {counted(len(client.replies), 'reply', 'replies')} of a judge."
            )
        for line in _judge_said(client, plan):
            progress.say(line)
        with progress.doing("asking the judge a first question"):
            try_judge(client, plan)
        yield replace(measures, judge=client, plan=plan)
    finally:
        client.close()


def measure(
    measures: Measures, asking: "Asking", records: Mapping[str, Sequence[Record]], open: OpenModel
) -> Measured:
    """Add the scores of METRICS to the records of one or two models.

    Args:
        records: of "trained" and, if it was asked, "base".
        open: opens a sampling client on one of them.

    Raises:
        UserError: a function of the user's fails, the server or the judge refuses its work.
    """
    progress, chosen = asking.service.progress, measures.chosen
    scored: dict[str, list[Record]] = {}
    content: dict[str, dict[str, Any]] = {}
    lines: list[str] = []
    matrix: list[list[object]] = []
    for model, answers in records.items():
        with progress.doing("computing the scores of METRICS"):
            scored[model] = [_with_scores(measures, record) for record in answers]
            of_model, said = _together(measures, [r for r in scored[model] if r.thought_finished])
        if chosen.perplexity:
            found, said_of_it = _likelihoods(measures, asking, answers, model, open)
            scored[model] = [with_likelihood(record, found) for record in scored[model]]
            of_model["likelihood"] = likelihood_summary(list(found.values()))
            said += said_of_it + likelihood_lines(of_model["likelihood"])
        if "labels" in of_model:
            rows = confusion_rows(model, of_model["labels"])
            matrix += rows[1:] if matrix else rows
        content[model] = of_model
        if said:
            lines += [f"{_TITLES[model]}:", *(f"  {line}" for line in said)]
    whole: dict[str, Any] = {**content}
    if measures.judge is not None and measures.plan is not None:
        scored, whole["judge"], said = _judged(
            measures, measures.judge, measures.plan, asking, scored
        )
        lines += said
    return Measured(scored, whole, _folded(lines), matrix)


def judge_file(output_file: Path) -> Path:
    """The replies of a judge so far, while an evaluation is under way or was stopped."""
    return beside(output_file, ".judge.jsonl")


def question_for_a_judge(sample: Sample) -> str:
    """What a sample asks, without the marks of a template; a conversation with its roles."""
    turns = sample.context
    if len(turns) == 1:
        return user_text(turns[0])
    return "\n\n".join(f"{turn.role}: {user_text(turn)}" for turn in turns)


def _folded(lines: Sequence[str]) -> list[str]:
    """Sentences folded to the width of the report; rows of a table stay as they are."""
    folded: list[str] = []
    for line in lines:
        indent = line[: len(line) - len(line.lstrip())]
        folded += [line] if "   " in line.strip() else wrapped(line.strip(), indent)
    return folded


# ---- single answers


def try_scorers(
    chosen: ChosenMetrics, samples: Sequence[Sample], expected: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Score one expected output as if it were the answer: a mistake shows before the sampling.

    Returns:
        What each metric gave.
    """
    given: dict[str, dict[str, float]] = {}
    for sample, text in list(zip(samples, expected, strict=True))[:1]:
        answered = Answered(
            text, text, question_for_a_judge(sample), sample.extra, str(sample.source)
        )
        for scorer in chosen.scorers:
            given[scorer.name] = scorer.scores(answered)
    return given


def _with_scores(measures: Measures, record: Record) -> Record:
    if not record.thought_finished:  # no answer: only the scores of `grading` say so
        graded = {name: record.scores[name] for name in measures.chosen.graded}
        return replace(record, scores=graded)
    return with_chosen_scores(measures.chosen, record, measures.samples[record.source])


def with_chosen_scores(chosen: ChosenMetrics, record: Record, sample: Sample) -> Record:
    """The record with the scores that METRICS names, as far as they need nothing but its text."""
    scores = {name: value for name, value in record.scores.items() if name in chosen.graded}
    answered = Answered(
        record.expected, record.produced, record.prompt, sample.extra, str(record.source)
    )
    for scorer in chosen.scorers:
        scores |= scorer.scores(answered)
    return replace(record, scores=scores)


def _together(measures: Measures, records: Sequence[Record]) -> tuple[dict[str, Any], list[str]]:
    """What concerns all answers of a model that ended: the file's content, and lines."""
    content: dict[str, Any] = {}
    lines: list[str] = []
    pairs = [(record.expected, record.produced) for record in records]
    if measures.chosen.structured:
        matches = [
            match_fields(structure, given)
            for wanted, given in pairs
            if (structure := read_structure(wanted)) is not None
        ]
        content["json"] = structure_summary(matches)
        lines += structure_lines(content["json"])
    if measures.chosen.labels is not None:
        content["labels"] = confusion(pairs, measures.chosen.labels)
        lines += confusion_lines(content["labels"])
    if measures.chosen.bleu and pairs:
        score, signature = corpus_bleu(pairs, measures.chosen.bleu)
        content["bleu"] = {"score": score, "signature": signature}
        lines.append(f"BLEU of all answers together: {score:.2f} ({signature}).")
    return content, lines


# ---- perplexity


def _likelihoods(
    measures: Measures,
    asking: "Asking",
    records: Sequence[Record],
    model: str,
    open: OpenModel,
) -> tuple[dict[Source, Likelihood], list[str]]:
    sources = dict.fromkeys(record.source for record in records)
    samples = [measures.samples[source] for source in sources]
    service = asking.service
    answers, too_long = answers_to_measure(
        samples, asking.template, asking.tokenizer, service.max_context
    )
    found = expected_likelihoods(service, lambda: open(model), answers, f"the {model} model")
    said: list[str] = []
    if too_long:
        who = counted(len(too_long), "expected answer is", "expected answers are")
        said.append(
            f"{who} too long for the model's context: no perplexity (the first: {too_long[0]})."
        )
    empty = len(samples) - len(too_long) - len(found)
    if empty:
        who = counted(empty, "expected answer is", "expected answers are")
        said.append(f"{who} empty: no perplexity.")
    return found, said


def with_likelihood(record: Record, found: Mapping[Source, Likelihood]) -> Record:
    """The record with the perplexity of its expected answer, if that has one."""
    likelihood = found.get(record.source)
    if likelihood is None:
        return record
    return replace(record, scores=record.scores | likelihood.scores())


# ---- the judge


def _judge_said(client: JudgeClient, plan: JudgePlan) -> list[str]:
    what = {
        "graded": "grades answers from 1 to 10",
        "right_wrong": "says of each answer whether it is right",
        "pairwise": "compares the two models' answers in both orders",
    }[plan.mode]
    language = "Chinese" if plan.language == "zh" else "English"
    lines = [f"Judge:    {client.model} at {client.url} {what}; it is asked in {language}."]
    if client.key and is_open_to_readers(client.url):
        lines.append(
            f"  Warning: the address begins with http, so {JUDGE_KEY} can be read on the way."
        )
    return lines


def _judged(
    measures: Measures,
    client: JudgeClient,
    plan: JudgePlan,
    asking: "Asking",
    records: Mapping[str, list[Record]],
) -> tuple[dict[str, list[Record]], dict[str, Any], list[str]]:
    """The records with the judge's scores, what the file says of it, and lines."""
    counts = JudgeCounts()
    scored = {model: list(answers) for model, answers in records.items()}
    content: dict[str, Any] = {"model": client.model, "url": client.url, "mode": plan.mode}
    lines: list[str] = []

    def verdicts_on(items: Sequence[Judged], who: str) -> list[JudgeVerdict]:
        progress, total = asking.service.progress, len(set(items))
        with progress.doing(f"asking the judge about {who}") as task:
            return judge_all(
                client,
                plan,
                items,
                counts,
                lambda done: progress.reached(
                    task, f"Judging {who}: {done:,}/{total:,}", done / max(1, total)
                ),
                asking.service.check,
            )

    def item(record: Record, *others: Record) -> Judged:
        answers = tuple(r.produced for r in (record, *others))
        return Judged(
            question_for_a_judge(measures.samples[record.source]), record.expected, answers
        )

    if plan.mode == "pairwise":
        places = _pair_places(records["trained"], records["base"])
        pairs = [(records["trained"][a], records["base"][b]) for a, b in places]
        verdicts = verdicts_on([item(*pair) for pair in pairs], "pairs of answers")
        for (first, second), verdict in zip(places, verdicts, strict=True):
            if verdict.score is not None:
                for model, place, score in (
                    ("trained", first, verdict.score),
                    ("base", second, 1 - verdict.score),
                ):
                    scored[model][place] = _with_judge(scored[model][place], score)
        right = [tuple(r.scores.get("final_answer") for r in pair) for pair in pairs]
        content |= JudgeReport(plan, verdicts, right).to_json()
        lines += judge_lines(content)
        left = len(records["trained"]) - len(pairs)
        if left:
            lines.append(f"{counted(left, 'answer')} without a finished pair: not judged.")
    else:
        for model, answers in records.items():
            chosen = [place for place, r in enumerate(answers) if r.thought_finished]
            who = f"the {model} model's answers"
            verdicts = verdicts_on([item(answers[place]) for place in chosen], who)
            for place, verdict in zip(chosen, verdicts, strict=True):
                if verdict.score is not None:
                    scored[model][place] = _with_judge(scored[model][place], verdict.score)
            right = [(answers[place].scores.get("final_answer"),) for place in chosen]
            content[model] = JudgeReport(plan, verdicts, right).to_json()
            lines += [f"{_TITLES[model]}:"]
            lines += [f"  {line}" for line in judge_lines(content[model])]
    content["requests"] = counts.requests
    content["prompt_tokens"], content["reply_tokens"] = counts.prompt_tokens, counts.reply_tokens
    content["replies_without_usage"] = counts.without_usage
    content["cost"], content["notes"] = counts.cost(plan.price), list(client.notes)
    lines += [*cost_lines(counts, plan.price), *(f"  Note: {note}." for note in client.notes)]
    return scored, content, lines


def _pair_places(trained: Sequence[Record], base: Sequence[Record]) -> list[tuple[int, int]]:
    """The places of answers to the same sample with the same number, both of them finished."""
    of_base = {(r.source, r.draw): place for place, r in enumerate(base) if r.thought_finished}
    return [
        (place, of_base[r.source, r.draw])
        for place, r in enumerate(trained)
        if r.thought_finished and (r.source, r.draw) in of_base
    ]


def _with_judge(record: Record, score: float) -> Record:
    return replace(record, scores=record.scores | {"judge": score})
