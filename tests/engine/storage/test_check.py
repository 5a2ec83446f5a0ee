"""`tinkersmith engine check`: what it says of whole, damaged and unlisted checkpoints."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.storage.folders import TinkerPath
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store

RUN = "0123456789abcdef:train:0"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    store = Store(tmp_path / "engine")
    store.add_session(RUN[:16], {}, None)
    store.add_run(StoredRun(RUN, RUN[:16], "tiny", LoraConfig(4), None, time.time()))
    for name in ("one", "two"):
        path = TinkerPath(RUN, "weights", name)
        with store.new_checkpoint(path, {"base_model": "tiny", "rank": 4}) as new:
            (new.folder / "adapter_model.safetensors").write_text(f"weights {name}")
    store.close()
    return tmp_path / "engine"


def check(folder: Path, *options: str) -> tuple[int, str]:
    program = (
        "import sys; from tinkersmith.cli.main import main\n"
        "status = main(['engine', 'check', *sys.argv[1:]])\n"
        "assert 'torch' not in sys.modules and 'tinker' not in sys.modules\n"
        "sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *options], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_whole_folder_is_listed_with_its_runs_checkpoints_and_sizes(folder: Path) -> None:
    store = Store(folder)  # an engine uses it meanwhile
    status, text = check(folder)
    store.close()
    assert status == 0
    assert "1 run, 2 checkpoints" in text and f"{RUN}  tiny, rank 4" in text
    assert "weights/one" in text and "weights/two" in text and "MB" in text
    assert "Everything that can be checked is whole." in text


def test_damage_is_named_and_stays_after_a_repair_of_the_database(folder: Path) -> None:
    [file] = folder.glob("checkpoints/*/weights/two/adapter_model.safetensors")
    file.write_text("weights tvo")
    (folder / "engine.sqlite").write_bytes(b"garbage")
    status, text = check(folder)
    assert status == 1
    assert f"adapter_model.safetensors of tinker://{RUN}/weights/two is damaged" in text
    assert "engine.sqlite is damaged: file is not a database" in text
    assert (folder / "engine.sqlite").read_bytes() == b"garbage"  # nothing was changed
    assert f"tinkersmith engine check {folder} --repair" in text
    status, text = check(folder, "--repair")
    assert status == 1 and "repaired: " in text and "weights/two is damaged" in text
    Store(folder).delete_checkpoint(TinkerPath(RUN, "weights", "two"))
    assert check(folder)[0] == 0


@pytest.mark.parametrize("case", ["missing", "empty", "row without folder", "folder without row"])
def test_a_database_that_does_not_fit_the_folders_is_repaired(folder: Path, case: str) -> None:
    database = folder / "engine.sqlite"
    if case == "missing":
        database.unlink()
    elif case == "empty":
        database.write_bytes(b"")
    elif case == "row without folder":
        [two] = folder.glob("checkpoints/*/weights/two")
        shutil.rmtree(two)
    else:
        [two] = folder.glob("checkpoints/*/weights/two")
        two.rename(folder / "two")
        store = Store(folder)
        store.delete_checkpoint(TinkerPath(RUN, "weights", "two"))
        store.close()
        (folder / "two").rename(two)
    assert check(folder)[0] == 1
    status, text = check(folder, "--repair")
    assert status == 0 and "repaired: " in text
    assert check(folder)[0] == 0
    assert len(Store(folder).checkpoints()) == (1 if case == "row without folder" else 2)


def test_damaged_labels_and_manifests_and_foreign_files_are_each_named_once(folder: Path) -> None:
    [one] = folder.glob("checkpoints/*/weights/one")
    [two] = folder.glob("checkpoints/*/weights/two")
    (one / "manifest.json").write_text("{}")
    (one / "labels.json").write_text("[]")
    (two / "notes.txt").write_text("x")
    (two.parent / "stray").write_text("x")
    status, text = check(folder)
    assert status == 1
    assert text.count("manifest.json of tinker://") == 1
    assert text.count("labels.json is damaged") == 1
    assert text.count(f"notes.txt does not belong to tinker://{RUN}/weights/two") == 1
    assert text.count(f"left as it is: {two.parent / 'stray'}") == 1
    assert (two / "notes.txt").exists() and (two.parent / "stray").exists()


def test_another_folder_is_refused_in_one_sentence(tmp_path: Path) -> None:
    status, text = check(tmp_path)
    assert status == 1
    assert text.startswith(f"Error: {tmp_path} is not an engine's folder")
