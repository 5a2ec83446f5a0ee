"""Figures -> benchmarks/results/<name>.json, with the machine and versions behind them."""

import datetime as dt
import os
import platform
from importlib.metadata import version
from pathlib import Path

from tinkersmith.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "transformers", "peft", "tinker", "tokenizers", "numpy")


def write_results(
    name: str, command: str, figures: dict[str, object], *, packages: tuple[str, ...] = ()
) -> Path:
    """Write `figures` beside the command that made them; returns the file's path.

    `packages` are those whose versions matter besides the project's own.
    """
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "command": command,
            "date": dt.date.today().isoformat(),
            "machine": {
                "processor": _processor(),
                "cores_used": len(os.sched_getaffinity(0)),
                "system": f"{platform.system()} {platform.machine()}",
                "python": platform.python_version(),
            },
            "versions": {package: version(package) for package in PACKAGES + packages},
            "figures": figures,
        },
    )
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
