"""The weights of a round -> answers to the held-out questions, and whether they are better."""

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.data.samples import Sample, Source
from tinkersmith.evaluation.answers_file import AnswersFile, stored_answers
from tinkersmith.evaluation.asking import Asking, ask_all
from tinkersmith.evaluation.measures import with_chosen_scores
from tinkersmith.evaluation.questions import Answer, Question, Questions
from tinkersmith.evaluation.results import Record
from tinkersmith.evaluation.verdict import Verdict, pairs_of, sentence, verdict
from tinkersmith.improve.preparation import Improvement, program_versions
from tinkersmith.training.scored_questions import AnswerScores, scores_of

HELD_OUT_FILE = "held_out.jsonl"


@dataclass(frozen=True, slots=True)
class RoundScore:
    """What a round answered to the held-out questions."""

    number: int
    records: list[Record]
    scores: AnswerScores


def score_round(work: Improvement, number: int, sampler_path: str) -> RoundScore:
    """Ask the held-out questions; answers that are on disk already are not asked for again."""
    begun = time.monotonic()
    records = answers_of(
        work,
        work.asking(work.settings),
        work.held_out,
        sampler_path,
        work.round_folder(number) / HELD_OUT_FILE,
        f"round {number}" if number else "the model as it is",
    )
    return RoundScore(number, records, scores_of(records, time.monotonic() - begun))


def answers_of(
    work: Improvement,
    asking: Asking,
    questions: Questions,
    sampler_path: str,
    file: Path,
    who: str,
) -> list[Record]:
    """The scored answers of some weights; each is in `file` as soon as it comes.

    Raises:
        UserError: the file is damaged, or the server refused a request.
    """
    file.parent.mkdir(exist_ok=True)
    stored = stored_answers(file)
    answered = stored.answers.get("trained", {}) if stored else {}
    known = {
        question: drawn
        for question, drawn in answered.items()
        if [answer.draw for answer in drawn] == list(range(1, asking.draws + 1))
    }
    facts = {"sampler_path": sampler_path, "answers": asking.draws, "seed": asking.settings.seed}
    begun = time.monotonic()
    with closing(AnswersFile(file, facts, program_versions())) as written:

        def write_down(question: Question, answers: Sequence[Answer]) -> None:
            written.add("trained", question, answers, time.monotonic() - begun)

        records = ask_all(
            asking,
            lambda: work.service.create_sampling_client(sampler_path),
            questions.asked,
            who=who,
            known=known,
            on_answer=write_down,
        )
    samples = samples_by_source(questions)
    return [with_chosen_scores(work.metrics, record, samples[record.source]) for record in records]


def samples_by_source(questions: Questions) -> dict[Source, Sample]:
    return {sample.source: sample for asked in questions.asked for _, sample in asked.samples}


def compared(work: Improvement, new: RoundScore, best: RoundScore) -> tuple[Verdict, str]:
    """The verdict on two rounds, question by question, and what it says."""
    outcome = verdict(pairs_of(new.records, best.records), work.score)
    names = [f"round {which.number}" if which.number else "the start" for which in (new, best)]
    return outcome, sentence(outcome, *names)


def is_significant_gain(outcome: Verdict) -> bool:
    """Whether the first of two is shown to be better, by a score of which more is better."""
    return outcome.shown and outcome.difference.mean > 0


def verdict_facts(outcome: Verdict) -> dict[str, Any]:
    """What rounds.jsonl says of a verdict."""
    return {
        "difference": outcome.difference.mean,
        "difference_low": outcome.difference.low,
        "difference_high": outcome.difference.high,
        "p_value": outcome.p_value,
        "won": len(outcome.outcomes["won"]),
        "lost": len(outcome.outcomes["lost"]),
    }
