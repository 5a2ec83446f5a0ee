"""The site of the documentation has all pages. `make docs` builds it and checks its links."""

from pathlib import Path

from tests.support.paths import ROOT
from tools.docs_site import (
    LANGUAGES,
    copy_pages,
    entries,
    foreign_addresses,
    links,
    menu,
    pages_of,
    site_menus,
)


def test_the_menus_list_every_page_of_the_repository() -> None:
    pages = {
        path.relative_to(ROOT).as_posix()
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    }
    assert sorted(pages - set(pages_of(site_menus()))) == []


def test_both_menus_have_the_same_pages_in_the_order_of_use() -> None:
    english, chinese = (pages_of(menu(language)) for language in LANGUAGES)
    assert [page.replace(".zh-CN.md", ".md") for page in chinese] == english
    assert english[:3] == ["README.md", "docs/README.md", "docs/guides/data.md"]


def test_an_index_of_a_folder_becomes_a_section_with_its_pages() -> None:
    section = entries("| [Decisions](decisions/README.md) | Why |", "docs/README.md")
    pages = pages_of(section)
    assert pages[:2] == ["docs/decisions/README.md", "docs/decisions/0001-own-engine.md"]
    assert len(pages) == len(list((ROOT / "docs" / "decisions").glob("*.md")))


def test_pages_are_copied_with_what_they_link_to(tmp_path: Path) -> None:
    copy_pages(["README.md", "docs/explanation/speed.md", "docs/reference/engine.md"], tmp_path)
    assert (tmp_path / "docs" / "images" / "demo.svg").is_file()
    assert (tmp_path / "benchmarks" / "results" / "gpu.json").is_file()
    text = (tmp_path / "docs" / "explanation" / "speed.md").read_text(encoding="utf-8")
    assert "(../../benchmarks/results/)" in (ROOT / "docs/explanation/speed.md").read_text("utf-8")
    assert "(../../benchmarks/results/)" not in text  # a folder is no page of a site


def test_links_in_code_are_no_links() -> None:
    text = "[one](guides/data.md)\n```\n[two](nowhere.md)\n```\n[three](https://example.org)\n"
    assert links(text, "docs/README.md") == [("one", "docs/guides/data.md")]


def test_what_a_page_would_load_from_elsewhere_is_found(tmp_path: Path) -> None:
    page = '<script src="https://cdn.example/x.js"></script><a href="https://fine.example">x</a>'
    (tmp_path / "a.html").write_text(page + '<link href="assets/x.css">', encoding="utf-8")
    assert foreign_addresses(tmp_path) == ["a.html: https://cdn.example/x.js"]
