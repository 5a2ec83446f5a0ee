"""One word, one thing: names, docstrings and the sizes of rooms, read from the source."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.support.paths import ROOT

SOURCE = ROOT / "src" / "tinkersmith"
# The scripts that `tinkersmith init` writes are programs of their own: they share setting names.
MODULES = sorted(set(SOURCE.rglob("*.py")) - set((SOURCE / "starter").rglob("*.py")))
LARGEST_ROOM = 14  # modules
ENTRY_POINTS = {"main"}  # of programs that are started by name
NOT_ALONE = ("Of ", "Those", "The same", "As ")  # such a docstring leans on the line before it


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def defined_names(module: ast.Module) -> set[str]:
    """Public names that the module's top level defines, imports not counted."""
    names: set[str] = set()
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            targets = [name for target in node.targets for name in ast.walk(target)]
            names |= {name.id for name in targets if isinstance(name, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def homonyms(paths: list[Path]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for name in defined_names(parsed(path)) - ENTRY_POINTS:
            homes[name].append(path.relative_to(SOURCE).as_posix())
    return {name: modules for name, modules in sorted(homes.items()) if len(modules) > 1}


def leaning_docstrings(module: ast.Module) -> list[str]:
    """First lines of docstrings that mean nothing without the line before them."""
    found: list[str] = []
    for node in ast.walk(module):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        text = ast.get_docstring(node)
        if text is None:
            continue
        sentence = text.split("\n\n")[0].replace("\n", " ")
        asks = sentence.startswith("What ") and " shall " in sentence
        if sentence.startswith(NOT_ALONE) or asks:
            found.append(sentence.split(". ")[0])
    return found


def test_no_public_name_is_defined_in_two_modules() -> None:
    assert homonyms(MODULES) == {}


def test_every_docstring_has_a_meaning_of_its_own() -> None:
    leaning = {
        path.relative_to(SOURCE).as_posix(): sentences
        for path in MODULES
        if (sentences := leaning_docstrings(parsed(path)))
    }
    assert leaning == {}


def test_no_room_holds_more_modules_than_a_reader_can_keep_in_mind() -> None:
    rooms: dict[str, int] = defaultdict(int)
    for path in MODULES:
        if path.name != "__init__.py":
            rooms[path.parent.relative_to(SOURCE).as_posix()] += 1
    assert {room: count for room, count in rooms.items() if count > LARGEST_ROOM} == {}


def test_the_checks_see_what_they_are_for() -> None:
    module = ast.parse('def a():\n    "Of the first."\nclass B:\n    "What shall be, shall be."')
    assert leaning_docstrings(module) == ["Of the first.", "What shall be, shall be."]
    assert defined_names(ast.parse("A, _B = 1, 2\nC: int = 3\ndef d(): ...")) == {"A", "C", "d"}
