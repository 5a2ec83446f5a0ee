"""Combinations and a server -> how many steps and tokens each run has, before any of them starts.

Everything is read and tokenised for that, so that what is wrong with a combination shows now.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tinkersmith.batches.in_memory import TokensInMemory
from tinkersmith.batches.order import steps_per_epoch
from tinkersmith.batches.source import TokenizedData
from tinkersmith.errors import UserError
from tinkersmith.evaluation.question_set import QuestionSet
from tinkersmith.progress import Progress
from tinkersmith.service.connection import Server, open_service
from tinkersmith.sweep.grid import Combination
from tinkersmith.sweep.shared_data import SharedData
from tinkersmith.training.plan import encoding_for, measurements_of
from tinkersmith.training.scored_questions import read_eval_files


@dataclass(frozen=True, slots=True)
class RunSize:
    """What a run of a combination trains on."""

    samples: int
    steps: int
    tokens: float | None  # of all epochs; None for large files, which are not read to the end


def check_files_of_sweep(
    combinations: Sequence[Combination], data: SharedData, progress: Progress
) -> QuestionSet | None:
    """Read the files of all combinations, before a server is there; large ones are looked for.

    Returns:
        The questions of EVAL_FILES, which are the same for all.

    Raises:
        UserError: what is wrong with them; the sentence names the combination.
    """
    questions = read_eval_files(combinations[0].settings, progress)
    for chosen in combinations:
        with _named(chosen):
            data.check(chosen.settings, progress)
    return questions


@contextmanager
def _named(chosen: Combination) -> Generator[None, None, None]:
    """An error within the block names the combination."""
    try:
        yield
    except UserError as error:
        raise UserError(f"--grid {chosen.label}: {error}") from None


def sizes_of(
    combinations: Sequence[Combination],
    server: Server,
    data: SharedData,
    questions: QuestionSet | None,
    progress: Progress,
    check: Callable[[], None],
) -> list[RunSize]:
    """The size of a run of each combination.

    Args:
        questions: of EVAL_FILES.
        check: called now and then; raises to end the work.

    Raises:
        UserError: a combination cannot be trained or measured; the sentence names it.
    """
    sizes: dict[int, RunSize] = {}
    models = list(dict.fromkeys(chosen.settings.base_model for chosen in combinations))
    for model in models:
        places = [
            place
            for place, chosen in enumerate(combinations)
            if chosen.settings.base_model == model
        ]
        first = combinations[places[0]].settings
        with open_service(first, progress=progress, server=server) as service:
            service.check = check
            with progress.doing("loading the tokenizer"):
                tokenizer = service.tokenizer()
            for place in places:
                check()
                chosen, settings = combinations[place], combinations[place].settings
                with _named(chosen), ExitStack() as guard:
                    source = data.read(settings, progress)
                    encoding = encoding_for(
                        settings, None, service, tokenizer, source, lambda line: None
                    )
                    tokens = source.tokenized(encoding, progress)
                    guard.callback(tokens.stop)
                    measurements_of(tokens, encoding, questions, progress)
                    sizes[place] = _size(tokens, settings.batch_size, settings.num_epochs)
    return [sizes[place] for place in range(len(combinations))]


def _size(data: TokenizedData, batch_size: int, epochs: int) -> RunSize:
    tokens = None
    if isinstance(data, TokensInMemory):
        together = sum(len(part.tokens) for sample in data.training for part in sample)
        tokens = together / len(data.training) * data.count * epochs
    return RunSize(data.count, steps_per_epoch(data.count, batch_size) * epochs, tokens)
