"""The index in SQLite and the folders beside it: kills, leftovers, older databases."""

import concurrent.futures
import os
import sqlite3
import time
from pathlib import Path

import pytest

from tinkersmith.engine.errors import NotFound, Refused
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.storage.folders import TinkerPath, parse_path
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store
from tinkersmith.files import new_folder

PATH = TinkerPath("s:train:0", "weights", "a")
RUN = StoredRun("s:train:0", "s", "tiny", LoraConfig(4, seed=3, train_mlp=False), {"k": "v"}, 1.0)


def save(store: Store, content: str, path: TinkerPath = PATH) -> Path:
    folder = store.new_weights_folder(path)
    with new_folder(folder) as temporary:
        (temporary / "file").write_text(content)
    store.add_checkpoint(path, folder)
    return folder


def content(store: Store, path: TinkerPath = PATH) -> str:
    return (store.weights_folder(store.checkpoint(path)) / "file").read_text()


def test_a_new_version_replaces_the_old_one_only_when_it_is_complete(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old = save(store, "old")
    folder = store.new_weights_folder(PATH)
    with pytest.raises(OSError), new_folder(folder) as temporary:
        (temporary / "file").write_text("half")
        raise OSError("disk full")
    assert content(Store(tmp_path)) == "old"
    with new_folder(folder) as temporary:
        (temporary / "file").write_text("new")
    assert content(Store(tmp_path)) == "old"  # killed before the row was written
    store.add_checkpoint(PATH, folder)
    assert content(Store(tmp_path)) == "new"
    assert not old.exists()


def test_a_path_that_is_not_stored_is_told_with_what_its_run_has(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(
        NotFound, match=rf"the run s:train:0 is not stored in {tmp_path}/checkpoints"
    ):
        store.checkpoint(PATH)
    store.add_session("s", {}, "a name")
    store.add_run(RUN)
    with pytest.raises(NotFound, match=r"does not exist here: its run has no checkpoint yet"):
        store.checkpoint(PATH)
    for number in range(7):
        save(store, "x", TinkerPath(RUN.id, "weights", f"b{number}"))
    shown = ", ".join(f"weights/b{number}" for number in (6, 5, 4, 3, 2))
    with pytest.raises(NotFound, match=rf"its run has {shown} and 2 more\.$"):
        store.checkpoint(PATH)


def test_only_folders_that_are_marked_as_half_written_are_swept_at_start(tmp_path: Path) -> None:
    store = Store(tmp_path)
    named = save(store, "named")
    unknown, fresh, stale = (named.with_name(name) for name in ("unknown", ".y.tmp", ".x.tmp"))
    for folder in (unknown, fresh, stale):
        folder.mkdir()
    two_hours_ago = time.time() - 7200
    for folder in (named, unknown, stale):
        os.utime(folder, (two_hours_ago, two_hours_ago))
    Store(tmp_path)
    left = {folder.name for folder in named.parent.iterdir()}
    assert left == {named.name, unknown.name, fresh.name}


def test_runs_come_back_as_they_were(tmp_path: Path) -> None:
    Store(tmp_path).add_run(RUN)
    assert Store(tmp_path).run(RUN.id) == RUN
    assert Store(tmp_path).runs("s") == [RUN]
    assert Store(tmp_path).runs("other") == []


def test_many_engines_may_open_and_write_one_folder_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        store = Store(tmp_path)
        for step in range(10):
            save(store, "x", TinkerPath(f"s{number}:train:0", "weights", f"c{step}"))
        store.close()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(Store(tmp_path).checkpoints()) == 80


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    store = Store(tmp_path)
    save(store, "old")
    store.close()
    with sqlite3.connect(tmp_path / "engine.sqlite") as connection:
        connection.execute("DROP INDEX runs_of_session")
        connection.execute("DROP INDEX samplers_of_session")
        connection.execute("ALTER TABLE checkpoints DROP COLUMN folder")
        connection.execute("ALTER TABLE sessions DROP COLUMN display_name")
        connection.execute("ALTER TABLE runs DROP COLUMN optimizer")
        connection.execute("PRAGMA user_version = 0")
    assert content(Store(tmp_path)) == "old"


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "engine.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(Refused, match="newer version"):
        Store(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["", "x", "tinker://a", "tinker://a/weights", "tinker://a/odd/b", "tinker://a/weights/b/c"],
)
def test_a_string_that_is_not_a_tinker_path_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="not a tinker path"):
        parse_path(text)
