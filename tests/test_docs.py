"""The documentation says what the code does, in both languages; its pages lead to each other."""

import ast
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tinkersmith.settings.fields import FIELDS, settings_table
from tools.terminal_picture import PICTURE, excerpt, picture

# For contributors, or written by a tool: everything else in docs/ is for users, in both languages.
ENGLISH_ONLY = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/STYLE.md",
    "docs/decisions/",
    "docs/reference/compatibility.md",
)
LONGEST_README = 200  # lines
LONGEST_BULLET = 60  # English words
LONGEST_CHINESE_BULLET = 120  # Chinese characters, which stand for about 60 English words
ENVIRONMENT = {
    *("TINKER_API_KEY", "TINKER_BASE_URL", "TINKER_TELEMETRY", "JUDGE_API_KEY"),
    *("TINKERSMITH_ENGINE_KEY", "TINKERSMITH_DASHBOARD_KEY", "TINKERSMITH_SERVE_KEY"),
    *("OPENAI_API_KEY", "LOCAL_API_KEY"),  # of harnesses that ask a server
    *("LLAMA_CPP", "MODELSCOPE_API_TOKEN"),
}
TRACKERS_OWN = ("HF_", "WANDB_", "SWANLAB_", "TRACKIO_", "MLFLOW_")  # how their variables begin

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
)
ENGLISH_PAGES = [name for name in PAGES if not name.endswith(".zh-CN.md")]


def twin(name: str) -> str:
    return name.replace(".md", ".zh-CN.md")


PAIRS = [(name, twin(name)) for name in ENGLISH_PAGES if twin(name) in PAGES]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return [code for kind, code in FENCE.findall(read(name)) if kind == language]


def prose(name: str) -> str:
    return FENCE.sub("", read(name))


def settings_part(text: str) -> str:
    after = text.split("<!-- settings:begin", 1)[1]
    return after.split("-->\n", 1)[1].split("<!-- settings:end")[0]


# ---- two languages


def test_every_page_for_users_is_there_in_both_languages() -> None:
    assert "README.md" in PAGES and "docs/README.md" in PAGES
    wanted = {name for name in ENGLISH_PAGES if not name.startswith(ENGLISH_ONLY)}
    assert sorted(name for name in wanted if twin(name) not in PAGES) == []
    chinese = {name for name in PAGES if name.endswith(".zh-CN.md")}
    assert sorted(chinese - {twin(name) for name in ENGLISH_PAGES}) == []


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_identical_code_blocks_and_as_many_headings(
    english: str, chinese: str
) -> None:
    assert FENCE.findall(read(english)) == FENCE.findall(read(chinese))
    headings = [re.findall(r"^#+(?= )", prose(name), re.MULTILINE) for name in (english, chinese)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_lead_to_each_other(english: str, chinese: str) -> None:
    for here, there in ((english, chinese), (chinese, english)):
        assert f"]({Path(there).name})" in read(here)


# ---- form


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short_and_shows_a_terminal(name: str) -> None:
    lines = read(name).splitlines()
    assert len(lines) <= LONGEST_README
    assert any(f"]({PICTURE.relative_to(ROOT).as_posix()})" in line for line in lines[:20])


def bullets(text: str) -> list[str]:
    """Each list item with its continuation lines, on one line."""
    items: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        if re.match(r" *(?:[-*]|\d+\.) ", line):
            items.append([line])
            inside = True
        elif inside and re.match(r" +\S", line):
            items[-1].append(line)
        else:
            inside = False
    return [" ".join(" ".join(item).split()) for item in items]


def test_a_bullet_ends_where_its_indented_lines_do() -> None:
    text = "- one\n  two\n\nthree\n1. four\n   five\nsix\n"
    assert bullets(text) == ["- one two", "1. four five"]


@pytest.mark.parametrize("name", PAGES)
def test_no_bullet_is_longer_than_sixty_words(name: str) -> None:
    for bullet in bullets(prose(name)):
        text = re.sub(r"\]\([^)]*\)", "]", bullet)
        if name.endswith(".zh-CN.md"):
            words = re.findall(r"[\u4e00-\u9fff]|[\w./`*=-]+", text)
            assert len(words) <= LONGEST_CHINESE_BULLET, f"{len(words)} characters: {bullet}"
        else:
            assert len(text.split()) - 1 <= LONGEST_BULLET, f"{len(text.split())} words: {bullet}"


# ---- links


def anchors(name: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(name), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_to_a_file_and_its_heading(name: str) -> None:
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", prose(name)):
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        if anchor:
            page = there.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(page), target


INDEXES = ["docs/README.md", "docs/README.zh-CN.md"]


@pytest.mark.parametrize("index", INDEXES)
def test_the_index_leads_to_every_page_of_docs(index: str) -> None:
    linked = {
        (ROOT / "docs" / target).resolve().relative_to(ROOT).as_posix()
        for target in re.findall(r"\]\((?!https?://|#)([^)\s#]+)", read(index))
    }
    for english in ENGLISH_PAGES:
        if not english.startswith("docs/") or english in INDEXES:
            continue
        page = twin(english) if "zh-CN" in index and twin(english) in PAGES else english
        folder = Path(page).parent / "README.md"  # a folder may have an index of its own
        assert page in linked or folder.as_posix() in linked.difference(INDEXES), page


# ---- what the pages name


def test_the_settings_table_is_the_one_that_settings_py_prints() -> None:
    assert settings_part(read("docs/reference/settings.md")) == settings_table()


def test_the_chinese_table_has_the_same_names_and_defaults() -> None:
    def columns(table: str) -> list[tuple[str, str]]:
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
        return [(row[0], row[1]) for row in rows]

    english = columns(settings_table())
    assert columns(settings_part(read("docs/reference/settings.zh-CN.md"))) == english
    assert len(english) == len(FIELDS)


@pytest.mark.parametrize("name", PAGES)
def test_every_script_and_setting_that_is_named_exists(name: str) -> None:
    text = read(name)
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for setting in set(re.findall(r"--set ([A-Z_]+)=", text)) - {"NAME"}:
        assert setting.lower() in FIELDS, setting
    if name.startswith(("README", "docs/guides/")):
        for setting in set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+)\b", text)) - ENVIRONMENT:
            assert setting.lower() in FIELDS or setting.startswith(TRACKERS_OWN), setting
    assert "@@" not in text


@pytest.mark.parametrize("name", ENGLISH_PAGES)
def test_every_python_and_json_block_parses(name: str) -> None:
    for code in blocks(name, "python"):
        ast.parse(code)
    for code in blocks(name, "json"):
        json.loads(code)


@cache
def help_of(*command: str) -> str:
    answer = subprocess.run(
        [sys.executable, *command, "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert answer.returncode == 0, f"{command}: {answer.stderr}"
    return answer.stdout


def commands_of_tinkersmith() -> set[str]:
    return set(re.findall(r"^  ([a-z]+) ", help_of("-m", "tinkersmith"), re.MULTILINE))


def whole_commands(code: str) -> list[str]:
    """The commands of a bash block: lines that share a quotation belong together."""
    commands, command = [], ""
    for line in code.splitlines():
        command += line
        try:
            shlex.split(command, comments=True)
        except ValueError:  # a quotation that is still open
            command += "\n"
        else:
            commands.append(command)
            command = ""
    assert not command, f"a quotation is open to the end: {command}"
    return commands


def shown_commands(name: str) -> list[list[str]]:
    """The words of every command line that a page shows, in a bash block or between backticks."""
    lines = []
    for code in blocks(name, "bash"):
        lines += whole_commands(code.replace("\\\n", " "))
    lines += re.findall(r"`((?:python|tinkersmith) [^`|]+)`", prose(name))
    return [shlex.split(line, comments=True) for line in lines]


SUBCOMMANDS = {"runs": ("list", "delete", "prune"), "engine": ("check",)}


def ours(words: list[str]) -> tuple[tuple[str, ...], list[str]] | None:
    """What runs Python, and the options that follow; None for commands that are not ours."""
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    if words[:1] == ["tinkersmith"] and len(words) > 1 and words[1].islower():
        if words[1].startswith("-"):
            return ("-m", "tinkersmith"), []
        assert words[1] in commands_of_tinkersmith(), f"tinkersmith has no command {words[1]}"
        if words[2:3] and words[2] in SUBCOMMANDS.get(words[1], ()):
            return ("-m", "tinkersmith", words[1], words[2]), words[3:]
        return ("-m", "tinkersmith", words[1]), words[2:]
    if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
        return (words[1],), words[2:]
    return None


@pytest.mark.parametrize("name", PAGES)
def test_every_option_that_is_shown_is_one_of_its_command(name: str) -> None:
    for words in shown_commands(name):
        command = ours(words)
        if command is None:
            continue
        options = [word.partition("=")[0] for word in command[1] if word.startswith("--")]
        for option in set(options) - {"--help"}:
            known = re.findall(r"--[a-z][a-z-]*", help_of(*command[0]))
            assert option in known, f"{' '.join(words)}: {option} is none of {known}"


def test_a_command_or_option_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no command bake"):
        ours(["tinkersmith", "bake"])
    stats = ("-m", "tinkersmith", "stats")
    words = ["tinkersmith", "stats", "FILE", "--base-model", "NAME"]
    assert ours(words) == (stats, words[2:])
    assert "--base-model" in help_of(*stats) and "--no-such" not in help_of(*stats)


# ---- the picture


def test_the_picture_is_what_its_tool_draws_and_shows_a_run_in_order() -> None:
    svg = PICTURE.read_text(encoding="utf-8")
    rows = re.findall(r"<text [^>]*>(.*)</text>", svg)
    lines = [re.sub(r"<[^>]+>", "", row) for row in rows]
    for mark, sign in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        lines = [line.replace(mark, sign) for line in lines]
    assert picture(lines) == svg
    whole = "\n".join(line for line in lines if line != "...")
    assert set(excerpt(whole)) <= set(lines)


def test_a_run_without_its_scores_makes_no_picture() -> None:
    with pytest.raises(ValueError, match="no line that begins"):
        excerpt("Read 2,000 samples from data/word_problems.json\n")


def test_every_behaviour_of_the_inference_apis_names_its_test() -> None:
    folder = ROOT / "tests" / "engine" / "server" / "routes"
    tests = {
        node.name
        for file in ("test_openai_routes.py", "test_anthropic_routes.py")
        for node in ast.parse((folder / file).read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    for name in ("docs/reference/inference-api.md", "docs/reference/inference-api.zh-CN.md"):
        rows = re.findall(r"^\| (\d+) \|.*\| `(test_\w+)` \|$", read(name), re.MULTILINE)
        assert [int(number) for number, _ in rows] == list(range(1, len(tests) + 1))
        assert {test for _, test in rows} == tests


def test_no_message_names_a_page_that_an_installed_package_does_not_have() -> None:
    for file in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {node for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        alone = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        named = [
            node.value
            for node in texts - alone
            if isinstance(node.value, str) and re.search(r"\b(docs|examples)/\S+\.\w", node.value)
        ]
        assert not named, (file, named)
