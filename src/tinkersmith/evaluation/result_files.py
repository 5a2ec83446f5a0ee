"""The results of an evaluation -> a JSON file, and its answers as JSON Lines and as CSV."""

import csv
import datetime as dt
import io
import json
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinkersmith.data.samples import Skipped
from tinkersmith.errors import UserError, reason_of
from tinkersmith.evaluation.answers_file import beside
from tinkersmith.evaluation.question_set import QuestionSet
from tinkersmith.evaluation.questions import Questions
from tinkersmith.evaluation.report import Analysis
from tinkersmith.evaluation.results import SCHEMA_VERSION, Record
from tinkersmith.evaluation.summary import EvaluationResult
from tinkersmith.files import read_json_object, write_atomically, write_json
from tinkersmith.runs.trained_model import ModelReference

_MODELS = ("trained", "base")
CSV_BOM = "\ufeff"  # so that Excel reads UTF-8
# A spreadsheet would run these cells as formulas (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_CONTROL = ("\t", "\r", "\n")
_LONGEST_CELL = 32_000  # characters; Excel holds 32,767
_COLUMNS = (
    *("model", "file", "record", "draw", "question"),
    *("prompt", "expected", "expected_answer", "produced", "final_answer", "rule", "kind"),
    *("stop_reason", "thought_finished", "tokens", "prompt_tokens"),
)


@dataclass(frozen=True, slots=True)
class About:
    """What an evaluation was of, for the file of its results."""

    model: ModelReference
    template_name: str
    question_set: QuestionSet
    questions: Questions
    unusable: list[Skipped]
    max_context: int | None
    versions: dict[str, str]


def refuse_table_name(file: Path) -> None:
    """Raise UserError if the JSON file would have the name of the table beside it."""
    if file.suffix.lower() == ".csv":
        raise UserError(
            f"{file} would be the name of both the JSON file and the table beside it. Name it "
            f"{file.with_suffix('.json')}."
        )


def check_results_writable(file: Path) -> None:
    """Raise UserError now if the results could not be written after all the sampling.

    A file that holds no results of an evaluation is never replaced: it may be the test set.
    """
    refuse_table_name(file)
    if file.is_file() and not _is_results(file):
        raise UserError(
            f"{file} exists and holds no results of an evaluation; it would be replaced. Name "
            "another file with --output."
        )
    others = [answers_file_of(file), table_file_of(file), matrix_file_of(file)]
    if not file.exists() and (there := [str(other) for other in others if other.exists()]):
        raise UserError(
            f"{there[0]} exists, and a file beside the results would replace it. Name another file "
            "with --output."
        )
    try:
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        probe = file.with_name(f".{file.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise _not_written(file, error) from None


def _is_results(file: Path) -> bool:
    try:
        content = read_json_object(file)
    except (OSError, ValueError):
        return False
    return "metrics" in content and "samples" in content


def answers_file_of(output_file: Path) -> Path:
    """The JSON Lines file with one line for each answer."""
    return beside(output_file, ".answers.jsonl")


def table_file_of(output_file: Path) -> Path:
    """The CSV file with one row for each answer."""
    return beside(output_file, ".csv")


def matrix_file_of(output_file: Path) -> Path:
    """The CSV file with the confusion matrix, where the expected outputs are labels."""
    return beside(output_file, ".confusion.csv")


def write_results(result: EvaluationResult, found: Analysis, about: About) -> None:
    """Write all files, the one with the rates last. Each appears as a whole.

    Raises:
        UserError: one cannot be written.
    """
    write_answers(result)
    write_table(result)
    write_matrix(result)
    with _writing(result.output_file) as file:
        write_json(file, content_of(result, found, about))


def write_answers(result: EvaluationResult) -> None:
    """Write the answers as JSON Lines, one line each."""
    with _writing(answers_file_of(result.output_file)) as file:
        write_atomically(file, _answer_lines(result))


def write_table(result: EvaluationResult) -> None:
    """Write the answers as CSV, one row each."""
    with _writing(table_file_of(result.output_file)) as file:
        write_atomically(file, _table(result))


def write_matrix(result: EvaluationResult) -> None:
    """Write the confusion matrix as CSV, if there is one; one of an earlier evaluation goes."""
    with _writing(matrix_file_of(result.output_file)) as file:
        if not result.label_matrix:
            file.unlink(missing_ok=True)
            return
        rows = "".join(csv_row(row) for row in result.label_matrix)
        write_atomically(file, (CSV_BOM + rows).encode("utf-8", "backslashreplace"))


@contextmanager
def _writing(file: Path) -> Generator[Path, None, None]:
    try:
        yield file
    except OSError as error:
        raise _not_written(file, error) from None


def content_of(result: EvaluationResult, found: Analysis, about: About) -> dict[str, Any]:
    """The content of evaluation_results.json; its schema is in evaluation_results.schema.json."""
    trained, base, model = result.trained, result.base, about.model
    questions, question_set = about.questions, about.question_set
    names = [name for name in model.settings.model_dump() if name.startswith("sampling_")]
    near = result.leaks.near
    return {
        "schema_version": SCHEMA_VERSION,
        "model_path": result.model_path,
        "run": model.name if model.run else None,
        "base_model": result.base_model,
        "test_file": question_set.file,
        "created": dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        "versions": about.versions,
        "settings": {
            name.upper(): getattr(model.settings, name) for name in [*names, "seed", "backend"]
        },
        "limit": question_set.limit,
        "prompt_template": about.template_name,
        "max_context": about.max_context,
        "counts": {
            "samples": len(question_set.loaded.samples),
            "skipped_records": len(question_set.loaded.skipped),
            "plain_texts": len(question_set.plain_texts),
            "unusable_samples": len(about.unusable),
            "prompts_too_long": len(result.too_long),
            "evaluated": questions.samples,
            "distinct_questions": len(questions.asked),
            "conversations": len(question_set.conversations),
            "overlap_with_training": None if result.overlap is None else len(result.overlap),
            "near_duplicates_of_training": None if near is None else len(near),
        },
        **trained.to_json(),
        "base": base.to_json() if base else None,
        "measures": result.measures,
        **found.to_json(),
        "skipped": [skipped.to_json() for skipped in question_set.loaded.skipped],
        "unusable_samples": [
            {"file": left.source.file, "record": left.source.record, "reason": left.reason}
            for left in about.unusable
        ],
        "prompts_too_long": [str(source) for source in result.too_long],
        "leaks": result.leaks.to_json(),
        "overlap_with_training": [
            {"test": str(tested), "training": str(known)} for known, tested in result.overlap or []
        ],
        "samples": [record.to_json() for record in trained.records],
        "base_samples": [record.to_json() for record in base.records] if base else [],
    }


def _by_model(result: EvaluationResult) -> Iterator[tuple[str, Sequence[Record]]]:
    for model, scored in zip(_MODELS, (result.trained, result.base), strict=True):
        if scored is not None:
            yield model, scored.records


def _answer_lines(result: EvaluationResult) -> Iterator[bytes]:
    for model, records in _by_model(result):
        for record in records:
            line = json.dumps({"model": model, **record.to_json()}, ensure_ascii=False)
            yield f"{line}\n".encode("utf-8", "backslashreplace")


def _table(result: EvaluationResult) -> Iterator[bytes]:
    """The rows: UTF-8 with BOM, lines end in CR LF as RFC 4180 has it."""
    every = [record for _, records in _by_model(result) for record in records]
    scores = list(dict.fromkeys(name for record in every for name in record.scores))
    fields = list(dict.fromkeys(name for record in every for name in record.fields))
    header = [*_COLUMNS, *(f"score {name}" for name in scores), *(f"field {n}" for n in fields)]
    yield (CSV_BOM + csv_row(header)).encode("utf-8", "backslashreplace")
    for model, records in _by_model(result):
        for record in records:
            values = {"model": model, **record.to_json()}
            cells = [values[name] for name in _COLUMNS]
            cells += [record.scores.get(name, "") for name in scores]
            cells += [record.fields.get(name, "") for name in fields]
            yield csv_row(cells).encode("utf-8", "backslashreplace")


def csv_row(values: Sequence[object]) -> str:
    """A row of a CSV file that a spreadsheet shows as it is."""
    text = io.StringIO()
    csv.writer(text).writerow(map(_cell, values))
    return text.getvalue()


def _cell(value: object) -> object:
    """A value that a spreadsheet shows as it is: a text that looks like a formula gets a '."""
    if not isinstance(value, str):
        return "" if value is None else value
    if len(value) > _LONGEST_CELL:
        value = f"{value[:_LONGEST_CELL]} ... ({len(value) - _LONGEST_CELL:,} more characters)"
    return (
        f"'{value}" if value.startswith(_CONTROL) or value.lstrip().startswith(_FORMULA) else value
    )


def _not_written(file: Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be written: {error.strerror or reason_of(error)}. Name another file with "
        "--output."
    )
