"""Texts, style and scripts -> one HTML page that loads nothing from elsewhere."""

import base64
import html
import json
import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import open_regular

_HEAD = 2000  # bytes of a page, among which its generator is named
_PAGE = """\
<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="generator" content="{generator}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
{styles}
</head>
<body>
{body}
<script type="application/json" id="data">{data}</script>
{scripts}
</body>
</html>
"""


def page_html(
    *,
    title: str,
    language: str,
    body: str,
    data: Mapping[str, Any],
    scripts: Sequence[str],
    styles: Sequence[str],
    generator: str = "tinkersmith",
    connect: bool = False,
) -> str:
    """One page of HTML with the shared style and script, and the given ones behind them.

    The page's policy allows these styles and scripts by their hashes, and nothing else. What
    comes from the user goes into `data`, which a script reads: no text of it becomes markup.

    Args:
        language: "en" or "zh"; "auto" leaves it to the page's script.
        body: markup that we wrote ourselves.
        generator: the command that makes the page, by which it recognises its own files.
        connect: let the page's scripts talk to the server that it came from.
    """
    all_styles = [part("tinkersmith.pages", "base.css"), *styles]
    all_scripts = [part("tinkersmith.pages", "elements.js"), *scripts]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"style-src {_hashes(all_styles)}",
            f"script-src {_hashes(all_scripts)}",
            *(["connect-src 'self'"] if connect else []),
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    return _PAGE.format(
        language="zh-CN" if language == "zh" else "en",
        generator=html.escape(generator),
        policy=policy,
        title=html.escape(title),
        styles="\n".join(f"<style>{style}</style>" for style in all_styles),
        body=body,
        data=json_in_script(data),
        scripts="\n".join(f"<script>{script}</script>" for script in all_scripts),
    )


def is_foreign(path: Path, generator: str) -> bool:
    """Whether there is a file that is no page of `generator`; an empty one may be overwritten.

    Raises:
        UserError: it is a folder, or cannot be read.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a file in it, such as {path / 'page.html'}")
    try:
        with open_regular(path) as file:
            head = file.read(_HEAD)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise unreadable(path, error) from None
    return bool(head) and generator_mark(generator).encode() not in head


def generator_mark(generator: str) -> str:
    """The line of a page by which a command recognises a file of its own."""
    return f'<meta name="generator" content="{html.escape(generator)}">'


def part(package: str, name: str) -> str:
    """A text file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def json_in_script(value: Any) -> str:
    """JSON that ends no script element and holds no unpaired surrogates; NaN becomes null."""
    text = json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "backslashreplace").decode()


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON has not: NaN and the infinities."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in cast("Sequence[Any]", value)]
    return value


def _hashes(texts: Sequence[str]) -> str:
    if not texts:
        return "'none'"
    digests = [base64.b64encode(sha256(text.encode()).digest()).decode() for text in texts]
    return " ".join(f"'sha256-{digest}'" for digest in digests)
