"""A run -> report.html in its folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tinkersmith.errors import UserError, reason_of
from tinkersmith.files import write_atomically
from tinkersmith.pages.page import is_foreign, page_html, part
from tinkersmith.pages.words import page_language
from tinkersmith.report.gather import gather
from tinkersmith.runs.folder import RunFolder

REPORT_FILE = "report.html"
_PACKAGE = "tinkersmith.report"
_COMMAND = "tinkersmith report"


def write_report(
    run: RunFolder,
    *,
    results: Path | None = None,
    language: str | None = None,
    out: Path | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Write the report of a run, and return its file.

    Args:
        results: the results of an evaluation of this run; None looks where evaluate writes them.
        language: "en" or "zh"; None takes the environment's.
        out: the file to write, instead of report.html in the run's folder.
        say: is told which damaged files the report leaves out.

    Raises:
        UserError: a file of the run is damaged, or the report cannot be written.
    """
    file = out or run.file(REPORT_FILE)
    facts = gather(run, results)
    text = report_text(facts, page_language(language))
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {reason_of(error)}.") from None
    for sentence in facts["damaged"]:
        say(f"Warning: {sentence}")
    return file


def check_report_target(path: Path) -> None:
    """Refuse to overwrite a file that is no report.

    Raises:
        UserError: the file may not be overwritten.
    """
    if is_foreign(path, _COMMAND):
        raise UserError(f"{path} exists and is no report. Name another file with --out.")


def report_text(facts: Mapping[str, Any], language: str) -> str:
    """The report as HTML. Nothing of a sample becomes markup: it is JSON that a script reads."""
    return page_html(
        title=f"Report: {facts['run']['name']}",
        language=language,
        body=part(_PACKAGE, "report.html"),
        data={"language": language, **facts},
        scripts=[part("tinkersmith.pages", "charts.js"), part(_PACKAGE, "report.js")],
        styles=[part(_PACKAGE, "report.css")],
        generator=_COMMAND,
    )


def write_report_or_warn(run: RunFolder, say: Callable[[str], None]) -> Path | None:
    """Write the report; where that fails, warn in one sentence: the run itself is as it should."""
    try:
        return write_report(run, say=lambda sentence: say(f"  {sentence}"))
    except (UserError, OSError) as error:
        say(f"  Warning: {REPORT_FILE} is not written: {error}")
        return None
