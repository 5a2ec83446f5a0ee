"""What is said when nothing is short enough can be done, and helps."""

from itertools import product

import pytest

from tinkersmith.batches.summary import none_fits


@pytest.mark.parametrize(
    ("limit", "context", "truncate", "prompt", "whole", "expected"),
    [
        # Only the prompts are too long: TRUNCATE_LONG_SEQUENCES is on already.
        (32, 1024, True, 120, 160, "Raise MAX_SEQUENCE_LENGTH to at least 121 (the model holds "),
        (32, 1024, True, 1024, 1100, "Choose a BASE_MODEL that holds more, or shorten the prompts"),
        (
            1024,
            1024,
            True,
            2000,
            2100,
            "all that the model holds: even the shortest prompt has 2,0",
        ),
        (32, None, True, 120, 160, "Raise MAX_SEQUENCE_LENGTH to at least 121, or shorten the pr"),
        (32, 1024, False, 20, 160, "at least 160 (the model holds 1,024), set TRUNCATE_LONG"),
        (32, 1024, False, 60, 160, "at least 160 (the model holds 1,024), or shorten the samples."),
        (32, 100, False, 20, 160, "Set TRUNCATE_LONG_SEQUENCES = True, or shorten the samples."),
        (100, 100, False, 20, 160, "Set TRUNCATE_LONG_SEQUENCES = True, or shorten the samples."),
    ],
)
def test_the_remedies_fit_the_case(
    limit: int, context: int | None, truncate: bool, prompt: int, whole: int, expected: str
) -> None:
    assert expected in str(none_fits(24, limit, context, truncate, prompt, whole))


def test_no_remedy_is_so_already_or_beyond_the_model() -> None:
    lengths = (20, 60, 200, 3000)
    for limit, context, truncate, prompt, more in product(
        (32, 1024), (1024, 4096, None), (True, False), lengths, (1, 30, 5000)
    ):
        whole = prompt + more
        if (prompt if truncate else whole - 1) < limit:
            continue  # it fits
        text = str(none_fits(3, limit, context, truncate, prompt, whole))
        needed = prompt + 1 if truncate else whole
        if truncate:
            assert "TRUNCATE_LONG_SEQUENCES" not in text
        elif "TRUNCATE_LONG_SEQUENCES" in text:
            assert prompt < limit
        if context is not None and (limit == context or needed > context):
            assert "MAX_SEQUENCE_LENGTH" not in text
        else:
            assert f"MAX_SEQUENCE_LENGTH to at least {needed:,}" in text
        assert text.count(". ") == 1 and text.endswith(".")
