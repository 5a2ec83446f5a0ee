"""Routes for the upload of an adapter that was exported elsewhere, which becomes a checkpoint.

Written by the documentation of tinker 0.39 and 0.40, and not tested with these SDKs. It does not
say what kind of checkpoint an upload becomes: here it is a state that can be trained on and sampled
from, without an optimizer state. It does not say either which adapters are taken: here it is every
PEFT folder that the engine can read, an exported one of each family among them.
"""

import asyncio
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import NotFound, Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.queue import Result
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields, wire
from tinkersmith.engine.server.addresses import LIFETIME, check_address, signed_address
from tinkersmith.engine.server.http import Routes, read_json
from tinkersmith.engine.storage.catalogue import Catalogue, plain_name
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.rows import StoredRun, iso
from tinkersmith.fingerprint import base_fingerprint
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
_NAME = "uploaded"  # of the checkpoint
_CHECKPOINT = "checkpoint"  # in an upload's folder: the adapter in the files of a checkpoint
_LEFT_BEHIND = 24 * 3600  # seconds after which an upload that nobody finished is removed
_WITH_HEADERS = (0, 40)  # from this release on, an address comes with headers


@dataclass(frozen=True, slots=True)
class _Upload:
    base_model: str
    lora: LoraConfig
    folder: Path


class UploadRoutes:
    """Uploads that were started and not finished, each with a folder of its own."""

    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue
        self.folder = sessions.store.folder / "uploads"
        self._uploads: dict[str, _Upload] = {}

    def routes(self) -> Routes:
        return [
            ("POST", "/external_weights_upload_start", self.start),
            ("POST", "/external_weights_upload_finish", self.finish),
        ]

    async def start(self, request: Request) -> Response:
        body = await read_json(request)
        base_model = plain_name(fields.string(body, "base_model"))
        self.catalogue.folder(base_model)  # is it offered?
        lora = wire.read_lora_config(body)
        if body.get("destination_project_id") is not None:
            raise Refused("there are no projects on this engine; leave destination_project_id out.")
        await asyncio.to_thread(self._remove_left_behind)
        upload_id = secrets.token_hex(16)
        folder = self.folder / upload_id
        folder.mkdir(parents=True)
        self._uploads[upload_id] = _Upload(base_model, lora, folder)
        addresses: dict[str, object] = {}
        expires = int(time.time()) + LIFETIME
        for name in _FILES:
            address, expires = signed_address(request, _address(upload_id, name))
            has_headers = _release(request) >= _WITH_HEADERS
            addresses[name] = {"url": address, "headers": {}} if has_headers else address
        return JSONResponse({"upload_id": upload_id, "urls": addresses, "expires": iso(expires)})

    async def put(self, request: Request) -> Response:
        """Store /files/<token>/uploads/<upload>/<file>, which is sent without a key."""
        upload_id, name = request.path_params["upload"], request.path_params["name"]
        check_address(request.path_params["token"], _address(upload_id, name))
        folder = self._upload(upload_id).folder
        beside = folder / f"{name}.{secrets.token_hex(4)}.part"
        try:
            with beside.open("wb") as file:
                async for chunk in request.stream():
                    await asyncio.to_thread(file.write, chunk)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            beside.replace(folder / name)
        finally:
            beside.unlink(missing_ok=True)
        return Response()

    async def finish(self, request: Request) -> Response:
        upload_id = fields.string(await read_json(request), "upload_id")
        upload = self._upload(upload_id)
        missing = [name for name in _FILES if not (upload.folder / name).is_file()]
        if missing:
            raise Refused(
                f"the upload has no {' and no '.join(missing)}: PUT each file to its address "
                "before you finish it."
            )
        checkpoint = upload.folder / _CHECKPOINT

        def convert(models: ModelOperations) -> Result:
            models.import_adapter(upload.base_model, upload.lora, upload.folder, checkpoint)
            return {}

        await asyncio.to_thread(shutil.rmtree, checkpoint, ignore_errors=True)
        future = self.sessions.run(f"upload:{upload_id}", convert)
        await future.done.wait()
        if isinstance(future.result, dict) and "error" in future.result:
            reason = str(future.result["error"])  # names the upload, not a folder of this machine
            reason = reason.replace(f"{upload.folder}{os.sep}", "")
            raise Refused(reason.replace(str(upload.folder), "the upload"))
        path = await self.sessions.store.write(lambda: self._keep(upload_id, upload))
        self._uploads.pop(upload_id, None)
        await asyncio.to_thread(shutil.rmtree, upload.folder, ignore_errors=True)
        return JSONResponse({"tinker_path": str(path)})

    def _upload(self, upload_id: str) -> _Upload:
        if upload_id not in self._uploads:
            raise NotFound("this upload is unknown, or is finished; start another one.")
        return self._uploads[upload_id]

    def _keep(self, upload_id: str, upload: _Upload) -> TinkerPath:
        """Store the files as a checkpoint of a run of their own."""
        store, session_id = self.sessions.store, upload_id[:16]
        path = TinkerPath(f"{session_id}:train:0", "weights", _NAME)
        store.add_session(session_id, {}, "an uploaded adapter")
        store.add_run(
            StoredRun(path.run_id, session_id, upload.base_model, upload.lora, None, time.time())
        )
        facts: dict[str, object] = {
            "base_model": upload.base_model,
            "base_fingerprint": base_fingerprint(self.catalogue.folder(upload.base_model)),
            "rank": upload.lora.rank,
        }
        with store.new_checkpoint(path, facts, None, None, None) as new:
            for name in _FILES:
                shutil.copyfile(upload.folder / _CHECKPOINT / name, new.folder / name)
        return path

    def _remove_left_behind(self) -> None:
        if not self.folder.is_dir():
            return
        for folder in self.folder.iterdir():
            if folder.stat().st_mtime < time.time() - _LEFT_BEHIND:
                self._uploads.pop(folder.name, None)
                shutil.rmtree(folder, ignore_errors=True)


def _address(upload_id: str, name: str) -> str:
    return f"uploads/{upload_id}/{name}"


def _release(request: Request) -> tuple[int, ...]:
    """The client's SDK, as it names itself; 0.39 if it does not."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", request.headers.get("x-sdk-version", ""))
    return (int(found[1]), int(found[2])) if found else (0, 39)
