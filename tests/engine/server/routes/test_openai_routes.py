"""OpenAI's API on a real engine: by the `openai` client, and raw where it cannot express it."""

import asyncio
import base64
import contextlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import numpy as np
import openai
import pydantic
import pytest
import tinker
from tinker.types import EncodedTextChunk, ImageChunk

from tests.support.chat_families import FAMILIES
from tests.support.engine import KEY, datum, get_json, running_engine
from tests.support.inference import (
    ANSWER,
    BUNDLED,
    CALL,
    PLAIN,
    SEEING,
    TALKER,
    THOUGHT,
    TOOL,
    WORLD,
    InferenceEngine,
    texts_of,
)
from tests.support.processes import PATIENCE, eventually
from tests.support.programs import NEVER_READY
from tests.support.seeing_models import TALL, WIDE, make_seeing_tokenizer
from tinkersmith.engine.server.routes.chat_prompts import Chat

pytestmark = pytest.mark.engine

PROMPT = "Question: Tom has 3 apples"
SUM = [{"role": "user", "content": "3 + 4?"}]
GREET = [{"role": "user", "content": "Greet."}]
COMPLETIONS, CHAT = "/oai/api/v1/completions", "/oai/api/v1/chat/completions"
TEXTS = texts_of()


@pytest.fixture(scope="module")
def client(inference: InferenceEngine) -> openai.OpenAI:
    return inference.openai()


def streamed(client: openai.OpenAI, **asked: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    for chunk in client.completions.create(stream=True, **asked):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
    return texts


def chat(client: openai.OpenAI, messages: list, model: str, **asked: Any) -> Any:
    asked = {"temperature": 0, "max_tokens": 80, **asked}
    return client.chat.completions.create(messages=messages, model=model, **asked)


def sdk_sample(
    inference: InferenceEngine, prompt: list[int], count: int = 1, **asked: Any
) -> Sequence[tinker.SampledSequence]:
    params = tinker.SamplingParams(**asked)
    model_input = tinker.ModelInput.from_ints(prompt)
    return inference.sampler(BUNDLED).sample(model_input, count, params).result().sequences


def json_in_jinja(value: object) -> str:
    """An expression of Jinja that writes a value as JSON."""
    return "'" + json.dumps(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def refusal(
    inference: InferenceEngine, path: str, body: object, **headers: str
) -> tuple[int, dict]:
    answer = inference.post(path, body, **headers)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


# ---- models


def test_the_models_are_the_bases_and_the_sampler_checkpoints(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == BUNDLED
    assert {TALKER, PLAIN, inference.talker} < set(names)
    assert client.models.retrieve(BUNDLED).object == "model"
    with pytest.raises(openai.NotFoundError, match="offered"):
        client.models.retrieve("no-such-model")


def test_a_model_is_named_by_base_by_path_or_by_both(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    path = inference.talker
    answers = [chat(client, SUM, name) for name in (path, f"{TALKER};{path}")]
    assert [answer.choices[0].message.content for answer in answers] == [ANSWER, ANSWER]
    assert answers[1].model == f"{TALKER};{path}"
    assert chat(client, SUM, TALKER).choices[0].message.content != ANSWER
    with pytest.raises(openai.BadRequestError, match=f"belongs to {TALKER}"):
        chat(client, SUM, f"{BUNDLED};{path}")


@pytest.mark.parametrize(
    "name",
    [
        "gpt-9",
        "tinker://nobody:train:0/sampler_weights/x",
        "tinker://x",
        f"{BUNDLED}tinker://a/b/c",
    ],
)
def test_an_unknown_model_is_a_404(inference: InferenceEngine, name: str) -> None:
    status, error = refusal(inference, CHAT, {"model": name, "messages": SUM})
    assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")


def test_a_deleted_checkpoint_is_gone_and_its_name_can_have_other_weights(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    def first_token(path: str) -> str:
        answer = client.completions.create(model=path, prompt="x", max_tokens=1, temperature=0)
        return answer.choices[0].text

    with inference.engine.client() as service:
        trainer = service.create_lora_training_client(base_model=BUNDLED, rank=4).result()
        path = trainer.save_weights_for_sampler("same").result().path
        untrained = first_token(path)
        rest = service.create_rest_client()
        rest.delete_checkpoint_from_tinker_path(path).result()
        with pytest.raises(openai.NotFoundError):
            first_token(path)
        for _ in range(15):
            prompt, target = TEXTS.tokens_of("x"), TEXTS.tokens_of("!")
            trainer.forward_backward([datum([*prompt, *target])], "cross_entropy").result()
            trainer.optim_step(tinker.AdamParams(learning_rate=2e-2)).result()
        assert trainer.save_weights_for_sampler("same").result().path == path
    assert first_token(path) == "!" != untrained


# ---- completions


def test_greedy_completions_are_the_sdks_samples(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    prompt = TEXTS.tokens_of(PROMPT)
    [expected] = sdk_sample(inference, prompt, temperature=0, max_tokens=40)
    answer = client.completions.create(model=BUNDLED, prompt=PROMPT, temperature=0, max_tokens=40)
    assert answer.choices[0].text == TEXTS.tokenizer.decode(expected.tokens)
    assert answer.usage is not None and answer.usage.completion_tokens == len(expected.tokens)


def test_seeded_completions_are_the_sdks_samples_with_their_logprobs(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    prompt = TEXTS.tokens_of(PROMPT)
    asked: Any = {"temperature": 1.0, "max_tokens": 20, "seed": 7, "top_p": 0.95}
    expected = sdk_sample(inference, prompt, 3, **asked)
    answer = client.completions.create(model=BUNDLED, prompt=prompt, n=3, logprobs=0, **asked)
    texts = [choice.text for choice in answer.choices]
    assert texts == [TEXTS.tokenizer.decode(sequence.tokens) for sequence in expected]
    assert len(set(texts)) == 3
    for choice, sequence in zip(answer.choices, expected, strict=True):
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        assert sequence.logprobs is not None
        count = len(choice.logprobs.token_logprobs)  # an end token is not part of the text
        np.testing.assert_allclose(
            choice.logprobs.token_logprobs, sequence.logprobs[:count], atol=1e-4
        )


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0},
        {"temperature": 1, "seed": 3, "n": 3},
        {"temperature": 2, "seed": 3, "n": 32},  # the whole one's text is made in a thread
    ],
)
def test_a_streamed_completion_is_the_whole_one(client: openai.OpenAI, asked: Any) -> None:
    asked = {"model": BUNDLED, "prompt": PROMPT, "max_tokens": 30, **asked}
    whole = client.completions.create(**asked)
    assert streamed(client, **asked) == {choice.index: choice.text for choice in whole.choices}


def test_several_prompts_are_answered_in_their_order(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "Anna has 5 pens", "x"]
    asked: Any = {"model": BUNDLED, "temperature": 0, "max_tokens": 12}
    alone = [client.completions.create(prompt=prompt, **asked).choices[0] for prompt in prompts]
    together = client.completions.create(prompt=prompts, n=2, **asked)
    assert [choice.index for choice in together.choices] == list(range(6))
    expected = [choice.text for choice in alone for _ in range(2)]
    assert [choice.text for choice in together.choices] == expected
    tokens = [TEXTS.tokens_of(prompt) for prompt in prompts]
    by_token = client.completions.create(prompt=tokens, **asked)
    assert [choice.text for choice in by_token.choices] == expected[::2]


def test_sixteen_tokens_are_sampled_by_default_and_the_reason_of_the_end_is_told(
    client: openai.OpenAI,
) -> None:
    asked: Any = {"model": BUNDLED, "temperature": 0}
    cut = client.completions.create(prompt=PROMPT, **asked)
    assert cut.usage is not None and cut.usage.completion_tokens == 16
    assert cut.choices[0].finish_reason == "length"
    whole = client.completions.create(prompt=PROMPT, max_tokens=400, **asked)
    assert whole.usage is not None and whole.usage.completion_tokens < 400
    assert whole.choices[0].finish_reason == "stop"
    assert "<|" not in whole.choices[0].text


def token_texts(client: openai.OpenAI, **asked: Any) -> list[str]:
    answer = client.completions.create(model=BUNDLED, prompt=PROMPT, logprobs=0, **asked)
    assert answer.choices[0].logprobs is not None
    return answer.choices[0].logprobs.tokens or []


def test_a_stop_string_across_tokens_ends_the_text_before_it(client: openai.OpenAI) -> None:
    asked: Any = {"temperature": 0, "max_tokens": 30}
    tokens = token_texts(client, **asked)
    place = next(i for i in range(6, 25) if len(tokens[i]) > 1 and len(tokens[i + 1]) > 1)
    stop = tokens[place][-1] + tokens[place + 1][0]
    text = "".join(tokens)
    expected = text[: text.index(stop)]
    asked |= {"model": BUNDLED, "prompt": PROMPT, "stop": stop}
    answer = client.completions.create(logprobs=0, **asked)
    assert answer.choices[0].text == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is not None
    kept = "".join(answer.choices[0].logprobs.tokens or [])
    assert kept.startswith(expected) and stop not in kept
    assert streamed(client, **asked) == {0: expected}


def test_of_several_stop_strings_the_first_in_the_text_counts(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "temperature": 0, "max_tokens": 30}
    text = client.completions.create(**asked).choices[0].text
    stops = ["never in it", text[12:16], text[8:10]]
    expected = text[: min(text.index(stop) for stop in stops[1:])]
    assert client.completions.create(stop=stops, **asked).choices[0].text == expected
    assert streamed(client, stop=stops, **asked) == {0: expected}


def test_echo_gives_the_prompt_and_its_logprobs(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    plain = client.completions.create(**asked).choices[0].text
    echoed = client.completions.create(echo=True, logprobs=2, **asked).choices[0]
    assert echoed.text == PROMPT + plain
    assert streamed(client, echo=True, **asked) == {0: PROMPT + plain}
    assert echoed.logprobs is not None and echoed.logprobs.tokens is not None
    assert "".join(echoed.logprobs.tokens) == echoed.text
    prompt = TEXTS.tokens_of(PROMPT)
    scores = inference.sampler(BUNDLED).compute_logprobs(tinker.ModelInput.from_ints(prompt))
    given = (echoed.logprobs.token_logprobs or [])[: len(prompt)]
    assert given[0] is None  # pyright: ignore[reportUnnecessaryComparison]
    np.testing.assert_allclose(given[1:], scores.result()[1:], atol=1e-4)  # type: ignore
    with pytest.raises(openai.BadRequestError, match="cannot be streamed"):
        client.completions.create(echo=True, logprobs=1, stream=True, **asked)


def test_with_echo_and_no_new_tokens_only_the_prompt_is_scored(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "max_tokens": 0}
    answer = client.completions.create(echo=True, logprobs=1, **asked)
    assert answer.choices[0].text == PROMPT
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == len(TEXTS.tokens_of(PROMPT))
    chunks = list(
        client.completions.create(
            echo=True, stream=True, stream_options={"include_usage": True}, **asked
        )
    )
    [first, last] = chunks
    assert (first.choices[0].text, first.choices[0].finish_reason) == (PROMPT, "length")
    assert last.usage == answer.usage
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        client.completions.create(**asked)


def test_logprobs_of_completions_spell_the_text_at_their_offsets(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "temperature": 0, "max_tokens": 30}
    [choice] = client.completions.create(logprobs=3, **asked).choices
    scores = choice.logprobs
    assert scores is not None and scores.tokens and scores.text_offset and scores.top_logprobs
    assert "".join(scores.tokens) == choice.text
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert choice.text[offset:].startswith(token)
    for token, value, top in zip(
        scores.tokens, scores.token_logprobs or [], scores.top_logprobs, strict=True
    ):
        assert len(top) == 3
        assert max(top.values()) == pytest.approx(top[token]) == pytest.approx(value)
    chunks = client.completions.create(logprobs=3, stream=True, **asked)
    pieces = [chunk.choices[0].logprobs for chunk in chunks]
    assert [token for piece in pieces if piece for token in piece.tokens or []] == scores.tokens


def test_the_token_that_ends_a_completion_is_scored_last(client: openai.OpenAI) -> None:
    end = "<|endoftext|>"
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "n": 32, "max_tokens": 64, "seed": 3}
    choices = client.completions.create(logprobs=1, temperature=1.5, **asked).choices
    assert {choice.finish_reason for choice in choices} == {"stop", "length"}
    for choice in choices:
        assert choice.logprobs is not None and choice.logprobs.tokens
        assert (choice.logprobs.tokens[-1] == end) == (choice.finish_reason == "stop")
        assert end not in choice.text
    chunks = client.completions.create(logprobs=1, temperature=1.5, stream=True, **asked)
    ends = [
        part.index
        for chunk in chunks
        for part in chunk.choices
        if part.logprobs is not None and end in (part.logprobs.tokens or [])
    ]
    assert sorted(ends) == [c.index for c in choices if c.finish_reason == "stop"]


def test_usage_counts_tokens_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "temperature": 0, "max_tokens": 9, "n": 2}
    whole = client.completions.create(**asked).usage
    assert whole is not None
    assert whole.prompt_tokens == len(TEXTS.tokens_of(PROMPT))
    assert (whole.completion_tokens, whole.total_tokens) == (18, whole.prompt_tokens + 18)
    options: Any = {"include_usage": True}
    chunks = list(client.completions.create(stream=True, stream_options=options, **asked))
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole)
    assert all(chunk.usage is None for chunk in client.completions.create(stream=True, **asked))


# ---- chat


def test_chat_is_the_completion_of_what_the_template_writes(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    rendered = "<|im_start|>user\n3 + 4?<|im_end|>\n<|im_start|>assistant\n"
    stops = [0, TEXTS.tokens_of("<|im_end|>")[0]]
    [expected] = sdk_sample(
        inference, TEXTS.tokens_of(rendered), temperature=0, max_tokens=80, stop=stops
    )
    answer = chat(client, SUM, BUNDLED)
    assert answer.choices[0].message.content == TEXTS.tokenizer.decode(expected.tokens)
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.prompt_tokens == len(TEXTS.tokens_of(rendered))
    chunks = list(chat(client, SUM, BUNDLED, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == answer.choices[0].finish_reason


def test_the_sampled_token_is_among_its_alternatives(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "prompt": PROMPT, "max_tokens": 30, "temperature": 2}
    for count in (0, 1):
        [choice] = client.completions.create(logprobs=count, seed=1, echo=True, **asked).choices
        scores = choice.logprobs
        assert scores is not None and scores.tokens and scores.top_logprobs
        assert scores.top_logprobs[0] is None
        own = zip(scores.tokens, scores.token_logprobs or [], scores.top_logprobs, strict=True)
        for token, value, top in list(own)[1:]:
            assert top[token] == pytest.approx(value) and len(top) <= count + 1
        # At this temperature some tokens are not the likeliest.
        assert {len(top) for top in scores.top_logprobs[1:]} == ({1} if count == 0 else {1, 2})


def test_seeded_chats_with_n_stream_what_they_answer_whole(client: openai.OpenAI) -> None:
    asked: Any = {"temperature": 0.9, "seed": 11, "n": 3, "max_tokens": 25}
    whole = chat(client, SUM, BUNDLED, **asked)
    texts = ["", "", ""]
    for chunk in chat(client, SUM, BUNDLED, stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) > 1


def test_messages_may_be_of_all_roles_and_have_parts(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "3 +"}, {"type": "text", "text": " 4?"}]
    plain = [{"role": "system", "content": "Be kind."}, *SUM]
    spelled = [{"role": "developer", "content": "Be kind."}, {"role": "user", "content": parts}]
    assert chat(client, plain, BUNDLED).usage == chat(client, spelled, BUNDLED).usage
    with pytest.raises(openai.BadRequestError, match="type text"):
        chat(client, [{"role": "user", "content": [{"type": "input_audio"}]}], BUNDLED)


def image_part(data: bytes, kind: str = "png", **options: str) -> dict:
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url, **options}}


def asked_about(*parts: dict) -> list:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}]


def test_images_of_a_chat_are_those_of_the_sdk(
    inference: InferenceEngine, client: openai.OpenAI, tmp_path: Path
) -> None:
    messages = asked_about(image_part(WIDE), image_part(TALL, "jpeg"))
    whole = chat(client, messages, SEEING, logprobs=True, max_tokens=8)
    tokenizer = make_seeing_tokenizer(tmp_path)

    def text(words: str) -> EncodedTextChunk:
        return EncodedTextChunk(tokens=tokenizer.encode(words, add_special_tokens=False))

    chunks = [
        text("<|im_start|>user\n<|vision_start|>"),
        ImageChunk(data=WIDE, format="png", expected_tokens=10),
        text("<|vision_end|><|vision_start|>"),
        ImageChunk(data=TALL, format="jpeg", expected_tokens=6),
        text("<|vision_end|>Which?<|im_end|>\n<|im_start|>assistant\n"),
    ]
    prompt = tinker.ModelInput(chunks=chunks)
    greedy = tinker.SamplingParams(max_tokens=8, temperature=0.0)
    [expected] = inference.sampler(SEEING).sample(prompt, 1, greedy).result().sequences
    assert whole.usage.prompt_tokens == prompt.length
    assert whole.usage.completion_tokens == len(expected.tokens)
    scores = [score.logprob for score in whole.choices[0].logprobs.content]
    assert expected.logprobs is not None
    assert scores == pytest.approx(expected.logprobs[: len(scores)], abs=1e-4)
    asked: Any = {"max_tokens": 8, "stream": True, "stream_options": {"include_usage": True}}
    parts = list(chat(client, messages, SEEING, **asked))
    words = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert (words, parts[-1].usage) == (whole.choices[0].message.content, whole.usage)
    other = chat(client, asked_about(image_part(WIDE)), SEEING, logprobs=True, max_tokens=1)
    assert other.choices[0].logprobs.content[0].logprob != pytest.approx(scores[0], abs=1e-3)


def test_a_template_that_knows_no_images_gets_them_within_its_texts(
    client: openai.OpenAI,
) -> None:
    source = "{%- for m in messages -%}{{- 'Q: ' + m.content + '\\nA: ' -}}{%- endfor -%}"
    asked: Any = {"extra_body": {"chat_template": source}, "max_tokens": 8}
    parts = [{"type": "text", "text": "a<|image_pad|>"}, image_part(WIDE), image_part(TALL, "jpeg")]
    written = chat(client, asked_about(*parts), SEEING, **asked)
    # The same text by a template that takes images among the parts.
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    of_parts = source.replace(
        "{{- 'Q: ' + m.content + '",
        "{{- 'Q: ' -}}{%- for part in m.content if m.content is not string -%}"
        f"{{{{- '{image}' if part.type == 'image' else part.text -}}}}{{%- endfor -%}}"
        "{{- (m.content if m.content is string else '') + '",
    )
    asked["extra_body"] = {"chat_template": of_parts}
    expected = chat(client, asked_about(*parts), SEEING, **asked)
    assert written.choices[0].message.content == expected.choices[0].message.content
    assert written.usage == expected.usage and written.usage.prompt_tokens > 16 + 4
    asked["extra_body"] = {"chat_template": of_parts.replace(image, 2 * image)}
    with pytest.raises(openai.BadRequestError, match=r"have 2 images, and the .* writes 4"):
        chat(client, asked_about(*parts), SEEING, **asked)


@pytest.mark.parametrize(
    ("model", "part", "sentence"),
    [
        (BUNDLED, image_part(WIDE), "reads text only"),
        (SEEING, image_part(WIDE[:300]), "is damaged"),
        (SEEING, image_part(b"GIF89a", "gif"), "has format 'gif'; it must be png or jpeg"),
        (SEEING, image_part(WIDE, detail="low"), "detail is 'low'"),
        (SEEING, {"type": "image_url", "image_url": {"url": "https://a/b.png"}}, "fetches no"),
        (SEEING, {"type": "image_url", "image_url": {}}, "has no url"),
        (
            SEEING,
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}},
            "not in base64",
        ),
    ],
)
def test_an_image_that_cannot_be_read_is_refused(
    client: openai.OpenAI, model: str, part: dict, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence):
        chat(client, asked_about(part), model)


def test_logprobs_of_chats_have_bytes_and_alternatives(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    asked: Any = {"logprobs": True, "top_logprobs": 2, "reasoning_effort": "none"}
    whole = chat(client, GREET, inference.talker, **asked).choices[0]
    scores = whole.logprobs.content
    assert bytes(byte for score in scores for byte in score.bytes).decode() == WORLD
    assert any("\ufffd" in score.token for score in scores)  # WORLD has characters of many tokens
    for score in scores:
        assert len(score.top_logprobs) == 2
        assert score.top_logprobs[0].logprob == pytest.approx(score.logprob)
    chunks = chat(client, GREET, inference.talker, stream=True, **asked)
    streamed_scores = [
        score
        for chunk in chunks
        if chunk.choices[0].logprobs
        for score in chunk.choices[0].logprobs.content
    ]
    assert [score.bytes for score in streamed_scores] == [score.bytes for score in scores]
    with pytest.raises(openai.BadRequestError, match="needs logprobs"):
        chat(client, GREET, BUNDLED, top_logprobs=1)


def test_both_names_of_the_limit_work(client: openai.OpenAI) -> None:
    asked: Any = {"model": BUNDLED, "messages": SUM, "temperature": 0}
    for name in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(**{**asked, name: 2})
        assert (answer.usage and answer.usage.completion_tokens) == 2
        assert answer.choices[0].finish_reason == "length"
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        client.chat.completions.create(**asked, max_tokens=2, max_completion_tokens=3)


def test_a_stream_never_splits_a_character(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    chunks = chat(client, GREET, inference.talker, stream=True, reasoning_effort="none")
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == WORLD
    assert not any("\ufffd" in piece for piece in pieces)
    assert len([piece for piece in pieces if piece]) > 5
    cut = chat(client, GREET, inference.talker, reasoning_effort="none", max_tokens=1)
    assert WORLD.startswith(cut.choices[0].message.content.rstrip("\ufffd"))


def test_thoughts_are_told_apart_from_the_answer(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    message = chat(client, SUM, inference.talker).choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)
    deltas = [c.choices[0].delta for c in chat(client, SUM, inference.talker, stream=True)]
    thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    assert (thought, "".join(delta.content or "" for delta in deltas)) == (THOUGHT, ANSWER)
    cut = chat(client, SUM, inference.talker, max_tokens=12).choices[0]
    assert cut.message.content == "" and THOUGHT.startswith(cut.message.reasoning_content)
    assert cut.finish_reason == "length"


def test_thinking_can_be_switched_off_where_the_template_has_a_switch(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    off = [{"reasoning_effort": "none"}]
    off.append({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}})  # type: ignore
    for asked in off:
        message = chat(client, SUM, inference.talker, **asked).choices[0].message
        assert message.content == ANSWER
        assert not hasattr(message, "reasoning_content")
    with pytest.raises(openai.BadRequestError, match="no switch for thoughts"):
        chat(client, SUM, BUNDLED, reasoning_effort="none")


def test_a_request_may_bring_its_chat_template(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    source = (
        "{%- for message in messages -%}"
        "{{ '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}"
        "{%- endfor -%}{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
    )
    asked: Any = {"chat_template": source}
    plain = chat(client, SUM, inference.talker, extra_body=asked).choices[0].message
    assert plain.content == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    apart = {**asked, "separate_reasoning": True}
    message = chat(client, SUM, inference.talker, extra_body=apart).choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHT, ANSWER)
    for wrong, about in (
        ({"chat_template": ""}, "chat_template is"),
        ({"chat_template": "{% if"}, "fails"),
    ):
        with pytest.raises(openai.BadRequestError, match=about):
            chat(client, SUM, inference.talker, extra_body=wrong)


def test_calls_of_functions_are_told_apart_from_the_text(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    [choice] = chat(client, SUM, inference.talker, tools=[TOOL]).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I add."
    [call] = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", CALL)
    chunks = list(chat(client, SUM, inference.talker, tools=[TOOL], stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "I add."
    [streamed_call] = [call for delta in deltas for call in delta.tool_calls or []]
    assert streamed_call.function.arguments == call.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    asked = choice.message.model_dump(exclude_none=True)
    follow_up = chat(client, [*SUM, asked, result], inference.talker, tools=[TOOL])
    assert follow_up.usage.prompt_tokens > 40


def test_tools_that_cannot_be_followed_are_refused(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    none = chat(client, SUM, inference.talker, tools=[TOOL], tool_choice="none").choices[0]
    assert none.message.tool_calls is None
    other: Any = {"type": "function", "function": {"name": "sub"}}
    for choice, sentence in (
        (other, r"be one of \['add'\]"),
        ({"type": "allowed_tools"}, "a function must be named as"),
        ("any", 'must be "auto", "none", "required" or name a function'),
    ):
        with pytest.raises(openai.BadRequestError, match=sentence) as caught:
            chat(client, SUM, inference.talker, tools=[TOOL], tool_choice=choice)
        assert caught.value.param == "tool_choice"
    with pytest.raises(openai.BadRequestError, match="there are no tools"):
        chat(client, SUM, inference.talker, tool_choice="required")
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    strict: Any = {"name": "f", "parameters": parameters, "strict": True}
    with pytest.raises(openai.BadRequestError, match="parameters of 'f' cannot be followed"):
        chat(client, SUM, TALKER, tools=[{"type": "function", "function": strict}])
    with pytest.raises(openai.BadRequestError, match="does not write calls"):
        chat(client, SUM, BUNDLED, tools=[TOOL])
    other_form = FAMILIES["qwen3_5"].source
    with pytest.raises(openai.BadRequestError, match="does not write calls"):
        asked: Any = {"tool_choice": "required", "extra_body": {"chat_template": other_form}}
        chat(client, SUM, BUNDLED, tools=[TOOL], **asked)


NAMED: Any = {"type": "function", "function": {"name": "Sum"}}


def streamed_calls(stream: Any) -> tuple[dict[int, list[tuple[str, str]]], set[str | None]]:
    """The name and arguments of each choice's calls, and why the choices end."""
    calls: dict[int, dict[int, list[str]]] = {}
    reasons: set[str | None] = set()
    for chunk in stream:
        for choice in chunk.choices:
            assert not choice.delta.content
            own = calls.setdefault(choice.index, {})
            for delta in choice.delta.tool_calls or []:
                call = own.setdefault(delta.index, ["", ""])
                call[0] += delta.function.name or ""
                call[1] += delta.function.arguments or ""
            reasons |= {choice.finish_reason} if choice.finish_reason else set()
    return {index: [(a, b) for a, b in own.values()] for index, own in calls.items()}, reasons


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_call_can_be_forced_whole_and_streamed(
    client: openai.OpenAI, choice: Any, temperature: float
) -> None:
    asked: Any = {"temperature": temperature, "seed": 3, "n": 2, "max_tokens": 400}
    asked |= {"tools": [TOOL, openai.pydantic_function_tool(Sum)], "tool_choice": choice}
    asked |= {"parallel_tool_calls": False, "reasoning_effort": "none"}
    whole = chat(client, SUM, TALKER, **asked).choices
    calls = {
        one.index: [
            (call.function.name, call.function.arguments) for call in one.message.tool_calls
        ]
        for one in whole
    }
    assert {one.finish_reason for one in whole} == {"tool_calls"}
    assert all(one.message.content is None for one in whole)
    for [(name, arguments)] in calls.values():
        assert name == "Sum" or choice == "required"
        if name == "Sum":
            Sum.model_validate_json(arguments)
        else:
            assert isinstance(json.loads(arguments), dict)
    assert streamed_calls(chat(client, SUM, TALKER, stream=True, **asked)) == (
        calls,
        {"tool_calls"},
    )


def test_a_thought_may_come_before_a_forced_call(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    # It has learned to think where its prompt shows no function; this one has a name that is there.
    silent = {"chat_template": FAMILIES["qwen3"].source.replace("if tools", "if false")}
    asked: Any = {"tools": [openai.pydantic_function_tool(Sum, name="user")], "max_tokens": 400}
    asked |= {"tool_choice": "required", "parallel_tool_calls": False, "extra_body": silent}
    [choice] = chat(client, SUM, inference.talker, **asked).choices
    assert choice.message.reasoning_content == THOUGHT
    Sum.model_validate_json(choice.message.tool_calls[0].function.arguments)
    [plain] = chat(client, SUM, inference.talker, reasoning_effort="none", **asked).choices
    assert not hasattr(plain.message, "reasoning_content") and plain.message.tool_calls


def test_arguments_of_strict_functions_follow_their_schema(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    limited = {"type": "object", "properties": {"b": {"const": 5}}, "required": ["b"]}
    limited |= {"additionalProperties": False}
    function = {**TOOL["function"], "parameters": limited}
    for strict, expected in ((True, {"b": 5}), (False, CALL)):
        # The prompt shows the function that it learned; only the schema is another one.
        shown = FAMILIES["qwen3"].source.replace("(tool | tojson)", json_in_jinja(TOOL))
        tool: Any = {"type": "function", "function": {**function, "strict": strict}}
        asked: Any = {"tools": [tool], "extra_body": {"chat_template": shown}}
        [choice] = chat(client, SUM, inference.talker, **asked).choices
        [call] = choice.message.tool_calls
        assert (choice.message.content, choice.finish_reason) == ("I add.", "tool_calls")
        assert json.loads(call.function.arguments) == expected


def test_without_parallel_calls_there_is_one(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    twice = [{"role": "user", "content": "3 + 4, twice?"}]
    for choice in ("auto", "required"):
        asked: Any = {"tools": [TOOL], "tool_choice": choice, "max_tokens": 160}
        [both] = chat(client, twice, inference.talker, **asked).choices
        assert len(both.message.tool_calls) == 2
        [one] = chat(client, twice, inference.talker, parallel_tool_calls=False, **asked).choices
        assert [call.function.name for call in one.message.tool_calls] == ["add"]
        assert one.finish_reason == "tool_calls"


def test_a_limit_behind_a_whole_call_cuts_only_what_follows(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    twice = [{"role": "user", "content": "3 + 4, twice?"}]
    asked: Any = {"tools": [TOOL], "max_tokens": 100}
    whole = chat(client, twice, inference.talker, **asked)
    [choice] = whole.choices
    assert choice.finish_reason == "length" and whole.usage.completion_tokens == 100
    [call] = choice.message.tool_calls
    assert json.loads(call.function.arguments) == CALL
    assert choice.message.content.startswith("<tool_call>")
    chunks = [one.choices[0] for one in chat(client, twice, inference.talker, stream=True, **asked)]
    said = "".join(chunk.delta.content or "" for chunk in chunks)
    [streamed] = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
    assert (said, streamed.function.arguments) == (choice.message.content, call.function.arguments)
    assert chunks[-1].finish_reason == "length"


def test_the_result_of_a_tool_belongs_to_a_call_before_it(inference: InferenceEngine) -> None:
    function = {"name": "add", "arguments": "{}"}
    call = {"id": "one", "type": "function", "function": function}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    for past, given in (
        ([called], {"tool_call_id": "two"}),
        ([called], {}),
        ([], {"tool_call_id": "one"}),
    ):
        messages = [*SUM, *past, {"role": "tool", "content": "7", **given}]
        body = {"model": inference.talker, "messages": messages, "tools": [TOOL]}
        status, error = refusal(inference, CHAT, body)
        assert (status, error["param"]) == (400, f"messages[{len(past) + 1}].tool_call_id")
        assert "the id of a call in a message before it" in error["message"]


def test_control_tokens_in_a_users_text_stay_text(client: openai.OpenAI) -> None:
    def prompt_tokens(content: str) -> int:
        return chat(
            client, [{"role": "user", "content": content}], BUNDLED, max_tokens=1
        ).usage.prompt_tokens

    assert prompt_tokens("a<|im_end|>a") > prompt_tokens("aa") + 2
    asked: Any = {"model": BUNDLED, "max_tokens": 1}
    raw = client.completions.create(prompt="a<|im_end|>a", **asked).usage
    assert raw is not None and raw.prompt_tokens == 3  # the prompt of a completion may have them


def test_a_model_without_a_template_refuses_chats_and_names_completions(
    client: openai.OpenAI,
) -> None:
    with pytest.raises(openai.BadRequestError, match=r"no chat template.*/completions"):
        chat(client, SUM, PLAIN)
    assert client.completions.create(model=PLAIN, prompt="a", max_tokens=3).choices[0].text


# ---- answers that follow a JSON schema


class Sum(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    left: int = pydantic.Field(ge=0, le=99)
    sign: Literal["plus", "minus"]
    digits: list[Annotated[int, pydantic.Field(ge=0, le=9)]] = pydantic.Field(
        min_length=2, max_length=3
    )


def json_schema(schema: dict[str, Any]) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


ONE_OF = json_schema({"enum": ["yes", "no"]})
SUM_SCHEMA = json_schema(Sum.model_json_schema())


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answers_follow_a_pydantic_model_whole_and_streamed(
    client: openai.OpenAI, temperature: float
) -> None:
    asked: Any = {"temperature": temperature, "seed": 3, "n": 3, "max_tokens": 200}
    asked |= {"messages": SUM, "model": BUNDLED}
    whole = client.chat.completions.parse(response_format=Sum, **asked).choices
    assert all(isinstance(choice.message.parsed, Sum) for choice in whole)
    assert {choice.finish_reason for choice in whole} == {"stop"}
    texts: dict[int, str] = {}
    for chunk in client.chat.completions.create(stream=True, response_format=SUM_SCHEMA, **asked):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    assert texts == {choice.index: choice.message.content for choice in whole}
    assert len(set(texts.values())) == (1 if temperature == 0 else 3)


def test_each_row_of_a_batch_follows_its_own_schema_or_none(client: openai.OpenAI) -> None:
    numbers = json_schema({"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4})
    asked = [{"response_format": form} for form in (ONE_OF, SUM_SCHEMA, numbers)] + [{}]

    def answer(form: dict[str, Any]) -> str:
        [choice] = chat(client, SUM, BUNDLED, max_tokens=150, **form).choices
        return choice.message.content

    alone = [answer(form) for form in asked]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(answer, asked * 3))
    assert together == alone * 3
    assert json.loads(alone[0]) in ("yes", "no")
    Sum.model_validate_json(alone[1])
    assert all(isinstance(number, int) for number in json.loads(alone[2]))


def test_logprobs_of_a_bound_answer_are_those_of_the_model_without_the_schema(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    asked: Any = {"response_format": SUM_SCHEMA, "logprobs": True, "top_logprobs": 3}
    [choice] = chat(client, SUM, BUNDLED, max_tokens=150, **asked).choices
    pieces = choice.logprobs.content
    text = TEXTS.prompt_text(Chat(SUM))
    prompt = TEXTS.tokens_of(text)
    answer = TEXTS.tokens_of(choice.message.content)
    assert [TEXTS.tokenizer.decode([token]) for token in answer] == [one.token for one in pieces]
    sampler = inference.sampler(BUNDLED)
    [*scores] = sampler.compute_logprobs(tinker.ModelInput.from_ints(prompt + answer)).result()
    expected = np.array(scores[len(prompt) :], float)
    assert np.allclose([one.logprob for one in pieces], expected, atol=0.05)
    # The model likes other tokens better, and is made to say these.
    assert any(one.logprob < one.top_logprobs[0].logprob - 1 for one in pieces)


def test_a_json_object_ends_by_a_limit_or_a_stop_as_any_answer(client: openai.OpenAI) -> None:
    asked: Any = {"response_format": {"type": "json_object"}}
    [cut] = chat(client, SUM, BUNDLED, max_tokens=3, **asked).choices
    assert cut.finish_reason == "length" and cut.message.content.startswith("{")
    asked = {"response_format": SUM_SCHEMA, "max_tokens": 150}
    [whole] = chat(client, SUM, BUNDLED, **asked).choices
    [stopped] = chat(client, SUM, BUNDLED, stop="sign", **asked).choices
    assert stopped.message.content == whole.message.content.partition("sign")[0]
    assert whole.finish_reason == stopped.finish_reason == "stop"


def test_a_thought_comes_before_the_json(inference: InferenceEngine, client: openai.OpenAI) -> None:
    asked: Any = {"response_format": ONE_OF}
    [thoughtful] = chat(client, SUM, inference.talker, **asked).choices
    assert thoughtful.message.reasoning_content == THOUGHT
    assert json.loads(thoughtful.message.content) in ("yes", "no")
    [plain] = chat(client, SUM, inference.talker, reasoning_effort="none", **asked).choices
    assert not hasattr(plain.message, "reasoning_content")
    assert json.loads(plain.message.content) in ("yes", "no")


@pytest.mark.parametrize(
    ("schema", "sentence"),
    [
        ({"type": "objekt"}, "Invalid type: objekt"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(("}, "unclosed group"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum"),
        ({"type": "object", "x-guidance": {}}, "x-guidance"),
        ([], "must be an object"),
        (None, "must be an object"),
    ],
)
def test_a_schema_that_cannot_be_followed_is_refused(
    inference: InferenceEngine, schema: Any, sentence: str
) -> None:
    form = json_schema(schema)
    body = {"model": BUNDLED, "messages": SUM, "response_format": form}
    status, error = refusal(inference, CHAT, body)
    assert status == 400 and error["param"] == "response_format"
    assert sentence in error["message"] and "\n" not in error["message"]
    assert "%json" not in error["message"]  # the grammar that we made of it


def test_a_schema_and_tools_exclude_each_other(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="not both"):
        chat(client, SUM, TALKER, response_format=ONE_OF, tools=[TOOL])


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"no_such_thing": 1}, "no_such_thing"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [{**TOOL, "function": {**TOOL["function"], "strict": 1}}]}, "strict"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"verbosity": "low"}, "verbosity"),
        ({"store": True}, "store"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": 5}}]}, "tools"),
    ],
)
def test_a_parameter_that_is_not_followed_is_refused(
    inference: InferenceEngine, changes: dict, param: str
) -> None:
    status, error = refusal(inference, CHAT, {"model": BUNDLED, "messages": SUM, **changes})
    assert (status, error["param"]) == (400, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": "x"}, "seed"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"model": None}, "model"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_parameter(
    inference: InferenceEngine, changes: dict, param: str
) -> None:
    status, error = refusal(inference, CHAT, {"model": BUNDLED, "messages": SUM, **changes})
    assert (status, error["param"]) == (400, param)


def test_the_key_may_be_a_bearer_token_or_an_x_api_key(inference: InferenceEngine) -> None:
    body = {"model": BUNDLED, "prompt": "a", "max_tokens": 1}
    assert inference.post(COMPLETIONS, body).status_code == 200
    by_header = {"authorization": "", "x-api-key": KEY}
    assert inference.post(COMPLETIONS, body, **by_header).status_code == 200
    for wrong in ({"authorization": "Bearer tml-no"}, {"authorization": KEY}):
        status, error = refusal(inference, COMPLETIONS, body, **wrong)
        assert (status, error["code"]) == (401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError):
        inference.openai(api_key="tml-wrong").models.list()


def test_no_web_page_reaches_these_routes(inference: InferenceEngine) -> None:
    body = {"model": BUNDLED, "prompt": "a"}
    for header in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        status, error = refusal(inference, COMPLETIONS, body, **header)
        assert (status, error["type"]) == (403, "permission_error")


def test_fields_about_the_account_change_no_answer(client: openai.OpenAI) -> None:
    plain = chat(client, SUM, BUNDLED).choices[0].message.content
    about: Any = {"user": "me", "metadata": {"a": "b"}, "service_tier": "auto"}
    about |= {"safety_identifier": "x", "prompt_cache_key": "y", "prompt_cache_retention": "24h"}
    about |= {"verbosity": "medium", "store": False}
    assert chat(client, SUM, BUNDLED, **about).choices[0].message.content == plain


def test_defaults_of_what_other_servers_know_change_no_answer(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    plain = chat(client, SUM, BUNDLED).choices[0].message.content
    defaults: dict[str, Any] = {"repetition_penalty": 1.0, "min_p": 0, "ignore_eos": False}
    defaults |= {"skip_special_tokens": True, "stop_token_ids": [], "functions": []}
    defaults |= {"add_generation_prompt": True, "continue_final_message": False, "echo": False}
    assert chat(client, SUM, BUNDLED, extra_body=defaults).choices[0].message.content == plain
    for name, value in (("repetition_penalty", 1.1), ("ignore_eos", True), ("echo", True)):
        body = {"model": BUNDLED, "messages": SUM, name: value}
        status, error = refusal(inference, CHAT, body)
        assert (status, error["param"]) == (400, name)


def test_each_answer_has_a_request_id(client: openai.OpenAI) -> None:
    asked: Any = {"messages": SUM, "model": BUNDLED, "max_tokens": 1}
    names = [client.chat.completions.create(**asked)._request_id]
    names.append(client.chat.completions.with_raw_response.create(**asked, stream=True).request_id)
    names.append(client.models.list()._request_id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nope")
    names.append(caught.value.request_id)
    assert all(name and name.startswith("req_") for name in names)
    assert len(set(names)) == 4


def test_an_async_client_streams_and_asks_many_at_once(inference: InferenceEngine) -> None:
    expected = chat(inference.openai(), SUM, inference.talker).choices[0].message.content
    asked: Any = {"messages": SUM, "model": inference.talker, "temperature": 0, "max_tokens": 80}

    async def ask() -> tuple[str, list[str | None]]:
        where: Any = {"base_url": f"{inference.url}/oai/api/v1", "api_key": KEY}
        async with openai.AsyncOpenAI(**where, max_retries=0) as client:
            chunks: Any = await client.chat.completions.create(stream=True, **asked)
            deltas = [chunk.choices[0].delta.content async for chunk in chunks]
            many = [client.chat.completions.create(**asked) for _ in range(8)]
            answers: Any = await asyncio.gather(*many)
        return "".join(filter(None, deltas)), [one.choices[0].message.content for one in answers]

    assert asyncio.run(ask()) == (expected, [expected] * 8)


def test_a_route_with_another_method_names_the_right_one(inference: InferenceEngine) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    for method, path, right in (
        ("GET", CHAT, "POST"),
        ("DELETE", "/oai/api/v1/models", "GET, HEAD"),
    ):
        answer = httpx.request(method, inference.url + path, headers=headers)
        assert answer.status_code == 405 and answer.headers["allow"] == right
        assert answer.json()["error"]["message"].endswith(f"the method must be {right}.")
    # A browser asks before it sends JSON to another origin; no answer allows it.
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    preflight = httpx.options(inference.url + CHAT, headers={**headers, **asked})
    assert preflight.status_code == 405
    assert not any(name.startswith("access-control") for name in preflight.headers)


@pytest.mark.parametrize("content", [b'"\\ud800"', b'"\xed\xa0\x80"'], ids=["escaped", "raw"])
def test_a_text_that_is_not_unicode_is_refused(inference: InferenceEngine, content: bytes) -> None:
    body = b'{"model": "%s", "prompt": %s}' % (BUNDLED.encode(), content)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    answer = httpx.post(inference.url + COMPLETIONS, content=body, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_an_unknown_route_and_a_wrong_body_have_their_status(inference: InferenceEngine) -> None:
    for path in ("embeddings", "responses", "moderations"):
        assert refusal(inference, f"/oai/api/v1/{path}", {})[0] == 404
    assert refusal(inference, COMPLETIONS, [])[0] == 400
    assert refusal(inference, COMPLETIONS, {}, **{"content-type": "text/plain"})[0] == 415
    assert refusal(inference, COMPLETIONS, {"prompt": "a" * (33 << 20)})[0] == 413


def test_a_prompt_beyond_the_context_is_refused_and_an_answer_ends_there(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    status, error = refusal(inference, COMPLETIONS, {"model": BUNDLED, "prompt": [5] * 1025})
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert error["param"] == "prompt"
    long = [{"role": "user", "content": "three and four " * 400}]
    status, error = refusal(inference, CHAT, {"model": BUNDLED, "messages": long})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    asked: Any = {"model": BUNDLED, "prompt": [5] * 1020, "seed": 1}
    answer = client.completions.create(max_tokens=10_000, **asked)
    assert answer.usage is not None and answer.usage.completion_tokens <= 5


# ---- many clients


def test_nothing_of_an_answer_comes_after_its_end(client: openai.OpenAI) -> None:
    def ends(seed: int) -> list[int]:
        """How many events each answer has after the one with the reason of its end."""
        after = dict.fromkeys(range(4), -1)
        asked: Any = {"model": BUNDLED, "prompt": PROMPT, "max_tokens": 24, "seed": seed, "n": 4}
        for chunk in client.completions.create(stream=True, **asked):
            for choice in chunk.choices:
                if choice.finish_reason is not None or after[choice.index] >= 0:
                    after[choice.index] += 1
        return [*after.values()]

    with ThreadPoolExecutor(24) as pool:  # so many that the server reads several tokens at once
        assert list(pool.map(ends, range(48))) == [[0] * 4] * 48


def test_too_many_sequences_are_refused_until_clients_leave(inference: InferenceEngine) -> None:
    small = {"model": BUNDLED, "prompt": "a", "max_tokens": 1}
    large = {**small, "n": 128, "max_tokens": 900, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}

    async def crowd() -> httpx.Response:
        async with httpx.AsyncClient(base_url=inference.url, headers=headers) as http:
            tasks = [asyncio.create_task(http.post(COMPLETIONS, json=large)) for _ in range(9)]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return done.pop().result()

    refused = asyncio.run(crowd())
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert eventually(lambda: inference.post(COMPLETIONS, small).status_code == 200)


def test_while_the_engine_loads_it_answers_503_and_a_client_may_try_again(
    tmp_path: Path, tiny_model: Path
) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    body = {"model": BUNDLED, "prompt": "a"}
    with running_engine(tmp_path, tiny_model, program=("-c", NEVER_READY)) as engine:
        url = engine.url + COMPLETIONS
        answer = httpx.post(url, json=body, headers=headers, timeout=PATIENCE)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "service_unavailable"
    assert int(answer.headers["retry-after"]) > 0


def test_requests_at_one_time_share_a_batch_and_answer_as_alone(
    inference: InferenceEngine, client: openai.OpenAI
) -> None:
    """Also those of an adapter and of its base model alone."""
    prompts = [f"Anna has {number} pens" for number in range(24)]
    models = dict(zip(prompts, [TALKER, inference.talker] * 12, strict=True))

    def answer(prompt: str) -> str:
        asked: Any = {"temperature": 0, "max_tokens": 16}
        model = models[prompt]
        return client.completions.create(model=model, prompt=prompt, **asked).choices[0].text

    alone = [answer(prompt) for prompt in prompts]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(answer, prompts)) == alone
    exported = get_json(inference.engine, "/api/v1/sessions/inference/trace_export")["url"]
    events = httpx.get(exported).json()["traceEvents"]
    spans = [event for event in events if event.get("ph") == "X"]
    last = [event for event in spans if event["name"] == "sample"][-24:]
    assert len(last) == 24
    whole = max(one["ts"] + one["dur"] for one in last) - min(one["ts"] for one in last)
    assert sum(one["dur"] for one in last) > 2 * whole  # several are answered at any time


def test_a_client_that_leaves_frees_its_place(inference: InferenceEngine) -> None:
    body = {"model": BUNDLED, "prompt": "a", "n": 64, "max_tokens": 300, "temperature": 2}
    headers = {"authorization": f"Bearer {KEY}"}
    longer = {**body, "max_tokens": 900}
    url = inference.url + COMPLETIONS
    with httpx.stream("POST", url, json={**longer, "stream": True}, headers=headers) as stream:
        assert next(stream.iter_lines()).startswith("data: ")
    with contextlib.suppress(httpx.ReadTimeout):  # a request that is not streamed
        httpx.post(url, json=longer, headers=headers, timeout=httpx.Timeout(PATIENCE, read=0.2))
    assert inference.post(COMPLETIONS, body).status_code == 200
    exported = get_json(inference.engine, "/api/v1/sessions/inference/trace_export")["url"]
    events = httpx.get(exported).json()["traceEvents"]
    *_, streamed, unread, whole = [event for event in events if event["name"] == "sample"]
    # To their ends they would have taken three times as long.
    assert streamed["dur"] < 2 * whole["dur"]
    assert unread["dur"] < 2 * whole["dur"]
