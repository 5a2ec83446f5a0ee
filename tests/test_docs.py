"""What the README says is what the code does, in both languages."""

import re

import pytest

from tests.support.paths import ROOT
from tinkersmith.settings import FIELDS, settings_table

PAIRS = [
    ("README.md", "README.zh-CN.md"),
    ("MODEL_EXPORT_EVALUATION.md", "MODEL_EXPORT_EVALUATION.zh-CN.md"),
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def settings_part(text: str) -> str:
    after = text.split("<!-- settings:begin", 1)[1]
    return after.split("-->\n", 1)[1].split("<!-- settings:end")[0]


def test_the_settings_table_is_the_one_that_settings_py_prints() -> None:
    assert settings_part(read("README.md")) == settings_table()


def test_the_chinese_table_has_the_same_names_and_defaults() -> None:
    def columns(table: str) -> list[tuple[str, str]]:
        rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| `")]
        return [(row[0], row[1]) for row in rows]

    english = columns(settings_table())
    assert columns(settings_part(read("README.zh-CN.md"))) == english
    assert len(english) == len(FIELDS)


@pytest.mark.parametrize(("english", "chinese"), PAIRS)
def test_both_languages_have_identical_code_blocks_and_as_many_headings(
    english: str, chinese: str
) -> None:
    blocks = [re.findall(r"```.*?```", read(name), re.DOTALL) for name in (english, chinese)]
    assert blocks[0] == blocks[1]
    headings = [re.findall(r"^#+(?= )", read(name), re.MULTILINE) for name in (english, chinese)]
    assert headings[0] == headings[1]


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_every_link_leads_to_a_file(name: str) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", read(name)):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", [name for pair in PAIRS for name in pair])
def test_every_script_and_setting_that_is_named_exists(name: str) -> None:
    text = read(name)
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert (ROOT / script).is_file(), script
    for setting in set(re.findall(r"--set ([A-Z_]+)=", text)) - {"NAME"}:
        assert setting.lower() in FIELDS, setting
    assert "@@" not in text
