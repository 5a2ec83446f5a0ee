"""The engine's process: python -m tinkersmith.engine. Serves first, loads torch behind that."""

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import shlex
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.hardware.memory import keep_freed_memory
from tinkersmith.engine.hardware.threads import wait_passively
from tinkersmith.engine.log import log
from tinkersmith.engine.storage.permissions import keep_new_files_private, tighten
from tinkersmith.engine_status import status_file
from tinkersmith.errors import UserError
from tinkersmith.guards.hosts import allowed_hosts, is_loopback, is_wildcard, listen
from tinkersmith.guards.keys import choose_key

KEY_VARIABLE = "TINKERSMITH_ENGINE_KEY"

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ONE_REQUEST = 1.0  # seconds: closing a session can send SIGTERM, SIGHUP and SIGHUP again
_EXIT_PATIENCE = 1.5  # seconds for open requests; a long computation is not waited for


def main(arguments: Sequence[str] | None = None) -> int:
    keep_new_files_private()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["check"]:
        from tinkersmith.engine.storage.check import check_command

        return check_command(given[1:])
    options = _parser().parse_args(given)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if options.exit_with_stdin:  # until the event loop handles them: see `_serve`
        for number in _STOP_SIGNALS:
            signal.signal(number, _leave_to_the_recipe)
    try:
        # Taken out of the environment, which the compiler and other children inherit.
        in_environment = os.environ.pop(KEY_VARIABLE, "")
        key, made = choose_key(
            KEY_VARIABLE,
            in_environment,
            options.key_file,
            loopback=is_loopback(options.host),
            warn=log.warning,
            server="engine",
            prefix="tml-",  # the SDK accepts no other
        )
        _check_certificate(options.tls_cert, options.tls_key)
        if options.threads < 0:
            raise Refused(f"--threads is {options.threads}; it must be 0 (chosen) or more.")
        if options.sampler == "vllm" and options.sampled_logprobs != "model":
            raise Refused(
                "--sampler vllm gives the model's own log-probabilities only; leave out "
                "--sampled-logprobs or --sampler."
            )
        wait_passively(os.environ)  # before torch is imported
        return _serve(options, key, made)
    except BrokenPipeError:  # nobody reads that the engine is ready
        return 1
    except (Refused, UserError, StorageFailure, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinkersmith engine",
        description="Serve the Tinker API on this machine, for the official tinker SDK.",
        epilog="`tinkersmith engine check DIR` checks and repairs the folder of an engine.",
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any free port (default: 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name or address by which clients reach the engine; may be repeated",
    )
    parser.add_argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help=f"a file with the API key; default: the key in {KEY_VARIABLE}, or a new one",
    )
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM): serve HTTPS"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    parser.add_argument(
        "--dir",
        type=Path,
        default=Path("runs/.engine"),
        help="where checkpoints are kept (default: %(default)s)",
    )
    parser.add_argument(
        "--base-model",
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="a model folder in Hugging Face format to offer; may be repeated",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter in PEFT's format to sample from by this name; may be repeated",
    )
    parser.add_argument(
        "--adapter-base",
        action="append",
        default=[],
        metavar="NAME=BASE",
        help="the base model of that adapter, if its config names it otherwise",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float8"],
        default="auto",
        help="precision of the frozen weights; float8 (experimental): "
        "layers in 8 bits, half the memory of bfloat16, on a GPU with 8-bit products",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--threads",
        type=int,
        default=0,
        help="CPU threads; 0: OMP_NUM_THREADS, or else by the model and the machine's load",
    )
    parser.add_argument(
        "--gpu-graphs",
        action="store_true",
        help="launch training passes of small models as CUDA graphs (experimental)",
    )
    parser.add_argument(
        "--sampler",
        choices=["own", "vllm"],
        default="own",
        help="what samples tokens; vllm: vLLM on a GPU (experimental)",
    )
    parser.add_argument(
        "--sampled-logprobs",
        choices=["model", "temperature"],
        default="model",
        help="log-probabilities of sampled tokens: the model's own, or at the request's "
        "temperature (default: model)",
    )
    parser.add_argument(
        "--allow-changed-base",
        action="store_true",
        help="load checkpoints although the base model's weights are not those of their training",
    )
    parser.add_argument(
        "--exit-with-stdin", action="store_true", help="end when standard input is closed"
    )
    return parser


def _serve(options: argparse.Namespace, key: str, made: bool) -> int:
    import uvicorn

    keep_freed_memory()  # before the engine thread starts
    from tinkersmith.engine.kernels.native.build import cache_folder, start_building
    from tinkersmith.engine.scheduling.operations import ModelOperations
    from tinkersmith.engine.scheduling.queue import EngineThread
    from tinkersmith.engine.scheduling.sessions import Sessions
    from tinkersmith.engine.server import connections
    from tinkersmith.engine.server.app import make_app
    from tinkersmith.engine.server.routes.service import TESTED_WITH
    from tinkersmith.engine.server.status import EngineStatus
    from tinkersmith.engine.storage.catalogue import add_adapters, make_catalogue
    from tinkersmith.engine.storage.store import Store

    hosts = allowed_hosts(options.host, options.allow_host)
    catalogue = make_catalogue(options.base_model)
    add_adapters(catalogue, options.adapter, options.adapter_base)
    try:
        store = Store(options.dir)
        tighten(options.dir)
    except OSError as error:
        raise Refused(
            f"cannot keep checkpoints in {options.dir}: {error.strerror or error}; choose another "
            "--dir."
        ) from None
    connections.use_all_handles()
    if options.dtype == "float8" or options.gpu_graphs or options.sampler == "vllm":
        _check_experimental(options)
    listener = listen(options.host, options.port)
    if options.device != "cuda":
        start_building(cache_folder(), products=False)
    port = listener.getsockname()[1]

    def prepare() -> ModelOperations:
        """On the engine thread: torch and transformers are imported while HTTP already answers."""
        from transformers.utils.logging import disable_progress_bar

        from tinkersmith.engine.runtime.clients import Models

        disable_progress_bar()
        # The 400,000 objects of those libraries stay. While Python looks through them for garbage,
        # every client waits for a quarter of a second.
        gc.freeze()
        return Models(
            store,
            catalogue,
            # With float8, all but the layers is in bfloat16.
            "bfloat16" if options.dtype == "float8" else options.dtype,
            options.device,
            options.threads,
            experimental=_experimental(options),
            allow_changed_base=options.allow_changed_base,
            tempered_logprobs=options.sampled_logprobs == "temperature",
        )

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(connections.handle_exception)
        thread = EngineThread(loop, prepare)
        sessions = Sessions(store, thread)
        status = EngineStatus(sessions)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(sessions, catalogue, key, hosts, is_wildcard(options.host), status),
                http=connections.Connection,
                ws="none",
                ssl_certfile=options.tls_cert,
                ssl_keyfile=options.tls_key,
                log_level="warning",
                access_log=False,
                timeout_keep_alive=connections.IDLE_PATIENCE,
                lifespan="off",
            )
        )
        logging.getLogger("uvicorn.error").addFilter(connections.SeldomFilter())
        if options.tls_cert:  # uvicorn does not pass it on; asyncio would wait for a minute
            patience = connections.REQUEST_PATIENCE
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=patience)

        def end() -> None:
            # A computation cannot be interrupted; what is on disk is whole at any moment.
            threading.Timer(_EXIT_PATIENCE, os._exit, [0]).start()
            # Requests that are held for a result are cut off now, which is no error to report.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            server.should_exit = True
            server.force_exit = True

        # A recipe's engine ends with its pipe. Job schedulers send a signal to both, and the recipe
        # still needs the engine to save: the first one is left to the recipe.
        ended_by = end if not options.exit_with_stdin else _from_second_time_on(end)
        server.capture_signals = _no_handlers  # or uvicorn's replace ours
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, ended_by)
        if options.exit_with_stdin:
            _when_stdin_closes(lambda: loop.call_soon_threadsafe(end))
        thread.start()
        sweeping = asyncio.create_task(sessions.sweep())
        watching = asyncio.create_task(connections.watch(server.server_state))
        reporting = asyncio.create_task(status.keep_written())
        # The listener takes connections already; they are answered from the next line on.
        _print_ready(port)
        scheme = "https" if options.tls_cert else "http"
        log.info("serving the Tinker API on %s://%s:%d", scheme, options.host, port)
        if scheme == "http" and not is_loopback(options.host):
            log.warning(
                "whoever listens on the network can read the key and the data: give --tls-cert and "
                "--tls-key, or put a reverse proxy with TLS before the engine"
            )
        log.info(TESTED_WITH)
        if made or not options.exit_with_stdin:  # else whoever started the engine knows
            reached = "127.0.0.1" if is_wildcard(options.host) else options.host
            print(_advice(options, reached, port, key if made else None), file=sys.stderr)
        await server.serve(sockets=[listener])
        sweeping.cancel()
        watching.cancel()
        reporting.cancel()

    asyncio.run(serve())
    with contextlib.suppress(OSError):  # the threads that write it have ended
        status_file(options.dir, os.getpid()).unlink()
    store.close()
    # The engine thread may be in a long computation; nothing waits for it.
    sys.stdout.flush()
    os._exit(0)


def _print_ready(port: int) -> None:
    """Print the line that whoever started the engine waits for.

    Raises:
        BrokenPipeError: nobody reads it.
        Refused: it cannot be written.
    """
    try:
        print(json.dumps({"event": "ready", "port": port, "pid": os.getpid()}), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or error
        raise Refused(
            f"the output cannot be written: {reason}. Write it to another place."
        ) from None


def _experimental(options: argparse.Namespace) -> Any:
    from tinkersmith.engine.runtime.experimental import Experimental

    return Experimental(
        float8=options.dtype == "float8",
        graphs=options.gpu_graphs,
        vllm=options.sampler == "vllm",
    )


def _check_experimental(options: argparse.Namespace) -> None:
    """Loads torch before the engine serves, so that what cannot work is refused at once."""
    import torch

    from tinkersmith.engine.runtime.base_models import choose_device

    _experimental(options).check(torch.device(choose_device(options.device)))


def _leave_to_the_recipe(number: int, frame: FrameType | None) -> None:
    """Do nothing: see `_serve`."""


@contextlib.contextmanager
def _no_handlers() -> Generator[None, None, None]:
    yield


def _from_second_time_on(act: Callable[[], None]) -> Callable[[], None]:
    """Like `act`, but for the first call and those that follow it within a second."""
    first: list[float] = []

    def call() -> None:
        if not first:
            first.append(time.monotonic())
        elif time.monotonic() - first[0] > _ONE_REQUEST:
            act()

    return call


def _when_stdin_closes(act: Any) -> None:
    def wait() -> None:
        while sys.stdin.buffer.read(4096):
            pass
        act()

    threading.Thread(target=wait, name="stdin", daemon=True).start()


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Raises: Refused: only one is given, or they cannot be read or used together."""
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        raise Refused("--tls-cert and --tls-key belong together; give both, or neither.")
    for option, file in (("--tls-cert", certificate), ("--tls-key", key)):
        try:
            file.read_bytes()
        except OSError as error:
            raise Refused(f"{option} {file} cannot be read: {error.strerror}.") from None
    try:
        # An empty password: OpenSSL would ask for it on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = (
            "the key belongs to another certificate"
            if "MISMATCH" in str(error)
            else ("each must be a file in PEM format, the key without a passphrase")
        )
        raise Refused(f"--tls-cert {certificate} and --tls-key {key}: {reason}.") from None


def _advice(options: argparse.Namespace, host: str, port: int, made_key: str | None) -> str:
    """How a client reaches this engine, as commands. Only a key that was made here is shown."""
    if made_key is not None:
        key = made_key
    elif options.key_file is not None:
        key = f'"$(cat {shlex.quote(str(options.key_file))})"'
    else:
        key = f'"${KEY_VARIABLE}"'
    scheme = "https" if options.tls_cert else "http"
    name = options.allow_host[0] if options.allow_host else host
    shown = f"[{name}]" if ":" in name and "[" not in name else name
    return (
        "To use this engine from another terminal:\n"
        f"  export TINKER_BASE_URL={scheme}://{shown}:{port}\n"
        f"  export TINKER_API_KEY={key}"
    )


if __name__ == "__main__":
    sys.exit(main())
