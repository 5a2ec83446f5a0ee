"""Text tokens and images of a sequence -> the tokens that a model reads, images at their places."""

from collections.abc import Sequence

import numpy as np

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.images.vision import KnownImage, Vision
from tinkersmith.engine.messages import ImageChunk


def with_images(
    vision: Vision | None,
    name: str,  # of the base model
    tokens: Sequence[int] | np.ndarray,  # of the text
    chunks: Sequence[ImageChunk],
    where: str,
) -> tuple[np.ndarray, tuple[KnownImage, ...]]:
    """The whole sequence, (T,), and the images that it needs as long as it is in use.

    Raises:
        Refused: the model sees no images, or one of them cannot be read.
    """
    if vision is None:
        raise Refused(
            f"{where} has an image, and {name} reads text only here. The engine reads images with "
            "Qwen3-VL, Qwen3.5, Qwen3.6 and Qwen3.8, if the model's folder has their vision tower."
        )
    outside = next((int(token) for token in tokens if not 0 <= token < 2**31), None)
    if outside is not None:  # ids below 0 are those of images
        raise Refused(f"{where}: token id {outside} is not in the vocabulary.")
    text = np.asarray(tokens, np.int64)
    images = tuple(
        vision.image(chunk, f"image {number} of {where}")
        for number, chunk in enumerate(chunks, start=1)
    )
    parts: list[np.ndarray] = []
    start = 0
    for chunk, image in zip(chunks, images, strict=True):
        parts += [text[start : chunk.place], image.ids()]
        start = chunk.place
    return np.concatenate([*parts, text[start:]]), images


def text_only(tokens: np.ndarray, images: Sequence[object]) -> np.ndarray:
    """The tokens that are ids of the vocabulary, which every other id is not."""
    return tokens[tokens >= 0] if images else tokens
