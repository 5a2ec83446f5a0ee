"""Routes that list and change what is stored: runs, checkpoints, sessions, downloads."""

import asyncio
import os
from collections.abc import Iterator
from typing import IO, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.addresses import check_address, signed_address
from tinkersmith.engine.server.age import encrypted
from tinkersmith.engine.server.http import Handler, detail, read_json
from tinkersmith.engine.storage.store import KINDS, Run, Store, TinkerPath, iso, parse_path
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

DOWNLOADABLE = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


def rest_routes(store: Store) -> list[tuple[str, str, Handler]]:
    """(method, path, handler); longer checkpoint paths stand before the bare one."""

    async def runs(request: Request) -> Response:
        return _page(request, "training_runs", [_run_json(store, run) for run in store.runs()])

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
        store.set_ttl(_path(request), fields.ttl(await read_json(request)))
        return Response(status_code=204)

    async def urls(request: Request) -> Response:
        checkpoint = store.checkpoint(_path(request))
        ending = ".age" if checkpoint.recipients else ""
        address, expires = signed_address(request, _address(checkpoint.path))
        found = {f"{name}{ending}": f"{address}/{name}{ending}" for name in DOWNLOADABLE}
        return JSONResponse({"urls": found, "expires": iso(expires)})

    async def weights_info(request: Request) -> Response:
        path = parse_path(fields.text(await read_json(request), "tinker_path"))
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
        metadata, display_name = store.session(session_id)
        return JSONResponse(
            {
                "training_run_ids": [run.id for run in store.runs(session_id)],
                "sampler_ids": store.sampler_ids(session_id),
                "user_metadata": metadata,
                "display_name": display_name,
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
    ]


_NOT_HERE = {
    "/billing/{rest:path}": "billing has no meaning on a machine of your own.",
    "/audit": "this engine keeps no audit log.",
    "/auth/apikey/me": "this engine knows one API key and no tokens or users.",
    "/sessions/{session}/project": "there are no projects on this engine.",
    "/create_custom_loss": "this engine runs no losses sent by clients; "
    "forward_backward_custom computes them on the client's side.",
    "/join_sampling_session": "this engine does not offer it; use the sampling session's id.",
    "/retrieve_futures": "this engine answers futures one at a time: /retrieve_future.",
    "/cancel_future": "this engine does not cancel single requests; finish the session instead.",
}


def refused_routes() -> list[tuple[str, str, Handler]]:
    """What the SDK may ask for and this engine says no to, each with the reason."""

    def refusing(sentence: str) -> Handler:
        async def refuse(request: Request) -> Response:
            return detail(sentence, 400)

        return refuse

    return [
        (method, path, refusing(sentence))
        for path, sentence in _NOT_HERE.items()
        for method in ("GET", "POST", "PUT", "DELETE")
    ]


def download_route(store: Store) -> Handler:
    """Serves /files/<token>/<run>/<segment>/<name>/<file>, which is fetched without a key."""

    async def download(request: Request) -> Response:
        *address, name = request.path_params["path"].split("/")
        path = TinkerPath(*address) if len(address) == 3 else TinkerPath("", "", "")
        check_address(request.path_params["token"], _address(path))
        checkpoint = store.checkpoint(path)
        plain = name.removesuffix(".age")
        if plain not in DOWNLOADABLE or name.endswith(".age") != bool(checkpoint.recipients):
            raise NotFound(f"{path} has no file {name}.")
        file = store.weights_folder(checkpoint) / plain
        if not checkpoint.recipients:
            if not file.is_file():
                raise Gone(f"{path} is listed, but its files in {file.parent} are gone.")
            return FileResponse(file, media_type="application/octet-stream")
        sealed = await asyncio.to_thread(encrypted, file, checkpoint.recipients)
        return StreamingResponse(
            _chunks(sealed),
            headers={"content-length": str(os.fstat(sealed.fileno()).st_size)},
            media_type="application/octet-stream",
        )

    return download


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(1 << 20):
            yield chunk


def _address(path: TinkerPath) -> str:
    return f"{path.run_id}/{path.segment}/{path.name}"


def _path(request: Request) -> TinkerPath:
    segment, _, name = request.path_params["checkpoint"].partition("/")
    if segment not in KINDS or not name:
        raise Refused(f"{request.path_params['checkpoint']!r} is no checkpoint id.")
    return TinkerPath(request.path_params["run"], segment, name)


def _run_json(store: Store, run: Run) -> dict[str, Any]:
    last: dict[str, Any] = dict.fromkeys(KINDS.values())
    for checkpoint in reversed(store.checkpoints(run.id)):
        last[KINDS[checkpoint.path.segment]] = checkpoint.to_json()
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
    offset, limit = _count(request, "offset", 0), _count(request, "limit", 20)
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return JSONResponse({name: items[offset : offset + limit], "cursor": cursor})


def _count(request: Request, name: str, default: int) -> int:
    value = request.query_params.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise Refused(f"{name} is {value!r}; it must be a whole number of at least 0.")
    return int(value)
