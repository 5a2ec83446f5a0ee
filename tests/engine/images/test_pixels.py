"""Files of images become patches and token counts by the model's own rules, or one sentence."""

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tests.support.seeing_models import make_seeing, picture, seeing_request
from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.images import pixels
from tinkersmith.engine.messages import ImageChunk
from tinkersmith.engine.model.base_model import BaseModel, load_base_model

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base_model("sees", make_seeing(tmp_path_factory.mktemp("m")))


def tokens_of(base: BaseModel, data: bytes, expected: int | None = None) -> int:
    assert base.vision is not None
    return base.vision.image(ImageChunk(data, 0, expected), "image 1 of the prompt").tokens


@pytest.mark.parametrize(
    ("width", "height"), [(8, 8), (3, 5), (1, 1), (64, 64), (100, 30), (640, 480), (8, 1600)]
)
def test_an_image_has_as_many_tokens_as_the_models_image_processor_says(
    base: BaseModel, width: int, height: int
) -> None:
    processor = AutoImageProcessor.from_pretrained(base.folder, backend="pil")
    expected = processor.get_number_of_image_patches(height, width, {}) // 4
    assert tokens_of(base, picture(width, height), expected) == expected
    assert base.vision is not None
    grid = processor(images=[Image.new("RGB", (width, height))])["image_grid_thw"][0]
    image = base.vision.image(ImageChunk(picture(width, height), 0), "")
    assert (image.rows, image.columns) == (grid[1] // 2, grid[2] // 2)


def test_another_count_is_refused_with_both_numbers(base: BaseModel) -> None:
    with pytest.raises(Refused, match=r"expected_tokens is 11, and sees has 10 for it \(2 x 5\)"):
        tokens_of(base, picture(40, 16), 11)


def palette() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(40, 16))).convert("P").save(file, "PNG")
    return file.getvalue()


def grey_with_alpha() -> bytes:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(40, 16))).convert("LA").save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("data", [palette(), grey_with_alpha(), picture(40, 16, 0, "JPEG")])
def test_images_of_other_colours_are_read_as_the_processor_reads_them(
    base: BaseModel, data: bytes
) -> None:
    processor = AutoImageProcessor.from_pretrained(base.folder, backend="pil")
    assert base.vision is not None
    values, grid = base.vision.processor.patches(data)
    expected = processor(images=[Image.open(io.BytesIO(data)).convert("RGB")], return_tensors="np")
    assert np.array_equal(values, expected["pixel_values"])
    assert np.array_equal(grid, expected["image_grid_thw"])


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "GIF")
    return file.getvalue()


WHOLE = picture(40, 16)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not a PNG or JPEG file"),
        (b"hello", "is not a PNG or JPEG file"),
        (gif(), "is not a PNG or JPEG file"),
        (WHOLE[: len(WHOLE) // 2], "is damaged"),
        (WHOLE[:300] + bytes(40) + WHOLE[340:], "is damaged"),
        (picture(40, 16, 0, "JPEG")[:200], "is damaged"),
        (png_that_claims(40, 16), "is damaged"),
        (png_that_claims(9_000, 9_000), "has more than 67,108,864 pixels"),
        (png_that_claims(2**31 - 1, 2**31 - 1), "has more than 67,108,864 pixels"),
        (picture(1, 201), "one side may be at most 200 times as long as the other"),
    ],
)
def test_what_is_no_whole_image_of_a_usual_size_is_refused(
    base: BaseModel, data: bytes, sentence: str
) -> None:
    with pytest.raises(Refused, match=r"^image 1 of the prompt ") as refusal:
        tokens_of(base, data)
    assert sentence in str(refusal.value)


def test_text_needs_no_pillow_and_images_say_that_they_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load_base_model("sees", make_seeing(tmp_path))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert len(seeing_request(base, [[1, 2, 3]]).prompt) == 3
    with pytest.raises(Refused, match=r"pip install 'tinkersmith\[images\]'"):
        seeing_request(base, [WHOLE])


@pytest.mark.parametrize("change", ["gone", "damaged", "other patches"])
def test_a_folder_without_its_image_processor_still_reads_text(tmp_path: Path, change: str) -> None:
    file = make_seeing(tmp_path) / "preprocessor_config.json"
    if change == "gone":
        file.unlink()
    elif change == "damaged":
        file.write_text("{")
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "patch_size": 8}))
    base = load_base_model("sees", tmp_path)
    assert seeing_request(base, [[1, 2, 3]]).prompt == [1, 2, 3]
    with pytest.raises(Refused, match=r"sees cannot read images: .*preprocessor_config\.json"):
        seeing_request(base, [WHOLE])


def test_a_model_of_text_alone_refuses_images_and_ids_below_zero_stay_refused(
    base: BaseModel, tmp_path: Path
) -> None:
    blind = load_base_model("blind", make_tiny_model(tmp_path))
    with pytest.raises(Refused, match="the prompt has an image, and blind reads text only here"):
        seeing_request(blind, [WHOLE])
    for outside in (-1, 2**70):
        with pytest.raises(Refused, match=f"the prompt: token id {outside} is not in the voc"):
            seeing_request(base, [[3, outside], WHOLE])


def test_the_limit_of_pixels_is_below_that_of_pillow() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and pixels.MAX_PIXELS < Image.MAX_IMAGE_PIXELS
