"""A short form of `python -m benchmarks.reliability.load`."""

import pytest

from benchmarks.reliability.load import load

pytestmark = pytest.mark.engine

CLIENTS = 4


def test_clients_at_once_train_save_sample_download_and_leave_nothing() -> None:
    curves, found = load(CLIENTS, seconds=2.0, every=0.05)
    assert found["failures"] == [] and found["left over"] == {}
    assert found["done"]["lives"] >= CLIENTS
    assert len(curves.memory["engine"].points) > 3
    assert len(curves.handles["engine"].points) > 3
