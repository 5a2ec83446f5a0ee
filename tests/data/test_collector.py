"""The garbage collector's thresholds."""

import gc

import pytest

from tinkersmith.data.collector import fewer_collections


def test_the_thresholds_come_back_also_after_a_failure_and_within_itself():
    before = gc.get_threshold()
    with pytest.raises(ValueError), fewer_collections():
        inside = gc.get_threshold()
        with fewer_collections():
            assert gc.get_threshold() == inside
        assert gc.get_threshold() == inside and inside[0] > before[0]
        raise ValueError
    assert gc.get_threshold() == before
