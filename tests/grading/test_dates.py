"""Dates and times of day in both languages."""

import pytest

from tinkersmith.grading.dates import Date, date_of, dates_in, time_of, times_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-07-09", Date(2024, 7, 9)),
        ("July 9th, 2024", Date(2024, 7, 9)),
        ("Tuesday, 9 July 2024", Date(2024, 7, 9)),
        ("the 9th of July", Date(None, 7, 9)),
        ("2024年7月9日", Date(2024, 7, 9)),
        ("二〇二四年十二月三十一日", Date(2024, 12, 31)),
        ("十月一日", Date(None, 10, 1)),
        ("July 2024", Date(2024, 7)),
        ("12/25/2024", Date(2024, 12, 25)),
        ("25/12/2024", Date(2024, 12, 25)),
        ("7/9/2024", Date(2024, 9, 7, open=True)),
        ("7/7/2024", Date(2024, 7, 7)),
        ("44 BC", Date(-44)),
        ("公元前221年", Date(-221)),
        ("the 1990s", Date(1990, decade=True)),
        ("1969", None),
        ("2024-13-09", None),
        ("2024-07", Date(2024, 7)),
        ("10-5-2", None),
        ("July", None),
        ("1.2.3", None),
        ("3.14", None),
    ],
)
def test_reading_a_date(text: str, expected: Date | None):
    assert date_of(text) == expected


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("14:45", 14.75),
        ("2:45 p.m.", 14.75),
        ("下午两点四十五分", 14.75),
        ("十点半", 10.5),
        ("上午9点一刻", 9.25),
        ("12:00 am", 0),
        ("12 pm", 12),
        ("noon", 12),
        ("midnight", 0),
        ("晚上8点", 20),
        ("24:00", 0),
        ("25:00", None),
        ("13:00 pm", None),
        ("7:3", None),
        ("14.45", None),
        ("5", None),
    ],
)
def test_reading_a_time_of_day(text: str, hours: float | None):
    seconds = time_of(text)
    assert (None if seconds is None else seconds / 3600) == hours


def test_the_dates_and_times_of_a_sentence_are_found_once_each():
    assert [words for _, words in dates_in("From July 9, 2024 to 2024年8月1日.")] == [
        "July 9, 2024",
        "2024年8月1日",
    ]
    assert [words for _, words in times_in("下午3:30出发，at 5 pm back")] == ["下午3:30", "5 pm"]
    assert dates_in("nothing 3.14") == times_in("nothing 3.14") == []
