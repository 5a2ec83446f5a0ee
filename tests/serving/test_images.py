"""Images through `serve`: a base that sees and its adapters, with templates of training."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.adapters import filled_adapter, save_as_peft
from tests.support.loading import load_with_torch
from tests.support.seeing_models import WIDE, make_seeing
from tests.support.serving import anthropic_of, openai_of, serving
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.server import RunningServer
from tinkersmith.settings.reading import settings_from
from tinkersmith.text.choose import choose_template
from tinkersmith.text.jinja_template import chat_template_of
from tinkersmith.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.engine, pytest.mark.long]

DATA = base64.b64encode(WIDE).decode()
WORDS = {"type": "text", "text": "Which?"}
PART = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
BLOCK = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
ASKED: Any = [{"role": "user", "content": [PART, WORDS]}]
BLOCKS: Any = [{"role": "user", "content": [BLOCK, WORDS]}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Two exported adapters: one trained on the chat template, one on a template of text."""
    folder = tmp_path_factory.mktemp("images")
    base_folder = make_seeing(folder / "sees", "qwen3_5")
    base, tokenizer = load_with_torch("sees", base_folder), load_tokenizer(base_folder)
    for seed, (name, kind) in enumerate((("chatty", "chat"), ("plain", "alpaca")), start=1):
        adapter = filled_adapter(base, LoraConfig(4, seed, train_unembed=False), seed)
        save_as_peft(base, adapter, folder / name)
        template = choose_template(kind, tokenizer, "sees")
        written = json.dumps(template.to_json())
        (folder / name / "prompt_template.json").write_text(written, encoding="utf-8")
        jinja = chat_template_of(template)
        assert jinja is not None
        (folder / name / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    settings = settings_from({"OUTPUT_DIR": str(folder / "runs")})
    names = [str(folder / "chatty"), str(folder / "plain")]
    with serving(models_to_serve(names, settings, base_model=str(base_folder))) as running:
        yield running


@pytest.mark.parametrize("model", ["chatty", "plain", "sees"])
def test_both_clients_ask_each_model_about_an_image(server: RunningServer, model: str) -> None:
    client, other = openai_of(server), anthropic_of(server)
    asked: Any = {"model": model, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(messages=ASKED, **asked)
    without = client.chat.completions.create(
        messages=[{"role": "user", "content": "Which?"}], **asked
    )
    assert whole.usage is not None and without.usage is not None
    # 10 tokens of the image, and the two around it
    assert whole.usage.prompt_tokens == without.usage.prompt_tokens + 12
    stream = client.chat.completions.create(messages=ASKED, stream=True, **asked)
    text = whole.choices[0].message.content
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == text
    message: Any = other.messages.create(
        model=model, max_tokens=6, messages=BLOCKS, extra_body={"temperature": 0}
    )
    assert "".join(block.text for block in message.content) == text
    count = other.messages.count_tokens(model=model, messages=BLOCKS)
    assert count.input_tokens == message.usage.input_tokens == whole.usage.prompt_tokens
    damaged = {**PART, "image_url": {"url": "data:image/png;base64,AAAA"}}
    with pytest.raises(openai.BadRequestError, match="is not a PNG or JPEG file"):
        client.chat.completions.create(
            messages=[{"role": "user", "content": [damaged, WORDS]}],  # pyright: ignore
            **asked,
        )
