"""Sampling beside another program: our engine and transformers' `generate` in float32, in turn.

The other program multiplies matrices without a pause on as many threads as there are cores. Each
side is a process of its own that stays; while one samples, the other waits. `generate` has the
threads that torch takes. Our side chooses its threads as the engine does, from what other programs
used in the last two seconds; `generate` has paused as long, for its turn is no other program. Both
know the shapes before they are timed, and the time includes reading the prompts. Every number is
sampled by both sides one right after the other, several times, beside the other program and then on
the machine as it is without it.

`--version NAME` only measures our side, under this name, and keeps the other figures: run it with
PYTHONPATH on another checkout's src to compare two versions.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.results_file import RESULTS, write_results
from benchmarks.training_data import random_model

ROOT = Path(__file__).resolve().parent.parent
OURS, PLAIN = "tinkersmith", "generate"
PROMPTS = (1, 8, 32)
PROMPT_TOKENS = 48
TOKENS = {"bundled": 32, "random Qwen3 of hidden 512, vocabulary 151,936": 8}  # of an answer
WANTED = 1.2  # times plain
BUSY = """
import threading, torch
torch.set_num_threads(1)
def work():
    x = torch.randn(700, 700)
    while True:
        x @ x
for _ in range({threads}):
    threading.Thread(target=work).start()
print("busy", flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy-threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=("bundled", "random"))
    parser.add_argument("--version", default="", help="measure our side only, under this name")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(json.loads(options.worker))
        return
    sides = (OURS,) if options.version else (OURS, PLAIN)
    figures = earlier_figures()
    with tempfile.TemporaryDirectory() as temporary:
        for title, tokens in TOKENS.items():
            kind = title.split()[0]
            if options.models and kind not in options.models:
                continue
            folder = model_folder(kind, Path(temporary))
            speeds: dict[str, Any] = {}
            for place, threads in (("beside", options.busy_threads), ("alone", 0)):
                with ExitStack() as stack:
                    workers = {
                        side: stack.enter_context(worker(side, folder, tokens)) for side in sides
                    }
                    if threads:
                        stack.enter_context(busy_program(threads))
                    speeds[place] = compare(workers, options.rounds)
            if options.version:
                figures.setdefault(title, {})[options.version] = speeds
            else:
                kept = {k: v for k, v in figures.get(title, {}).items() if k not in speeds}
                figures[title] = speeds | kept
            print(json.dumps({title: speeds}, indent=2), flush=True)
            command = f"python -m benchmarks.beside_another --rounds {options.rounds}"
            write_results("beside_another", command, figures)


def earlier_figures() -> dict[str, Any]:
    file = RESULTS / "beside_another.json"
    return json.loads(file.read_text(encoding="utf-8"))["figures"] if file.is_file() else {}


def model_folder(kind: str, temporary: Path) -> Path:
    from tinkersmith.bundled import BUNDLED_MODELS

    if kind == "bundled":
        return BUNDLED_MODELS["tinkersmith/tiny-math"]
    return random_model(temporary, 151936)


def compare(workers: dict[str, "subprocess.Popen[str]"], rounds: int) -> dict[str, Any]:
    """Tokens a second of each side by number of prompts, and how many times plain's ours are."""
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in PROMPTS:
            for side, process in workers.items():
                rates.setdefault((side, count), []).append(ask(process, count))
                print(
                    f"{side:12} {count:3} prompts {rates[side, count][-1]:8.1f} tokens/s",
                    flush=True,
                )
    found: dict[str, Any] = {
        side: {str(count): round(median(rates[side, count]), 1) for count in PROMPTS}
        for side in workers
    }
    if PLAIN in workers:
        found["ours / generate"] = {
            str(count): round(
                median(
                    ours / plain
                    for ours, plain in zip(rates[OURS, count], rates[PLAIN, count], strict=True)
                ),
                2,
            )
            for count in PROMPTS
        }
    return found


@contextmanager
def busy_program(threads: int) -> Iterator[None]:
    command = [sys.executable, "-c", BUSY.format(threads=threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def worker(side: str, folder: Path, tokens: int) -> Iterator["subprocess.Popen[str]"]:
    job = {"side": side, "folder": str(folder), "tokens": tokens}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.beside_another", "--worker", json.dumps(job)],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        for count in PROMPTS:
            ask(process, count)  # it has met every shape of product now
        yield process
    finally:
        process.kill()
        process.wait()


def ask(process: "subprocess.Popen[str]", count: int) -> float:
    """Have a side sample for so many prompts; gives its tokens a second."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{count}\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise SystemExit("A side has ended; its message is above.")
    return float(answer)


# ---- in the processes of the two sides


def work(job: dict[str, Any]) -> None:
    folder, ours = Path(job["folder"]), job["side"] == OURS
    if ours:  # as the engine does at its start
        from tinkersmith.engine.hardware.memory import keep_freed_memory
        from tinkersmith.engine.hardware.threads import (
            READ_USE_EVERY,
            ThreadChoice,
            wait_passively,
        )

        keep_freed_memory()
        wait_passively(os.environ)
        choice = ThreadChoice(0)
    import time

    import torch

    from benchmarks.sampling_worker import generate_answers, our_answers, random_prompts

    lengths = [[PROMPT_TOKENS, job["tokens"]]] * max(PROMPTS)
    prompts = random_prompts(lengths, folder)
    if ours:
        from tinkersmith.engine.runtime.fast_code import TINY_MODEL

        answers = our_answers(folder, "float32")
        stored = (folder / "model.safetensors").stat().st_size // torch.bfloat16.itemsize
        small = stored < TINY_MODEL
    else:
        answers = generate_answers(folder, max(PROMPTS), "float32")
    for line in sys.stdin:
        if ours:
            choice.number(small=small)  # the next look begins here, after the turn of `generate`
            time.sleep(1.1 * READ_USE_EVERY)
            torch.set_num_threads(choice.number(small=small))
        begun = time.perf_counter()
        found = answers(prompts[: int(line)])
        print(sum(map(len, found)) / (time.perf_counter() - begun), flush=True)


if __name__ == "__main__":
    main()
