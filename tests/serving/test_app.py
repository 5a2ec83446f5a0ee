"""The real clients of OpenAI and Anthropic against a server of a small run and its base."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
import tinker

from tests.support.processes import PATIENCE, eventually
from tests.support.serving import anthropic_of, openai_of, serving
from tests.support.small_run import SmallRun, small_run
from tinkersmith.data.samples import Source, alpaca_sample
from tinkersmith.engine_status import engine_statuses
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.server import RunningServer
from tinkersmith.text.templates import PromptTemplate
from tinkersmith.text.tokenizer import load_tokenizer

pytestmark = pytest.mark.engine
QUESTION = "Add.\n12 + 12"
ASKED: Any = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def small() -> SmallRun:
    return small_run()


@pytest.fixture(scope="module")
def server(small: SmallRun, started_engines: None) -> Iterator[RunningServer]:
    paths = [f"last={small.run.path}", f"first=tinker://{small.sampler_path[9:]}"]
    with serving(models_to_serve(paths, small.settings)) as running:
        yield running


def chat(server: RunningServer, **asked: Any) -> Any:
    asked = {"model": "last", "messages": ASKED, "temperature": 0, "max_tokens": 24, **asked}
    return openai_of(server).chat.completions.create(**asked)


def streamed(chunks: Any, index: int = 0) -> str:
    deltas = [c.delta for chunk in chunks for c in chunk.choices if c.index == index]
    return "".join(delta.content or "" for delta in deltas)


def test_greedy_answers_are_the_sdks_samples_of_the_prompt_of_training(
    server: RunningServer, small: SmallRun
) -> None:
    template: PromptTemplate = small.run.template()
    tokenizer = load_tokenizer(small.run.base_model())
    prompt = template.render_prompt(alpaca_sample(QUESTION, "", "", Source("", 1)))
    tokens = [int(token) for token in tokenizer.encode(prompt)]
    service = tinker.ServiceClient(base_url=server.upstream.url, api_key=server.upstream.key)
    sampler = service.create_sampling_client(model_path=small.sampler_path).result()
    end = tokenizer.special_tokens[template.end]
    params = tinker.SamplingParams(temperature=0, max_tokens=24, stop=[end])
    [expected] = sampler.sample(tinker.ModelInput.from_ints(tokens), 1, params).result().sequences
    answer = chat(server)
    assert answer.choices[0].message.content == tokenizer.decode(expected.tokens)
    assert answer.usage.completion_tokens == len(expected.tokens)
    assert answer.usage.prompt_tokens == len(tokens)


def test_a_stream_says_what_the_whole_answer_says(server: RunningServer) -> None:
    asked: Any = {"temperature": 0.8, "seed": 3, "n": 3}
    whole = chat(server, **asked)
    chunks = list(chat(server, stream=True, **asked))
    for choice in whole.choices:
        assert streamed(chunks, choice.index) == choice.message.content


def test_prompts_that_are_written_here_get_the_same_answers(server: RunningServer) -> None:
    asked: Any = {"n": 2, "temperature": 0.7, "seed": 5, "stop": ["7"]}
    expected = chat(server, **asked)
    server.upstream.takes_templates = False
    try:
        here = chat(server, **asked)
        chunks = list(chat(server, stream=True, stream_options={"include_usage": True}, **asked))
        with pytest.raises(openai.BadRequestError, match="tools cannot be used with last"):
            chat(server, tools=[{"type": "function", "function": {"name": "add"}}])
        with pytest.raises(openai.BadRequestError, match="messages"):
            chat(server, messages=[])
        image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]
        sound = [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]
        for content, about in (
            (
                image,
                r"messages\[0\].content\[0\] is an image. This model's prompts are written here",
            ),
            (sound, "'input_audio'; this server takes"),
            ("", "is empty"),
        ):
            with pytest.raises(openai.BadRequestError, match=about) as caught:
                chat(server, messages=[{"role": "user", "content": content}])
            assert caught.value.param == "messages[0].content"
        with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
            chat(server, max_tokens=0)
        account: Any = {"metadata": {"a": "b"}, "service_tier": "auto", "prompt_cache_key": "x"}
        about_me = chat(server, **asked, **account)
        refused = httpx.post(
            f"{server.url}/v1/messages", json={"model": "last", "messages": ASKED, "max_tokens": 9}
        )
    finally:
        server.upstream.takes_templates = True
    assert refused.status_code == 400 and "/v1/chat/completions" in refused.text
    assert about_me.choices == here.choices and here.model == expected.model == "last"
    for one, other in zip(expected.choices, here.choices, strict=True):
        assert one.message.content == other.message.content
        assert one.finish_reason == other.finish_reason
        assert streamed(chunks, one.index) == one.message.content
    assert here.usage.completion_tokens == expected.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == expected.usage.prompt_tokens


def test_models_are_listed_with_their_kind_and_base(server: RunningServer) -> None:
    models: list[Any] = list(openai_of(server).models.list())
    listed = [(model.id, model.kind, model.base) for model in models]
    assert listed == [
        ("last", "tuned", "base"),
        ("first", "tuned", "base"),
        ("base", "base", "base"),
    ]
    assert openai_of(server).models.retrieve("first").id == "first"
    with pytest.raises(openai.NotFoundError, match="there are last, first, base"):
        openai_of(server).models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, model="other")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("route", ["chat/completions", "completions", "messages"])
@pytest.mark.parametrize("more", [{}, {"model": None}, {"model": 7}])
def test_a_request_without_a_model_says_which_there_are(
    server: RunningServer, route: str, more: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server.url}/v1/{route}", json={"max_tokens": 1, **more})
    assert answer.status_code == 400
    assert (
        "it must be a model's name; there are last, first, base."
        in answer.json()["error"]["message"]
    )


def test_answers_have_the_name_that_was_asked(server: RunningServer) -> None:
    """Not the name of the server behind, which may be the path of a folder."""
    asked: Any = {"model": "last", "max_tokens": 4}
    openais, anthropics = openai_of(server), anthropic_of(server)
    answers: list[Any] = [chat(server), chat(server, model="base")]
    assert [answer.model for answer in answers] == ["last", "base"]
    chunks = list(chat(server, stream=True, stream_options={"include_usage": True}))
    assert {chunk.model for chunk in chunks} == {"last"}
    pieces: Any = openais.completions.create(prompt="Add.", stream=True, **asked)
    assert {piece.model for piece in pieces} == {"last"}
    assert anthropics.messages.create(messages=ASKED, **asked).model == "last"
    with anthropics.messages.stream(messages=ASKED, **asked) as stream:
        assert stream.get_final_message().model == "last"


def test_each_answer_has_a_request_id(server: RunningServer) -> None:
    client, asked = openai_of(server), {"model": "last", "messages": ASKED, "max_tokens": 2}
    names: list[Any] = [chat(server)._request_id, client.models.list()._request_id]
    raw: Any = client.chat.completions.with_raw_response
    names.append(raw.create(**asked, stream=True).request_id)
    message: Any = anthropic_of(server).messages
    names.append(message.create(**asked)._request_id)
    with pytest.raises(openai.NotFoundError) as caught:
        chat(server, model="other")
    names.append(caught.value.request_id)
    assert all(name and name.startswith("req_") for name in names)
    assert len(set(names)) == 5


def test_anthropics_client_lists_the_models(server: RunningServer) -> None:
    client = anthropic_of(server)
    assert [model.id for model in client.models.list()] == ["last", "first", "base"]
    assert client.models.retrieve("first").display_name == "first"
    pages = [[model.id for model in page.data] for page in client.models.list(limit=2).iter_pages()]
    assert pages == [["last", "first"], ["base"]]
    before = client.models.list(before_id="base", limit=1)
    assert (before.first_id, before.last_id, before.has_more) == ("first", "first", True)


@pytest.mark.parametrize("header", ["anthropic-version", "x-api-key"])
def test_the_form_of_a_shared_route_is_that_of_the_client(
    server: RunningServer, header: str
) -> None:
    """Of `/v1/models` and of routes that do not exist; other routes belong to one API."""
    sent = {header: "2023-06-01"}
    for path in ("/v1/models/nosuch", "/v1/nosuch", "/v1/models?limit=0", "/v1/models?after_id=x"):
        answer = httpx.get(f"{server.url}{path}", headers=sent)
        assert answer.json()["type"] == "error", path
        assert answer.headers["request-id"].startswith("req_")
    foreign = httpx.get(f"{server.url}/v1/models", headers={**sent, "host": "evil.example"})
    assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "permission_error")
    with pytest.raises(anthropic.NotFoundError) as caught:
        anthropic_of(server).models.retrieve("nosuch")
    assert caught.value.body == httpx.get(f"{server.url}/v1/models/nosuch", headers=sent).json()
    listed = httpx.get(f"{server.url}/v1/models", headers=sent).json()
    assert set(listed) == {"data", "has_more", "first_id", "last_id"}
    for path in ("/v1/models/nosuch", "/v1/nosuch"):
        plain = httpx.get(f"{server.url}{path}")
        assert "code" in plain.json()["error"] and "type" not in plain.json()
        assert plain.headers["x-request-id"].startswith("req_")
    assert set(httpx.get(f"{server.url}/v1/models").json()) == {"object", "data"}
    chats = httpx.post(f"{server.url}/v1/chat/completions", headers=sent, json={"model": "nosuch"})
    assert "code" in chats.json()["error"]


def test_each_name_answers_with_its_own_weights(server: RunningServer) -> None:
    tuned = chat(server, model="last").choices[0].message.content
    assert chat(server, model="first").choices[0].message.content == tuned
    assert chat(server, model="base").choices[0].message.content != tuned


def test_anthropics_client_gets_the_same_answer(server: RunningServer) -> None:
    client = anthropic_of(server)
    asked: Any = {"model": "last", "messages": ASKED, "max_tokens": 24}
    greedy = {"temperature": 0}
    message = client.messages.create(**asked, extra_body=greedy)
    assert message.content[0].text == chat(server).choices[0].message.content
    with client.messages.stream(**asked, extra_body=greedy) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
    counted = client.messages.count_tokens(model="last", messages=ASKED)
    assert counted.input_tokens == message.usage.input_tokens


def bytes_of_token(spelled: str) -> bytes:
    """The bytes of a token as completions name it: half a character is "bytes:\\xd8"."""
    if spelled.startswith("bytes:"):
        return bytes.fromhex(spelled.removeprefix("bytes:").replace("\\x", ""))
    return spelled.encode()


def test_completions_take_stop_and_logprobs(server: RunningServer) -> None:
    client = openai_of(server)
    asked: Any = {"model": "last", "prompt": "Add.", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**asked, logprobs=2).choices[0]
    spelled = b"".join(map(bytes_of_token, whole.logprobs.tokens))
    assert spelled.decode("utf-8", "replace") == whole.text
    stop = whole.text[2]
    cut = client.completions.create(**asked, stop=stop).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)]


def test_metrics_count_requests_tokens_and_first_tokens(server: RunningServer) -> None:
    def metric(line_start: str) -> float:
        text = httpx.get(f"{server.url}/metrics").text
        lines = [line for line in text.splitlines() if line.startswith(line_start)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    names = [
        'tinkersmith_serve_requests_total{route="/v1/chat/completions",model="last",status="200"}',
        'tinkersmith_serve_tokens_total{model="last",kind="completion"}',
        "tinkersmith_serve_time_to_first_token_seconds_count",
    ]
    before = [metric(name) for name in names]
    used = chat(server).usage.completion_tokens
    [*_, last] = chat(server, stream=True, stream_options={"include_usage": True})
    after = [metric(name) for name in names]
    assert after == [before[0] + 2, before[1] + used + last.usage.completion_tokens, before[2] + 1]
    assert metric("tinkersmith_engine_") > 0
    assert eventually(lambda: metric("tinkersmith_serve_open_requests") == 0)


def test_foreign_hosts_and_forms_of_web_pages_are_refused(server: RunningServer) -> None:
    foreign = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example"})
    assert foreign.status_code == 403 and "--allow-host evil.example" in foreign.text
    origin = httpx.get(f"{server.url}/v1/models", headers={"origin": "https://evil.example"})
    assert origin.status_code == 403
    form = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}")
    assert form.status_code == 415
    broken = httpx.post(
        f"{server.url}/v1/chat/completions",
        content=b"{",
        headers={"content-type": "application/json"},
    )
    assert (
        broken.status_code == 400 and broken.json()["error"]["message"] == "the body is not JSON."
    )
    wrong = httpx.get(f"{server.url}/v1/chat/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert wrong.json()["error"]["message"].endswith("the method must be POST.")
    for text in (b'"\\ud800"', b'"\xed\xa0\x80"'):
        content = b'{"model": "last", "prompt": %s}' % text
        sent = {"content-type": "application/json"}
        odd = httpx.post(f"{server.url}/v1/completions", content=content, headers=sent)
        assert odd.status_code == 400 and "not Unicode" in odd.text
    absent = httpx.get(f"{server.url}/v2/models")
    assert absent.status_code == 404 and "/v1/models" in absent.text


def test_a_client_that_leaves_frees_its_place_and_its_tokens(server: RunningServer) -> None:
    def left() -> int:
        text = httpx.get(f"{server.url}/metrics").text
        [line] = [x for x in text.splitlines() if x.startswith("tinkersmith_serve_clients_left")]
        return int(line.rpartition(" ")[2])

    before = left()
    body = {"model": "base", "prompt": "a", "max_tokens": 200, "temperature": 0, "n": 64}
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as leaving:
        content = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
        leaving.sendall(f"{head}\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content)
        assert eventually(lambda: "open_requests 1" in httpx.get(f"{server.url}/metrics").text)
    assert eventually(lambda: left() == before + 1)
    assert eventually(lambda: "open_requests 0" in httpx.get(f"{server.url}/metrics").text)
    assert chat(server).choices[0].message.content is not None


def test_an_engine_that_dies_ends_streams_with_an_error_and_is_started_again(
    server: RunningServer, small: SmallRun
) -> None:
    expected = chat(server).choices[0].message.content
    folder = Path(small.settings.output_dir) / ".engine"
    [engine] = [status for status in engine_statuses(folder) if _serves(server, status["pid"])]
    said = []
    asked: Any = {"model": "base", "messages": ASKED, "n": 64, "max_tokens": 200}
    with pytest.raises(openai.APIError, match="the answer broke off"):
        asking = openai_of(server).chat.completions
        for chunk in asking.create(stream=True, timeout=PATIENCE, **asked):
            if not said:
                os.kill(engine["pid"], signal.SIGKILL)
            said.append(chunk)
    assert said

    def answers() -> bool:
        try:
            return chat(server).choices[0].message.content == expected
        except openai.InternalServerError as error:  # 503
            assert "engine" in str(error)
            return False

    assert eventually(lambda: server.upstream.restarts == 1 and answers())


def _serves(server: RunningServer, pid: int) -> bool:
    """Whether this process is the engine behind the server."""
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    return server.upstream.key.encode() in environment


def test_a_key_is_needed_where_one_is_given_and_too_many_requests_are_refused(
    small: SmallRun,
) -> None:
    models = models_to_serve([], small.settings)
    key = "0123456789abcdef0123456789abcdef"
    with serving(models, key=key, most_requests=0) as server:
        with pytest.raises(openai.AuthenticationError, match="not this server's key"):
            openai_of(server, api_key="other").models.list()
        assert len(list(openai_of(server).models.list())) == 2
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        with pytest.raises(openai.RateLimitError) as caught:
            chat(server, model=models.models[0].name)
        assert caught.value.response.headers["retry-after"] == "1"
