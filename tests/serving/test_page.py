"""The chat page in a browser, against a server of a model that has learned hostile texts."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.support.browser import DESKTOP, PHONE, open_page, overflow
from tests.support.chat_world import GREETING, chat_world
from tests.support.inference import BUNDLED
from tests.support.processes import PATIENCE
from tests.support.serving import openai_of, serving
from tinkersmith.serving.models import models_to_serve
from tinkersmith.serving.page.page import chat_page
from tinkersmith.serving.server import RunningServer
from tinkersmith.settings.reading import settings_from

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.engine
_KEY = "only-for-this-test"
_ANSWERED = ".turn:last-child > .actions .again:not(:disabled)"
_SHOT = os.environ.get("TINKERSMITH_SCREENSHOTS", "")  # a folder, to look at the pages


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    world = chat_world()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment.items():
            patch.setenv(name, value)
        chat = settings_from({"PROMPT_TEMPLATE": "chat", "BACKEND": "tinker"})
        models = models_to_serve([f"tuned={world.path}"], chat, base_model=BUNDLED)
        with serving(models, key=_KEY) as running:
            yield running


def _shot(page: "Page", name: str) -> None:
    if _SHOT:
        page.screenshot(path=f"{_SHOT}/chat_{name}.png")


def _enter(page: "Page") -> None:
    page.fill("#key", _KEY)
    page.press("#key", "Enter")
    page.wait_for_selector("#models button")


def _ask(page: "Page", prompt: str) -> None:
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    page.wait_for_selector(_ANSWERED)


def _set(page: "Page", **values: str) -> None:
    if page.is_hidden("#settings"):
        page.click("#settings-button")
    for name, value in values.items():
        page.fill(f"#set-{name}", value)
    page.click("#settings-button")


def _copied(page: "Page", title: str) -> str:
    page.locator(".turn:last-child .is-tuned").get_by_text(title, exact=True).click()
    page.locator("#status", has_text="Copied").wait_for(state="attached")
    return str(page.evaluate("navigator.clipboard.readText()"))


def test_two_models_answer_side_by_side_with_their_probabilities(server: RunningServer) -> None:
    with open_page(server.url, expected_errors=("status of 401",)) as page:
        page.wait_for_selector("#key-form:not([hidden])")
        page.fill("#key", "wrong")
        page.press("#key", "Enter")
        page.get_by_text("the API key is not this server's key.").wait_for()
        _enter(page)
        assert page.is_hidden("#key-form") and page.is_hidden("#trouble")
        assert page.evaluate("Object.keys(localStorage).length") == 0
        _set(page, temperature="0", max_tokens="40")
        requests: list[Any] = []
        page.on("request", lambda sent: requests.append(sent.post_data_json))
        _ask(page, "Greet.")
        assert page.locator(".answer").count() == 2
        tuned = page.locator(".turn:last-child .is-tuned")
        assert tuned.locator(".written").last.inner_text() == GREETING
        assert page.locator("#legend .token").count() == 5
        page.locator("#legend .token").last.hover()  # it has no probability to show
        assert page.is_hidden("#readout")
        tuned.locator(".token").first.hover()
        page.wait_for_selector("#readout:not([hidden])")
        assert page.locator("#readout li").count() == 5
        _shot(page, "desktop")
        page.keyboard.press("Shift+Tab")  # from the prompt to what is before it
        tuned.locator(".token").first.focus()
        page.keyboard.press("ArrowRight")
        assert (
            page.evaluate("document.activeElement.textContent")
            == tuned.locator(".token").nth(1).inner_text()
        )
        assert page.is_visible("#readout")
        sent = next(body for body in requests if body["model"] == "tuned")
        assert _run_python(server, _copied(page, "Copy as Python")) == f"{GREETING}\n"
        assert _run_curl(server, _copied(page, "Copy as curl")) == GREETING
        assert json.loads(_copied(page, "Copy as curl").split("--data-raw ")[1].strip("'")) == sent
        assert _copied(page, "Copy answer") == GREETING
        _ask(page, "Again?")
        last = [body for body in requests if body and body["model"] == "tuned"][-1]
        assert [message["content"] for message in last["messages"]] == [
            *("Greet.", GREETING, "Again?"),
        ]


def _run_python(server: RunningServer, program: str) -> str:
    assert _KEY not in program
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "API_KEY": _KEY, "NO_PROXY": "*", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout.decode()


def _run_curl(server: RunningServer, command: str) -> str:
    assert _KEY not in command
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    done = subprocess.run(
        ["bash", "-c", f"{command} --silent --noproxy '*'"],
        env={**os.environ, "API_KEY": _KEY},
        capture_output=True,
        check=True,
        timeout=PATIENCE,
    )
    events = [line[6:] for line in done.stdout.decode().split("\n") if line.startswith("data: {")]
    choices = [choice for event in events for choice in json.loads(event)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_a_hostile_answer_stays_text_and_an_error_is_the_apis_sentence(
    server: RunningServer, size: tuple[int, int]
) -> None:
    expected = ("status of 401", "status of 400")
    with open_page(
        f"{server.url}/?lang=zh", size=size, dark=True, expected_errors=expected
    ) as page:
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        _enter(page)
        _set(page, temperature="0", max_tokens="60")
        _ask(page, "Attack!")
        text = page.locator(".is-tuned .written").last.inner_text()
        assert text.startswith("<img src=x onerror=alert(1)><b>no</b> ⟨U+001B⟩[31mred")
        assert "⟨U+202E⟩" in text
        assert page.locator(".answer img, .answer b").count() == 0
        assert overflow(page) == 0
        _shot(page, f"zh_dark_{size[0]}")
        _set(page, temperature="7")
        _ask(page, "'; <b>$(x)</b>")
        sentence = "temperature is 7; it must be a number from 0 to 2."
        assert page.locator(".turn:last-child .error").first.inner_text() == sentence
        assert page.locator(".question b").count() == 0
        assert overflow(page) == 0
        _shot(page, f"error_{size[0]}")


def test_stop_ends_the_answers_and_the_words_change_with_the_language(
    server: RunningServer,
) -> None:
    with open_page(server.url, expected_errors=("status of 401",)) as page:
        _enter(page)
        _set(page, temperature="2", max_tokens="4000")
        page.fill("#prompt", "Tell me a long story.")
        page.press("#prompt", "Enter")
        page.wait_for_selector(".is-writing")
        page.keyboard.press("Escape")
        page.wait_for_selector(_ANSWERED)
        assert page.is_visible("#send") and page.is_hidden("#stop")
        page.click("#language")
        assert page.locator("#send").inner_text() == "发送"
        assert page.input_value("#set-max_tokens") == "4000"
        page.click("#theme")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_the_page_needs_no_key_and_may_not_be_framed(server: RunningServer) -> None:
    answer = httpx.get(server.url)
    assert answer.text == chat_page()
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert "default-src 'none'" in answer.text and "connect-src 'self'" in answer.text


def test_an_input_is_written_as_in_training_where_the_template_has_a_place_for_it() -> None:
    world = chat_world()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in world.environment.items():
            patch.setenv(name, value)
        settings = settings_from({"PROMPT_TEMPLATE": "alpaca", "BACKEND": "tinker"})
        models = models_to_serve([f"tuned={world.path}"], settings, base_model=BUNDLED)
        template = models.models[0].template
        assert template is not None
        with serving(models) as running:
            client = openai_of(running)
            listed: Any = {model.id: model.model_extra for model in client.models.list()}
            assert listed["tuned"]["template"] == {"name": template.name, "has_input": True}
            assert listed[BUNDLED]["template"]["has_input"] is False
            message: Any = {"role": "user", "content": "Add.", "input": "3 + 4"}
            asked: Any = {"temperature": 0, "max_tokens": 8, "messages": [message]}
            answer = client.chat.completions.create(model="tuned", **asked)
            prompt = (
                "Below is an instruction that describes a task, paired with an input that provides "
                "further context. Write a response that appropriately completes the request.\n\n"
                "### Instruction:\nAdd.\n\n### Input:\n3 + 4\n\n### Response:\n"
            )
            whole = client.completions.create(
                model="tuned", prompt=prompt, temperature=0, max_tokens=8
            )
            assert answer.choices[0].message.content == whole.choices[0].text
            assert answer.usage is not None and whole.usage is not None
            assert answer.usage.prompt_tokens == whole.usage.prompt_tokens
            refused = httpx.post(
                f"{running.url}/v1/chat/completions",
                json={"model": BUNDLED, **asked},
                timeout=PATIENCE,
            )
            assert refused.status_code == 400 and "input" in refused.json()["error"]["message"]
