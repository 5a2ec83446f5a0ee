"""Folders of checkpoints -> what each holds, read from manifest.json or, without one, its names.

The files are the truth and the database is an index of them. Nothing here deletes or changes a
folder, except `sweep_half_written`, which removes those that their writer has marked.
"""

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.log import log
from tinkersmith.fingerprint import read_header
from tinkersmith.manifest import (
    HAS_MANIFEST,
    LABELS,
    MANIFEST,
    DamagedFile,
    check_files,
    read_manifest,
    read_sealed,
    write_sealed,
)
from tinkersmith.peft_format import ADAPTER_CONFIG, ADAPTER_WEIGHTS

try:
    import fcntl
except ImportError:  # Windows: half-written folders are then removed by their age alone
    fcntl = None

KINDS = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
_LABELS = ("public", "expires", "recipients", "user_metadata")
_WRITER = ".writer.lock"  # in a half-written folder, locked by the engine that writes it
_UNLOCKED_AGE = 3600  # seconds after which nobody still writes to a half-written folder
_HALF_WRITTEN = re.compile(r"\..+\.tmp")  # see files.new_folder
_DELETED = re.compile(r"\.(.+)\.[0-9a-f]{8}\.deleted")  # see `marked_deleted`
_REPLACEMENT = re.compile(r"(.+)\.[0-9a-f]{8}")  # a folder beside that of an earlier version
_RUN_FOLDER = re.compile(r"([^_]+)_train_(\d+)")


@dataclass(frozen=True, slots=True)
class TinkerPath:
    """tinker://<run>/<segment>/<name>"""

    run_id: str
    segment: str
    name: str

    def __str__(self) -> str:
        return f"tinker://{self.run_id}/{self.segment}/{self.name}"


def parse_path(text: str) -> TinkerPath:
    """Read a tinker:// path.

    Raises:
        Refused: the text is not such a path.
    """
    parts = text.removeprefix("tinker://").split("/")
    if not text.startswith("tinker://") or len(parts) != 3 or parts[1] not in KINDS:
        raise Refused(
            f"{text!r} is not a tinker path; it looks like tinker://RUN/weights/NAME or "
            "tinker://RUN/sampler_weights/NAME."
        )
    return TinkerPath(*parts)


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """One checkpoint as its files describe it."""

    folder: Path
    path: TinkerPath
    facts: dict[str, Any]  # the manifest's, or those that can be told without one
    labels: dict[str, Any]  # public, expires, recipients, user_metadata, as far as they are known
    notes: list[str] = field(default_factory=list[str])  # of what could not be read
    labels_damaged: bool = False  # `labels` are then those from the time of saving

    @property
    def size_bytes(self) -> int:
        return folder_size(self.folder)


class NotACheckpoint(Exception):
    """A folder in which no checkpoint can be recognised. The text says why."""


def checkpoint_folders(root: Path) -> Iterator[Path]:
    """The folders below `root` in which a checkpoint may be; hidden ones are not counted."""
    for segment in KINDS:
        for folder in sorted(root.glob(f"*/{segment}/*")):
            if folder.is_dir() and not folder.name.startswith("."):
                yield folder


def strange_entries(root: Path) -> Iterator[Path]:
    """What lies below `root` where neither a checkpoint nor a mark of ours can be."""
    for run in _entries(root):
        if not run.is_dir():
            yield run
            continue
        for segment in _entries(run):
            if segment.name not in KINDS or not segment.is_dir():
                yield segment
                continue
            for entry in _entries(segment):
                if not entry.is_dir() or (entry.name.startswith(".") and not is_marked(entry.name)):
                    yield entry


def read_folder(folder: Path) -> CheckpointFolder:
    """Tell which checkpoint a folder holds.

    Raises:
        NotACheckpoint: nothing in it says so.
        OSError: it cannot be read.
    """
    notes: list[str] = []
    labels_damaged = False
    try:
        manifest = read_manifest(folder)
    except DamagedFile as damage:
        notes.append(f"{MANIFEST} is damaged: {damage}")
        manifest = None
    if manifest is not None:
        path = TinkerPath(manifest["run_id"], manifest["segment"], manifest["name"])
        facts, labels = manifest, dict(manifest.get("labels") or {})
    else:
        path = _path_of(folder)
        facts, labels = _facts_without_manifest(folder), {}
    try:
        labels |= read_labels(folder)
    except ValueError as error:
        notes.append(str(error))
        labels_damaged = True
    return CheckpointFolder(folder, path, facts, labels, notes, labels_damaged)


def read_labels(folder: Path) -> dict[str, Any]:
    """The labels that were changed after the checkpoint was saved.

    Raises:
        ValueError: labels.json is damaged.
    """
    try:
        labels = read_sealed(folder / LABELS) or {}
    except DamagedFile as damage:
        raise ValueError(
            f"{LABELS} is damaged ({damage}): set its time to live or publication anew"
        ) from None
    return {name: labels[name] for name in _LABELS if name in labels}


def write_labels(folder: Path, labels: Mapping[str, object]) -> None:
    write_sealed(folder / LABELS, labels)


def without_manifest(folder: Path) -> str | None:
    """Why a folder without manifest.json is damaged; None: an older version wrote it.

    The weights themselves say whether a manifest was saved with them.
    """
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        return None
    try:
        metadata = read_header(file).content.get("__metadata__")
    except ValueError:
        return None  # whoever loads the file sees it
    if isinstance(metadata, dict) and HAS_MANIFEST in metadata:
        return "the file is gone, without which the other files cannot be checked"
    return None


def is_marked(name: str) -> bool:
    """Whether a folder's name says that it is half-written, or deleted but still there."""
    return bool(_HALF_WRITTEN.fullmatch(name) or _DELETED.fullmatch(name))


@contextmanager
def writing(folder: Path) -> Generator[None]:
    """Show other engines that this process writes to a half-written folder."""
    mark = folder / _WRITER
    with mark.open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def marked_deleted(folder: Path) -> Path:
    """Rename a folder that nothing needs any more; a kill before it is removed leaves the mark."""
    marked = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.deleted")
    os.rename(folder, marked)
    return marked


def sweep_half_written(root: Path) -> int:
    """Remove folders that a writer has marked as half-written and no engine writes to.

    Returns how many.
    """
    removed = 0
    for folder in root.glob("*/*/.*.tmp"):
        if folder.is_dir() and _HALF_WRITTEN.fullmatch(folder.name) and _is_abandoned(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def finish_deletions(root: Path, named: set[str]) -> list[str]:
    """Remove folders that are marked as deleted; rename back those that a row still names.

    A row is deleted in the transaction in which the folder is renamed: a row that is still there
    shows that the transaction was never committed. Returns the folders that were renamed back.
    """
    restored: list[str] = []
    for marked in root.glob("*/*/.*.deleted"):
        match = _DELETED.fullmatch(marked.name)
        if match is None or not marked.is_dir():
            continue
        folder = marked.with_name(match[1])
        relative = folder.relative_to(root).as_posix()
        if relative in named and not folder.exists() and _is_whole(marked):
            os.rename(marked, folder)
            restored.append(relative)
        else:
            shutil.rmtree(marked, ignore_errors=True)
    return restored


def folder_size(folder: Path) -> int:
    """Bytes of the files in a folder; files that vanish meanwhile count nothing."""
    size = 0
    for file in folder.iterdir():
        try:
            size += file.stat().st_size
        except FileNotFoundError:
            continue
    return size


def file_name(run_id: str) -> str:
    """The name of a run's folder: Windows allows no colon."""
    return run_id.replace(":", "_")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        log.warning("%s cannot be read (%s): what is in it is not listed", folder, error.strerror)
        return []


def _is_whole(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
        if manifest is None:
            return (folder / ADAPTER_WEIGHTS).is_file() and (folder / ADAPTER_CONFIG).is_file()
        check_files(folder, manifest, read=())
    except (DamagedFile, OSError):
        return False
    return True


def _is_abandoned(folder: Path) -> bool:
    mark = folder / _WRITER
    try:
        if fcntl is not None and mark.exists():
            with mark.open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    return False  # its engine lives
                return True
        newest = max([folder.stat().st_mtime, *(file.stat().st_mtime for file in folder.iterdir())])
    except FileNotFoundError:  # its engine has just finished it
        return False
    return time.time() - newest > _UNLOCKED_AGE


def _path_of(folder: Path) -> TinkerPath:
    run, segment, name = folder.parts[-3:]
    replacement = _REPLACEMENT.fullmatch(name)
    if replacement and not folder.with_name(replacement[1]).exists():
        name = replacement[1]
    match = _RUN_FOLDER.fullmatch(run)
    return TinkerPath(f"{match[1]}:train:{match[2]}" if match else run, segment, name)


def _facts_without_manifest(folder: Path) -> dict[str, Any]:
    """Base model, rank and trained layers, as adapter_config.json and the weights tell them."""
    try:
        config: Any = json.loads((folder / ADAPTER_CONFIG).read_bytes())
        base_model, rank = config["base_model_name_or_path"], config["r"]
    except FileNotFoundError:
        raise NotACheckpoint(f"it has no {MANIFEST} and no {ADAPTER_CONFIG}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise NotACheckpoint(
            f"it has no good {MANIFEST}, and {ADAPTER_CONFIG} is damaged"
        ) from None
    if not isinstance(base_model, str) or not isinstance(rank, int) or not 1 <= rank <= 512:
        raise NotACheckpoint(f"it has no good {MANIFEST}, and {ADAPTER_CONFIG} is damaged")
    weights = folder / ADAPTER_WEIGHTS
    if not weights.is_file():
        raise NotACheckpoint(f"it has no {ADAPTER_WEIGHTS}")
    try:
        names = [name for name in read_header(weights).content if name != "__metadata__"]
    except ValueError:
        names = []
    trained = {_group(name) for name in names} or {"attention", "mlp", "unembed"}
    return {
        "base_model": base_model,
        "rank": rank,
        "created": weights.stat().st_mtime,
        "run": {
            "seed": None,
            "train_attn": "attention" in trained,
            "train_mlp": "mlp" in trained,
            "train_unembed": "unembed" in trained,
        },
    }


def _group(tensor: str) -> str:
    """The group of layers that a tensor of an adapter belongs to, as the engine groups them."""
    *parents, _ = tensor.split(".lora_")[0].split(".")
    if any("attn" in parent or "attention" in parent for parent in parents):
        return "attention"
    if any(parent in ("mlp", "feed_forward", "ffn", "experts") for parent in parents):
        return "mlp"
    return "unembed"
