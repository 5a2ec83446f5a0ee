"""The families that users name, as tiny random models: training and sampling against plain ones.

The twin is transformers' own model with W + scaling B A in place of every trained W, which autograd
differentiates down to A and B.
"""

import warnings
from pathlib import Path

import numpy as np
import pytest
import tinker
import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PreTrainedModel,
)

from tests.support.adapters import filled_adapter, gradients
from tests.support.answers import assert_equal_answers
from tests.support.batches import random_datums
from tests.support.clients import train
from tests.support.engine import MODEL, datum, running_engine
from tests.support.engine import random_datums as random_sdk_datums
from tests.support.exports import export
from tests.support.families import FAMILIES, SIZES, make
from tests.support.loading import load_with_torch
from tinkersmith.engine.messages import LoraConfig, SampleRequest
from tinkersmith.engine.model.adapters import (
    adapter_state,
    load_adapter_state,
    new_adapter,
    snapshot,
)
from tinkersmith.engine.model.experts import LoraExperts, find_experts
from tinkersmith.engine.model.lora import Adapter
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.engine


def logprobs_of_the_twin(
    model: PreTrainedModel, adapter: Adapter, tokens: np.ndarray, targets: np.ndarray
) -> torch.Tensor:  # (T,)
    """Through transformers' layers in float64, every trained weight replaced by W + scaling B A."""

    def product(path: str) -> torch.Tensor:  # ([E,] out, in)
        a, b = (adapter.weights[f"{path}.lora_{side}"].double() for side in "AB")
        return adapter.scaling * b @ a

    changed = {}
    for path in adapter.module_paths:
        parent, _, part = path.rpartition(".")
        if part == "w1":  # gate and up are one parameter
            change = torch.cat([product(path), product(f"{parent}.w3")], 1)
            changed[f"{parent}.gate_up_proj"] = (
                model.get_parameter(f"{parent}.gate_up_proj") + change
            )
        elif part == "w2":
            changed[f"{parent}.down_proj"] = model.get_parameter(f"{parent}.down_proj") + product(
                path
            )
        elif part != "w3":
            changed[f"{path}.weight"] = model.get_parameter(f"{path}.weight") + product(path)
    ids = {"input_ids": torch.from_numpy(tokens)[None]}
    logits = torch.func.functional_call(model, changed, (), ids).logits[0]
    return logits.log_softmax(-1).gather(-1, torch.from_numpy(targets)[:, None])[:, 0]


@pytest.mark.parametrize("rank", [1, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_lora_gradients_equal_those_of_plain_transformers(
    tmp_path: Path, family: str, rank: int
) -> None:
    base = load_with_torch(family, make(tmp_path, family))
    adapter = filled_adapter(base, LoraConfig(rank, 0))
    for weight in adapter.weights.values():  # a change of about the same size at every rank
        weight.data *= (rank / 8) ** 0.5
    datums = random_datums(np.random.default_rng(), 6)
    output = forward_backward(base, adapter, datums, "cross_entropy", {})
    ours = gradients(adapter)
    adapter.clear_gradients()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval().double().requires_grad_(False)
    plain.set_experts_implementation("eager")  # the only one for float64
    total = torch.zeros((), dtype=torch.float64)
    for one, logprobs in zip(datums, output.logprobs, strict=True):
        expected = logprobs_of_the_twin(plain, adapter, one.tokens, one.inputs["target_tokens"])
        np.testing.assert_allclose(logprobs, expected.detach(), atol=2e-5, rtol=1e-5)
        total = total - (expected * torch.from_numpy(one.inputs["weights"])).sum()
    total.backward()
    assert output.metrics["loss:sum"] == pytest.approx(total.item(), rel=1e-5)
    for name, gradient in gradients(adapter).items():
        difference = (ours[name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize(
    ("family", "parts"),
    [
        ("qwen3", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("qwen3_moe", {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}),
        (
            "qwen2_moe with shared experts",
            {"q_proj", "k_proj", "v_proj", "o_proj", "w1", "w2", "w3"}
            | {"gate_proj", "up_proj", "down_proj"},
        ),
    ],
)
def test_attention_and_mlps_or_experts_are_trained_and_no_router(
    tmp_path: Path, family: str, parts: set[str]
) -> None:
    base = load_with_torch(family, make(tmp_path, family))
    adapter = new_adapter(base, LoraConfig(4))
    assert {path.rsplit(".", 1)[-1] for path in adapter.module_paths} == parts | {"lm_head"}
    attention = new_adapter(base, LoraConfig(4, train_mlp=False, train_unembed=False))
    assert all(".self_attn." in path for path in attention.module_paths)


def test_experts_of_another_kind_are_not_touched_and_named() -> None:
    config = Llama4TextConfig(**SIZES, num_local_experts=4, head_dim=8)
    model = Llama4ForCausalLM(config)  # its experts take tokens that the router has scaled
    before = {path: type(module) for path, module in model.named_modules()}
    layers, why_not = find_experts(model)
    assert not layers
    assert (
        "model.layers.0.feed_forward.experts, are not of the kind that this engine knows" in why_not
    )
    assert before == {path: type(module) for path, module in model.named_modules()}


class HalvesExperts(nn.Module):
    """Experts whose gate takes the first half of the joined rows."""

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, -1)
        return up * gate.sigmoid()


def test_which_rows_are_the_gate_s_is_seen_from_the_gate_where_transformers_does_not_say() -> None:
    model = GptOssForCausalLM(GptOssConfig(**SIZES, num_local_experts=4))
    for path, module in model.named_modules():
        if path.endswith(".experts"):
            vars(module).pop("is_concatenated", None)  # as before transformers 5.12
            assert LoraExperts(module, path).alternates
    assert not LoraExperts(HalvesExperts(), "mlp.experts").alternates


def test_an_expert_adapter_has_the_cloud_s_shapes_and_comes_back_from_its_files(
    tmp_path: Path,
) -> None:
    base = load_with_torch("moe", make(tmp_path, "qwen3_moe"))
    adapter = filled_adapter(base, LoraConfig(4, 0))
    state = adapter_state(adapter)
    shapes = {
        part: [
            tuple(
                state[
                    f"base_model.model.model.layers.1.mlp.experts.{part}.lora_{side}.weight"
                ].shape
            )
            for side in "AB"
        ]
        for part in ("w1", "w2", "w3")
    }
    inward, outward = [(1, 4, 32), (5, 16, 4)], [(5, 4, 16), (1, 32, 4)]
    assert shapes == {"w1": inward, "w2": outward, "w3": inward}
    copy = new_adapter(base, LoraConfig(4, 1))
    load_adapter_state(copy, state)
    datums = random_datums(np.random.default_rng(), 2)
    one, two = (forward(base, each, datums, "cross_entropy", {}) for each in (adapter, copy))
    assert one.metrics == two.metrics


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe with shared experts", "mixtral"])
def test_rows_of_different_adapters_have_their_own_updates_of_the_same_experts(
    tmp_path: Path, family: str
) -> None:
    base = load_with_torch(family, make(tmp_path, family))
    configs = [LoraConfig(4, 1), LoraConfig(8, 2, train_attn=False), LoraConfig(2, 3, True, False)]
    adapters = [None, *(snapshot(filled_adapter(base, one, one.rank)) for one in configs)]
    rng, batch = np.random.default_rng(0), Batch(base, None, CacheMemory())
    requests = [
        SampleRequest(rng.integers(0, 250, 5 + number).tolist(), 2, 12, seed=number, stop=[])
        for number in range(8)
    ]
    mixed = list(zip(requests, adapters * 2, strict=True))
    joined = [batch.add(request, adapter) for request, adapter in mixed]
    while batch.sequences:
        batch.step()
    expected = [sample(base, adapter, [request])[0] for request, adapter in mixed]
    assert_equal_answers([one.result for one in joined], expected)


@pytest.mark.parametrize(
    "family", ["qwen3", "qwen3_moe", pytest.param("llama3", marks=pytest.mark.long)]
)
def test_a_client_trains_samples_resumes_and_its_weights_mean_the_same_in_plain_peft(
    tmp_path: Path, family: str
) -> None:
    model = make(tmp_path / "model", family)
    data = random_sdk_datums(4)
    with running_engine(tmp_path / "engine", model) as engine, engine.client() as service:
        client = service.create_lora_training_client(MODEL, rank=4, seed=1).result()
        losses = [train(client, data, rate=0.01) for _ in range(3)]
        assert losses[2] < losses[1] < losses[0]
        state = client.save_state("state").result().path
        resumed = service.create_training_client_from_state_with_optimizer(state).result()
        assert train(resumed, data) == train(client, data)

        path = client.save_weights_for_sampler("weights").result().path
        sampler = service.create_sampling_client(model_path=path).result()
        prompt = tinker.ModelInput.from_ints([72, 101, 108, 108, 111])
        params = tinker.SamplingParams(max_tokens=20, temperature=1.0, seed=3, stop=[])
        [sequence] = sampler.sample(prompt, 1, params).result().sequences
        tokens = [*prompt.to_ints(), *sequence.tokens]
        output = client.forward([datum(tokens)], "cross_entropy").result()
        forward = output.loss_fn_outputs[0]["logprobs"].to_numpy()
        sampled = np.array(sequence.logprobs)
        np.testing.assert_allclose(forward[4:], sampled, atol=1e-4)

    [folder] = {file.parent for file in engine.folder.rglob("adapter_config.json")} - {
        file.parent for file in engine.folder.rglob("optimizer.safetensors")
    }
    adapter = export(folder, model, tmp_path / "peft", merged=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter
        )
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logprobs = plain(input_ids=ids).logits[0, :-1].log_softmax(-1)
    np.testing.assert_allclose(forward, logprobs.gather(1, ids[0, 1:, None])[:, 0], atol=1e-4)
