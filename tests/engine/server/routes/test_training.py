"""Training through the unmodified SDK: steps, checkpoints, resume, failures, several clients."""

import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from safetensors.torch import load as load_safetensors

from tests.support.clients import greedy, new_client, train
from tests.support.engine import MODEL, SDK, RunningEngine, datum, random_datums, running_engine

pytestmark = pytest.mark.engine


def test_the_loss_falls_and_the_output_has_one_logprob_a_target(
    service: tinker.ServiceClient,
) -> None:
    client = new_client(service)
    data = random_datums(6)
    output = client.forward(data, "cross_entropy").result()
    logprobs = [result["logprobs"].to_numpy() for result in output.loss_fn_outputs]
    assert [len(values) for values in logprobs] == [sent.model_input.length for sent in data]
    assert output.metrics["loss:sum"] == pytest.approx(-sum(values.sum() for values in logprobs))
    losses = [train(client, data) for _ in range(8)]
    assert losses[0] == pytest.approx(output.metrics["loss:sum"])
    assert losses[-1] < 0.7 * losses[0]


def test_a_client_can_do_without_the_logprobs_of_positions_without_a_weight(
    service: tinker.ServiceClient,
) -> None:
    client = service.create_lora_training_client(
        base_model=MODEL, rank=4, seed=1, user_metadata={"tinkersmith.logprobs": "weighted"}
    ).result()
    weights = [0.0, 0.0, 0.0, 1.0, 0.5, 0.0, 1.0]
    data = datum([5, 6, 7, 8, 9, 10, 11], weights)
    actual, expected = (
        trained.forward_backward([data], "cross_entropy").result()
        for trained in (client, new_client(service))
    )
    ours, theirs = (out.loss_fn_outputs[0]["logprobs"].to_numpy() for out in (actual, expected))
    assert theirs.all()
    np.testing.assert_allclose(ours, np.where(np.array(weights[1:]) > 0, theirs, 0), atol=1e-5)
    assert actual.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"])
    with pytest.raises(tinker.BadRequestError, match="'all' or 'weighted'"):
        service.create_lora_training_client(
            base_model=MODEL, rank=4, user_metadata={"tinkersmith.logprobs": "none"}
        ).result()


def test_the_client_learns_its_tokenizer_without_a_hub(service: tinker.ServiceClient) -> None:
    client = new_client(service)
    info = client.get_info()
    assert (info.is_lora, info.lora_rank, info.model_data.model_name) == (True, 4, MODEL)
    assert client.get_tokenizer().decode(client.get_tokenizer()("héllo")["input_ids"]) == "héllo"


def test_a_state_with_optimizer_continues_bit_for_bit_even_in_a_new_engine(
    tmp_path: Path, tiny_model: Path
) -> None:
    batches = [random_datums(4, seed=seed) for seed in range(6)]
    with running_engine(tmp_path, tiny_model) as first:
        client = new_client(first.client())  # not closed: its engine is killed below
        before = [train(client, batch) for batch in batches[:3]]
        path = client.save_state("middle").result().path
        expected = [train(client, batch) for batch in batches[3:]]
        first.process.kill()
    assert len(set(before)) == 3
    with running_engine(tmp_path, tiny_model) as second, second.client() as service:
        listed = second.rest().list_user_checkpoints().result().checkpoints
        assert [checkpoint.tinker_path for checkpoint in listed] == [path]
        client = service.create_training_client_from_state_with_optimizer(path).result()
        assert [train(client, batch) for batch in batches[3:]] == expected


def test_batches_beyond_the_chunk_size_arrive_out_of_order_and_run_in_order(
    service: tinker.ServiceClient,
) -> None:
    rng = np.random.default_rng(5)
    data = [datum(rng.integers(0, 250, 3).tolist()) for _ in range(2500)]
    client = new_client(service)
    output = client.forward(data, "cross_entropy").result()
    assert len(output.loss_fn_outputs) == 2500
    alone = client.forward([data[1777]], "cross_entropy").result()
    np.testing.assert_allclose(
        output.loss_fn_outputs[1777]["logprobs"].to_numpy(),
        alone.loss_fn_outputs[0]["logprobs"].to_numpy(),
        atol=1e-5,
    )


def test_a_failed_batch_fails_its_pipelined_step_and_then_all_is_well(
    service: tinker.ServiceClient,
) -> None:
    client = new_client(service)
    good = random_datums(2)
    first = client.forward(good, "cross_entropy").result().metrics["loss:sum"]
    bad = client.forward_backward([datum([1, 2, 100_000])], "cross_entropy")
    step = client.optim_step(tinker.AdamParams(learning_rate=1.0))
    with pytest.raises(tinker.RequestFailedError, match="100000 is not in the vocabulary"):
        bad.result()
    with pytest.raises(tinker.RequestFailedError, match="the step was not taken"):
        step.result()
    assert client.forward(good, "cross_entropy").result().metrics["loss:sum"] == first
    assert train(client, good) == first


@pytest.mark.parametrize(
    ("data", "loss", "config", "sentence"),
    [
        ([datum(list(range(200)) * 3)], "cross_entropy", None, "takes at most 512"),
        ([datum([1, 2, 3])], "no_such_loss", None, "is not one of cross_entropy"),
        ([datum([1, 2, 3])], "ppo", None, "needs loss_fn_inputs"),
        ([datum([1, 2, 3])], "cross_entropy", {"beta": 1.0}, "loss_fn_config has 'beta'"),
        ([datum([1, 2, 3], [0, np.nan, 1])], "cross_entropy", None, "not finite"),
    ],
)
def test_a_wrong_batch_is_refused_with_a_sentence(
    service: tinker.ServiceClient, data: list, loss: str, config: dict | None, sentence: str
) -> None:
    client = new_client(service)
    with pytest.raises(tinker.RequestFailedError, match=sentence):
        client.forward_backward(data, loss, config).result()  # type: ignore[arg-type]
    assert train(client, random_datums(1)) > 0


def test_two_interleaved_clients_get_what_each_would_get_alone(
    service: tinker.ServiceClient,
) -> None:
    batches = [random_datums(3, seed=seed) for seed in range(4)]

    def alone(rank: int, seed: int) -> list[float]:
        client = new_client(service, rank, seed)
        return [train(client, batch) for batch in batches]

    expected = alone(4, 1), alone(8, 2)
    first, second = new_client(service, 4, 1), new_client(service, 8, 2)
    pending = []
    for batch in batches:
        for client in (first, second):
            pending.append(client.forward_backward(batch, "cross_entropy"))
            client.optim_step(tinker.AdamParams(learning_rate=1e-2))
    losses = [future.result().metrics["loss:sum"] for future in pending]
    assert (losses[0::2], losses[1::2]) == expected


def test_a_clip_of_almost_nothing_freezes_the_weights(service: tinker.ServiceClient) -> None:
    client = new_client(service)
    data = random_datums(2)
    before = train(client, data, rate=1e-2)
    client.forward_backward(data, "cross_entropy")
    metrics = client.optim_step(
        tinker.AdamParams(learning_rate=1e-9, grad_clip_norm=1e-9, eps=1.0)
    ).result()
    assert metrics.metrics is not None and metrics.metrics["grad_norm"] > 1e-3
    after = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
    again = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
    assert after == again != before


def test_a_custom_loss_trains_like_the_built_in_one(service: tinker.ServiceClient) -> None:
    data = random_datums(3)

    def negative_log_likelihood(
        batch: list[tinker.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        loss = -torch.stack([values.sum() for values in logprobs]).sum()
        return loss, {"nll": loss.item()}

    custom, builtin = new_client(service), new_client(service)
    custom.forward_backward_custom(data, negative_log_likelihood).result()
    custom.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    train(builtin, data)
    assert custom.forward(data, "cross_entropy").result().metrics["loss:sum"] == pytest.approx(
        builtin.forward(data, "cross_entropy").result().metrics["loss:sum"], rel=1e-5
    )


def test_external_weights_are_downloaded_by_plain_urllib(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    train(client, random_datums(2))
    path = client.save_weights_external("export").result().path
    urls = engine.rest().get_external_weights_urls(path).result().urls
    assert sorted(urls) == ["adapter_config.json", "adapter_model.safetensors", "manifest.json"]
    tensors = load_safetensors(urllib.request.urlopen(urls["adapter_model.safetensors"]).read())
    assert tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"].shape == (
        4,
        32,
    )
    assert all(tensor.abs().sum() > 0 for tensor in tensors.values())


def test_a_name_is_not_overwritten_unless_asked(service: tinker.ServiceClient) -> None:
    client = new_client(service)
    client.save_state("saved").result()
    with pytest.raises(tinker.RequestFailedError, match="already exists"):
        client.save_state("saved").result()
    client.save_state("saved", overwrite=True).result()
    client.save_weights_for_sampler("saved").result()
    with pytest.raises(tinker.RequestFailedError, match="choose another name, or delete it first"):
        client.save_weights_for_sampler("saved").result()
    with pytest.raises(tinker.RequestFailedError, match="must be 1 to 128 letters"):
        client.save_state("../escape").result()


def test_checkpoints_are_listed_published_limited_and_deleted(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    client = new_client(service)
    rest = engine.rest()
    path = client.save_state("listed", user_metadata={"note": "x"}).result().path
    client.save_weights_for_sampler("listed").result()
    run = client.model_id
    listed = rest.list_checkpoints(run).result().checkpoints
    assert {checkpoint.checkpoint_id for checkpoint in listed} == {
        "weights/listed",
        "sampler_weights/listed",
    }
    rest.publish_checkpoint_from_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    [saved] = [c for c in rest.list_checkpoints(run).result().checkpoints if c.tinker_path == path]
    assert saved.public and saved.expires_at is not None and saved.user_metadata == {"note": "x"}
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.lora_rank) == (MODEL, 4)
    assert rest.get_training_run(run).result().lora_rank == 4
    rest.delete_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError, match="does not exist here"):
        service.create_training_client_from_state(path).result()


def test_a_name_as_the_cloud_serves_it_is_the_base_models(service: tinker.ServiceClient) -> None:
    named = service.create_lora_training_client(base_model=f"{MODEL}:peft:131072", rank=4).result()
    assert named.get_info().model_data.model_name == MODEL
    sampler = service.create_sampling_client(base_model=f"{MODEL}:peft:4096").result()
    plain = service.create_sampling_client(base_model=MODEL).result()
    assert greedy(sampler) == greedy(plain)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"base_model": "nowhere"}, "not offered here; offered: "),
        ({"base_model": MODEL, "rank": 0}, "rank is 0; it must be between 1 and 512"),
    ],
)
def test_a_client_that_cannot_be_is_refused_at_once(
    service: tinker.ServiceClient, arguments: dict, sentence: str
) -> None:
    with pytest.raises(tinker.BadRequestError, match=sentence):
        service.create_lora_training_client(**arguments).result()


@pytest.mark.skipif(SDK < (0, 36), reason="tinker before 0.36 has no RestClient")
def test_a_wrong_key_is_refused(engine: RunningEngine) -> None:
    with pytest.raises(tinker.AuthenticationError, match="not this engine's key"):
        tinker.RestClient(base_url=engine.url, api_key="tml-other").list_user_checkpoints().result()
