"""How much memory the KV caches of all batches that run may use together: half of what is free."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from tinkersmith.engine.hardware.memory import free_memory


@dataclass(slots=True)
class _Cache:
    reserved: int  # bytes that its rows may come to need
    held: Callable[[], int]  # bytes that it has allocated


@dataclass(slots=True)
class CacheMemory:
    """What batches have reserved. A batch is known by its id, whatever object it is.

    While a batch finds no room for its first row, no other batch begins a new row: the rows that
    run end some time, and then there is room.
    """

    free: Callable[[torch.device], int] = free_memory
    _caches: dict[int, _Cache] = field(default_factory=dict[int, _Cache])
    _starving: set[int] = field(default_factory=set[int])

    def available(self, batch: int, device: torch.device) -> int:
        """Bytes that this batch may reserve in all."""
        free = self.free(device) + sum(cache.held() for cache in self._caches.values())
        others = sum(cache.reserved for key, cache in self._caches.items() if key != batch)
        return free // 2 - others

    def reserve(self, batch: int, size: int, held: Callable[[], int]) -> None:
        self._caches[batch] = _Cache(size, held)
        self._starving.discard(batch)

    def release(self, batch: int) -> None:
        self._caches.pop(batch, None)
        self._starving.discard(batch)

    def begins(self, batch: int, device: torch.device, size: int) -> bool:
        """Whether this batch, which has no rows, may begin one of this size now."""
        others = any(key != batch for key in self._caches)
        if not others or size <= self.available(batch, device):
            return True  # alone it may try in any case: nothing would ever give it more room
        self._starving.add(batch)
        return False

    def others_starve(self, batch: int) -> bool:
        return bool(self._starving - {batch})
