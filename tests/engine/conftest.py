"""A real engine process on loopback, driven by the unmodified SDK."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import tinker

from tests.support.engine import SDK, RunningEngine, no_proxy_for_loopback, running_engine
from tests.support.tiny_models import make_tiny_model

if SDK < (0, 38):
    from tinker.lib.public_interfaces.rest_client import RestClient

    for older in (tinker.TrainingClient, tinker.SamplingClient):
        older.result = lambda self, timeout=None: self  # pyright: ignore
    tinker.RestClient = RestClient


@pytest.fixture(scope="session", autouse=True)
def _loopback_only() -> None:
    no_proxy_for_loopback()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[RunningEngine]:
    with running_engine(tmp_path_factory.mktemp("engine"), tiny_model) as running:
        yield running


@pytest.fixture(scope="session")
def service(engine: RunningEngine) -> Iterator[tinker.ServiceClient]:
    with engine.client() as client:
        yield client


@pytest.fixture(scope="session")
def rest(engine: RunningEngine) -> tinker.RestClient:
    return engine.rest()
