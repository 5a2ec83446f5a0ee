"""`tinkersmith stats`: data files -> length statistics, printed."""

import argparse
from collections.abc import Sequence

from tinkersmith.cli.common import add_settings_options, reading_settings
from tinkersmith.cli.entry_point import COMMANDS


def stats_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith stats`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["stats"])
    parser.add_argument("files", nargs="+", metavar="FILE", help="JSON or JSON Lines, also gzip-ed")
    parser.add_argument(
        "--base-model",
        default="tinkersmith/tiny-math",
        help="the model whose tokenizer counts: bundled, or a folder (default: %(default)s)",
    )
    parser.add_argument("--template", default="auto", help="PROMPT_TEMPLATE (default: auto)")
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    from tinkersmith.data.duplicates import find_duplicates
    from tinkersmith.data.lengths import LengthStatistics, format_length_statistics
    from tinkersmith.data.load import load_samples
    from tinkersmith.data.report import duplicate_lines, note_lines, read_lines, skipped_lines
    from tinkersmith.data.samples import characters
    from tinkersmith.models import local_model_folder
    from tinkersmith.progress import watched
    from tinkersmith.text.tokenize import token_lengths

    columns = reading_settings(wanted.config, wanted.set).columns
    with watched(print) as progress, progress.doing("reading the data"):
        loaded = load_samples(wanted.files, columns)
        duplicates = find_duplicates(loaded.samples)
    for line in (
        *read_lines(loaded.counts, loaded.missing_files, loaded.shapes),
        *note_lines(loaded.notes),
        *skipped_lines(loaded.skipped, len(loaded.skipped)),
        *duplicate_lines([duplicates], listed=False),
    ):
        print(line)
    folder = local_model_folder(wanted.base_model)
    if folder is None:
        print(f"{wanted.base_model} is not on this machine, so characters are counted.")
        lengths = [characters(sample) for sample in loaded.samples]
        print(format_length_statistics(LengthStatistics.of(lengths, "characters"), "Lengths"))
        return 0
    with watched(print) as progress, progress.doing("measuring the lengths"):
        lengths = token_lengths(loaded.samples, folder, wanted.base_model, wanted.template)
    print(f"Tokens as {wanted.base_model} counts them")
    print(format_length_statistics(LengthStatistics.of(lengths), "Lengths"))
    return 0
