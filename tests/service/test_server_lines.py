"""Which server a command asks is said, and what is set in the environment in vain."""

from types import SimpleNamespace
from typing import Any

import pytest

from tinkersmith.service.connection import server_lines
from tinkersmith.settings.reading import settings_from


def said(kind: str, *, of_run: bool = True, backend: str = "auto") -> str:
    service: Any = SimpleNamespace(kind=kind, probe=SimpleNamespace(url="http://gpu:8000"))
    return "\n".join(server_lines(service, settings_from({"BACKEND": backend}), of_run=of_run))


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TINKER_BASE_URL", "TINKER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_each_kind_of_server_is_named() -> None:
    assert said("embedded") == "Server: the engine on this machine"
    assert said("cloud") == "Server: Tinker's cloud"
    assert said("url") == "Server: http://gpu:8000"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("TINKER_BASE_URL",), "TINKER_BASE_URL is set and not used"),
        (("TINKER_API_KEY",), "TINKER_API_KEY is set and not used"),
        (
            ("TINKER_BASE_URL", "TINKER_API_KEY"),
            "TINKER_BASE_URL and TINKER_API_KEY are set and not used",
        ),
    ],
)
def test_a_run_of_this_machine_wins_over_what_is_set_and_says_so(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...], words: str
) -> None:
    for name in names:
        monkeypatch.setenv(name, "tml-never-shown")
    assert words in said("embedded") and "never-shown" not in said("embedded")
    assert "the run was trained on this machine" in said("embedded")


def test_nothing_is_said_where_the_user_chose_or_no_run_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TINKER_BASE_URL", "http://gpu:8000")
    for lines in (
        said("url"),
        said("embedded", backend="local"),
        said("embedded", of_run=False),
    ):
        assert "not used" not in lines
