"""The dashboard as an ASGI application: a page, a stream of what changes, and reports.

Every request passes the checks of host, origin and key. The key comes once with the page's address;
a cookie carries it from then on.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncGenerator
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from starlette.responses import StreamingResponse as Stream
from starlette.routing import Route

from tinkersmith.dashboard.watch import MOST_SHOWN, PageState, Watch
from tinkersmith.files import open_regular
from tinkersmith.guards.hosts import HostGuard
from tinkersmith.guards.keys import carries_key
from tinkersmith.metrics.names import KNOWN_SCORES
from tinkersmith.pages.page import page_html, part
from tinkersmith.settings.measures import is_told_in_percent

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

SEND_EVERY = 1.0  # seconds
_SIGN_OF_LIFE = 15.0  # seconds after which a comment shows whether the page is still there
_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
# A report is a page of its own, perhaps of somebody else's run: it gets no access to this server.
_REPORT_POLICY = {"content-security-policy": "sandbox allow-scripts allow-popups allow-downloads"}


def make_dashboard(
    watch: Watch,
    language: str,
    key: str,
    hosts: frozenset[str],
    stopping: asyncio.Event,
    *,
    any_own_address: bool = False,
    cookie: str = "tinkersmith-dashboard",
) -> "ASGIApp":
    """The dashboard of one folder. Streams end when `stopping` is set.

    Args:
        cookie: the cookie's name; cookies of all ports of a host share their names.
    """
    page = dashboard_page(language)

    async def front(request: Request) -> Response:
        answer = HTMLResponse(page, headers=_HEADERS)
        # The key was in the address, or in this cookie.
        answer.set_cookie(cookie, key, httponly=True, samesite="strict", path="/")
        return answer

    async def events(request: Request) -> Response:
        shown = tuple(dict.fromkeys(request.query_params.getlist("run")))[:MOST_SHOWN]
        return Stream(
            _events(watch, PageState(shown), stopping),
            media_type="text/event-stream",
            headers=_HEADERS | {"x-accel-buffering": "no"},
        )

    async def report(request: Request) -> Response:
        file = watch.report(request.path_params["run"])
        try:
            if file is None:
                raise FileNotFoundError
            await asyncio.to_thread(lambda: open_regular(file).close())
        except OSError:
            return _refusal("this run has no report.", 404)
        return FileResponse(file, media_type="text/html", headers=_HEADERS | _REPORT_POLICY)

    app = Starlette(
        routes=[
            Route("/", front),
            Route("/events", events),
            Route("/report/{run}", report),
        ],
        exception_handlers={HTTPException: _no_such_page},
    )
    app.router.redirect_slashes = False
    return HostGuard(
        _PageKeyGuard(app, key, cookie),
        hosts,
        lambda scope, sentence, status: _refusal(sentence, status),
        any_own_address=any_own_address,
        server="dashboard",
    )


def dashboard_page(language: str) -> str:
    """The page. It holds nothing of the runs."""
    package = "tinkersmith.dashboard"
    return page_html(
        title="Tinkersmith",
        language=language,
        body=part(package, "page.html"),
        data={
            "language": language,
            "mostShown": MOST_SHOWN,
            "inPercent": sorted(filter(is_told_in_percent, KNOWN_SCORES)),
        },
        scripts=[part("tinkersmith.pages", "charts.js"), part(package, "page.js")],
        styles=[part(package, "page.css")],
        generator="tinkersmith dashboard",
        connect=True,
    )


class _PageKeyGuard:
    """Refuses requests without the key: in a header, in the cookie, or in the page's address."""

    def __init__(self, app: "ASGIApp", key: str, cookie: str) -> None:
        self.app, self.key, self.cookie = app, key, cookie

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        if scope["type"] == "http" and not self._allowed(scope):
            sentence = (
                "the key is missing or wrong. Open the address that tinkersmith dashboard printed, "
                "with its key."
            )
            await _refusal(sentence, 401)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _allowed(self, scope: "Scope") -> bool:
        if carries_key(scope, self.key):
            return True
        sent = [self._in_cookies(scope)]
        if scope["path"] == "/":
            sent += parse_qs(scope["query_string"].decode("latin-1")).get("key", [])
        return any(hmac.compare_digest(key.encode(), self.key.encode()) for key in sent)

    def _in_cookies(self, scope: "Scope") -> str:
        for name, value in scope["headers"]:
            if name == b"cookie":
                try:
                    cookies = SimpleCookie(value.decode("latin-1"))
                except CookieError:
                    continue
                if self.cookie in cookies:
                    return cookies[self.cookie].value
        return ""


async def _events(
    watch: Watch, page: PageState, stopping: asyncio.Event
) -> AsyncGenerator[bytes, None]:
    """Server-sent events: JSON objects of what the page does not know yet."""
    sent_at = 0.0
    while not stopping.is_set():
        news = await asyncio.to_thread(_encoded_news, watch, page)
        if news:
            yield b"data: " + news + b"\n\n"
            sent_at = time.monotonic()
        elif time.monotonic() - sent_at > _SIGN_OF_LIFE:
            yield b": still here\n\n"
            sent_at = time.monotonic()
        try:
            async with asyncio.timeout(SEND_EVERY):
                await stopping.wait()
        except TimeoutError:
            continue


def _encoded_news(watch: Watch, page: PageState) -> bytes:
    """What the page does not know, in one line of ASCII: an unpaired surrogate is escaped."""
    news = watch.news(page)
    return json.dumps({**news, "now": time.time()}, separators=(",", ":")).encode() if news else b""


def _refusal(sentence: str, status: int) -> PlainTextResponse:
    return PlainTextResponse(f"{sentence}\n", status, _HEADERS)


async def _no_such_page(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return _refusal(f"the dashboard has no {request.method} {request.url.path}.", status)
