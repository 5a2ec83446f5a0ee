"""Routes that list and change what is stored: runs, checkpoints, sessions, downloads."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from typing import IO, Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse

from tinkersmith.engine.errors import Gone, NotFound, Refused
from tinkersmith.engine.server import fields
from tinkersmith.engine.server.addresses import check_address, signed_address
from tinkersmith.engine.server.age import encrypted
from tinkersmith.engine.server.api_errors import detail
from tinkersmith.engine.server.http import Handler, Routes, read_json
from tinkersmith.engine.server.wire import optimizer_config
from tinkersmith.engine.storage.folders import KINDS, TinkerPath, parse_path
from tinkersmith.engine.storage.rows import StoredRun, iso
from tinkersmith.engine.storage.store import Store, damage_sentence
from tinkersmith.manifest import MANIFEST
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

DOWNLOADABLE = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


class RestRoutes:
    """What is stored, as the SDK's RestClient lists, changes and downloads it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def routes(self) -> Routes:
        checkpoint = "/training_runs/{run}/checkpoints/{checkpoint:path}"
        return [
            ("GET", "/training_runs", self.runs),
            ("GET", "/training_runs/{run}", self.run),
            ("GET", "/training_runs/{run}/checkpoints", self.checkpoints_of_run),
            # The first match counts, and {checkpoint:path} matches these endings too.
            ("POST", f"{checkpoint}/publish", self.publish),
            ("DELETE", f"{checkpoint}/publish", self.unpublish),
            ("PUT", f"{checkpoint}/ttl", self.set_ttl),
            ("GET", f"{checkpoint}/external_weights_urls", self.download_urls),
            ("GET", f"{checkpoint}/archive", self.archive),
            ("DELETE", checkpoint, self.delete_checkpoint),
            ("GET", "/checkpoints", self.checkpoints),
            ("POST", "/weights_info", self.weights_info),
            ("GET", "/sessions", self.sessions),
            ("GET", "/sessions/{session_id}", self.session),
        ]

    # ---- runs

    async def runs(self, request: Request) -> Response:
        runs = await self.store.read(lambda: [self._run_json(run) for run in self.store.runs()])
        return _page(request, "training_runs", runs)

    async def run(self, request: Request) -> Response:
        name = request.path_params["run"]
        return JSONResponse(await self.store.read(lambda: self._run_json(self.store.run(name))))

    def _run_json(self, run: StoredRun) -> dict[str, Any]:
        newest: dict[str, Any] = dict.fromkeys(KINDS.values())
        for checkpoint in reversed(self.store.checkpoints(run.id)):
            newest[KINDS[checkpoint.path.segment]] = checkpoint.to_json(run.base_model)
        return {
            "training_run_id": run.id,
            "base_model": run.base_model,
            "model_owner": "local",
            "is_lora": True,
            "lora_rank": run.lora.rank,
            "corrupted": False,
            "last_request_time": iso(run.last_request),
            "last_checkpoint": newest["training"],
            "last_sampler_checkpoint": newest["sampler"],
            "user_metadata": run.user_metadata,
        }

    # ---- checkpoints

    async def checkpoints(self, request: Request) -> Response:
        listed = await self.store.read(lambda: listed_checkpoints(self.store))
        return _page(request, "checkpoints", listed)

    async def checkpoints_of_run(self, request: Request) -> Response:
        name = request.path_params["run"]

        def look_up() -> list[dict[str, Any]]:
            run = self.store.run(name)
            return [entry.to_json(run.base_model) for entry in self.store.checkpoints(run.id)]

        return JSONResponse({"checkpoints": await self.store.read(look_up)})

    async def delete_checkpoint(self, request: Request) -> Response:
        path = _checkpoint_path(request)
        await self.store.write(lambda: self.store.delete_checkpoint(path))
        return Response(status_code=204)

    async def publish(self, request: Request) -> Response:
        path = _checkpoint_path(request)
        await self.store.write(lambda: self.store.set_public(path, True))
        return Response(status_code=204)

    async def unpublish(self, request: Request) -> Response:
        path = _checkpoint_path(request)
        await self.store.write(lambda: self.store.set_public(path, False))
        return Response(status_code=204)

    async def set_ttl(self, request: Request) -> Response:
        path, seconds = _checkpoint_path(request), fields.ttl(await read_json(request))
        await self.store.write(lambda: self.store.set_ttl(path, seconds))
        return Response(status_code=204)

    async def weights_info(self, request: Request) -> Response:
        path = parse_path(fields.string(await read_json(request), "tinker_path"))

        def look_up() -> StoredRun:
            self.store.checkpoint(path)  # is there such a checkpoint?
            return self.store.run(path.run_id)

        run = await self.store.read(look_up)
        return JSONResponse(
            {
                "base_model": run.base_model,
                "is_lora": True,
                "lora_rank": run.lora.rank,
                "train_mlp": run.lora.train_mlp,
                "train_attn": run.lora.train_attn,
                "train_unembed": run.lora.train_unembed,
                "optimizer_config": optimizer_config(run.optimizer),
            }
        )

    # ---- downloads

    async def download_urls(self, request: Request) -> Response:
        path = _checkpoint_path(request)
        checkpoint = await self.store.read(lambda: self.store.checkpoint(path))
        checked = await asyncio.to_thread(self.store.checked, path, only=DOWNLOADABLE)
        address, expires = signed_address(request, _download_path(path))
        ending = ".age" if checkpoint.recipients else ""
        # The client can compare what it receives with the manifest.
        names = DOWNLOADABLE if checked.manifest is None else (*DOWNLOADABLE, MANIFEST)
        urls = {f"{name}{ending}": f"{address}/{name}{ending}" for name in names}
        return JSONResponse({"urls": urls, "expires": iso(expires)})

    async def archive(self, request: Request) -> Response:
        """Refuse what tinker before 0.36 asks for."""
        path = _checkpoint_path(request)
        await self.store.read(lambda: self.store.checkpoint(path))  # is there such a checkpoint?
        raise Refused(
            "this engine makes no archives; download the files that save_weights_external writes, "
            "with tinker 0.36 or newer."
        )

    async def download(self, request: Request) -> Response:
        """Serve /files/<token>/<run>/<segment>/<name>/<file>, which is requested without a key."""
        *names, file_name = request.path_params["path"].split("/")
        path = TinkerPath(*names) if len(names) == 3 else TinkerPath("", "", "")
        check_address(request.path_params["token"], _download_path(path))
        checkpoint = await self.store.read(lambda: self.store.checkpoint(path))
        plain_name = file_name.removesuffix(".age")
        sealed = file_name.endswith(".age")
        if plain_name not in (*DOWNLOADABLE, MANIFEST) or sealed != bool(checkpoint.recipients):
            raise NotFound(f"{path} has no file {file_name}.")
        file = self.store.weights_folder(checkpoint) / plain_name
        if not file.is_file():
            raise Gone(damage_sentence(path, plain_name, "the file is gone"))
        await asyncio.to_thread(self.store.checked, path, only=[plain_name])
        if not checkpoint.recipients:
            return FileResponse(file, media_type="application/octet-stream")
        content = await asyncio.to_thread(encrypted, file, checkpoint.recipients)
        return StreamingResponse(
            _chunks(content),
            headers={"content-length": str(os.fstat(content.fileno()).st_size)},
            media_type="application/octet-stream",
        )

    # ---- sessions

    async def sessions(self, request: Request) -> Response:
        stored = await self.store.read(self.store.sessions)
        return _page(request, "sessions", [session.id for session in stored])

    async def session(self, request: Request) -> Response:
        session_id = request.path_params["session_id"]

        def look_up() -> dict[str, Any]:
            session = self.store.session(session_id)
            return {
                "training_run_ids": [run.id for run in self.store.runs(session.id)],
                "sampler_ids": self.store.sampler_ids(session.id),
                "user_metadata": session.user_metadata,
                "display_name": session.display_name,
            }

        return JSONResponse(await self.store.read(look_up))


def listed_checkpoints(store: Store) -> list[dict[str, Any]]:
    """All checkpoints as the SDK's `Checkpoint`."""
    base_models = {run.id: run.base_model for run in store.runs()}
    return [
        checkpoint.to_json(base_models.get(checkpoint.path.run_id, ""))
        for checkpoint in store.checkpoints()
    ]


_NOT_SUPPORTED = {
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


def refused_routes() -> Routes:
    """Routes that the SDK may use and this engine does not support, each with the reason."""

    def refusing(sentence: str) -> Handler:
        async def refuse(request: Request) -> Response:
            return detail(sentence, 400)

        return refuse

    return [
        (method, path, refusing(sentence))
        for path, sentence in _NOT_SUPPORTED.items()
        for method in ("GET", "POST", "PUT", "DELETE")
    ]


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while chunk := file.read(1 << 20):
            yield chunk


def _download_path(path: TinkerPath) -> str:
    return f"{path.run_id}/{path.segment}/{path.name}"


def _checkpoint_path(request: Request) -> TinkerPath:
    segment, _, name = request.path_params["checkpoint"].partition("/")
    if segment not in KINDS or not name:
        raise Refused(f"{request.path_params['checkpoint']!r} is not a checkpoint id.")
    return TinkerPath(request.path_params["run"], segment, name)


def _page(request: Request, name: str, items: Sequence[object]) -> Response:
    offset, limit = _count(request, "offset", 0), _count(request, "limit", 20)
    cursor = {"offset": offset, "limit": limit, "total_count": len(items)}
    return JSONResponse({name: items[offset : offset + limit], "cursor": cursor})


def _count(request: Request, name: str, default: int) -> int:
    value = request.query_params.get(name, str(default))
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise Refused(f"{name} is {value!r}; it must be a whole number of at least 0.")
    return int(value)
