"""Data that is about to be trained on -> a few lines: the first sample, counts, and warnings."""

import sys
from itertools import islice

from tinkersmith.batches.in_memory import SamplesInMemory, TokensInMemory
from tinkersmith.batches.source import DataSource, Encoding, TokenizedData
from tinkersmith.batches.streamed import SampleStream
from tinkersmith.plurals import counted
from tinkersmith.preview.epoch import EpochCounts, FileCounts, epoch_counts
from tinkersmith.preview.examine import Choice, Counts, examine_tokens
from tinkersmith.preview.findings import (
    OF_LENGTH,
    Control,
    ProblemCounts,
    problems_of_sequence,
    problems_of_text,
)
from tinkersmith.preview.plan import samples_of_stream
from tinkersmith.preview.terminal import sample_lines
from tinkersmith.preview.token_texts import token_texts

_OF_A_STREAM = 1000  # samples that are looked at before training begins
_CELLS = 150  # of the first sample that are shown: about a screen


def opening_lines(source: DataSource, data: TokenizedData, encoding: Encoding) -> list[str]:
    """What a user sees of the data before the first step."""
    first = examine_tokens([source.first], encoding, Choice(count=1)).chosen[0]
    if isinstance(source, SamplesInMemory) and isinstance(data, TokensInMemory):
        counts, findings, epoch = _of_all(source, data, encoding)
        total, where = len(source.training), ""
    else:
        assert isinstance(source, SampleStream)
        samples = islice(samples_of_stream(source), _OF_A_STREAM)
        examined = examine_tokens(samples, encoding, Choice(count=0))
        counts, findings, total = examined.counts, examined.findings, data.count
        epoch = None  # what is looked at may be of one file
        where = f" in the first {counted(counts.samples, 'sample')}"
    share = counts.trained / counts.tokens if counts.tokens else 0.0
    return [
        *sample_lines(first, total, token_texts(encoding.tokenizer), _CELLS, sys.stdout)[:-1],
        "",
        f"Of {counted(counts.tokens, 'token')}{where}, {counts.trained:,} are trained on "
        f"({share:.1%}). See more with: tinkersmith preview",
        *([f"{epoch}."] if epoch else []),
        *(
            f"Warning{where}: {finding}"
            for finding in findings.all(encoding.template)
            if finding.kind not in OF_LENGTH  # the report of the lengths lists each
        ),
    ]


def _of_all(
    source: SamplesInMemory, data: TokensInMemory, encoding: Encoding
) -> tuple[Counts, ProblemCounts, EpochCounts | None]:
    """Counts and problems of all samples; the tokens are there already."""
    files: dict[str, FileCounts] = {}
    control = Control.of(encoding.tokenizer, encoding.template)
    findings, counts = ProblemCounts(), Counts(samples=len(source.training))
    for sample in source.training:
        findings.add_sample(sample, problems_of_text(sample, control))
    cut = {(event.source, event.after) for event in data.truncated}
    for sequences in data.training:
        file = files.setdefault(sequences[0].source.file, FileCounts())
        file.samples += 1
        file.sequences += len(sequences)
        file.tokens += sum(len(sequence.tokens) for sequence in sequences)
        file.trained += sum(sequence.completion_length for sequence in sequences)
        for sequence in sequences:
            counts.sequences += 1
            counts.tokens += len(sequence.tokens)
            counts.trained += sequence.completion_length
            is_cut = (sequence.source, len(sequence.tokens)) in cut
            problems = problems_of_sequence(sequence.tokens, sequence.spans, is_cut, control)
            findings.add(sequence.source, problems)
    return counts, findings, epoch_counts(files, source.weights)
