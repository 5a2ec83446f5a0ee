"""`tinkersmith stats`: data files -> length statistics, printed."""

import argparse
from collections.abc import Sequence

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
    wanted = parser.parse_args(argv)
    from tinkersmith.data.copies import find_copies
    from tinkersmith.data.lengths import LengthStatistics, format_length_statistics
    from tinkersmith.data.samples import characters, load_samples
    from tinkersmith.models import local_model_folder
    from tinkersmith.text.tokenize import token_lengths

    loaded = load_samples(wanted.files)
    for file, count in loaded.counts.items():
        print(f"{count:,} samples from {file}")
    for file in loaded.missing_files:
        print(f"Warning: {file} does not exist.")
    for skipped in loaded.skipped:
        print(f"Skipped {skipped}")
    if copies := find_copies(loaded.samples):
        print(f"{copies}.")
    folder = local_model_folder(wanted.base_model)
    if folder is None:
        print(f"{wanted.base_model} is not on this machine, so characters are counted.")
        lengths = [characters(sample) for sample in loaded.samples]
        print(format_length_statistics(LengthStatistics.of(lengths, "characters"), "Lengths"))
        return 0
    lengths = token_lengths(loaded.samples, folder, wanted.base_model, wanted.template)
    print(f"Tokens as {wanted.base_model} counts them")
    print(format_length_statistics(LengthStatistics.of(lengths), "Lengths"))
    return 0
