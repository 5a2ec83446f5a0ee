"""`tinkersmith export` and export_model.py: options -> an exported folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tinkersmith.cli.common import add_checkpoint_option, add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.errors import UserError
from tinkersmith.export.export import EXPORTS, export_model
from tinkersmith.paths import seen_from_here


def export_command(
    argv: Sequence[str] | None = None,
    *,
    model_path: str = "",
    checkpoint: str = "",
    merged: bool = False,
    output: str = "",
    base_model: str = "",
    folder: Path | str = ".",
    prog: str | None = None,
) -> int:
    """The command line of export_model.py and `tinkersmith export`, with these defaults.

    Relative names in the defaults start from `folder`, where config.py is looked for as well.
    """
    output = seen_from_here(folder, output) if output else ""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["export"])
    parser.add_argument(
        "--model-path",
        default=model_path,
        help="tinker:// path (default: a checkpoint of the newest run)",
    )
    add_checkpoint_option(parser, checkpoint)
    parser.add_argument("--merged", action="store_true", default=merged, help="a full model folder")
    parser.add_argument(
        "--out", default=output, metavar="FOLDER", help="default: exported/RUN-adapter or -merged"
    )
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="load it with plain transformers and compare; on unless nothing can load it",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="precision of a merged model; auto is that of the base model",
    )
    parser.add_argument("--base-model", default=base_model, help="for paths without a run folder")
    parser.add_argument(
        "--base-folder", metavar="FOLDER", help="the base model's folder, if it is not found"
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)

    def act() -> None:
        if wanted.dtype != "auto" and not wanted.merged:
            raise UserError("--dtype has an effect only with --merged. Add that, or leave it out.")
        export_model(
            user_settings(wanted.config, wanted.set, folder),
            wanted.model_path,
            wanted.out,
            wanted.merged,
            checkpoint=wanted.checkpoint,
            base_model=wanted.base_model,
            base_folder=wanted.base_folder,
            force=wanted.force,
            verify=wanted.verify,
            dtype=wanted.dtype,
            exports=seen_from_here(folder, EXPORTS),
        )

    return run_entry_point(act)
