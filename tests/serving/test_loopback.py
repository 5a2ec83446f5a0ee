"""Requests to this machine by asyncio's streams, against httpx's own transport."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tinkersmith.serving.loopback import LoopbackTransport

EVENTS = [f"data: {number} \u00e4\n\n".encode() * number for number in range(1, 40)]


async def echo(request: Request) -> Response:
    names = ("content-type", "content-length", "authorization", "host")
    sent = {name: request.headers.get(name) for name in names}
    body = (await request.body()).decode()
    return JSONResponse({"method": request.method, "url": str(request.url), **sent, "body": body})


async def stream(request: Request) -> Response:
    async def events() -> AsyncIterator[bytes]:
        for event in EVENTS:
            yield event

    return StreamingResponse(events(), media_type="text/event-stream")


async def large(request: Request) -> Response:
    return Response(b"x" * 3_000_000, 418, {"connection": "close", "x-odd": "a : b"})


@asynccontextmanager
async def app_at() -> AsyncGenerator[str]:
    """The address of a server with these routes."""
    methods = ["GET", "POST"]
    routes = [Route(f"/{one.__name__}", one, methods=methods) for one in (echo, stream, large)]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error"))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@asynccontextmanager
async def raw_server(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncGenerator[tuple[str, list[int]]]:
    """A server whose answers are written byte by byte, and its number of connections."""
    connections = [0]

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[0] += 1
        try:
            await answer(reader, writer)
        except (EOFError, OSError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=LoopbackTransport(), timeout=httpx.Timeout(None, connect=5))


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("method", "path", "asked"),
    [
        ("GET", "/echo?a=1%202", {}),
        ("POST", "/echo", {"json": {"text": "\u00e4\n\U0001f341"}}),
        ("POST", "/echo", {"content": b"y" * 500_000, "headers": {"authorization": "Bearer k"}}),
        ("POST", "/stream", {"json": {}}),
        ("GET", "/large", {}),
        ("GET", "/nowhere", {}),
    ],
)
def test_answers_are_those_that_httpx_gets_by_itself(
    method: str, path: str, asked: dict[str, Any]
) -> None:
    async def test() -> None:
        async with app_at() as url, client() as ours, httpx.AsyncClient() as theirs:
            answers = [await one.request(method, url + path, **asked) for one in (ours, theirs)]
            again = await ours.request(method, url + path, **asked)
        for answer in (answers[0], again):
            assert (answer.status_code, answer.content) == (
                answers[1].status_code,
                answers[1].content,
            )
            mine, others = (
                {name: value for name, value in one.headers.items() if name != "date"}
                for one in (answer, answers[1])
            )
            assert mine == others

    run(test)


def test_events_come_one_by_one_as_they_are_sent() -> None:
    go_on = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await go_on.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async def test() -> None:
        async with (
            raw_server(slow) as (url, _),
            client() as ours,
            ours.stream("GET", url) as answer,
        ):
            pieces = answer.aiter_raw()
            assert await anext(pieces) == b"one"
            go_on.set()
            assert [piece async for piece in pieces] == [b"two"]

    run(test)


WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def test_a_connection_serves_the_next_request_and_no_two_at_once() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            await asyncio.sleep(0.05)
            writer.write(WHOLE)

    async def test() -> None:
        async with raw_server(answer) as (url, connections), client() as ours:
            for _ in range(5):
                assert (await ours.get(url)).content == b"ok"
            assert connections == [1]
            answers = await asyncio.gather(*(ours.get(url) for _ in range(7)))
            assert [one.content for one in answers] == [b"ok"] * 7 and connections == [7]

    run(test)


def test_a_connection_that_the_server_closed_while_idle_is_not_used_again() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(WHOLE)

    async def test() -> None:
        async with raw_server(once) as (url, connections), client() as ours:
            for number in range(1, 4):
                assert (await ours.get(url)).content == b"ok" and connections == [number]
                await asyncio.sleep(0.05)

    run(test)


def test_an_answer_that_is_left_early_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        assert await reader.read() == b""
        closed.set()

    async def test() -> None:
        async with raw_server(endless) as (url, _), client() as ours:
            async with ours.stream("GET", url) as answer:
                assert await anext(answer.aiter_raw()) == b"one"
            await closed.wait()
            closed.clear()
            asking = asyncio.create_task(ours.get(url))
            await asyncio.sleep(0.05)
            asking.cancel()
            await closed.wait()

    run(test)


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-le", httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 200_000, httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", httpx.RemoteProtocolError),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n9\r\nhalf",
            httpx.RemoteProtocolError,
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nodd\r\nhalf",
            httpx.RemoteProtocolError,
        ),
    ],
)
def test_what_is_no_whole_answer_is_httpxs_error(sent: bytes, error: type[Exception]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)

    async def test() -> None:
        async with raw_server(answer) as (url, _), client() as ours:
            with pytest.raises(error):
                await ours.get(url)

    run(test)


def test_a_server_that_is_not_there_or_says_nothing_is_httpxs_error() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with client() as ours:
            async with raw_server(silent) as (url, _):
                with pytest.raises(httpx.ReadTimeout):
                    await ours.get(url, timeout=0.1)
            with pytest.raises(httpx.ConnectError):
                await ours.get(url)

    run(test)


def test_an_answer_without_a_length_goes_to_the_end_of_the_connection() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps({"a": 1}).encode())

    async def test() -> None:
        async with raw_server(answer) as (url, _), client() as ours:
            assert (await ours.get(url)).json() == {"a": 1}

    run(test)
