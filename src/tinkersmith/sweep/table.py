"""A sweep -> sweep.csv: one row for each run, for spreadsheets."""

from collections.abc import Iterator
from pathlib import Path

from tinkersmith.evaluation.result_files import CSV_BOM, csv_row
from tinkersmith.files import write_atomically
from tinkersmith.sweep.grid import value_label
from tinkersmith.sweep.ranking import Ranking
from tinkersmith.sweep.record import Sweep

TABLE_FILE = "sweep.csv"


def write_sweep_table(sweep: Sweep, ranking: Ranking) -> Path:
    """Write the table into the sweep's folder.

    Raises:
        OSError: it cannot be written.
    """
    path = sweep.folder / TABLE_FILE
    write_atomically(path, _rows(sweep, ranking))
    return path


def _rows(sweep: Sweep, ranking: Ranking) -> Iterator[bytes]:
    places = {row.combination: place for place, row in enumerate(ranking.rows, start=1)}
    ranked = {row.combination: row for row in ranking.rows}
    names = list(sweep.grid)
    header = ["place", *names, "SEED", "status", "steps", "total_steps", sweep.by]
    header += ["mean", "low", "high", "n", "difference", "difference_low", "difference_high"]
    header += ["p_value_holm", "seconds", "run", "reason"]
    yield (CSV_BOM + csv_row(header)).encode("utf-8", "backslashreplace")
    order = sorted(
        sweep.runs, key=lambda run: (places.get(run.combination, len(places) + 1), run.number)
    )
    for run in order:
        row = ranked.get(run.combination)
        difference = row.difference if row else None
        values = sweep.combinations[run.combination].values
        cells: list[object] = [places.get(run.combination, "")]
        cells += [value_label(values[name]) for name in names]
        cells += [run.seed, run.status, run.steps_done, run.total_steps]
        cells.append(run.rung_values[-1] if run.rung_values else "")
        cells += [row.mean, row.low, row.high, row.n] if row else [""] * 4
        cells += (
            [difference.mean, difference.low, difference.high, difference.p_holm]
            if difference
            else [""] * 4
        )
        cells += [run.seconds, run.folder, run.reason]
        yield csv_row(["" if cell is None else cell for cell in cells]).encode(
            "utf-8", "backslashreplace"
        )
