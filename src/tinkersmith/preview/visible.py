"""Text -> text in which every character can be seen: new lines, controls, marks of direction."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Signs:
    """What stands for what cannot be seen."""

    newline: str
    tab: str
    space: str
    open: str  # before a trained part
    close: str
    open_cut: str  # before what is cut
    close_cut: str
    before: str  # around the number of a character
    after: str

    def for_encoding(self, encoding: str) -> "Signs":
        """These signs, or plain ones where the encoding lacks one of them."""
        try:
            "".join(astuple(self)).encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return PLAIN
        return self

    def of(self, text: str) -> str:
        """`text` on one line, with everything visible."""
        return visible(text, self).replace("\n", "")


VISIBLE = Signs("↵", "⇥", "·", "⟦", "⟧", "⟪", "⟫", "⟨", "⟩")
PLAIN = Signs("\\n", "\\t", "_", "[[", "]]", "{{", "}}", "<", ">")


def visible(text: str, signs: Signs = VISIBLE) -> str:
    """`text` with signs for new lines, which stay, and U+202E in brackets for what has no shape."""
    if text.isprintable():
        return _bracketed(text, signs)
    shown: list[str] = []
    for character in text:
        if character == "\n":
            shown.append(f"{signs.newline}\n")
        elif character == "\t":
            shown.append(signs.tab)
        elif character.isprintable():
            shown.append(character)
        else:
            shown.append(f"{signs.before}U+{ord(character):04X}{signs.after}")
    return _bracketed("".join(shown), signs)


def _bracketed(text: str, signs: Signs) -> str:
    """The brackets of bytes that are no character, as these signs have them."""
    if signs is VISIBLE or "⟨" not in text:
        return text
    return text.replace("⟨", signs.before).replace("⟩", signs.after)
