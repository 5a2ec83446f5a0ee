"""Options for code that has never run on a GPU: refused where they would have no effect."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.fork_server import ENGINE, Popen
from tests.support.processes import PATIENCE
from tinkersmith.engine.__main__ import main
from tinkersmith.engine.errors import Refused
from tinkersmith.engine.gpu import float8, vllm_sampler
from tinkersmith.engine.runtime.experimental import NOTHING, Experimental
from tinkersmith.engine.sampling.sampler import OwnSampler

pytestmark = pytest.mark.engine

GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--dtype", "float8"], "--dtype float8 needs a GPU; on a CPU use --dtype bfloat16."),
        (["--gpu-graphs"], "--gpu-graphs needs a GPU; on a CPU leave it out."),
        (["--sampler", "vllm"], "--sampler vllm needs a GPU; on a CPU leave it out."),
    ],
)
def test_the_engine_does_not_start_without_a_gpu(
    options: list[str], wanted: str, tmp_path: Path
) -> None:
    said = tmp_path / "stderr"
    command = [sys.executable, *ENGINE, *options, "--port", "0", "--dir", str(tmp_path / "engine")]
    with said.open("wb") as stderr:
        process = Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, stderr=stderr)
    assert process.wait(PATIENCE) == 1
    assert said.read_text().strip() == f"Error: {wanted}"


def test_vllm_and_float8_do_not_go_together() -> None:
    with pytest.raises(Refused, match="cannot be used with --dtype float8; leave one of them out"):
        Experimental(vllm=True, float8=True).check(GPU)


def test_each_option_checks_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[object] = []
    monkeypatch.setattr(float8, "check_device", checked.append)
    monkeypatch.setattr(vllm_sampler, "check_installed", lambda: checked.append("vllm"))
    for asked in (NOTHING, Experimental(float8=True), Experimental(vllm=True, graphs=True)):
        asked.check(GPU)
    assert checked == [GPU, "vllm"]


def test_nothing_of_it_is_used_unless_asked_for() -> None:
    assert Experimental(float8=False, graphs=False, vllm=False) == NOTHING
    assert NOTHING.storage() is None
    assert isinstance(NOTHING.sampler(), OwnSampler)
    program = (
        "import sys, tinkersmith.engine.runtime.clients;"
        "sys.exit(any(name.startswith('tinkersmith.engine.gpu') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=PATIENCE).returncode == 0


def test_help_calls_each_option_experimental(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for option in ("--dtype", "--gpu-graphs", "--sampler"):
        described = text[text.rindex(f" {option} ") :].split(" --", 2)[1]
        assert "(experimental)" in described, option
