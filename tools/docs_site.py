"""The pages of docs/ -> build/site, a site with a menu and a search: make docs.

Pages link to files anywhere in the repository. They are copied to build/site-pages first, with the
files that they link to, each where it stands in the repository: so every link is one within the
site, and mkdocs fails on one that leads nowhere.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parent.parent
PAGES, SITE = ROOT / "build" / "site-pages", ROOT / "build" / "site"
FENCE = re.compile(r"^ *(`{3,}).*?^ *\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
LIST_ITEM = re.compile(r"(?:[-*]|\d+\.) ")


@dataclass(frozen=True)
class Language:
    name: str
    start: str
    start_title: str
    index: str


LANGUAGES = (
    Language("English", "README.md", "Start", "docs/README.md"),
    Language("中文", "README.zh-CN.md", "首页", "docs/README.zh-CN.md"),
)


def repository_path(page: str, target: str) -> str:
    """The path in the repository to which a page's link leads: for a folder, its README.md."""
    path = Path(os.path.normpath(Path(page).parent / unquote(target)))
    if (ROOT / path / "README.md").is_file():
        path /= "README.md"
    return path.as_posix()


def links(text: str, page: str) -> list[tuple[str, str]]:
    """The words and the file of each link in a page's text to a file of the repository."""
    found = LINK.findall(FENCE.sub("", text))
    return [(words, repository_path(page, target)) for _, words, target, _ in found]


def entries(text: str, index: str) -> list[object]:
    """The menu of one part of an index; the index of another folder becomes a section."""
    menu_entries: list[object] = []
    for title, page in links(text, index):
        folder = Path(page).parent
        below = []
        if Path(page).name == "README.md":
            names = dict.fromkeys(name for _, name in links(read(page), page))
            below = [name for name in names if Path(name).parent == folder and is_page(name)]
            below = [name for name in below if not Path(name).name.startswith("README")]
        menu_entries.append({title: [page, *below] if below else page})
    return menu_entries


def menu(language: Language) -> list[object]:
    """The menu of a language: the parts of its docs/README.md, in their order there."""
    parts = re.split(r"^## ", read(language.index), flags=re.MULTILINE)[1:]
    menu_entries: list[object] = [{language.start_title: [language.start, language.index]}]
    for part in parts:
        title, text = part.split("\n", 1)
        menu_entries.append({title.strip(): entries(text, language.index)})
    return menu_entries


def site_menus() -> list[object]:
    """Both menus; pages that only other pages lead to, such as a model card, end the English one.

    A page that both name, such as the changelog, belongs to the last one: English.
    """
    menus = {language.name: menu(language) for language in reversed(LANGUAGES)}
    named = dict.fromkeys(pages_of(menus))
    linked = dict.fromkeys(name for page in named for _, name in links(read(page), page))
    others = [name for name in linked if name not in named and is_page(name)]
    if others:
        menus[LANGUAGES[0].name].append({"More": others})
    return [{name: entries_of} for name, entries_of in menus.items()]


def pages_of(menu_entries: object) -> list[str]:
    if isinstance(menu_entries, str):
        return [menu_entries]
    inner = menu_entries.values() if isinstance(menu_entries, dict) else menu_entries
    assert isinstance(inner, Iterable)
    return [page for entry in inner for page in pages_of(entry)]


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def is_page(name: str) -> bool:
    return name.endswith(".md") and (ROOT / name).is_file()


def for_the_site(page: str) -> str:
    """The text of a page; a link to a folder without a README.md becomes its words."""

    def link(match: re.Match[str]) -> str:
        _, words, target, anchor = match.groups()
        path = repository_path(page, target)
        if (ROOT / path).is_dir():
            return words
        if not path.endswith("README.md") or target.endswith("README.md"):
            return match[0]
        return f"[{words}]({target.rstrip('/')}/README.md{anchor or ''})"

    return LINK.sub(link, read(page))


def copy_pages(pages: Iterable[str], folder: Path) -> None:
    """Copy the pages, and the files to which they lead, to where they stand in the repository."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in dict.fromkeys(pages):
        to = folder / page
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(for_the_site(page), encoding="utf-8")
        targets = [name for _, name in links(read(page), page)]
        targets += [
            repository_path(page, name) for name in re.findall(r'src="([^":]+)"', read(page))
        ]
        for name in targets:
            if (ROOT / name).is_file() and not name.endswith(".md"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, folder / name)


def foreign_addresses(site: Path) -> list[str]:
    """What the built pages would load from another machine: there must be none."""
    loads = re.compile(
        r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"?(https?:[^\" >]+)"
    )
    return [
        f"{path.relative_to(site)}: {address}"
        for path in sorted(site.rglob("*.html"))
        for address in loads.findall(path.read_text(encoding="utf-8"))
    ]


def main() -> int:
    # A page that both menus name, such as the changelog, belongs to the last one: English.
    menus = site_menus()
    copy_pages(pages_of(menus), PAGES)
    tools = Path(__file__).parent
    settings = {
        "INHERIT": str(tools / "mkdocs.yml"),
        "docs_dir": str(PAGES),
        "site_dir": str(SITE),
        "hooks": [str(tools / "docs_site_hooks.py")],
        "nav": menus,
    }
    file = PAGES.parent / "mkdocs.yml"
    file.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(file)]
    built = subprocess.run(command, check=False)
    if built.returncode:
        return built.returncode
    foreign = foreign_addresses(SITE)
    for line in foreign:
        print(f"Error: {line} is loaded from elsewhere.", file=sys.stderr)
    if not foreign:
        print(f"The site: {SITE / 'index.html'} ({len(list(SITE.rglob('*.html')))} pages)")
    return 1 if foreign else 0


if __name__ == "__main__":
    sys.exit(main())
