"""Requests of the SDK become the messages they stand for, and results reach the SDK unchanged."""

import numpy as np
import pytest
import tinker
import torch

from tests.support.clients import new_client, train
from tests.support.engine import RunningEngine, datum, random_datums
from tests.support.stopwatch import Stopwatch
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import BatchRequest, LossOutput
from tinkersmith.engine.server import wire
from tinkersmith.engine.server.bodies import open_batch

pytestmark = pytest.mark.engine

TOKENS = [5, 6, 7, 8, 9]


def read_batch(body: bytes) -> BatchRequest:
    return wire.read_batch(open_batch(body))


def wide_datum(targets: object, weights: object, tokens: list[int] = TOKENS) -> tinker.Datum:
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens),
        loss_fn_inputs={"target_tokens": targets, "weights": weights},  # type: ignore[dict-item]
    )


def test_sparse_and_dense_targets_of_several_tokens_a_position_mean_the_same(
    service: tinker.ServiceClient,
) -> None:
    targets = np.array([[6, 1], [7, 2], [8, 0], [9, 4], [3, 0]], np.int64)
    weights = np.array([[1, 0.5], [1, 0.25], [1, 0], [0.5, 0.5], [1, 0]], np.float32)
    client = new_client(service)
    dense = wide_datum(tinker.TensorData.from_numpy(targets), tinker.TensorData.from_numpy(weights))
    sparse = wide_datum(torch.from_numpy(targets), torch.from_numpy(weights))
    outputs = [
        client.forward(data, "cross_entropy").result() for data in ([dense], [sparse, dense])
    ]
    first = outputs[0].loss_fn_outputs[0]["logprobs"].to_numpy()
    assert first.shape == (5, 2)
    second = outputs[1].loss_fn_outputs[0]["logprobs"].to_numpy()
    np.testing.assert_allclose(second, first, atol=1e-5)
    loss = outputs[0].metrics["loss:sum"]
    assert loss == pytest.approx(-(first * weights).sum(), rel=1e-5)
    assert outputs[1].metrics["loss:sum"] == pytest.approx(2 * loss, rel=1e-5)


def test_datums_of_different_widths_in_one_batch_keep_their_order(
    service: tinker.ServiceClient,
) -> None:
    rng = np.random.default_rng(0)
    shapes = [(5,), (5, 2), (5, 2), (5,), (5, 3)]
    data = [
        wide_datum(
            tinker.TensorData.from_numpy(rng.integers(0, 250, shape)),
            tinker.TensorData.from_numpy(np.ones(shape, np.float32)),
        )
        for shape in shapes
    ]
    output = new_client(service).forward(data, "cross_entropy").result()
    assert [result["logprobs"].to_numpy().shape for result in output.loss_fn_outputs] == shapes


@pytest.mark.parametrize(
    ("loss", "config"),
    [
        ("importance_sampling", None),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("cispo", None),
        ("dro", {"beta": 0.1}),
    ],
)
def test_reinforcement_raises_what_was_rewarded(
    service: tinker.ServiceClient, loss: str, config: dict | None
) -> None:
    client = new_client(service)
    plain = [datum(TOKENS), datum([5, 50, 60, 70, 80])]
    forward = client.forward(plain, "cross_entropy").result()
    old = [result["logprobs"].to_numpy() for result in forward.loss_fn_outputs]
    data = [
        tinker.Datum(
            model_input=plain_datum.model_input,
            loss_fn_inputs={
                "target_tokens": plain_datum.loss_fn_inputs["target_tokens"],
                "logprobs": tinker.TensorData.from_numpy(logprobs),
                "advantages": tinker.TensorData.from_numpy(np.full(4, reward, np.float32)),
            },
        )
        for plain_datum, logprobs, reward in zip(plain, old, (1.0, -1.0), strict=True)
    ]
    first = client.forward_backward(data, loss, config).result()  # type: ignore[arg-type]
    if loss == "importance_sampling":  # at ratio 1 the loss is minus the sum of advantages
        assert first.metrics["loss:sum"] == pytest.approx(0.0, abs=1e-5)
    client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
    after = client.forward(plain, "cross_entropy").result()
    new = [result["logprobs"].to_numpy() for result in after.loss_fn_outputs]
    assert new[0].sum() > old[0].sum()
    assert new[1].sum() < old[1].sum()


def test_a_state_is_loaded_into_an_old_client_and_a_new_one_with_or_without_optimizer(
    service: tinker.ServiceClient,
) -> None:
    data = random_datums(3)
    client = new_client(service)
    for _ in range(3):
        train(client, data)
    path = client.save_state("loaded").result().path
    with_optimizer = [train(client, data) for _ in range(3)]
    client.load_state_with_optimizer(path).result()
    assert [train(client, data) for _ in range(3)] == with_optimizer
    client.load_state(path).result()
    without = [train(client, data) for _ in range(3)]
    assert without[0] == with_optimizer[0] and without[2] != with_optimizer[2]
    fresh = service.create_training_client_from_state(path).result()
    assert [train(fresh, data) for _ in range(3)] == without
    other = new_client(service, rank=8)
    before = train(other, data)
    with pytest.raises(tinker.RequestFailedError, match="does not fit this adapter"):
        other.load_state(path).result()
    assert train(other, data) < before
    sampler = client.save_weights_for_sampler("no-optimizer").result().path
    with pytest.raises(tinker.RequestFailedError, match="holds no optimizer state"):
        service.create_training_client_from_state_with_optimizer(sampler).result()


def test_a_round_trip_costs_a_few_milliseconds(
    service: tinker.ServiceClient, engine: RunningEngine
) -> None:
    client = new_client(service, rank=1)
    # A delayed acknowledgement would add 40 ms to each; other programs do not to all.
    for _ in range(300):
        watch = Stopwatch(engine)
        client.forward([datum([1, 2])], "cross_entropy").result()
        seconds = watch.seconds()
        if seconds < 0.03:
            break
    assert seconds < 0.03


def test_a_broken_tensor_is_named() -> None:
    message = wire.pb.ForwardBackwardRequest(model_id="a", seq_id=1)
    tensor = message.data.add().loss_fn_inputs["weights"]
    tensor.dtype, tensor.dense = wire.pb.DTYPE_FLOAT32, b"12345"
    assert "datum 0, weights: 5 bytes" in str(read_batch(message.SerializeToString()).datums)
    tensor.dense = b"12345678"
    tensor.shape.append(3)
    assert "2 values do not fit" in str(read_batch(message.SerializeToString()).datums)


def test_a_batch_that_cannot_be_parsed_keeps_its_address_and_the_reason() -> None:
    good = wire.pb.ForwardBackwardRequest(model_id="a", seq_id=7, loss_fn="x").SerializeToString()
    request = read_batch(good + b"\xff" * 9)
    assert (request.model_id, request.seq_id) == ("a", 7)
    assert "not a ForwardBackwardRequest" in str(request.datums)


def test_numbers_that_json_lacks_are_sent_as_strings() -> None:
    metrics = {"a": float("nan"), "b": float("-inf"), "c": 1.5}
    assert wire.json_numbers(metrics) == {"a": "NaN", "b": "-Infinity", "c": 1.5}


def test_an_output_of_no_datums_is_a_message_without_records() -> None:
    message = wire.pb.ForwardBackwardOutput()
    message.ParseFromString(wire.batch_output(LossOutput([], {"loss:sum": 0.0})))
    assert len(message.loss_fn_outputs) == 0


SPARSE = {"values": bytes(8), "crow_indices": bytes(16), "col_indices": bytes(8)}


@pytest.mark.parametrize(
    ("shape", "sparse"),
    [
        ([0, 2**62], None),  # no array of numpy has so long an axis, though it is empty
        ([2**62, 0], None),
        ([-1], None),
        ([0, -1], None),
        ([2**40, 2**40], None),
        ([-1, 3], {"values": b"", "crow_indices": b"", "col_indices": b""}),
        ([0, -1], {"values": b"", "crow_indices": bytes(8), "col_indices": b""}),
        ([0, 2**62], {"values": b"", "crow_indices": bytes(8), "col_indices": b""}),
        ([1, 2**62], SPARSE),
        ([2**62, 1], SPARSE),
    ],
)
def test_a_shape_that_no_array_has_is_refused(shape: list[int], sparse: dict | None) -> None:
    message = wire.pb.ForwardBackwardRequest(model_id="a", seq_id=1, loss_fn="cross_entropy")
    tensor = message.data.add().loss_fn_inputs["target_tokens"]
    tensor.dtype = wire.pb.DTYPE_INT64
    tensor.shape.extend(shape)
    for name, content in (sparse or {}).items():
        setattr(tensor.sparse_csr, name, content)
    reason = read_batch(message.SerializeToString()).datums
    assert isinstance(reason, Refused) and "target_tokens: " in str(reason)
    assert "shape" in str(reason)


def sample_body(**changes: object) -> dict[str, object]:
    chunk = {"type": "encoded_text", "tokens": [1, 2]}
    return {"prompt": {"chunks": [chunk]}, "sampling_params": {"max_tokens": 1}, **changes}


def test_targets_of_a_prompt_are_read_dense_and_sparse() -> None:
    dense = {"data": [3, 4], "shape": [1, 2], "dtype": "int64"}
    request = wire.read_sample_request(sample_body(target_prompt_logprobs=dense))
    assert request.target_prompt_logprobs is not None
    assert request.target_prompt_logprobs.tolist() == [[3, 4]]
    flat = wire.read_sample_request(sample_body(target_prompt_logprobs={"data": [3]}))
    assert flat.target_prompt_logprobs is not None
    assert flat.target_prompt_logprobs.tolist() == [3]
    sparse = {"shape": [1, 3], "sparse_crow_indices": [0, 2], "sparse_col_indices": [0, 2]}
    request = wire.read_sample_request(
        sample_body(target_prompt_logprobs={**sparse, "data": [3, 4]})
    )
    assert request.target_prompt_logprobs is not None
    assert request.target_prompt_logprobs.tolist() == [[3, -1, 4]]


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, {"data": 3}, {"data": ["3"]}, {"data": [1.5]}, {"data": [True]}, {"data": [None]}),
        *({"data": [[1], [2, 3]]}, {"data": [2**63]}, {"data": [1], "shape": ["1"]}),
        *({"data": [1], "shape": [2]}, {"data": [], "shape": [0, 2**62]}, {"data": {"a": 1}}),
        *({"data": [1], "shape": [-1]}, {"data": [1], "shape": 1}, {"data": [1], "shape": [1.0]}),
        {"data": [1], "shape": [1, 1], "sparse_crow_indices": [0, 1]},
        {"data": [1], "sparse_crow_indices": [0, 1], "sparse_col_indices": [0]},
        {"data": [], "shape": [-1, 1], "sparse_crow_indices": [], "sparse_col_indices": []},
        {"data": [1], "shape": [1, 1], "sparse_crow_indices": [0, 1], "sparse_col_indices": [7]},
        {"data": [1], "shape": [1, 1], "sparse_crow_indices": 7, "sparse_col_indices": [0]},
    ],
)
def test_targets_that_are_no_tensor_of_whole_numbers_are_refused(wrong: dict) -> None:
    with pytest.raises(Refused, match="target_prompt_logprobs: "):
        wire.read_sample_request(sample_body(target_prompt_logprobs=wrong))
