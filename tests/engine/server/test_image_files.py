"""Files of images become chunks, whichever API sends them, or one sentence."""

import base64

import pytest

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.messages import ImageChunk
from tinkersmith.engine.server.image_files import image_chunk
from tinkersmith.engine.server.wire import read_sample_request

FILE = b"\x89PNG any bytes"


def test_bytes_and_base64_give_the_same_image() -> None:
    expected = ImageChunk(FILE, 3, 12)
    assert image_chunk(FILE, "png", 3, "an image", 12) == expected
    assert image_chunk(base64.b64encode(FILE).decode(), "png", 3, "an image", 12) == expected


@pytest.mark.parametrize(
    ("data", "kind", "sentence"),
    [
        (FILE, "gif", "an image of datum 4 has format 'gif'; it must be png or jpeg."),
        (FILE, "", "an image of datum 4 has format ''; it must be png or jpeg."),
        ("?", "png", "an image of datum 4: its data is not in base64."),
        ("aä", "png", "an image of datum 4: its data is not in base64."),
    ],
)
def test_another_format_or_text_is_refused(data: bytes | str, kind: str, sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        image_chunk(data, kind, 0, "an image of datum 4")
    assert str(refusal.value) == sentence


def test_an_image_of_a_prompt_knows_the_text_before_it() -> None:
    image = {"type": "image", "data": base64.b64encode(FILE).decode(), "format": "png"}
    text = {"type": "encoded_text", "tokens": [1, 2]}
    body = {"prompt": {"chunks": [text, image, text, image]}, "sampling_params": {}}
    request = read_sample_request(body)
    assert request.prompt == [1, 2, 1, 2]
    assert request.chunks == (ImageChunk(FILE, 2), ImageChunk(FILE, 4))
    image["format"] = "webp"
    with pytest.raises(Refused, match="an image of the prompt has format 'webp'"):
        read_sample_request(body)
