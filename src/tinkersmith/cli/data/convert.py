"""`tinkersmith convert`: data files of any kind -> one JSON Lines file."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_settings_options, reading_settings, settings_file
from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.errors import UserError, one_line


def convert_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith convert`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["convert"])
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON, JSON Lines, CSV, TSV, Parquet, Arrow, Excel, also compressed; a folder, a "
        "pattern, or a data set such as hf:org/name",
    )
    parser.add_argument("--out", required=True, metavar="FILE.jsonl", help="the file to write")
    parser.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="OURS=THEIRS",
        help="what the records call our fields, such as instruction=question output=answer",
    )
    parser.add_argument(
        "--encoding", default="", help='the encoding of text files (default: "auto")'
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    from tinkersmith.data.convert import conversion_lines, convert
    from tinkersmith.progress import watched
    from tinkersmith.sources.find import refuse_inputs_as_outputs
    from tinkersmith.training.interruption import interruption

    refuse_inputs_as_outputs([Path(wanted.out)], [settings_file(wanted.config)])
    settings = reading_settings(wanted.config, wanted.set)
    columns = _columns(wanted.columns)
    for name, given in (("COLUMNS", columns), ("ENCODING", wanted.encoding)):
        if given and any(text.strip().upper().startswith(name) for text in wanted.set):
            raise UserError(f"--{name.lower()} and --set {name} are both given. Remove one.")
    columns, encoding = columns or settings.columns, wanted.encoding or settings.encoding
    with interruption(), watched(print) as progress:
        result = convert(
            wanted.files, wanted.out, columns, encoding, force=wanted.force, progress=progress
        )
    for line in conversion_lines(result):
        print(line)
    return 0


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in (part for text in pairs for part in text.split(",")):
        ours, equals, theirs = pair.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise UserError(
                f"--columns {one_line(pair)} names no field; write it as --columns OURS=THEIRS, "
                "such as --columns instruction=question output=answer"
            )
        columns[ours.strip()] = theirs.strip()
    return columns
