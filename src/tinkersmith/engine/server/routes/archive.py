"""Routes over all that is stored: search of sessions, copies of checkpoints, space taken."""

import asyncio
import datetime as dt
import hashlib
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.http import Handler, read_json
from tinkersmith.engine.server.identity import USER
from tinkersmith.engine.storage.store import Run, Store, TinkerPath, iso, parse_path


def archive_routes(sessions: Sessions) -> list[tuple[str, str, Handler]]:
    store = sessions.store

    async def search(request: Request) -> Response:
        return JSONResponse(_search(sessions, await read_json(request)))

    async def copy_weights(request: Request) -> Response:
        body = await read_json(request)
        source = store.checkpoint(parse_path(fields.text(body, "source_path"))).path
        ttl = fields.ttl(body)
        if body.get("session_id") is not None:
            session_id = sessions.get(fields.text(body, "session_id")).id
            seq_id = fields.number(body, "model_seq_id", int)
        else:
            # A repeated request has the same key, and so finds the copy of the first.
            asked = request.headers.get("x-idempotency-key") or os.urandom(16).hex()
            session_id, seq_id = hashlib.sha256(asked.encode()).hexdigest()[:16], 0
        path = TinkerPath(f"{session_id}:train:{seq_id}", source.segment, source.name)
        await asyncio.to_thread(_copy, store, source, path, ttl)
        return JSONResponse({"tinker_path": str(path)})

    async def space(request: Request) -> Response:
        sizes = [one.size_bytes for one in store.checkpoints()]
        item = {"checkpoint_count": len(sizes), "size_bytes": sum(sizes), "org_user_urn": USER}
        return JSONResponse({"data": [{**item, "size_gigabytes": sum(sizes) / 1e9}]})

    return [
        ("POST", "/sessions/search", search),
        ("POST", "/copy_weights", copy_weights),
        ("GET", "/billing/usage/checkpoints/current", space),
        ("POST", "/billing/usage/checkpoints/current", space),
    ]


def _copy(store: Store, source: TinkerPath, path: TinkerPath, ttl_seconds: int | None) -> None:
    """Enter `path`, of a run that cannot be trained, with the files of `source`, shared on disk."""
    session_id = path.run_id.partition(":")[0]
    old, run = store.checkpoint(source), store.run(source.run_id)
    # An earlier try may have made it, or have ended anywhere on its way.
    if any(one.path == path for one in store.checkpoints(path.run_id)):
        return
    if session_id not in store.session_ids():
        store.add_session(session_id, {}, f"copy of {source}")
    if path.run_id not in [one.id for one in store.runs(session_id)]:
        now = time.time()
        copy = Run(path.run_id, session_id, run.base_model, run.lora, run.user_metadata, now)
        store.add_run(copy)
    folder = store.new_weights_folder(path)
    shutil.copytree(store.weights_folder(old), folder, copy_function=_link_or_copy)
    store.add_checkpoint(path, folder, old.user_metadata, ttl_seconds, old.recipients)


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)  # files of a checkpoint are never changed
    except OSError:
        shutil.copy2(source, target)


def _search(sessions: Sessions, body: dict[str, Any]) -> dict[str, Any]:
    """As the SDK's SessionSearchResponse."""
    if body.get("project_ids"):
        raise Refused("there are no projects on this engine; search without project_ids.")
    statuses = body.get("statuses") or []
    if any(status != {"type": "active"} for status in statuses):
        raise Refused("this engine notes which sessions are active, not how others ended.")
    limit = fields.optional_number(body, "limit", int) or 50
    if not 1 <= limit <= 200:
        raise Refused(f"limit is {limit}; it must be from 1 to 200.")
    words = str(body.get("display_name") or "").lower().split()
    session_id, wanted = body.get("session_id"), fields.part(body, "user_metadata").items()
    owners = fields.part(body, "owner").get("owner_urns")
    if owners and USER not in owners:
        return {"sessions": []}
    count, size = Counter[str](), Counter[str]()
    for checkpoint in sessions.store.checkpoints():
        name = checkpoint.path.run_id.partition(":")[0]
        count[name] += 1
        size[name] += checkpoint.size_bytes
    cursor = fields.part(body, "cursor")
    before = (_seconds(cursor), fields.text(cursor, "last_session_id")) if cursor else None
    found = []
    for created, name, metadata, title in sessions.store.session_rows():
        named = bool(words) and all(word in (title or "").lower() for word in words)
        if (words or session_id) and not named and name != session_id:
            continue
        active = name in sessions.sessions
        if (statuses and not active) or not wanted <= (metadata or {}).items():
            continue
        if before is not None and (created, name) >= before:
            continue
        summary = {
            "session_id": name,
            "created_at": iso(created),
            "owner": USER,
            "project_id": "local",
            "display_name": title,
            "user_metadata": metadata,
            "checkpoints_count": count[name],
            "checkpoint_storage_bytes": size[name],
        }
        found.append({**summary, "status": {"type": "active"} if active else None})
    page = found[:limit]
    if len(found) <= limit:
        return {"sessions": page, "next_cursor": None}
    last = {"last_created_at": page[-1]["created_at"], "last_session_id": page[-1]["session_id"]}
    return {"sessions": page, "next_cursor": last}


def _seconds(cursor: Any) -> float:
    text = fields.text(cursor, "last_created_at")
    try:
        return dt.datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise Refused(f"last_created_at is {text!r}; it must be a time in ISO 8601.") from None
