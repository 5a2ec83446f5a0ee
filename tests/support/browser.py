"""A page opened in Debian's Chromium, or any on the PATH; tests are skipped where there is none."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

DESKTOP, PHONE = (1280, 900), (390, 844)  # CSS pixels
PATIENCE = 120_000.0  # milliseconds: the machine may be loaded


@contextmanager
def open_page(
    address: str | Path,
    *,
    size: tuple[int, int] = DESKTOP,
    language: str = "en-US",
    dark: bool = False,
    sharp: bool = False,
    expected_errors: tuple[str, ...] = (),
) -> Generator["Page", None, None]:
    """A page at a URL or of a file. The test fails if the page logs an error or raises one.

    Args:
        sharp: two pixels of a picture for each CSS pixel, as a phone has them.
        expected_errors: words of errors that the test provokes, such as "status of 429".
    """
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium")
    url = address.resolve().as_uri() if isinstance(address, Path) else address
    errors: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            locale=language,
            color_scheme="dark" if dark else "light",
            device_scale_factor=2 if sharp else 1,
            permissions=["clipboard-read", "clipboard-write"],
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        yield page
        browser.close()
    unexpected = [line for line in errors if not any(word in line for word in expected_errors)]
    assert unexpected == []


def overflow(page: "Page") -> int:
    """CSS pixels by which the page is wider than its window; 0 is right."""
    width: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return width
