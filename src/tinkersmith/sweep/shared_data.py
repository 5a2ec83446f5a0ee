"""Data that several runs of one process train on, read once. Large files stay streams."""

import json
import threading

from tinkersmith.batches.in_memory import SamplesInMemory
from tinkersmith.batches.read import read_data
from tinkersmith.batches.source import DataSource
from tinkersmith.data.large_files import are_streamed
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.sources.find import find_files

_DECIDING = (
    *("data_files", "validation_files", "validation_ratio", "columns", "encoding", "train_on"),
    "thinking",
)


class SharedData:
    """Reads data files, and gives runs whose settings read alike the same samples.

    Samples in memory do not change, and keep the tokens that were made of them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, SamplesInMemory] = {}

    def check(self, settings: Settings, progress: Progress) -> None:
        """Read the data of a run, unless they are so large that they stay files.

        Raises:
            UserError: see `read_data`.
        """
        if not are_streamed(find_files(settings.training_files)[0], settings.encoding):
            self.read(settings, progress)

    def read(self, settings: Settings, progress: Progress) -> DataSource:
        """The data of a run.

        Raises:
            UserError: see `read_data`.
        """
        known_by = _known_by(settings)
        with self._lock:
            if known_by in self._sources:
                return self._sources[known_by]
            source = read_data(settings, progress)
            if isinstance(source, SamplesInMemory):
                self._sources[known_by] = source
            return source


def _known_by(settings: Settings) -> str:
    """Equal for settings with which the files give the same samples for training and validation."""
    deciding = {name: getattr(settings, name) for name in _DECIDING}
    if settings.validation_ratio:  # the seed chooses the validation samples
        deciding["seed"] = settings.seed
    return json.dumps(deciding, sort_keys=False)
