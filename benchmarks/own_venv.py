"""Environments of their own for programs that the benchmarks are compared with."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def own_python(
    folder: Path, packages: Sequence[str], install: Callable[[Path], None] | None = None
) -> Path:
    """The Python of an environment in `folder` that has these packages. It is made once.

    Args:
        install: puts them where the Python that it is given finds them; without it, pip does.
    """
    python, made, wanted = folder / "bin" / "python", folder / ".installed", "\n".join(packages)
    if made.exists() and made.read_text() == wanted:
        return python
    print(f"Installing {', '.join(packages)} into {folder}.", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    if install is None:
        pip_install(python, *packages)
    else:
        install(python)
    made.write_text(wanted)
    return python


def pip_install(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)


def version_of(python: Path, package: str) -> str:
    """The version of a package in that environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.strip()
