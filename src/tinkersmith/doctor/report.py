"""An examination -> the lines that tell the user, and the file that lists all findings."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinkersmith.data.report import SHOWN
from tinkersmith.data.samples import record_text
from tinkersmith.doctor.examination import Examination
from tinkersmith.doctor.findings import FINDING_KINDS, DataFinding
from tinkersmith.errors import UserError
from tinkersmith.files import open_regular, write_atomically
from tinkersmith.plurals import counted

FINDINGS_FILE = "check_findings.jsonl"

# Kinds whose findings are often as they should be, and what to look at.
_ADVICE = {
    "near-duplicates": "One of a cluster is enough, unless the differences are what you train.",
    "contradictions": "A model learns a mixture of both answers.",
    "leakage": "Scores on this test data will look too good.",
    "truncated": "A model learns to stop in the middle.",
    "refusals": "A model learns to refuse from few of them.",
    "length": "Look whether they are what you expect.",
}


def finding_lines(examination: Examination, listed_in: str) -> list[str]:
    """The findings of each kind: how many, what they are, and the first SHOWN."""
    without_test = "leakage" not in examination.findings
    not_looked_for = ["Not looked for: leakage, which needs test data (--test FILE)."]
    if not examination.count:
        nothing = f"Found nothing: looked for {', '.join(examination.findings)}."
        return [nothing, *(not_looked_for if without_test else [])]
    with_findings = {finding.source for finding in _all(examination)}
    lines = [
        f"Found {counted(examination.count, 'thing')} to look at, in {len(with_findings):,} of "
        f"{counted(examination.samples, 'sample')}; all are listed in {listed_in}"
    ]
    for kind, findings in examination.findings.items():
        if findings:
            lines += ["", *_lines_of(kind, findings, examination)]
    nothing = [kind for kind, findings in examination.findings.items() if not findings]
    if nothing:
        lines += ["", f"Found none of: {', '.join(nothing)}."]
    return [*lines, *(not_looked_for if without_test else [])]


def check_findings_file(path: Path, force: bool) -> None:
    """Refuse to overwrite a file that is no list of findings.

    Raises:
        UserError: it is another file, and `force` is false.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file with --out.")
    if force or not path.exists():
        return
    try:
        with open_regular(path) as file:
            first = file.readline(1 << 20)
        ours = not first or json.loads(first).get("kind") in FINDING_KINDS
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if not ours:
        raise UserError(
            f"{path} exists and is no list of findings. Name another file with --out, or add "
            "--force to overwrite it."
        )


def write_findings(path: Path, examination: Examination) -> None:
    """Write all findings, a line for each; a list of an earlier check is replaced.

    Raises:
        UserError: the file cannot be written.
    """
    if not examination.count and not path.exists():
        return
    lines = "".join(record_text(finding.to_json()) + "\n" for finding in _all(examination))
    try:
        write_atomically(path, lines)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. Name another place with --out."
        ) from None


def _all(examination: Examination) -> Iterator[DataFinding]:
    for findings in examination.findings.values():
        yield from findings


def _lines_of(kind: str, findings: Sequence[DataFinding], examination: Examination) -> list[str]:
    count = f"{len(findings):,}"
    if kind == "near-duplicates":
        count += f" in {counted(examination.clusters, 'cluster')}"
    advice = f" {_ADVICE[kind]}" if kind in _ADVICE else ""
    lines = [f"{kind}: {count} ({FINDING_KINDS[kind]}).{advice}"]
    lines += [f"  {finding}" for finding in findings[:SHOWN]]
    if len(findings) > SHOWN:
        lines.append(f"  ... and {len(findings) - SHOWN:,} more")
    return lines
