"""`tinkersmith export` and export_model.py: options -> an exported folder."""

import argparse
from collections.abc import Sequence

from tinkersmith.cli.common import user_settings
from tinkersmith.cli.front_door import run_front_door
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model


def export_command(
    argv: Sequence[str] | None = None,
    *,
    model_path: str = "",
    merged: bool = False,
    output: str = "",
    base_model: str = "",
    prog: str | None = None,
) -> int:
    """The command line of export_model.py and `tinkersmith export`, with these defaults."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Export a trained model as a PEFT adapter or as a merged model."
    )
    parser.add_argument(
        "--model-path", default=model_path, help="tinker:// path; newest run if none"
    )
    parser.add_argument("--merged", action="store_true", default=merged, help="a full model folder")
    parser.add_argument("--out", default=output, metavar="FOLDER")
    parser.add_argument("--force", action="store_true", help="replace an export that is there")
    parser.add_argument(
        "--verify", action="store_true", help="load it with plain transformers and compare"
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="precision of a merged model; auto is that of the base model",
    )
    parser.add_argument("--base-model", default=base_model, help="for paths without a run folder")
    parser.add_argument(
        "--base-folder", metavar="FOLDER", help="the base model, if not found itself"
    )
    parser.add_argument("--config", default="", help="settings file; config.py if it is there")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    wanted = parser.parse_args(argv)

    def act() -> None:
        if wanted.dtype != "auto" and not wanted.merged:
            raise UserError("--dtype has an effect only with --merged. Add that, or leave it out.")
        export_model(
            user_settings(wanted.config, wanted.set),
            wanted.model_path,
            wanted.out,
            wanted.merged,
            base_model=wanted.base_model,
            base_folder=wanted.base_folder,
            force=wanted.force,
            verify=wanted.verify,
            dtype=wanted.dtype,
        )

    return run_front_door(act)
