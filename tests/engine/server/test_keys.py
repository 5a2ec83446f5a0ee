"""The engine's key: given, made, or refused."""

from pathlib import Path

import pytest

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.server.keys import choose_key

GOOD = "tml-0123456789"


def test_a_given_key_is_taken_and_without_one_a_long_one_is_made(tmp_path: Path) -> None:
    assert choose_key(GOOD, None, loopback=True) == (GOOD, False)
    file = tmp_path / "key"
    file.write_text(f"  {GOOD}\n")
    assert choose_key("", file, loopback=True) == (GOOD, False)
    made = [choose_key("", None, loopback=loopback) for loopback in (True, False)]
    assert made[0] != made[1]
    for key, is_new in made:
        assert is_new and key.startswith("tml-") and len(key) >= 32


def test_beyond_loopback_a_key_has_32_characters(tmp_path: Path) -> None:
    enough = f"tml-{'k' * 28}"
    assert choose_key(enough, None, loopback=False) == (enough, False)
    with pytest.raises(Refused, match="has 31 characters; beyond loopback it needs at least 32"):
        choose_key(enough[:-1], None, loopback=False)
    file = tmp_path / "key"
    file.write_text(GOOD)
    with pytest.raises(Refused, match=f"the key in {file} has 14 characters"):
        choose_key("", file, loopback=False)


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("secret", "must begin with tml-"),
        ("tml-", "must begin with tml-"),
        ("TML-abc", "must begin with tml-"),
        ("tml-a b", "ASCII characters without spaces"),
        ("tml-a\nb", "ASCII characters without spaces"),
        ("tml-\u00fc", "ASCII characters without spaces"),
        ("tml-\udcff", "ASCII characters without spaces"),
    ],
)
def test_what_the_sdk_could_not_send_is_no_key_and_is_not_shown(key: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence) as refusal:
        choose_key(key, None, loopback=True)
    assert key not in str(refusal.value) or key == "tml-"


def test_two_keys_or_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="both give a key"):
        choose_key(GOOD, tmp_path / "key", loopback=True)
    with pytest.raises(Refused, match="cannot be read: Is a directory"):
        choose_key("", tmp_path, loopback=True)
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Refused, match="it is not text"):
        choose_key("", file, loopback=True)
    file.write_text("")
    with pytest.raises(Refused, match="must begin with tml-"):
        choose_key("", file, loopback=True)
