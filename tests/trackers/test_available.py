"""A library or a key that is missing is said before anything is trained."""

from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from tests.support.environment import without_cloud
from tinkersmith.errors import UserError
from tinkersmith.trackers import available
from tinkersmith.trackers.available import check_trackers
from tinkersmith.training.train import train


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("SWANLAB_API_KEY", "SWANLAB_MODE", "SWANLAB_ROOT", "SWANLAB_SAVE_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def installed(monkeypatch: pytest.MonkeyPatch, names: Iterable[str]) -> None:
    known = set(names)
    monkeypatch.setattr(
        available, "find_spec", lambda name: ModuleSpec(name, None) if name in known else None
    )


def test_missing_libraries_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, ["trackio"])
    check_trackers([])
    check_trackers(["trackio"])
    with pytest.raises(UserError) as error:
        check_trackers(["mlflow", "trackio", "tensorboard"])
    assert str(error.value) == (
        'TRACKERS names "mlflow", "tensorboard", which need libraries that are not installed. '
        "Install with: pip install 'tinkersmith[mlflow,tensorboard]'"
    )


def test_training_does_not_begin_without_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, [])
    without_cloud(monkeypatch)
    with pytest.raises(UserError, match=r'"tensorboard", which needs a library .* pip install'):
        train(trackers=["tensorboard"], output_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("tracker", "environment"),
    [
        ("wandb", {"WANDB_MODE": "offline"}),
        ("wandb", {"WANDB_API_KEY": "x"}),
        ("wandb", {"NETRC": "machine api.wandb.ai login user password x\n"}),
        (
            "wandb",
            {
                "NETRC": "machine w.example login a password x\n",
                "WANDB_BASE_URL": "http://w.example",
            },
        ),
        ("swanlab", {"SWANLAB_MODE": "offline"}),
        ("swanlab", {"SWANLAB_API_KEY": "x"}),
        ("swanlab", {"SWANLAB_ROOT": "machine swanlab.cn login a password x\n"}),
    ],
)
def test_a_key_a_login_or_an_offline_mode_is_enough(
    tracker: str, environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, [tracker])
    with pytest.raises(UserError, match=r"there is no key for .* wandb login|swanlab login"):
        check_trackers([tracker])
    for name, value in environment.items():
        if name in ("NETRC", "SWANLAB_ROOT"):
            file = tmp_path / ".netrc"
            file.write_text(value)
            file.chmod(0o600)
            value = str(file if name == "NETRC" else tmp_path)
        monkeypatch.setenv(name, value)
    check_trackers([tracker])


@pytest.mark.parametrize("tracker", ["wandb", "swanlab"])
def test_a_tracker_that_the_environment_turns_off_is_refused(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, [tracker])
    monkeypatch.setenv(f"{tracker.upper()}_MODE", "disabled")
    with pytest.raises(UserError, match=f'"disabled", so nothing .* or remove "{tracker}"'):
        check_trackers([tracker])


def test_swanlabs_local_mode_needs_its_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, ["swanlab"])
    monkeypatch.setenv("SWANLAB_MODE", "local")
    with pytest.raises(UserError, match=r"pip install 'swanlab\[dashboard\]'"):
        check_trackers(["swanlab"])
