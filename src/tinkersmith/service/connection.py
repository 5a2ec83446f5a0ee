"""Settings -> a connection that cannot hang: Tinker's cloud, a server at a URL, or our own engine.

The SDK waits silently for minutes when a server is gone. Therefore the server is checked before the
SDK connects and while it works, and every failure becomes one sentence. A server that is not our
own child process may be away for SERVER_PATIENCE seconds: one line says so, and another that it is
back.
"""

import concurrent.futures
import datetime as dt
import difflib
import importlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.errors import UserError
from tinkersmith.guards.proxies import take_loopback_out_of_proxies
from tinkersmith.models.hub import check_hub_has
from tinkersmith.models.known import not_offered, retirement_note
from tinkersmith.models.names import local_model_folder, resolve_base_model
from tinkersmith.progress import Progress, watched
from tinkersmith.service.embedded import Engine, start_engine
from tinkersmith.service.initial import (
    InitialWeights,
    adapter_options,
    check_initial_weights,
    lora_options,
    refuse_adapter,
)
from tinkersmith.service.probe import PROBE_EVERY, Probe, engine_answer
from tinkersmith.settings.fields import Settings

if TYPE_CHECKING:
    import tinker

    from tinkersmith.prompts.text_tokenizer import TextTokenizer

# The training loop reads no log-probability of a position with weight 0, so that our own engine
# need not compute them. Other servers store this as a note.
TRAINING_METADATA = {"tinkersmith.logprobs": "weighted"}
START_REACH = 5.0  # seconds for the first answer
SLICE = 0.2  # seconds between two checks of the server while waiting
CLOUD_PROBE_EVERY = 10.0  # seconds
_Item = TypeVar("_Item")
_LONGEST_PAUSE = 30.0  # seconds between two attempts


class ServerGone(UserError):
    """The server stopped answering during the work, or forgot it."""

    def __init__(self, sentence: str, *, final: bool = False, forgot: bool = False) -> None:
        super().__init__(sentence)
        self.final = final  # waiting longer is of no use
        self.forgot = forgot  # it knows our session no longer: it was restarted


@dataclass
class Service:
    """One connection. Make it with `open_service`."""

    client: "tinker.ServiceClient"
    rest: "tinker.RestClient"
    kind: str  # "embedded" | "cloud" | "url"
    base_model: str  # as the server knows it
    max_contexts: dict[str, int | None]  # in tokens, of the models that the server offers
    sampled_only: frozenset[str]  # the models among them that cannot be trained
    progress: Progress  # says what takes long
    probe: Probe
    patience: float  # seconds that the server may be away; 0: give up at once
    connect: Callable[[], "tinker.ServiceClient"]  # opens a session
    check: Callable[[], None] = lambda: None  # called while waiting; raises to end the wait
    key: str = field(default="", repr=False)
    tokenizer_setting: str = ""  # the value of TOKENIZER
    stand_in: "StandIn | None" = None  # for which server this one stands; None: for itself
    # What sessions, training clients and checkpoints are marked with on the server.
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    _tokenizer: "TextTokenizer | None" = None
    _away_since: str = ""  # what the user was told

    @property
    def max_context(self) -> int | None:
        """The longest sequence of the base model, in tokens; None if the server does not say."""
        return self.max_contexts.get(self.base_model)

    def wait(self, pending: Any, doing: str) -> Any:
        """The result of an SDK future; `doing` completes "while ...".

        Raises:
            ServerGone: the server stopped answering.
            UserError: the server or the SDK refused the request.
        """
        future = pending.future() if hasattr(pending, "future") else pending
        with self.progress.doing(doing):
            while True:
                done, _ = concurrent.futures.wait([future], timeout=SLICE)
                if done:
                    return self._result(future, doing)
                self._check(doing)

    def next_of(self, arrived: "queue.SimpleQueue[_Item]", doing: str) -> _Item:
        """The next item of a queue that callbacks of SDK futures fill; see `wait`.

        Raises:
            ServerGone: the server stopped answering.
        """
        while True:
            try:
                return arrived.get(timeout=SLICE)
            except queue.Empty:
                self._check(doing)

    def ask(self, call: Callable[[], Any], doing: str) -> Any:
        """The result of an SDK call that may block before it returns its future.

        The call is repeated while the server fails, so it must be safe to repeat: opening a client,
        listing, deleting.

        Raises:
            UserError: as `wait`.
        """
        begun, attempt = time.monotonic(), 0
        while True:
            try:
                return self._ask_once(call, doing)
            except ServerGone as error:
                if error.final or time.monotonic() - begun >= self.patience:
                    raise
                if error.forgot:
                    self._renew()
            self.pause(attempt, doing)
            attempt += 1

    def _ask_once(self, call: Callable[[], Any], doing: str) -> Any:
        started: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def run() -> None:
            try:
                started.set_result(call())
            except BaseException as error:  # raised again by whoever waits
                started.set_exception(error)

        # A daemon: a call that hangs on a dead server must not keep the program alive.
        threading.Thread(target=run, daemon=True).start()
        pending = self.wait(started, doing)
        return self.wait(pending, doing) if hasattr(pending, "future") else pending

    def pause(self, attempt: int, doing: str) -> None:
        """Wait before another attempt: 1, 2, 4, ... up to 30 seconds.

        Raises:
            ServerGone: as `wait`.
        """
        end = time.monotonic() + min(2.0**attempt, _LONGEST_PAUSE)
        while time.monotonic() < end:
            self._check(doing)
            time.sleep(SLICE)

    def reconnect(self, doing: str) -> None:
        """Wait until the server answers, and open a new session in place of the old one.

        Raises:
            ServerGone: it does not answer within SERVER_PATIENCE.
        """
        begun = time.monotonic()
        with self.progress.doing("waiting for the server"):
            while (unreached := self.probe.reach()) is not None:
                self._check(doing)
                if time.monotonic() - begun >= self.patience:
                    raise ServerGone(unreached.sentence, final=True)
                time.sleep(SLICE)
        self._check(doing)
        self._renew()

    def delete_checkpoint(self, path: str) -> None:
        """Delete a checkpoint on the server. One that is gone already counts as deleted.

        Raises:
            UserError: as `wait`.
        """
        import tinker

        def delete() -> None:
            with suppress(tinker.NotFoundError):  # also after a lost answer: it is gone
                self.rest.delete_checkpoint_from_tinker_path(path).result()

        self.ask(delete, f"deleting {path}")

    def _check(self, doing: str) -> None:
        """Say once that the server is away, and once that it is back.

        Raises:
            ServerGone: the patience is spent, or our own engine has ended.
        """
        self.check()
        if not self.patience:
            if (trouble := self.probe.trouble()) is not None:
                raise ServerGone(f"{trouble} This happened while {doing}.", final=True)
            return
        away = self.probe.away()
        if away and not self._away_since:
            self._away_since = f"{dt.datetime.now() - dt.timedelta(seconds=away):%H:%M}"
            self.progress.say(
                f"  The server at {self.probe.url} has not answered since {self._away_since}; "
                f"trying again for {_duration(self.patience)} (SERVER_PATIENCE)."
            )
        if away > self.patience:
            raise ServerGone(
                f"The server at {self.probe.url} has not answered since {self._away_since}, for "
                f"longer than SERVER_PATIENCE = {self.patience:.0f} seconds. This happened while "
                f"{doing}.",
                final=True,
            )
        if not away and self._away_since:
            self._away_since = ""
            self.progress.say(f"  The server at {self.probe.url} answers again.")

    def _renew(self) -> None:
        old, self.client = self.client, self.connect()
        with suppress(Exception):  # the server may have forgotten it; nobody waits for the answer
            old.close("errored")

    def create_training_client(
        self,
        settings: Settings,
        weights: InitialWeights | None = None,
        initial_state: str = "",
    ) -> "tinker.TrainingClient":
        """A training client on trained weights, or on a new LoRA.

        Args:
            weights: those that INITIAL_CHECKPOINT names.
            initial_state: the path of a saved state to start from instead. Its rank is then that
                of the state, and the optimizer starts anew.
        """
        if initial_state:
            return self._from_state(initial_state, settings, with_optimizer=False)
        self.check_trainable()
        if weights is None or self.stand_in is not None:  # which has no state of another server
            return self._new_lora(settings, {}, f"creating a LoRA on {self.base_model}")
        if weights.adapter is not None:
            metadata = {"tinkersmith.adapter": weights.path}
            return self._new_lora(settings, metadata, f"loading {weights.about}")
        self.check_weights(weights, settings)
        return self._from_state(weights.path, settings, with_optimizer=weights.optimizer)

    def check_weights(self, weights: InitialWeights, settings: Settings) -> None:
        """Look the weights of INITIAL_CHECKPOINT up on the server, where it has them.

        Raises:
            UserError: the server does not have them, or they do not suit the settings.
        """
        if weights.adapter is not None:  # our own engine has it: nothing is billed
            self.create_training_client(settings, weights)
            return
        info = self.ask(
            lambda: self.rest.get_weights_info_by_tinker_path(weights.path),
            f"looking up {weights.path}",
        )
        check_initial_weights(info, weights, settings, self.base_model)

    def training_metadata(self) -> dict[str, str]:
        """What a training client is marked with on the server."""
        return {**self.labels, **TRAINING_METADATA}

    def _new_lora(
        self, settings: Settings, metadata: dict[str, str], doing: str
    ) -> "tinker.TrainingClient":
        options = lora_options(settings, self.base_model)
        if self.stand_in is not None and not self.stand_in.trains_output_layer:
            # Which layers it has instead changes no request of the run.
            options |= {"train_unembed": False, "train_attn": True}
        return self.ask(
            lambda: self.client.create_lora_training_client(
                **options,
                user_metadata={**self.training_metadata(), **metadata},
                **_optimizer(settings),
            ),
            doing,
        )

    def _from_state(
        self, path: str, settings: Settings, *, with_optimizer: bool
    ) -> "tinker.TrainingClient":
        def create() -> Any:
            if with_optimizer:
                return self.client.create_training_client_from_state_with_optimizer(
                    path, user_metadata=self.training_metadata()
                )
            return self.client.create_training_client_from_state(
                path, user_metadata=self.training_metadata(), **_optimizer(settings)
            )

        return self.ask(create, f"loading {path}")

    def check_trainable(self) -> None:
        """Compare the base model with the server's own list, before anything is asked for.

        Our own engines also take models that they do not list: those of the hub.

        Raises:
            UserError: the server does not offer it for training.
        """
        name, offered = self.base_model, set(self.max_contexts) - self.sampled_only
        if self.kind == "embedded" or name in offered or not self.max_contexts:
            return
        where, nearest = self.probe.url, self._nearest(offered)
        if name in self.sampled_only:
            raise UserError(
                f"The server at {where} offers {name} for sampling alone, not for training. "
                f"{retirement_note(name, offered)} It trains, nearest first: {nearest}."
            )
        if self.kind == "cloud" or not self.is_our_engine():
            raise UserError(not_offered(name, where, offered, nearest))

    def is_our_engine(self) -> bool:
        """Whether the server is an engine of this project."""
        if self.kind != "url":
            return self.kind == "embedded"
        return engine_answer(self.probe.url, self.key) is not None

    def _nearest(self, offered: Iterable[str]) -> str:
        """Some names, those like the base model's first."""
        names = sorted(offered)
        found = difflib.get_close_matches(self.base_model, names, n=len(names), cutoff=0.0)
        return ", ".join(found) or "nothing"

    def create_sampling_client(self, model_path: str | None) -> "tinker.SamplingClient":
        """A client that samples from a checkpoint, or from the untouched base model."""
        base_model = None if model_path else self.base_model
        return self.ask(
            lambda: self.client.create_sampling_client(model_path, base_model),
            f"opening {model_path or self.base_model}",
        )

    def tokenizer(self, training_client: Any = None) -> "TextTokenizer":
        """The base model's tokenizer, from the first place that has it: see `tokenizer_of`.

        Args:
            training_client: says which tokenizer the server names.

        Raises:
            UserError: no place has it.
        """
        from tinkersmith.text.tokenizer import tokenizer_of

        if self.stand_in is not None:
            return self.stand_in.tokenizer
        if self._tokenizer is None:
            named = ""
            if not self.tokenizer_setting and local_model_folder(self.base_model) is None:
                named = self._named_tokenizer(training_client)
            self._tokenizer = tokenizer_of(self.tokenizer_setting, self.base_model, named)
        return self._tokenizer

    def use_tokenizer(self, given: "TextTokenizer | None") -> None:
        """Use the tokenizer of TOKENIZER that was read already; None where it was not."""
        self._tokenizer = given or self._tokenizer

    def _named_tokenizer(self, training_client: Any) -> str:
        """What the server calls the base model's tokenizer: a folder, a name on the hub, or ""."""
        if training_client is None and self.is_our_engine():  # which costs nothing
            training_client = self.ask(
                lambda: self.client.create_lora_training_client(self.base_model, rank=1),
                "asking for its tokenizer",
            )
        if training_client is None:
            return str(self.create_sampling_client(None).get_base_model())
        info = self.ask(training_client.get_info, "asking for its tokenizer")
        return str(info.model_data.tokenizer_id or info.model_data.model_name or "")

    def _result(self, future: concurrent.futures.Future[Any], doing: str) -> Any:
        import tinker
        from tinker.lib.retryable_exception import RetryableException  # pyright: ignore[reportMissingTypeStubs]

        try:
            return future.result()
        except tinker.RequestFailedError as error:
            reason = str(error).split(" for self.request_id")[0].removeprefix("Request failed: ")
            raise UserError(f"The server refused {doing}: {reason}") from None
        except tinker.AuthenticationError:
            raise UserError(_wrong_key()) from None
        except tinker.APIStatusError as error:
            if error.status_code == 410:
                raise self._forgot(doing) from None
            if error.status_code in (408, 409, 429) or error.status_code >= 500:
                raise ServerGone(
                    f"The server at {self.probe.url} keeps failing (HTTP {error.status_code}: "
                    f"{self._detail(error)}). This happened while {doing}."
                ) from None
            raise UserError(f"The server refused {doing}: {self._detail(error)}") from None
        except (tinker.APIConnectionError, json.JSONDecodeError) as error:
            trouble = self.probe.trouble() or f"The server cannot be reached ({error})."
            raise ServerGone(f"{trouble} This happened while {doing}.") from None
        except tinker.TinkerError as error:
            raise UserError(f"The tinker SDK failed while {doing}: {error}") from None
        except RetryableException:
            raise self._forgot(doing) from None
        except ValueError as error:  # how the SDK reports a 4xx to a poll
            if not str(error).startswith("Error retrieving result: "):
                raise
            reason = str(error).removeprefix("Error retrieving result: ").split(" for self.")[0]
            raise ServerGone(f"{reason}. This happened while {doing}.", forgot=True) from None

    def _forgot(self, doing: str) -> ServerGone:
        return ServerGone(
            f"The server at {self.probe.url} lost a request; was it restarted? This happened while "
            f"{doing}.",
            forgot=True,
        )

    def _detail(self, error: Any) -> str:
        content: Any = error.body
        body = cast(dict[str, Any], content if isinstance(content, dict) else {})
        detail = str(body.get("detail") or error)
        if "base" not in detail.lower():
            return detail
        if "offered" not in detail and self.max_contexts:
            detail += f" It offers, nearest first: {self._nearest(self.max_contexts)}."
        if self.base_model not in self.max_contexts:
            detail = f"{detail} {retirement_note(self.base_model, self.max_contexts)}".strip()
        return detail


def _optimizer(settings: Settings) -> dict[str, Any]:
    """The SDK's argument for an optimizer other than its default."""
    import tinker

    if settings.optimizer == "adamw":
        return {}
    return {"optimizer": tinker.types.DimuonOptimizerConfig()}


@dataclass(frozen=True)
class StandIn:
    """What our own engine cannot say of the server and the model that it stands for."""

    max_context: int | None  # tokens
    tokenizer: "TextTokenizer"
    trains_output_layer: bool  # False: it would take too much memory


@dataclass(frozen=True)
class Server:
    """A server that connections can be opened to. Make it with `open_server`."""

    kind: str  # "embedded" | "cloud" | "url"
    url: str  # "" for the cloud, whose address the SDK knows
    key: str = field(repr=False)
    engine: Engine | None  # our own
    stand_in: StandIn | None = None


@contextmanager
def open_service(
    settings: Settings,
    *,
    base_model: str | None = None,
    progress: Progress | None = None,
    allow_changed_base: bool = False,
    weights: InitialWeights | None = None,
    server: Server | None = None,
    labels: Mapping[str, str] | None = None,
) -> Generator[Service, None, None]:
    """Connect as BACKEND and the environment say, and close the connection after the block.

    Args:
        allow_changed_base: let our own engine load checkpoints of another base model.
        weights: those that INITIAL_CHECKPOINT names, where a new training may start.
        progress: says what takes long; without one, lines on standard error do.
        server: the server to connect to, which stays open; by default one for this connection.
        labels: what the session and its training clients are marked with on the server.

    Raises:
        UserError: no key, no such server, or an engine that does not start.
    """
    with ExitStack() as stack:
        spoken = progress or stack.enter_context(watched(partial(print, file=sys.stderr)))
        name = name_on_server(base_model or settings.base_model)
        if server is None:
            opened = open_server(
                settings, [name], spoken, allow_changed_base=allow_changed_base, weights=weights
            )
            server = stack.enter_context(opened)
        yield stack.enter_context(_connected(settings, server, name, spoken, labels or {}))


@contextmanager
def open_server(
    settings: Settings,
    base_models: Sequence[str],
    progress: Progress,
    *,
    allow_changed_base: bool = False,
    weights: InitialWeights | None = None,
) -> Generator[Server, None, None]:
    """Find the server that BACKEND and the environment mean; our own engine runs during the block.

    Args:
        base_models: what our own engine is to offer, beside the bundled models.
        weights: see `open_service`.

    Raises:
        UserError: see `open_service`.
    """
    kind, url, key = server_of(settings)
    refuse_adapter(weights, kind)
    engine = None
    if kind == "embedded":
        names = [name_on_server(name) for name in base_models]
        folders = [
            name for name in names if name not in BUNDLED_MODELS and local_model_folder(name)
        ]
        for name in names:
            if local_model_folder(name) is None:
                check_hub_has(name)  # the engine would ask for it, after seconds of starting
        options = ["--allow-changed-base"] if allow_changed_base else []
        options += adapter_options(weights, names[0])
        engine = start_engine(Path(settings.output_dir), list(dict.fromkeys(folders)), options)
    with serving(engine, kind, url, key, progress) as server:
        yield server


@contextmanager
def serving(
    engine: Engine | None,
    kind: str,
    url: str,
    key: str,
    progress: Progress,
    stand_in: StandIn | None = None,
) -> Generator[Server, None, None]:
    """A server with the SDK loaded; `engine`, which is starting, serves it during the block.

    Raises:
        UserError: the engine does not start.
    """
    try:
        # Both processes import for seconds, side by side; the engine has more to import.
        importing = threading.Thread(target=_import_sdk, daemon=True)
        importing.start()
        if engine is not None:
            with progress.doing("starting the engine"):
                engine.wait_until_ready()
            url, key = engine.url, engine.key
        take_loopback_out_of_proxies()
        with progress.doing("loading the tinker SDK"):
            importing.join()
        yield Server(kind, url, key, engine, stand_in)
    finally:
        if engine is not None:
            engine.stop()


@contextmanager
def _connected(
    settings: Settings,
    server: Server,
    base_model: str,
    progress: Progress,
    labels: Mapping[str, str],
) -> Generator[Service, None, None]:
    probe = Probe(server.url, server.engine)
    with progress.doing("connecting to the server"):
        patience = 0.0 if server.kind == "embedded" else float(settings.server_patience)
        service = _connect(
            server, base_model, settings.tokenizer, probe, progress, patience, labels
        )
    finished = "errored"
    try:
        yield service
        finished = "success"
    finally:
        _close(service, finished)
        probe.stop()


def name_on_server(base_model: str) -> str:
    """The base model's name on the server: that of a model on this machine is its folder."""
    name, _ = resolve_base_model(base_model)
    folder = local_model_folder(name)
    return name if folder is None or name in BUNDLED_MODELS else str(folder)


# ---- which server, and is it there


def server_of(settings: Settings) -> tuple[str, str, str]:
    """(kind, url, key) from BACKEND and the environment; url and key are "" where not known yet."""
    url = os.environ.get("TINKER_BASE_URL", "").strip()
    key = os.environ.get("TINKER_API_KEY", "").strip()
    backend = settings.backend
    if backend == "local" or (backend == "auto" and not url and not key):
        return "embedded", "", ""
    if not key:
        raise UserError(
            'BACKEND is "tinker", but there is no TINKER_API_KEY. Set it with: export '
            'TINKER_API_KEY="<your key>" - or set BACKEND = "local" to train on this machine.'
            if not url
            else "TINKER_BASE_URL is set, but no TINKER_API_KEY. Set the key of that server."
        )
    if not key.startswith(("tml-", "eyJ")):
        raise UserError("TINKER_API_KEY is not a Tinker key: those begin with tml-. Copy it again.")
    if url:
        return "url", url.rstrip("/"), key
    return "cloud", "", key


def server_lines(service: Service, settings: Settings, *, of_run: bool) -> list[str]:
    """Which server is asked, and what is set in the environment and passed over.

    Args:
        settings: those of the user.
        of_run: whether a run's own backend decided.
    """
    where = {
        "embedded": "the engine on this machine",
        "cloud": "Tinker's cloud",
        "url": service.probe.url,
    }[service.kind]
    lines = [f"Server: {where}"]
    names = [name for name in ("TINKER_BASE_URL", "TINKER_API_KEY") if os.environ.get(name)]
    if service.kind == "embedded" and of_run and settings.backend == "auto" and names:
        lines.append(
            f"  {' and '.join(names)} {'are' if len(names) > 1 else 'is'} set and not used: the "
            "run was trained on this machine, and its checkpoints are here."
        )
    return lines


def _connect(
    server: Server,
    base_model: str,
    tokenizer_setting: str,
    probe: Probe,
    progress: Progress,
    patience: float,
    labels: Mapping[str, str],
) -> Service:
    import tinker

    kind, url, key = server.kind, server.url, server.key

    if kind == "cloud":
        from tinker.lib.base_url import resolve_base_url  # pyright: ignore[reportMissingTypeStubs]

        probe.url = resolve_base_url()
    if kind == "embedded":
        os.environ["TINKER_TELEMETRY"] = "0"  # nothing leaves the machine
    else:
        _reach(probe, patience, progress)
    address: dict[str, Any] = {"base_url": url} if url else {}
    probe.start(CLOUD_PROBE_EVERY if kind == "cloud" else PROBE_EVERY)

    def connect() -> "tinker.ServiceClient":
        return tinker.ServiceClient(api_key=key, user_metadata=dict(labels) or None, **address)

    service = Service(
        client=connect(),
        rest=None,  # type: ignore[arg-type]
        kind=kind,
        base_model=base_model,
        max_contexts={},
        sampled_only=frozenset(),
        progress=progress,
        probe=probe,
        patience=patience,
        connect=connect,
        key=key,
        tokenizer_setting=tokenizer_setting,
        labels=labels,
    )
    service.rest = service.ask(lambda: tinker.RestClient(api_key=key, **address), "connecting")
    found = service.ask(
        lambda: service.rest.get_server_capabilities(), "asking which models it offers"
    )
    service.max_contexts = {
        model.model_name: model.max_context_length
        for model in found.supported_models
        if model.model_name
    }
    service.sampled_only = frozenset(
        model.model_name
        for model in found.supported_models
        if model.model_name and model.trainable is False  # None: the server does not say
    )
    if server.stand_in is not None:
        service.stand_in = server.stand_in
        service.max_contexts[base_model] = server.stand_in.max_context
    return service


def _reach(probe: Probe, patience: float, progress: Progress) -> None:
    """Wait for the first answer of a server that is busy or behind a proxy.

    Where nothing listens, or the name is unknown, the URL is more likely wrong than the server
    away, and nothing is lost yet: that fails at once.

    Raises:
        UserError: the server cannot be reached.
    """
    begun, told = time.monotonic(), False
    while (unreached := probe.reach(START_REACH)) is not None:
        elapsed = time.monotonic() - begun
        if unreached.absent or elapsed > patience:
            raise UserError(unreached.sentence)
        if elapsed > START_REACH and not told:
            told = True
            progress.say(
                f"  The server at {probe.url} does not answer; trying again for "
                f"{_duration(patience)} (SERVER_PATIENCE)."
            )
        time.sleep(1.0)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"


def _close(service: Service, status: str) -> None:
    """End the session without waiting long for a server that may be gone."""
    if service.probe.away() or service.probe.trouble() is not None:
        return
    with suppress(Exception):
        service.client.close(status).future().result(timeout=3)  # type: ignore[arg-type]


def _import_sdk() -> None:
    with suppress(ImportError):  # the importing thread's failure shows at the real import
        importlib.import_module("tinker")
    # Heartbeat warnings of a server that is gone: `wait` says it better.
    logging.getLogger("tinker").setLevel(logging.ERROR)
    # Each request that fails, also in hundreds as an interrupted command closes the connection. The
    # error comes to us with the request's future, and whoever waits for it says it once.
    logging.getLogger("tinker.lib.retry_handler").setLevel(logging.CRITICAL)


def _wrong_key() -> str:
    return (
        "The server does not accept the API key. Check TINKER_API_KEY"
        f"{' and TINKER_BASE_URL' if os.environ.get('TINKER_BASE_URL') else ''}."
    )
