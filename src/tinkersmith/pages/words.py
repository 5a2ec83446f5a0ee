"""The language of a page."""

import os


def page_language(option: str | None = None) -> str:
    """ "en" or "zh": as `--lang` says, else as the environment's locale does."""
    if option in ("en", "zh"):
        return option
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):  # in the order of their rank
        value = os.environ.get(name, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"
