"""The releases of the tinker SDK are stated once, and everything else says the same."""

import re
import tomllib

import pytest

from tests.support.paths import ROOT
from tinkersmith.version import NEWEST_SDK, OLDEST_SDK

# What mentions other releases on purpose: what is planned for them, and what changed when.
OTHER_RELEASES = ("CHANGELOG.md", "docs/decisions/")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_package_needs_the_newest_release_and_the_constraints_pin_it() -> None:
    needed = tomllib.loads(read("pyproject.toml"))["project"]["dependencies"]
    assert f"tinker>={NEWEST_SDK.rpartition('.')[0]}" in needed
    assert f"tinker=={NEWEST_SDK}" in read("constraints.txt").splitlines()


def test_the_makefile_reads_the_oldest_release_from_where_it_is_stated() -> None:
    found = re.search(
        r"^OLDER_SDK := \$\(shell sed -n 's/(.*)/\\1/p' (\S+)\)$", read("Makefile"), re.M
    )
    assert found is not None
    pattern = found[1].replace(r"\(", "(").replace(r"\)", ")")
    stated = re.findall(pattern, read(found[2]), re.M)
    assert stated == [OLDEST_SDK]


@pytest.mark.parametrize(
    "name",
    [
        "docs/reference/engine.md",
        "docs/reference/engine.zh-CN.md",
        "docs/reference/compatibility.md",
    ],
)
def test_a_page_names_both_releases(name: str) -> None:
    assert OLDEST_SDK in read(name) and NEWEST_SDK in read(name)


def test_no_page_names_another_release_without_saying_that_it_is_not_tested() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = []
    for page in pages:
        name = page.relative_to(ROOT).as_posix()
        if name.startswith(OTHER_RELEASES):
            continue
        text = page.read_text(encoding="utf-8")
        for line in text.splitlines():
            for release in re.findall(r"\btinker(?: SDK)?[ =]+(0\.\d+(?:\.\d+)?)", line):
                if release not in (OLDEST_SDK, NEWEST_SDK):
                    named.append((name, release))
    assert [entry for entry in named if entry[1] not in ("0.39", "0.40")] == []
