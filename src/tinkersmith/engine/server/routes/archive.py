"""Routes over everything that is stored: search of sessions, copies of checkpoints, disk usage."""

import datetime as dt
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.fields import Body
from tinkersmith.engine.server.http import Routes, read_json
from tinkersmith.engine.server.identity import USER
from tinkersmith.engine.server.routes.rest import listed_checkpoints
from tinkersmith.engine.storage.folders import KINDS, TinkerPath, parse_path
from tinkersmith.engine.storage.rows import StoredSession, iso
from tinkersmith.engine.storage.store import Store


class ArchiveRoutes:
    """Search, copies and disk usage of what all sessions have stored."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.store = sessions.store

    def routes(self) -> Routes:
        return [
            ("POST", "/sessions/search", self.search),
            # The documentation of tinker 0.39 names the fields and not the address, which is by
            # analogy with that of sessions. Not tested with that SDK.
            ("POST", "/checkpoints/search", self.search_checkpoints),
            ("POST", "/copy_weights", self.copy_weights),
            ("GET", "/billing/usage/checkpoints/current", self.disk_usage),
            ("POST", "/billing/usage/checkpoints/current", self.disk_usage),
        ]

    async def search(self, request: Request) -> Response:
        query, active = _read_query(await read_json(request)), set(self.sessions.sessions)
        return JSONResponse(await self.store.read(lambda: _search(self.store, active, query)))

    async def search_checkpoints(self, request: Request) -> Response:
        query = _read_checkpoint_query(await read_json(request))
        return JSONResponse(await self.store.read(lambda: _search_checkpoints(self.store, query)))

    async def copy_weights(self, request: Request) -> Response:
        body = await read_json(request)
        source = parse_path(fields.string(body, "source_path"))
        await self.store.read(lambda: self.store.checkpoint(source))  # is there such a checkpoint?
        ttl = fields.ttl(body)
        if body.get("session_id") is not None:
            session_id = self.sessions.get(fields.string(body, "session_id")).id
            seq_id = fields.sequence_number(body, "model_seq_id")
        else:
            # A repeated request has the same key, and so finds the copy that the first one made.
            key = request.headers.get("x-idempotency-key") or os.urandom(16).hex()
            session_id, seq_id = hashlib.sha256(key.encode()).hexdigest()[:16], 0
        path = TinkerPath(f"{session_id}:train:{seq_id}", source.segment, source.name)
        await self.store.write(lambda: self.store.copy_checkpoint(source, path, ttl))
        return JSONResponse({"tinker_path": str(path)})

    async def disk_usage(self, request: Request) -> Response:
        stored = await self.store.read(self.store.checkpoints)
        sizes = [checkpoint.size_bytes for checkpoint in stored]
        usage = {
            "checkpoint_count": len(sizes),
            "size_bytes": sum(sizes),
            "org_user_urn": USER,
            "size_gigabytes": sum(sizes) / 1e9,
        }
        return JSONResponse({"data": [usage]})


@dataclass(frozen=True, slots=True)
class _Query:
    """The SDK's `SessionSearchRequest`."""

    words: list[str]  # in lower case; the display name must contain them all
    session_id: str | None  # matches besides the words
    metadata: dict[str, Any]  # which the session's must contain
    active_only: bool
    of_this_user: bool
    before: tuple[float, str] | None  # time of creation and id of the last page's last session
    limit: int

    def matches(self, session: StoredSession, active: bool) -> bool:
        title = (session.display_name or "").lower()
        has_words = bool(self.words) and all(word in title for word in self.words)
        named = not (self.words or self.session_id) or has_words or session.id == self.session_id
        return (
            named
            and self.of_this_user
            and (active or not self.active_only)
            and self.metadata.items() <= (session.user_metadata or {}).items()
            and (self.before is None or (session.created, session.id) < self.before)
        )


def _read_query(body: Body) -> _Query:
    if body.get("project_ids"):
        raise Refused("there are no projects on this engine; search without project_ids.")
    statuses = fields.object_list(body, "statuses")
    if any(status != {"type": "active"} for status in statuses):
        raise Refused("this engine knows which sessions are active, not how others ended.")
    limit = fields.optional_integer(body, "limit", 50)
    if not 1 <= limit <= 200:
        raise Refused(f"limit is {limit}; it must be from 1 to 200.")
    owners = fields.string_list(fields.json_object(body, "owner"), "owner_urns")
    cursor = fields.json_object(body, "cursor")
    return _Query(
        words=_optional_string(body, "display_name").lower().split(),
        session_id=_optional_string(body, "session_id") or None,
        metadata=fields.json_object(body, "user_metadata"),
        active_only=bool(statuses),
        of_this_user=not owners or USER in owners,
        before=(_seconds(cursor), fields.string(cursor, "last_session_id")) if cursor else None,
        limit=limit,
    )


def _optional_string(body: Body, name: str) -> str:
    """The string under `name`; an absent one is empty."""
    return "" if body.get(name) in (None, "") else fields.string(body, name)


def _search(store: Store, active: set[str], query: _Query) -> dict[str, Any]:
    """The SDK's `SessionSearchResponse`; `active` are the sessions that have not ended."""
    count, size = Counter[str](), Counter[str]()
    for checkpoint in store.checkpoints():
        session_id = checkpoint.path.run_id.partition(":")[0]
        count[session_id] += 1
        size[session_id] += checkpoint.size_bytes
    matches = [
        session for session in store.sessions() if query.matches(session, session.id in active)
    ]
    page = [
        {
            "session_id": session.id,
            "created_at": iso(session.created),
            "owner": USER,
            "project_id": "local",
            "display_name": session.display_name,
            "user_metadata": session.user_metadata,
            "checkpoints_count": count[session.id],
            "checkpoint_storage_bytes": size[session.id],
            "status": {"type": "active"} if session.id in active else None,
        }
        for session in matches[: query.limit]
    ]
    if len(matches) <= query.limit:
        return {"sessions": page, "next_cursor": None}
    last = {"last_created_at": page[-1]["created_at"], "last_session_id": page[-1]["session_id"]}
    return {"sessions": page, "next_cursor": last}


@dataclass(frozen=True, slots=True)
class _CheckpointQuery:
    """The `CheckpointSearchRequest` of tinker 0.39."""

    kind: str | None
    base_models: list[str] | None  # None: of every one
    metadata: dict[str, Any]
    of_this_user: bool
    before: tuple[float, str] | None  # time and path of the last page's last checkpoint
    limit: int

    def matches(self, checkpoint: dict[str, Any]) -> bool:
        return (
            self.of_this_user
            and self.kind in (None, checkpoint["checkpoint_type"])
            and (self.base_models is None or checkpoint["base_model"] in self.base_models)
            and self.metadata.items() <= (checkpoint["user_metadata"] or {}).items()
            and (self.before is None or _age(checkpoint) < self.before)
        )


def _read_checkpoint_query(body: Body) -> _CheckpointQuery:
    if body.get("project_ids"):
        raise Refused("there are no projects on this engine; search without project_ids.")
    kind = _optional_string(body, "checkpoint_type") or None
    if kind is not None and kind not in KINDS.values():
        raise Refused(
            f"checkpoint_type is {kind!r}; it must be one of {', '.join(KINDS.values())}."
        )
    limit = fields.optional_integer(body, "limit", 50)
    if not 1 <= limit <= 200:
        raise Refused(f"limit is {limit}; it must be from 1 to 200.")
    owners = fields.string_list(fields.json_object(body, "owner"), "owner_urns")
    cursor = fields.json_object(body, "cursor")
    named = fields.string_list(body, "base_models") if body.get("base_models") is not None else None
    return _CheckpointQuery(
        kind=kind,
        base_models=named,
        metadata=fields.json_object(body, "user_metadata"),
        of_this_user=not owners or USER in owners,
        before=(_seconds(cursor), fields.string(cursor, "last_checkpoint_uuid"))
        if cursor
        else None,
        limit=limit,
    )


def _search_checkpoints(store: Store, query: _CheckpointQuery) -> dict[str, Any]:
    """The `CheckpointSearchResponse` of tinker 0.39: newest first."""
    everything = sorted(listed_checkpoints(store), key=_age, reverse=True)
    matches = [checkpoint for checkpoint in everything if query.matches(checkpoint)]
    page = matches[: query.limit]
    if len(matches) <= query.limit:
        return {"checkpoints": page, "next_cursor": None}
    last = {"last_created_at": page[-1]["time"], "last_checkpoint_uuid": page[-1]["tinker_path"]}
    return {"checkpoints": page, "next_cursor": last}


def _age(checkpoint: dict[str, Any]) -> tuple[float, str]:
    return dt.datetime.fromisoformat(checkpoint["time"]).timestamp(), checkpoint["tinker_path"]


def _seconds(cursor: Body) -> float:
    text = fields.string(cursor, "last_created_at")
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Refused(f"last_created_at is {text!r}; it must be a time in ISO 8601.") from None
