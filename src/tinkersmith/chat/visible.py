"""A model's text -> text that is safe to print: what would act on a terminal is shown instead."""

_JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji
_TAB = "    "


def printable(text: str) -> str:
    """`text` with its line breaks, tabs as spaces, and U+001B in brackets for an escape."""
    if text.isprintable():
        return text
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    if character == "\n" or character in _JOINERS or character.isprintable():
        return character
    return _TAB if character == "\t" else f"⟨U+{ord(character):04X}⟩"
