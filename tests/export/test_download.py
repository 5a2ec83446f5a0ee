"""Downloads: where from, how large, and what a server may redirect to."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.support.connections import bare_connection
from tests.support.http_server import http_server
from tests.support.hubs import REFUSING, hub_with
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_base
from tinkersmith.export.download import LARGEST_JSON, LARGEST_LORA, _fetch, _limit, model_folder
from tinkersmith.fingerprint import WEIGHTS_INDEX, safetensors_header


class _Server(BaseHTTPRequestHandler):
    """/N sends N bytes, /endless never ends, /declare/N only says it has N, /to/URL redirects."""

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.send_response(int(rest[:3]))
            self.send_header("Location", rest[4:])
            self.end_headers()
            return
        self.send_response(200)
        if kind == "declare":
            self.send_header("Content-Length", rest)
        self.end_headers()
        try:
            while kind == "endless":
                self.wfile.write(b"x" * 65536)
        except OSError:
            return  # the client had enough
        if kind.isdigit():
            self.wfile.write(b"x" * int(kind))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http_server(_Server) as url:
        yield url


def fetch(url: str, folder: Path, limit: int = 1000) -> bytes:
    _fetch(bare_connection(url), url, folder / "adapter_model.safetensors", limit)
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("path", ["endless", "declare/1001", f"declare/{10**15}", "1001"])
def test_a_file_that_is_larger_than_announced_is_stopped(
    server: str, tmp_path: Path, path: str
) -> None:
    with pytest.raises(UserError, match="larger than the 1,000 bytes"):
        fetch(f"{server}/{path}", tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size <= 1000


@pytest.mark.parametrize("path", ["1000", "declare/0", "declare/abc", "declare/-5"])
def test_a_file_within_the_limit_arrives_whatever_length_is_declared(
    server: str, tmp_path: Path, path: str
) -> None:
    assert fetch(f"{server}/{path}", tmp_path) == b"x" * (1000 if path == "1000" else 0)


def test_the_limit_is_what_the_server_announced() -> None:
    assert _limit("adapter_config.json", 10**15) == LARGEST_JSON
    assert 5000 < _limit("adapter_model.safetensors", 5000) < 5000 + 2**21
    assert _limit("adapter_model.safetensors", 10**15) == LARGEST_LORA
    for unknown in (None, 0):
        assert _limit("adapter_model.safetensors", unknown) == LARGEST_LORA


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "ftp://files.example/a", "data:,abc", "/etc/passwd", ""),
        *("http://[::1", "javascript:1", "HTTPX://a"),
    ],
)
def test_an_address_that_is_not_https_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="not an https address"):
        fetch(url, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["http://files.example/a", "http://127.0.0.1.evil.example/", "http://localhost@evil.ex/"]
)
def test_plain_http_to_another_machine_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match="over plain HTTP"):
        fetch(url, tmp_path)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("http://files.example/a", "over plain HTTP"),
        ("file:///etc/passwd", "not an https address"),
        ("ftp://files.example/a", "not an https address"),
    ],
)
def test_a_redirect_leads_nowhere_that_a_first_address_could_not(
    server: str, tmp_path: Path, code: int, target: str, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        fetch(f"{server}/to/{code}/{target}", tmp_path)


def test_a_redirect_on_loopback_is_followed_and_an_endless_one_is_not(
    server: str, tmp_path: Path
) -> None:
    assert fetch(f"{server}/to/302/{server}/7", tmp_path) == b"x" * 7
    assert fetch(f"{server}/to/307//8", tmp_path) == b"x" * 8
    loop = f"{server}/to/302/{server}/to/302/"
    with pytest.raises(UserError):
        fetch(loop, tmp_path)


def test_another_machine_may_not_redirect_to_this_one() -> None:
    from tinkersmith.export.download import _CheckedRedirects

    class Request:
        full_url = "https://files.example/a"

    handler = _CheckedRedirects("adapter_config.json", loopback=False)
    for target in ("http://127.0.0.1:8000/secret", "https://localhost/secret"):
        with pytest.raises(UserError, match="not an https address of a server"):
            handler.http_error_302(Request(), None, 302, "Found", {"location": target})


def test_the_folder_of_tokenizer_serves_where_it_tells_the_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = make_tiny_model(tmp_path / "base")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", REFUSING)
    assert model_folder("some-org/some-model", str(base), None, weights=False) == base
    (base / "model.safetensors").unlink()
    with pytest.raises(UserError) as caught:
        model_folder("some-org/some-model", str(base), None, weights=False)
    assert "does not answer (connection refused)" in str(caught.value)
    assert "--base-folder (for an adapter, its config.json, model.safe" in str(caught.value)
    (base / "model.safetensors.index.json").write_text("{}")
    assert model_folder("some-org/some-model", str(base), None, weights=False) == base


def test_an_adapter_needs_the_weights_of_a_model_in_one_file_and_else_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    model = make_tiny_model(tmp_path / "model")
    weights = model / "model.safetensors"
    for name, is_whole in (("one-file", True), ("shards", False)):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / name))
        if not is_whole:
            names = dict.fromkeys(safetensors_header(weights), weights.name)
            (model / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": names}))
        with hub_with(f"some-org/{name}", model) as hub:
            monkeypatch.setenv("HF_ENDPOINT", hub.url)
            folder = model_folder(f"some-org/{name}", "", None, weights=True, small_files_only=True)
            assert not list(folder.glob("*.safetensors"))
            folder = model_folder(f"some-org/{name}", "", None, weights=False)
            assert len(list(folder.glob("*.safetensors"))) == is_whole
            assert read_base(folder).files.keys() == read_base(model).files.keys()
            folder = model_folder(f"some-org/{name}", "", None, weights=True)
            assert (folder / weights.name).read_bytes() == weights.read_bytes()
