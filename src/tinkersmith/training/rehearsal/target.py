"""Settings -> what the server and the model of a run say, which a rehearsal takes over.

A server that BACKEND means, and whose key is there, is asked what costs nothing. Otherwise files on
this machine and the table of models say it. No weights are downloaded.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tinkersmith.files import read_json_object
from tinkersmith.fingerprint import context_in
from tinkersmith.models.known import known_model, retirement_note
from tinkersmith.models.line_up import TABLE_DATE
from tinkersmith.models.names import local_model_folder
from tinkersmith.progress import Progress
from tinkersmith.prompts.text_tokenizer import TextTokenizer
from tinkersmith.service.connection import name_on_server, open_service, server_of
from tinkersmith.settings.fields import Settings
from tinkersmith.text.tokenizer import tokenizer_of


@dataclass(frozen=True, slots=True)
class Target:
    """The model that a run trains, as its server has it."""

    name: str
    kind: str  # of the server: "embedded" or "url", which may be the cloud
    max_context: int | None  # tokens
    tokenizer: TextTokenizer
    about: str  # who says so, for the user


def target_of(settings: Settings, progress: Progress, check: Callable[[], None]) -> Target:
    """What a run of these settings would be told.

    Raises:
        UserError: the server does not train the model, or there is no tokenizer.
    """
    has_key = bool(os.environ.get("TINKER_API_KEY", "").strip())
    if settings.backend == "tinker" and not has_key:
        kind = "url"
    elif server_of(settings)[0] == "embedded":
        kind = "embedded"
    else:
        return _asked(settings, progress, check)
    name = name_on_server(settings.base_model)
    with progress.doing("loading the tokenizer"):
        tokenizer = tokenizer_of(settings.tokenizer, name)
    context, source = _context(name, kind, None if settings.tokenizer else tokenizer.folder)
    about = f"no server was asked: {source}"
    if kind == "url":
        about += "; the run compares that with the server's own list"
        about += f". Warning: {note}" if (note := retirement_note(name).rstrip(".")) else ""
    return Target(name, kind, context, tokenizer, about)


def _asked(settings: Settings, progress: Progress, check: Callable[[], None]) -> Target:
    with ExitStack() as guard:
        service = guard.enter_context(open_service(settings, progress=progress))
        service.check = check
        service.check_trainable()
        with progress.doing("loading the tokenizer"):
            tokenizer = service.tokenizer()
        about = f"{service.probe.url} offers it"
        return Target(service.base_model, "url", service.max_context, tokenizer, about)


def _context(name: str, kind: str, downloaded: Path | None) -> tuple[int | None, str]:
    """The longest sequence of a model in tokens, None if nothing says it; and what says it.

    Args:
        downloaded: the folder of its tokenizer, which may have its config.json as well.
    """
    _, _, longer = name.partition(":peft:")
    model = known_model(name)
    listed = int(longer) if longer.isdecimal() else model.context if model else None
    by_table = f"by the table of {TABLE_DATE} it takes {listed or 0:,} tokens"
    if kind == "url" and listed is not None:  # a server may take fewer than the model does
        return listed, by_table
    folder = local_model_folder(name) or downloaded
    if folder is not None and (context := _context_of(folder)) is not None:
        return context, f"its config.json says that it takes {context:,} tokens"
    if listed is not None:
        return listed, by_table
    return None, "nothing says how many tokens it takes"


def _context_of(folder: Path) -> int | None:
    try:
        return context_in(read_json_object(folder / "config.json"))
    except (OSError, ValueError):
        return None
