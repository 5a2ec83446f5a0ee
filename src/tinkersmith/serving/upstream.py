"""The server behind `serve`: our own engine, an engine at a URL, or Tinker's cloud."""

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.guards.proxies import take_loopback_out_of_proxies
from tinkersmith.models.hub import check_hub_has
from tinkersmith.models.names import local_model_folder
from tinkersmith.progress import Progress
from tinkersmith.service.connection import server_of
from tinkersmith.service.embedded import Engine, start_engine
from tinkersmith.serving.models import ServedModels

if TYPE_CHECKING:
    import httpx

_LOOK_EVERY = 0.25  # seconds between two looks at the engine's process
_LONGEST_PAUSE = 30.0  # seconds between two attempts to start the engine again


class Upstream:
    """Where requests go. Our own engine is started again when it has ended."""

    def __init__(self, kind: str, url: str, key: str, *, takes_templates: bool) -> None:
        self.kind = kind  # "embedded" | "cloud" | "url"
        self.url = url
        self.key = key
        self.takes_templates = takes_templates  # whether chats may name their chat template
        self.restarts = 0
        self.trouble: str | None = None  # why it cannot answer now

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}", "x-api-key": self.key}


@contextmanager
def running_upstream(models: ServedModels, progress: Progress) -> Generator[Upstream, None, None]:
    """The server that has the models; our own engine ends after the block.

    Raises:
        UserError: the engine does not start, or the server cannot be reached.
    """
    take_loopback_out_of_proxies()
    kind, url, key = server_of(models.settings)
    if kind == "embedded":
        with progress.doing("starting the engine"):
            engine = _start(models)
        upstream = Upstream(kind, engine.url, engine.key, takes_templates=True)
        try:
            with progress.doing("loading the models"):
                _load(models, upstream, engine)
        except BaseException:
            engine.stop()
            raise
        keeper = _Keeper(models, upstream, engine, progress)
        try:
            yield upstream
        finally:
            keeper.stop()
        return
    if kind == "cloud":
        from tinker.lib.base_url import resolve_base_url  # pyright: ignore[reportMissingTypeStubs]

        url = resolve_base_url().rstrip("/")
    upstream = Upstream(kind, url, key, takes_templates=False)
    with progress.doing("connecting to the server"):
        upstream.takes_templates = _is_engine(upstream)
    yield upstream


def _start(models: ServedModels) -> Engine:
    base = models.base_model
    if local_model_folder(base) is None:
        check_hub_has(base)  # the engine would ask for it, after seconds of starting
    folders = [base] if Path(base).is_absolute() and base not in BUNDLED_MODELS else []
    options: list[str] = []
    for model in models.models:
        if model.adapter is not None:
            options += ["--adapter", f"{model.upstream}={model.adapter}"]
            options += ["--adapter-base", f"{model.upstream}={base}"]
    engine = start_engine(Path(models.settings.output_dir), folders, options)
    engine.wait_until_ready()
    return engine


def _load(models: ServedModels, upstream: Upstream, engine: Engine) -> None:
    """Have the engine load each model, which shows as well whether it can.

    Raises:
        UserError: the engine has ended, or refuses a model.
    """
    import httpx

    with httpx.Client(headers=upstream.headers, timeout=None) as client:
        for model in models.models:
            asked = {"model": model.upstream, "prompt": "a", "max_tokens": 1}
            while True:
                try:
                    answer = client.post(f"{upstream.url}/oai/api/v1/completions", json=asked)
                except httpx.HTTPError:
                    raise UserError(engine.death() or "The engine does not answer.") from None
                if answer.status_code != 503:  # it is loading torch
                    break
                time.sleep(_LOOK_EVERY)
            if answer.status_code != 200:
                elsewhere = model.upstream.startswith("tinker://") and answer.status_code == 404
                hint = (
                    " Name a path that is there, set OUTPUT_DIR to the folder of its run, or set "
                    'BACKEND to "tinker" if it is in the cloud.'
                )
                raise UserError(
                    f"{model.name} cannot be served: {_message_of(answer)}"
                    f"{hint if elsewhere else ''}"
                )


def _message_of(answer: "httpx.Response") -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the engine answers {answer.status_code}."


class _Keeper:
    """Watches our engine from a thread, and starts it again when it has ended."""

    def __init__(
        self, models: ServedModels, upstream: Upstream, engine: Engine, progress: Progress
    ) -> None:
        self._models, self._upstream, self._engine = models, upstream, engine
        self._progress = progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="engine keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        self._engine.stop()

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            if (death := self._engine.death()) is not None:
                self._upstream.trouble = f"{death} It is being started again; try again soon."
                self._progress.say(f"{death} It is being started again.")
                self._restart()

    def _restart(self) -> None:
        pause = 1.0
        while not self._ended.is_set():
            self._engine.stop()
            try:
                self._engine = _start(self._models)
            except UserError as error:
                self._upstream.trouble = str(error)
                self._progress.say(f"{error} The next attempt is in {pause:.0f} s.")
                self._ended.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
                continue
            self._upstream.url, self._upstream.key = self._engine.url, self._engine.key
            self._upstream.restarts += 1
            self._upstream.trouble = None
            self._progress.say("The engine serves again.")
            return


def _is_engine(upstream: Upstream) -> bool:
    """Whether the server is an engine of ours, which takes chat templates in requests.

    Raises:
        UserError: it cannot be reached, or does not accept the key.
    """
    import httpx

    try:
        answer = httpx.get(
            f"{upstream.url}/oai/api/v1/models", headers=upstream.headers, timeout=30
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"The server at {upstream.url} cannot be reached ({type(error).__name__}). Check "
            "TINKER_BASE_URL and the network."
        ) from None
    if answer.status_code in (401, 403):
        raise UserError("The server does not accept the API key. Check TINKER_API_KEY.")
    try:
        listed: Any = answer.json()["data"]
        return any(model.get("owned_by") == "tinkersmith" for model in listed)
    except (ValueError, KeyError, TypeError, AttributeError):
        return False
