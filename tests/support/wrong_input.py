"""Calls of the SDK that are wrong, each with the sentence that answers it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tinker

from tests.support.clients import new_client
from tests.support.engine import MODEL, RunningEngine, datum, random_datums

BATCHES = [random_datums(2, seed=seed) for seed in range(4)]
NAN = float("nan")
T = [1, 2, 3]  # tokens of a datum whose inputs are wrong

as_input = tinker.ModelInput.from_ints


@dataclass
class World:
    """Clients of one session. The bystander sends no wrong input."""

    engine: RunningEngine
    service: tinker.ServiceClient
    client: tinker.TrainingClient
    sampler: tinker.SamplingClient
    rest: "tinker.RestClient"
    bystander: tinker.TrainingClient


def new_world(
    engine: RunningEngine, service: tinker.ServiceClient, rest: "tinker.RestClient"
) -> World:
    sampler = service.create_sampling_client(base_model=MODEL).result()
    client, bystander = new_client(service, seed=1), new_client(service, seed=2)
    return World(engine, service, client, sampler, rest, bystander)


@dataclass(frozen=True)
class Case:
    name: str
    call: Callable[[World], Any]
    sentence: str  # which the answer contains
    category: str = "user"  # of a failed future
    status: int = 0  # of a refused request; 0: the future fails


def training(name: str, data: list, sentence: str, loss: Any = "cross_entropy", **config) -> Case:
    def call_it(world: World) -> Any:
        return world.client.forward_backward(data, loss, config or None).result()

    return Case(name, call_it, sentence)


def inputs(tokens: Any = T, **arrays: Any) -> list[tinker.Datum]:
    tensors = {name: tinker.TensorData.from_numpy(np.asarray(v)) for name, v in arrays.items()}
    return [tinker.Datum(model_input=as_input(tokens), loss_fn_inputs=tensors)]


def step(name: str, sentence: str, **params: float) -> Case:
    """A wrong optimizer step; the gradients before it are those of a wrong batch."""

    def call_it(world: World) -> Any:
        return world.client.optim_step(tinker.AdamParams(**params)).result()

    return Case(name, call_it, sentence)


def sampling(name: str, sentence: str, tokens: Any = T, count: int = 1, **params: Any) -> Case:
    def call_it(world: World) -> Any:
        prompt = tokens if isinstance(tokens, tinker.ModelInput) else as_input(tokens)
        wanted = tinker.SamplingParams(**{"max_tokens": 4, **params})
        return world.sampler.sample(prompt, count, wanted).result()

    return Case(name, call_it, sentence)


def refused(name: str, call_it: Callable[[World], Any], sentence: str, status: int = 400) -> Case:
    return Case(name, call_it, sentence, "", status)


def ones(count: int, kind: type = np.float32) -> np.ndarray:
    return np.ones(count, kind)


PICTURE = tinker.types.ImageChunk(data=b"x", format="png", expected_tokens=1)
ELSEWHERE = tinker.types.ImageAssetPointerChunk(format="png", location="https://a/b.png")
PPO: dict[str, Any] = {"target_tokens": T, "logprobs": ones(3), "advantages": ones(3)}
ABSENT = "tinker://a/weights/b"


CASES = [
    # ---- batches
    training("a token beyond the vocabulary", [datum([1, 2, 100_000, 3])], "100000 is not in the"),
    training("a negative token", [datum([1, -2, 3])], "-2 is not in the vocabulary"),
    training("a target of 41 bits", inputs(target_tokens=[1, 2, 2**40]), "is not in the vocab"),
    training("fewer targets than tokens", inputs(target_tokens=[1, 2]), "has shape [2], but model"),
    training(
        "fewer weights than targets",
        inputs(target_tokens=T, weights=ones(2)),
        "weights has shape [2], but target_tokens has [3]",
    ),
    training("no targets", inputs(weights=ones(3)), "needs loss_fn_inputs['target_tokens']"),
    training("float targets", inputs(target_tokens=ones(3)), "it must be int64"),
    training("too long a context", [datum([1] * 514)], "has 513 tokens; tiny takes at most 512"),
    training("no tokens", inputs([], target_tokens=ones(0, np.int64)), "has no tokens"),
    training(
        "NaN in weights",
        inputs(target_tokens=T, weights=np.asarray([1, NAN, 1], np.float32)),
        "weights holds a value that is not finite",
    ),
    training(
        "weights whose sum overflows",
        inputs(target_tokens=T, weights=np.full(3, 3e38, np.float32)),
        "the loss of datum 0 is inf",
    ),
    training(
        "infinite advantages",
        inputs(**PPO | {"advantages": np.full(3, np.inf, np.float32)}),
        "advantages holds a value that is not finite",
        "ppo",
    ),
    training("the second datum", [datum(T), datum([1, 999, 3])], "datum 1, model_input: token id"),
    training("an unknown loss", [datum(T)], "loss_fn 'no_such' is not one of", "no_such"),
    training("a loss without its mask", inputs(**PPO), "sequence_ratio_mask", "gspo"),
    training("a NaN threshold", inputs(**PPO), "finite number", "ppo", clip_low_threshold=NAN),
    training("an unknown setting", [datum(T)], "knows: none", beta=0.1),
    training(
        "a picture",
        [tinker.Datum(model_input=tinker.ModelInput(chunks=[PICTURE]), loss_fn_inputs={})],
        "datum 0 has an image, and tiny reads text only here",
    ),
    # ---- other numbered operations
    step("a NaN learning rate", "learning_rate is missing, NaN or infinite", learning_rate=NAN),
    step("an infinite clip", "grad_clip_norm is missing, NaN", grad_clip_norm=math.inf),
    step("a negative learning rate", "learning_rate is -1", learning_rate=-1.0),
    step("a beta of 1", "beta1 is 1.0; it must be from 0 to below 1", beta1=1.0),
    Case("an odd name", lambda w: w.client.save_state("a/b").result(), "must be 1 to 128 letters"),
    Case(
        "no name",
        lambda w: w.client.save_weights_for_sampler("").result(),
        "path is ''; it must be a non-empty string",
    ),
    Case(
        "a negative time to live",
        lambda w: w.client.save_state("x", ttl_seconds=-1).result(),
        "ttl_seconds is -1",
    ),
    Case("no path", lambda w: w.client.load_state("x").result(), "is not a tinker path"),
    Case("an absent path", lambda w: w.client.load_state(ABSENT).result(), "does not exist here"),
    # ---- new clients
    refused(
        "an unknown model",
        lambda w: w.service.create_lora_training_client(base_model="nowhere").result(),
        "base model 'nowhere' is not offered here; offered: ",
    ),
    refused("a rank of 0", lambda w: new_client(w.service, rank=0), "rank is 0"),
    refused("a huge rank", lambda w: new_client(w.service, rank=10**6), "between 1 and 512"),
    refused("a huge seed", lambda w: new_client(w.service, seed=2**70), "at most 64 bits"),
    refused(
        "an absent state",
        lambda w: w.service.create_training_client_from_state(ABSENT).result(),
        "does not exist here",
        404,
    ),
    refused(
        "an unknown sampler",
        lambda w: w.service.create_sampling_client(model_path=ABSENT).result(),
        "does not exist here",
        404,
    ),
    refused(
        "a sampler's malformed path",
        lambda w: w.service.create_sampling_client(model_path="tinker://a").result(),
        "is not a tinker path",
    ),
    refused(
        "a sampler of an unknown model",
        lambda w: w.service.create_sampling_client(base_model="nowhere").result(),
        "is not offered here",
    ),
    refused(
        "a wrong key",
        lambda w: new_client(tinker.ServiceClient(base_url=w.engine.url, api_key="tml-other")),
        "the API key is not this engine's key",
        401,
    ),
    # ---- sampling
    sampling("a prompt beyond the vocabulary", "99999 is not in the", [1, 99_999]),
    sampling("a prompt token of 71 bits", "is not in the vocabulary", [2**70]),
    sampling("too long a prompt", "has 600 tokens; tiny takes at most 512", [1] * 600),
    sampling("no token to answer with", "max_tokens is 0", max_tokens=0),
    sampling("no prompt", "the prompt has no tokens", []),
    sampling("a negative temperature", "temperature is -1.0", temperature=-1.0),
    sampling("a top_p of 0", "top_p is 0.0", top_p=0.0),
    sampling("a top_k of -2", "top_k is -2", top_k=-2),
    refused("no samples", sampling("", "", count=0).call, "num_samples is 0"),
    refused("a billion samples", sampling("", "", count=10**9).call, "num_samples is 1000000000"),
    refused("an empty stop", sampling("", "", stop="").call, "non-empty strings"),
    sampling(
        "a picture in a prompt",
        "the prompt has an image, and tiny reads text only here",
        tinker.ModelInput(chunks=[PICTURE]),
    ),
    refused(
        "a picture elsewhere",
        sampling("", "", tinker.ModelInput(chunks=[ELSEWHERE])).call,
        "fetches no images; send the bytes of the file",
    ),
    # ---- listings
    refused(
        "an unknown run", lambda w: w.rest.get_training_run("x").result(), "no training run x", 404
    ),
    refused(
        "checkpoints of an unknown run",
        lambda w: w.rest.list_checkpoints("x").result(),
        "no training run x",
        404,
    ),
    refused("an unknown session", lambda w: w.rest.get_session("x").result(), "no session x", 404),
    refused("an unknown sampler id", lambda w: w.rest.get_sampler("x").result(), "sampler x", 404),
    refused(
        "a checkpoint's malformed id",
        lambda w: w.rest.delete_checkpoint("x", "y").result(),
        "'y' is not a checkpoint id",
    ),
    refused(
        "a malformed path's weights",
        lambda w: w.rest.get_weights_info_by_tinker_path("tinker://a/b").result(),
        "is not a tinker path",
    ),
    refused(
        "a negative limit",
        lambda w: w.rest.list_training_runs(limit=-1).result(),
        "limit is '-1'",
    ),
    refused(
        "a time to live of ages",
        lambda w: w.rest.set_checkpoint_ttl_from_tinker_path(ABSENT, 10**12).result(),
        "(ten years)",
    ),
]
