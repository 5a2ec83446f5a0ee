"""The environment of tests that must not reach Tinker's cloud."""

import pytest

CLOUD = ("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_CREDENTIAL_CMD")


def without_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what would lead a command to the cloud, or to another server."""
    for name in CLOUD:
        monkeypatch.delenv(name, raising=False)
