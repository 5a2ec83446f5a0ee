"""An engine with the bundled model, and with the same weights under two other chat templates."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import tinker

from tests.support.chat_families import FAMILIES
from tests.support.engine import KEY, RunningEngine, datum, running_engine
from tests.support.processes import PATIENCE
from tests.support.seeing_models import make_seeing
from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.engine.server.routes.chat_prompts import Chat, ModelTexts, read_texts

[(BUNDLED, _FOLDER)] = BUNDLED_MODELS.items()
TALKER = "talker"  # with Qwen3's template, which knows thoughts and tools
PLAIN = "plain"  # without a template
SEEING = "sees"  # other weights, which read images
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
    },
}
THOUGHT = "Three and four."
ANSWER = "It is seven."
WORLD = "你好，世界 🙂 café"
CALL = {"a": 3, "b": 4}
_WRITTEN_CALL = f"<tool_call>\n{json.dumps({'name': 'add', 'arguments': CALL})}\n</tool_call>"
_CALLED = [
    {"role": "user", "content": "3 + 4?"},
    {
        "role": "assistant",
        "content": "I add.",
        "tool_calls": [
            {
                "id": "1",
                "type": "function",
                "function": {"name": "add", "arguments": json.dumps(CALL)},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "1", "content": "7"},
]
# What the talker learns to answer: the chat, and the text up to the end token.
LESSONS: list[tuple[Chat, str]] = [
    (
        Chat([{"role": "user", "content": "3 + 4?"}]),
        f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}",
    ),
    (Chat([{"role": "user", "content": "3 + 4?"}], think=False), ANSWER),
    (Chat([{"role": "user", "content": "Greet."}], think=False), WORLD),
    (Chat([{"role": "user", "content": "3 + 4?"}], tools=[TOOL]), f"I add.\n{_WRITTEN_CALL}"),
    (
        Chat([{"role": "user", "content": "3 + 4, twice?"}], tools=[TOOL]),
        f"{_WRITTEN_CALL}\n{_WRITTEN_CALL}",
    ),
    (Chat(_CALLED, tools=[TOOL]), ANSWER),
]


@dataclass
class InferenceEngine:
    engine: RunningEngine
    talker: str  # the path of the talker's weights, which have learned LESSONS

    @property
    def url(self) -> str:
        return self.engine.url

    def openai(self, **options: Any) -> openai.OpenAI:
        options = {"api_key": KEY, "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/oai/api/v1", **options)

    def anthropic(self, **options: Any) -> anthropic.Anthropic:
        options = {"api_key": KEY, "max_retries": 0, **options}
        return anthropic.Anthropic(base_url=f"{self.url}/anthropic/api", **options)

    def post(self, path: str, body: object, **headers: str) -> httpx.Response:
        """A request without a client; the key is sent unless `headers` name another one."""
        sent = {"authorization": f"Bearer {KEY}", **headers}
        return httpx.post(self.url + path, json=body, headers=sent, timeout=PATIENCE)

    def sampler(self, name: str) -> tinker.SamplingClient:
        """The SDK's sampling client of a base model or path."""
        where: Any = {"model_path" if name.startswith("tinker://") else "base_model": name}
        return self.engine.client().create_sampling_client(**where).result()


def texts_of(name: str = BUNDLED, template: str | None = None) -> ModelTexts:
    return read_texts(name, _FOLDER, "2026-01-31", template)


@contextmanager
def running_inference(folder: Path) -> Iterator[InferenceEngine]:
    """The engine, with a trained talker."""
    talker = _with_template(folder / TALKER, FAMILIES["qwen3"].source)
    options: list[str] = []
    plain, seeing = _with_template(folder / PLAIN, None), make_seeing(folder / SEEING, "qwen3_5")
    for name, model in ((TALKER, talker), (PLAIN, plain), (SEEING, seeing)):
        options += ["--base-model", f"{name}={model}"]
    with running_engine(folder / "engine", _FOLDER, *options) as engine:
        yield InferenceEngine(engine, _teach(engine, read_texts(TALKER, talker, "2026-01-31")))


def _with_template(folder: Path, template: str | None) -> Path:
    folder.mkdir()
    for file in _FOLDER.iterdir():
        if file.name != "chat_template.jinja":
            os.symlink(file, folder / file.name)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def _teach(engine: RunningEngine, texts: ModelTexts) -> str:
    data = []
    for chat, answer in LESSONS:
        prompt = texts.tokens_of(texts.prompt_text(chat))
        completion = texts.tokens_of(f"{answer}<|im_end|>")
        data.append(datum(prompt + completion, [0.0] * len(prompt) + [1.0] * len(completion)))
    with engine.client() as service:
        client = service.create_lora_training_client(base_model=TALKER, rank=16, seed=1).result()
        for _ in range(200):
            step = client.forward_backward(data, "cross_entropy")
            client.optim_step(tinker.AdamParams(learning_rate=1e-2)).result()
            if step.result().metrics["loss:sum"] < 1.0:
                break
        return client.save_weights_for_sampler("talker").result().path
