"""A run -> report.html in its folder."""

from collections.abc import Callable
from pathlib import Path

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
) -> Path:
    """Write the report of a run, and return its file.

    Args:
        results: the results of an evaluation of this run; None looks where evaluate writes them.
        language: "en" or "zh"; None takes the environment's.
        out: the file to write, instead of report.html in the run's folder.

    Raises:
        UserError: a file of the run is damaged, or the report cannot be written.
    """
    file = out or run.file(REPORT_FILE)
    text = report_text(run, results, page_language(language))
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise UserError(f"{file} cannot be written: {reason_of(error)}.") from None
    return file


def check_report_target(path: Path) -> None:
    """Refuse to overwrite a file that is no report.

    Raises:
        UserError: the file may not be overwritten.
    """
    if is_foreign(path, _COMMAND):
        raise UserError(f"{path} exists and is no report. Name another file with --out.")


def report_text(run: RunFolder, results: Path | None, language: str) -> str:
    """The report as HTML. Nothing of a sample becomes markup: it is JSON that a script reads."""
    return page_html(
        title=f"Report: {run.name}",
        language=language,
        body=part(_PACKAGE, "report.html"),
        data={"language": language, **gather(run, results)},
        scripts=[part("tinkersmith.pages", "charts.js"), part(_PACKAGE, "report.js")],
        styles=[part(_PACKAGE, "report.css")],
        generator=_COMMAND,
    )


def write_report_or_warn(run: RunFolder, say: Callable[[str], None]) -> Path | None:
    """Write the report; where that fails, warn in one sentence: the run itself is as it should."""
    try:
        return write_report(run)
    except (UserError, OSError) as error:
        say(f"  Warning: {REPORT_FILE} is not written: {error}")
        return None
