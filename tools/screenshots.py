"""Pages of real runs -> docs/images/*.png, by Chromium: python tools/screenshots.py [NAME ...].

Each page is a function that makes it in an empty project folder, with the bundled model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # for tests.support
IMAGES = ROOT / "docs" / "images"
SMALL = ("--set", "VALIDATION_RATIO=0.1", "--set", "DATA_FILES=data/few.json")


def tinkersmith(folder: Path, *words: str) -> None:
    environment = {k: value for k, value in os.environ.items() if not k.startswith("TINKER_")}
    environment["PYTHONPATH"] = str(ROOT / "src")
    # By its name, so that the commands that a page shows have no path of this machine.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["tinkersmith", *words], cwd=folder, env=environment, check=True, stdin=subprocess.DEVNULL
    )


def preview(folder: Path) -> Path:
    tinkersmith(folder, "preview", "data/few.json", "--html", "preview.html")
    return folder / "preview.html"


def report(folder: Path) -> Path:
    tinkersmith(folder, "train", *SMALL, "--set", "EXPORT_AFTER_TRAINING=no")
    return next((folder / "runs").glob("my-model-*")) / "report.html"


def sweep(folder: Path) -> Path:
    grid = ["LEARNING_RATE=2e-3,1e-2", "LORA_RANK=8,32"]
    tinkersmith(folder, "sweep", "--name", "rates", "--grid", *grid, *SMALL)
    return next(folder.rglob("sweep.html"))


PAGES: dict[str, Callable[[Path], Path]] = {"preview": preview, "report": report, "sweep": sweep}


def main() -> int:
    from tests.support.browser import DESKTOP, PHONE, open_page
    from tinkersmith.files import write_json

    parser = argparse.ArgumentParser(description="Make the screenshots of the documentation.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAGES)}")
    names = parser.parse_args().names or list(PAGES)
    if unknown := set(names) - set(PAGES):
        parser.error(f"no page {', '.join(sorted(unknown))}; there are {', '.join(PAGES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "project"
        tinkersmith(Path(temporary), "init", "project")
        text = (folder / "data" / "word_problems.json").read_text(encoding="utf-8")
        write_json(folder / "data" / "few.json", json.loads(text)[:200])
        for name in names:
            file = PAGES[name](folder)
            for size, suffix in ((DESKTOP, ""), (PHONE, "-phone")):
                with open_page(file, size=size) as page:
                    page.screenshot(path=IMAGES / f"{name}{suffix}.png")
            print(f"Wrote {IMAGES / name}.png and {name}-phone.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
