"""Everything below checkpoints/ -> which folders hold which checkpoints, and what is odd there."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinkersmith.engine.messages import ADAMW
from tinkersmith.engine.storage.folders import (
    CheckpointFolder,
    NotACheckpoint,
    TinkerPath,
    checkpoint_folders,
    read_folder,
    strange_entries,
)
from tinkersmith.manifest import DamagedFile, check_files


@dataclass(slots=True)
class Findings:
    """What lies in the folder of the checkpoints."""

    by_path: dict[TinkerPath, list[CheckpointFolder]]
    strange: list[tuple[Path, str]]  # what is kept and cannot be listed, each with a sentence
    damaged: list[str]  # a sentence for each damaged manifest or labels
    current: dict[TinkerPath, CheckpointFolder] = field(
        default_factory=dict[TinkerPath, CheckpointFolder]
    )

    def choose(self, path: TinkerPath, named: Path | None) -> CheckpointFolder:
        """The folder that is the checkpoint `path`; `named` is the one that its row names.

        A folder that another one replaces is never chosen. Otherwise the row decides, and without
        a row the time of saving.
        """
        folders = self.by_path[path]
        replaced = {entry.facts.get("replaces") for entry in folders} - {None}
        left = [entry for entry in folders if entry.facts.get("id") not in replaced] or folders
        chosen = max(
            left,
            key=lambda entry: (
                entry.folder == named,
                entry.facts["created"],
                entry.folder.name == path.name,
            ),
        )
        self.current[path] = chosen
        for entry in folders:
            if entry is not chosen and entry.facts.get("id") not in replaced:
                note = f"{entry.folder} holds another copy of {path}: kept, and not listed"
                self.strange.append((entry.folder, note))
        return chosen

    def replaced(self) -> list[Path]:
        """The folders that a kill left behind although a whole one has replaced them."""
        left: list[Path] = []
        for path, folders in self.by_path.items():
            chosen = self.current.get(path)
            if chosen is None or len(folders) == 1:
                continue
            for entry in folders:
                number = entry.facts.get("id")
                if number is not None and number == chosen.facts.get("replaces"):
                    try:
                        check_files(chosen.folder, chosen.facts)
                    except (DamagedFile, OSError):
                        note = f"{entry.folder} is kept: the version of {path} after it is damaged"
                        self.strange.append((entry.folder, note))
                    else:
                        left.append(entry.folder)
        return left


def look_at(root: Path) -> Findings:
    """Read every folder below `root`."""
    by_path: defaultdict[TinkerPath, list[CheckpointFolder]] = defaultdict(list)
    strange = [(entry, f"{entry} is not of this engine: kept") for entry in strange_entries(root)]
    damaged: list[str] = []
    for folder in checkpoint_folders(root):
        try:
            entry = read_folder(folder)
        except NotACheckpoint as reason:
            note = f"{folder} holds no checkpoint that can be listed: {reason}; kept"
            strange.append((folder, note))
            continue
        except OSError as error:
            note = f"{folder} cannot be read ({error.strerror}): kept, and not listed"
            strange.append((folder, note))
            continue
        damaged += [f"{entry.path}: {note}" for note in entry.notes]
        by_path[entry.path].append(entry)
    return Findings(dict(by_path), strange, damaged)


def current_run(current: CheckpointFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns of the run's row and of its session's, as a checkpoint tells them."""
    facts, path = current.facts, current.path
    saved: dict[str, Any] = facts.get("run") or {}
    created = facts["created"]
    session_id = saved.get("session_id") or path.run_id.partition(":")[0]
    run = {
        "id": path.run_id,
        "session_id": session_id,
        "base_model": facts["base_model"],
        "rank": facts["rank"],
        "seed": saved.get("seed"),
        "train_attn": int(saved.get("train_attn", True)),
        "train_mlp": int(saved.get("train_mlp", True)),
        "train_unembed": int(saved.get("train_unembed", True)),
        "user_metadata": saved.get("user_metadata") or json.dumps(None),
        "optimizer": saved.get("optimizer", ADAMW),
        "created": saved.get("created", created),
        "last_request": max(created, saved.get("last_request", created)),
    }
    session: dict[str, Any] = facts.get("session") or {}
    return run, {
        "id": session_id,
        "created": session.get("created", run["created"]),
        "user_metadata": session.get("user_metadata") or json.dumps({}),
        "display_name": session.get("display_name"),
    }
