"""What training means, through the unmodified SDK, against plain transformers and closed forms."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tinker.types import LossFnType
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.support.clients import new_client, train
from tests.support.engine import RunningEngine, random_datums
from tinkersmith.engine.storage.folders import parse_path
from tinkersmith.engine.storage.store import Store

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> PreTrainedModel:
    """The base model as transformers loads it, in fp32."""
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)


def parts(one: tinker.Datum) -> dict[str, torch.Tensor]:
    """A datum's tokens and loss inputs, each (T,)."""
    inputs = {name: data.to_torch() for name, data in one.loss_fn_inputs.items()}
    return {"tokens": torch.tensor(one.model_input.to_ints()), **inputs}


def weighted(count: int, seed: int) -> list[tinker.Datum]:
    """Random datums with a prompt of weight 0 and odd weights behind it."""
    rng = np.random.default_rng(seed)
    data = random_datums(count, seed)
    for one in data:
        weights = rng.choice([0.0, 0.25, 1.0, -0.5], one.model_input.length).astype(np.float32)
        weights[:2] = 0
        one.loss_fn_inputs["weights"] = tinker.TensorData.from_numpy(weights)
    return data


@torch.no_grad()
def plain_logprobs(model: torch.nn.Module, one: tinker.Datum) -> torch.Tensor:
    inputs = parts(one)
    logits = model(input_ids=inputs["tokens"][None]).logits[0]  # (T, V)
    return logits.log_softmax(-1).gather(-1, inputs["target_tokens"][:, None])[:, 0]


def logprobs(output: tinker.ForwardBackwardOutput) -> list[torch.Tensor]:
    return [one["logprobs"].to_torch() for one in output.loss_fn_outputs]


def weights_of(client: tinker.TrainingClient, folder: Path, name: str) -> dict[str, torch.Tensor]:
    """A training client's adapter, as its checkpoint holds it."""
    path = client.save_state(name).result().path
    store = Store(folder)
    checkpoint = store.checkpoint(parse_path(path))
    return load_file(store.weights_folder(checkpoint) / "adapter_model.safetensors")


def distance(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def test_the_loss_of_every_sample_is_that_of_transformers(
    service: tinker.ServiceClient, plain: PreTrainedModel
) -> None:
    client = new_client(service)  # a fresh adapter changes nothing
    data = weighted(24, seed=1)
    together = client.forward(data, "cross_entropy").result()
    expected = [float(-(plain_logprobs(plain, one) * parts(one)["weights"]).sum()) for one in data]
    for one, found, loss in zip(data, logprobs(together), expected, strict=True):
        alone = client.forward([one], "cross_entropy").result().metrics["loss:sum"]
        assert alone == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert float(-(found * parts(one)["weights"]).sum()) == pytest.approx(
            loss, rel=1e-5, abs=1e-5
        )
    assert together.metrics["loss:sum"] == pytest.approx(sum(expected), rel=1e-5)


def test_the_loss_of_every_sample_is_that_of_transformers_with_the_downloaded_adapter_too(
    service: tinker.ServiceClient,
    rest: tinker.RestClient,
    plain: PreTrainedModel,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    client = new_client(service)
    for seed in range(3):
        train(client, random_datums(4, seed))
    path = client.save_weights_external("trained").result().path
    for name, url in rest.get_external_weights_urls(path).result().urls.items():
        (tmp_path / name).write_bytes(urllib.request.urlopen(url).read())
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(model, tmp_path).eval()
    data = weighted(12, seed=2)
    for one in data:
        loss = float(-(plain_logprobs(tuned, one) * parts(one)["weights"]).sum())
        ours = client.forward([one], "cross_entropy").result().metrics["loss:sum"]
        assert ours == pytest.approx(loss, rel=1e-5, abs=1e-5)
        before = float(-(plain_logprobs(plain, one) * parts(one)["weights"]).sum())
        assert abs(before - loss) > 1e-3 or not parts(one)["weights"].any()


def policy_datums(data: list[tinker.Datum], old: list[torch.Tensor], seed: int) -> list:
    rng = np.random.default_rng(seed)
    return [
        tinker.Datum(
            model_input=one.model_input,
            loss_fn_inputs={
                "target_tokens": one.loss_fn_inputs["target_tokens"],
                "logprobs": tinker.TensorData.from_torch(logprob),
                "advantages": tinker.TensorData.from_numpy(
                    rng.normal(size=len(logprob)).astype(np.float32)
                ),
            },
        )
        for one, logprob in zip(data, old, strict=True)
    ]


def test_importance_sampling_at_ratio_one_is_minus_the_sum_of_advantages(
    service: tinker.ServiceClient,
) -> None:
    client = new_client(service)
    train(client, random_datums(4))
    data = random_datums(6, seed=3)
    old = logprobs(client.forward(data, "cross_entropy").result())
    batch = policy_datums(data, old, seed=4)
    output = client.forward(batch, "importance_sampling").result()
    closed = -sum(float(parts(one)["advantages"].double().sum()) for one in batch)
    assert output.metrics["loss:sum"] == pytest.approx(closed, rel=1e-5, abs=1e-5)
    for ours, before in zip(logprobs(output), old, strict=True):
        torch.testing.assert_close(ours, before, atol=1e-5, rtol=0)


def test_the_gradient_of_importance_sampling_at_ratio_one_is_that_of_weighted_cross_entropy(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    """d(-r A)/d log p = -r A = -A where r = 1: cross-entropy with the advantages as weights."""
    policy, weighted_twin = new_client(service), new_client(service)
    data = random_datums(6, seed=5)
    old = logprobs(policy.forward(data, "cross_entropy").result())
    batch = policy_datums(data, old, seed=6)
    twin = [
        tinker.Datum(
            model_input=one.model_input,
            loss_fn_inputs={
                "target_tokens": one.loss_fn_inputs["target_tokens"],
                "weights": one.loss_fn_inputs["advantages"],
            },
        )
        for one in batch
    ]
    step = tinker.AdamParams(learning_rate=1e-2, eps=1e-4)
    norms = []
    steps: list[tuple[tinker.TrainingClient, list[tinker.Datum], LossFnType]] = [
        (policy, batch, "importance_sampling"),
        (weighted_twin, twin, "cross_entropy"),
    ]
    for client, part, loss in steps:
        client.forward_backward(part, loss)
        metrics = client.optim_step(step).result().metrics
        assert metrics is not None
        norms.append(metrics["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    after = [weights_of(one, engine.folder, "after") for one in (policy, weighted_twin)]
    assert distance(*after) < 1e-5


def test_a_clip_at_1e_9_freezes_the_weights_where_eps_is_above_what_it_leaves(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    """Adam's first step is rate * g / (|g| + eps): after the clip |g| <= 1e-9, so with eps 1e-4 no
    weight moves by more than rate * 1e-5; without the clip nearly all move by the rate."""
    data = random_datums(4, seed=7)
    moved = {}
    for clip in (0.0, 1e-9):
        client = new_client(service)
        before = weights_of(client, engine.folder, "before")
        for _ in range(3):
            client.forward_backward(data, "cross_entropy")
            metrics = client.optim_step(
                tinker.AdamParams(learning_rate=1e-2, eps=1e-4, grad_clip_norm=clip)
            ).result()
            assert metrics.metrics is not None and metrics.metrics["grad_norm"] > 1
        moved[clip] = distance(weights_of(client, engine.folder, "after"), before)
    assert moved[0.0] > 9e-3
    assert moved[1e-9] <= 3 * 1e-2 * 1e-5 * 1.01


def test_with_the_smallest_eps_the_clip_does_not_freeze_adam_which_divides_it_away(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    """So it is in the cloud and in torch.optim.AdamW: the default eps is 1e-12, and a clip scales
    all gradients alike, which Adam's first step undoes."""
    client = new_client(service)
    before = weights_of(client, engine.folder, "before")
    client.forward_backward(random_datums(4, seed=7), "cross_entropy")
    client.optim_step(tinker.AdamParams(learning_rate=1e-2, grad_clip_norm=1e-9)).result()
    assert distance(weights_of(client, engine.folder, "after"), before) > 5e-3


@pytest.mark.parametrize("loss", ["cross_entropy", "importance_sampling", "ppo"])
def test_two_half_batches_accumulated_equal_one_whole(
    service: tinker.ServiceClient, engine: RunningEngine, loss: LossFnType
) -> None:
    data = weighted(8, seed=8)
    if loss != "cross_entropy":
        old = logprobs(new_client(service).forward(data, "cross_entropy").result())
        data = policy_datums(data, old, seed=9)
    ends, norms, totals = [], [], []
    for groups in ([data], [data[:4], data[4:]]):
        client = new_client(service)
        outputs = [client.forward_backward(group, loss) for group in groups]
        # Adam makes ±rate of any gradient, however small: eps keeps rounding from deciding it.
        step = client.optim_step(tinker.AdamParams(learning_rate=1e-2, eps=1e-4)).result()
        assert step.metrics is not None
        norms.append(step.metrics["grad_norm"])
        totals.append(sum(output.result().metrics["loss:sum"] for output in outputs))
        ends.append(weights_of(client, engine.folder, "after"))
    assert totals[0] == pytest.approx(totals[1], rel=1e-5, abs=1e-5)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    assert distance(*ends) < 1e-5
