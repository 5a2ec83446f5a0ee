"""Numbers agree with their nouns."""

from tinkersmith.plurals import counted


def test_one_thing_is_singular_and_all_other_numbers_are_plural() -> None:
    assert counted(1, "sample") == "1 sample"
    assert counted(0, "sample") == "0 samples"
    assert counted(2300, "sample") == "2,300 samples"
    assert counted(1, "sample asks", "samples ask") == "1 sample asks"
    assert counted(2, "sample asks", "samples ask") == "2 samples ask"
