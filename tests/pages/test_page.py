"""A page holds its own style and scripts, allows no others, and shows texts as texts."""

import base64
import json
import re
from hashlib import sha256

import pytest

from tinkersmith.pages.page import page_html
from tinkersmith.pages.words import page_language


def page(**changes: object) -> str:
    options = {
        "title": "A <title>",
        "language": "en",
        "body": "<main></main>",
        "data": {"text": "</script><script>alert(1)</script> \u2028 \ud800"},
        "scripts": ["console.log(1)"],
        "styles": ["p { color: red }"],
    }
    return page_html(**{**options, **changes})  # type: ignore[arg-type]


def test_the_policy_allows_exactly_the_pages_own_styles_and_scripts() -> None:
    text = page()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert "default-src 'none'" in policy[1]
    assert "connect-src" not in policy[1]
    for pattern, source in (
        (r"<style>(.*?)</style>", "style"),
        (r"<script>(.*?)</script>", "script"),
    ):
        found = re.findall(pattern, text, re.S)
        hashes = [base64.b64encode(sha256(one.encode()).digest()).decode() for one in found]
        assert found
        allowed = re.search(rf"{source}-src ([^;]*)", policy[1])
        assert allowed
        assert allowed[1].split() == [f"'sha256-{digest}'" for digest in hashes]


def test_only_a_served_page_may_talk_to_its_server() -> None:
    assert "connect-src 'self'" in page(connect=True)


def test_a_text_of_the_user_never_becomes_markup() -> None:
    text = page()
    assert "alert(1)</script>" not in text
    assert "A &lt;title&gt;" in text
    (stored,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(stored)["text"].startswith("</script><script>alert(1)</script>")


@pytest.mark.parametrize(
    ("option", "environment", "language"),
    [
        (None, {}, "en"),
        (None, {"LANG": "zh_CN.UTF-8"}, "zh"),
        (None, {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        ("zh", {"LANG": "en_US.UTF-8"}, "zh"),
        ("en", {"LANG": "zh_TW"}, "en"),
    ],
)
def test_the_language_is_the_options_or_the_environments(
    monkeypatch: pytest.MonkeyPatch, option: str | None, environment: dict[str, str], language: str
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert page_language(option) == language
