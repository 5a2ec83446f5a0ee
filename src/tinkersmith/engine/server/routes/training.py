"""Routes of training clients: create, train, save, load.

The work itself is behind `ModelOperations`, on the engine thread.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ADAMW, BatchRequest, LoraConfig
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.queue import DiskWork, Result, Work
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields, wire
from tinkersmith.engine.server.age import check_recipients
from tinkersmith.engine.server.bodies import json_address, open_batch, refused_batch
from tinkersmith.engine.server.fields import Body
from tinkersmith.engine.server.http import BadBody, Handler, Routes, read_body, read_json
from tinkersmith.engine.storage.catalogue import Catalogue, plain_name
from tinkersmith.engine.storage.folders import TinkerPath, parse_path
from tinkersmith.engine.storage.rows import StoredRun

NumberedWork = Callable[[str, Body], Awaitable[Work]]  # takes the model's id and the request's body

INITIAL_ADAPTER = "tinkersmith.adapter"  # metadata of a training client
_DECODE_INLINE = 64 * 1024  # bytes; larger bodies are decoded off the event loop


class TrainingRoutes:
    """Training clients: their creation, and their numbered operations."""

    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue

    def routes(self) -> Routes:
        return [
            ("POST", "/create_model", self.create_model),
            ("POST", "/get_info", self.get_info),
            ("POST", "/forward_backward", self.forward_backward),
            ("POST", "/optim_step", self._numbered(self.optim_step)),
            ("POST", "/save_weights", self._numbered(self.save_weights)),
            ("POST", "/save_weights_for_sampler", self._numbered(self.save_weights_for_sampler)),
            ("POST", "/save_weights_external", self._numbered(self.save_weights_external)),
            ("POST", "/load_weights", self.load_weights),
        ]

    # ---- the client itself

    async def create_model(self, request: Request) -> Response:
        body = await read_json(request)
        base_model = plain_name(fields.string(body, "base_model"))
        optimizer = wire.read_optimizer(body)
        lora = wire.read_lora_config(body)
        only_graded = _only_graded(body)
        adapter = self._initial_adapter(body, base_model)

        def create(models: ModelOperations, model_id: str) -> Result:
            if adapter is None:
                models.create(
                    model_id, base_model, lora, optimizer=optimizer, only_graded=only_graded
                )
            else:
                models.create_from(
                    model_id,
                    base_model,
                    lora,
                    adapter,
                    False,
                    optimizer=optimizer,
                    only_graded=only_graded,
                )
            return {"model_id": model_id, "type": "create_model"}

        return await self._new_client(body, base_model, lora, optimizer, create)

    async def get_info(self, request: Request) -> Response:
        model_id = fields.string(await read_json(request), "model_id")
        self.sessions.operations(model_id)  # is there such a client?
        run = await self._run(model_id)

        def info(models: ModelOperations) -> Result:
            models.get(model_id)  # was it created?
            folder = self.catalogue.folder(run.base_model)
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            return {
                "type": "get_info",
                "model_id": model_id,
                "is_lora": True,
                "lora_rank": run.lora.rank,
                "model_name": run.base_model,
                "optimizer_config": wire.optimizer_config(run.optimizer),
                "model_data": {
                    "arch": config["model_type"],
                    "model_name": run.base_model,
                    # A folder: the SDK then finds the tokenizer without a hub.
                    "tokenizer_id": str(folder),
                },
            }

        future = self.sessions.run(model_id, info)
        await future.done.wait()
        assert isinstance(future.result, dict)
        if "error" in future.result:
            raise Refused(future.result["error"])
        return JSONResponse(future.result)

    def _initial_adapter(self, body: Body, base_model: str) -> Path | None:
        """The folder of the adapter that the client starts from, as its metadata name one.

        The SDK has no call that starts from an adapter which is not a checkpoint.
        """
        metadata = fields.optional_strings(body, "user_metadata") or {}
        if (name := metadata.get(INITIAL_ADAPTER)) is None:
            return None
        if (offered := self.catalogue.adapters.get(name)) is None:
            raise Refused(f"{INITIAL_ADAPTER} is {name!r}; the engine was started without it.")
        if offered.base_model != base_model:
            raise Refused(f"{name} belongs to {offered.base_model}, not to {base_model}.")
        return offered.folder

    async def _run(self, model_id: str) -> StoredRun:
        store = self.sessions.store
        return await store.read(lambda: store.run(model_id))

    async def _new_client(
        self,
        body: Body,
        base_model: str,
        lora: LoraConfig,
        optimizer: str,
        create: Callable[[ModelOperations, str], Result],
    ) -> Response:
        fetch = await self.catalogue.fetcher(base_model)
        model_id, request_id = await self.sessions.create_model(
            fields.string(body, "session_id"),
            fields.sequence_number(body, "model_seq_id"),
            base_model,
            lora,
            optimizer,
            fields.optional_strings(body, "user_metadata"),
            fetch,
            create,
        )
        return JSONResponse({"request_id": request_id, "model_id": model_id})

    # ---- numbered operations

    async def forward_backward(self, request: Request) -> Response:
        encoding = request.headers.get("content-encoding", "")
        try:
            body = await read_body(request)
        except BadBody as refusal:
            batch = wire.read_batch(refused_batch(refusal.head, encoding, str(refusal)))
        else:
            if encoding or len(body) > _DECODE_INLINE:
                batch = await asyncio.to_thread(_read_batch, body, encoding)
            else:
                batch = _read_batch(body, encoding)
            del body
        reported = self.sessions.operations(batch.model_id).failure_reported
        return self._operate(
            request,
            batch.model_id,
            batch.seq_id,
            lambda models: wire.batch_output(models.batch(batch, reported)),
        )

    def _numbered(self, work: NumberedWork) -> Handler:
        """A handler that queues what `work` makes of a JSON body."""

        async def handle(request: Request) -> Response:
            try:
                body = await read_json(request)
            except BadBody as refusal:
                return self._refuse(request, refusal)
            return await self._begin(request, body, work)

        return handle

    async def _begin(self, request: Request, body: Body, work: NumberedWork) -> Response:
        model_id = fields.string(body, "model_id")
        if body.get("seq_id") is None:  # the SDK counts; a request without a number is the next one
            body = {**body, "seq_id": self.sessions.operations(model_id).next_seq}
        seq_id = fields.sequence_number(body, "seq_id")
        return self._operate(request, model_id, seq_id, await work(model_id, body))

    def _refuse(self, request: Request, refusal: BadBody) -> Response:
        """Fail the operation whose body cannot be read, if its address can be found."""
        address = json_address(refusal.head)
        if address is None:
            raise refusal
        return self._operate(request, *address, _failing(Refused(str(refusal))))

    def _operate(self, request: Request, model_id: str, seq_id: int, run: Work) -> Response:
        name = request.url.path.rpartition("/")[2]
        request_id = self.sessions.operate(model_id, seq_id, name, run)
        return JSONResponse({"request_id": request_id, "model_id": model_id})

    async def optim_step(self, model_id: str, body: Body) -> Work:
        def step(models: ModelOperations) -> Result:
            models.check_step(model_id)
            params = wire.read_optim_params(body)
            return {"metrics": wire.json_numbers(models.optim_step(model_id, params))}

        return step

    async def save_weights(self, model_id: str, body: Body) -> Work:
        def save(models: ModelOperations) -> DiskWork:
            path = TinkerPath(model_id, "weights", _name(body))
            overwrite = fields.flag(body, "overwrite", False)
            finish = models.save(
                model_id, path, optimizer=True, overwrite=overwrite, **_labels(body)
            )
            return _saving(finish, {"path": str(path), "type": "save_weights"})

        return save

    async def save_weights_for_sampler(self, model_id: str, body: Body) -> Work:
        if body.get("path") is None and body.get("sampling_session_seq_id") is not None:
            return await self._snapshot(model_id, body)

        def save(models: ModelOperations) -> DiskWork:
            path = TinkerPath(model_id, "sampler_weights", _name(body))
            finish = models.save(model_id, path, optimizer=False, **_labels(body))
            return _saving(finish, {"path": str(path), "type": "save_weights_for_sampler"})

        return save

    async def _snapshot(self, model_id: str, body: Body) -> Work:
        """Create a sampling client from the weights at that time, without a checkpoint."""
        self.sessions.operations(model_id)
        try:
            run = await self._run(model_id)
            sampler_id, loaded, _ = await self.sessions.create_sampler(
                run.session_id,
                fields.sequence_number(body, "sampling_session_seq_id"),
                run.base_model,
                None,
            )
        except Exception as error:
            return _failing(error)
        loaded.finish({})  # no client knows its id before the operation has run

        def take(models: ModelOperations) -> Result:
            models.add_snapshot(sampler_id, model_id)
            return {"sampling_session_id": sampler_id, "type": "save_weights_for_sampler"}

        return take

    async def save_weights_external(self, model_id: str, body: Body) -> Work:
        def save(models: ModelOperations) -> DiskWork:
            path = TinkerPath(model_id, "external_weights", fields.string(body, "path"))
            recipients = fields.string_list(body, "age_encryption_recipients")
            check_recipients(recipients)
            finish = models.save(
                model_id,
                path,
                optimizer=False,
                overwrite=True,
                recipients=recipients,
                **_labels(body),
            )
            return _saving(
                finish, {"path": str(path), "type": "save_weights_external"}, size="size_bytes"
            )

        return save

    async def load_state(self, model_id: str, body: Body) -> Work:
        def load(models: ModelOperations) -> Result:
            path = parse_path(fields.string(body, "path"))
            models.load(model_id, path, fields.flag(body, "optimizer", False))
            return {"path": str(path), "type": "load_weights"}

        return load

    async def load_weights(self, request: Request) -> Response:
        """With a session_id, create a client from a checkpoint; else queue a numbered operation."""
        try:
            body = await read_json(request)
        except BadBody as refusal:
            return self._refuse(request, refusal)
        if body.get("session_id") is not None:
            return await self._client_from_state(body)
        return await self._begin(request, body, self.load_state)

    async def _client_from_state(self, body: Body) -> Response:
        path = parse_path(fields.string(body, "path"))
        store = self.sessions.store

        def look_up() -> StoredRun:
            store.checkpoint(path)  # is there such a checkpoint?
            return store.run(path.run_id)

        source = await store.read(look_up)
        named = body.get("base_model")
        if named is not None and plain_name(fields.string(body, "base_model")) != source.base_model:
            raise Refused(f"{path} belongs to {source.base_model}, not to {named}.")
        with_optimizer = fields.flag(body, "optimizer", False)
        kept = source.optimizer if with_optimizer else ADAMW
        optimizer = wire.read_optimizer(body, kept)
        if with_optimizer and optimizer != kept:
            raise Refused(
                f"{path} holds an optimizer state of {kept}, which {optimizer} cannot go on with; "
                "load it without the optimizer."
            )
        only_graded = _only_graded(body)

        def create(models: ModelOperations, model_id: str) -> Result:
            models.create_from(
                model_id,
                source.base_model,
                source.lora,
                path,
                with_optimizer,
                optimizer=optimizer,
                only_graded=only_graded,
            )
            return {"path": str(path), "model_id": model_id, "type": "load_weights"}

        return await self._new_client(body, source.base_model, source.lora, optimizer, create)


def _read_batch(body: bytes, encoding: str) -> BatchRequest:
    return wire.read_batch(open_batch(body, encoding))


def _saving(
    finish: Callable[[], int], answer: dict[str, object], size: str | None = None
) -> DiskWork:
    """Finish a save off the engine thread, and answer; `size` names the field for its bytes."""

    def run() -> Result:
        written = finish()
        return answer if size is None else {**answer, size: written}

    return DiskWork(run)


def _name(body: Body) -> str:
    """The name of a new checkpoint; without one, the number of its request."""
    if body.get("path") is None:
        return f"{fields.sequence_number(body, 'seq_id'):06}"
    return fields.string(body, "path")


class _Labels(TypedDict):
    ttl_seconds: int | None
    user_metadata: dict[str, str] | None


def _labels(body: Body) -> _Labels:
    return {
        "ttl_seconds": fields.ttl(body),
        "user_metadata": fields.optional_strings(body, "user_metadata"),
    }


def _only_graded(body: Body) -> bool:
    """Whether the client does not read log-probabilities of positions without a weight."""
    metadata = fields.optional_strings(body, "user_metadata") or {}
    positions = metadata.get("tinkersmith.logprobs", "all")
    if positions not in ("all", "weighted"):
        raise Refused(f"tinkersmith.logprobs is {positions!r}; it must be 'all' or 'weighted'.")
    return positions == "weighted"


def _failing(error: Exception) -> Work:
    def fail(models: ModelOperations) -> Result:
        raise error

    return fail
