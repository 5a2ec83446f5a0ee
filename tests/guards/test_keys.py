"""The key of a server: given, made, or refused."""

from pathlib import Path

import pytest

from tinkersmith.errors import UserError
from tinkersmith.guards.keys import choose_key

GOOD = "tml-0123456789"


def chosen(given: str, file: Path | None, *, loopback: bool) -> tuple[str, bool]:
    return choose_key(
        *("THE_KEY", given, file),
        loopback=loopback,
        warn=lambda sentence: None,
        server="engine",
        prefix="tml-",
    )


def test_a_given_key_is_taken_and_without_one_a_long_one_is_made(tmp_path: Path) -> None:
    assert chosen(GOOD, None, loopback=True) == (GOOD, False)
    file = tmp_path / "key"
    file.write_text(f"  {GOOD}\n")
    assert chosen("", file, loopback=True) == (GOOD, False)
    made = [chosen("", None, loopback=loopback) for loopback in (True, False)]
    assert made[0] != made[1]
    for key, is_new in made:
        assert is_new and key.startswith("tml-") and len(key) >= 32


def test_beyond_loopback_a_key_has_32_characters(tmp_path: Path) -> None:
    enough = f"tml-{'k' * 28}"
    assert chosen(enough, None, loopback=False) == (enough, False)
    with pytest.raises(UserError, match="has 31 characters; beyond loopback it needs at least 32"):
        chosen(enough[:-1], None, loopback=False)
    file = tmp_path / "key"
    file.write_text(GOOD)
    with pytest.raises(UserError, match=f"the key in {file} has 14 characters"):
        chosen("", file, loopback=False)


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
    with pytest.raises(UserError, match=sentence) as refusal:
        chosen(key, None, loopback=True)
    assert key not in str(refusal.value) or key == "tml-"


def test_two_keys_or_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--key-file and THE_KEY both give a key"):
        chosen(GOOD, tmp_path / "key", loopback=True)
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        chosen("", tmp_path, loopback=True)
    file = tmp_path / "key"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        chosen("", file, loopback=True)
    file.write_text("")
    with pytest.raises(UserError, match="must begin with tml-"):
        chosen("", file, loopback=True)


def test_a_key_without_a_prefix_may_be_any_word(tmp_path: Path) -> None:
    def of_file(text: str) -> str:
        (tmp_path / "key").write_text(text)
        options = {"loopback": True, "warn": said.append, "server": "dashboard"}
        return choose_key("THE_KEY", "", tmp_path / "key", **options)[0]

    said: list[str] = []
    assert of_file("word\n") == "word"
    assert said == [
        f"other users may read the key in {tmp_path / 'key'}: chmod 600 {tmp_path / 'key'}"
    ]
    with pytest.raises(UserError, match="is empty"):
        of_file("\n")
