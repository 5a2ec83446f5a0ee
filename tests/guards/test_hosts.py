"""The names and the address of a server. tests/engine/server/test_hosts.py sends requests."""

import pytest

from tinkersmith.errors import UserError
from tinkersmith.guards.hosts import address_in_url, allowed_hosts, is_loopback, listen


@pytest.mark.parametrize(
    "name", ["", "http://engine.example", "a.b:80", "a.b.", "*", "u@a", "a b", "[::1]:80", "::g"]
)
def test_a_name_to_allow_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="--allow-host is"):
        allowed_hosts("127.0.0.1", [name])


def test_loopback_is_this_machine_alone() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.8.0.3", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"))


def test_a_taken_port_is_one_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: .* another"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("127.0.0.1", 65536, "--port is 65536; it must be from 0"),
        ("127.0.0.1", -1, "--port is -1"),
        ("no such host", 0, "--host is 'no such host', which is no address"),
        ("192.0.2.7", 0, "--host is '192.0.2.7', which is no address"),  # that of no machine
    ],
)
def test_what_cannot_be_listened_on_is_one_sentence(host: str, port: int, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        listen(host, port)


def test_an_address_of_version_6_has_brackets_in_a_url() -> None:
    assert address_in_url("::1", 80) == "[::1]:80"
    assert address_in_url("localhost", 80) == "localhost:80"
