"""A base model's fingerprint."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.support.tiny_models import make_tiny_model
from tinkersmith import fingerprint
from tinkersmith.fingerprint import base_fingerprint


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=[True, False], ids=["whole files", "parts of large files"])
def model(
    original: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Path:
    if not request.param:
        monkeypatch.setattr(fingerprint, "_WHOLE", 0)
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_equal_folders_have_equal_fingerprints_wherever_they_are(
    model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(model, tmp_path / "elsewhere")
    assert base_fingerprint(model) == base_fingerprint(other)
    assert len(base_fingerprint(model)) == 32


def test_other_weights_of_the_same_shapes_have_another_fingerprint(model: Path) -> None:
    before = base_fingerprint(model)
    [file] = model.glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, file, {"format": "pt"})
    assert base_fingerprint(model) != before


def test_another_configuration_has_another_fingerprint(model: Path) -> None:
    before = base_fingerprint(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert base_fingerprint(model) != before


@pytest.mark.parametrize("length", [0, 5, 30, 5000])
def test_a_large_file_that_is_cut_short_is_named(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", -1)
    model = shutil.copytree(original, tmp_path / "copy")
    [file] = model.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=str(file)):
        base_fingerprint(model)


def test_a_header_that_is_no_header_is_named(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "_WHOLE", -1)
    for header in (b"[1, 2]", b'{"a": {}}', b'{"a": {"data_offsets": [1]}}', b"\xff\xfe", b"{"):
        file = tmp_path / "model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: "):
            base_fingerprint(tmp_path)
