"""Settings -> the data to train on: in memory, or as a stream if the files are large."""

from tinkersmith.batches.in_memory import read_into_memory
from tinkersmith.batches.source import DataSource
from tinkersmith.batches.streamed import open_stream
from tinkersmith.data.large_files import are_streamed
from tinkersmith.progress import Progress
from tinkersmith.settings.fields import Settings
from tinkersmith.sources.find import find_files


def read_data(settings: Settings, progress: Progress) -> DataSource:
    """Read and check the data files; large JSON Lines files become a stream.

    Raises:
        UserError: a file is not JSON, or there is nothing to train on.
    """
    if are_streamed(find_files(settings.training_files)[0], settings.encoding):
        return open_stream(settings, progress)
    with progress.doing("reading the data"):
        return read_into_memory(settings)
