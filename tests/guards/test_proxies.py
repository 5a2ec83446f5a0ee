"""Which requests go through a proxy, whatever a process asked before."""

import urllib.error
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.support.http_server import http_server
from tinkersmith.guards.proxies import is_on_this_machine, opener

NO_PROXY_LISTENS = "http://127.0.0.1:9"
ELSEWHERE = "http://somewhere.invalid/"


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture(autouse=True)
def _no_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)


def body_of(url: str) -> str:
    with opener(url).open(url, timeout=60) as answer:
        return answer.read().decode()


def test_this_machine_is_reached_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NO_PROXY_LISTENS)
    with http_server(Hello) as url:
        assert body_of(f"{url}/a") == "/a"


def test_the_proxies_are_those_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", NO_PROXY_LISTENS)
    with pytest.raises(urllib.error.URLError, match="refused"):
        body_of(ELSEWHERE)
    with http_server(Hello) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert body_of(ELSEWHERE) == ELSEWHERE  # a proxy gets the whole address


def test_checks_of_a_server_do_not_load_certificates_each_time() -> None:
    assert opener("http://127.0.0.1:1") is opener("http://127.0.0.1:2")
    assert opener(ELSEWHERE) is opener(ELSEWHERE)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://[::1]", "http://localhost"])
def test_loopback_is_this_machine(url: str) -> None:
    assert is_on_this_machine(url)


@pytest.mark.parametrize("url", ["http://10.0.0.1", "https://localhost.example", "", "http://[x"])
def test_other_addresses_and_none_are_not(url: str) -> None:
    assert not is_on_this_machine(url)


def test_no_code_of_ours_keeps_the_first_proxies_of_a_process() -> None:
    """`urlopen` does. After a test with a dead proxy, every later server would be unreachable."""
    sources = Path(__file__).parents[2] / "src"
    using = [file.name for file in sources.rglob("*.py") if ".urlopen(" in file.read_text()]
    assert using == []
