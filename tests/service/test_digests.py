"""A digest changes with whatever the SDK sends, and with nothing else."""

import numpy as np
import pytest
import tinker

from tinkersmith.service.answers import to_datum
from tinkersmith.service.digests import (
    content_digest,
    creation_line,
    forward_line,
    optim_line,
    sample_line,
    step_lines,
)


def tensor(values: np.ndarray) -> tinker.TensorData:
    return tinker.TensorData.from_numpy(values)


def datum(
    tokens: list[int], targets: list[int] | None = None, weights: list[float] | None = None
) -> tinker.Datum:
    return tinker.Datum(
        model_input=tinker.ModelInput.from_ints(tokens),
        loss_fn_inputs={
            "target_tokens": tensor(np.asarray(targets or [*tokens[1:], 0], np.int64)),
            "weights": tensor(np.asarray(weights or [1.0] * len(tokens), np.float32)),
        },
    )


def datum_digest(datum: tinker.Datum) -> str:
    """The digest of the request that sends this datum alone."""
    return forward_line(1, [[datum]], "cross_entropy")["digest"]


def test_equal_datums_have_equal_digests_however_they_were_made() -> None:
    numbers = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([5, 6, 7]),
        loss_fn_inputs={
            "weights": tinker.TensorData([1.0, 1.0, 1.0], "float32", [3]),
            "target_tokens": tinker.TensorData([6, 7, 0], "int64", [3]),
        },
    )
    assert datum_digest(datum([5, 6, 7])) == datum_digest(numbers)


@pytest.mark.parametrize(
    "other",
    [
        datum([5, 6, 8], [6, 7, 0]),
        datum([5, 6, 7], [6, 7, 1]),
        datum([5, 6, 7], [6, 7, 0], [1.0, 1.0, float(np.nextafter(np.float32(1), 2))]),
        datum([5, 6, 7, 0], [6, 7, 0, 0]),
    ],
    ids=["input", "target", "weight", "length"],
)
def test_any_token_target_or_weight_changes_the_digest(other: tinker.Datum) -> None:
    assert datum_digest(datum([5, 6, 7])) != datum_digest(other)


def test_the_order_of_samples_and_their_division_into_requests_change_the_digest() -> None:
    first, second = datum([1, 2]), datum([3, 4])
    lines = [
        forward_line(1, batches, "cross_entropy")
        for batches in ([[first, second]], [[second, first]], [[first], [second]])
    ]
    assert len({line["digest"] for line in lines}) == 3
    assert {line["datums"] for line in lines} == {2}
    assert lines[0]["samples"][:8] == lines[1]["samples"][8:] == content_digest(first).hex()[:8]


def test_a_sample_is_found_although_another_one_of_its_batch_changes_all_weights() -> None:
    former = datum([5, 6, 7], weights=[0.0, 0.25, 0.25])
    present = datum([5, 6, 7], weights=[0.0, 0.2, 0.2])
    assert datum_digest(former) != datum_digest(present)
    assert content_digest(former) == content_digest(present)
    assert content_digest(former) != content_digest(datum([5, 6, 7], weights=[0.25, 0.0, 0.25]))


def test_every_parameter_of_a_step_is_in_its_lines() -> None:
    params = tinker.AdamParams(learning_rate=0.1, beta1=0.9, beta2=0.95, eps=1e-8)
    both = step_lines(3, [datum([1, 2])], "cross_entropy", params)
    assert [(line["step"], line["kind"]) for line in both] == [
        (3, "forward_backward"),
        (3, "optim_step"),
    ]
    assert both[1]["content"]["learning_rate"] == 0.1
    for name in type(params).model_fields:
        if not isinstance(value := getattr(params, name), float):
            continue
        other = params.model_copy(update={name: value + 0.001})
        assert optim_line(3, other)["digest"] != both[1]["digest"], name
    dimuon = tinker.types.DimuonParams(learning_rate=0.1)
    assert optim_line(3, dimuon)["digest"] != both[1]["digest"]


def test_prompts_and_how_they_are_answered_are_in_the_line_of_questions() -> None:
    params = tinker.SamplingParams(max_tokens=4, temperature=0.5, seed=1, stop=[0])
    other = params.model_copy(update={"temperature": 0.6})
    prompt = np.array([4, 5], np.int32)
    lines = [
        sample_line(1, [(prompt, params)], 1),
        sample_line(1, [(prompt, params)], 2),
        sample_line(1, [(prompt, other)], 1),
        sample_line(1, [(prompt + 1, params)], 1),
    ]
    assert len({line["digest"] for line in lines}) == 4
    assert (lines[0]["requests"], lines[0]["tokens"]) == (1, 2)


def test_the_creation_of_a_client_is_known_by_all_of_its_options() -> None:
    content = {"base_model": "a", "rank": 4, "seed": 1}
    line = creation_line(content)
    assert line["step"] == 0 and line["content"] == content
    assert creation_line({"seed": 1, "rank": 4, "base_model": "a"})["digest"] == line["digest"]
    assert creation_line({**content, "rank": 8})["digest"] != line["digest"]


def test_a_tokenised_sample_is_sent_as_its_digest_says() -> None:
    from tinkersmith.data.samples import Source
    from tinkersmith.text.tokenize import TokenizedSample

    tokens = np.array([7, 8, 9, 10], np.int32)
    sample = TokenizedSample(tokens, np.array([[2, 4]]), Source("a.json", 1))
    sent = to_datum(sample, 0.5)
    assert datum_digest(sent) == datum_digest(datum([7, 8, 9], [8, 9, 10], [0.0, 0.5, 0.5]))
