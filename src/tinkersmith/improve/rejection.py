"""A round of rejection sampling: answers -> those that are right -> a training on them.

The training is one like any other, from the weights of the round before, on other data.
"""

import random

from tinkersmith.errors import UserError
from tinkersmith.improve.accepted import Accepted, accepted_answers
from tinkersmith.improve.held_out import answers_of, samples_by_source
from tinkersmith.improve.options import ImproveOptions
from tinkersmith.improve.preparation import ORIGINALS_FILE, Improvement
from tinkersmith.runs.folder import Checkpoint, RunFolder
from tinkersmith.settings.fields import Settings
from tinkersmith.training.interruption import Interruption
from tinkersmith.training.plan import Stage
from tinkersmith.training.train import train_stage

ANSWERS_FILE = "answers.jsonl"
ACCEPTED_FILE = "accepted.jsonl"  # in the form of DATA_FILES


def seed_of_round(seed: int, number: int) -> int:
    """Another seed for each round, so that each samples other answers."""
    return random.Random(f"{seed} {number}").randrange(2**31)


def sampling_settings(settings: Settings, options: ImproveOptions, seed: int) -> Settings:
    """The settings that answers to training questions are sampled with."""
    return settings.model_copy(
        update={
            "sampling_temperature": options.temperature,
            "sampling_num_samples": options.answers,
            "seed": seed,
        }
    )


def sampled_round(work: Improvement, number: int, before: Checkpoint) -> Accepted:
    """Sample answers with the weights of the round before, and write those that are right.

    Raises:
        UserError: see `answers_of`.
    """
    seed = seed_of_round(work.settings.seed, number)
    records = answers_of(
        work,
        work.asking(sampling_settings(work.settings, work.options, seed)),
        work.training,
        before.sampler_path,
        work.round_folder(number) / ANSWERS_FILE,
        f"round {number - 1}" if number > 1 else "the model as it is",
    )
    accepted = accepted_answers(
        records,
        samples_by_source(work.training),
        work.score,
        work.options.keep,
        seed,
        keeps_thoughts=work.template.keeps_thoughts,
    )
    RunFolder(work.round_folder(number)).rewrite(ACCEPTED_FILE, accepted.records)
    return accepted


def trained_round(
    work: Improvement, number: int, before: Checkpoint, signals: Interruption
) -> tuple[RunFolder, Checkpoint]:
    """Train on the accepted answers from the state of the round before.

    Returns:
        The training's own run folder, and its last checkpoint.

    Raises:
        Diverged: the loss has risen for long.
        UserError: see `train_stage`.
    """
    folder = work.round_folder(number)
    files = [str(folder / ACCEPTED_FILE)]
    if work.options.mix and work.run.file(ORIGINALS_FILE).is_file():
        files.append(str(work.run.file(ORIGINALS_FILE)))
    settings = work.settings.model_copy(
        update={
            "data_files": files,
            "columns": {},
            "encoding": "auto",
            "eval_files": [],
            "best_by": "auto",
            "model_name_prefix": "training",
            "seed": seed_of_round(work.settings.seed, number),
        }
    )
    stage = Stage(work.service, work.template, before.state_path, folder, work.run)
    run = train_stage(settings, stage, work.service.progress, signals)
    saved = run.checkpoints()
    if not saved:
        raise UserError(f"{run.path} is damaged: it has no checkpoint. Remove that folder.")
    return run, saved[-1]
