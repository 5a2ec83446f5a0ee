"""Data files of any kind -> one JSON Lines file in shapes of ours, from which nothing is missing.

A sample of one question and one answer becomes an Alpaca record, any other one a list of messages.
Each record is read back before it is written: it must give the same sample.
"""

import json
import os
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tinkersmith.data.columns import NO_COLUMNS, ColumnSearch
from tinkersmith.data.load import refuse_if_nothing_is_usable
from tinkersmith.data.report import SHOWN, Tally, note_lines, read_lines, skipped_lines
from tinkersmith.data.samples import Sample, Skipped, Source, Turn, record_text
from tinkersmith.data.shapes.check import check_record
from tinkersmith.errors import UserError, reason_of
from tinkersmith.plurals import counted
from tinkersmith.progress import Progress
from tinkersmith.sources.encodings import AUTO
from tinkersmith.sources.find import look_up, refuse_inputs_as_outputs
from tinkersmith.sources.records import iterate_records, read_records

_WHOLE_AT_MOST = 50_000_000  # bytes of a file: a smaller one is read whole, which knows encodings
_RENAMED = "original_"  # before the name of a field that would mean something in our shapes


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written."""

    out: Path
    counts: dict[str, int]  # file -> samples written
    missing_files: list[str]
    said: list[str]  # sentences about how the files were read
    tally: Tally
    skipped_count: int
    first_skipped: list[Skipped]  # at most SHOWN
    skipped_file: Path  # written if a record was skipped
    renamed: Counter[str]  # field -> in how many samples it got another name
    with_nulls: int  # samples with NaN or an infinity, which was written as null


def convert(
    files: Sequence[str],
    out: Path | str,
    columns: Mapping[str, str] = NO_COLUMNS,
    encoding: str = AUTO,
    *,
    force: bool = False,
    progress: Progress,
) -> Conversion:
    """Write the samples of `files` to `out`, and the records that are none to a file beside it.

    Both files are written, or neither. Memory does not grow with the files, workbooks excepted.

    Args:
        columns: a value of COLUMNS.
        encoding: a value of ENCODING.
        force: overwrite the outputs.

    Raises:
        UserError: a file cannot be read, an output exists, or not one record can be used.
    """
    out = Path(out)
    skipped_out = out.with_name(out.name.removesuffix(out.suffix) + ".skipped.jsonl")
    found = look_up(files)
    _check_outputs(found.paths, out, skipped_out, force)
    work = _Work(columns, encoding, list(found.notes))
    sizes = {path: _size_of(path) for path in found.paths}
    done = 0
    with _new_files((out, skipped_out)) as (written, listed), progress.doing("converting") as task:
        for path in found.paths:
            for number, sample in enumerate(work.samples_of(path, listed), start=1):
                work.with_nulls += _write(written, work.record_of(sample))
                if number % 1000 == 0:
                    state = f"Converted {sum(work.counts.values()):,} samples"
                    progress.reached(task, state, done / max(sum(sizes.values()), 1))
            done += sizes[path]
        work.search.refuse_unseen()
        refuse_if_nothing_is_usable(
            sum(work.counts.values()), work.skipped_count, work.first_skipped, work.said
        )
    if not work.skipped_count and force:
        skipped_out.unlink(missing_ok=True)  # of an earlier conversion to the same output
    return Conversion(
        out=out,
        counts=work.counts,
        missing_files=found.missing,
        said=work.said,
        tally=work.tally,
        skipped_count=work.skipped_count,
        first_skipped=work.first_skipped,
        skipped_file=skipped_out,
        renamed=work.renamed,
        with_nulls=work.with_nulls,
    )


def conversion_lines(result: Conversion) -> list[str]:
    """What was read, left out and written, for the user."""
    tally, total = result.tally, sum(result.counts.values())
    skipped_file = str(result.skipped_file)
    return [
        *result.said,
        *read_lines(result.counts, result.missing_files, tally.shapes),
        *note_lines(tally.notes),
        *skipped_lines(result.first_skipped, result.skipped_count, skipped_file, tally.reasons),
        *(
            f'Renamed "{name}" of {counted(count, "sample")} to "{_RENAMED}{name}": the name means '
            "something else in the records that were written."
            for name, count in result.renamed.items()
        ),
        *(
            [
                f"Wrote NaN or infinite numbers of {counted(result.with_nulls, 'sample')} as null: "
                "JSON does not have them."
            ]
            if result.with_nulls
            else []
        ),
        f"Wrote {counted(total, 'sample')} to {result.out}",
    ]


class _Work:
    """What is counted while the files are read."""

    def __init__(self, columns: Mapping[str, str], encoding: str, said: list[str]) -> None:
        self.columns, self.encoding, self.said = columns, encoding, said
        self.counts: dict[str, int] = {}
        self.tally, self.search = Tally(), ColumnSearch(columns)
        self.renamed: Counter[str] = Counter()
        self.with_nulls = 0
        self.skipped_count = 0
        self.first_skipped: list[Skipped] = []

    def samples_of(self, path: Path, listed: BinaryIO) -> Iterator[Sample]:
        """The samples of a file; its other records are listed."""
        name = path.as_posix()
        self.counts[name] = 0
        for number, record in enumerate(self._records_of(path), start=1):
            self.search.add(record)
            checked = check_record(record, Source(name, number), self.columns)
            self.tally.add(checked)
            if isinstance(checked, Sample):
                self.counts[name] += 1
                yield checked
                continue
            self.skipped_count += 1
            self.first_skipped += [checked][: SHOWN - len(self.first_skipped)]
            _write(listed, checked.to_json())

    def _records_of(self, path: Path) -> Iterable[Any]:
        if _size_of(path) <= _WHOLE_AT_MOST:
            read = read_records(path, self.encoding, self.columns, exact_numbers=True)
            self.said += read.notes
            return read.records
        return iterate_records(path, self.encoding, self.columns, self.said)

    def record_of(self, sample: Sample) -> dict[str, Any]:
        """The record that gives the sample again; see `faithful_record`."""
        record, renamed = faithful_record(sample)
        self.renamed.update(renamed)
        return record


def faithful_record(sample: Sample) -> tuple[dict[str, Any], list[str]]:
    """The record that gives the sample again, and the extra fields that got another name for it.

    Raises:
        UserError: there is none.
    """
    record = sample_record(sample)
    if _same(check_record(record, sample.source), sample):
        return record, []
    # A field that is kept for the evaluation has a name that means something in our shapes.
    extra: dict[str, Any] = {}
    renamed: list[str] = []
    for name, value in sample.extra.items():
        is_harmless = name == "answer" or _same(
            check_record(sample_record(replace(sample, extra={name: value})), sample.source),
            replace(sample, extra={name: value}),
        )
        extra[name if is_harmless else _free_name(name, sample.extra)] = value
        if not is_harmless:
            renamed.append(name)
    with_new_names = replace(sample, extra=extra)
    record = sample_record(with_new_names)
    if not _same(check_record(record, sample.source), with_new_names):
        raise UserError(
            f"{sample.source} cannot be written so that it is read the same again. Report this "
            "as a fault, with the record."
        )
    return record, renamed


def sample_record(sample: Sample) -> dict[str, Any]:
    """The sample as a record: Alpaca's if it is a question with its answer, else messages."""
    if sample.turns[0].role == "text":
        return {"text": sample.turns[0].text, **sample.extra}
    record = _alpaca_record(sample)
    if record is None:
        record = {"messages": [_message(turn) for turn in sample.turns]}
        if sample.tools:
            record["tools"] = list(sample.tools)
    return {**record, **{name: value for name, value in sample.extra.items() if name not in record}}


def _alpaca_record(sample: Sample) -> dict[str, Any] | None:
    """The sample as an Alpaca record; None if it is more than turns with texts."""
    turns = sample.turns
    system = turns[0].text if turns[0].role == "system" else ""
    spoken = turns[1:] if turns[0].role == "system" else turns
    roles = [turn.role for turn in spoken]
    if roles != ["user", "assistant"] * (len(spoken) // 2) or sample.tools:
        return None
    if any(turn.tool_calls or turn.trained is not None for turn in turns):
        return None
    question, answer = spoken[-2:]
    earlier = spoken[:-2]
    if any(turn.thought for turn in earlier) or (answer.thought and not question.input):
        return None
    # Only a question with an input needs the history: messages say the rest more plainly.
    if earlier and (not question.input or any(turn.input for turn in earlier)):
        return None
    record: dict[str, Any] = {"instruction": question.text}
    if question.input:
        record["input"] = question.input
    if answer.thought:
        record["reasoning_content"] = answer.thought
    record["output"] = answer.text
    if system:
        record["system"] = system
    if earlier:
        pairs = zip(earlier[::2], earlier[1::2], strict=True)
        record["history"] = [[asked.text, answered.text] for asked, answered in pairs]
    return record


def _message(turn: Turn) -> dict[str, Any]:
    message: dict[str, Any] = {"role": turn.role, "content": turn.text}
    if turn.input:
        message["input"] = turn.input
    if turn.thought:
        message["reasoning_content"] = turn.thought
    if turn.tool_calls:
        message["tool_calls"] = list(turn.tool_calls)
    if turn.tool_name:
        message["name"] = turn.tool_name
    if turn.tool_call_id:
        message["tool_call_id"] = turn.tool_call_id
    if turn.trained is not None:
        message["weight"] = int(turn.trained)
    return message


def _same(checked: Sample | Skipped, sample: Sample) -> bool:
    """Whether a record was read as the sample that it was made from."""
    return isinstance(checked, Sample) and (
        checked.turns == sample.turns
        and checked.tools == sample.tools
        and record_text(checked.extra) == record_text(sample.extra)
    )


def _free_name(name: str, taken: Mapping[str, Any]) -> str:
    free = _RENAMED + name
    while free in taken:
        free = _RENAMED + free
    return free


# ---- files


def _check_outputs(inputs: Sequence[Path], out: Path, skipped_out: Path, force: bool) -> None:
    if out.suffix not in (".jsonl", ".ndjson"):
        raise UserError(f"{out} would hold JSON Lines; give it a name that ends in .jsonl.")
    refuse_inputs_as_outputs((out, skipped_out), inputs)
    for path in (out, skipped_out):
        if path.is_dir():
            raise UserError(f"{path} is a folder. Name a file with --out.")
        if path.exists() and not force:
            raise UserError(
                f"{path} exists already. Name another file with --out, or add --force to overwrite "
                "it."
            )


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # a data set on a hub, or a file that has just gone: reading it says so
        return 0


def _write(file: BinaryIO, record: Mapping[str, Any]) -> bool:
    """Write the record as a line of JSON; whether NaN or an infinity in it became null."""
    text = record_text(record)
    with_nulls = text
    if "NaN" in text or "Infinity" in text:  # no numbers of JSON
        with_nulls = record_text(json.loads(text, parse_constant=lambda _: None))
    file.write(with_nulls.encode() + b"\n")
    return with_nulls != text


@contextmanager
def _new_files(paths: Sequence[Path]) -> Generator[list[BinaryIO], None, None]:
    """Files that appear under their names when the block ends without an error, but for empty ones.

    Raises:
        UserError: they cannot be written; nothing has changed then.
    """
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]
    path = paths[0]
    try:
        with ExitStack() as stack:
            files: list[BinaryIO] = []
            for path, beside in zip(paths, temporary, strict=True):
                path.parent.mkdir(parents=True, exist_ok=True)
                files.append(stack.enter_context(beside.open("wb")))
            yield files
            for file in files:
                file.flush()
                os.fsync(file.fileno())
        for path, beside in zip(paths, temporary, strict=True):
            if beside.stat().st_size:
                os.replace(beside, path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {reason_of(error)}. Free some space, or name another file "
            "with --out."
        ) from None
    finally:
        for beside in temporary:
            with suppress(OSError):  # already renamed, or never made
                beside.unlink()
