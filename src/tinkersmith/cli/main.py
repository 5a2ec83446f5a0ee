"""The command `tinkersmith`: picks the command and imports only what that one needs."""

import sys
from collections.abc import Sequence

from tinkersmith.cli.entry_point import COMMANDS, run_entry_point


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
    return _run(command, rest)


def _run(command: str, rest: list[str]) -> int | None:
    prog = f"tinkersmith {command}"
    if command == "init":
        from tinkersmith.cli.init import init_command

        return init_command(rest, prog=prog)
    if command == "train":
        from tinkersmith.cli.train import train_command

        return train_command(rest, prog=prog)
    if command == "split":
        from tinkersmith.cli.split import split_command

        return split_command(rest, prog=prog)
    if command == "check":
        from tinkersmith.cli.check import check_data_command

        return check_data_command(rest, prog=prog)
    if command == "stats":
        from tinkersmith.cli.check import stats_command

        return stats_command(rest, prog=prog)
    if command == "convert":
        from tinkersmith.cli.convert import convert_command

        return convert_command(rest, prog=prog)
    if command == "settings":
        from tinkersmith.cli.settings import settings_command

        return settings_command(rest, prog=prog)
    if command == "preview":
        from tinkersmith.cli.preview import preview_command

        return preview_command(rest, prog=prog)
    if command == "evaluate":
        from tinkersmith.cli.evaluate import evaluate_command

        return evaluate_command(rest, prog=prog)
    if command == "compare":
        from tinkersmith.cli.compare import compare_command

        return compare_command(rest, prog=prog)
    if command == "export":
        from tinkersmith.cli.export import export_command

        return export_command(rest, prog=prog)
    if command == "runs":
        from tinkersmith.cli.runs import runs_command

        return runs_command(rest, prog=prog)
    from tinkersmith.engine.__main__ import main as engine_main

    return engine_main(rest)


if __name__ == "__main__":
    sys.exit(main())
