"""Build the wheel, install it, and walk from an empty folder to an exported LoRA.

python tools/wheel_journey.py

Needs no network: torch and the other dependencies are those of the environment that runs this
program, but the package itself comes from the wheel alone. Both ways of working are tried side by
side: the command `tinkersmith` and the scripts that `tinkersmith init` writes, the latter called
from another folder. The commands that the programs print are run as printed.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 64  # to train on
PATIENCE = 300  # seconds for one command on a busy machine
SHORT = [f"--set={setting}" for setting in ("NUM_EPOCHS=1", "SAMPLING_MAX_TOKENS=32")]
STARTER = {
    "config.py",
    "split_dataset.py",
    "train_with_config.py",
    "tinker_finetune.py",
    "evaluate_model.py",
    "export_model.py",
}
EXPORT = {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"}


class Failed(Exception):
    """A step of the journey went wrong."""


class Traveller:
    """Runs commands in a folder, with the environment of somebody who has activated the venv."""

    def __init__(self, name: str, folder: Path, venv: Path) -> None:
        self.name, self.folder = name, folder
        folder.mkdir()
        private = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in private and not name.startswith("TINKER")
        }
        self.environment["PATH"] = os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])

    def run(self, command: str) -> str:
        """What `command` prints.

        Raises:
            Failed: it fails, or takes too long.
        """
        begin = time.monotonic()
        done = subprocess.run(
            command,
            shell=True,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        print(f"[{self.name}] {command}  ({time.monotonic() - begin:.1f} s)", flush=True)
        if done.returncode:
            raise Failed(f"{command}\n{done.stdout}{done.stderr}")
        return done.stdout

    def expect(self, true: bool, what: str) -> None:
        if not true:
            raise Failed(f"[{self.name}] {what}")


def main() -> int:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wheel-journey-") as name:
        folder = Path(name).resolve()
        try:
            wheel = build(folder)
            venv = install(wheel, folder)
            with ThreadPoolExecutor(2) as pool:
                journeys = [
                    pool.submit(by_command, Traveller("command", folder / "command", venv)),
                    pool.submit(by_scripts, Traveller("scripts", folder / "scripts", venv)),
                ]
                for journey in journeys:
                    journey.result()
        except (Failed, subprocess.TimeoutExpired) as error:
            print(f"Error: {error}", file=sys.stderr)
            return 1
    print(f"The wheel leads from an empty folder to an export: {time.monotonic() - begin:.0f} s")
    return 0


# ---- building and installing


def build(folder: Path) -> Path:
    """The wheel, built from an unpacked source distribution that holds every file of the project.

    Raises:
        Failed: a file is missing, or the build fails.
    """
    source = folder / "source"
    files = project_files()
    for file in files:
        (source / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, source / file)
    archive = built(source, folder / "dist", "build_sdist")
    with tarfile.open(archive) as packed:
        packed.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    missing = [file for file in files if not (unpacked / file).is_file()]
    if missing:
        raise Failed(f"{archive.name} lacks {', '.join(missing)}: see MANIFEST.in")
    wheel = built(unpacked, folder / "dist", "build_wheel")
    with zipfile.ZipFile(wheel) as packed:
        shipped = set(packed.namelist())
    package = [file.removeprefix("src/") for file in files if file.startswith("src/")]
    if absent := [file for file in package if file not in shipped]:
        raise Failed(f"{wheel.name} lacks {', '.join(absent)}: see package-data in pyproject.toml")
    for file in (archive, wheel):
        print(f"{file.name}  {file.stat().st_size / 1e6:.1f} MB", flush=True)
    return wheel


def project_files() -> list[str]:
    """The files of a checkout that git knows or would add; of an unpacked archive, all of them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and (ROOT / ".git").exists():
        return [file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file()]
    made = {"__pycache__", ".venv", "runs", "exported", "build", "dist"}
    paths = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()]
    return [
        path.as_posix()
        for path in paths
        if not (made & set(path.parts) or any(part.endswith(".egg-info") for part in path.parts))
    ]


def built(source: Path, out: Path, kind: str) -> Path:
    """The file that setuptools builds from `source`: "build_sdist" or "build_wheel"."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.{kind}(sys.argv[1]))"
    out.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(f"{kind} failed:\n{done.stdout}{done.stderr}")
    return out / done.stdout.split()[-1]


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel, which borrows this environment's other packages."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python)),
            *("install", "--quiet", "--no-deps", "--no-index", str(wheel)),
        ],
        check=True,
    )
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    )
    # Python reads no .pth files of a folder that is named in one, so that an editable installation
    # of the project there has no effect.
    borrowed = dict.fromkeys(sysconfig.get_paths()[kind] for kind in ("purelib", "platlib"))
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return venv


# ---- the journeys


def by_command(traveller: Traveller) -> None:
    """`tinkersmith` in the folder of the project."""
    folder, run = traveller.folder, traveller.run
    where = run("python -c 'import tinkersmith; print(tinkersmith.__file__)'").strip()
    venv = traveller.environment["PATH"].split(os.pathsep)[0]
    traveller.expect(where.startswith(str(Path(venv).parent)), f"imported from {where}")
    traveller.expect(run("tinkersmith --version") == run("python -m tinkersmith --version"), "-m")
    run("tinkersmith init")
    run("tinkersmith split")
    few_samples(folder / "data" / "train_set.json", folder / "few.json")
    printed = run(f"tinkersmith train --set DATA_FILES=few.json {' '.join(SHORT)}")
    run(f"tinkersmith evaluate --limit 2 {SHORT[1]}")
    exporting = printed_command(printed, "Export")
    traveller.expect(exporting.startswith("tinkersmith export "), f"printed: {exporting}")
    run(exporting)
    check_project(traveller, folder)


def by_scripts(traveller: Traveller) -> None:
    """The scripts that init writes, called from the folder above the project."""
    folder, run = traveller.folder, traveller.run
    printed = run("tinkersmith init 'my project'")
    next_commands = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    run(" && ".join(next_commands[:2]))  # cd, split
    project = folder / "my project"
    few_samples(project / "data" / "train_set.json", folder / "few.json")
    script = shlex.quote("my project/train_with_config.py")
    printed = run(f"python {script} --set DATA_FILES=few.json {' '.join(SHORT)}")
    run(f"python 'my project/evaluate_model.py' --limit 2 {SHORT[1]}")
    exporting = printed_command(printed, "Export")
    traveller.expect("export_model.py" in exporting, f"printed: {exporting}")
    run(exporting)
    run("python 'my project/tinker_finetune.py' --help")
    check_project(traveller, project)
    present = {path.name for path in folder.iterdir()}
    traveller.expect(present == {"my project", "few.json"}, f"written beside it: {present}")


def few_samples(source: Path, target: Path) -> None:
    samples = json.loads(source.read_text(encoding="utf-8"))[:SAMPLES]
    target.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")


def printed_command(output: str, title: str) -> str:
    """The command on the line that begins with `title`."""
    match = re.search(rf"^{title} +(.+)$", output, re.MULTILINE)
    if match is None:
        raise Failed(f"no line {title!r} in:\n{output}")
    return match[1]


def check_project(traveller: Traveller, project: Path) -> None:
    """Everything is where the documentation says."""
    present = {path.name for path in project.iterdir()}
    wanted = {*STARTER, "data", "runs", "exported", "evaluation_results.json"}
    traveller.expect(wanted <= present, f"missing in the project: {wanted - present}")
    (run,) = [path.parent for path in project.glob("runs/*/settings.json")]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [step["loss"] for step in steps if "loss" in step]
    traveller.expect(len(losses) == SAMPLES // 8, f"{len(losses)} steps")
    results = json.loads((project / "evaluation_results.json").read_text(encoding="utf-8"))
    traveller.expect(bool(results), "no results")
    (exported,) = (project / "exported").iterdir()
    files = {path.name for path in exported.iterdir()}
    traveller.expect(files >= EXPORT, f"missing in the export: {EXPORT - files}")


if __name__ == "__main__":
    sys.exit(main())
