"""The part of a model that sees: images -> what the layers read at the images' places.

In a sequence, an image is as many tokens as it has places, with ids below 0 that no other image
has while it is in use. So everything that compares, counts, cuts or caches tokens works with images
as with text, and never takes one image for another.

Axes: T packed tokens, N of them that belong to images, L layers behind which more is added, H
hidden size, D head size.
"""

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.images.pixels import ImageProcessor
from tinkersmith.engine.messages import ImageChunk

_INDEX_BITS = 20  # of an id: which place of its image it is
_REMEMBERED = 2**28  # bytes of features that stay: the next batch or prompt may have the image, too


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class KnownImage:
    """An image that is in use. Whoever refers to its ids must keep it."""

    serial: int
    digest: bytes
    data: bytes
    rows: int  # of places
    columns: int

    @property
    def tokens(self) -> int:
        return self.rows * self.columns

    @property
    def shift(self) -> int:
        """How far the next position is from what it were behind as many tokens of text."""
        return max(self.rows, self.columns) - self.tokens

    def ids(self) -> np.ndarray:  # (tokens,)
        return -1 - (np.int64(self.serial) << _INDEX_BITS) - np.arange(self.tokens)


@dataclass(frozen=True, slots=True)
class ImageRows:
    """What a pack has at the places of images."""

    rows: torch.Tensor  # (N,), the places in the pack
    features: torch.Tensor  # (1 + L, N, H): the embeddings, and what is added behind each layer

    @property
    def layers(self) -> int:
        """Behind how many of the first layers something is added."""
        return len(self.features) - 1

    def put(self, embedded: torch.Tensor) -> None:  # (T, H)
        """Write the images' embeddings where their tokens have none."""
        embedded[self.rows] = self.features[0].to(embedded.dtype)

    def add(self, layer: int, output: torch.Tensor) -> None:  # (T, H)
        """Add what belongs behind a layer (DeepStack, Meng et al. 2024)."""
        output[self.rows] += self.features[layer + 1].to(output.dtype)

    def among(self, rows: torch.Tensor, count: int) -> "ImageRows":  # (M,)
        """What belongs to those of a pack's `count` rows that are left."""
        place = torch.full((count,), -1, device=rows.device)
        place[self.rows] = torch.arange(len(self.rows), device=rows.device)
        chosen = place[rows]
        left = (chosen >= 0).nonzero()[:, 0]
        return ImageRows(left, self.features[:, chosen[left]])


class Vision:
    """A frozen vision tower, and where a model's layers expect what it sees.

    Positions are three for each token, in time, row and column (Qwen2-VL, Wang et al. 2024, 2.1).
    Text has the same three; behind an image it goes on after the image's longer side.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        tower: nn.Module,
        sections: Sequence[int],  # how many pairs of a head's numbers turn by each position
        placeholder: int,  # the token that stands for an image where text has an id for it
    ) -> None:
        config: Any = tower.config
        self.placeholder = placeholder
        self.tower = tower
        self.processor = ImageProcessor(name, folder, config)
        self.sections = tuple(sections)
        self._known = WeakValueDictionary[bytes, KnownImage]()
        self._by_serial = WeakValueDictionary[int, KnownImage]()
        self._serials = itertools.count()
        self._features: OrderedDict[tuple[bytes, int], torch.Tensor] = OrderedDict()

    # ---- ids

    def image(self, chunk: ImageChunk, where: str) -> KnownImage:
        """An image that a client sent, the same object for the same bytes.

        Raises:
            Refused: it cannot be read, or has another number of tokens than the client says.
        """
        digest = hashlib.sha256(chunk.data).digest()
        known = self._known.get(digest)
        if known is None:
            rows, columns = self.processor.grid(chunk.data, where)
            if rows * columns >> _INDEX_BITS:
                raise Refused(f"{where} has {rows * columns:,} tokens, more than can be read.")
            known = self._noted(digest, chunk.data, rows, columns)
        if chunk.expected_tokens not in (None, known.tokens):
            raise Refused(
                f"{where}: expected_tokens is {chunk.expected_tokens:,}, and {self.processor.name} "
                f"has {known.tokens:,} for it ({known.rows} x {known.columns}). Count them by its "
                "own image processor, or leave expected_tokens out."
            )
        return known

    def example(self) -> tuple[KnownImage, torch.Tensor, torch.Tensor]:
        """An image of no file, its patches (P, any), and their grid (1, 3)."""
        config: Any = self.tower.config
        rows, columns, merged = 6, 9, config.spatial_merge_size
        width = config.in_channels * config.temporal_patch_size * config.patch_size**2
        generator = torch.Generator().manual_seed(0)
        patches = torch.randn(rows * columns * merged**2, width, generator=generator)
        grid = torch.tensor([[1, rows * merged, columns * merged]])
        image = self._noted(b"example", b"", rows, columns)
        self._features[self._key(image)] = self._see(patches, grid)
        return image, patches, grid

    def _noted(self, digest: bytes, data: bytes, rows: int, columns: int) -> KnownImage:
        known = KnownImage(next(self._serials), digest, data, rows, columns)
        self._known[digest] = self._by_serial[known.serial] = known
        return known

    def _places(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The serial number of the image that each of N tokens belongs to, and its place in it."""
        codes = -1 - tokens
        return codes >> _INDEX_BITS, codes & ((1 << _INDEX_BITS) - 1)

    def _image(self, serial: int) -> KnownImage:
        return self._by_serial[serial]

    # ---- positions

    def positions(
        self, tokens: Sequence[int] | np.ndarray, start: int = 0, shift: int = 0
    ) -> tuple[np.ndarray, int]:
        """The positions (3, T) of tokens, and the shift of those behind them.

        `start` tokens are before them, and `shift` is the sum of the shifts of the images that have
        ended there.
        """
        ids = np.asarray(tokens, np.int64)
        places = np.arange(start, start + len(ids))
        positions = np.broadcast_to(places, (3, len(ids))).copy()
        seen = np.flatnonzero(ids < 0)
        shifts = np.zeros(len(ids) + 1, np.int64)
        shifts[0] = shift
        serials, indices = self._places(ids[seen])
        for serial in np.unique(serials).tolist():
            image, own = self._image(serial), serials == serial
            rows, index = seen[own], indices[own]
            positions[0, rows] -= index
            positions[1, rows] += index // image.columns - index
            positions[2, rows] += index % image.columns - index
            shifts[rows[index == image.tokens - 1] + 1] += image.shift
        shifts = shifts.cumsum()
        return positions + shifts[:-1], int(shifts[-1])

    def positions_of_documents(
        self, tokens: torch.Tensor, lengths: Sequence[int]
    ) -> torch.Tensor:  # (T,) -> (3, T)
        """Positions of documents packed end to end."""
        documents = tokens.cpu().split(list(lengths))
        whole = np.concatenate([self.positions(one.numpy())[0] for one in documents], 1)
        return torch.from_numpy(whole).to(tokens.device)

    def rotary_tables(
        self, rotary: nn.Module, template: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:  # (3, T) -> cosines and sines, each (T, D)
        """Each pair of numbers of a head turns by one of the three positions, interleaved."""
        cosine, sine = rotary(template, positions)  # (3, T, D) both
        half = cosine.shape[-1] // 2
        axis = torch.zeros(half, dtype=torch.long, device=positions.device)
        for number in (1, 2):
            axis[number : 3 * self.sections[number] : 3] = number
        numbers = torch.arange(2 * half, device=positions.device)
        axis = torch.cat([axis, axis])
        return cosine[axis, :, numbers].T, sine[axis, :, numbers].T

    # ---- features

    def rows_of(self, tokens: torch.Tensor) -> ImageRows | None:
        """What images have at their places among tokens, (T,); None if there is none."""
        ids = tokens.cpu().numpy()
        seen = np.flatnonzero(ids < 0)
        if not len(seen):
            return None
        serials, indices = self._places(ids[seen])
        whole: torch.Tensor | None = None
        for serial in np.unique(serials).tolist():
            own = torch.from_numpy(np.flatnonzero(serials == serial))
            features = self._features_of(self._image(serial))
            if whole is None:
                whole = features.new_empty(len(features), len(seen), features.shape[-1])
            index = torch.from_numpy(indices[own.numpy()]).to(features.device)
            whole[:, own.to(features.device)] = features[:, index]
        assert whole is not None
        return ImageRows(torch.from_numpy(seen).to(tokens.device), whole)

    def _key(self, image: KnownImage) -> tuple[bytes, int]:
        # Sums may depend on the number of threads, and a run that is resumed must not see others.
        return image.digest, torch.get_num_threads()

    @torch.no_grad()
    def _see(self, patches: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        """(P, any) and (1, 3) -> (1 + L, tokens, H)"""
        weight = next(self.tower.parameters())
        output: Any = self.tower(
            patches.to(weight.device, weight.dtype),
            grid_thw=grid.to(weight.device),
            return_dict=True,
        )
        deepstack = getattr(output, "deepstack_features", None) or []  # Qwen3.5 has none
        return torch.stack([output.pooler_output, *deepstack])

    def _features_of(self, image: KnownImage) -> torch.Tensor:  # (1 + L, tokens, H)
        key = self._key(image)
        features = self._features.pop(key, None)
        if features is None:
            patches, grid = self.processor.patches(image.data)
            features = self._see(torch.from_numpy(patches), torch.from_numpy(grid))
        self._features[key] = features
        size = sum(one.nbytes for one in self._features.values())
        while size > _REMEMBERED and len(self._features) > 1:
            size -= self._features.popitem(last=False)[1].nbytes
        return features


def through_layers(
    vision: Vision,
    model: PreTrainedModel,
    tokens: torch.Tensor,  # (T,) or (B, 1)
    positions: torch.Tensor,  # (3, T) or (3, B)
) -> torch.Tensor:  # (T, H) or (B, H)
    """Run a model's own layers, with images at their places, inside a context of attention."""
    inner: Any = model.base_model
    flat = tokens.flatten()
    x = inner.embed_tokens(flat.clamp(min=0))  # (T, H)
    images = vision.rows_of(flat)
    if images is not None:
        images.put(x)
    cosine, sine = vision.rotary_tables(inner.rotary_emb, x, positions)
    shape = (1, -1) if tokens.ndim == 1 else tokens.shape
    x = x.view(*shape, x.shape[-1])
    tables = tuple(table.view(*x.shape[:2], -1) for table in (cosine, sine))
    for index, layer in enumerate(inner.layers):
        x = layer(x, attention_mask=None, position_embeddings=tables)
        if images is not None and index < images.layers:
            added = torch.zeros_like(x).flatten(0, 1)  # apart: autograd needs x as it is
            images.add(index, added)
            x = x + added.view_as(x)
    return inner.norm(x).flatten(0, 1)
