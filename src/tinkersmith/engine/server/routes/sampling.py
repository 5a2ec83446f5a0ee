"""Routes of sampling clients.

The work itself is behind `ModelOperations`, on the engine thread.
"""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.queue import Result
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server import fields, wire
from tinkersmith.engine.server.http import Routes, read_json
from tinkersmith.engine.storage.catalogue import Catalogue, plain_name
from tinkersmith.engine.storage.folders import TinkerPath, parse_path


class SamplingRoutes:
    """Sampling clients, and their requests."""

    def __init__(self, sessions: Sessions, catalogue: Catalogue) -> None:
        self.sessions = sessions
        self.catalogue = catalogue

    def routes(self) -> Routes:
        return [
            ("POST", "/create_sampling_session", self.create_sampling_session),
            ("GET", "/samplers/{sampler_id}", self.sampler),
            ("POST", "/asample", self.asample),
        ]

    async def create_sampling_session(self, request: Request) -> Response:
        body = await read_json(request)
        path = None
        if body.get("model_path") is not None:
            path = parse_path(fields.string(body, "model_path"))
            base_model = await self._base_model_of(path)
            if path.segment == "external_weights":
                raise Refused(f"{path} is for download; sample from a sampler_weights path.")
        else:
            base_model = plain_name(fields.string(body, "base_model"))
        fetch = await self.catalogue.fetcher(base_model)
        sampler_id, loaded, new = await self.sessions.create_sampler(
            fields.string(body, "session_id"),
            fields.sequence_number(body, "sampling_session_seq_id"),
            base_model,
            None if path is None else str(path),
        )

        def load(models: ModelOperations) -> Result:
            models.add_sampler(sampler_id, base_model, path)
            return {}

        if new:
            self.sessions.load_sampler(sampler_id, loaded, fetch, load)
        # Loaded now, not at the first request: deleting the checkpoint later changes nothing.
        await loaded.done.wait()
        if isinstance(loaded.result, dict) and "error" in loaded.result:
            raise Refused(loaded.result["error"])
        return JSONResponse({"type": "create_sampling_session", "sampling_session_id": sampler_id})

    async def _base_model_of(self, path: TinkerPath) -> str:
        store = self.sessions.store

        def look_up() -> str:
            store.checkpoint(path)  # is there such a checkpoint?
            return store.run(path.run_id).base_model

        return await store.read(look_up)

    async def sampler(self, request: Request) -> Response:
        store, sampler_id = self.sessions.store, request.path_params["sampler_id"]
        stored = await store.read(lambda: store.sampler(sampler_id))
        return JSONResponse(
            {
                "sampler_id": stored.id,
                "base_model": stored.base_model,
                "model_path": stored.model_path,
            }
        )

    async def asample(self, request: Request) -> Response:
        body = await read_json(request)
        sampler_id = fields.string(body, "sampling_session_id")
        seq_id = fields.sequence_number(body, "seq_id", fields.MAX_SAMPLE_NUMBER)
        sample_request = wire.read_sample_request(body)
        layout = sample_request.target_layout
        answer = partial(wire.sample_output, target_layout=layout)
        request_id = self.sessions.sample(sampler_id, seq_id, sample_request, answer)
        ids = [f"{request_id}:{number}" for number in range(sample_request.num_samples)]
        return JSONResponse({"request_id": request_id, "sample_sequence_ids": ids})
