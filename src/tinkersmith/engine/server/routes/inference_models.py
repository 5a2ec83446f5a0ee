"""The name of a model in a request of the inference APIs -> weights to sample from, and texts.

A name is that of a base model, a tinker:// path, or both: `base;path`. Weights stay loaded until
others are used more often; the engine spills what does not fit into memory.
"""

import asyncio
import dataclasses
import datetime
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ImageChunk
from tinkersmith.engine.scheduling.operations import ModelOperations
from tinkersmith.engine.scheduling.queue import Future, Result
from tinkersmith.engine.scheduling.sessions import Sessions
from tinkersmith.engine.server.api_errors import ApiError
from tinkersmith.engine.server.fields import shown
from tinkersmith.engine.server.routes.chat_prompts import ModelTexts, read_texts
from tinkersmith.engine.storage.catalogue import (
    AdapterFolder,
    Catalogue,
    plain_name,
)
from tinkersmith.engine.storage.folders import TinkerPath, parse_path
from tinkersmith.peft_format import ADAPTER_WEIGHTS

MOST_LOADED = 32  # models that stay loaded for the next request
MOST_TEMPLATES = 16  # chat templates of requests that stay compiled
MOST_SEQUENCES = 1024  # that requests may wait for at once; more are refused with 429
_LOADING = "the engine is still loading; try again in a few seconds."
_TextsKey = tuple[Path, str | None]  # of a base model, and a chat template that is not its own
_Key = tuple[str, str, float]  # base model, path ("" for none), time of the checkpoint


@dataclass(slots=True)
class _Loaded:
    sampler_id: str
    loaded: Future
    users: int = 0  # requests that sample from it now


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What a model's name stands for."""

    name: str  # as the client wrote it
    base_model: str
    path: TinkerPath | Path | None  # of a checkpoint, or of an adapter's folder
    created: float  # when the checkpoint was saved: another one may get its path later
    texts: ModelTexts
    context: int | None  # tokens; None: not known before the model is loaded


@dataclass(slots=True)
class InferenceModels:
    """All models that the inference routes have been asked for. Used on the event loop only."""

    sessions: Sessions
    catalogue: Catalogue
    waiting: int = 0  # sequences that requests wait for
    _loaded: OrderedDict[_Key, _Loaded] = field(default_factory=OrderedDict[_Key, _Loaded])
    _texts: OrderedDict[_TextsKey, ModelTexts] = field(
        default_factory=OrderedDict[_TextsKey, ModelTexts]
    )
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def find(self, name: object, chat_template: str | None = None) -> NamedModel:
        """The model that a request names.

        Args:
            chat_template: one to use in place of the base model's.

        Raises:
            ApiError: there is no such model.
        """
        if not isinstance(name, str) or not name:
            raise ApiError(
                400, f"model is {shown(name)}; it must be a model's name.", param="model"
            )
        base, path, created = await self._resolve(name)
        # A thread's turn takes milliseconds while the engine thread computes: what is known already
        # is not asked for in one.
        folder = self.catalogue.folders.get(base)
        if folder is None:
            try:
                folder = await asyncio.to_thread(self.catalogue.folder, base)
            except Refused as refusal:
                raise _unknown(str(refusal)) from None
        texts = await self._texts_of(base, folder, chat_template)
        context = self.catalogue.contexts.get(base)
        if context is None:
            context = await asyncio.to_thread(self.catalogue.context, base)
        return NamedModel(name, base, path, created, texts, context)

    async def _texts_of(self, base: str, folder: Path, chat_template: str | None) -> ModelTexts:
        key, today = (folder, chat_template), datetime.date.today().isoformat()
        texts = self._texts.get(key)
        if texts is None:
            texts = await asyncio.to_thread(read_texts, base, folder, today, chat_template)
        elif texts.date != today:  # some templates write it
            texts = dataclasses.replace(texts, date=today)
        self._texts[key] = texts
        self._texts.move_to_end(key)
        foreign = [used for used in self._texts if used[1] is not None]
        for used in foreign[: max(len(foreign) - MOST_TEMPLATES, 0)]:
            del self._texts[used]
        return texts

    async def _resolve(self, name: str) -> tuple[str, TinkerPath | Path | None, float]:
        if (adapter := self.catalogue.adapters.get(name)) is not None:
            return adapter.base_model, adapter.folder, await asyncio.to_thread(_saved, adapter)
        start = name.find("tinker://")
        if start < 0:
            return plain_name(name), None, 0.0
        wanted, text = name[:start], name[start:]
        if wanted and not wanted.endswith(";"):
            raise _unknown(
                f"the model {shown(name)} is neither a name, nor a path, nor NAME;PATH with one "
                "semicolon."
            )
        try:
            path = parse_path(text)
            store = self.sessions.store
            created, base = await store.read(
                lambda: (store.checkpoint(path).created, store.run(path.run_id).base_model)
            )
        except Refused as refusal:
            raise _unknown(str(refusal)) from None
        if path.segment == "external_weights":
            raise _unknown(f"{path} is for download; name a sampler_weights path.")
        if wanted and plain_name(wanted[:-1]) != base:
            raise ApiError(400, f"{path} belongs to {base}, not to {wanted[:-1]}.", param="model")
        return base, path, created

    async def names(self) -> list[tuple[str, float]]:
        """The names of all models, and when each was made: base models, then checkpoints."""
        store = self.sessions.store
        stored = await store.read(store.checkpoints)
        bases = [(name, 0.0) for name in self.catalogue.folders]
        paths = [
            (str(checkpoint.path), checkpoint.created)
            for checkpoint in stored
            if checkpoint.path.segment == "sampler_weights"
        ]
        adapters = [(name, _saved(adapter)) for name, adapter in self.catalogue.adapters.items()]
        return [*bases, *adapters, *paths]

    async def prompt_length(
        self, model: NamedModel, tokens: Sequence[int], images: Sequence[ImageChunk]
    ) -> int:
        """How many tokens a prompt has with its images, which the base model's folder decides.

        Raises:
            ApiError: the engine is still loading, or an image cannot be read.
        """
        if not self.sessions.thread.is_ready:
            raise ApiError(503, _LOADING)

        def count(models: ModelOperations) -> Result:
            return {"tokens": models.prompt_length(model.base_model, tokens, images)}

        future = self.sessions.run("inference:count", count)
        await future.done.wait()
        result = future.result
        assert isinstance(result, dict)
        if "error" in result:
            raise job_error(result)
        return result["tokens"]

    @asynccontextmanager
    async def place(self, model: NamedModel, sequences: int) -> AsyncGenerator[str]:
        """A place for so many sequences; gives the id of the sampling client to send jobs to.

        Raises:
            ApiError: the engine is still loading, too much waits, or the weights cannot be loaded.
        """
        if not self.sessions.thread.is_ready:
            raise ApiError(503, _LOADING)
        if self.waiting and self.waiting + sequences > MOST_SEQUENCES:
            raise ApiError(
                429,
                f"{self.waiting:,} sequences are being sampled or wait; with this request's "
                f"{sequences:,} they would be more than {MOST_SEQUENCES:,}. Try again later.",
            )
        self.waiting += sequences
        try:
            entry = self._entry(model)
            entry.users += 1
            try:
                await entry.loaded.done.wait()
                result = entry.loaded.result
                if isinstance(result, dict) and "error" in result:
                    self._drop(entry)
                    raise job_error(result)
                yield entry.sampler_id
            finally:
                entry.users -= 1
        finally:
            self.waiting -= sequences

    def _entry(self, model: NamedModel) -> _Loaded:
        key = (model.base_model, str(model.path or ""), model.created)
        if key not in self._loaded:
            sampler_id = f"inference:{next(self._numbers)}"

            def load(models: ModelOperations) -> Result:
                models.add_sampler(sampler_id, model.base_model, model.path)
                return {}

            self._loaded[key] = _Loaded(sampler_id, self.sessions.run(sampler_id, load))
            idle = [entry for entry in self._loaded.values() if not entry.users]
            for entry in idle[: max(len(self._loaded) - MOST_LOADED, 0)]:
                if entry is not self._loaded[key]:
                    self._drop(entry)
        self._loaded.move_to_end(key)
        return self._loaded[key]

    def _drop(self, entry: _Loaded) -> None:
        for key in [key for key, other in self._loaded.items() if other is entry]:
            del self._loaded[key]
        name = entry.sampler_id
        self.sessions.run(name, lambda models: models.free_sampler(name))


def _saved(adapter: AdapterFolder) -> float:
    """When the adapter was written; 0 if it is gone, which loading it says."""
    try:
        return (adapter.folder / ADAPTER_WEIGHTS).stat().st_mtime
    except OSError:
        return 0.0


def job_error(result: dict[str, Any]) -> ApiError:
    """The error of a failed job as an answer: 400 if the client can change something."""
    return ApiError(400 if result.get("category") == "user" else 500, str(result["error"]))


def _unknown(sentence: str) -> ApiError:
    return ApiError(404, sentence, param="model", code="model_not_found")
