"""The database lost, emptied, damaged, old or exchanged: no checkpoint goes with it."""

import concurrent.futures
import hashlib
import json
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.clients import greedy, new_client, train
from tests.support.engine import random_datums, running_engine
from tinkersmith.engine.errors import Refused, StorageFailure
from tinkersmith.engine.messages import LoraConfig
from tinkersmith.engine.storage.folders import KINDS, TinkerPath
from tinkersmith.engine.storage.rows import StoredRun
from tinkersmith.engine.storage.store import Store

SESSION = "0123456789abcdef"
RUN = f"{SESSION}:train:0"
LORA = LoraConfig(4, seed=3, train_mlp=False)
PATHS = [TinkerPath(RUN, segment, f"step-{number}") for segment in KINDS for number in range(4)]


def save(store: Store, path: TinkerPath, content: str = "weights", **labels: object) -> None:
    facts = {"base_model": "tiny", "rank": 4}
    with store.new_checkpoint(path, facts, **labels) as new:  # type: ignore[arg-type]
        (new.folder / "adapter_model.safetensors").write_text(f"{content} of {path}")
        (new.folder / "adapter_config.json").write_text("{}")


def make(folder: Path) -> None:
    """An engine's folder with a run of twelve checkpoints, as one engine leaves it."""
    store = Store(folder)
    store.add_session(SESSION, {"purpose": "test"}, "a name")
    store.add_run(StoredRun(RUN, SESSION, "tiny", LORA, {"k": "v"}, time.time()))
    for path in PATHS:
        save(store, path)
    store.set_public(PATHS[0], True)
    store.set_ttl(PATHS[1], 3600)
    store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make(tmp_path / "engine")
    return tmp_path / "engine"


def weight_files(folder: Path) -> dict[str, str]:
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*.safetensors")
    }


def check_everything(store: Store) -> None:
    listed = {checkpoint.path: checkpoint for checkpoint in store.checkpoints()}
    assert set(listed) == set(PATHS)
    for path in PATHS:
        assert store.checked(path).manifest is not None
    assert listed[PATHS[0]].public and not listed[PATHS[1]].public
    expires = listed[PATHS[1]].expires
    assert expires is not None and 3000 < expires - time.time() < 3601
    run, session = store.run(RUN), store.session(SESSION)
    assert (run.base_model, run.lora, run.user_metadata) == ("tiny", LORA, {"k": "v"})
    assert (session.user_metadata, session.display_name) == ({"purpose": "test"}, "a name")


def without_wal(folder: Path) -> None:
    """What a copy has that was made of engine.sqlite alone while an engine was running."""
    store = Store(folder)
    with sqlite3.connect(folder / "engine.sqlite") as connection:
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.close()
    for path in PATHS[5:]:
        store.delete_checkpoint(path)
    copied = (folder / "engine.sqlite").read_bytes()
    for path in PATHS[5:]:
        save(store, path)
    store.close()
    (folder / "engine.sqlite").write_bytes(copied)
    for ending in ("-wal", "-shm"):
        (folder / f"engine.sqlite{ending}").unlink(missing_ok=True)


def older_backup(folder: Path) -> None:
    database = folder / "engine.sqlite"
    now = database.read_bytes()
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM checkpoints WHERE name > 'step-1'")
        connection.execute("UPDATE checkpoints SET expires = NULL, public = 0")
    connection.close()
    assert database.read_bytes() != now


def wrong_rows(folder: Path) -> None:
    with sqlite3.connect(folder / "engine.sqlite") as connection:
        connection.execute("UPDATE runs SET rank = 7, train_mlp = 1")
        connection.execute("UPDATE checkpoints SET public = 0, expires = NULL, size_bytes = 1")
    connection.close()


def pages(numbers: Callable[[int], list[int]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "engine.sqlite"
        content = bytearray(file.read_bytes())
        for number in numbers(len(content) // 4096):
            content[number * 4096 : (number + 1) * 4096] = os.urandom(4096)
        file.write_bytes(content)

    return damage


def text_in_a_row(folder: Path) -> None:
    """A flipped bit inside a row, which no check of pages can see."""
    file = folder / "engine.sqlite"
    content = file.read_bytes()
    assert content.count(b'"purpose": "test"') == 1
    file.write_bytes(content.replace(b'{"purpose": "test"}', b'{"purpose": "test"]'))


HARMLESS: dict[str, Callable[[Path], object]] = {
    "missing": lambda folder: (folder / "engine.sqlite").unlink(),
    "zero bytes": lambda folder: (folder / "engine.sqlite").write_bytes(b""),
    "garbage header": lambda folder: (folder / "engine.sqlite").write_bytes(b"garbage " * 512),
    "no database": lambda folder: (folder / "engine.sqlite").write_bytes(b"x"),
    "cut": lambda folder: os.truncate(folder / "engine.sqlite", 10_000),
    "first page": pages(lambda count: [0]),
    "second page": pages(lambda count: [1]),
    "last page": pages(lambda count: [count - 1]),
    "many pages": pages(lambda count: list(range(2, count))),
    "text in a row": text_in_a_row,
    "without the wal": without_wal,
    "older backup": older_backup,
    "wrong rows": wrong_rows,
    "tables of another program": lambda folder: (
        (folder / "engine.sqlite").unlink(),
        sqlite3.connect(folder / "engine.sqlite").execute("CREATE TABLE x (y)"),
    ),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_whatever_happens_to_the_database_no_checkpoint_is_lost(folder: Path, case: str) -> None:
    HARMLESS[case](folder)
    before = weight_files(folder)
    assert len(before) == len(PATHS)
    for _ in range(2):  # the second start finds nothing left to do
        store = Store(folder)
        check_everything(store)
        store.close()
        assert weight_files(folder) == before


def test_a_damaged_database_is_kept_under_a_clear_name(folder: Path) -> None:
    (folder / "engine.sqlite").write_bytes(b"garbage")
    (folder / "engine.sqlite-wal").write_bytes(b"more")
    Store(folder).close()
    [aside] = [file for file in folder.glob("engine.sqlite.damaged-*") if file.name[-4] != "-"]
    assert aside.read_bytes() == b"garbage"
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == b"more"


def test_a_folder_that_is_copied_or_moved_elsewhere_is_whole_there(folder: Path) -> None:
    before = weight_files(folder)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    folder.rename(folder.with_name("moved"))
    for place in (copy, copy.with_name("moved")):
        check_everything(Store(place))
        assert weight_files(place) == before


def test_rows_that_name_folders_which_are_gone_are_said_once_and_not_listed(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder / "checkpoints" / RUN.replace(":", "_") / "weights" / "step-2")
    missing = TinkerPath(RUN, "weights", "step-2")
    with caplog.at_level(logging.INFO):
        store = Store(folder)
    said = [record.getMessage() for record in caplog.records if str(missing) in record.getMessage()]
    assert len(said) == 1 and "is gone: not listed" in said[0]
    assert missing not in {checkpoint.path for checkpoint in store.checkpoints()}
    with pytest.raises(Refused, match="are gone"):
        store.checkpoint(missing)
    store.delete_checkpoint(missing)
    with pytest.raises(Refused, match="does not exist here"):
        store.checkpoint(missing)


def test_folders_without_a_row_are_named_once_at_start(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "engine.sqlite").unlink()
    odd = folder / "checkpoints" / RUN.replace(":", "_") / "weights" / "notes"
    odd.mkdir()
    (odd / "todo.txt").write_text("x")
    with caplog.at_level(logging.INFO):
        store = Store(folder)
        store.checkpoints()
    text = caplog.text
    assert all(text.count(f"{path},") + text.count(f"{path}\n") == 1 for path in PATHS)
    assert text.count(f"{odd} holds no checkpoint") == 1
    assert (odd / "todo.txt").read_text() == "x"


def test_what_has_expired_or_was_deleted_does_not_come_back_with_a_new_database(
    folder: Path,
) -> None:
    store = Store(folder)
    store.delete_checkpoint(PATHS[2])
    store.set_ttl(PATHS[3], -1)  # a second ago
    store.close()
    (folder / "engine.sqlite").unlink()
    left = {checkpoint.path for checkpoint in Store(folder).checkpoints()}
    assert left == set(PATHS) - {PATHS[2], PATHS[3]}
    assert len(weight_files(folder)) == len(PATHS) - 2


def test_damaged_labels_cost_no_label_while_the_database_is_whole(folder: Path) -> None:
    for labels in folder.rglob("labels.json"):
        labels.write_text(labels.read_text().replace("true", "false").replace(": 1", ": 0"))
    check_everything(Store(folder))
    store = Store(folder)
    store.set_public(PATHS[0], True)  # writes the file anew
    store.set_ttl(PATHS[1], 3600)
    store.close()
    (folder / "engine.sqlite").unlink()
    check_everything(Store(folder))


def test_a_kill_between_the_end_of_a_deletion_and_its_files_is_finished_at_the_next_start(
    folder: Path,
) -> None:
    Store(folder).close()
    weights = folder / "checkpoints" / RUN.replace(":", "_") / "weights"
    # Committed, and killed before the files went; and renamed, but killed before the commit.
    (weights / "step-0").rename(weights / ".step-0.01234567.deleted")
    (weights / "step-1").rename(weights / ".step-1.01234567.deleted")
    with sqlite3.connect(folder / "engine.sqlite") as connection:
        connection.execute("DELETE FROM checkpoints WHERE segment = 'weights' AND name = 'step-0'")
    connection.close()
    listed = {checkpoint.path for checkpoint in Store(folder).checkpoints()}
    assert listed == set(PATHS) - {TinkerPath(RUN, "weights", "step-0")}
    assert sorted(entry.name for entry in weights.iterdir()) == ["step-1", "step-2", "step-3"]


def test_a_save_that_was_whole_when_the_engine_was_killed_replaces_the_one_before_it(
    folder: Path,
) -> None:
    store = Store(folder)
    path = PATHS[0]
    old = store.checkpoint(path)
    save(store, path, "newer")
    new = store.checkpoint(path)
    assert new.folder != old.folder
    store.close()
    # As if the kill had come before the new row: the old row, and both folders.
    shutil.copytree(folder / "checkpoints" / new.folder, folder / "checkpoints" / "kept")
    with sqlite3.connect(folder / "engine.sqlite") as connection:
        connection.execute(
            "UPDATE checkpoints SET folder = ? WHERE folder = ?", (old.folder, new.folder)
        )
    connection.close()
    shutil.rmtree(folder / "checkpoints" / "kept")
    store = Store(folder)
    assert store.checkpoint(path).folder == new.folder
    assert store.checked(path).manifest is not None


def test_the_checkpoints_of_older_versions_are_listed_anew_without_a_manifest(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = '{"base_model_name_or_path": "tiny", "r": 4}'
    for manifest in folder.rglob("manifest.json"):
        manifest.with_name("adapter_config.json").write_text(config)
        manifest.unlink()
    before = weight_files(folder)
    Store(folder).close()  # writes what only the rows know into the folders
    (folder / "engine.sqlite").unlink()
    store = Store(folder)
    listed = {checkpoint.path: checkpoint for checkpoint in store.checkpoints()}
    assert set(listed) == set(PATHS) and weight_files(folder) == before
    assert listed[PATHS[0]].public and listed[PATHS[1]].expires is not None
    assert (store.run(RUN).base_model, store.run(RUN).lora.rank) == ("tiny", 4)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert store.checked(PATHS[0]).manifest is None
    assert caplog.text.count(f"{PATHS[0]} was saved by a version that wrote no manifest") == 1


def test_engines_that_start_at_once_on_a_damaged_database_rebuild_it_together(
    folder: Path,
) -> None:
    (folder / "engine.sqlite").write_bytes(b"garbage")
    before = weight_files(folder)
    program = (
        "import sys; from pathlib import Path\n"
        "from tinkersmith.engine.storage.store import Store\n"
        "print(len(Store(Path(sys.argv[1])).checkpoints()))"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [int(process.communicate()[0]) for process in started] == [len(PATHS)] * 4
    assert weight_files(folder) == before
    assert len(list(folder.glob("engine.sqlite.damaged-*"))) == 1


@pytest.mark.parametrize("how", ["deleted", "exchanged"])
def test_a_running_engine_goes_on_when_its_database_is_taken_away(folder: Path, how: str) -> None:
    store = Store(folder)
    store.add_session("feed", {}, None)
    if how == "exchanged":  # by a second engine that found it damaged
        os.rename(folder / "engine.sqlite", folder / "engine.sqlite.damaged-x")
        Store(folder).close()
    else:
        (folder / "engine.sqlite").unlink()
    save(store, TinkerPath(RUN, "weights", "late"))
    paths = {checkpoint.path for checkpoint in store.checkpoints()}
    assert paths == {*PATHS, TinkerPath(RUN, "weights", "late")}
    assert store.session("feed").id == "feed"  # which no checkpoint of its own could tell


def test_a_folder_that_an_engine_still_writes_is_not_swept_and_a_killed_one_is(
    folder: Path,
) -> None:
    weights = folder / "checkpoints" / RUN.replace(":", "_") / "weights"
    program = (
        "import sys, time; from pathlib import Path\n"
        "from tinkersmith.engine.storage.folders import TinkerPath\n"
        "from tinkersmith.engine.storage.store import Store\n"
        f"path = TinkerPath({RUN!r}, 'weights', 'slow')\n"
        "with Store(Path(sys.argv[1])).new_checkpoint(path, {}) as new:\n"
        "    (new.folder / 'adapter_model.safetensors').write_text('half')\n"
        "    print('writing', flush=True); time.sleep(1000)"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, folder], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"writing\n"
        [half] = weights.glob(".*.tmp")
        os.utime(half, (0, 0))
        Store(folder).close()
        assert half.exists()
    finally:
        writer.kill()
        writer.wait()
    Store(folder).close()
    assert not half.exists()


def test_a_folder_that_cannot_be_written_is_refused_and_left_as_it_is(folder: Path) -> None:
    (folder / "engine.sqlite").unlink()
    before = weight_files(folder)
    user = os.geteuid()
    folder.chmod(0o555)
    try:
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        with pytest.raises((OSError, StorageFailure)):
            Store(folder)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
    assert weight_files(folder) == before
    check_everything(Store(folder))


@pytest.mark.engine
@pytest.mark.parametrize("case", ["missing", "second page"])
def test_the_sdk_lists_resumes_samples_and_downloads_after_the_database_was_lost(
    tmp_path: Path, tiny_model: Path, case: str
) -> None:
    with running_engine(tmp_path, tiny_model) as engine, engine.client() as service:
        client = new_client(service)
        train(client, random_datums(2), rate=0.1)
        expected = client.forward(random_datums(2), "cross_entropy").result().metrics["loss:sum"]
        state = client.save_state("state").result().path
        sampler = client.save_weights_for_sampler("sampler").result().path
        export = client.save_weights_external("export").result().path
        tokens = greedy(service.create_sampling_client(model_path=sampler).result())
    HARMLESS[case](tmp_path)
    before = weight_files(tmp_path)
    with running_engine(tmp_path, tiny_model) as engine, engine.client() as service:
        rest = engine.rest()
        listed = rest.list_user_checkpoints().result().checkpoints
        assert {entry.tinker_path for entry in listed} == {state, sampler, export}
        client = service.create_training_client_from_state_with_optimizer(state).result()
        loss = client.forward(random_datums(2), "cross_entropy").result().metrics["loss:sum"]
        assert loss == expected
        assert greedy(service.create_sampling_client(model_path=sampler).result()) == tokens
        urls = rest.get_external_weights_urls(export).result().urls
        content = urllib.request.urlopen(urls["adapter_model.safetensors"]).read()
        manifest = json.load(urllib.request.urlopen(urls["manifest.json"]))
        assert (
            hashlib.sha256(content).hexdigest()
            == manifest["files"]["adapter_model.safetensors"]["sha256"]
        )
    assert weight_files(tmp_path) == before


def test_many_threads_save_while_the_database_is_made_anew(folder: Path) -> None:
    store = Store(folder)

    def work(number: int) -> None:
        if number == 3:
            (folder / "engine.sqlite").unlink()
        save(store, TinkerPath(RUN, "weights", f"thread-{number}"))

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    names = {checkpoint.path.name for checkpoint in store.checkpoints()}
    assert {f"thread-{number}" for number in range(8)} <= names
    assert len(weight_files(folder)) == len(PATHS) + 8
