"""What the preview shows is what the engine receives, token by token, with the same weights."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from tests.support.chat_families import FAMILIES, make_family_tokenizer
from tests.support.engine import KEY, RunningEngine, running_engine
from tests.support.fault_proxy import fault_proxy
from tests.support.tiny_models import make_tiny_model
from tinkersmith import train
from tinkersmith.engine.server.wire import pb
from tinkersmith.preview.examine import Choice, Examined, SequenceView, examine_tokens
from tinkersmith.preview.plan import local_encoding, training_samples
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.settings.reading import settings_from

pytestmark = pytest.mark.engine

BUNDLED = "tinkersmith/tiny-math"
RECORDS = [
    {"instruction": "Add.", "input": "1 + 2", "output": "Answer: 3"},
    {"instruction": "把它翻译成英文。", "input": "今天很好 🍁", "output": "It is nice today."},
    {"instruction": "Write <|im_end|> twice.", "output": "<|im_end|><|endoftext|>"},
    {
        "instruction": "And then?",
        "output": "The end.",
        "system": "You tell stories.",
        "history": [["Begin.", "Once upon a time."], ["Go on.", "There was a fox."]],
    },
    {"instruction": "Think.", "output": "<think>\nI think so.\n</think>\n\nYes."},
    {"instruction": "Say much.", "output": "word " * 200},
]

CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}
CONVERSATIONS = [
    {"text": "Plain text, 纯文本, of which all is trained but its first token."},
    {
        "messages": [
            {"role": "user", "content": "Think first."},
            {"role": "assistant", "reasoning_content": "First.", "content": "One."},
            {"role": "user", "content": "And again?"},
            {"role": "assistant", "reasoning_content": "Second. 再想。", "content": "Two."},
        ]
    },
    {
        "messages": [
            {"role": "system", "content": "You add."},
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
            {"role": "assistant", "content": "It is 2."},
        ],
        "tools": [TOOL],
    },
    {
        "messages": [
            {"role": "user", "content": "Hi <|im_end|> <think>"},
            {"role": "assistant", "content": "Not this.", "weight": 0},
            {"role": "user", "content": "Then?"},
            {"role": "assistant", "content": "This.", "weight": 1},
        ]
    },
    {"conversations": [{"from": "human", "value": "Yes?"}, {"from": "gpt", "value": "No."}]},
]

Wire = list[tuple[list[int], list[float]]]  # tokens, and the weights of all but the first


@dataclass
class Recorded:
    """The forward_backward bodies that pass a proxy."""

    bodies: list[bytes] = field(default_factory=list)

    def listen(self, route: str, head: bytes, body: bytes) -> None:
        if route == "POST forward_backward":
            assert b"transfer-encoding" not in head.lower()
            packed = b"content-encoding: zstd" in head.lower()
            plain = zstandard.ZstdDecompressor().decompressobj()
            self.bodies.append(plain.decompress(body) if packed else body)

    def sequences(self) -> Wire:
        sequences: Wire = []
        for body in self.bodies:
            message = pb.ForwardBackwardRequest()
            message.ParseFromString(body)
            for datum in message.data:
                chunks = [chunk.encoded_text.tokens for chunk in datum.model_input]
                tokens = np.frombuffer(b"".join(chunks), "<i4").tolist()
                targets = np.frombuffer(datum.loss_fn_inputs["target_tokens"].dense, "<i8")
                weights = np.frombuffer(datum.loss_fn_inputs["weights"].dense, "<f4")
                assert tokens[1:] == targets[:-1].tolist()
                sequences.append(([*tokens, int(targets[-1])], weights.tolist()))
        return sequences


@pytest.fixture(scope="module")
def thinking_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tokenizer and the chat template of Qwen3's kind."""
    folder = make_tiny_model(tmp_path_factory.mktemp("thinking"), vocab_size=700)
    make_family_tokenizer(folder, FAMILIES["qwen3"])
    return folder


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, thinking_model: Path
) -> Iterator[RunningEngine]:
    """An engine that offers the bundled model and, by its folder, the other one."""
    folder = tmp_path_factory.mktemp("server")
    with running_engine(folder, thinking_model, "--base-model", str(thinking_model)) as running:
        yield running


def examined(settings: Settings) -> Examined:
    data = training_samples(settings, Progress(lambda line: None))
    encoding, _ = local_encoding(settings, data.source)
    return examine_tokens(data.samples, encoding, Choice(count=100))


def check_wire(
    records: list[dict[str, Any]],
    server: RunningEngine,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    **names: object,
) -> list[SequenceView]:
    """Train on `records`, compare what was sent with the preview, and return the preview."""
    data = folder / "data.json"
    data.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    recorded = Recorded()
    with fault_proxy(server.url, "500", share=0.0) as proxy:
        proxy.listen = recorded.listen
        monkeypatch.setenv("TINKER_BASE_URL", proxy.url)
        monkeypatch.setenv("TINKER_API_KEY", KEY)
        monkeypatch.setenv("TINKER_TELEMETRY", "0")
        settings = settings_from(
            {
                "DATA_FILES": [str(data)],
                "BASE_MODEL": BUNDLED,
                "BACKEND": "tinker",
                "OUTPUT_DIR": str(folder / "runs"),
                "BATCH_SIZE": len(records),
                "NUM_EPOCHS": 1,
                "LORA_RANK": 2,
                "SAMPLING_MAX_TOKENS": 2,
                "EXPORT_AFTER_TRAINING": "no",
                **names,
            }
        )
        with train(settings):
            pass
    sent = recorded.sequences()
    views = [view for sample in examined(settings).chosen for view in sample.sequences]
    shown = [view for view in views if view.sent is not None]
    assert len(shown) == len(sent) > 0
    # The weight of a trained token is one over the number of trained tokens in the step.
    scale = max(weight for _, weights in sent for weight in weights)
    expected = sorted(
        (view.tokens[: view.length].tolist(), (view.weights[1:] * scale).tolist()) for view in shown
    )
    for (tokens, weights), (wire_tokens, wire_weights) in zip(expected, sorted(sent), strict=True):
        assert wire_tokens == tokens
        assert wire_weights == pytest.approx(weights, rel=1e-6)
    return views


@pytest.mark.parametrize(
    "names",
    [
        {"PROMPT_TEMPLATE": "instruction"},
        {"PROMPT_TEMPLATE": "chat", "MAX_SEQUENCE_LENGTH": 100, "TRAIN_ON": "last"},
        {"PROMPT_TEMPLATE": "Q: {instruction} {input}\nA: ", "MAX_SEQUENCE_LENGTH": 60}
        | {"TRUNCATE_LONG_SEQUENCES": False},
    ],
    ids=["instruction", "chat", "own"],
)
def test_the_preview_shows_what_the_engine_receives(
    names: dict[str, object],
    server: RunningEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_wire(RECORDS, server, tmp_path, monkeypatch, **names)


@pytest.mark.parametrize("thinking", ["auto", "strip"])
def test_conversations_tools_and_thoughts_are_shown_as_they_are_sent(
    thinking: str,
    server: RunningEngine,
    thinking_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = {"BASE_MODEL": str(thinking_model), "PROMPT_TEMPLATE": "chat", "THINKING": thinking}
    views = check_wire(CONVERSATIONS, server, tmp_path, monkeypatch, **names)
    # Qwen3 writes an answer differently once others follow, so such answers are sequences too.
    assert len(views) == 7
