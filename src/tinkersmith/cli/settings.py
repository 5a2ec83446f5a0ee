"""`tinkersmith settings`: a settings file and --set -> every setting, its value and its origin."""

import argparse
import json
from collections.abc import Sequence

from tinkersmith.cli.common import add_settings_options
from tinkersmith.cli.entry_point import COMMANDS


def settings_command(argv: Sequence[str], *, prog: str) -> int:
    """The command line of `tinkersmith settings`."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["settings"])
    add_settings_options(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print values and origins as JSON")
    form.add_argument(
        "--schema", action="store_true", help="print the JSON Schema of a settings file"
    )
    wanted = parser.parse_args(argv)
    from tinkersmith.cli.common import refuse_unread_file, settings_with_origins
    from tinkersmith.errors import UserError
    from tinkersmith.settings.fields import FIELDS, python_text
    from tinkersmith.settings.schema import json_schema

    if wanted.schema:
        if wanted.config or wanted.set:
            raise UserError(
                "--schema describes every settings file, so that --config and --set have no effect."
                " Leave them out."
            )
        print(json.dumps(json_schema(), ensure_ascii=False, indent=2))
        return 0
    refuse_unread_file(wanted.config)
    settings, origins = settings_with_origins(wanted.config, wanted.set)
    values = settings.model_dump()
    if wanted.json:
        described = {
            field.upper(): {"value": values[field], "origin": origins.get(field, "default")}
            for field in FIELDS
        }
        print(json.dumps(described, ensure_ascii=False, indent=2))
        return 0
    rows = [(f.upper(), python_text(values[f]), origins.get(f, "default")) for f in FIELDS]
    width = min(max(len(text) for _, text, _ in rows), 40)
    for name, text, origin in rows:
        print(f"{name:24} {text:{width}}  {origin}")
    return 0
