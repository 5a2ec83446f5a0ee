"""Routes that list and change what is stored: runs, checkpoints, sessions, downloads."""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.store import KINDS, Checkpoint, Run, Store, TinkerPath, iso, parse_path

URL_LIFETIME = 3600  # seconds
DOWNLOADABLE = ("adapter_config.json", "adapter_model.safetensors")
_SECRET = secrets.token_bytes(32)

Handler = Callable[[Request], Awaitable[Response]]


def rest_routes(store: Store) -> list[tuple[str, str, Handler]]:
    """(method, path, handler); longer checkpoint paths stand before the bare one."""

    async def runs(request: Request) -> Response:
        found = [_run_json(store, run) for run in store.runs()]
        return _page(request, "training_runs", found)

    async def run(request: Request) -> Response:
        return JSONResponse(_run_json(store, store.run(request.path_params["run"])))

    async def run_checkpoints(request: Request) -> Response:
        found = store.checkpoints(store.run(request.path_params["run"]).id)
        return JSONResponse({"checkpoints": [checkpoint.to_json() for checkpoint in found]})

    async def checkpoints(request: Request) -> Response:
        return _page(request, "checkpoints", [one.to_json() for one in store.checkpoints()])

    async def delete(request: Request) -> Response:
        store.delete_checkpoint(_path(request))
        return Response(status_code=204)

    async def publish(request: Request) -> Response:
        store.set_public(_path(request), request.method == "POST")
        return Response(status_code=204)

    async def ttl(request: Request) -> Response:
        seconds = (await request.json()).get("ttl_seconds")
        if seconds is not None and not (isinstance(seconds, int) and seconds > 0):
            raise Refused(
                f"ttl_seconds is {seconds!r}; it must be a whole number above 0, or null."
            )
        store.set_ttl(_path(request), seconds)
        return Response(status_code=204)

    async def urls(request: Request) -> Response:
        checkpoint = store.checkpoint(_path(request))
        expires = int(time.time()) + URL_LIFETIME
        token = _token(checkpoint.path, expires)
        ending = ".age" if checkpoint.recipients else ""
        address = f"{request.url.scheme}://{request.headers['host']}/files/{token}"
        found = {f"{name}{ending}": f"{address}/{name}{ending}" for name in DOWNLOADABLE}
        return JSONResponse({"urls": found, "expires": iso(expires)})

    async def weights_info(request: Request) -> Response:
        path = parse_path((await request.json()).get("tinker_path") or "")
        store.checkpoint(path)
        run = store.run(path.run_id)
        return JSONResponse(
            {
                "base_model": run.base_model,
                "is_lora": True,
                "lora_rank": run.lora.rank,
                "train_mlp": run.lora.train_mlp,
                "train_attn": run.lora.train_attn,
                "train_unembed": run.lora.train_unembed,
                "optimizer_config": {"type": "adamw"},
            }
        )

    async def sessions(request: Request) -> Response:
        return _page(request, "sessions", store.session_ids())

    async def session(request: Request) -> Response:
        session_id = request.path_params["session_id"]
        metadata = store.session_metadata(session_id)
        return JSONResponse(
            {
                "training_run_ids": [r.id for r in store.runs() if r.session_id == session_id],
                "sampler_ids": store.sampler_ids(session_id),
                "user_metadata": metadata,
            }
        )

    async def sampler(request: Request) -> Response:
        found = store.sampler(request.path_params["sampler_id"])
        return JSONResponse(
            {
                "sampler_id": found["id"],
                "base_model": found["base_model"],
                "model_path": found["model_path"],
            }
        )

    one = "/training_runs/{run}/checkpoints/{checkpoint:path}"
    return [
        ("GET", "/training_runs", runs),
        ("GET", "/training_runs/{run}", run),
        ("GET", "/training_runs/{run}/checkpoints", run_checkpoints),
        ("POST", f"{one}/publish", publish),
        ("DELETE", f"{one}/publish", publish),
        ("PUT", f"{one}/ttl", ttl),
        ("GET", f"{one}/external_weights_urls", urls),
        ("DELETE", one, delete),
        ("GET", "/checkpoints", checkpoints),
        ("POST", "/weights_info", weights_info),
        ("GET", "/sessions", sessions),
        ("GET", "/sessions/{session_id}", session),
        ("GET", "/samplers/{sampler_id}", sampler),
    ]


def read_download(store: Store, token: str, name: str) -> bytes:
    """The bytes behind a download address.

    Raises:
        Refused: the address is not one of this engine's, or has expired.
    """
    for checkpoint in store.checkpoints():
        expires = token.partition("-")[0]
        if not expires.isdigit() or int(expires) < time.time():
            break
        if hmac.compare_digest(token.encode(), _token(checkpoint.path, int(expires)).encode()):
            return _file(store, checkpoint, name)
    raise Refused("this download address is unknown or has expired; ask for a new one.")


def _file(store: Store, checkpoint: Checkpoint, name: str) -> bytes:
    plain = name.removesuffix(".age")
    if plain not in DOWNLOADABLE or name.endswith(".age") != bool(checkpoint.recipients):
        raise Refused(f"{checkpoint.path} has no file {name}.")
    data = Path(store.weights_folder(checkpoint.path), plain).read_bytes()
    if not checkpoint.recipients:
        return data
    import pyrage  # pyright: ignore[reportMissingImports]

    recipients = [pyrage.x25519.Recipient.from_str(text) for text in checkpoint.recipients]
    return pyrage.encrypt(data, recipients)


def _token(path: TinkerPath, expires: int) -> str:
    """Unguessable, and good for one checkpoint until `expires`; holds no state."""
    digest = hmac.new(_SECRET, json.dumps([str(path), expires]).encode(), hashlib.sha256)
    return f"{expires}-{digest.hexdigest()}"


def _path(request: Request) -> TinkerPath:
    segment, _, name = request.path_params["checkpoint"].partition("/")
    if segment not in KINDS or not name:
        raise Refused(f"{request.path_params['checkpoint']!r} is no checkpoint id.")
    return TinkerPath(request.path_params["run"], segment, name)


def _run_json(store: Store, run: Run) -> dict[str, Any]:
    found = store.checkpoints(run.id)
    last = dict.fromkeys(KINDS.values())
    for checkpoint in reversed(found):
        last[KINDS[checkpoint.path.segment]] = checkpoint.to_json()  # type: ignore[assignment]
    return {
        "training_run_id": run.id,
        "base_model": run.base_model,
        "model_owner": "local",
        "is_lora": True,
        "lora_rank": run.lora.rank,
        "corrupted": False,
        "last_request_time": iso(run.last_request),
        "last_checkpoint": last["training"],
        "last_sampler_checkpoint": last["sampler"],
        "user_metadata": run.user_metadata,
    }


def _page(request: Request, name: str, items: list[Any]) -> Response:
    offset = int(request.query_params.get("offset", 0))
    limit = int(request.query_params.get("limit", 20))
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return JSONResponse({name: items[offset : offset + limit], "cursor": cursor})
