"""`tinkersmith convert`: data files of any kind -> one JSON Lines file."""

import argparse
from collections.abc import Mapping, Sequence

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
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="COLUMNS or ENCODING as in config.py",
    )
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    wanted = parser.parse_args(argv)
    from tinkersmith.data.convert import conversion_lines, convert
    from tinkersmith.progress import watched

    columns, encoding = _reading(wanted.set, _columns(wanted.columns), wanted.encoding)
    with watched(print) as progress:
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


def _reading(
    overrides: Sequence[str], columns: dict[str, str], encoding: str
) -> tuple[Mapping[str, str], str]:
    """COLUMNS and ENCODING from both ways to give them.

    Raises:
        UserError: one is given twice, or --set names another setting.
    """
    from tinkersmith.settings.reading import settings_from

    names = [override.partition("=")[0].strip().upper() for override in overrides]
    for name in names:
        if name not in ("COLUMNS", "ENCODING"):
            raise UserError(
                f"--set {one_line(name)} has no effect on a conversion: it takes COLUMNS and "
                "ENCODING. Remove it."
            )
    for name, given in (("COLUMNS", columns), ("ENCODING", encoding)):
        if name in names and given:
            raise UserError(
                f"--{name.lower()} and --set {name} are both given. Remove one of them."
            )
    settings = settings_from({}, overrides)
    return columns or settings.columns, encoding or settings.encoding
