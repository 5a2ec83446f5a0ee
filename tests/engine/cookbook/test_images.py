"""tinker-cookbook's renderer, evaluation and merge work with a model that sees, as they are."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from PIL import Image

from tests.support.adapters import filled_adapter, merge_with_cookbook
from tests.support.clients import new_client, train
from tests.support.engine import running_engine
from tests.support.seeing_models import Parts, SeeingTwin, make_seeing, picture, seeing_datum
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.model.base_model import load_base_model
from tinkersmith.engine.training.step import forward

pytestmark = pytest.mark.cookbook

pytest.importorskip(
    "tinker_cookbook.weights", reason="tinker-cookbook is not installed: see `make test`"
)


RENDERERS = {"qwen3_vl": "qwen3_vl_instruct", "qwen3_5": "qwen3_5_disable_thinking"}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.long] if name == "qwen3_vl" else [])
        for name in RENDERERS
    ],
)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_seeing(tmp_path_factory.mktemp("model"), family)


def test_the_cookbook_merges_an_adapter_into_the_whole_model(folder: Path, tmp_path: Path) -> None:
    base = load_base_model("sees", folder)
    adapter = filled_adapter(base, LoraConfig(4, 0))
    merged_folder = merge_with_cookbook(base, adapter, tmp_path)
    shutil.copy(folder / "preprocessor_config.json", merged_folder)
    parts: Parts = [[1, 2, 3], picture(24, 16), [4, 5, 6]]
    datum = seeing_datum(base, parts)
    [ours] = forward(base, adapter, [datum], "cross_entropy", {}).logprobs
    expected = SeeingTwin(merged_folder).logprobs(None, datum, parts).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def asked(image: Image.Image) -> list[dict[str, Any]]:
    question = {"type": "text", "text": "Which?"}
    return [{"role": "user", "content": [{"type": "image", "image": image}, question]}]


def test_conversations_of_the_renderer_for_images_are_learned_and_scored(
    family: str, folder: Path, tmp_path: Path
) -> None:
    from tinker_cookbook.renderers import get_renderer
    from tinker_cookbook.supervised.common import datum_from_model_input_weights
    from tinker_cookbook.supervised.nll_evaluator import SamplerNLLEvaluator
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    processor: Any = AutoImageProcessor.from_pretrained(folder)  # as the cookbook does
    renderer = get_renderer(RENDERERS[family], tokenizer, processor)
    images = {
        "red": Image.new("RGB", (40, 16), (250, 20, 20)),
        "blue": Image.new("RGB", (24, 30), (20, 20, 250)),
    }
    data: list[tinker.Datum] = []
    for answer, image in images.items():
        messages: Any = [*asked(image), {"role": "assistant", "content": answer}]
        model_input, of_tokens = renderer.build_supervised_example(messages)
        data.append(datum_from_model_input_weights(model_input, of_tokens))
    with running_engine(tmp_path, folder) as engine, engine.client() as service:
        client = new_client(service, rank=8)
        losses = [train(client, data, rate=1e-2) for _ in range(60)]
        assert losses[-1] < 0.05 * losses[0]
        sampler = client.save_weights_and_get_sampling_client().result()
        greedy = tinker.SamplingParams(
            max_tokens=12, temperature=0.0, stop=renderer.get_stop_sequences()
        )
        for answer, image in images.items():
            prompt = renderer.build_generation_prompt(asked(image))  # pyright: ignore
            [sequence] = sampler.sample(prompt, 1, greedy).result().sequences
            message, _ = renderer.parse_response(sequence.tokens)
            assert message["content"] == answer
        scores = asyncio.run(SamplerNLLEvaluator(data)(sampler))
        loss = client.forward(data, "cross_entropy").result().metrics["loss:sum"]
        count = sum(datum.loss_fn_inputs["weights"].to_numpy().sum() for datum in data)
        assert scores["test/nll"] == pytest.approx(loss / count, abs=1e-4)
