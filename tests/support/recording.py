"""What the unmodified SDK sends to a real engine, recorded on the way, without ids."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from tinker.proto import tinker_public_pb2 as public

from tests.support.engine import KEY, RunningEngine
from tests.support.fault_proxy import fault_proxy
from tinkersmith.runs.provenance import labels_of
from tinkersmith.service import stand_in
from tinkersmith.service.embedded import Engine, start_engine
from tinkersmith.settings.reading import settings_from

# By route: what training sends in the order of its numbers, and what has no order.
IN_ORDER = ("forward_backward", "optim_step")
WITHOUT_ORDER = ("create_model", "save_weights", "save_weights_for_sampler", "asample")
# What differs from run to run: ids, the places that a server names, and the labels of a run.
_IDS = {
    *("session_id", "model_id", "model_seq_id", "seq_id", "sampling_session_id"),
    *("sampling_session_seq_id", "request_id", "model_path"),
    *labels_of("run", settings_from({}), "data"),
}


@dataclass
class Recording:
    """The requests of one program, by their routes: a number and the body without ids."""

    bodies: dict[str, list[tuple[int, bytes]]] = field(
        default_factory=dict[str, "list[tuple[int, bytes]]"]
    )

    def take(self, route: str, head: bytes, body: bytes) -> None:
        """Record a request; called by the proxy in its own thread."""
        kind = route.partition(" ")[2]
        if kind in IN_ORDER or kind in WITHOUT_ORDER:
            self.bodies.setdefault(kind, []).append(_without_ids(head, body))

    def training(self) -> list[tuple[str, bytes]]:
        """Forward and backward passes and optimizer steps, in the order of their numbers."""
        numbered = [
            (number, kind, body) for kind in IN_ORDER for number, body in self.bodies.get(kind, [])
        ]
        return [(kind, body) for _, kind, body in sorted(numbered)]

    def others(self, kind: str) -> list[bytes]:
        """The bodies of a route that has no order, sorted."""
        return sorted(body for _, body in self.bodies.get(kind, []))


@dataclass
class RecordedEngine(Engine):
    """The embedded engine behind a recording proxy."""

    recording: Recording | None = None
    is_shared: bool = False  # it runs already, and goes on
    _proxy: Any = None

    def wait_until_ready(self) -> None:
        if not self.is_shared:
            super().wait_until_ready()
        assert self.recording is not None
        self._proxy = fault_proxy(self.url, "reset", 0.0)
        proxy = self._proxy.__enter__()
        proxy.listen = self.recording.take
        self.url = proxy.url

    def stop(self) -> None:
        if self._proxy is not None:
            self._proxy.__exit__(None, None, None)
            self._proxy = None
        if not self.is_shared:
            super().stop()


@contextmanager
def recorded_stand_in(running: RunningEngine | None = None) -> Iterator[Recording]:
    """Within the block, what a rehearsal sends to its stand-in is recorded.

    Args:
        running: an engine that serves a model of that name and stands in: to start one takes
            seconds. What the SDK sends does not depend on weights.
    """
    recording = Recording()

    def start(output_dir: Path, base_models: Sequence[str], options: Sequence[str] = ()) -> Engine:
        if running is not None:
            log = output_dir / "log"
            process = cast("subprocess.Popen[bytes]", running.process)  # or what stands for it
            return RecordedEngine(process, KEY, log, running.url, recording, True)
        engine = start_engine(output_dir, base_models, options)
        return RecordedEngine(engine.process, engine.key, engine.log, recording=recording)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stand_in, "start_engine", start)
        yield recording


@contextmanager
def recorded_server(url: str, key: str) -> Iterator[Recording]:
    """Within the block, what is sent to the server that the environment names is recorded."""
    recording = Recording()
    with fault_proxy(url, "reset", 0.0) as proxy, pytest.MonkeyPatch.context() as patch:
        proxy.listen = recording.take
        patch.setenv("TINKER_BASE_URL", proxy.url)
        patch.setenv("TINKER_API_KEY", key)
        yield recording


def _without_ids(head: bytes, body: bytes) -> tuple[int, bytes]:
    """The number of a request within its client, and its body with nothing but ids taken out."""
    if b"application/x-protobuf" in head.lower():
        message = public.ForwardBackwardRequest.FromString(body)
        number = int(message.seq_id)
        message.ClearField("model_id")
        message.ClearField("seq_id")
        return number, message.SerializeToString(deterministic=True)
    content = json.loads(body)
    number = 0
    with suppress(TypeError, ValueError):
        number = int(content.get("seq_id") or 0)
    return number, json.dumps(_plain(content)).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if name not in _IDS}
    return [_plain(item) for item in value] if isinstance(value, list) else value
