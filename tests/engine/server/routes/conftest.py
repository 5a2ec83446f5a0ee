"""One engine for all tests of the inference routes."""

from collections.abc import Iterator

import pytest

from tests.support.inference import InferenceEngine, running_inference


@pytest.fixture(scope="session")
def inference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceEngine]:
    with running_inference(tmp_path_factory.mktemp("inference")) as running:
        yield running
