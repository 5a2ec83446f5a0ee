"""`tinkersmith check`: data files -> lengths and findings; `tinkersmith stats`: lengths alone."""

import argparse
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tinkersmith.cli.common import add_settings_options, reading_settings, settings_file
from tinkersmith.cli.entry_point import COMMANDS

if TYPE_CHECKING:
    from tinkersmith.doctor.reading import Reading
    from tinkersmith.progress import Progress


def check_data_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith check`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["check"])
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help="data files (default: DATA_FILES, with VALIDATION_FILES and EVAL_FILES as test data)",
    )
    parser.add_argument(
        "--test",
        nargs="+",
        default=[],
        metavar="FILE",
        help="test data: samples that ask what it asks are found",
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.8,
        help="similarity from which on samples are near-duplicates, 0.5 to 1 (default: "
        "%(default)s)",
    )
    parser.add_argument("--base-model", metavar="NAME", help="the model whose tokenizer counts")
    parser.add_argument("--template", help="PROMPT_TEMPLATE")
    parser.add_argument("--seed", type=int, help="decides the hash functions (default: SEED)")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="where all findings are listed (default: check_findings.jsonl)",
    )
    parser.add_argument(
        "--write", metavar="FILE", help="write a JSON Lines file without what --drop names"
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="KIND,KIND",
        help="with --write: the kinds of findings to leave out",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that exist")
    add_settings_options(parser)
    _check(parser.parse_args(argv))
    return 0


def stats_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith stats`, the first part of `tinkersmith check`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["stats"])
    parser.add_argument("files", nargs="+", metavar="FILE", help="data files")
    parser.add_argument(
        "--base-model",
        default="tinkersmith/tiny-math",
        metavar="NAME",
        help="the model whose tokenizer counts: bundled, or a folder (default: %(default)s)",
    )
    parser.add_argument("--template", default="auto", help="PROMPT_TEMPLATE (default: auto)")
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    from tinkersmith.data.duplicates import find_duplicates
    from tinkersmith.data.report import duplicate_lines
    from tinkersmith.doctor.reading import Reading
    from tinkersmith.progress import watched

    takes = ("COLUMNS", "ENCODING", "TOKENIZER")
    settings = reading_settings(wanted.config, wanted.set, takes=takes)
    reading = Reading(wanted.files, settings.columns, settings.encoding)
    with watched(print) as progress:
        with progress.doing("reading the data"):
            duplicates = find_duplicates(reading.samples())
        _print([*reading.lines(), *duplicate_lines([duplicates], listed=False)])
        base = _BaseModel(wanted.base_model, settings.tokenizer)
        _print_lengths(reading, base, wanted.template, None, progress)
    return 0


def _check(wanted: argparse.Namespace) -> None:
    from tinkersmith.data.near_duplicates import LOWEST_THRESHOLD
    from tinkersmith.doctor.cleaning import check_output, write_cleaned
    from tinkersmith.doctor.examination import examine_data
    from tinkersmith.doctor.findings import known_kinds
    from tinkersmith.doctor.reading import Reading
    from tinkersmith.doctor.report import (
        FINDINGS_FILE,
        check_findings_file,
        finding_lines,
        write_findings,
    )
    from tinkersmith.errors import UserError
    from tinkersmith.progress import watched
    from tinkersmith.sources.find import refuse_inputs_as_outputs
    from tinkersmith.training.interruption import interruption

    threshold: float = wanted.threshold
    if math.isnan(threshold) or not LOWEST_THRESHOLD <= threshold <= 1:
        raise UserError(
            f"--threshold is {threshold:g}; it must be between {LOWEST_THRESHOLD} and 1 (a usual "
            "choice: 0.8)."
        )
    kinds = known_kinds(name for names in wanted.drop for name in names.split(",") if name.strip())
    if kinds and not wanted.write:
        raise UserError("--drop needs --write FILE, which names the file to write.")
    if wanted.write and not kinds:
        raise UserError(
            "--write needs --drop KIND,KIND, such as --drop exact-duplicates,near-duplicates."
        )
    takes = [
        *(["BASE_MODEL"] if wanted.base_model is None else []),
        *(["PROMPT_TEMPLATE"] if wanted.template is None else []),
        *(["SEED"] if wanted.seed is None else []),
        *(["DATA_FILES"] if not wanted.files else []),
        *(["VALIDATION_FILES", "EVAL_FILES"] if not wanted.files and not wanted.test else []),
        "MAX_SEQUENCE_LENGTH",
        "COLUMNS",
        "ENCODING",
        "TOKENIZER",
    ]
    settings = reading_settings(wanted.config, wanted.set, takes=takes)
    files: list[str] = wanted.files or list(settings.training_files)
    measured = [] if wanted.files else [*settings.validation_files, *settings.eval_files]
    test_files: list[str] = wanted.test or measured
    if "leakage" in kinds and not test_files:
        raise UserError("--drop leakage needs test data: name it with --test FILE.")
    reading = Reading(files, settings.columns, settings.encoding)
    tested = Reading(test_files, settings.columns, settings.encoding) if test_files else None
    if tested is not None:
        _refuse_test_data_that_is_checked(reading.paths, tested.paths)
    out, write = Path(wanted.out or FINDINGS_FILE), Path(wanted.write) if wanted.write else None
    refuse_inputs_as_outputs(
        [out, *([write] if write else [])],
        [*reading.paths, *(tested.paths if tested else []), settings_file(wanted.config)],
    )
    check_findings_file(out, wanted.force)
    if write is not None:
        check_output(write, wanted.force)
        if write.resolve() == out.resolve():
            raise UserError(f"{write} is named for --write and --out. Name two files.")
    with interruption(), watched(print) as progress:
        with progress.doing("reading the test data"):
            test = list(tested.samples()) if tested else []
        seed: int = settings.seed if wanted.seed is None else wanted.seed
        examination = examine_data(reading.samples(), test, threshold, seed, progress)
        _print(reading.lines())
        if tested is not None:
            print("The test data:")
            _print(tested.lines())
        _print_lengths(
            reading,
            _BaseModel(wanted.base_model or settings.base_model, settings.tokenizer),
            wanted.template or settings.prompt_template,
            settings.max_sequence_length,
            progress,
        )
        print()
        write_findings(out, examination)
        _print(finding_lines(examination, str(out)))
        if write is not None:
            with progress.doing(f"writing {write}"):
                cleaned = write_cleaned(write, reading.records(), examination.left_out, kinds)
            print()
            _print(cleaned.lines())


def _refuse_test_data_that_is_checked(paths: Sequence[Path], test_paths: Sequence[Path]) -> None:
    from tinkersmith.errors import UserError

    checked = {path.resolve() for path in paths}
    for path in test_paths:
        if path.resolve() in checked:
            raise UserError(f"{path} is named as data and as test data. Name it once.")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)


class _BaseModel(NamedTuple):
    name: str
    tokenizer: str  # the value of TOKENIZER


def _print_lengths(
    reading: "Reading",
    base: _BaseModel,
    template: str,
    max_sequence_length: int | None,
    progress: "Progress",
) -> None:
    from tinkersmith.data.lengths import LengthStatistics, format_length_statistics
    from tinkersmith.data.samples import characters
    from tinkersmith.models.hub import cached_tokenizer_folder
    from tinkersmith.models.known import retirement_note
    from tinkersmith.models.names import local_model_folder
    from tinkersmith.text.tokenize import LengthEvent, token_lengths, untrained_lines
    from tinkersmith.text.tokenizer import given_tokenizer_folder

    if base.tokenizer:
        folder = given_tokenizer_folder(base.tokenizer)
    else:
        folder = local_model_folder(base.name) or cached_tokenizer_folder(base.name)
    if folder is None:
        if note := retirement_note(base.name):
            print(note)
        print(
            f"{base.name} is not on this machine, so characters are counted. TOKENIZER names a "
            "folder with its tokenizer.json."
        )
        lengths = [characters(sample) for sample in reading.again()]
        print(format_length_statistics(LengthStatistics.of(lengths, "characters"), "Lengths"))
        return
    with progress.doing("measuring the lengths"):
        skipped: list[LengthEvent] = []
        lengths = token_lengths(reading.again(), folder, base.name, template, skipped)
    counting = f"the tokenizer in {base.tokenizer}" if base.tokenizer else base.name
    print(f"Tokens as {counting} counts them")
    statistics = LengthStatistics.of(lengths, max_sequence_length=max_sequence_length)
    print(format_length_statistics(statistics, "Lengths"))
    _print(untrained_lines(skipped))
