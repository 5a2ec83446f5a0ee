"""OpenAI's API: the list of models, and completions of plain prompts."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tinkersmith.engine.messages import SampleRequest, SampleResult
from tinkersmith.engine.server.api_errors import OPENAI, ApiError
from tinkersmith.engine.server.fields import Body, is_list, is_object, shown
from tinkersmith.engine.server.routes import inference_fields as fields
from tinkersmith.engine.server.routes.answer_text import (
    AnswerSyntax,
    TextPiece,
    TokenScore,
    token_text,
)
from tinkersmith.engine.server.routes.chat_prompts import ModelTexts
from tinkersmith.engine.server.routes.generation import AnswerPart, Generation, begin, collect
from tinkersmith.engine.server.routes.inference_models import InferenceModels, NamedModel
from tinkersmith.prompts.text_tokenizer import TextTokenizer

MOST_ANSWERS = 128  # n
MOST_PROMPTS = 512  # of one request
MOST_TOKENS = 2**31 - 1
MOST_ALTERNATIVES = 20
# Parameters that change nothing with these values; the later ones are those of other servers.
OPENAI_NEUTRAL: dict[str, tuple[object, ...]] = {
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
    "repetition_penalty": (1, 1.0),
    "length_penalty": (1, 1.0),
    "min_p": (0, 0.0),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "use_beam_search": (False,),
}
# Parameters about the account, which change no answer.
ACCOUNT = (
    *("user", "metadata", "service_tier", "safety_identifier"),
    *("prompt_cache_key", "prompt_cache_retention"),
)


@dataclass(frozen=True, slots=True)
class OpenAISampling:
    """The parameters that both kinds of completions have."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool

    def request(self, prompt: list[int], ends: Sequence[int | str] = ()) -> SampleRequest:
        return SampleRequest(
            prompt=prompt,
            num_samples=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=[*ends, *self.stops],
            stop_at_ends=True,
        )


SAMPLING = (
    *("model", "n", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options"),
    *ACCOUNT,
)


def read_sampling(body: Body) -> OpenAISampling:
    stream = fields.switch(body, "stream")
    options = body.get("stream_options")
    if options is not None:
        if not is_object(options) or not stream:
            raise ApiError(
                400,
                f"stream_options is {shown(options)}; it must be an object, and needs stream.",
                param="stream_options",
            )
        fields.check_known(options, ["include_usage"], {"include_obfuscation": (False,)})
    return OpenAISampling(
        n=fields.whole(body, "n", 1, 1, MOST_ANSWERS) or 1,
        temperature=fields.real(body, "temperature", 1.0, 0.0, 2.0),
        top_p=fields.share(body),
        top_k=fields.whole(body, "top_k", -1, -1, MOST_TOKENS) or -1,
        seed=fields.whole(body, "seed", None, -fields.LARGEST_SEED, fields.LARGEST_SEED),
        stops=fields.stop_strings(body, "stop"),
        stream=stream,
        include_usage=fields.switch(options or {}, "include_usage"),
    )


def usage(generation: Generation) -> dict[str, int]:
    prompt, sampled = generation.prompt_tokens, generation.sampled_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": sampled,
        "total_tokens": prompt + sampled,
    }


class OpenAICompletions:
    """The routes /models and /completions."""

    def __init__(self, models: InferenceModels) -> None:
        self.models = models

    async def list_models(self, request: Request, body: Body) -> Response:
        listed = [_model_json(name, created) for name, created in await self.models.names()]
        return JSONResponse({"object": "list", "data": listed})

    async def one_model(self, request: Request, body: Body) -> Response:
        model = await self.models.find(request.path_params["name"])
        return JSONResponse(_model_json(model.name, model.created))

    async def completions(self, request: Request, body: Body) -> Response:
        known = (*SAMPLING, "prompt", "max_tokens", "echo", "logprobs", "best_of")
        fields.check_known(body, known, {**OPENAI_NEUTRAL, "suffix": ("",)})
        sampling = read_sampling(body)
        wants = _read_wants(body, sampling.n)
        model = await self.models.find(body.get("model"))
        prompts = _prompts(body.get("prompt"), model.texts)
        requests = [_request(sampling, wants, prompt, model.context) for prompt in prompts]
        # Harnesses that score a prompt by echo take the last score for the sampled token's.
        syntax = AnswerSyntax(stops=sampling.stops, scores_end=True)
        generation = Generation(self.models, model, requests, syntax, live=sampling.stream)
        answer = _Completion(model, sampling, wants, generation)
        if sampling.stream:
            if wants.echo and wants.logprobs is not None:
                raise ApiError(
                    400, "echo with logprobs cannot be streamed; leave stream out.", param="stream"
                )
            parts = await begin(generation, request)
            return fields.event_stream(OPENAI + "/", answer.events(parts))
        pieces = await collect(generation, request)
        return JSONResponse(answer.whole(pieces))


def _model_json(name: str, created: float) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "tinkersmith"}


@dataclass(frozen=True, slots=True)
class _Wants:
    """What a completion returns besides new text."""

    max_tokens: int
    echo: bool
    logprobs: int | None


def _read_wants(body: Body, n: int) -> _Wants:
    echo = fields.switch(body, "echo")
    lowest = 0 if echo else 1  # 0: only the prompt's log-probabilities are wanted
    best_of = fields.whole(body, "best_of", n, 1, MOST_ANSWERS)
    if best_of != n:
        raise ApiError(400, f"best_of is {best_of}; it must be n, which is {n}.", param="best_of")
    max_tokens = fields.whole(body, "max_tokens", 16, lowest, MOST_TOKENS)
    return _Wants(
        max_tokens=16 if max_tokens is None else max_tokens,
        echo=echo,
        logprobs=fields.whole(body, "logprobs", None, 0, MOST_ALTERNATIVES),
    )


def _prompts(value: object, texts: ModelTexts) -> list[list[int]]:
    """One prompt or several, each text or token ids."""
    many = is_list(value) and bool(value) and not isinstance(value[0], int)
    prompts = cast("list[object]", value) if many else [value]
    if len(prompts) > MOST_PROMPTS:
        raise ApiError(
            400, f"prompt has {len(prompts):,} prompts; at most {MOST_PROMPTS}.", param="prompt"
        )
    read: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            tokens = texts.completion_prompt(prompt)
        elif is_list(prompt) and all(type(token) is int for token in prompt):
            tokens = cast("list[int]", prompt)
        else:
            raise ApiError(
                400,
                f"prompt is {shown(value)}; it must be a text, a list of token ids, or a list of "
                "such.",
                param="prompt",
            )
        if not tokens:
            raise ApiError(400, "the prompt is empty; it needs at least one token.", param="prompt")
        read.append(tokens)
    return read


def _request(
    sampling: OpenAISampling, wants: _Wants, prompt: list[int], context: int | None
) -> SampleRequest:
    base = sampling.request(prompt)
    wants_prompt = wants.echo and wants.logprobs is not None
    return SampleRequest(
        prompt=base.prompt,
        num_samples=base.num_samples,
        # The engine samples at least one token; with max_tokens 0 it is left out.
        max_tokens=fields.room_for(max(wants.max_tokens, 1), prompt, context, "prompt"),
        temperature=base.temperature,
        top_p=base.top_p,
        top_k=base.top_k,
        seed=base.seed,
        stop=base.stop,
        stop_at_ends=True,
        prompt_logprobs=wants_prompt,
        topk_prompt_logprobs=(wants.logprobs or 0) if wants_prompt else 0,
        topk_sample_logprobs=wants.logprobs or 0,
    )


class _Completion:
    """One request's answer, whole or as events."""

    def __init__(
        self, model: NamedModel, sampling: OpenAISampling, wants: _Wants, generation: Generation
    ) -> None:
        self._tokenizer = model.texts.tokenizer
        self._sampling, self._wants, self._generation = sampling, wants, generation
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model.name,
        }

    def _prompt_text(self, index: int) -> str:
        if not self._wants.echo:
            return ""
        return self._tokenizer.decode(self._prompt(index))

    def _prompt(self, index: int) -> list[int]:
        return self._generation.requests[index // self._sampling.n].prompt

    def whole(self, pieces: Sequence[Sequence[TextPiece]]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for index, own in enumerate(pieces):
            answer = self._generation.answers[index]
            echoed = self._prompt_text(index)
            text, reason = "".join(piece.text for piece in own), answer.reason
            scores = [score for piece in own for score in piece.scores]
            if not self._wants.max_tokens:
                text, scores, reason = "", [], "length"
            logprobs = None
            if self._wants.logprobs is not None:
                logprobs = _empty_logprobs()
                if self._wants.echo:
                    result = self._generation.results[index // self._sampling.n]
                    _add_prompt_scores(logprobs, self._tokenizer, self._prompt(index), result)
                self._add_scores(logprobs, scores, len(echoed))
            choices.append(
                {
                    "index": index,
                    "text": echoed + text,
                    "logprobs": logprobs,
                    "finish_reason": reason,
                }
            )
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        counts = usage(self._generation)
        if self._wants.max_tokens:
            return counts
        return counts | {"completion_tokens": 0, "total_tokens": counts["prompt_tokens"]}

    async def events(self, parts: AsyncIterator[AnswerPart]) -> AsyncIterator[str]:
        include = self._sampling.include_usage
        tail = {"usage": None} if include else {}
        offsets: dict[int, int] = {}
        ended: set[int] = set()
        async for part in parts:
            text, index = part.piece.text, part.index
            if index not in offsets:
                echoed = self._prompt_text(index)
                offsets[index] = len(echoed)
                text = echoed + (text if self._wants.max_tokens else "")
            elif not self._wants.max_tokens:
                text = ""
            reason = part.reason if self._wants.max_tokens else "length"
            ends = part.reason is not None and index not in ended
            if not (text or part.piece.scores or ends):
                continue
            logprobs = None
            if self._wants.logprobs is not None:
                logprobs = _empty_logprobs()
                self._add_scores(logprobs, part.piece.scores, offsets[index])
            if ends:
                ended.add(index)
            choice = {
                "index": index,
                "text": text,
                "logprobs": logprobs,
                "finish_reason": reason if ends else None,
            }
            yield fields.event({**self._head, "choices": [choice], **tail})
        if include:
            yield fields.event({**self._head, "choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"

    def _add_scores(
        self, logprobs: dict[str, Any], scores: Sequence[TokenScore], offset: int
    ) -> None:
        for score in scores:
            logprobs["tokens"].append(_spelled(self._tokenizer, score.token))
            logprobs["token_logprobs"].append(score.logprob)
            logprobs["top_logprobs"].append(
                _alternatives(self._tokenizer, score.topk, score.token, score.logprob)
            )
            logprobs["text_offset"].append(offset + score.start)


def _empty_logprobs() -> dict[str, Any]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _add_prompt_scores(
    logprobs: dict[str, Any], tokenizer: TextTokenizer, prompt: list[int], result: SampleResult
) -> None:
    assert result.prompt_logprobs is not None
    for place, token in enumerate(prompt):
        logprobs["tokens"].append(_spelled(tokenizer, token))
        own = None if place == 0 else float(result.prompt_logprobs[place])
        logprobs["token_logprobs"].append(own)
        top: list[tuple[int, float]] = []
        if result.topk_prompt_logprobs is not None:
            ids, values = result.topk_prompt_logprobs
            top = list(zip(ids[place].tolist(), values[place].tolist(), strict=True))
        logprobs["top_logprobs"].append(
            None if own is None else _alternatives(tokenizer, top, token, own)
        )
        logprobs["text_offset"].append(len(tokenizer.decode(prompt[:place])))


def _alternatives(
    tokenizer: TextTokenizer, top: Sequence[tuple[int, float]], token: int, logprob: float
) -> dict[str, float]:
    """The likeliest tokens, and the text's own one, which may be one more."""
    named = {_spelled(tokenizer, other): value for other, value in top}
    return named | {_spelled(tokenizer, token): logprob}


def _spelled(tokenizer: TextTokenizer, token: int) -> str:
    """A token as completions name it: half a character by its bytes."""
    text, raw = token_text(tokenizer, token)
    if text.encode() == raw:
        return text
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
