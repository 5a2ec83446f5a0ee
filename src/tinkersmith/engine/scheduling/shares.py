"""Whose turn it is: that of whoever has had the least time, not the fewest jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

# Seconds of its share that somebody who was idle may catch up on. With none, a training client
# would pay for the moments in which it waits for its own next batch.
CREDIT = 0.25
LEAST = 0.001  # seconds that any turn counts: turns that take no time alternate
_MOST = 1024  # names that are remembered


@dataclass(slots=True)
class Shares:
    """Seconds that each name has had."""

    used: dict[str, float] = field(default_factory=dict[str, float])
    _floor: float = 0.0  # the least of those that wanted a turn at the same time

    def next(self, wanting: Sequence[str]) -> str:
        """The name whose turn it is among those that want one, the first of equals."""
        for name in wanting:
            self.used[name] = max(self.used.get(name, 0.0), self._floor - CREDIT)
        chosen = min(wanting, key=self.used.__getitem__)
        self._floor = max(self._floor, self.used[chosen])
        return chosen

    def charge(self, name: str, seconds: float) -> None:
        self.used[name] = self.used.get(name, 0.0) + max(seconds, LEAST)
        if len(self.used) > _MOST:  # whoever has used less than the floor counts as new anyway
            self.used = {
                name: used for name, used in self.used.items() if used > self._floor - CREDIT
            }
