"""The bytes of an image file -> patches of pixels, by the rules of the model's image processor.

Pillow is imported where it is used: text needs none.
"""

import io
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinkersmith.engine.errors import Refused

_FORMATS = ("PNG", "JPEG")
MAX_PIXELS = 2**26  # 201 MB once decoded; few bytes can stand for many pixels


class ImageProcessor:
    """What a model's folder says about sizes and colours of images. It is read at first use."""

    def __init__(self, name: str, folder: Path, vision_config: Any) -> None:
        self.name, self.folder, self.vision_config = name, folder, vision_config

    def grid(self, data: bytes, where: str) -> tuple[int, int]:
        """Rows and columns of the tokens that an image has.

        Raises:
            Refused: it is damaged, too large, or too long and narrow, or no image.
        """
        width, height = _decoded(data, where).size
        processor = self._processor
        merged = processor.patch_size * processor.merge_size
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

        try:
            rows, columns = smart_resize(
                height,
                width,
                merged,
                min_pixels=processor.size["shortest_edge"],
                max_pixels=processor.size["longest_edge"],
            )
        except ValueError:
            raise Refused(
                f"{where} has {width:,} x {height:,} pixels; one side may be at most 200 times as "
                "long as the other."
            ) from None
        return rows // merged, columns // merged

    def patches(self, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The values (P, any) of an image's P patches, and their grid (1, 3): 1, rows, columns."""
        output = self._processor(images=[_decoded(data, "the image")], return_tensors="np")
        return output["pixel_values"], output["image_grid_thw"]

    @cached_property
    def _processor(self) -> Any:
        _pillow()
        from transformers import AutoImageProcessor

        try:
            # Always Pillow's: torchvision, where it is installed, resizes to other values.
            processor: Any = AutoImageProcessor.from_pretrained(
                self.folder, local_files_only=True, backend="pil"
            )
            config = self.vision_config
            sizes = processor.patch_size, processor.merge_size, processor.temporal_patch_size
            expected = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
        except Exception as error:  # a damaged file makes transformers fail in any way
            reason = " ".join(str(error).split()).partition(". ")[0][:200].rstrip(".")
            raise Refused(
                f"{self.name} cannot read images: {self.folder} has no preprocessor_config.json of "
                f"an image processor, or a damaged one ({reason}). Copy the model again."
            ) from None
        if sizes != expected:
            raise Refused(
                f"{self.name} cannot read images: preprocessor_config.json cuts patches of the "
                f"sizes {sizes}, and config.json wants {expected}. Copy the model again."
            )
        return processor


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise Refused(
            "images need Pillow, which is not installed beside the engine; run: "
            "pip install 'tinkersmith[images]'"
        ) from None
    return Image


def _decoded(data: bytes, where: str) -> Any:
    """The image of a file, in red, green and blue, as its pixels are stored.

    Raises:
        Refused: there is none, or a damaged one, or it has too many pixels.
    """
    library = _pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", library.DecompressionBombWarning)  # our limit is lower
            image = library.open(io.BytesIO(data), formats=_FORMATS)
        width, height = image.size
        if width * height <= MAX_PIXELS:
            return image.convert("RGB")
    except library.DecompressionBombError:
        pass  # far beyond our limit
    except library.UnidentifiedImageError:
        raise Refused(f"{where} is not a PNG or JPEG file ({len(data):,} bytes).") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise Refused(f"{where} is damaged: {reason}.") from None
    raise Refused(f"{where} has more than {MAX_PIXELS:,} pixels, the most that are read.")
