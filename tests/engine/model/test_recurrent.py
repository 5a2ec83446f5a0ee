"""Families with a state, latent attention or shared experts train and sample like plain ones."""

import json
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import nn
from transformers import Cache, Qwen3_5ForConditionalGeneration

from tests.support.adapters import filled_adapter
from tests.support.answers import assert_equal_answers
from tests.support.clients import GREEDY, PROMPT, train
from tests.support.engine import datum, running_engine
from tests.support.engine import random_datums as random_sdk_datums
from tests.support.family_twin import (
    TinyFamily,
    family_requests,
    make_family,
    sampling_difference,
    training_differences,
)
from tests.support.seeing_models import make_seeing
from tests.support.state_families import FAMILIES, SEEING_FAMILIES
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import Answering, LoraConfig, SampleRequest
from tinkersmith.engine.model import attention
from tinkersmith.engine.model.adapters import adapter_state, new_adapter, snapshot
from tinkersmith.engine.model.base_model import BaseModel, load_base_model
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.model.layer_states import LayerStates
from tinkersmith.engine.model.recurrent import RecurrentLayer, recurrent_layers
from tinkersmith.engine.sampling import batch as batch_module
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.sampler import sample

pytestmark = pytest.mark.engine


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name, scope="module")
def family(request: pytest.FixtureRequest) -> TinyFamily:
    return request.param


@pytest.fixture(scope="module")
def base(family: TinyFamily, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base_model(family.name, make_family(family, tmp_path_factory.mktemp("m")))


def test_losses_and_lora_gradients_equal_those_of_a_float64_twin(
    family: TinyFamily, base: BaseModel
) -> None:
    differences = training_differences(family, base, rank=4)
    assert differences.logprob < 2e-5 and differences.loss < 1e-5
    assert differences.gradient < 1e-5, differences.worst


@pytest.mark.parametrize("segment", [16, 32])
def test_long_samples_are_computed_in_segments_that_hand_on_the_state(
    family: TinyFamily, base: BaseModel, segment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_SEGMENT", segment)
    differences = training_differences(family, base, rank=4)
    assert differences.logprob < 2e-5 and differences.loss < 1e-5
    assert differences.gradient < 1e-5, differences.worst


@pytest.mark.parametrize("family", SEEING_FAMILIES, ids=lambda family: family.name)
def test_the_text_part_of_a_folder_with_images_trains_and_samples_as_the_twin(
    family: TinyFamily, tmp_path: Path
) -> None:
    base = load_base_model(family.name, make_family(family, tmp_path))
    differences = training_differences(family, base, rank=4)
    assert differences.logprob < 2e-5 and differences.loss < 1e-5
    assert differences.gradient < 1e-5, differences.worst
    sampled, prompts = sampling_difference(base, family_requests(family))
    assert sampled < 1e-4 and prompts < 1e-4


class StateLayer(nn.Module):
    """A layer that says which cache it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_idx, self.conv1d = 0, nn.Conv1d(2, 2, 2)


class NewerStateLayer(StateLayer):
    def forward(self, hidden: torch.Tensor, cache: LayerStates | None = None) -> object:
        return cache


class OlderStateLayer(StateLayer):
    def forward(self, hidden: torch.Tensor, cache_params: LayerStates | None = None) -> object:
        return cache_params


@pytest.mark.parametrize("layer", [NewerStateLayer(), OlderStateLayer()])
def test_a_layer_gets_its_state_by_the_name_that_its_transformers_has_for_it(
    layer: StateLayer,
) -> None:
    model = nn.ModuleDict({"mixer": layer})
    assert recurrent_layers(model) == {"mixer": layer}
    states = LayerStates()
    assert RecurrentLayer(layer, 0)._carry(torch.zeros(1, 1, 2), states) is states


def test_an_older_transformers_is_named_where_a_layer_carries_a_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(Cache, "get_conv_state")
    with pytest.raises(Refused, match=r"needs transformers 5\.21 or newer; 5\."):
        recurrent_layers(nn.ModuleDict({"mixer": OlderStateLayer()}))
    assert recurrent_layers(nn.Linear(2, 2)) == {}


def requests_of_many_lengths(count: int) -> list[SampleRequest]:
    rng = np.random.default_rng(1)
    return [
        SampleRequest(
            rng.integers(0, 250, (1, 2, 9, 66, 30)[number % 5]).tolist(),
            num_samples=1 + number % 2,
            max_tokens=int(rng.integers(1, 25)),
            temperature=(1.0, 0.0)[number % 3 == 2],
            seed=number,
            stop=[],
            prompt_logprobs=number % 4 == 1,
        )
        for number in range(count)
    ]


def test_requests_that_join_and_leave_at_any_step_get_what_each_gets_alone(
    base: BaseModel,
) -> None:
    adapters = [snapshot(filled_adapter(base, LoraConfig(rank, rank), rank)) for rank in (4, 2)]
    requests = requests_of_many_lengths(9)
    mixed = list(zip(requests, [*adapters, None] * 3, strict=True))
    expected = [sample(base, adapter, [request])[0] for request, adapter in mixed]
    batch, joined = Batch(base, None, CacheMemory()), list[Answering]()
    at_step = {0: mixed[:3], 2: mixed[3:5], 7: mixed[5:]}
    number = 0
    while batch.sequences or number <= max(at_step):
        joined += [batch.add(request, adapter) for request, adapter in at_step.get(number, [])]
        batch.step()
        number += 1
    assert_equal_answers([answering.result for answering in joined], expected)


def test_sampled_and_prompt_log_probabilities_are_those_of_a_forward_pass(
    family: TinyFamily, base: BaseModel
) -> None:
    sampled, prompts = sampling_difference(base, family_requests(family))
    assert sampled < 1e-4 and prompts < 1e-4


def test_a_state_serves_other_prompts_where_it_was_stored(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = list(range(100, 150))
    ends = [[1, 2, 3], [4], [4, 5], [], [1, 2, 3, 9]]
    requests = [
        SampleRequest([*common, *end], 2, 8, seed=number, stop=[])
        for number, end in enumerate(ends)
    ]
    expected = [sample(base, None, [request])[0] for request in requests]
    together = sample(base, None, requests)
    assert_equal_answers(together, expected)
    # All but the last token of the shortest prompt is read once, for one of them.
    assert sorted(result.prompt_cache_hit_tokens for result in together) == [0, 49, 49, 49, 49]
    # Prompts that are read in pieces are, too.
    monkeypatch.setattr(batch_module, "_FIRST_PREFILL", 7)
    batch = Batch(base, None, CacheMemory())
    batch.add(SampleRequest([1, 2], 1, 60, seed=1, stop=[]), None)
    batch.step()
    joined = [batch.add(request, None) for request in requests]
    while batch.sequences:
        batch.step()
    assert_equal_answers([answering.result for answering in joined], expected)


def test_memory_is_reserved_for_keys_values_and_states(base: BaseModel) -> None:
    batch = Batch(base, None, CacheMemory())
    batch.add(SampleRequest(list(range(90)), 3, 30, seed=0, stop=[]), None)
    while not batch._active:
        batch.step()
    assert batch._decoder is not None
    most = base.cache.of(128 * 3 // 2)  # a cache grows by halves
    assert 3 * base.cache.of(90) <= batch._decoder.held() <= 3 * most


def test_a_joined_projection_has_a_lora_for_each_of_its_parts(tmp_path: Path) -> None:
    base = load_base_model("tiny", make_family(FAMILIES[0], tmp_path))
    state = adapter_state(new_adapter(base, LoraConfig(4)))
    layer = "base_model.model.model.layers.0.linear_attn"
    sizes = {
        name.removeprefix(f"{layer}.").partition(".")[0]: tuple(weight.shape)
        for name, weight in state.items()
        if name.startswith(layer) and "lora_B" in name
    }
    assert sizes == {
        "in_proj_q": (16, 4),
        "in_proj_k": (16, 4),
        "in_proj_v": (48, 4),
        "in_proj_z": (48, 4),
        "in_proj_b": (4, 4),
        "in_proj_a": (4, 4),
        "out_proj": (32, 4),
    }


def test_clients_of_the_sdk_train_sample_and_resume_bit_for_bit(tmp_path: Path) -> None:
    data = random_sdk_datums(4)
    folders = {family.name: make_family(family, tmp_path / family.name) for family in FAMILIES[:5]}
    models = [("--base-model", f"{name}={folder}") for name, folder in folders.items()]
    with (
        running_engine(tmp_path / "engine", folders["qwen3_5"], *chain(*models)) as engine,
        engine.client() as service,
    ):
        for name in folders:
            client = service.create_lora_training_client(name, rank=4, seed=1).result()
            losses = [train(client, data, rate=0.01) for _ in range(3)]
            assert losses[2] < losses[1] < losses[0]
            state = client.save_state(f"state-{name}").result().path
            resumed = service.create_training_client_from_state_with_optimizer(state).result()
            assert [train(resumed, data) for _ in range(2)] == [
                train(client, data) for _ in range(2)
            ]
            sampler = client.save_weights_and_get_sampling_client().result()
            [sequence] = sampler.sample(PROMPT, 1, GREEDY).result().sequences
            whole = datum([*PROMPT.to_ints(), *sequence.tokens])
            output = client.forward([whole], "cross_entropy").result().loss_fn_outputs[0]
            sampled = output["logprobs"].to_numpy()[PROMPT.length - 1 :]
            np.testing.assert_allclose(sampled, np.array(sequence.logprobs), atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_the_text_part_of_a_model_that_sees_images_computes_what_the_whole_does(
    tmp_path: Path, tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_seeing(tmp_path, "qwen3_5", tied=tied)
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["text_config"]["tie_word_embeddings"]  # as folders on the Hub: said outside only
    file.write_text(json.dumps(config))
    with caplog.at_level("INFO"):
        base = load_base_model("sees", folder)
    assert "32 of" in caplog.text and "the prediction of several tokens at a time" in caplog.text
    assert "UNEXPECTED" not in caplog.text
    assert base.tied == tied and base.vision is not None
    assert all(path.startswith(("model.layers.", "lm_head")) for path in base.shapes)
    tokens = torch.arange(40)
    plain = Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        logits = base.logits(base.hidden(tokens, [40], None), None)
        torch.testing.assert_close(logits, plain(tokens[None]).logits[0], atol=1e-4, rtol=1e-4)


def test_an_adapter_of_plain_peft_is_divided_into_the_parts_of_joined_projections(
    tmp_path: Path,
) -> None:
    folder = make_seeing(tmp_path / "model", "qwen3_5")
    plain = Qwen3_5ForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(1)
    layers = r"model\.language_model\..*\.(in_proj_\w+|out_proj|q_proj|up_proj)"
    config = PeftLoraConfig(r=6, lora_alpha=9, target_modules=layers, init_lora_weights=False)
    peft = get_peft_model(plain, config)
    peft.save_pretrained(str(tmp_path / "peft"))
    base = load_base_model("sees", folder)
    adapter = read_exported_adapter(base, tmp_path / "peft")
    tokens = torch.arange(40)
    with torch.no_grad():
        expected = peft(input_ids=tokens[None]).logits[0]
        logits = base.logits(base.hidden(tokens, [40], adapter), adapter)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
