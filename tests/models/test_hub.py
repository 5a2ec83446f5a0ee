"""A hub that cannot be reached costs seconds, and is never told as a fault of the disk."""

import json
import ssl
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType

import pytest
from huggingface_hub import constants

from tests.support.http_server import http_server, self_signed
from tests.support.hubs import REFUSING, UNRESOLVED, Hub, hub_with, silent_hub
from tests.support.processes import PATIENCE
from tests.support.tiny_models import make_tiny_model
from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_base
from tinkersmith.fingerprint import safetensors_header
from tinkersmith.models import hub
from tinkersmith.models.hub import check_hub_has, tokenizer_from_hub, tokenizer_repository
from tinkersmith.sources.kinds import refuse_text
from tinkersmith.sources.records import read_records
from tinkersmith.text.tokenizer import given_tokenizer, load_tokenizer, tokenizer_of

NAME = "some-org/some-model"


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(hub, "PATIENCE", 1.0)
    monkeypatch.setattr(hub, "_unreached", {})


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_with(NAME, make_tiny_model(tmp_path / "on-the-hub")) as answering:
        monkeypatch.setenv("HF_ENDPOINT", answering.url)
        monkeypatch.setattr(hub, "PATIENCE", PATIENCE)  # a busy machine answers late
        yield answering


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("", "nothing arrived for 1 s"),
        (REFUSING, "connection refused"),
        (UNRESOLVED, "cannot be resolved"),
    ],
)
def test_an_unreachable_hub_is_named_with_what_to_set(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = counted_waits(monkeypatch)
    with silent_hub() as silent:
        monkeypatch.setenv("HF_ENDPOINT", address or silent)
        if address:  # what refuses does so before the patience ends
            monkeypatch.setattr(hub, "PATIENCE", PATIENCE)
        with pytest.raises(UserError) as caught:
            tokenizer_from_hub(NAME)
        assert len(waits) == 1
        text = str(caught.value)
        assert words in text and (address or silent) in text
        for word in ("TOKENIZER =", "HF_ENDPOINT", "hf-mirror.com", "tinkersmith[modelscope]"):
            assert word in text
        assert "disk" not in text and "OUTPUT_DIR" not in text
        with pytest.raises(UserError, match="BASE_MODEL some-org/some-model is not on this"):
            check_hub_has(NAME)
        pytest.importorskip("datasets")
        with pytest.raises(UserError) as caught:
            read_records(Path(f"hf:{NAME}"))
        assert words in str(caught.value) and "HF_ENDPOINT" in str(caught.value)


def counted_waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The patience of each wait for a hub from here on."""
    real, waits = hub._waited_for, list[float]()

    def wait(fetch: Callable[[], Path], cache: Path, patience: float) -> Path:
        waits.append(patience)
        return real(fetch, cache, patience)

    monkeypatch.setattr(hub, "_waited_for", wait)
    return waits


def test_what_needs_a_silent_hub_several_times_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = counted_waits(monkeypatch)
    with silent_hub() as silent:
        monkeypatch.setenv("HF_ENDPOINT", silent)
        for _ in range(3):
            with pytest.raises(UserError, match="nothing arrived for 1 s"):
                check_hub_has(NAME)
        assert "nothing arrived for 1 s" in (hub.hub_unreached("datasets", NAME) or "")
        assert len(waits) == 1
        monkeypatch.setattr(hub, "_ASKED_AGAIN_AFTER", 0.0)  # as after a minute
        assert hub.hub_unreached("datasets", NAME)
        assert waits == [hub.PATIENCE] * 2


def test_the_tokenizer_comes_from_the_mirror_that_is_set_and_then_from_the_cache(
    good: Hub,
) -> None:
    folder = tokenizer_from_hub(NAME)
    assert load_tokenizer(folder).encode("1 + 1").tolist()
    assert not (folder / "model.safetensors").exists()  # weights are no part of a tokenizer
    asked = len(good.asked)
    assert tokenizer_from_hub(f"{NAME}:peft:262144") == folder
    assert len(good.asked) == asked


def test_the_folder_that_is_given_comes_first_and_the_hub_is_not_asked(
    good: Hub, tmp_path: Path
) -> None:
    given = make_tiny_model(tmp_path / "given")
    assert tokenizer_of(str(given), NAME).folder == given
    assert not good.asked
    with pytest.raises(UserError, match=r"TOKENIZER is .*, which is not a folder"):
        tokenizer_of(str(tmp_path / "nowhere"), NAME)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no tokenizer\.json in that folder"):
        tokenizer_of(str(tmp_path / "empty"), NAME)


def test_a_tokenizer_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    given = make_tiny_model(tmp_path / "given")
    with pytest.raises(UserError, match=r"Qwen/Qwen3-8B knows 151,936: .* another model"):
        given_tokenizer(str(given), "Qwen/Qwen3-8B")
    larger = make_tiny_model(tmp_path / "larger")
    config = json.loads((larger / "config.json").read_text())
    (larger / "config.json").write_text(json.dumps({**config, "vocab_size": 100}))
    with pytest.raises(UserError, match=r"larger knows 100: .* another model"):
        given_tokenizer(str(given), str(larger))
    given_tokenizer(str(given), str(given))
    given_tokenizer(str(given), "somebody/unknown")
    assert given_tokenizer("", "Qwen/Qwen3-8B") is None


@pytest.mark.parametrize("host", ["git-lfs.github.com", "hawser.github.com"])
def test_a_pointer_of_git_lfs_is_told_as_that(host: str, tmp_path: Path) -> None:
    pointer = f"version https://{host}/spec/v1\noid sha256:0\nsize 5\n"
    (tmp_path / "tokenizer.json").write_text(pointer)
    with pytest.raises(UserError, match=r"tokenizer\.json is a pointer of Git LFS"):
        given_tokenizer(str(tmp_path), "somebody/unknown")
    (tmp_path / "model.safetensors").write_text(pointer)
    with pytest.raises(ValueError, match="a pointer of Git LFS"):
        safetensors_header(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(pointer)
    with pytest.raises(UserError, match=r"config\.json is damaged: it is a pointer of Git LFS"):
        read_base(tmp_path)
    (tmp_path / "data.json").write_text(pointer)
    with pytest.raises(UserError, match="a pointer of Git LFS"):
        refuse_text(tmp_path / "data.json", pointer.encode())


@pytest.mark.parametrize("token", ["", "hf_something"])
def test_a_repository_that_is_not_shown_says_where_to_ask(
    good: Hub, monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    good.status = 401
    monkeypatch.setattr("huggingface_hub.get_token", lambda: token or None)
    with pytest.raises(UserError) as caught:
        tokenizer_from_hub(NAME)
    assert f"{good.url}/{NAME}" in str(caught.value) and "HF_TOKEN" in str(caught.value)
    assert "does not answer" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (403, "does not exist there, or is not public"),
        (407, "HTTPS_PROXY"),
        (418, "refuses the question (HTTP 418"),
        (429, "asked too often (HTTP 429"),
        (451, "to this network"),
        (500, "a fault of the hub"),
        (503, "does not answer (HTTP 503"),
        (599, "a fault of the hub; try again later (HTTP 599)"),
    ],
)
def test_each_status_of_a_hub_has_a_sentence_of_its_own(good: Hub, status: int, words: str) -> None:
    good.status = status
    for ask in (lambda: tokenizer_from_hub(NAME), lambda: check_hub_has(NAME)):
        hub._unreached.clear()
        with pytest.raises(UserError) as caught:
            ask()
        assert words in str(caught.value) and good.url in str(caught.value)
        assert "Client error" not in str(caught.value) and "for url" not in str(caught.value)


def test_an_address_without_a_scheme_says_how_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "hf-mirror.com")
    with pytest.raises(
        UserError, match=r"HF_ENDPOINT is no address of a hub\. It must begin with https://"
    ):
        tokenizer_from_hub(NAME)


def test_a_login_page_in_place_of_a_hub_is_told_as_that(
    good: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>Welcome to the hotel</html>")

        def log_message(self, format: str, *args: object) -> None: ...

    with http_server(Portal) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(UserError, match="wants a login first"):
            tokenizer_from_hub(NAME)


def test_a_proxy_that_does_not_answer_is_named_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", UNRESOLVED)
    monkeypatch.setenv("http_proxy", REFUSING.replace("//", "//somebody:secret@"))
    with pytest.raises(UserError) as caught:
        tokenizer_from_hub(NAME)
    assert f"through the proxy {REFUSING}" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_certificate_that_is_not_trusted_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with http_server(BaseHTTPRequestHandler, context) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        with pytest.raises(UserError) as caught:
            tokenizer_from_hub(NAME)
    assert "certificate is not trusted" in str(caught.value)
    assert "SSL_CERT_FILE" in str(caught.value)


def test_modelscope_is_asked_where_the_hub_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package is large, so its one function stands in for it."""
    folder = make_tiny_model(tmp_path / "there")
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str], ignore_patterns: list[str]) -> str:
        asked.append(name)
        assert "*.json" in allow_patterns and ignore_patterns
        return str(folder)

    package, module = ModuleType("modelscope"), ModuleType("modelscope.hub.snapshot_download")
    module.snapshot_download = download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modelscope", package)
    monkeypatch.setitem(sys.modules, "modelscope.hub", ModuleType("modelscope.hub"))
    monkeypatch.setitem(sys.modules, "modelscope.hub.snapshot_download", module)
    monkeypatch.setattr(hub, "_has_modelscope", lambda: True)
    monkeypatch.setenv("HF_ENDPOINT", REFUSING)
    assert tokenizer_from_hub(NAME) == folder
    assert asked == [NAME]


def test_gated_models_take_the_tokenizer_that_is_not_gated() -> None:
    assert "thinkingmachineslabinc" in tokenizer_repository("meta-llama/Llama-3.1-8B-Instruct")
    assert tokenizer_repository("qwen/qwen3-8b:peft:1") == "Qwen/Qwen3-8B"
