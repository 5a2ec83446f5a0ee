"""benchmarks/gpu: its runner, with blocks that fail in every way, and each of its blocks on a CPU.

The processes of the runner's tests import this module, so what imports torch stands in the tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import benchmarks.gpu.__main__ as command
from benchmarks.gpu import ROOT
from benchmarks.gpu.runner import NO_TIME, Block, Figures, Outcome, Wrong, run

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
    patience = time.monotonic() + 60
    while not Path(other).exists() and time.monotonic() < patience:
        time.sleep(0.05)
    yield {"met": Path(other).exists(), "end": time.monotonic()}


def says_when() -> Iterator[Figures]:
    yield {"start": time.monotonic()}


def block(work: Any, limit: float = 120, **arguments: Any) -> Block:
    return Block(work.__name__, "correctness", work, arguments, limit)


def in_time() -> float:
    return time.monotonic() + 600


# ---- the runner


def test_a_block_that_breaks_costs_itself_alone() -> None:
    blocks = [
        block(raises),
        block(is_wrong),
        block(exits),
        block(is_killed),
        block(hangs, limit=6),
        Block("absent", "correctness", good, why_not="vllm is not installed"),
        block(good, value=7),
    ]
    found = {outcome.block.name: outcome for outcome in run(blocks, in_time())}
    assert {name: (outcome.status, outcome.reason) for name, outcome in found.items()} == {
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
    assert found["good"].figures == {"value": 7}
    assert found["raises"].figures == {"value": 1}, "what it had found before is kept"
    assert "Traceback" in found["raises"].log and "more about it" in found["raises"].log
    child = found["hangs"].figures.get("child")  # on a very slow machine there is none yet
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
    blocks = [block(good, limit=1000, value=1), block(good, limit=100, value=2)]
    long, short = run(blocks, time.monotonic() + 100)
    assert (long.status, long.reason) == ("not run", NO_TIME)
    assert (short.status, short.figures) == ("ok", {"value": 2})


def test_the_deadline_ends_a_block_before_its_limit() -> None:
    start = time.monotonic()
    [outcome] = run([block(hangs, limit=12)], start + 10)
    assert outcome.status == "failed" and outcome.reason.startswith("no end within")
    assert outcome.seconds < 12


def test_blocks_run_in_turn_unless_all_may_run_side_by_side(tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("first", "second")]
    beside = [
        replace(block(meets, own=own, other=other), side_by_side=True)
        for own, other in (files, files[::-1])
    ]
    *pair, alone = run([*beside, block(says_when)], in_time(), at_once=2)
    assert all(outcome.figures["met"] for outcome in pair)
    assert alone.figures["start"] >= max(outcome.figures["end"] for outcome in pair)


def test_a_row_is_printed_and_the_results_are_written_as_each_block_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "gpu.json"
    blocks = [block(is_wrong), block(reads, path=str(out)), block(raises)]
    # What "correctness" figures look like in a row is not the matter here.
    blocks = [replace(one, kind="training") for one in blocks]
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
    assert [one["status"] for one in written["blocks"]] == ["ok", "wrong", "ok", "failed"]
    assert "Traceback" in written["blocks"][-1]["log"]


# ---- the command


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_quick_command_prints_a_table_and_writes_what_it_found(tmp_path: Path) -> None:
    out = tmp_path / "quick.json"
    done = start("--quick", "--out", str(out), "--only", "tiles", "varlen", "8b, tinkersmith")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()
    assert head.split() == ["block", "result", "s", "figures"]
    assert rows[0].startswith("environment") and " ok " in rows[0]
    assert str(out) in rows[-1]
    found = {one["name"]: one for one in json.loads(out.read_text())["blocks"]}
    assert found["correctness: tiles"]["figures"]["float32"]["gradients"] < 1e-4
    assert found["training: Qwen3-8B, tinkersmith"]["figures"]["tokens a second"] > 0
    assert found["sampling: Qwen3-8B, tinkersmith"]["figures"]["tokens a second"] > 0
    if found["environment"]["figures"]["device"] == "cpu":
        assert found["correctness: varlen"]["reason"] == "needs a GPU"


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = start("--out", str(tmp_path / "gpu.json"))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == command.NO_GPU


def test_a_package_that_it_needs_and_that_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "NEEDED", ("torch", "no_such_package"))
    assert command.main(["--quick"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: benchmarks.gpu needs no_such_package, which ")
    assert len(said.splitlines()) == 1


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


def last(found: Iterator[Figures]) -> Figures:
    *_, figures = found
    return figures


def test_every_path_that_a_cpu_has_is_right_there() -> None:
    blocks = [block for block in cpu_blocks() if block.kind == "correctness"]
    assert len(blocks) >= 9
    for one in blocks:
        assert last(one.work(**one.arguments)), one.name  # or Wrong is raised


def test_all_contestants_begin_with_one_model_and_one_loss_and_learn() -> None:
    from benchmarks.gpu.models import TINY

    blocks = [block for block in cpu_blocks() if block.kind == "training"]
    found = {one.name: (one.arguments["shape"], last(one.work(**one.arguments))) for one in blocks}
    for shape in TINY.values():
        losses = {
            name: figures["loss of the first step"]
            for name, (its_shape, figures) in found.items()
            if its_shape == shape
        }
        assert len(losses) >= 2
        assert list(losses.values()) == pytest.approx(
            [min(losses.values())] * len(losses), rel=0.01
        )
    for name, (_, figures) in found.items():
        assert figures["loss of the last step"] < figures["loss of the first step"], name
        assert figures["tokens a second"] > 0, name


def test_every_contestant_samples_as_many_tokens_as_were_asked_for() -> None:
    blocks = [block for block in cpu_blocks() if block.kind == "sampling"]
    assert {one.arguments["what"] for one in blocks} >= {"tinkersmith", "generate"}
    for one in blocks:
        figures = last(one.work(**one.arguments))  # another number is an error
        assert figures["tokens a second"] == pytest.approx(
            figures["prompts"] * figures["new tokens a prompt"] / figures["seconds"]
        )


def test_a_path_that_computes_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu import correctness, paths

    def skewed(base: Any) -> Any:
        return replace(base, dense=replace(base.dense, scale=1.1 * base.dense.scale))

    monkeypatch.setitem(paths.PATHS, paths.TILES, skewed)
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


def test_a_path_that_the_engine_does_not_take_here_is_no_measurement() -> None:
    import torch

    from benchmarks.gpu import paths
    from benchmarks.gpu.models import base_of, moved, tiny_model

    base = base_of(moved(tiny_model("qwen3", torch.float32), "cpu", torch.float32))
    with pytest.raises(paths.Unusable):  # CUDA graphs on a CPU
        paths.graphs(base)


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
        one = Block(f"training: {shape}, {what}", "training", training.speed, arguments)
        return Outcome(one, "ok", figures=figures)

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
