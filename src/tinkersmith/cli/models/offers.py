"""`tinkersmith models`: BACKEND and the environment -> the server's models beside the table."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from tinkersmith.cli.common import add_settings_options, reading_settings
from tinkersmith.cli.entry_point import COMMANDS

_TAKES = ("BACKEND", "SERVER_PATIENCE")


def models_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith models`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["models"])
    parser.add_argument(
        "--all", action="store_true", help="also what the server does not list, and what is retired"
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    from tinkersmith.models.table import (
        aligned_lines,
        column_notes,
        offer_rows,
        retired_lines,
        unlisted_rows,
    )
    from tinkersmith.service.offers import offers_of

    where, offers = offers_of(reading_settings(wanted.config, wanted.set, takes=_TAKES))
    rows = offer_rows(offers)
    others: list[dict[str, Any]] = unlisted_rows(offers) if wanted.all else []
    if wanted.json:
        print(json.dumps([*rows, *others], ensure_ascii=False, indent=2))
        return 0
    print(f"{where} offers:")
    for line in aligned_lines(rows):
        print(f"  {line}")
    if wanted.all:
        print("Known of Tinker's cloud, and not in this list:")
        for line in aligned_lines(others):
            print(f"  {line}")
        print("Retired by Tinker's cloud, and what its list of retirements leads to:")
        for line in retired_lines():
            print(f"  {line}")
    for line in column_notes():
        print(line)
    return 0
