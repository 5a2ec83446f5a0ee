"""The terminal's chat against a server that cuts its answers or sends something else."""

import asyncio
import json

import pytest

from tests.support.cut_server import STREAM, CutServer, cut_server
from tests.support.engine import no_proxy_for_loopback
from tinkersmith.chat.conversation import ChatAnswer, ChatModel
from tinkersmith.chat.requests import ChatServer

MODEL = ChatModel("tuned", "tuned", has_input=False)


def event(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def asked(behind: CutServer) -> ChatAnswer:
    answer = ChatAnswer(MODEL)
    server = ChatServer(behind.url, None)
    body = {"model": "tuned", "messages": [{"role": "user", "content": "3 + 4?"}]}
    asyncio.run(server.stream(answer, body, lambda: None))
    return answer


@pytest.mark.parametrize("ending", ["within", "silently"])
def test_an_answer_that_is_cut_anywhere_says_so_and_keeps_its_text(ending: str) -> None:
    no_proxy_for_loopback()
    whole = event("Sieben, ") + event("七 🙂")
    character = whole.index("七".encode()) + 1
    with cut_server() as behind:
        behind.content_type, behind.ending = STREAM, ending
        for cut in (len(event("Sieben, ")) + 20, character, len(whole) - 1, len(whole)):
            behind.pieces = [whole[:cut]]
            answer = asked(behind)
            assert answer.error == "The answer broke off before its end. Try /retry."
            assert answer.text == "Sieben, " + ("七 🙂" if cut >= len(whole) - 1 else "")


@pytest.mark.parametrize(
    "sent", [b"data: {\n\n", b'data: {"choices": 7}\n\n', b'data: {"error": "no"}\n\n']
)
def test_what_is_no_answer_of_the_api_is_told_in_a_sentence(sent: bytes) -> None:
    no_proxy_for_loopback()
    with cut_server() as behind:
        behind.pieces = [event("Sie"), sent]
        answer = asked(behind)
    assert answer.error.startswith("The server sent something that is no answer of this API.")
    assert answer.text == "Sie"
