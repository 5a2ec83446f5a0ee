"""sweep.json: what a sweep is to do, and how far each of its runs is."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_json_object, write_json
from tinkersmith.runs.folder import RunFolder
from tinkersmith.settings.fields import FIELDS, Settings
from tinkersmith.settings.reading import settings_for_file, settings_from
from tinkersmith.sweep.grid import Combination, combinations_of, value_label
from tinkersmith.sweep.rungs import Rung

SWEEP_FILE = "sweep.json"
_SCHEMA = 1
_NAMES_FROM = "relative_names_start_from"  # seen from the sweep's folder
UNFINISHED = ("waiting", "paused", "interrupted", "failed")  # --resume goes on with these
_STATUSES = (*UNFINISHED, "finished", "stopped", "diverged")  # stopped: by successive halving
_STAMP = re.compile(r"\d{8}-\d{6}(-\d+)?")


@dataclass
class SweepRun:
    """One run of a sweep, as sweep.json has it."""

    number: int  # from 1
    combination: int  # its place in the list of combinations
    seed: int
    total_steps: int
    folder: str = ""  # the name of its folder in OUTPUT_DIR; "" before it began
    status: str = "waiting"
    steps_done: int = 0
    reason: str = ""  # why it failed or diverged
    seconds: float = 0.0  # of training, in all processes
    rung_values: list[float] = field(default_factory=list[float])  # best so far at each rung


@dataclass
class Sweep:
    """A sweep, as sweep.json has it. Names of files are as seen from the current folder."""

    folder: Path
    name: str
    created: str
    by: str
    seeds: int
    budget: float | None
    keep: str  # "all" | "best"
    backend: str  # "embedded" | "cloud" | "url"
    settings: Settings  # of every run, but for its own values
    grid: dict[str, list[object]]  # by upper-case names
    combinations: list[Combination]
    rungs: list[Rung]
    runs: list[SweepRun]
    ranking: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def output_dir(self) -> Path:
        return self.folder.parent

    def label(self, run: SweepRun) -> str:
        """A run in words: its combination, and its seed where there are several."""
        label = self.combinations[run.combination].label
        return f"{label} SEED={run.seed}" if self.seeds > 1 else label

    def settings_of(self, run: SweepRun) -> Settings:
        """The settings that a run begins with."""
        own = {"seed": run.seed, "model_name_prefix": self.prefix(run)}
        return self.combinations[run.combination].settings.model_copy(update=own)

    def prefix(self, run: SweepRun) -> str:
        """What the name of a run's folder begins with."""
        return f"{self.name}-{run.number:0{len(str(len(self.runs)))}}"

    def folder_of(self, run: SweepRun) -> RunFolder | None:
        """The run's folder; None if it has none, or it was deleted.

        A kill may come between the folder and the line of sweep.json that names it.
        """
        if not run.folder:
            begin = f"{self.prefix(run)}-"
            made = [
                path.parent.name
                for path in self.output_dir.glob(f"{begin}*/settings.json")
                if _STAMP.fullmatch(path.parent.name.removeprefix(begin))
            ]
            run.folder = max(made, default="")
        folder = RunFolder(self.output_dir / run.folder)
        return folder if run.folder and folder.file("settings.json").is_file() else None

    def write(self) -> None:
        """Write sweep.json."""
        values = settings_for_file(self.settings, self.folder)
        content = {
            "schema_version": _SCHEMA,
            _NAMES_FROM: ".",
            "name": self.name,
            "created": self.created,
            "by": self.by,
            "seeds": self.seeds,
            "budget": self.budget,
            "keep": self.keep,
            "backend": self.backend,
            "settings": values,
            "grid": {
                name: [_for_file(self, name, value) for value in choices]
                for name, choices in self.grid.items()
            },
            "rungs": [asdict(rung) for rung in self.rungs],
            "runs": [
                {**asdict(run), "values": self.combinations[run.combination].label}
                for run in self.runs
            ],
            "ranking": self.ranking,
        }
        write_json(self.folder / SWEEP_FILE, content)


def new_sweep(
    folder: Path,
    settings: Settings,
    grid: Mapping[str, Sequence[object]],
    combinations: Sequence[Combination],
    rungs: Sequence[Rung],
    total_steps: Sequence[int],
    *,
    by: str,
    seeds: int,
    budget: float | None,
    keep: str,
    backend: str,
) -> Sweep:
    """A sweep in which nothing has run yet; the runs of one combination follow each other.

    Args:
        total_steps: of a run of each combination.
    """
    runs = [
        SweepRun(0, place, settings.seed + number, total_steps[place])
        for place in range(len(combinations))
        for number in range(seeds)
    ]
    for number, run in enumerate(runs, start=1):
        run.number = number
    return Sweep(
        folder=folder,
        name=folder.name,
        created=dt.datetime.now().astimezone().isoformat(timespec="seconds"),
        by=by,
        seeds=seeds,
        budget=budget,
        keep=keep,
        backend=backend,
        settings=settings,
        grid={name: list(values) for name, values in grid.items()},
        combinations=list(combinations),
        rungs=list(rungs),
        runs=runs,
    )


def read_sweep(name: str, output_dir: Path | str) -> Sweep:
    """The sweep with this folder, or with this name inside `output_dir`.

    Raises:
        UserError: there is none, or its file is damaged.
    """
    for folder in (Path(name), Path(output_dir) / name):
        if (folder / SWEEP_FILE).exists():
            return _read(folder)
    sweeps = sorted(
        (file.parent.name for file in Path(output_dir).glob(f"*/{SWEEP_FILE}")), reverse=True
    )
    raise UserError(
        f"There is no sweep {name} in {output_dir}. The sweeps there: "
        f"{', '.join(sweeps[:5]) or 'none'}."
    )


def _read(folder: Path) -> Sweep:
    file = folder / SWEEP_FILE
    try:
        content = read_json_object(file)
    except OSError as error:
        raise unreadable(file, error) from None
    except ValueError as error:
        raise _damaged(file, str(error)) from None
    if content.get("schema_version") != _SCHEMA:
        raise UserError(
            f"{file} has schema version {content.get('schema_version')!r}, and this Tinkersmith "
            f"knows {_SCHEMA}. Use the version that made it."
        )
    place = folder / str(content.get(_NAMES_FROM, "."))
    try:
        settings = _settings(content["settings"], place)
        grid = {
            name: [
                getattr(_settings({**content["settings"], name: value}, place), name.lower())
                for value in cast("list[object]", values)
            ]
            for name, values in cast("dict[str, Any]", content["grid"]).items()
        }
        combinations = combinations_of(grid, settings)
        return Sweep(
            folder=folder,
            name=str(content["name"]),
            created=str(content["created"]),
            by=str(content["by"]),
            seeds=int(content["seeds"]),
            budget=None if content["budget"] is None else float(content["budget"]),
            keep=str(content["keep"]),
            backend=str(content["backend"]),
            settings=settings,
            grid=grid,
            combinations=combinations,
            rungs=[Rung(float(r["share"]), int(r["combinations"])) for r in content["rungs"]],
            runs=[_run(entry, len(combinations)) for entry in content["runs"]],
            ranking=dict(content.get("ranking") or {}),
        )
    except UserError as error:
        raise _damaged(file, str(error)) from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from None


def _run(entry: Mapping[str, Any], combinations: int) -> SweepRun:
    names = {known.name for known in fields(SweepRun)}
    run = SweepRun(**{name: value for name, value in entry.items() if name in names})
    if run.status not in _STATUSES:
        raise ValueError(f"run {run.number} has the status {run.status!r}")
    if not 0 <= run.combination < combinations:
        raise ValueError(f"run {run.number} has no combination of the grid")
    if run.folder and Path(run.folder).name != run.folder:
        raise ValueError(f"run {run.number} has the folder {run.folder!r}")
    return run


def _settings(values: Mapping[str, Any], folder: Path) -> Settings:
    unknown = [name for name in values if name.lower() not in FIELDS]
    if unknown:
        raise ValueError(f"there is no setting {unknown[0]}")
    return settings_from(values, folder=folder)


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{file} is damaged: {reason}. Restore the file from a backup, or start a new sweep."
    )


def _for_file(sweep: Sweep, name: str, value: object) -> object:
    """A value of the grid as the file has it: names of files start from the sweep's folder."""
    settings = sweep.settings.model_copy(update={name.lower(): value})
    return settings_for_file(settings, sweep.folder)[name]


def describe(grid: Mapping[str, Sequence[object]]) -> str:
    """The grid as it is written on the command line."""
    return " ".join(
        f"{name}={','.join(value_label(value) for value in values)}"
        for name, values in grid.items()
    )
