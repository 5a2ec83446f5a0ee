"""A model that sees images trains and samples like plain transformers."""

from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from tests.support.adapters import filled_adapter, gradients
from tests.support.answers import assert_equal_answers
from tests.support.exports import export
from tests.support.family_twin import differences_from_twin, sampling_difference
from tests.support.seeing_models import (
    FAMILIES,
    WIDE,
    SeeingTwin,
    make_seeing,
    picture,
    seeing_datum,
    seeing_request,
    seeing_sequences,
)
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.kernels.choose import with_torch_kernels
from tinkersmith.engine.messages import Answering, LoraConfig
from tinkersmith.engine.model.adapters import save_adapter
from tinkersmith.engine.model.base_model import BaseModel, load_base_model, memory_of_weights
from tinkersmith.engine.model.exported_adapter import read_exported_adapter
from tinkersmith.engine.runtime.fast_code import with_fast_code
from tinkersmith.engine.sampling import batch as batch_module
from tinkersmith.engine.sampling.batch import Batch
from tinkersmith.engine.sampling.cache_memory import CacheMemory
from tinkersmith.engine.sampling.sampler import sample
from tinkersmith.engine.training.step import forward, forward_backward

pytestmark = pytest.mark.engine

RNG = np.random.default_rng(1)
SEQUENCES = seeing_sequences()


def words(count: int) -> list[int]:
    return RNG.integers(0, 250, count).tolist()


@pytest.fixture(scope="module", params=[*FAMILIES, "qwen3_vl tied"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    family, _, tied = request.param.partition(" ")
    folder = make_seeing(tmp_path_factory.mktemp("m"), family, tied=bool(tied))
    return load_base_model("sees", folder)


def with_kernels(base: BaseModel) -> BaseModel:
    return base if base.dense is None else with_torch_kernels(base)


def with_and_without_kernels(base: BaseModel) -> list[BaseModel]:
    return [base] if base.dense is None else [base, with_torch_kernels(base)]


def test_losses_and_lora_gradients_equal_those_of_plain_transformers_in_float64(
    base: BaseModel,
) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=not base.tied))
    datums = [seeing_datum(base, parts, seed) for seed, parts in enumerate(SEQUENCES)]
    twin = SeeingTwin(base.folder)
    for model in with_and_without_kernels(base):
        adapter.clear_gradients()
        expected = map(twin.logprobs, repeat(adapter), datums, SEQUENCES)
        differences = differences_from_twin(model, adapter, datums, expected)
        assert differences.logprob < 2e-5 and differences.loss < 1e-5
        assert differences.gradient < 1e-5, differences.worst


def test_rows_without_a_loss_may_be_left_out(base: BaseModel) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0))
    datums = [seeing_datum(base, parts, seed) for seed, parts in enumerate(SEQUENCES)]
    for datum in datums:
        datum.inputs["weights"][::2] = 0
    model = with_kernels(base)
    whole = forward_backward(model, adapter, datums, "cross_entropy", {})
    expected = gradients(adapter)
    adapter.clear_gradients()
    graded = forward_backward(model, adapter, datums, "cross_entropy", {}, only_graded=True)
    assert graded.metrics["loss:sum"] == pytest.approx(whole.metrics["loss:sum"], rel=1e-6)
    for name, gradient in gradients(adapter).items():
        assert (gradient - expected[name]).norm() < 1e-5 * expected[name].norm(), name


def test_text_is_computed_to_the_bit_as_by_a_model_without_eyes(base: BaseModel) -> None:
    model, adapter = with_kernels(base), filled_adapter(base, LoraConfig(4, 0))
    datums = [seeing_datum(base, [words(n)], n) for n in (30, 5, 17)]
    seen = forward_backward(model, adapter, datums, "cross_entropy", {})
    ours = gradients(adapter)
    adapter.clear_gradients()
    vision, model.vision = model.vision, None
    try:
        blind = forward_backward(model, adapter, datums, "cross_entropy", {})
    finally:
        model.vision = vision
    assert blind.metrics == seen.metrics
    for name, gradient in gradients(adapter).items():
        assert torch.equal(gradient, ours[name])


def all_requests(base: BaseModel, **options: object) -> list:
    return [
        seeing_request(base, parts, max_tokens=6 + number, seed=number, stop=[], **options)
        for number, parts in enumerate([*SEQUENCES, *SEQUENCES[:2]])
    ]


def test_sampled_and_prompt_log_probabilities_are_those_of_a_forward_pass(
    base: BaseModel,
) -> None:
    for model in with_and_without_kernels(base):
        requests = all_requests(model, num_samples=2, prompt_logprobs=True)
        sampled, prompts = sampling_difference(model, requests)
        assert sampled < 1e-4 and prompts < 1e-4


def test_greedy_answers_are_those_of_generate(base: BaseModel) -> None:
    twin = SeeingTwin(base.folder)
    for parts in SEQUENCES:
        request = seeing_request(base, parts, max_tokens=10, temperature=0.0, stop=[])
        tokens = list(request.prompt)
        if request.prompt[-1] >= 0:
            output = twin.model.generate(
                **twin.inputs(tokens, parts), max_new_tokens=10, do_sample=False, eos_token_id=None
            )
            expected = output[0, len(tokens) :].tolist()
        else:  # generate takes what follows for more of the image
            for _ in range(10):
                logits = twin.model(**twin.inputs(tokens, parts), use_cache=False).logits
                tokens.append(int(logits[0, -1].argmax()))
            expected = tokens[len(request.prompt) :]
        for model in with_and_without_kernels(base):
            [result] = sample(model, None, [request])
            assert result.sequences[0].tokens == expected


def test_requests_that_join_and_leave_at_any_step_get_what_each_gets_alone(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_module, "_FIRST_PREFILL", 3)  # prompts are read in small pieces
    model = with_kernels(base)
    adapters = [filled_adapter(base, LoraConfig(4, 0)), None]
    requests = all_requests(model)
    mixed = list(zip(requests, adapters * 4, strict=True))
    expected = [sample(model, adapter, [request])[0] for request, adapter in mixed]
    batch, joined = Batch(model, None, CacheMemory()), list[Answering]()
    number = 0
    while batch.sequences or len(joined) < len(mixed):
        if number % 2 == 0:
            joined += [batch.add(*mixed[len(joined)])] if len(joined) < len(mixed) else []
        batch.step()
        number += 1
    assert_equal_answers([answering.result for answering in joined], expected)


def test_a_prefix_is_shared_with_the_same_image_only(base: BaseModel) -> None:
    model = with_kernels(base)
    other = picture(40, 16, 99)  # as many tokens
    begin = words(30)

    def request(image: bytes, seed: int):
        return seeing_request(
            model, [begin, image, begin, words(3)], max_tokens=5, seed=seed, stop=[]
        )

    requests = [request(WIDE, 0), request(WIDE, 1), request(other, 2)]
    expected = [sample(model, None, [one])[0] for one in requests]
    together = sample(model, None, requests)
    assert_equal_answers(together, expected)
    # The text before the image is shared by all, and what follows by those with the same image.
    hits = sorted(one.prompt_cache_hit_tokens for one in together)
    assert hits in ([0, 30, 70], [30, 30, 70])


def test_an_image_in_use_is_known_by_its_bytes_and_forgotten_later(base: BaseModel) -> None:
    assert base.vision is not None
    image = picture(40, 16, 1000)
    first, again = (seeing_request(base, [image]) for _ in range(2))
    assert first.images[0] is again.images[0]
    serial = first.images[0].serial  # type: ignore[attr-defined]
    assert (first.prompt, len(first.prompt)) == (again.prompt, 10)
    del first, again
    assert serial not in base.vision._by_serial
    assert seeing_request(base, [image]).images[0].serial != serial  # type: ignore[attr-defined]


def test_native_code_computes_what_torch_computes(tmp_path: Path) -> None:
    base = load_base_model("sees", make_seeing(tmp_path))
    fast, plain = with_fast_code(base), with_torch_kernels(base)
    adapter = filled_adapter(base, LoraConfig(4, 0))
    datums = [seeing_datum(base, parts, seed) for seed, parts in enumerate(SEQUENCES)]
    forward_backward(plain, adapter, datums, "cross_entropy", {})
    expected = gradients(adapter)
    adapter.clear_gradients()
    forward_backward(fast, adapter, datums, "cross_entropy", {})
    for name, gradient in gradients(adapter).items():
        assert (gradient - expected[name]).norm() < 1e-5 * expected[name].norm(), name
    requests = all_requests(base)
    assert_equal_answers(sample(fast, adapter, requests), sample(plain, adapter, requests))


def test_bfloat16_computes_about_what_float32_computes(base: BaseModel) -> None:
    datums = [seeing_datum(base, parts, seed) for seed, parts in enumerate(SEQUENCES)]
    exact = forward(base, None, datums, "cross_entropy", {}).logprobs
    for model in with_and_without_kernels(load_base_model("sees", base.folder, "bfloat16")):
        again = [seeing_datum(model, parts, seed) for seed, parts in enumerate(SEQUENCES)]
        rounded = forward(model, None, again, "cross_entropy", {}).logprobs
        for ours, theirs in zip(rounded, exact, strict=True):
            assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)


def test_a_damaged_vision_tower_is_refused_when_the_model_is_loaded(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.visual.blocks.1.mlp.linear_fc1.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"visual\.blocks\.1\.mlp\.linear_fc1\.weight holds NaN"):
        load_base_model("sees", folder)


def test_a_model_whose_images_the_engine_gets_wrong_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_seeing(tmp_path)
    monkeypatch.setattr("tinkersmith.engine.images.families.sections", lambda config: (4, 1, 3))
    with pytest.raises(Refused, match="computes something with images that this engine does not"):
        load_base_model("sees", folder)


def test_memory_is_asked_for_with_the_vision_tower(base: BaseModel) -> None:
    assert base.vision is not None
    tower = sum(weight.numel() for weight in base.vision.tower.parameters())
    own = base.model.num_parameters()
    assert memory_of_weights(base.folder, "float32", "cpu") == 4 * (own + tower)


def test_an_export_is_loaded_by_peft_on_the_whole_model(base: BaseModel, tmp_path: Path) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=not base.tied))
    (tmp_path / "checkpoint").mkdir()
    save_adapter(base, adapter, tmp_path / "checkpoint")
    out = export(tmp_path / "checkpoint", base.folder, tmp_path / "out", merged=False)
    loaded = read_exported_adapter(base, out)
    for name, weight in adapter.weights.items():
        torch.testing.assert_close(loaded.weights[name], weight, atol=1e-7, rtol=1e-6)
    twin, parts = SeeingTwin(base.folder), SEQUENCES[0]
    datum = seeing_datum(base, parts)
    whole = out / "vllm" if (out / "vllm").is_dir() else out  # beside it, the text part alone
    peft = PeftModel.from_pretrained(twin.model, str(whole)).eval().double()
    with torch.no_grad():
        logits = peft(**twin.inputs(datum.tokens.tolist(), parts), use_cache=False).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].numpy()
    [ours] = forward(base, adapter, [datum], "cross_entropy", {}).logprobs
    np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_a_merged_export_computes_what_the_engine_computes(base: BaseModel, tmp_path: Path) -> None:
    adapter = filled_adapter(base, LoraConfig(4, 0, train_unembed=not base.tied))
    (tmp_path / "checkpoint").mkdir()
    save_adapter(base, adapter, tmp_path / "checkpoint")
    out = export(tmp_path / "checkpoint", base.folder, tmp_path / "out", merged=True)
    parts = SEQUENCES[2]
    datum = seeing_datum(base, parts)
    expected = SeeingTwin(out).logprobs(None, datum, parts).numpy()
    [ours] = forward(base, adapter, [datum], "cross_entropy", {}).logprobs
    np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_folder_that_lacks_the_vision_tower_is_a_model_of_text(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = make_seeing(tmp_path, family) / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "visual" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with caplog.at_level("INFO"):
        base = load_base_model("blind", tmp_path)
    assert "32 of" in caplog.text and "only its text part is used" in caplog.text
    assert base.vision is None
    assert memory_of_weights(tmp_path, "float32", "cpu") == 4 * base.model.num_parameters()
    assert seeing_request(base, [[1, 2]]).prompt == [1, 2]
    with pytest.raises(Refused, match="the prompt has an image, and blind reads text only here"):
        seeing_request(base, [WIDE])


def test_a_qwen3_vl_that_lacks_its_vision_tower_is_refused(tmp_path: Path) -> None:
    file = make_seeing(tmp_path) / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if "visual" not in name}
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"lack model\.visual\..*Copy the model again"):
        load_base_model("sees", tmp_path)


def test_an_adapter_of_plain_peft_is_read(tmp_path: Path) -> None:
    folder = make_seeing(tmp_path / "model")
    plain = Qwen3VLForConditionalGeneration.from_pretrained(folder)
    torch.manual_seed(1)
    layers = r"model\.language_model\..*\.(q_proj|v_proj|up_proj)"
    config = PeftLoraConfig(r=6, lora_alpha=9, target_modules=layers, init_lora_weights=False)
    peft = get_peft_model(plain, config)
    peft.save_pretrained(str(tmp_path / "peft"))
    base = load_base_model("sees", folder)
    adapter = read_exported_adapter(base, tmp_path / "peft")
    parts = SEQUENCES[0]
    datum = seeing_datum(base, parts)
    inputs = SeeingTwin(folder).inputs(datum.tokens.tolist(), parts)
    with torch.no_grad():
        inputs["pixel_values"] = inputs["pixel_values"].float()
        logits = peft(**inputs).logits[0]
    targets = torch.from_numpy(datum.inputs["target_tokens"])
    expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].numpy()
    [ours] = forward(base, adapter, [datum], "cross_entropy", {}).logprobs
    np.testing.assert_allclose(ours, expected, atol=1e-4)
