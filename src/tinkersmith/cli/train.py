"""`tinkersmith train` and train_with_config.py: options -> a training run, then an export."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tinkersmith.cli.front_door import COMMANDS

if TYPE_CHECKING:
    from tinkersmith.settings import Settings


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
    from tinkersmith.training.train import train

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
        from tinkersmith.export.export import export_model

        export_model(settings, tinker_path, merged=choice == "merged")
        return
    print(f"Export   python export_model.py --model-path {tinker_path}")
