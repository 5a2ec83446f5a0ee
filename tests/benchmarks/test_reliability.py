"""Short forms of the campaigns that break files and settings by seed."""

import random
from pathlib import Path

import pytest

from benchmarks.reliability.files import try_files, try_models
from benchmarks.reliability.promise import Hang, Tally, with_patience, wrong_sentence
from benchmarks.reliability.settings import try_settings
from tinkersmith.errors import UserError


def test_damaged_files_of_every_kind_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    tally = Tally()
    try_files(300, seed, tmp_path, tally)
    try_models(5, seed, tmp_path, tally)
    assert tally.broken == []
    assert tally.works > 30 and tally.sentences > 100


def test_odd_settings_are_accepted_or_refused_in_a_sentence(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    tally = Tally()
    try_settings(300, seed, tmp_path, tally)
    assert tally.broken == []
    assert tally.works > 15 and tally.sentences > 100


def test_the_campaign_sees_what_it_is_for() -> None:
    tally = Tally()

    def fails() -> None:
        raise KeyError("x")

    def refuses(text: str) -> None:
        raise UserError(text)

    def waits() -> None:
        while True:
            pass

    tally.run("a traceback", fails)
    tally.run("two lines", lambda: refuses("a\nb"))
    tally.run("no name", lambda: refuses("It is damaged."), ["a.json"])
    tally.run("sound", lambda: refuses("a.json is damaged."), ["a.json"])
    assert [line.partition(":")[0] for line in tally.broken] == [
        "a traceback",
        "two lines",
        "no name",
    ]
    assert (tally.sentences, wrong_sentence("fine", [])) == (3, "")
    with pytest.raises(Hang):
        with_patience(waits, seconds=0.01)
