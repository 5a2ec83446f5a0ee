"""What the engine says of itself: its queue, its memory, and what it has done so far.

The same facts are the answer of /metrics, in Prometheus' text form, and a file in the engine's
folder, which tells a program on this machine without the key. Neither holds data of a client.
"""

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tinkersmith.engine.log import log
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine_status import HEARTBEAT, STATUS_VERSION, remove_stale, status_file
from tinkersmith.files import write_json
from tinkersmith.version import __version__

WRITE_EVERY = 2.0  # seconds between two looks at what has changed
METRICS_PATH = "/metrics"
_TEXT = "text/plain; version=0.0.4; charset=utf-8"

_Labelled = tuple[Mapping[str, str], float]  # labels and value


class EngineStatus:
    """The state of one engine. Used on the event loop."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._started = time.time()

    def to_json(self) -> dict[str, Any]:
        """Counts, and bytes of memory; docs/reference/engine.md describes the fields."""
        thread, sessions = self._sessions.thread, self._sessions.sessions
        usage = thread.usage()
        queues = thread.queues()
        outcomes: dict[str, dict[str, int]] = {}
        for (name, failed), count in sorted(thread.outcomes.items()):
            done = outcomes.setdefault(name, {"done": 0, "failed": 0})
            done["failed" if failed else "done"] += count
        return {
            "version": STATUS_VERSION,
            "engine": __version__,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": self._started,
            "ready": thread.is_ready,
            "sessions": len(sessions),
            "clients": {
                "training": sum(len(session.models) for session in sessions.values()),
                "sampling": sum(len(session.samplers) for session in sessions.values()),
            },
            "queue": [
                {
                    "client": queue.client_id,
                    "waiting": dict(queue.waiting),
                    "running": dict(queue.running),
                    "sequences": queue.sequences,
                }
                for queue in queues
            ],
            "requests": outcomes,
            "tokens": usage.get("tokens", {}),
            "memory": {
                "process": process_memory(),
                "adapters": usage.get("adapters", 0),
                "spilled_clients": usage.get("spilled_clients", 0),
                "base_models": usage.get("base_models", {}),
                "gpu": usage.get("gpu"),
            },
        }

    async def metrics(self, request: Request) -> Response:
        return Response(metrics_text(self.to_json()), media_type=_TEXT)

    async def keep_written(self, every: float = WRITE_EVERY) -> None:
        """Write the status file whenever something has changed, for as long as the engine runs."""
        folder = self._sessions.store.folder
        file = status_file(folder, os.getpid())
        await asyncio.to_thread(remove_stale, folder)
        written: dict[str, Any] = {}
        written_at = 0.0  # monotonic seconds
        is_writable = True
        while True:
            status = self.to_json()
            now = time.monotonic()
            if _changed(written, status) or now - written_at >= HEARTBEAT:
                try:
                    await asyncio.to_thread(write_json, file, {**status, "updated": time.time()})
                    is_writable = True
                except OSError as error:
                    if is_writable:  # said once, until it works again
                        log.warning("%s cannot be written: %s", file, error.strerror or error)
                    is_writable = False
                written, written_at = status, now
            await asyncio.sleep(every)


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether the two differ in more than the memory, which is never the same twice."""
    return any(before.get(name) != after[name] for name in after if name != "memory")


def process_memory() -> int:
    """Bytes of this process that are in memory now; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def metrics_text(status: Mapping[str, Any]) -> str:
    """A status in Prometheus' text form."""
    waiting, running = Counter[str](), Counter[str]()
    for queue in status["queue"]:
        waiting.update(queue["waiting"])
        running.update(queue["running"])
    memory: dict[str, Any] = status["memory"]
    gpu: dict[str, Any] = memory["gpu"] or {}
    families: list[tuple[str, str, str, Iterable[_Labelled]]] = [
        (
            "tinkersmith_engine_info",
            "gauge",
            "The engine's version.",
            [({"version": status["engine"]}, 1)],
        ),
        (
            "tinkersmith_engine_ready",
            "gauge",
            "1 once torch is loaded and jobs run, else 0.",
            [({}, int(status["ready"]))],
        ),
        (
            "process_start_time_seconds",
            "gauge",
            "When the engine started, in Unix seconds.",
            [({}, status["started"])],
        ),
        (
            "process_resident_memory_bytes",
            "gauge",
            "Memory of the engine's process.",
            [({}, memory["process"])],
        ),
        (
            "tinkersmith_sessions",
            "gauge",
            "Sessions of SDK clients.",
            [({}, status["sessions"])],
        ),
        (
            "tinkersmith_clients",
            "gauge",
            "Training and sampling clients.",
            _labelled("kind", status["clients"]),
        ),
        (
            "tinkersmith_clients_with_jobs",
            "gauge",
            "Clients with a job that waits or runs.",
            [({}, len(status["queue"]))],
        ),
        (
            "tinkersmith_jobs_waiting",
            "gauge",
            "Jobs that wait for their turn, by what they do.",
            _labelled("job", waiting),
        ),
        (
            "tinkersmith_jobs_running",
            "gauge",
            "Jobs that run, or wait for the disk, by what they do.",
            _labelled("job", running),
        ),
        (
            "tinkersmith_sequences_sampling",
            "gauge",
            "Sequences of the sampling jobs that run.",
            [({}, sum(queue["sequences"] for queue in status["queue"]))],
        ),
        (
            "tinkersmith_jobs_total",
            "counter",
            "Finished jobs, by what they did and how they ended.",
            [
                ({"job": name, "outcome": outcome}, count)
                for name, counts in status["requests"].items()
                for outcome, count in counts.items()
            ],
        ),
        (
            "tinkersmith_tokens_total",
            "counter",
            "Tokens of finished work: trained (forward and backward), forward alone, prompt "
            "and sampled.",
            _labelled("kind", status["tokens"]),
        ),
        (
            "tinkersmith_adapter_memory_bytes",
            "gauge",
            "Adapters, their gradients and optimizer states in memory.",
            [({}, memory["adapters"])],
        ),
        (
            "tinkersmith_spilled_clients",
            "gauge",
            "Clients whose tensors are on disk while they are idle, or that have none.",
            [({}, memory["spilled_clients"])],
        ),
        (
            "tinkersmith_base_model_memory_bytes",
            "gauge",
            "Weights of each loaded base model.",
            _labelled("base_model", memory["base_models"]),
        ),
        (
            "tinkersmith_gpu_memory_bytes",
            "gauge",
            "The GPU's memory: total, free, and reserved and allocated by this engine.",
            _labelled("state", {name: gpu[name] for name in gpu if name != "name"}),
        ),
    ]
    return "".join(_family(*family) for family in families)


def _labelled(label: str, values: Mapping[str, float]) -> list[_Labelled]:
    return [({label: name}, value) for name, value in values.items()]


def _family(name: str, kind: str, help_text: str, samples: Iterable[_Labelled]) -> str:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
    for labels, value in samples:
        inner = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{inner}}} {value}" if inner else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
