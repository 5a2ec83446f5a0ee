"""Sampling through the unmodified SDK: snapshots, parameters, log-probabilities, many at once."""

import concurrent.futures
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch

from tests.support.clients import PROMPT, greedy, new_client, train
from tests.support.engine import MODEL, SDK, datum, random_datums, running_engine

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def base(service: tinker.ServiceClient) -> tinker.SamplingClient:
    return service.create_sampling_client(base_model=MODEL).result()


def test_a_saved_and_an_ephemeral_sampler_stay_as_they_were_while_training_goes_on(
    service: tinker.ServiceClient, base: tinker.SamplingClient
) -> None:
    client = new_client(service)
    data = [datum([72, 101, 108, 108, 111, *[33] * 12])]
    for _ in range(30):
        train(client, data)
    path = client.save_weights_for_sampler("taught").result().path
    saved = service.create_sampling_client(model_path=path).result()
    ephemeral = client.save_weights_and_get_sampling_client().result()
    answer = greedy(saved)
    assert greedy(ephemeral) == answer != greedy(base)
    assert answer.count(33) > 6
    for _ in range(30):
        train(client, [datum([72, 101, 108, 108, 111, *[44] * 12])])
    after = client.save_weights_and_get_sampling_client().result()
    assert greedy(after).count(44) > 6
    assert greedy(saved) == greedy(ephemeral) == answer


def test_a_copy_of_a_sampling_client_samples_as_the_first(base: tinker.SamplingClient) -> None:
    # A copy counts its requests from a random multiple of 10**9, up to 10**18.
    copies = [pickle.loads(pickle.dumps(base)) for _ in range(3)]
    assert [greedy(copy) for copy in copies] == [greedy(base)] * 3
    numbered = copies[0]
    numbered._request_id_counter = 10**18
    assert greedy(numbered) == greedy(base)


def test_a_sampler_outlives_its_checkpoint(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    client = new_client(service)
    path = client.save_weights_for_sampler("short-lived").result().path
    sampler = service.create_sampling_client(model_path=path).result()
    before = greedy(sampler)
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert greedy(sampler) == before
    with pytest.raises(tinker.NotFoundError, match="does not exist here"):
        service.create_sampling_client(model_path=path).result()


def test_a_training_state_can_be_sampled_from(service: tinker.ServiceClient) -> None:
    client = new_client(service)
    train(client, random_datums(2), rate=0.1)
    state = client.save_state("sampled").result().path
    weights = client.save_weights_for_sampler("sampled").result().path
    answers = [
        greedy(service.create_sampling_client(model_path=path).result())
        for path in (state, weights)
    ]
    assert answers[0] == answers[1]


def test_the_logprobs_of_sampled_tokens_are_those_of_forward(
    service: tinker.ServiceClient,
) -> None:
    client = new_client(service)
    train(client, random_datums(4), rate=0.05)
    sampler = client.save_weights_and_get_sampling_client().result()
    params = tinker.SamplingParams(max_tokens=20, temperature=0.8, top_p=0.9, seed=3, stop=[])
    for sequence in sampler.sample(PROMPT, 4, params).result().sequences:
        whole = [*PROMPT.to_ints(), *sequence.tokens]
        output = client.forward([datum(whole)], "cross_entropy").result()
        logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy()
        np.testing.assert_allclose(np.asarray(sequence.logprobs), logprobs[-20:], atol=1e-4)
        known = sampler.compute_logprobs(tinker.ModelInput.from_ints(whole)).result()
        assert known[0] is None
        np.testing.assert_allclose(np.asarray(known[1:], float), logprobs, atol=1e-4)


def test_a_seed_gives_the_same_tokens_whatever_else_is_asked_at_the_time(
    base: tinker.SamplingClient,
) -> None:
    params = tinker.SamplingParams(max_tokens=16, temperature=1.0, seed=11, stop=[])
    alone = base.sample(PROMPT, 3, params).result()
    others = [
        base.sample(
            tinker.ModelInput.from_ints(list(range(1, 2 + n))),
            2,
            tinker.SamplingParams(max_tokens=5 + n, temperature=1.0, stop=[]),
        )
        for n in range(20)
    ]
    again = base.sample(PROMPT, 3, params).result()
    tokens = [list(sequence.tokens) for sequence in alone.sequences]
    assert [list(sequence.tokens) for sequence in again.sequences] == tokens
    assert len({tuple(sequence) for sequence in tokens}) == 3
    for n, other in enumerate(others):
        assert [len(sequence.tokens) for sequence in other.result().sequences] == [5 + n] * 2


def test_stops_end_an_answer_and_stay_in_it(base: tinker.SamplingClient) -> None:
    free = greedy(base)
    by_id = tinker.SamplingParams(max_tokens=12, temperature=0.0, stop=[free[4]])
    [sequence] = base.sample(PROMPT, 1, by_id).result().sequences
    assert list(sequence.tokens) == free[: free.index(free[4]) + 1]
    assert sequence.stop_reason == "stop"
    short = tinker.SamplingParams(max_tokens=3, temperature=0.0, stop=[])
    [sequence] = base.sample(PROMPT, 1, short).result().sequences
    assert (list(sequence.tokens), sequence.stop_reason) == (free[:3], "length")


def test_without_max_tokens_the_context_is_filled(base: tinker.SamplingClient) -> None:
    params = tinker.SamplingParams(temperature=1.0, stop=[], seed=1)
    [sequence] = base.sample(PROMPT, 1, params).result().sequences
    assert PROMPT.length + len(sequence.tokens) in (512, 513)


def test_prompt_logprobs_and_their_top_k_are_given_when_asked(base: tinker.SamplingClient) -> None:
    params = tinker.SamplingParams(max_tokens=1, temperature=0.0)
    plain = base.sample(PROMPT, 1, params).result()
    assert plain.prompt_logprobs is None and plain.topk_prompt_logprobs is None
    detailed = base.sample(
        PROMPT, 1, params, include_prompt_logprobs=True, topk_prompt_logprobs=3
    ).result()
    assert detailed.prompt_logprobs is not None and detailed.topk_prompt_logprobs is not None
    assert len(detailed.prompt_logprobs) == len(detailed.topk_prompt_logprobs) == PROMPT.length
    assert detailed.prompt_logprobs[0] is None and detailed.topk_prompt_logprobs[0] is None
    for logprob, top in zip(
        detailed.prompt_logprobs[1:], detailed.topk_prompt_logprobs[1:], strict=True
    ):
        assert logprob is not None and top is not None and len(top) == 3
        assert logprob <= top[0][1] + 1e-6 and top[0][1] >= top[1][1] >= top[2][1]


@pytest.mark.skipif(SDK < (0, 38), reason="older SDKs do not ask about other tokens")
def test_tokens_named_by_a_sparse_tensor_are_scored_as_those_of_a_dense_one(
    base: tinker.SamplingClient,
) -> None:
    params = tinker.SamplingParams(max_tokens=1, temperature=0.0)
    wanted = torch.full((PROMPT.length - 1, 8), -1)
    wanted[0, 5], wanted[2, 0], wanted[2, 7] = 101, 33, 108
    sparse = tinker.TensorData.from_torch_sparse(wanted, pad_value=-1)
    assert sparse.sparse_crow_indices is not None
    dense = tinker.TensorData.from_torch(wanted)
    answers = [
        base.sample(PROMPT, 1, params, target_prompt_logprobs=targets).result()
        for targets in (sparse, dense)
    ]
    scored = [tensor for answer in answers if (tensor := answer.target_prompt_logprobs)]
    assert scored[0].sparse_col_indices == sparse.sparse_col_indices
    matrices = [scores.to_torch().to_dense() for scores in scored]
    assert torch.equal(*matrices) and (matrices[0] != 0).sum() == 3
    logprobs = base.compute_logprobs(PROMPT).result()
    assert float(matrices[0][0, 5]) == logprobs[1]  # token 101 stands there in the prompt


@pytest.mark.skipif(SDK < (0, 38), reason="older SDKs do not ask about other tokens")
def test_alternatives_to_the_prompts_tokens_are_drawn_when_asked(
    base: tinker.SamplingClient,
) -> None:
    params = tinker.SamplingParams(max_tokens=1, temperature=1.0, seed=5)
    drawn = base.sample(PROMPT, 1, params, prompt_alt_tokens_k=4).result().prompt_alt_tokens
    assert drawn is not None
    ids, logprobs = drawn.tokens.to_numpy(), drawn.logprobs.to_numpy()
    assert ids.dtype == np.int64 and ids.shape == logprobs.shape == (PROMPT.length - 1, 4)
    targets = tinker.TensorData.from_numpy(ids)
    checked = base.sample(PROMPT, 1, params, target_prompt_logprobs=targets).result()
    assert checked.target_prompt_logprobs is not None
    np.testing.assert_array_equal(checked.target_prompt_logprobs.to_numpy(), logprobs)


@pytest.mark.parametrize(
    ("prompt", "count", "params", "sentence"),
    [
        ([1, 99_999], 1, {"max_tokens": 1}, "99999 is not in the vocabulary"),
        ([1] * 600, 1, {"max_tokens": 1}, "takes at most 512"),
        ([1], 1, {"max_tokens": 1, "temperature": -1.0}, "temperature is -1.0"),
        ([1], 1, {"max_tokens": 1, "top_p": 0.0}, "top_p is 0.0"),
        ([1], 0, {"max_tokens": 1}, "num_samples is 0"),
        ([1], 10**9, {"max_tokens": 1}, "num_samples is 1000000000"),
        ([], 1, {"max_tokens": 1}, "prompt has no tokens"),
    ],
)
def test_a_wrong_request_is_refused_with_a_sentence_and_the_next_works(
    base: tinker.SamplingClient, prompt: list[int], count: int, params: dict, sentence: str
) -> None:
    with pytest.raises(tinker.TinkerError, match=sentence):
        base.sample(
            tinker.ModelInput.from_ints(prompt), count, tinker.SamplingParams(**params)
        ).result()
    assert len(greedy(base)) == 12


def test_max_tokens_beyond_the_context_is_cut_and_logged_once_a_client(
    tmp_path: Path, tiny_model: Path
) -> None:
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        running_engine(tmp_path / "engine", tiny_model, stderr=stderr) as engine,
        engine.client() as service,
    ):
        params = tinker.SamplingParams(max_tokens=100_000, temperature=0.0, stop=[])
        prompt = tinker.ModelInput.from_ints([1] * 500)
        for _ in range(2):
            sampler = service.create_sampling_client(base_model=MODEL).result()
            for _ in range(3):
                [answer] = sampler.sample(prompt, 1, params).result().sequences
                assert len(answer.tokens) == 13  # of 512; the last one is never read
                assert answer.stop_reason == "length"
        client = new_client(service)
        for _ in range(2):
            stepped = client.optim_step(tinker.AdamParams(learning_rate=1.0)).result()
            assert stepped.metrics == {"grad_norm": 0.0}
    lines = log.read_text().splitlines()
    cut = [line for line in lines if "max_tokens 100000 is beyond the context" in line]
    assert len(cut) == 2 and all("500 tokens leaves 13 of 512" in line for line in cut)
    assert sum("an optim_step without gradients changes nothing" in line for line in lines) == 1


def test_sampled_logprobs_are_at_the_temperature_if_the_engine_is_told_so(
    base: tinker.SamplingClient, tmp_path: Path, tiny_model: Path
) -> None:
    params = tinker.SamplingParams(max_tokens=8, temperature=0.5, seed=3, stop=[])
    prompt = PROMPT

    def sampled(sampler: tinker.SamplingClient) -> tuple[list[int], np.ndarray]:
        [answer] = sampler.sample(prompt, 1, params).result().sequences
        return answer.tokens, np.array(answer.logprobs)

    option = ("--sampled-logprobs", "temperature")
    with (
        running_engine(tmp_path / "engine", tiny_model, *option) as engine,
        engine.client() as service,
    ):
        tempered = sampled(service.create_sampling_client(base_model=MODEL).result())
    plain = sampled(base)
    assert tempered[0] == plain[0]
    # At temperature 1/2: twice the model's, less the log of the sum of all squares.
    assert (tempered[1] > 2 * plain[1]).all()
    assert (tempered[1] != plain[1]).any()


@pytest.mark.skipif(SDK < (0, 38), reason="older SDKs have no provenance")
def test_a_step_of_stable_reinforce_names_the_sequences_that_were_sampled(
    service: tinker.ServiceClient,
) -> None:
    """What the cookbook's recipes do by default, in one step."""
    client = new_client(service)
    sampler = client.save_weights_and_get_sampling_client(record_stability_info=True).result()
    prompt = [1, 2, 3]
    answer = sampler.sample(
        tinker.ModelInput.from_ints(prompt), 2, tinker.SamplingParams(max_tokens=5, seed=1)
    ).result()
    datums = []
    sequences: list[Any] = list(answer.sequences)
    for sequence, advantage in zip(sequences, (1.0, -1.0), strict=True):
        tokens, shift = sequence.tokens, len(prompt) - 1
        name = sequence.sequence_id
        inputs: Any = {
            "target_tokens": [0] * shift + tokens,
            "logprobs": [0.0] * shift + sequence.logprobs,
            "advantages": [0.0] * shift + [advantage] * len(tokens),
        }
        datums.append(
            tinker.Datum(
                model_input=tinker.ModelInput.from_ints(prompt + tokens[:-1]),
                loss_fn_inputs=inputs,
            ).with_provenance(
                model_input=[
                    tinker.types.PromptProvenanceSpan(sequence_id=name, length=len(prompt)),
                    tinker.types.SampledProvenanceSpan(sequence_id=name, length=len(tokens) - 1),
                ],
                loss_fn_inputs=[
                    tinker.types.PromptProvenanceSpan(sequence_id=name, offset=1, length=shift),
                    tinker.types.SampledProvenanceSpan(sequence_id=name, length=len(tokens)),
                ],
            )
        )
    step, twin = client.forward_backward(datums, "stable_reinforce"), new_client(service)
    metrics = step.result().metrics
    expected = -sum(
        advantage * sum(sequence.logprobs)
        for sequence, advantage in zip(sequences, (1.0, -1.0), strict=True)
    )
    assert metrics["loss:sum"] == pytest.approx(expected, rel=1e-3)  # on policy: weights of 1
    assert metrics["truncated_importance_tokens:sum"] == 0
    client.optim_step(tinker.AdamParams()).result()
    with pytest.raises(tinker.TinkerError, match=r"annotate the datum with with_provenance\(\)"):
        bare = [tinker.Datum(datum.model_input, datum.loss_fn_inputs) for datum in datums]
        twin.forward_backward(bare, "stable_reinforce").result()


def test_training_and_sampling_clients_of_several_threads_do_not_disturb_each_other(
    service: tinker.ServiceClient, base: tinker.SamplingClient
) -> None:
    batches = [random_datums(3, seed=seed) for seed in range(4)]

    def train_alone(seed: int) -> list[float]:
        client = new_client(service, rank=2 + seed, seed=seed)
        return [train(client, batch) for batch in batches]

    expected = [train_alone(seed) for seed in range(4)]
    answer = greedy(base)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        trained = [pool.submit(train_alone, seed) for seed in range(4)]
        sampled = [pool.submit(greedy, base) for _ in range(40)]
        assert [future.result() for future in trained] == expected
        assert all(future.result() == answer for future in sampled)
