"""A round of GRPO: the training questions in batches, each one a step of policy gradients.

A step samples a group of answers to each of its questions with the weights as they are, lets the
checker reward them, and updates the weights by their advantages. Answers are on disk before they
are used: a round that was stopped is done again from its beginning with the same answers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from tinkersmith.batches.order import learning_rate_at
from tinkersmith.data.shuffle import shuffled
from tinkersmith.errors import UserError
from tinkersmith.evaluation.asking import graded
from tinkersmith.evaluation.measures import with_chosen_scores
from tinkersmith.evaluation.questions import Answer, Question
from tinkersmith.evaluation.results import Record
from tinkersmith.improve.accepted import Accepted, accepted_answers
from tinkersmith.improve.advantages import group_advantages, policy_datum
from tinkersmith.improve.held_out import samples_by_source
from tinkersmith.improve.preparation import Improvement
from tinkersmith.improve.rejection import (
    ACCEPTED_FILE,
    ANSWERS_FILE,
    sampling_settings,
    seed_of_round,
)
from tinkersmith.runs.folder import RunFolder
from tinkersmith.service.answers import generated_text, optim_params, request_answers

if TYPE_CHECKING:
    import tinker

_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}  # of ppo: those of the paper


@dataclass(frozen=True, slots=True)
class SampledAnswer:
    """An answer with what the losses need of it."""

    question: Question
    answer: Answer
    token_ids: list[int]
    logprobs: list[float]
    record: Record  # with its scores
    reward: float

    def to_json(self, step: int) -> dict[str, Any]:
        return {
            "step": step,
            "question": self.question.digest,
            "draw": self.answer.draw,
            "reward": self.reward,
            "produced": self.answer.produced,
            "generated": self.answer.generated,
            "thought_finished": self.answer.thought_finished,
            "stop_reason": self.answer.stop_reason,
            "token_ids": self.token_ids,
            "logprobs": self.logprobs,
        }


def steps_of_round(work: Improvement) -> int:
    return -(-len(work.training.asked) // work.settings.batch_size)


def policy_round(work: Improvement, client: "tinker.TrainingClient", number: int) -> Accepted:
    """All steps of a round on `client`, which has the weights of the round before.

    Returns:
        The right answers, which are written as in rejection sampling, and the counts.

    Raises:
        ServerGone: the server stopped answering.
        UserError: the server refused a request, or a file of the round is damaged.
    """
    folder = RunFolder(work.round_folder(number))
    folder.path.mkdir(exist_ok=True)
    by_step = _stored(work, folder)
    count = steps_of_round(work)
    seed = seed_of_round(work.settings.seed, number)
    order: list[int] = shuffled(len(work.training.asked), seed, 0).tolist()
    everything: list[SampledAnswer] = []
    progress = work.service.progress
    with progress.doing(f"training round {number}") as task:
        for place in range(count):
            step = (number - 1) * count + place
            size = work.settings.batch_size
            asked = [work.training.asked[i] for i in order[place * size : (place + 1) * size]]
            answers = by_step.get(step) or _sample(work, client, folder, asked, step, seed)
            line = _update(work, client, answers, step, number)
            work.run.append("metrics.jsonl", [line])
            everything += answers
            reward = line["reward"]
            state = f"Round {number}: step {place + 1:,}/{count:,}, mean reward {reward:.2f}"
            progress.reached(task, state, (place + 1) / count)
    accepted = accepted_answers(
        [sampled.record for sampled in everything],
        samples_by_source(work.training),
        work.score,
        work.options.answers,
        seed,
        keeps_thoughts=work.template.keeps_thoughts,
    )
    folder.rewrite(ACCEPTED_FILE, accepted.records)
    return accepted


def _sample(
    work: Improvement,
    client: "tinker.TrainingClient",
    folder: RunFolder,
    questions: Sequence[Question],
    step: int,
    seed: int,
) -> list[SampledAnswer]:
    """Answers of the weights as they are; they are on disk when this returns."""
    service, options = work.service, work.options
    doing = f"sampling the answers of step {step + 1:,}"
    sampler = service.wait(client.save_weights_and_get_sampling_client(), doing)
    pending = [
        request_answers(
            sampler,
            question.tokens,
            sampling_settings(work.settings, options, seed_of_round(seed, step * 65536 + place)),
            work.template,
            work.tokenizer,
            service.max_context,
            options.answers,
        )
        for place, question in enumerate(questions)
    ]
    answers: list[SampledAnswer] = []
    for question, future in zip(questions, pending, strict=True):
        response = service.wait(future, doing)
        for draw, sequence in enumerate(response.sequences, start=1):
            generated = generated_text(sequence.tokens, work.template, work.tokenizer)
            produced = work.template.finished_answer(generated)
            answer = Answer(
                draw=draw,
                produced=produced or "",
                generated=generated,
                thought_finished=produced is not None,
                stop_reason=str(sequence.stop_reason),
                tokens=len(sequence.tokens),
            )
            answers.append(_rewarded(work, question, answer, sequence.tokens, sequence.logprobs))
    folder.append(ANSWERS_FILE, [sampled.to_json(step) for sampled in answers])
    return answers


def _rewarded(
    work: Improvement,
    question: Question,
    answer: Answer,
    token_ids: Sequence[int],
    logprobs: Sequence[float],
) -> SampledAnswer:
    """The answer with its score as reward, by the first of the samples that ask the question."""
    _, sample = question.samples[0]
    record = with_chosen_scores(work.metrics, graded(question, sample, answer), sample)
    reward = record.scores.get(work.score, 0.0) if answer.thought_finished else 0.0
    return SampledAnswer(
        question, answer, list(map(int, token_ids)), list(map(float, logprobs)), record, reward
    )


def _update(
    work: Improvement,
    client: "tinker.TrainingClient",
    answers: Sequence[SampledAnswer],
    step: int,
    number: int,
) -> dict[str, Any]:
    """Send the optimizer steps on these answers, and return the line for metrics.jsonl.

    A group without spread says nothing about its answers and is not sent. The step of a batch
    without any other group changes nothing.
    """

    begun = time.monotonic()
    settings, options = work.settings, work.options
    size = options.answers
    groups = [answers[start : start + size] for start in range(0, len(answers), size)]
    sent: list[tuple[SampledAnswer, float]] = []
    without_spread = 0
    for group in groups:
        advantages = group_advantages([sampled.reward for sampled in group])
        if not advantages.any():
            without_spread += 1
            continue
        sent += list(zip(group, advantages.tolist(), strict=True))
    rewards = [sampled.reward for sampled in answers]
    line: dict[str, Any] = {
        "step": step + 1,
        "reward": sum(rewards) / len(rewards),
        "groups": len(groups),
        "groups_without_spread": without_spread,
    }
    completion = sum(len(sampled.token_ids) for sampled, _ in sent)
    if not completion:
        return line
    datums = [
        policy_datum(
            sampled.question.tokens.tolist(),
            sampled.token_ids,
            sampled.logprobs,
            advantage / completion,  # the mean over all tokens of the step
        )
        for sampled, advantage in sent
        if sampled.token_ids
    ]
    rate = learning_rate_at(
        step,
        steps_of_round(work) * options.rounds,
        settings.learning_rate,
        settings.lr_schedule,
        settings.warmup_ratio,
    )
    params = optim_params(settings, rate)
    doing = f"training step {step + 1:,}"
    # With one update the ratio of the probabilities is 1, and nothing could be clipped.
    loss = "importance_sampling" if options.updates == 1 else "ppo"
    config = None if options.updates == 1 else _CLIP
    losses: list[float] = []
    norm: float | None = None
    for _ in range(options.updates):
        forward_backward = client.forward_backward(datums, loss, config)
        optim_step = client.optim_step(params)
        output = work.service.wait(forward_backward, doing)
        update = work.service.wait(optim_step, doing)
        losses.append(float(output.metrics["loss:sum"]))
        if update.metrics and "grad_norm" in update.metrics:
            norm = float(update.metrics["grad_norm"])
    seconds = max(time.monotonic() - begun, 1e-6)
    tokens = completion + sum(len(sampled.question.tokens) for sampled, _ in sent)
    line |= {
        "epoch": number,
        "loss": losses[0],
        "learning_rate": rate,
        "samples": len(sent),
        "tokens": tokens,
        "completion_tokens": completion,
        "tokens_per_second": round(tokens * options.updates / seconds, 1),
        "seconds": round(seconds, 4),
    }
    return line if norm is None else {**line, "grad_norm": norm}


def _stored(work: Improvement, folder: RunFolder) -> dict[int, list[SampledAnswer]]:
    """The answers that an interrupted round has on disk, by step; only whole steps.

    Raises:
        UserError: the file is damaged.
    """
    questions = {question.digest: question for question in work.training.asked}
    by_step: dict[int, list[SampledAnswer]] = {}
    for number, line in enumerate(folder.lines(ANSWERS_FILE), start=1):
        try:
            answer = Answer(
                draw=int(line["draw"]),
                produced=str(line["produced"]),
                generated=str(line["generated"]),
                thought_finished=bool(line["thought_finished"]),
                stop_reason=str(line["stop_reason"]),
                tokens=len(cast("list[int]", line["token_ids"])),
            )
            sampled = _rewarded(
                work, questions[line["question"]], answer, line["token_ids"], line["logprobs"]
            )
            step = int(line["step"])
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{folder.file(ANSWERS_FILE)}, line {number} is damaged: it is no answer to a "
                "training question. Remove the lines of its step, and the step is sampled again."
            ) from None
        by_step.setdefault(step, []).append(replace(sampled, reward=float(line["reward"])))
    per_question = work.options.answers
    last = len(work.training.asked) % work.settings.batch_size or work.settings.batch_size
    whole = {per_question * work.settings.batch_size, per_question * last}
    return {step: answers for step, answers in by_step.items() if len(answers) in whole}
