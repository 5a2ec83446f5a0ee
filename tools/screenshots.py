"""Pages of real runs -> docs/images/*.png, by Chromium: python tools/screenshots.py [NAME ...].

Each page is a context manager that makes it in a new project folder, with the bundled model.
Commands run in that folder and get relative paths: no path of this machine is on a picture.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tests.support
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 250_000  # of a picture
SAMPLES, QUESTIONS = 640, 100  # for training and for evaluation
SCORED = (
    *("--set", 'EVAL_FILES=["data/test_set.json"]', "--set", "EVAL_LIMIT=20"),
    *("--set", "EVAL_EVERY=40", "--set", "SAMPLING_TEMPERATURE=0"),
)
PATIENCE = 300  # seconds until a server or a running training has something to show

Show = Callable[["Page"], None]  # brings a page to what its picture shows


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TINKER_")}
    path = f"{Path(sys.executable).parent.resolve()}{os.pathsep}{os.environ['PATH']}"
    return kept | {"PYTHONPATH": str(ROOT / "src"), "PATH": path, "LANG": "en_US.UTF-8"}


def tinkersmith(folder: Path, *words: str) -> None:
    subprocess.run(
        ["tinkersmith", *words], cwd=folder, env=environment(), check=True, stdin=subprocess.DEVNULL
    )


@contextmanager
def started(folder: Path, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that goes on while its page is shown."""
    with subprocess.Popen(
        ["tinkersmith", *words],
        cwd=folder,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def address_in(process: "subprocess.Popen[str]") -> str:
    """The first address that a server prints."""
    assert process.stdout is not None
    printed = ""
    for line in process.stdout:
        printed += line
        if found := re.search(r"http://127\.0\.0\.1:\d+\S*", line):
            return found[0].rstrip(".,")
    raise RuntimeError(f"The server printed no address:\n{printed}")


def as_opened(page: "Page") -> None:
    """Show what a reader sees first."""
    page.wait_for_timeout(300)


def train(folder: Path, name: str, *words: str) -> Path:
    tinkersmith(
        folder,
        "train",
        "--set",
        "EXPORT_AFTER_TRAINING=no",
        "--set",
        f"MODEL_NAME_PREFIX={name}",
        *words,
    )
    return next((folder / "runs").glob(f"{name}-*"))


@contextmanager
def preview(folder: Path) -> Iterator[tuple[str | Path, Show]]:
    tinkersmith(folder, "preview", "data/train_set.json", "--html", "preview.html")

    def show(page: "Page") -> None:
        page.locator("#samples .t.trained").nth(4).hover()  # what is known of a token
        page.evaluate("scrollTo(0, 0)")

    yield folder / "preview.html", show


@contextmanager
def report(folder: Path) -> Iterator[tuple[str | Path, Show]]:
    run = train(folder, "word-problems", "--set", "VALIDATION_RATIO=0.1", *SCORED)
    tinkersmith(folder, "evaluate", "--compare-base", "--set", "SAMPLING_TEMPERATURE=0")
    yield run / "report.html", as_opened


@contextmanager
def sweep(folder: Path) -> Iterator[tuple[str | Path, Show]]:
    grid = ["LEARNING_RATE=1e-3,5e-3,2e-2", "LORA_RANK=4,16"]
    few = ["--set", "DATA_FILES=data/few.json", "--set", "VALIDATION_RATIO=0.2"]
    tinkersmith(folder, "sweep", "--name", "rates", "--grid", *grid, *few, "--set", "EVAL_EVERY=8")
    yield next(folder.rglob("sweep.html")), as_opened


@contextmanager
def dashboard(folder: Path) -> Iterator[tuple[str | Path, Show]]:
    few = ["--set", "DATA_FILES=data/few.json", "--set", "VALIDATION_RATIO=0.2"]
    finished = train(folder, "low-rate", *few, *SCORED, "--set", "LEARNING_RATE=1e-3")
    with (
        started(
            folder,
            *("train", "--set", "EXPORT_AFTER_TRAINING=no", "--set", "MODEL_NAME_PREFIX=high-rate"),
            *("--set", "NUM_EPOCHS=40", *few, *SCORED),
        ),
        started(folder, "dashboard", "--port", "0") as server,
    ):
        address = address_in(server)
        running = wait_for_steps(folder, "high-rate-*", 60)

        def show(page: "Page") -> None:
            page.locator(f"input[aria-label='{running.name}']").check()
            page.locator(f"input[aria-label='{finished.name}']").check()
            page.locator("#chosen .chip").nth(1).wait_for()
            page.locator("[data-chart='loss'] path").nth(1).wait_for()

        yield address, show


def wait_for_steps(folder: Path, pattern: str, steps: int) -> Path:
    """The folder of a run that has made so many steps."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for metrics in (folder / "runs").glob(f"{pattern}/metrics.jsonl"):
            if len(metrics.read_text(encoding="utf-8").splitlines()) >= steps:
                return metrics.parent
        time.sleep(0.5)
    raise RuntimeError(f"No run {pattern} has made {steps} steps in {PATIENCE} s.")


@contextmanager
def chat(folder: Path) -> Iterator[tuple[str | Path, Show]]:
    run = train(folder, "word-problems")
    with started(folder, "serve", run.name, "--port", "0") as server:
        yield address_in(server).removesuffix("/v1"), ask


def ask(page: "Page") -> None:
    """Ask the trained model and its base, and point at a token of which one was not sure."""
    page.wait_for_selector("#models button")
    page.click("#settings-button")
    page.fill("#set-temperature", "0")
    page.fill("#set-max_tokens", "60")
    page.click("#settings-button")
    page.fill("#prompt", "Solve this problem step by step.")
    page.fill(
        "#input", "Ben has 9 boxes with 7 pens each. He gives 20 pens away. How many are left?"
    )
    page.press("#input", "Enter")
    page.wait_for_selector(".turn:last-child > .actions .again:not(:disabled)")
    page.locator(".turn:last-child .token:not(.level-0)").last.hover()
    page.wait_for_selector("#readout:not([hidden])")


PAGES: dict[str, Callable[[Path], AbstractContextManager[tuple[str | Path, Show]]]] = {
    "preview": preview,
    "report": report,
    "sweep": sweep,
    "dashboard": dashboard,
    "chat": chat,
}


def by_language(sample: dict[str, str]) -> str:
    """English first: the readers of the pictures are of both languages."""
    return sample["language"]


@contextmanager
def new_project() -> Generator[Path, None, None]:
    """A folder as `tinkersmith init` makes it, with less data: runs take seconds."""
    from tinkersmith.files import write_json

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        tinkersmith(Path(temporary), "init", "project")
        text = (folder / "data" / "word_problems.json").read_text(encoding="utf-8")
        samples = json.loads(text)
        samples = sorted(samples[:SAMPLES], key=by_language) + samples[SAMPLES:]
        for name, part in (
            ("train_set", samples[:SAMPLES]),
            ("few", samples[:SAMPLES:4]),
            ("test_set", samples[-QUESTIONS:]),
        ):
            write_json(folder / "data" / f"{name}.json", part)
        yield folder


def save(picture: bytes, path: Path) -> None:
    """Save a picture without a palette, which would change the colours of curves."""
    Image.open(io.BytesIO(picture)).convert("RGB").save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise RuntimeError(f"{path.name} has {path.stat().st_size:,} bytes; most: {MOST_BYTES:,}.")


def main() -> int:
    from tests.support.browser import DESKTOP, PHONE, open_page

    parser = argparse.ArgumentParser(description="Make the screenshots of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    parser.add_argument("--out", type=Path, default=IMAGES, help="the folder of the pictures")
    parser.add_argument("--whole", action="store_true", help="whole pages, to look at them")
    parser.add_argument("--dark", action="store_true", help="with the dark colours, too")
    options = parser.parse_args()
    names = options.names or list(PAGES)
    if unknown := set(names) - set(PAGES):
        parser.error(f"no page {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        with new_project() as folder, PAGES[name](folder) as (address, show):
            for dark in (False, True) if options.dark else (False,):
                for size, suffix in ((DESKTOP, ""), (PHONE, "-phone")):
                    with open_page(address, size=size, dark=dark, sharp=size == PHONE) as page:
                        show(page)
                        path = options.out / f"{name}{suffix}{'-dark' if dark else ''}.png"
                        save(page.screenshot(full_page=options.whole), path)
                        print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
