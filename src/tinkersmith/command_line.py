"""A task -> the command line that does it, in words that work where the user stands.

Messages quote these lines. They name the script beside the one that runs, or the command
`tinkersmith`, and the Python that has this package.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path

SCRIPTS = {
    "split": "split_dataset.py",
    "train": "train_with_config.py",
    "evaluate": "evaluate_model.py",
    "export": "export_model.py",
    "serve": "serve_model.py",
}
_PROGRAMS = {*SCRIPTS.values(), "tinker_finetune.py"}


def command_line(task: str, *arguments: object) -> str:
    """The line that runs `task` ("train", "evaluate", ...) with `arguments`, quoted for a shell."""
    script = _script(task)
    words = [*_tinkersmith(), task] if script is None else [python_command(), str(script)]
    return shlex.join([*words, *map(str, arguments)])


def python_command(folder: Path | str = ".") -> str:
    """What starts this Python from `folder`: "python" where that is it, else the program's path."""
    this = Path(sys.executable or "python")
    for word in ("python", "python3"):
        program = shutil.which(word)
        if program and Path(program).parent == this.parent and Path(program).samefile(this):
            return word
    place = Path(os.path.abspath(folder))
    return str(this.relative_to(place) if this.is_relative_to(place) else this)


def _script(task: str) -> Path | None:
    """The task's script: beside the one that runs, or in the current folder for other programs."""
    program = Path(sys.argv[0])
    is_module = program.name == "__main__.py" and program.parent.name == "tinkersmith"
    if task not in SCRIPTS or program.stem == "tinkersmith" or is_module:
        return None
    script = (program.parent if program.name in _PROGRAMS else Path()) / SCRIPTS[task]
    return script if script.is_file() else None


def _tinkersmith() -> list[str]:
    program = shutil.which("tinkersmith")
    if program and Path(program).parent == Path(sys.executable).parent:
        return ["tinkersmith"]
    return [python_command(), "-m", "tinkersmith"]
