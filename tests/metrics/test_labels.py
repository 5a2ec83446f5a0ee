"""Label sets: when outputs are labels, what an answer's label is, and the confusion matrix."""

import pytest

from tinkersmith.errors import UserError
from tinkersmith.metrics.labels import (
    LabelSet,
    confusion,
    confusion_lines,
    confusion_rows,
    label_set,
    named_label_set,
)


def labels_of(expected: list[str]) -> LabelSet:
    labels = label_set(expected)
    assert labels is not None
    return labels


SENTIMENT = ["positive"] * 10 + ["negative"] * 8 + ["neutral"] * 7


def test_a_small_set_of_short_outputs_is_a_label_set_in_the_order_of_frequency():
    assert list(labels_of(SENTIMENT).labels) == ["positive", "negative", "neutral"]
    assert list(labels_of(["正面"] * 12 + ["负面"] * 9).labels) == ["正面", "负面"]


@pytest.mark.parametrize(
    "expected",
    [
        ["yes"] * 10 + ["no"] * 9,  # 19 samples
        ["yes"] * 40,  # one label
        [f"class {n}" for n in range(21) for _ in range(5)],  # 21 labels
        [f"{n}" for n in range(10) for _ in range(4)],  # 4 samples for each
        ["a" * 41] * 20 + ["b"] * 20,
        ["a\nb"] * 20 + ["b"] * 20,
        [""] * 20 + ["b"] * 20,
        [],
    ],
)
def test_other_outputs_are_none(expected: list[str]):
    assert label_set(expected) is None


def test_forms_of_a_label_are_one_label_written_as_most_are():
    labels = labels_of(["Yes"] * 11 + ["yes."] * 4 + ["No"] * 10)
    assert dict(labels.labels) == {"yes": "Yes", "no": "No"}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ("**positive**", "positive"),
        ('"POSITIVE"', "positive"),
        ("Label: positive", "positive"),
        ("The answer is positive.", "positive"),
        ("情感：positive", "positive"),
        ("positively", None),
        ("not positive", None),
        ("positive and negative", None),
        ("positive\nbecause it is", None),
        ("", None),
        ("answer", None),
    ],
)
def test_an_answer_is_a_label_only_as_a_whole(answer: str, label: str | None):
    assert labels_of(SENTIMENT).label_of(answer) == label


def test_the_matrix_by_hand():
    labels = labels_of(["a"] * 10 + ["b"] * 10)
    pairs = [("a", "a")] * 3 + [("a", "b")] + [("b", "b")] * 2 + [("b", "maybe")] * 2
    matrix = confusion(pairs, labels)
    assert matrix["confusion_matrix"] == [[3, 1, 0], [0, 2, 2]]
    assert matrix["columns"] == ["a", "b", "(other)"]
    assert matrix["accuracy"] == 5 / 8 and matrix["outside_labels"] == 2
    assert matrix["per_label"]["a"] == {"n": 4, "precision": 1.0, "recall": 0.75, "f1": 6 / 7}
    assert matrix["per_label"]["b"]["f1"] == pytest.approx(4 / 7)
    assert matrix["macro_f1"] == pytest.approx(5 / 7)
    assert confusion_rows("trained", matrix) == [
        ["model", "expected", "a", "b", "(other)"],
        ["trained", "a", 3, 1, 0],
        ["trained", "b", 0, 2, 2],
    ]


def test_the_table_says_what_is_where_and_fits_a_screen():
    labels = labels_of([f"类别{n:02}" for n in range(20) for _ in range(5)])
    pairs = [(label, label) for label in labels.labels.values()]
    lines = confusion_lines(confusion(pairs, labels))
    assert lines[0].startswith("Labels: accuracy 100.0%, macro-F1 1.000, 0 answers of 20")
    assert lines[-1] == "8 more labels are in the file."
    two = confusion_lines(confusion([("a", "x")], labels_of(["a"] * 10 + ["b"] * 10)))
    assert two[1].split() == ["a", "b", "(other)", "(columns:", "what", "was", "answered)"]
    assert two[2].split() == ["a", "0", "0", "1"]


def test_a_label_that_neither_occurs_nor_is_answered_has_no_f1():
    labels = labels_of(["a"] * 10 + ["b"] * 10)
    assert confusion([("a", "a")], labels)["macro_f1"] == 1.0
    assert confusion([], labels)["macro_f1"] == 0.0


def test_labels_that_are_named_need_no_number_of_samples_but_must_be_labels():
    assert list(named_label_set(["yes", "no"]).labels) == ["no", "yes"]
    with pytest.raises(UserError, match="the expected outputs are longer texts"):
        named_label_set(["a" * 50, "b"])
    with pytest.raises(UserError, match="are 1 different output"):
        named_label_set(["a", "a"])
