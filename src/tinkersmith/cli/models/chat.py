"""`tinkersmith chat`: options -> a conversation with a trained model in the terminal."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from tinkersmith.cli.common import add_checkpoint_option, add_settings_options, user_settings
from tinkersmith.cli.entry_point import COMMANDS, run_entry_point
from tinkersmith.errors import UserError


def chat_command(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """The command line of `tinkersmith chat`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=f"{COMMANDS['chat']} /help lists what you can type. From a pipe, each line is "
        "a prompt, and only answers are printed.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        default="",
        metavar="PATH",
        help="a run's name or folder, a tinker:// path, or the folder of an exported adapter or "
        "model (default: the newest run)",
    )
    add_checkpoint_option(parser, "")
    parser.add_argument(
        "--base-model", default="", help="for paths and adapters that do not say theirs"
    )
    parser.add_argument(
        "--compare-base", action="store_true", help="show the base model's answers beside"
    )
    parser.add_argument("--system", default="", metavar="TEXT", help="a system prompt")
    add_settings_options(parser)
    wanted = parser.parse_args(argv)
    return run_entry_point(lambda: _chat(wanted))


def _chat(wanted: argparse.Namespace) -> int:
    settings = user_settings(wanted.config, wanted.set)
    from tinkersmith.chat.conversation import Conversation
    from tinkersmith.chat.requests import ChatServer
    from tinkersmith.chat.screen import screen_for
    from tinkersmith.chat.settings import ChatSettings
    from tinkersmith.chat.terminal import ChatLoop
    from tinkersmith.progress import watched
    from tinkersmith.serving.models import models_to_serve
    from tinkersmith.serving.server import running_server

    is_plain = not (sys.stdin.isatty() and sys.stdout.isatty())
    say = partial(print, flush=True, file=sys.stderr if is_plain else sys.stdout)
    served = models_to_serve([wanted.path], settings, wanted.checkpoint, wanted.base_model)
    first, *others = served.models
    if wanted.compare_base and not others:
        raise UserError(f"{first.name} is served alone: there is no base model to compare with.")
    with watched(say) as progress, running_server(served, progress) as running:
        server = ChatServer(running.url, running.key)
        models = server.models()
        model = models[0]
        base = next((m for m in models[1:] if m.kind == "base"), None)
        screen = screen_for(sys.stdout, is_plain=is_plain)
        loop = ChatLoop(
            server,
            model,
            base,
            screen,
            ChatSettings(
                {
                    "temperature": settings.sampling_temperature,
                    "max_tokens": settings.sampling_max_tokens,
                }
            ),
            wanted.compare_base,
            Conversation(wanted.system),
        )
        if is_plain:
            loop.read(sys.stdin)
        else:
            screen.notice(f"{model.name} ({served.models[0].about}). /help lists the commands.")
            loop.talk()
    return 1 if is_plain and loop.failures else 0
