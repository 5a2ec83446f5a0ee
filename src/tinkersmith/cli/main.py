"""The command `tinkersmith`: picks the command and imports only what that one needs."""

import importlib
import sys
from collections.abc import Sequence

from tinkersmith.cli.entry_point import COMMANDS, run_entry_point

# Each command's function; `engine` is below, as the one import of the engine.
_FUNCTIONS = {
    "init": "tinkersmith.cli.init:init_command",
    "train": "tinkersmith.cli.training.train:train_command",
    "sweep": "tinkersmith.cli.training.sweep:sweep_command",
    "improve": "tinkersmith.cli.training.improve:improve_command",
    "split": "tinkersmith.cli.data.split:split_command",
    "convert": "tinkersmith.cli.data.convert:convert_command",
    "models": "tinkersmith.cli.models.offers:models_command",
    "settings": "tinkersmith.cli.settings:settings_command",
    "check": "tinkersmith.cli.data.check:check_data_command",
    "stats": "tinkersmith.cli.data.check:stats_command",
    "preview": "tinkersmith.cli.data.preview:preview_command",
    "evaluate": "tinkersmith.cli.results.evaluate:evaluate_command",
    "compare": "tinkersmith.cli.results.compare:compare_command",
    "report": "tinkersmith.cli.results.report:report_command",
    "chat": "tinkersmith.cli.models.chat:chat_command",
    "export": "tinkersmith.cli.models.export:export_command",
    "dashboard": "tinkersmith.cli.results.dashboard:dashboard_command",
    "serve": "tinkersmith.cli.models.serve:serve_command",
    "runs": "tinkersmith.cli.training.runs:runs_command",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_entry_point(lambda: _main(arguments))


def _main(arguments: list[str]) -> int | None:
    if arguments[:1] == ["--version"]:
        from tinkersmith.version import __version__

        print(f"tinkersmith {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: tinkersmith COMMAND [options]; tinkersmith COMMAND --help says more\n")
        for name, about in COMMANDS.items():
            print(f"  {name:10} {about[0].lower()}{about[1:].rstrip('.')}")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"Error: there is no command {command}; did you mean {near}?", file=sys.stderr)
        return 2
    if command == "engine":
        from tinkersmith.engine.__main__ import main as engine_main

        return engine_main(rest)
    module, _, function = _FUNCTIONS[command].partition(":")
    return getattr(importlib.import_module(module), function)(rest, prog=f"tinkersmith {command}")


if __name__ == "__main__":
    sys.exit(main())
