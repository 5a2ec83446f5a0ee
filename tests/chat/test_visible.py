"""What acts on a terminal is shown, and what people write stays as it is."""

import unicodedata

import pytest

from tinkersmith.chat.visible import printable


@pytest.mark.parametrize(
    "text", ["a\nb\n", "你好，世界 🙂", "👩\u200d💻", "می\u200cخواهم", "é e\u0301"]
)
def test_what_people_write_stays(text: str) -> None:
    assert printable(text) == text


def test_no_control_character_is_left() -> None:
    everything = "".join(map(chr, range(0x3000)))
    left = {c for c in printable(everything) if unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp")}
    assert left == {"\n", "\u200c", "\u200d"}


def test_an_escape_is_shown_by_its_number() -> None:
    assert printable("\x1b[31m\u202e\tx\r") == "⟨U+001B⟩[31m⟨U+202E⟩    x⟨U+000D⟩"
