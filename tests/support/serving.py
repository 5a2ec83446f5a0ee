"""A server of a small trained model and its base, in this process, on a real engine."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import openai

from tests.support.engine import no_proxy_for_loopback
from tinkersmith.progress import Progress
from tinkersmith.serving.models import ServedModels
from tinkersmith.serving.server import RunningServer, running_server


@contextmanager
def serving(models: ServedModels, **options: Any) -> Iterator[RunningServer]:
    no_proxy_for_loopback()
    with running_server(models, Progress(lambda line: None), **options) as server:
        yield server


def openai_of(server: RunningServer, **options: Any) -> openai.OpenAI:
    options = {"api_key": server.key or "none", "max_retries": 0, **options}
    return openai.OpenAI(base_url=f"{server.url}/v1", **options)


def anthropic_of(server: RunningServer, **options: Any) -> anthropic.Anthropic:
    options = {"api_key": server.key or "none", "max_retries": 0, **options}
    return anthropic.Anthropic(base_url=server.url, **options)
