"""The lengths of the samples and what became of them, printed once, when all are tokenised."""

from tinkersmith.batches.source import TokenizedData
from tinkersmith.batches.summary import DataSummary
from tinkersmith.data.lengths import format_length_statistics
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress


class LengthReport:
    """Prints the report once. A stream may be tokenised only long after the first step."""

    def __init__(
        self, data: TokenizedData, show_warnings: bool, progress: Progress, *, listed: bool = True
    ) -> None:
        self._data, self._show_warnings, self._progress = data, show_warnings, progress
        self._listed = listed  # in the skipped.jsonl of a run that stays
        self._summary: DataSummary | None = None

    def print_if_complete(self) -> None:
        """Print the report unless it was printed before, or something is not tokenised yet."""
        if self._summary is None and self._data.is_complete():
            self.summary()

    def summary(self) -> DataSummary:
        """Wait until everything is tokenised, and print the report unless it was printed before."""
        if self._summary is None:
            with self._progress.doing("tokenising the rest of the data"):
                self._summary = self._data.summary()
            self._print(self._summary)
        return self._summary

    def _print(self, summary: DataSummary) -> None:
        say = self._progress.say
        say("")
        noun = "sequence" if summary.has_sequences else "sample"
        say(format_length_statistics(summary.lengths, "Lengths", noun))
        if self._show_warnings:
            for event in summary.first_events:
                say(f"  {event}")
            more = summary.events - len(summary.first_events)
            if more:
                where = "; all of them are in skipped.jsonl" if self._listed else ""
                say(f"  ... and {more:,} more{where}.")
        validation = summary.validation
        for_validation = f", {validation:,} for validation" if validation else ""
        untrained = f", {summary.untrained:,} with nothing to train on" if summary.untrained else ""
        say(
            f"  {counted(summary.records, 'record')} = {summary.training:,} to train on"
            f"{for_validation}, {summary.too_long:,} too long{untrained}, {summary.unusable:,} "
            f"unusable; {summary.truncated:,} of them are cut."
        )
        if not summary.has_sequences:
            return
        for_validation = f", {summary.validation_sequences:,} for validation" if validation else ""
        skipped = summary.skipped_sequences
        together = summary.sequences + summary.validation_sequences + skipped
        say(
            f"  {counted(together, 'sequence')} = {summary.sequences:,} to train on with "
            f"{counted(summary.trained_tokens, 'trained token')}{for_validation}, {skipped:,} "
            f"skipped; {summary.cut_sequences:,} of them are cut."
        )
        apart = summary.sequences - summary.training
        if apart > 0:
            say(
                f"  {counted(apart, 'answer')} of conversations would read differently once others "
                "follow. Each is a sequence of its own, as the model will write it."
            )
