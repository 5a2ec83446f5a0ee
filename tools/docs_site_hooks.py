"""Each page of the documentation site gets the words and the menu of its language.

mkdocs has one language for a whole site. Here it changes before each page is drawn, so that one
site holds both, and a link from one language to the other is an ordinary link that mkdocs checks.
"""

from typing import Any

NAMES = {"en": "English", "zh": "中文"}
CHINESE = ".zh-CN.md"


def on_nav(nav: Any, config: Any, files: Any) -> Any:
    """Keep the menu of each language apart: they are the two top sections."""
    config.extra["menus"] = {section.title: section.children for section in nav.items}
    return nav


def on_page_context(context: Any, page: Any, config: Any, nav: Any) -> Any:
    name = page.file.src_uri
    language = "zh" if name.endswith(CHINESE) else "en"
    config.theme["language"] = language
    context["nav"] = type(nav)(config.extra["menus"][NAMES[language]], nav.pages)
    for section in page.ancestors:
        section.active = True
    english = name.replace(CHINESE, ".md")
    urls = {file.src_uri: file.url for file in config.extra["pages"]}
    config.extra["alternate"] = [
        {"name": NAMES["en"], "link": urls[english], "lang": "en"},
        {
            "name": NAMES["zh"],
            "link": urls.get(english.replace(".md", CHINESE), urls["README" + CHINESE]),
            "lang": "zh",
        },
    ]
    return context


def on_files(files: Any, config: Any) -> Any:
    config.extra["pages"] = list(files.documentation_pages())
    return files
