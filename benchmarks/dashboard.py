"""How fast the dashboard is with 200 runs, one of them of 100,000 steps.

    python -m benchmarks.dashboard

A server process and a client on loopback. First data: from the request to the first whole message.
Update: from a step's line on disk to the message that holds it; the page is told once a second.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.results_file import write_results

RUNS, STEPS, UPDATES = 200, 100_000, 10


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs"
        for number in range(RUNS):
            make_run(folder / f"run-{number:03}", STEPS if number == 0 else 200)
        long_file = folder / "run-000" / "metrics.jsonl"
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tinkersmith", "dashboard", "--port", "0"),
                *("--set", f"OUTPUT_DIR={folder}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            figures = measured(process, long_file)
        finally:
            process.kill()
            process.wait()
    path = write_results("dashboard", "python -m benchmarks.dashboard", figures)
    for name, value in figures.items():
        print(f"{name:34} {value}")
    print(path)
    return 0


def measured(process: "subprocess.Popen[str]", long_file: Path) -> dict[str, object]:
    assert process.stdout is not None
    address = re.search(r"(http://\S+/)\?key=(\w+)", process.stdout.readline())
    assert address is not None
    base, key = address[1], {"x-api-key": address[2]}
    with httpx.Client(timeout=120, headers=key) as client:
        start = time.perf_counter()
        page = client.get(base)
        page_seconds = time.perf_counter() - start
        start = time.perf_counter()
        size = next(messages(client, f"{base}events"))[1]
        list_seconds = time.perf_counter() - start
        start = time.perf_counter()
        stream = messages(client, f"{base}events?run=run-000")
        first, first_size = next(stream)
        curve_seconds = time.perf_counter() - start
        delays: list[float] = []
        sizes: list[int] = []
        for step in range(STEPS + 1, STEPS + UPDATES + 1):
            with long_file.open("ab") as file:
                file.write(line(step))
            written = time.perf_counter()
            for news, length in stream:
                loss = news.get("shown", {}).get("run-000", {}).get("curves", {}).get("loss")
                if loss and loss["points"][-1][0] == step:
                    delays.append(time.perf_counter() - written)
                    sizes.append(length)
                    break
        before, start = cpu_seconds(process.pid), time.perf_counter()
        for _ in range(10):  # quiet seconds
            time.sleep(1)
        share = (cpu_seconds(process.pid) - before) / (time.perf_counter() - start)
        again = time.perf_counter()
        next(messages(client, f"{base}events?run=run-000"))
        again_seconds = time.perf_counter() - again
    points = len(first["shown"]["run-000"]["curves"]["loss"]["points"])
    return {
        "runs": RUNS,
        "steps_of_the_longest": STEPS,
        "bytes_of_its_metrics": long_file.stat().st_size,
        "page_bytes": len(page.content),
        "page_seconds": round(page_seconds, 3),
        "list_of_runs_bytes": size,
        "list_of_runs_first_seconds": round(list_seconds, 3),
        "curves_points_of_the_loss": points,
        "curves_bytes": first_size,
        "curves_first_seconds": round(curve_seconds, 3),
        "curves_again_seconds": round(again_seconds, 3),
        "update_bytes_median": round(statistics.median(sizes)),
        "update_seconds_median": round(statistics.median(delays), 3),
        "update_seconds_longest": round(max(delays), 3),
        "cpu_share_of_a_core_when_idle": round(share, 3),
        "memory_mb": round(memory_bytes(process.pid) / 1e6),
    }


def messages(client: httpx.Client, url: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Each message, and its bytes."""
    with client.stream("GET", url) as answer:
        answer.raise_for_status()
        for text in answer.iter_lines():
            if text.startswith("data: "):
                yield json.loads(text.removeprefix("data: ")), len(text)


def make_run(folder: Path, steps: int) -> None:
    folder.mkdir(parents=True)
    facts = {
        "settings": {"LEARNING_RATE": 1e-4, "LORA_RANK": 16},
        "prompt_template": {},
        "total_steps": steps,
        "base_model": "tinkersmith/tiny-math",
        "backend": "embedded",
    }
    (folder / "settings.json").write_text(json.dumps(facts))
    (folder / "metrics.jsonl").write_bytes(b"".join(line(step) for step in range(1, steps + 1)))
    (folder / "train.log").write_text("a line\n" * 500)


def line(step: int) -> bytes:
    """A step's line, as a training writes it."""
    numbers = {
        "step": step,
        "epoch": 1 + step // 1000,
        "loss": 2 / step**0.3 + (step * 7919 % 97) / 500,
        "learning_rate": 1e-4,
        "samples": 8,
        "tokens": 1234,
        "completion_tokens": 456,
        "tokens_per_second": 3456.7,
        "seconds": 0.3579,
        "grad_norm": 0.5 + step % 7 / 10,
    }
    return json.dumps(numbers).encode() + b"\n"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
