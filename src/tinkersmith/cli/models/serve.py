"""`tinkersmith serve` and serve_model.py: options -> a server of trained models."""

import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from tinkersmith.cli.common import add_checkpoint_option, add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.errors import UserError
from tinkersmith.paths import seen_from_here

SERVE_KEY_VARIABLE = "TINKERSMITH_SERVE_KEY"


def serve_command(
    argv: Sequence[str] | None = None,
    *,
    models: Sequence[str] = (),
    checkpoint: str = "",
    port: int = 8001,
    folder: Path | str = ".",
    prog: str | None = None,
) -> int:
    """The command line of serve_model.py and `tinkersmith serve`, with these defaults."""
    parser = argparse.ArgumentParser(prog=prog, description=COMMANDS["serve"])
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[NAME=]PATH",
        help="a run's name or folder, a tinker:// path, or the folder of an exported adapter or "
        "model; several of one base model (default: the newest run)",
    )
    add_checkpoint_option(parser, checkpoint)
    parser.add_argument(
        "--base-model", default="", help="for paths and adapters that do not say theirs"
    )
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument(
        "--port", type=int, default=port, help=f"0: any free port (default: {port})"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name or address by which clients reach the server; may be repeated",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"a file with the key that clients must send; default: that in {SERVE_KEY_VARIABLE}; "
        "without one, none on loopback, and beyond it a new one",
    )
    parser.add_argument(
        "--max-requests",
        type=int,
        metavar="N",
        help="open requests at once; more are refused with 429 (default: 512)",
    )
    parser.add_argument(
        "--vllm", action="store_true", help="serve an export by vLLM, on a GPU, instead of here"
    )
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    paths: list[str] = wanted.models or [_from_script(folder, path) for path in models]
    return run_entry_point(lambda: _serve(wanted, paths, folder))


def _from_script(folder: Path | str, entry: str) -> str:
    """An entry of a script's MODELS, with a folder as it is written from the current one."""
    name, equals, path = entry.rpartition("=")
    if path.startswith("tinker://") or not (Path(folder) / path).exists():
        return entry
    return f"{name}{equals}{seen_from_here(folder, path)}"


def _serve(wanted: argparse.Namespace, paths: Sequence[str], folder: Path | str) -> int:
    if wanted.max_requests is not None and wanted.max_requests < 1:
        raise UserError(f"--max-requests is {wanted.max_requests}; it must be at least 1.")
    for name, given in (
        ("--max-requests", wanted.max_requests is not None),
        ("--allow-host", wanted.allow_host),
    ):
        if wanted.vllm and given:
            raise UserError(
                f"{name} has no effect with --vllm: vLLM has no such rule. Leave it out."
            )
    settings = user_settings(wanted.config, wanted.set, folder)
    key = _key(wanted)
    from tinkersmith.progress import watched
    from tinkersmith.serving.models import models_to_serve

    models = models_to_serve(paths, settings, wanted.checkpoint, wanted.base_model)
    if wanted.vllm:
        from tinkersmith.serving.vllm import run_vllm

        return run_vllm(models, wanted.host, wanted.port, key, print)
    from tinkersmith.serving.app import MOST_REQUESTS
    from tinkersmith.serving.server import running_server

    for model in models.models:
        print(f"  {model.name}: {model.about}")
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    say = partial(print, flush=True)
    try:
        with (
            watched(say) as progress,
            running_server(
                models,
                progress,
                host=wanted.host,
                port=wanted.port,
                key=key,
                names=wanted.allow_host,
                most_requests=wanted.max_requests or MOST_REQUESTS,
            ) as server,
        ):
            gc.freeze()  # what exists now stays: Python need not look through it for garbage
            progress.say(f"Serving {server.url}/v1 (Ctrl-C ends it)")
            progress.say(f"Chat in the browser: {server.url}/")
            while server.is_running and not ended.wait(0.2):
                pass
            if not ended.is_set():
                raise UserError("The server has ended by itself. Start it again.")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _key(wanted: argparse.Namespace) -> str | None:
    """The key that clients must send; None on loopback, unless one is given."""
    from tinkersmith.guards.hosts import is_loopback
    from tinkersmith.guards.keys import choose_key

    def warn(sentence: str) -> None:
        print(f"Warning: {sentence}", file=sys.stderr)

    loopback = is_loopback(wanted.host)
    key, made = choose_key(
        SERVE_KEY_VARIABLE,
        os.environ.pop(SERVE_KEY_VARIABLE, ""),  # children would inherit it
        wanted.key_file,
        loopback=loopback,
        warn=warn,
        server="server",
    )
    if not made:
        return key
    if loopback:
        return None
    print(f"The key that clients must send: {key}")
    warn(
        "whoever listens on the network can read the key and the texts: put a reverse proxy with "
        "TLS before the server"
    )
    return key
