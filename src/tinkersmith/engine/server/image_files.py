"""A file of an image in a request -> an `ImageChunk`. The engine reads it later, with the model."""

import base64

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ImageChunk

_FORMATS = ("png", "jpeg")


def image_chunk(
    data: bytes | str,  # text is in base64
    kind: str,
    place: int,  # how many tokens of text are before it
    where: str,
    expected_tokens: int | None = None,
) -> ImageChunk:
    """An image of a sequence.

    Raises:
        Refused: its format is another one, or its text is not in base64.
    """
    if kind not in _FORMATS:
        raise Refused(f"{where} has format {kind[:40]!r}; it must be {' or '.join(_FORMATS)}.")
    if isinstance(data, str):
        try:
            data = base64.b64decode(data, validate=True)
        except ValueError:
            raise Refused(f"{where}: its data is not in base64.") from None
    return ImageChunk(data, place, expected_tokens)
