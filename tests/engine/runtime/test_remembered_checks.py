"""Checks that passed are remembered by content, and a file that does not fit is ignored."""

import json
from pathlib import Path

import pytest

from tests.support.tiny_models import make_tiny_model
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.runtime import remembered_checks
from tinkersmith.engine.runtime.remembered_checks import RememberedChecks, facts_of_model

FACTS = {"engine": "1", "model": "a"}


class Check:
    """Counts how often it runs."""

    def __init__(self, value: float = 0.25) -> None:
        self.value, self.runs = value, 0

    def __call__(self) -> float:
        self.runs += 1
        return self.value


def test_a_check_runs_once_and_its_result_is_known_afterwards(tmp_path: Path) -> None:
    check = Check()
    assert RememberedChecks(tmp_path, FACTS)("gradients", check) == 0.25
    assert RememberedChecks(tmp_path, FACTS)("gradients", check) == 0.25
    assert check.runs == 1


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ({"engine": "2", "model": "a"}, "gradients"),
        ({"engine": "1", "model": "b"}, "gradients"),
        ({"engine": "1"}, "gradients"),
        (FACTS, "plain"),
    ],
)
def test_another_check_or_other_facts_run_anew(
    tmp_path: Path, facts: dict[str, str], name: str
) -> None:
    check = Check()
    RememberedChecks(tmp_path, FACTS)("gradients", check)
    RememberedChecks(tmp_path, facts)(name, check)
    assert check.runs == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: text.replace("0.25", "0.5"),
        lambda text: text.replace("0.25", '"0.25"'),
        lambda text: text.replace('"engine": "1"', '"engine": "2"'),
        lambda text: json.dumps({"value": 0.25}),
        lambda text: text.encode("utf-16").decode("latin-1"),
    ],
)
def test_a_damaged_file_is_ignored_and_written_anew(tmp_path: Path, damage) -> None:
    check = Check()
    RememberedChecks(tmp_path, FACTS)("gradients", check)
    (file,) = tmp_path.glob("*.json")
    whole = file.read_text()
    file.write_text(damage(whole))
    assert RememberedChecks(tmp_path, FACTS)("gradients", check) == 0.25
    assert check.runs == 2
    assert file.read_text() == whole


def test_a_check_that_raises_is_not_remembered(tmp_path: Path) -> None:
    def refuse() -> float:
        raise Refused("they differ")

    for _ in range(2):
        with pytest.raises(Refused):
            RememberedChecks(tmp_path, FACTS)("plain", refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_costs_the_memory_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    check = Check()
    assert RememberedChecks(tmp_path / "file" / "checks", FACTS)("gradients", check) == 0.25


def test_old_entries_make_room_for_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered_checks, "_MOST_ENTRIES", 3)
    for number in range(5):
        RememberedChecks(tmp_path, FACTS)(f"check {number}", Check())
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_facts_follow_weights_configuration_versions_and_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny_model(tmp_path / "model")
    seen = [facts_of_model(folder, "auto", "cpu")]
    assert facts_of_model(folder, "auto", "cpu") == seen[0]

    def differs() -> bool:
        seen.append(facts_of_model(folder, "auto", "cpu"))
        return seen[-1] not in seen[:-1]

    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert differs()
    monkeypatch.setattr(remembered_checks, "_WHOLE", 0)  # as for a large file: its ends and time
    monkeypatch.setattr(remembered_checks, "_ENDS", 100)
    assert differs()
    content[-1] ^= 1
    weights.write_bytes(content)
    assert differs()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 7.0}))
    assert differs()
    monkeypatch.setattr(remembered_checks, "version", lambda name: "0.0")
    assert differs()
    monkeypatch.setattr(remembered_checks, "processor_features", lambda: "flags: none")
    assert differs()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert differs()
    monkeypatch.setattr(remembered_checks, "_engine_sources", lambda: "changed")
    assert differs()
    assert facts_of_model(folder, "bfloat16", "cpu") != seen[-1]
