"""Rehearsals: folders that hold what a run is to send, as digests, and no model.

They lie in `rehearsals/` of OUTPUT_DIR and have no settings.json, so that nothing takes one for a
run. This module sends nothing; see `training/rehearsal` for what makes one.
"""

import datetime as dt
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tinkersmith.data.samples import Source
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import new_folder, open_regular, read_json_object, write_json
from tinkersmith.paths import seen_from_folder, seen_from_here
from tinkersmith.runs.folder import REHEARSAL_FILE, REHEARSALS, REQUESTS_FILE, RunFolder
from tinkersmith.settings.comparing import comparable_setting
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.reading import settings_for_file, settings_from
from tinkersmith.sources.find import find_files

_AGAIN = "Rehearse again."
_BLOCK = 1 << 20  # bytes of a file that are hashed at a time
SAMPLE_DIGITS = 8  # hexadecimal digits of a sample's digest in requests.jsonl
# Settings that change no request. The tokenizer and the number of steps are compared themselves.
_SENDS_NOTHING = frozenset(
    {
        *("output_dir", "model_name_prefix", "backend", "tokenizer", "trackers"),
        *("show_length_warnings", "export_after_training", "server_patience"),
        *("save_every", "save_every_minutes", "keep_last", "checkpoint_ttl_days"),
        *("budget_usd", "budget_minutes", "token_price", "patience", "stop_on_divergence"),
        *("best_by", "metrics", "judge_url", "judge_model", "judge_mode", "judge_rubric"),
        "judge_price",
    }
)
_DIGESTS = {
    "tokenizer_digest": "the tokenizer is another one",
    "template_digest": "the prompt template is another one",
    "data_digest": "the training data is other data",
    "questions_digest": "the questions of EVAL_FILES are others",
}
_SOME = 3  # names in a sentence


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """One rehearsal, by its folder: rehearsal.json and requests.jsonl."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def facts(self) -> dict[str, Any]:
        """The content of rehearsal.json.

        Raises:
            UserError: it is missing or damaged.
        """
        file = self.path / REHEARSAL_FILE
        try:
            facts = read_json_object(file)
        except OSError as error:
            raise unreadable(file, error) from None
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}. {_AGAIN}") from None
        kinds: dict[str, type] = {"settings": dict, "total_steps": int, "digest": str}
        for name, kind in kinds.items():
            if not isinstance(facts.get(name), kind):
                raise UserError(f'{file} is damaged: "{name}" is missing or wrong. {_AGAIN}')
        return facts

    def settings(self) -> Settings:
        """The settings that were rehearsed; names of files as seen from the current folder.

        Raises:
            UserError: rehearsal.json is damaged, or another version wrote it.
        """
        values = cast("dict[str, Any]", self.facts()["settings"])
        file = self.path / REHEARSAL_FILE
        unknown = [name for name in values if name.lower() not in FIELDS]
        if unknown:
            raise UserError(
                f"{file} has the setting {unknown[0]!r}, which this version does not know. {_AGAIN}"
            )
        try:
            return settings_from(values, folder=self.path)
        except UserError as error:
            raise UserError(f"{file} is damaged: {error} {_AGAIN}") from None

    def lines(self) -> Iterator[dict[str, Any]]:
        """The lines of requests.jsonl, in the order in which a run sends them."""
        return lines_of(RunFolder(self.path))

    def digests(self) -> dict[tuple[int, str], str]:
        """The digest of each line, by its step and kind."""
        return {(line["step"], line["kind"]): line["digest"] for line in self.lines()}

    def line(self, step: int, kind: str) -> dict[str, Any] | None:
        """The line of a step and kind; None where nothing of that kind was rehearsed there."""
        return next(
            (line for line in self.lines() if (line["step"], line["kind"]) == (step, kind)), None
        )

    def changed_files(self) -> list[str]:
        """The data files that are not as they were, each with what became of it."""
        changes: list[str] = []
        listed: list[dict[str, Any]] = self.facts().get("files") or []
        for entry in listed:
            file = Path(seen_from_here(self.path, str(entry.get("file"))))
            try:
                if _file_digest(file) != entry.get("sha256"):
                    changes.append(f"{file} has changed since")
            except OSError:
                changes.append(f"{file} cannot be read any more")
        return changes


def lines_of(run: RunFolder) -> Iterator[dict[str, Any]]:
    """The lines of a folder's requests.jsonl.

    Raises:
        UserError: a line is damaged.
    """
    for number, line in enumerate(run.each_line(REQUESTS_FILE), start=1):
        step, kind, digest = line.get("step"), line.get("kind"), line.get("digest")
        if not (isinstance(step, int) and isinstance(kind, str) and isinstance(digest, str)):
            raise UserError(
                f"{run.file(REQUESTS_FILE)}, line {number} is damaged: it has no step, kind and "
                f"digest. {_AGAIN}"
            )
        yield line


def digest_of_all(lines: Iterator[dict[str, Any]]) -> tuple[str, int]:
    """One digest of all requests in their order, and how many they are."""
    digest, count = hashlib.sha256(), 0
    for line in lines:
        digest.update(f"{line['step']} {line['kind']} {line['digest']}\n".encode())
        count += int(line.get("requests", 1))
    return digest.hexdigest(), count


def add_rehearsal(
    settings: Settings, requests: Path, now: dt.datetime, facts: Mapping[str, Any]
) -> Rehearsal:
    """Make the folder of a rehearsal, whole or not at all.

    Args:
        requests: its requests.jsonl, which is copied.
        facts: what rehearsal.json says beside the settings, the files and the digest of all.

    Raises:
        UserError: OUTPUT_DIR cannot be written to.
    """
    place = Path(settings.output_dir) / REHEARSALS
    stamp = now.strftime("%Y%m%d-%H%M%S")
    for number in range(1, 1000):
        path = place / (f"rehearsal-{stamp}" + ("" if number == 1 else f"-{number}"))
        try:
            with new_folder(path) as folder:
                (folder / REQUESTS_FILE).write_bytes(requests.read_bytes())
                digest, count = digest_of_all(lines_of(RunFolder(folder)))
                write_json(
                    folder / REHEARSAL_FILE,
                    {
                        "about": "A rehearsal: what a run is to send. No model was trained.",
                        "made": now.astimezone().isoformat(timespec="seconds"),
                        **facts,
                        "requests": count,
                        "digest": digest,
                        "files": _data_files(settings, path),
                        "settings": settings_for_file(settings, path),
                    },
                )
            return Rehearsal(path)
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"OUTPUT_DIR {settings.output_dir} cannot be written to: "
                f"{error.strerror or error}. Choose another folder, or free some space."
            ) from None
    raise UserError(f"Too many rehearsals were made in {place} within one second.")


def all_rehearsals(output_dir: Path | str) -> list[Rehearsal]:
    """Every rehearsal in `output_dir`, newest first."""
    ages: list[tuple[int, Path]] = []
    for file in (Path(output_dir) / REHEARSALS).glob(f"*/{REHEARSAL_FILE}"):
        if not file.parent.name.startswith("."):  # half made
            with suppress(OSError):  # deleted while we look
                ages.append((file.stat().st_mtime_ns, file.parent))
    return [Rehearsal(path) for _, path in sorted(ages, reverse=True)]


def open_rehearsal(name: str, output_dir: Path | str) -> Rehearsal:
    """The rehearsal with this folder, or with this name inside `output_dir`.

    Raises:
        UserError: there is none; the newest ones are named.
    """
    for path in (Path(name), Path(output_dir) / REHEARSALS / name):
        with suppress(OSError, ValueError):  # too long a name, or one with a NUL
            if (path / REHEARSAL_FILE).is_file():
                return Rehearsal(path)
    known = ", ".join(rehearsal.name for rehearsal in all_rehearsals(output_dir)[:5]) or "none"
    raise UserError(
        f"There is no rehearsal {name} in {Path(output_dir) / REHEARSALS}. The newest there: "
        f"{known}."
    )


def matching_rehearsal(settings: Settings) -> tuple[Rehearsal | None, str]:
    """The newest rehearsal of these settings, and what is said where there is only another one.

    Settings that change no request may differ. Damaged rehearsals are passed over, with a line.
    """
    note = ""
    for rehearsal in all_rehearsals(settings.output_dir):
        try:
            rehearsed = rehearsal.settings()
        except UserError as error:
            note = note or f"Warning: {rehearsal.name} is passed over. {error}"
            continue
        changes = changed_settings(rehearsed, settings)
        if not changes:
            return rehearsal, ""
        if comparable_setting(rehearsed, "base_model") == comparable_setting(
            settings, "base_model"
        ):
            note = note or (
                f"{rehearsal.name} is of other settings, and not compared with: {_listed(changes)}."
            )
    return None, note


def changed_settings(rehearsed: Settings, now: Settings) -> list[str]:
    """What of the settings that decide requests is not as it was rehearsed, with both values."""
    return [
        f"{name.upper()} is {getattr(now, name)!r} (rehearsed: {getattr(rehearsed, name)!r})"
        for name in FIELDS
        if name not in _SENDS_NOTHING
        and comparable_setting(rehearsed, name) != comparable_setting(now, name)
    ]


def changes_since(
    rehearsal: Rehearsal,
    digests: Mapping[str, str | None],
    total_steps: int,
    max_context: int | None,
) -> list[str]:
    """What is not as it was rehearsed, of what all requests depend on.

    Args:
        digests: of the tokenizer, the template, the data and the questions, by the names in
            rehearsal.json.
    """
    facts = rehearsal.facts()
    changes = [
        sentence for name, sentence in _DIGESTS.items() if facts.get(name) != digests.get(name)
    ]
    if {_DIGESTS["data_digest"], _DIGESTS["questions_digest"]} & set(changes):
        changes = [*rehearsal.changed_files(), *changes]
    if facts["total_steps"] != total_steps:
        changes.append(f"the plan has {total_steps:,} steps instead of {facts['total_steps']:,}")
    if facts.get("max_context") != max_context:
        before, now = (_tokens(context) for context in (facts.get("max_context"), max_context))
        changes.append(f"the server's model takes {now} instead of {before}")
    return changes


def _tokens(context: int | None) -> str:
    return "a number of tokens that nobody says" if context is None else f"{context:,} tokens"


def difference(
    rehearsal: Rehearsal, line: Mapping[str, Any], sources: Sequence[Source] = ()
) -> str:
    """In which way a line of requests.jsonl is not the one that was rehearsed.

    Args:
        sources: where the line's samples come from.
    """
    step, kind = line["step"], line["kind"]
    where = {
        "create": "the creation of the training client",
        "forward_backward": f"step {step:,}",
        "optim_step": f"the optimizer in step {step:,}",
        "forward": f"the validation after step {step:,}",
        "sample": f"the questions of EVAL_FILES after step {step:,}",
    }.get(kind, f"{kind} in step {step:,}")
    before = rehearsal.line(step, kind)
    if before is None:
        return f"{where} was not rehearsed"
    if "content" in line:
        present: dict[str, Any] = line["content"]
        former: dict[str, Any] = before.get("content") or {}
        values = [
            f"{name} is {present.get(name)!r} (rehearsed: {former.get(name)!r})"
            for name in dict.fromkeys([*former, *present])
            if present.get(name) != former.get(name)
        ]
        return f"{where}: {_listed(values)}" if values else where
    for name, words in (("datums", "samples"), ("requests", "requests")):
        if line.get(name) != before.get(name):
            return f"{where} has {line.get(name):,} {words} (rehearsed: {before.get(name):,})"
    place = _first_other(str(line.get("samples", "")), str(before.get("samples", "")))
    if place is None:
        return f"{where}: the loss weights of its samples" if "samples" in line else where
    source = f", {sources[place]}" if place < len(sources) else ""
    return f"sample {place + 1:,} in {where}{source}"


def _first_other(present: str, former: str) -> int | None:
    """The place of the first sample whose short digest is another one."""
    size = SAMPLE_DIGITS
    for place in range(min(len(present), len(former)) // size):
        span = slice(place * size, (place + 1) * size)
        if present[span] != former[span]:
            return place
    return None


def _data_files(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    names = [*settings.training_files, *settings.validation_files, *settings.eval_files]
    files, _ = find_files(list(dict.fromkeys(names)))
    return [
        {
            "file": seen_from_folder(folder, file.as_posix()),
            "bytes": file.stat().st_size,
            "sha256": _file_digest(file),
        }
        for file in files
    ]


def _file_digest(file: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _listed(words: Sequence[str]) -> str:
    more = f", and {len(words) - _SOME} more" if len(words) > _SOME else ""
    return "; ".join(words[:_SOME]) + more
