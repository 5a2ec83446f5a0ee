"""Runs that are stopped halfway, and that go on to the same losses to the last bit."""

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.environment import without_cloud
from tests.support.paths import ROOT
from tests.support.processes import PATIENCE, eventually, is_gone
from tests.support.sample_files import records, write
from tests.support.tiny_models import make_tiny_model
from tinkersmith.fingerprint import base_fingerprint
from tinkersmith.runs.folder import RunFolder, newest_run
from tinkersmith.runs.lock import LOCK_FILE

pytestmark = pytest.mark.engine

RUNS = "[!.]*"  # a folder that is still being made has a name with a dot


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def _no_cloud() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        patch.setenv("OMP_NUM_THREADS", "2")
        yield


@dataclass
class Interrupted:
    """`train_with_config.py` as a process of its own, on enough data to be stopped in time."""

    process: subprocess.Popen
    folder: Path

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self) -> RunFolder:
        (settings,) = self.runs.glob(f"{RUNS}/settings.json")
        return RunFolder(settings.parent)

    def wait_for(self, file: str, lines: int) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return any(
                len(path.read_bytes().splitlines()) >= lines
                for path in self.runs.glob(f"{RUNS}/{file}")
            )

        assert eventually(there), "the run did not get that far"

    def engine(self) -> int:
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.process.pid)],
            capture_output=True,
            text=True,
        ).stdout
        (pid,) = [int(x.split()[0]) for x in listed.splitlines() if "tinkersmith.engine" in x]
        return pid


def command(folder: Path, model: Path, *more: str) -> list[str]:
    config = folder / "config.py"
    if not config.exists():
        data = write(folder / "data.json", records(40, seed=3))
        config.write_text(
            f"DATA_FILES = [{str(data)!r}]\nBASE_MODEL = {str(model)!r}\n"
            f"OUTPUT_DIR = {str(folder / 'runs')!r}\nVALIDATION_RATIO = 0.1\n"
            "NUM_EPOCHS = 2\nBATCH_SIZE = 2\nLORA_RANK = 4\nLEARNING_RATE = 0.01\n"
            "SAVE_EVERY = 5\nSAMPLING_MAX_TOKENS = 4\nEXPORT_AFTER_TRAINING = 'no'\n"
        )
    return [sys.executable, str(ROOT / "train_with_config.py"), "--config", str(config), *more]


@contextlib.contextmanager
def training(folder: Path, model: Path, *more: str) -> Iterator[Interrupted]:
    process = subprocess.Popen(
        command(folder, model, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield Interrupted(process, folder)
    finally:
        process.kill()
        process.communicate()


def resume(folder: Path, model: Path, run: str, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(folder, model, "--resume", run, *more),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def process_list() -> str:
    return subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True).stdout


def curve(run: RunFolder) -> list[dict[str, Any]]:
    """All that was measured, without the times."""
    timed = ("tokens_per_second", "seconds")
    return [
        {name: value for name, value in line.items() if name not in timed}
        for line in run.lines("metrics.jsonl")
    ]


def sample_losses(run: RunFolder) -> list[Any]:
    """The losses of samples, and the ranking that is made of them, without names of files."""
    lines = [
        (line["step"], list(line["losses"].values())) for line in run.lines("sample_losses.jsonl")
    ]
    ranked = [{**line, "file": ""} for line in run.lines("hard_samples.jsonl")]
    return [*lines, *ranked]


@pytest.fixture(scope="module")
def uninterrupted_run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> RunFolder:
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = subprocess.run(command(folder, model), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return newest_run(folder / "runs")


@pytest.fixture(scope="module")
def uninterrupted(uninterrupted_run: RunFolder) -> list[dict[str, Any]]:
    return curve(uninterrupted_run)


def test_a_killed_run_goes_on_to_the_same_losses_to_the_last_bit(
    tmp_path: Path,
    model: Path,
    uninterrupted: list[dict[str, Any]],
    uninterrupted_run: RunFolder,
) -> None:
    with training(tmp_path, model) as started:
        started.wait_for("settings.json", 1)
        engine = started.engine()
        started.wait_for("checkpoints.jsonl", 1)
        started.process.kill()
        assert eventually(lambda: is_gone(engine)), "the engine outlived the recipe"
    run = started.run()
    assert len(run.lines("metrics.jsonl")) < len(uninterrupted)
    done = resume(tmp_path, model, run.name)
    assert done.returncode == 0, done.stderr
    assert curve(run) == uninterrupted
    assert sample_losses(run) == sample_losses(uninterrupted_run)
    assert run.lines("hard_samples.jsonl")
    sent = uninterrupted_run.file("requests.jsonl").read_bytes()
    assert sent and run.file("requests.jsonl").read_bytes() == sent


def test_a_signal_saves_and_the_run_goes_on_to_the_same_losses(
    tmp_path: Path,
    model: Path,
    uninterrupted: list[dict[str, Any]],
    uninterrupted_run: RunFolder,
) -> None:
    """The uninterrupted run saves every five steps, this one when it is stopped: losses agree."""
    with training(tmp_path, model, "--set", "SAVE_EVERY=0") as started:
        started.wait_for("settings.json", 1)
        engine = started.engine()
        started.wait_for("metrics.jsonl", 4)
        started.process.send_signal(signal.SIGTERM)
        output, errors = started.process.communicate(timeout=PATIENCE)
    assert started.process.returncode == 143, errors
    run = started.run()
    assert eventually(lambda: is_gone(engine))
    log = run.file("train.log").read_text()
    for text in (output, log):
        assert "Stopping: step" in text and "Stopped. Continue with: " in text
    measured = run.lines("metrics.jsonl")
    assert len(measured) < len(uninterrupted)
    last = run.checkpoints()[-1]
    assert last.step == measured[-1]["step"] and f"Step {last.step:,} is saved." in log
    assert not run.file(LOCK_FILE).exists()
    done = resume(tmp_path, model, run.name)
    assert done.returncode == 0, done.stderr
    assert curve(run) == uninterrupted
    assert sample_losses(run) == sample_losses(uninterrupted_run)
    assert not list(run.path.glob("*before-resume*")), "something was done twice"


@pytest.mark.parametrize("said", ["Settings", "Read 40 samples", "creating a LoRA"])
def test_a_signal_before_the_first_step_ends_it_and_leaves_no_run(
    tmp_path: Path, model: Path, said: str
) -> None:
    process = subprocess.Popen(
        command(tmp_path, model),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=os.setsid,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if said in line:
                break
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 143
        assert "Stopped. " in rest and "Traceback" not in errors
        runs = tmp_path / "runs"
        assert [path.name for path in runs.glob("*") if path.name != ".engine"] == []
        assert eventually(lambda: str(runs) not in process_list()), "the engine outlived it"
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_goes_away_is_no_full_disk_and_the_run_is_saved(
    tmp_path: Path, model: Path
) -> None:
    with training(tmp_path, model, "--set", "NUM_EPOCHS=500") as started:
        started.wait_for("metrics.jsonl", 4)
        assert started.process.stdout is not None
        started.process.stdout.close()
        assert started.process.stderr is not None
        errors = started.process.stderr.read()
        assert started.process.wait(timeout=PATIENCE) == 1
    assert errors == ""
    run = started.run()
    assert run.checkpoints()[-1].step == run.lines("metrics.jsonl")[-1]["step"]
    assert "nobody reads the output any more. Continue with: " in run.file("train.log").read_text()


@pytest.mark.long
def test_another_base_model_is_refused_and_an_edited_setting_is_said(
    tmp_path: Path, model: Path
) -> None:
    base = Path(shutil.copytree(model, tmp_path / "base"))
    with training(tmp_path, base, "--set", "SAVE_EVERY=0") as started:
        started.wait_for("metrics.jsonl", 2)
        started.process.send_signal(signal.SIGINT)
        started.process.communicate(timeout=PATIENCE)
    assert started.process.returncode == 130
    run = started.run()
    make_tiny_model(base, seed=1)
    config = tmp_path / "config.py"
    config.write_text(config.read_text() + "BATCH_SIZE = 3\n")
    refused = resume(tmp_path, base, run.name)
    assert refused.returncode == 1
    assert "the weights of the base model changed" in refused.stderr
    assert "--allow-changes" in refused.stderr
    assert "BATCH_SIZE (3; the run has 2)" in refused.stdout
    insisted = resume(tmp_path, base, run.name, "--allow-changes")
    assert insisted.returncode == 0, insisted.stderr
    changed = "Changed, and allowed by --allow-changes: the weights of the base model changed."
    assert changed in insisted.stdout
    assert run.facts()["base_fingerprint"] == base_fingerprint(base)


@pytest.mark.long
def test_a_damaged_checkpoint_offers_the_one_before_it_which_goes_on_to_the_same_losses(
    tmp_path: Path, model: Path, uninterrupted: list[dict[str, Any]]
) -> None:
    with training(tmp_path, model) as started:
        started.wait_for("metrics.jsonl", 12)
        started.process.send_signal(signal.SIGTERM)
        started.process.communicate(timeout=PATIENCE)
    run = started.run()
    saved = run.checkpoints()
    run_id, kind, name = saved[-1].state_path.removeprefix("tinker://").split("/")
    stored = tmp_path / "runs" / ".engine" / "checkpoints"
    (state,) = stored.glob(f"{run_id.replace(':', '_')}/{kind}/{name}*/optimizer.safetensors")
    content = bytearray(state.read_bytes())
    content[-3] ^= 1
    state.write_bytes(content)
    refused = resume(tmp_path, model, run.name)
    assert refused.returncode == 1
    assert "optimizer.safetensors" in refused.stderr and "damaged" in refused.stderr
    offered = f"--resume {run.path} --from {saved[-2].name}"
    assert refused.stderr.strip().endswith(offered)
    done = subprocess.run(
        [*command(tmp_path, model), *offered.split()],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert curve(run) == uninterrupted
    assert "Set aside: 1 checkpoint in checkpoints.before-resume-1.jsonl" in done.stdout
    assert run.lines("metrics.before-resume-1.jsonl")[-1]["step"] == saved[-1].step


def test_a_second_process_is_refused_and_two_ctrl_c_end_the_first_without_a_traceback(
    tmp_path: Path, model: Path
) -> None:
    epochs = 1000
    with training(tmp_path, model, "--set", f"NUM_EPOCHS={epochs}") as started:
        started.wait_for("metrics.jsonl", 6)
        engine, name = started.engine(), started.run().name
        second = resume(tmp_path, model, name)
        assert second.returncode == 1
        assert f"{name} is in use by process {started.process.pid} on" in second.stderr
        started.process.send_signal(signal.SIGINT)
        time.sleep(0.05)
        started.process.send_signal(signal.SIGINT)
        _, errors = started.process.communicate(timeout=PATIENCE)
    assert started.process.returncode not in (0, 1)
    assert "Traceback" not in errors, errors
    assert eventually(lambda: is_gone(engine))
    ended = [line for line in started.run().lines("metrics.jsonl") if "epoch_loss" in line]
    assert len(ended) < epochs, "it went on to the end"


@pytest.mark.long
def test_output_on_a_full_disk_does_not_end_the_run(tmp_path: Path, model: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            command(tmp_path, model, "--set", "NUM_EPOCHS=1"),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
        )
    assert ended.returncode == 0
    assert ended.stderr.startswith("The output cannot be written (No space left on device).")
    assert ended.stderr.count("\n") == 1
    log = newest_run(tmp_path / "runs").file("train.log").read_text()
    assert "Settings" in log and "Epoch 1/1" in log


def test_a_full_disk_is_a_sentence(tmp_path: Path, model: Path) -> None:
    """A limit on file sizes stands in: the engine cannot write its weights."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    ended = subprocess.run(
        command(tmp_path, model),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=limit,
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: "), ended.stderr
    assert "Traceback" not in ended.stderr
