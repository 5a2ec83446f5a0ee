"""Log-probabilities that the server sends -> sample_losses.jsonl, the loss of every sample trained.

A line belongs to a step: {"step": 7, "epoch": 1, "losses": {FILE: [[RECORD, TOKENS, LOSS], ...]}},
with the mean loss of the sample's trained tokens. Names of files are as seen from the run's folder.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from tinkersmith.data.samples import Source
from tinkersmith.paths import seen_from_folder
from tinkersmith.runs.folder import SAMPLE_LOSSES_FILE, RunFolder
from tinkersmith.text.tokenize import TokenizedSample

_HELD_STEPS = 200  # lines in memory at most


class SampleLosses:
    """Collects the losses of steps, and adds them to the run's file before a checkpoint is noted.

    A run continues from a checkpoint and does later steps again, so that no line is missing.
    """

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._lines: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of files, as seen from the run's folder

    def add(
        self,
        step: int,
        epoch: int,
        batch: Sequence[TokenizedSample],
        outputs: Sequence[Mapping[str, Any]],
    ) -> bool:
        """Note the losses of a step; False if the server did not send them.

        Args:
            outputs: the server's `loss_fn_outputs`, one for each sequence of the batch.
        """
        losses = losses_of(batch, outputs)
        if losses is None:
            return False
        by_file: dict[str, list[list[float]]] = {}
        for source, (tokens, loss) in losses.items():
            name = self._names.get(source.file)
            if name is None:
                name = self._names[source.file] = seen_from_folder(self._run.path, source.file)
            by_file.setdefault(name, []).append([source.record, tokens, round(loss, 5)])
        self._lines.append({"step": step, "epoch": epoch, "losses": by_file})
        if len(self._lines) >= _HELD_STEPS:
            self.write()
        return True

    def write(self) -> None:
        """Add what was collected to the file."""
        if self._lines:
            self._run.append(SAMPLE_LOSSES_FILE, self._lines)
            self._lines = []


def losses_of(
    batch: Sequence[TokenizedSample], outputs: Sequence[Mapping[str, Any]]
) -> dict[Source, tuple[int, float]] | None:
    """The trained tokens and their mean loss of each sample, whose sequences are taken together.

    Returns:
        None where the log-probabilities are not there, or do not belong to the batch.
    """
    if len(outputs) != len(batch):
        return None
    sums: dict[Source, tuple[int, float]] = {}
    for sequence, output in zip(batch, outputs, strict=True):
        logprobs = _numbers(output.get("logprobs"))  # (T - 1,): position i predicts token i + 1
        trained = sequence.weights[1:] > 0
        if logprobs is None or len(logprobs) != len(trained):
            return None
        tokens, loss = sums.get(sequence.source, (0, 0.0))
        loss -= float(logprobs[trained].sum())
        sums[sequence.source] = (tokens + int(trained.sum()), loss)
    return {source: (tokens, loss / max(tokens, 1)) for source, (tokens, loss) in sums.items()}


def _numbers(tensor: Any) -> np.ndarray | None:
    """What a tensor of the SDK holds, as float64; None where there is none."""
    data = getattr(tensor, "data", None)
    if data is None:
        return None
    return np.asarray(cast("Sequence[float]", data), dtype=np.float64).reshape(-1)
