"""Expected outputs that are labels: accuracy, macro-F1 and the confusion matrix."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinkersmith.errors import UserError
from tinkersmith.plurals import counted

FEWEST_SAMPLES, MOST_LABELS, PER_LABEL = 20, 20, 5  # what detection asks for
LONGEST_LABEL = 40  # characters
_MOST_NAMED = 200  # labels, where METRICS names "labels"
_SHOWN = 12  # labels of a matrix that is printed; the files have all
_CELL = 8  # columns of a printed cell
OUTSIDE = "(other)"
_ANNOUNCED = re.compile(
    r"(?:(?:the )?(?:label|answer|class|category|sentiment|output)(?: is)?"
    r"|标签|答案|类别|分类|情感)"
    r"\s*(?:[:：是为]|(?<=is)\s)\s*",
    re.IGNORECASE,
)
_AROUND = " \t\r\n\"'`*_.。!！,，;；“”‘’「」[]()（）"


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The labels of a test set: each normal form with the way it is mostly written."""

    labels: Mapping[str, str]

    def label_of(self, text: str) -> str | None:
        """The label that a text is; None for any other text, however close."""
        normal = _normal(text)
        if normal in self.labels:
            return normal
        announced = _normal(_ANNOUNCED.sub("", text.strip(_AROUND), count=1))
        starts = _ANNOUNCED.match(text.strip(_AROUND)) is not None
        return announced if starts and announced in self.labels else None


def label_set(expected: Sequence[str]) -> LabelSet | None:
    """The labels, if the expected outputs are a small label set.

    They are where there are at least 20 samples and 2 to 20 different outputs, each of one line
    and at most 40 characters, and on average 5 samples or more for each.
    """
    labels = _labels(expected)
    if labels is None or len(expected) < FEWEST_SAMPLES or not 2 <= len(labels) <= MOST_LABELS:
        return None
    return LabelSet(labels) if len(expected) >= PER_LABEL * len(labels) else None


def named_label_set(expected: Sequence[str]) -> LabelSet:
    """The labels where METRICS names "labels", whatever their number of samples is.

    Raises:
        UserError: the outputs are no labels.
    """
    labels = _labels(expected)
    if labels is None or not 2 <= len(labels) <= _MOST_NAMED:
        found = "longer texts" if labels is None else counted(len(labels), "different output")
        raise UserError(
            f'METRICS names "labels", but the expected outputs are {found}; labels are 2 to '
            f"{_MOST_NAMED} outputs of one line and at most {LONGEST_LABEL} characters. Remove it."
        )
    return LabelSet(labels)


def _labels(expected: Sequence[str]) -> dict[str, str] | None:
    forms: dict[str, Counter[str]] = {}
    for text in expected:
        written = text.strip()
        normal = _normal(written)
        if not normal or len(written) > LONGEST_LABEL or "\n" in written:
            return None
        forms.setdefault(normal, Counter())[written] += 1
    ordered = sorted(forms.items(), key=lambda form: (-form[1].total(), form[0]))
    return {normal: written.most_common(1)[0][0] for normal, written in ordered}


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().strip(_AROUND)


# ---- the confusion matrix


def confusion(pairs: Sequence[tuple[str, str]], labels: LabelSet) -> dict[str, Any]:
    """The matrix of (expected, produced), with accuracy, macro-F1 and figures for each label."""
    columns = [*labels.labels, None]
    counts = Counter((labels.label_of(wanted), labels.label_of(given)) for wanted, given in pairs)
    rows = [[counts[wanted, given] for given in columns] for wanted in labels.labels]
    per_label: dict[str, dict[str, float]] = {}
    for place, (_, written) in enumerate(labels.labels.items()):
        right, wanted = rows[place][place], sum(rows[place])
        given = sum(row[place] for row in rows)
        per_label[written] = {
            "n": wanted,
            "precision": right / given if given else 0.0,
            "recall": right / wanted if wanted else 0.0,
            "f1": 2 * right / (wanted + given) if wanted + given else 0.0,
        }
    # A label that occurs neither in the outputs that are scored nor in their answers has no F1.
    scored = [
        figures["f1"]
        for place, figures in enumerate(per_label.values())
        if figures["n"] or any(row[place] for row in rows)
    ]
    right = sum(row[place] for place, row in enumerate(rows))
    return {
        "labels": list(labels.labels.values()),
        "outside_labels": sum(row[-1] for row in rows),
        "n": len(pairs),
        "accuracy": right / len(pairs) if pairs else 0.0,
        "macro_f1": sum(scored) / len(scored) if scored else 0.0,
        "confusion_matrix": rows,
        "columns": [*labels.labels.values(), OUTSIDE],
        "per_label": per_label,
    }


def confusion_lines(matrix: Mapping[str, Any]) -> list[str]:
    """The matrix as a table; of many labels, the most frequent ones."""
    labels, rows = matrix["labels"], matrix["confusion_matrix"]
    lines = [
        f"Labels: accuracy {matrix['accuracy']:.1%}, macro-F1 {matrix['macro_f1']:.3f}, "
        f"{counted(matrix['outside_labels'], 'answer')} of {matrix['n']:,} outside the label set."
    ]
    shown = list(range(min(len(labels), _SHOWN)))
    places = [*shown, len(labels)]  # the last column is for other answers
    names = [*labels, OUTSIDE]
    width = max(_columns_of(_short(labels[place])) for place in shown) + 2
    head = "".join(_right(_short(names[place]), _CELL + 2) for place in places)
    lines.append(f"{'':{width}}{head}  (columns: what was answered)")
    for place in shown:
        cells = "".join(f"{rows[place][column]:>{_CELL + 2},}" for column in places)
        name = _short(labels[place])
        lines.append(f"{name}{' ' * (width - _columns_of(name))}{cells}")
    if len(labels) > _SHOWN:
        lines.append(f"{len(labels) - _SHOWN:,} more labels are in the file.")
    return lines


def confusion_rows(model: str, matrix: Mapping[str, Any]) -> list[list[object]]:
    """The matrix as rows of a spreadsheet, its header first."""
    header: list[object] = ["model", "expected", *matrix["columns"]]
    rows = zip(matrix["labels"], matrix["confusion_matrix"], strict=True)
    return [header, *([model, label, *counts] for label, counts in rows)]


def _short(text: str) -> str:
    """A label that fits a cell; a wide character takes two columns."""
    while _columns_of(text) > _CELL + 1:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _right(text: str, width: int) -> str:
    return " " * (width - _columns_of(text)) + text


def _columns_of(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
