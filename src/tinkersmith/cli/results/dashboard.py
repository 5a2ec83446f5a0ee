"""`tinkersmith dashboard`: a page of all runs, live."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS
from tinkersmith.dashboard.server import (
    DASHBOARD_KEY,
    DEFAULT_PORT,
    DashboardAddress,
    serve_dashboard,
)
from tinkersmith.pages.words import page_language


def dashboard_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith dashboard`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["dashboard"])
    add_settings_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    parser.add_argument(
        "--port", type=int, default=DEFAULT_PORT, help="0: any free port (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name or address by which browsers reach the dashboard; may be repeated",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"a file with the key; default: the key in {DASHBOARD_KEY}, or a new one",
    )
    parser.add_argument(
        "--lang", choices=("en", "zh"), help="the page's language (default: as LANG says)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    wanted = parser.parse_args(argv)
    settings = user_settings(wanted.config, wanted.set)
    place = DashboardAddress(wanted.host, wanted.port, wanted.allow_host, wanted.key_file)
    language = page_language(wanted.lang)
    serve_dashboard(
        Path(settings.output_dir),
        place,
        language,
        lambda line: print(line, flush=True),
        opens=wanted.open,
    )
    return 0
