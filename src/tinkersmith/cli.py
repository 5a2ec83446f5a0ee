"""The command line: tinkersmith train|split|stats|evaluate|export|engine. Imports late."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinkersmith.settings import Settings

COMMANDS = {
    "train": "fine-tune a LoRA with the settings of config.py",
    "split": "merge data files and split them into a training and a test set",
    "stats": "length statistics of data files",
    "evaluate": "score a trained model on a test set",
    "export": "write a trained model as a PEFT folder or a merged model",
    "engine": "serve the Tinker API on this machine",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        from tinkersmith import __version__

        print(f"tinkersmith {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: tinkersmith COMMAND [options]; tinkersmith COMMAND --help says more\n")
        for name, about in COMMANDS.items():
            print(f"  {name:10} {about}")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)[0]
        print(f"Error: there is no command {command}; did you mean {near}?", file=sys.stderr)
        return 2
    return run_front_door(lambda: _run(command, rest))


def run_front_door(act: Callable[[], int | None]) -> int:
    """Call `act`; a user's mistake becomes one sentence on stderr and exit code 1."""
    from tinkersmith.errors import UserError

    try:
        return act() or 0
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"Error: {place}{error.strerror or error}.", file=sys.stderr)
        return 1


def train_command(
    argv: Sequence[str] | None = None,
    *,
    config: Path | str | None = None,
    prog: str | None = None,
) -> int:
    """`train_with_config.py` and `tinkersmith train`; `config` is the default settings file."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["train"].capitalize() + ".")
    parser.add_argument("--config", default=config, metavar="FILE", help="default: config.py")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="change one setting"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with an interrupted run")
    wanted = parser.parse_args(argv)
    from tinkersmith.errors import UserError
    from tinkersmith.settings import load_settings

    settings = load_settings(wanted.config, wanted.set)
    changed = [name for name in wanted.set if not name.startswith("OUTPUT_DIR")]
    if wanted.resume and changed:
        raise UserError(
            f"--set {changed[0]} has no effect with --resume: a run goes on with its own settings."
        )
    from tinkersmith.training import train

    trained = train(settings, resume=wanted.resume)
    trained.close()
    offer_export(trained.run.settings().export_after_training, trained.state_path, settings)
    return 0


def offer_export(choice: str, tinker_path: str, settings: "Settings") -> None:
    """Export as EXPORT_AFTER_TRAINING says; "ask" asks only where somebody can answer."""
    if choice == "ask" and sys.stdin.isatty() and sys.stdout.isatty():
        answer = input("Export it now? [a]dapter, [m]erged model, or Enter for no: ").strip()
        choice = {"a": "adapter", "m": "merged"}.get(answer[:1].lower(), "no")
    if choice in ("adapter", "merged"):
        from tinkersmith.export import export_model

        export_model(settings, tinker_path, merged=choice == "merged")
        return
    print(f"Export   python export_model.py --model-path {tinker_path}")


def _run(command: str, rest: list[str]) -> int | None:
    prog = f"tinkersmith {command}"
    if command == "train":
        here = Path("config.py")
        return train_command(rest, config=here if here.is_file() else None, prog=prog)
    if command == "split":
        from tinkersmith import splitting

        return splitting.main(rest, prog=prog)
    if command == "stats":
        return _stats(rest, prog)
    if command == "evaluate":
        from tinkersmith import evaluation

        return evaluation.main(rest, prog=prog)
    if command == "export":
        from tinkersmith import export

        return export.main(rest, prog=prog)
    from tinkersmith.engine.__main__ import main as engine_main

    return engine_main(rest)


def _stats(rest: list[str], prog: str) -> int:
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["stats"].capitalize() + ".")
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument(
        "--base-model",
        default="tinkersmith/tiny-math",
        help="whose tokenizer counts: a bundled model or a folder (default: %(default)s)",
    )
    parser.add_argument("--template", default="auto", help="PROMPT_TEMPLATE (default: auto)")
    wanted = parser.parse_args(rest)
    from tinkersmith.copies import find_copies
    from tinkersmith.lengths import LengthStatistics, format_length_statistics
    from tinkersmith.models import local_model_folder
    from tinkersmith.samples import characters, load_samples
    from tinkersmith.tokens import token_lengths

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


if __name__ == "__main__":
    sys.exit(main())
