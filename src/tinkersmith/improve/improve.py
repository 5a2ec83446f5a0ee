"""A run -> rounds of answers and training, each scored on held-out questions: `improve`.

The improvement is a run folder as any other. A round is done when its line stands in
checkpoints.jsonl: whatever came after the last one is done again, from what is on disk of it.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError
from tinkersmith.files import write_json
from tinkersmith.improve.accepted import Accepted
from tinkersmith.improve.grpo import policy_round, steps_of_round
from tinkersmith.improve.held_out import (
    RoundScore,
    compared,
    is_significant_gain,
    score_round,
    verdict_facts,
)
from tinkersmith.improve.options import (
    GRPO,
    ImproveOptions,
    budget_lines,
    checked_options,
    options_of,
    settings_of_improvement,
)
from tinkersmith.improve.preparation import (
    Improvement,
    Parent,
    parent_checkpoint,
    prepare_improvement,
    resume_line,
)
from tinkersmith.improve.rejection import sampled_round, trained_round
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress, watched
from tinkersmith.runs.best import best_of_run, write_best
from tinkersmith.runs.folder import (
    IMPROVEMENT_FACT,
    SAMPLES_FILE,
    Checkpoint,
    RunFolder,
    newest_run,
    open_run,
)
from tinkersmith.runs.lock import locked
from tinkersmith.runs.trained_model import backend_of_run
from tinkersmith.service.stored import lifetime
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from
from tinkersmith.training.divergence import Diverged
from tinkersmith.training.interruption import Interruption, interruption
from tinkersmith.training.train import reported
from tinkersmith.training.transcript import Transcript

if TYPE_CHECKING:
    import tinker

ROUNDS_FILE = "rounds.jsonl"


@dataclass(frozen=True, slots=True)
class Improved:
    """A finished improvement."""

    run: RunFolder
    best: Checkpoint  # the one with the highest held-out score
    rounds: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])  # of rounds.jsonl


def improve(
    settings: Settings | None = None,
    *,
    run: str = "",
    checkpoint: str = "",
    resume: str = "",
    questions: str = "",
    overrides: Sequence[str] = (),
    seed: int | None = None,
    **options: Any,
) -> Improved:
    """Let a trained model answer its training questions, and train it on its right answers.

    Args:
        settings: OUTPUT_DIR is where the runs are; all else is taken from the run.
        run: the name or folder of the run to improve; "" is the newest one with a checkpoint.
        checkpoint: "best", "last" or a name; "" is the best, or the last where none is.
        resume: the name or folder of an improvement that was stopped.
        questions: a file of held-out questions, in place of the run's EVAL_FILES.
        overrides: NAME=VALUE texts that change settings of the run.
        options: the fields of `ImproveOptions`; None is a default.

    Raises:
        UserError: something the user can fix, in one sentence.
        KeyboardInterrupt: on SIGINT, after saving.
        SystemExit: on SIGTERM and SIGHUP, after saving.
    """
    settings = settings or settings_from({})
    if resume:
        _refuse_with_resume(run, checkpoint, questions, overrides, seed, options)
    transcript = Transcript()
    with (
        interruption() as signals,
        watched(transcript.say) as progress,
        ExitStack() as held,
        ExitStack() as guard,
    ):
        parent: Parent | None = None
        resumed: RunFolder | None = None
        if resume:
            resumed = open_run(resume, settings.output_dir)
            chosen, own = _resumed(resumed)
            held.enter_context(locked(resumed, "improving a run", progress.say))
            transcript.attach(resumed.file("train.log"))
        else:
            whole = open_run(run, settings.output_dir) if run else newest_run(settings.output_dir)
            chosen = checked_options(options)
            parent = parent_checkpoint(whole, checkpoint, progress.say)
            own = settings_of_improvement(
                _settings_of_run(whole), overrides, questions, seed, chosen.method
            )
            for line in budget_lines(whole):
                progress.say(line)
        with _explained(resumed, signals, progress, under_way=False):
            work = prepare_improvement(own, chosen, parent, resumed, guard, progress, signals.check)
        with _explained(work.run, signals, progress, under_way=True):
            if resumed is None:
                held.enter_context(locked(work.run, "improving a run", progress.say))
                transcript.attach(work.run.file("train.log"))
            with reported(work.run, progress):
                return _Rounds(work, progress, signals).run()


def _settings_of_run(run: RunFolder) -> Settings:
    """The settings of a run, wherever its folder is now, on the server that has its states."""
    own = run.settings()
    return own.model_copy(
        update={"output_dir": str(run.path.parent), "backend": backend_of_run(run, own)}
    )


def _resumed(run: RunFolder) -> tuple[ImproveOptions, Settings]:
    """The options and settings of an improvement that was stopped.

    Raises:
        UserError: it is another kind of run, or finished.
    """
    facts = run.facts().get(IMPROVEMENT_FACT)
    if facts is None:
        raise UserError(
            f"{run.name} is no improvement, so that it cannot be resumed as one. Improve it with: "
            f"{command_line('improve', run.path)}"
        )
    if run.file(SAMPLES_FILE).is_file():
        raise UserError(
            f"{run.name} is finished. To go on from it, start another improvement with: "
            f"{command_line('improve', run.path)}"
        )
    return options_of(run, facts), _settings_of_run(run)


def _refuse_with_resume(
    run: str,
    checkpoint: str,
    questions: str,
    overrides: Sequence[str],
    seed: int | None,
    options: Mapping[str, Any],
) -> None:
    """Raise UserError if an option is given that a resumed improvement has already."""
    names = {"alone" if name == "mix" else name: value for name, value in options.items()}
    given = [f"--{name}" for name, value in names.items() if value is not None]
    given += [
        f"--{name}"
        for name, value in (("checkpoint", checkpoint), ("questions", questions))
        if value
    ]
    given += ["--seed"] if seed is not None else []
    given += [f"--set {text}" for text in overrides if not text.upper().startswith("OUTPUT_DIR")]
    given += [f"RUN ({run})"] if run else []
    if given:
        raise UserError(
            f"{given[0]} has no effect with --resume: an improvement goes on as it began. Leave "
            "it out."
        )


class _Rounds:
    """The rounds that are left of an improvement. `run` may be called once."""

    def __init__(self, work: Improvement, progress: Progress, signals: Interruption) -> None:
        self._work, self._progress, self._signals = work, progress, signals
        self._run = work.run
        self._client: tinker.TrainingClient | None = None  # of grpo

    def run(self) -> Improved:
        self._cut()
        start = self._start()
        best = first = self._scored(start)
        self._progress.say(f"  The start: {best.scores}")
        before, ended = start, ""
        for number in range(1, self._work.options.rounds + 1):
            self._signals.check()
            known = self._known(number)
            if known is not None:
                before, facts = known
                score = self._scored(before)
                gain = bool(facts.get("is_gain"))
            else:
                done = self._round(number, before, best)
                if isinstance(done, str):
                    ended = done
                    break
                before, score, gain = done
            if not gain:
                ended = (
                    f"Round {number} is not shown to be better than "
                    f"{_name(best.number)}: no further round."
                )
                break
            best = score
        return self._end(first, ended)

    # ---- a round

    def _round(
        self, number: int, before: Checkpoint, best: RoundScore
    ) -> tuple[Checkpoint, RoundScore, bool] | str:
        """Sample, train and score; or say why there is nothing to train on."""
        work, say, begun = self._work, self._progress.say, time.monotonic()
        say("")
        say(f"Round {number} of at most {work.options.rounds}")
        if work.options.method == GRPO:
            accepted, after = self._policy_round(number, before)
        else:
            accepted = sampled_round(work, number, before)
            for line in accepted.lines():
                say(f"  {line}")
            if not accepted.records:
                return f"Round {number}: not one answer is right, so that nothing can be learnt."
            try:
                after = self._trained_round(number, before)
            except Diverged:
                return f"Round {number}: training has diverged. Use a lower LEARNING_RATE."
        score = self._scored(after)
        outcome, sentence = compared(work, score, best)
        gain = is_significant_gain(outcome)
        say(f"  Round {number}: {score.scores}")
        say(f"  {sentence}")
        self._run.append(
            ROUNDS_FILE,
            [
                {
                    "round": number,
                    "step": after.step,
                    **accepted.to_json(),
                    work.score: score.scores.scores[work.score],
                    "compared_with": best.number,
                    **verdict_facts(outcome),
                    "is_gain": gain,
                    "seconds": round(time.monotonic() - begun, 1),
                }
            ],
        )
        self._run.add_checkpoint(after)
        self._note(after.step)
        return after, score, gain

    def _trained_round(self, number: int, before: Checkpoint) -> Checkpoint:
        """Train on the accepted answers; its steps are added to those of the improvement."""
        trained, last = trained_round(self._work, number, before, self._signals)
        lines = [
            {
                **line,
                "step": before.step + line["step"],
                **({"epoch": number} if "epoch" in line else {}),
            }
            for line in trained.metrics()
            if "loss" in line
        ]
        self._run.append("metrics.jsonl", lines)
        return Checkpoint(
            name=f"round-{number}",
            step=before.step + last.step,
            epoch=number,
            state_path=last.state_path,
            sampler_path=last.sampler_path,
        )

    def _policy_round(self, number: int, before: Checkpoint) -> tuple[Accepted, Checkpoint]:
        work, service = self._work, self._work.service
        if self._client is None and number == 1:
            self._client = work.first
        client = self._client = self._client or service.ask(
            lambda: service.client.create_training_client_from_state_with_optimizer(
                before.state_path, user_metadata=service.training_metadata()
            ),
            f"loading {before.state_path}",
        )
        accepted = policy_round(work, client, number)
        for line in accepted.lines()[:1]:
            self._progress.say(f"  {line}")
        lines = [line for line in self._run.metrics() if line["step"] > before.step]
        silent = sum(line.get("groups_without_spread", 0) for line in lines)
        groups = sum(line.get("groups", 0) for line in lines)
        self._progress.say(
            f"  {silent:,} of {counted(groups, 'group')} had no spread (all right or all wrong) "
            "and gave nothing."
        )
        return accepted, self._save(client, number, before.step + steps_of_round(work))

    # ---- what is on disk

    def _cut(self) -> None:
        """Drop what an interrupted round has noted: it is done again."""
        done = max((point.step for point in self._run.checkpoints()), default=0)
        for name in ("metrics.jsonl", ROUNDS_FILE):
            lines = self._run.lines(name)
            sound = [line for line in lines if line["step"] <= done]
            if len(sound) < len(lines):
                self._run.rewrite(name, sound)

    def _known(self, number: int) -> tuple[Checkpoint, dict[str, Any]] | None:
        """A round that is done: its checkpoint, and its line of rounds.jsonl."""
        points = [point for point in self._run.checkpoints() if point.name == f"round-{number}"]
        lines = [line for line in self._run.lines(ROUNDS_FILE) if line.get("round") == number]
        return (points[-1], lines[-1]) if points and lines else None

    def _start(self) -> Checkpoint:
        """The weights to begin with, saved as round 0: deleting the run leaves them."""
        saved = self._run.checkpoints()
        if saved:
            return saved[0]
        work = self._work
        with self._progress.doing("copying the weights to begin with"):
            point = self._save(work.first, 0, 0)
        self._run.add_checkpoint(point)
        return point

    def _save(self, client: "tinker.TrainingClient", number: int, step: int) -> Checkpoint:
        work, name = self._work, f"round-{number}"
        doing = f"saving round {number}"
        seconds = lifetime(work.settings)
        labels = dict(work.service.labels)
        state = client.save_state(name, ttl_seconds=seconds, user_metadata=labels)
        sampler = client.save_weights_for_sampler(name, ttl_seconds=seconds, user_metadata=labels)
        with self._progress.doing(doing):
            return Checkpoint(
                name=name,
                step=step,
                epoch=number,
                state_path=work.service.wait(state, doing).path,
                sampler_path=work.service.wait(sampler, doing).path,
            )

    def _scored(self, point: Checkpoint) -> RoundScore:
        """The held-out score of a round, which metrics.jsonl gets once."""
        number = int(point.name.removeprefix("round-"))
        score = score_round(self._work, number, point.sampler_path)
        known = self._run.metrics()
        if not any(line["step"] == point.step and "eval/n" in line for line in known):
            self._run.append("metrics.jsonl", [{"step": point.step, **score.scores.to_json()}])
        return score

    def _note(self, steps: int) -> None:
        """Note in settings.json and best.json how far the improvement is."""
        facts = self._run.facts()
        write_json(self._run.file("settings.json"), {**facts, "total_steps": steps})
        best = best_of_run(self._run)
        write_best(self._run, best[1] if best else None)

    # ---- the end

    def _end(self, first: RoundScore, ended: str) -> Improved:
        work, say = self._work, self._progress.say
        found = best_of_run(self._run)
        assert found is not None  # round 0 is measured
        point, measured = found
        write_best(self._run, measured)
        best = self._scored(point)
        say("")
        if ended:
            say(ended)
        say(f"Best     {_name(best.number)}: {measured}")
        if best.number != first.number:
            say(f"         {compared(work, best, first)[1]}")
            say(
                "         These questions chose the best round, so its score on others can be "
                "lower: evaluate it on questions that chose nothing."
            )
        say(f"Model    {self._run.name}")
        say(f"Path     {point.sampler_path}")
        say(f"State    {point.state_path}")
        say(f"Folder   {self._run.path}")
        self._write_samples(best)
        rounds = self._run.lines(ROUNDS_FILE)
        return Improved(self._run, point, rounds)

    def _write_samples(self, best: RoundScore) -> None:
        """The answers to the first held-out question: the last file that a run writes."""
        first = best.records[0]
        answers = [record.produced for record in best.records if record.source == first.source]
        stored = {
            "source": str(first.source),
            "prompt": first.prompt,
            "expected": first.expected,
            "answers": answers,
        }
        write_json(self._run.file(SAMPLES_FILE), [stored])


def _name(number: int) -> str:
    return f"round {number}" if number else "the start"


@contextmanager
def _explained(
    run: RunFolder | None, signals: Interruption, progress: Progress, *, under_way: bool
) -> Generator[None, None, None]:
    """Failures within the block say how to continue the improvement, if there is one.

    Args:
        under_way: whether an error leaves it as it is, so that it can be continued.
    """
    how = f"Continue with: {resume_line(run)}" if run else ""
    try:
        yield
    except UserError as error:
        if not under_way:
            raise
        raise UserError(f"{error} {how}".strip()) from None
    except (KeyboardInterrupt, SystemExit, BrokenPipeError):
        signals.seen()
        progress.say(f"\nStopped. {how or 'Nothing was begun.'}")
        raise
