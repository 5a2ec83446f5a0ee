"""benchmarks/gpu: its runner, with blocks that fail in every way, and each of its blocks on a CPU.

The processes of the runner's tests import this module, so what imports torch stands in the tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import ROOT, runner
from benchmarks.gpu.runner import NO_TIME, Block, Figures, Outcome, Wrong, run
from tests.support.processes import PATIENCE, eventually

pytestmark = pytest.mark.slow

# ---- blocks that processes of their own work through


def good(value: int) -> Iterator[Figures]:
    yield {"value": value}


def raises() -> Iterator[Figures]:
    yield {"value": 1}
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore about it")


def is_wrong() -> Iterator[Figures]:
    yield {"value": 2}
    raise Wrong("gradients are off")


def exits() -> Iterator[Figures]:
    yield {}
    print("the last line", file=sys.stderr)
    os._exit(3)


def is_killed() -> Iterator[Figures]:
    yield {}
    os.kill(os.getpid(), signal.SIGKILL)


def hangs() -> Iterator[Figures]:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"child": child.pid}
    time.sleep(600)


def reads(path: str) -> Iterator[Figures]:
    """The names of the blocks in a results file, while this block runs."""
    yield {"names": [block["name"] for block in json.loads(Path(path).read_text())["blocks"]]}


def meets(own: str, other: str) -> Iterator[Figures]:
    """Says whether another block runs at the same time."""
    Path(own).touch()
    eventually(Path(other).exists)
    yield {"met": Path(other).exists(), "end": time.monotonic()}


def says_when() -> Iterator[Figures]:
    yield {"start": time.monotonic()}


def block_of(work: Any, limit: float = 2 * PATIENCE, **arguments: Any) -> Block:
    return Block(work.__name__, "correctness", work, arguments, limit)


def in_time() -> float:
    return time.monotonic() + 100 * PATIENCE


# ---- the runner


def test_a_block_that_breaks_costs_itself_alone() -> None:
    blocks = [
        block_of(raises),
        block_of(is_wrong),
        block_of(exits),
        block_of(is_killed),
        block_of(hangs, limit=6),
        Block("absent", "correctness", good, why_not="vllm is not installed"),
        block_of(good, value=7),
    ]
    outcomes = {outcome.block.name: outcome for outcome in run(blocks, in_time())}
    assert {name: (outcome.status, outcome.reason) for name, outcome in outcomes.items()} == {
        "raises": (
            "failed",
            "RuntimeError: CUDA error: an illegal memory access was encountered",
        ),
        "is_wrong": ("wrong", "gradients are off"),
        "exits": ("failed", "exit status 3: the last line"),
        "is_killed": ("failed", "signal SIGKILL"),
        "hangs": ("failed", "no end within 6 s"),
        "absent": ("not run", "vllm is not installed"),
        "good": ("ok", ""),
    }
    assert outcomes["good"].figures == {"value": 7}
    assert outcomes["raises"].figures == {"value": 1}, "what it had found before is kept"
    assert "Traceback" in outcomes["raises"].log and "more about it" in outcomes["raises"].log
    child = outcomes["hangs"].figures.get("child")  # on a very slow machine there is none yet
    assert child is None or not is_running(child), "its own processes are ended, too"


def is_running(pid: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_a_block_that_cannot_be_imported_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Block("broken", "correctness", good, {"value": 1})
    monkeypatch.setattr(good, "__module__", "tests.no_such_module")
    [outcome] = run([broken], in_time())
    assert outcome.status == "failed"
    assert "No module named 'tests.no_such_module'" in outcome.reason


def test_what_no_longer_fits_is_not_run_and_what_is_shorter_is() -> None:
    blocks = [block_of(good, limit=10_000, value=1), block_of(good, limit=1000, value=2)]
    long, short = run(blocks, time.monotonic() + 1000)
    assert (long.status, long.reason) == ("not run", NO_TIME)
    assert (short.status, short.figures) == ("ok", {"value": 2})


def test_the_deadline_ends_a_block_before_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_is_time_for", lambda block, deadline: True)
    [outcome] = run([block_of(hangs, limit=1000)], time.monotonic() + 2)
    assert outcome.status == "failed" and outcome.reason.startswith("no end within ")
    assert int(outcome.reason.split()[3]) <= 2


def test_blocks_run_in_turn_unless_all_may_run_side_by_side(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("first", "second")]
    beside = [
        replace(block_of(meets, own=own, other=other), side_by_side=True)
        for own, other in (files, files[::-1])
    ]
    *pair, alone = run([*beside, block_of(says_when)], in_time(), at_once=2)
    assert all(outcome.figures["met"] for outcome in pair)
    assert alone.figures["start"] >= max(outcome.figures["end"] for outcome in pair)


def test_a_row_is_printed_and_the_results_are_written_as_each_block_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "gpu.json"
    blocks = [block_of(is_wrong), block_of(reads, path=str(out)), block_of(raises)]
    blocks = [replace(block, kind="training") for block in blocks]  # their figures need no form
    earlier = Outcome(Block("environment", "environment", good), "ok")
    outcomes = command.show(blocks, in_time(), out, "the command", earlier=[earlier])
    assert outcomes[1].figures["names"] == ["environment", "is_wrong"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[:2] for row in rows] == [
        ["is_wrong", "wrong"],
        ["reads", "ok"],
        ["raises", "failed"],
    ]
    written = json.loads(out.read_text())
    assert written["command"] == "the command"
    assert [block["status"] for block in written["blocks"]] == ["ok", "wrong", "ok", "failed"]
    assert "Traceback" in written["blocks"][-1]["log"]


# ---- the command


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_the_quick_command_prints_a_table_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    only = ["tiles", "varlen", "training: qwen3-8b, tinkersmith"]
    done = start("--quick", "--out", str(out), "--only", *only)
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["block", "result", "s", "figures"]
    assert rows[0].startswith("environment") and " ok " in rows[0]
    assert str(out) in rows[-1]
    blocks = {block["name"]: block for block in json.loads(out.read_text())["blocks"]}
    assert blocks["correctness: tiles"]["figures"]["float32"]["gradients"] < 1e-4
    assert blocks["training: Qwen3-8B, tinkersmith"]["figures"]["tokens a second"] > 0
    if blocks["environment"]["figures"]["device"] == "cpu":
        assert blocks["correctness: varlen"]["reason"] == "needs a GPU"


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert command.main(["--out", str(tmp_path / "gpu.json")]) == 1
    assert capsys.readouterr().err.splitlines() == [command.NO_GPU]


def test_a_package_that_it_needs_and_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED", ("torch", "no_such_package"))
    assert command.main(["--quick"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: benchmarks.gpu needs no_such_package, which ")
    assert len(message.splitlines()) == 1


def test_neither_the_sdk_nor_a_server_is_imported() -> None:
    """The machine with the GPU has torch, transformers and peft, and may have nothing else."""
    code = (
        "import sys, benchmarks.gpu.blocks, benchmarks.gpu.report\n"
        "absent = {'tinker', 'orjson', 'starlette', 'uvicorn', 'peft', 'trl', 'datasets', 'vllm'}\n"
        "sys.exit(f'imported: {absent & set(sys.modules)}' if absent & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# ---- the blocks


def cpu_blocks() -> list[Block]:
    from benchmarks.gpu.blocks import all_blocks

    return [block for block in all_blocks("cpu", (), quick=True) if not block.why_not]


def last_of(all_figures: Iterator[Figures]) -> Figures:
    *_, figures = all_figures
    return figures


def test_every_path_that_a_cpu_has_is_right_there() -> None:
    blocks = [block for block in cpu_blocks() if block.kind == "correctness"]
    assert len(blocks) >= 9
    for block in blocks:
        assert last_of(block.work(**block.arguments)), block.name  # or Wrong is raised


def test_float8_is_compared_with_what_is_rounded_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where the engine refuses it: torch computes the same products, slowly."""
    from benchmarks.gpu import correctness, paths
    from tinkersmith.engine.runtime.experimental import Experimental

    monkeypatch.setattr(Experimental, "check", lambda option, device: None)
    monkeypatch.setattr(correctness, "DOCUMENTS", (60, 1, 20))
    figures = last_of(correctness.float8_training("cpu"))
    assert figures["float8, rounded"]["gradients"] < 0.85 * figures["float8"]["gradients"]
    monkeypatch.setitem(paths.PATHS, paths.FLOAT8, skewed(paths.PATHS[paths.FLOAT8], 2))
    with pytest.raises(Wrong, match=r"float8: .* off by"):
        list(correctness.float8_training("cpu"))


def test_all_contestants_begin_with_one_model_and_one_loss_and_learn() -> None:
    from benchmarks.gpu.models import TINY

    blocks = [block for block in cpu_blocks() if block.kind == "training"]
    results = {
        block.name: (block.arguments["shape"], last_of(block.work(**block.arguments)))
        for block in blocks
    }
    for shape in TINY.values():
        losses = {
            name: figures["loss of the first step"]
            for name, (its_shape, figures) in results.items()
            if its_shape == shape
        }
        assert len(losses) >= 2
        assert list(losses.values()) == pytest.approx(
            [min(losses.values())] * len(losses), rel=0.01
        )
    for name, (_, figures) in results.items():
        assert figures["loss of the last step"] < figures["loss of the first step"], name
        assert figures["tokens a second"] > 0, name


def test_every_contestant_samples_as_many_tokens_as_were_asked_for() -> None:
    blocks = [block for block in cpu_blocks() if block.kind == "sampling"]
    assert {block.arguments["what"] for block in blocks} >= {"tinkersmith", "generate"}
    for block in blocks:
        figures = last_of(block.work(**block.arguments))  # another number is an error
        assert figures["tokens a second"] == pytest.approx(
            figures["prompts"] * figures["new tokens a prompt"] / figures["seconds"]
        )


def skewed(path: Callable[[Any], Any], factor: float) -> Callable[[Any], Any]:
    """The same path, but its attention weighs the scores `factor` times as much."""

    def take(base: Any) -> Any:
        base = path(base)
        return replace(base, dense=replace(base.dense, scale=factor * base.dense.scale))

    return take


def test_a_path_that_computes_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import correctness, paths

    monkeypatch.setitem(paths.PATHS, paths.TILES, skewed(paths.PATHS[paths.TILES], 1.1))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(Wrong, match=rf"{dtype}: .* off by .*, limit"):
            list(correctness.training("qwen3", paths.TILES, "cpu", [dtype]))


def test_a_sampler_that_reports_other_probabilities_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from benchmarks.gpu import correctness

    right = correctness.sample

    def shifted(*arguments: Any) -> Any:
        results = right(*arguments)
        for result in results:
            result.sequences[0].logprobs = [value + 0.01 for value in result.sequences[0].logprobs]
        return results

    monkeypatch.setattr(correctness, "sample", shifted)
    with pytest.raises(Wrong, match="float32: log-probabilities off by"):
        list(correctness.sampling("qwen3", "cpu", ["float32"]))


@pytest.mark.parametrize("path", ["graphs", "float8"])
def test_a_path_that_the_engine_refuses_here_is_no_measurement(path: str) -> None:
    import torch

    from benchmarks.gpu.models import moved, tiny_model
    from benchmarks.gpu.paths import base_on
    from tinkersmith.engine.errors import Refused

    model = moved(tiny_model("qwen3", torch.float32), "cpu", torch.float32)
    with pytest.raises(Refused, match="needs a GPU"):
        base_on(path, model)


def test_documents_that_do_not_fit_into_memory_are_halved_until_they_do() -> None:
    import torch

    from benchmarks.gpu.training import Contestant, _first_step

    weight = torch.nn.Parameter(torch.zeros(2))
    tried = []

    def step(samples: list[Any]) -> float:
        tried.append([len(tokens) - 1 for tokens, _ in samples])
        assert weight.grad is None, "half a step's gradients were left"
        weight.grad = torch.ones(2)
        if tried[-1][0] > 1100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.5

    contestant = Contestant(step, [weight], "a test's")
    samples, (seconds, loss), lengths = _first_step(contestant, [[1024, 3072]] * 2, 100, "cpu")
    assert tried == [[4096] * 2, [2048] * 2, [1024] * 2]
    assert lengths == [[256, 768]] * 2 and len(samples) == 2 and loss == 1.5 and seconds > 0


@pytest.mark.parametrize("shape", ["Qwen3-8B", "Qwen3-30B-A3B"])
def test_the_loss_that_ligers_kernels_replace_is_that_of_the_plain_loop(shape: str) -> None:
    from benchmarks.gpu.models import TINY, TINY_VOCABULARY, shaped_model
    from benchmarks.training_data import random_samples
    from benchmarks.training_worker import own_loss, plain_loss

    model = shaped_model(TINY[shape], TINY_VOCABULARY, "cpu", "sdpa").float()
    samples = random_samples([[10, 40], [3, 21]], TINY_VOCABULARY)
    ours, plain = own_loss(model, samples), plain_loss(model, samples)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_report_compares_peers_with_ours_on_the_same_shape() -> None:
    from benchmarks.gpu import training
    from benchmarks.gpu.models import SHAPES
    from benchmarks.gpu.report import comparisons

    def outcome(shape: str, what: str, speed: float, loss: float, length: int = 4096) -> Outcome:
        figures = {
            "tokens a second": speed,
            "loss of the first step": loss,
            "documents": [[0, length]],
        }
        arguments = {"what": what, "shape": SHAPES[shape]}
        block = Block(f"training: {shape}, {what}", "training", training.speed, arguments)
        return Outcome(block, "ok", figures=figures)

    lines = comparisons(
        [
            outcome("Qwen3-8B", training.OURS, 12_000, 12.0),
            outcome("Qwen3-8B", training.PLAIN, 8_000, 12.06),
            outcome("Qwen3-8B", training.LIGER, 6_000, 12.0, length=2048),
            outcome("Qwen3-0.6B", training.PLAIN, 1_000, 12.0),
        ]
    )
    assert lines == [
        "training: Qwen3-8B, tinkersmith is 1.50 times as fast as plain; "
        "first losses differ by 0.50%",
        "training: Qwen3-8B, tinkersmith is 2.00 times as fast as plain, Liger kernels, "
        "with documents of another length",
    ]
