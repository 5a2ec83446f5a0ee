"""Engines that several tests of a module use one after the other: starting one takes seconds."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tinkersmith.service import connection
from tinkersmith.service.embedded import Engine, start_engine


@dataclass
class KeptEngine(Engine):
    """An engine that goes on when the recipe is done with it."""

    def wait_until_ready(self) -> None:
        if not self.url:
            super().wait_until_ready()

    def stop(self) -> None:
        if self.process.poll() is not None or not self.url:  # it has ended, or never started
            super().stop()


@contextmanager
def engines_kept() -> Generator[None, None, None]:
    """Within the block, recipes of this process that want the same engine get one that runs."""
    kept: dict[tuple[str, ...], KeptEngine] = {}

    def start(output_dir: Path, base_models: Sequence[str], options: Sequence[str] = ()) -> Engine:
        key = (str(output_dir.resolve()), *base_models, *options)
        if key not in kept or kept[key].process.poll() is not None:
            new = start_engine(output_dir, base_models, options)
            kept[key] = KeptEngine(new.process, new.key, new.log)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "start_engine", start)
        try:
            yield
        finally:
            for engine in kept.values():
                Engine.stop(engine)
