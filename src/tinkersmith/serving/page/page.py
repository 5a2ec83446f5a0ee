"""The files of this folder -> the chat page, which talks to the server that it came from."""

from tinkersmith.pages.page import page_html, part

_PACKAGE = "tinkersmith.serving.page"
_SCRIPTS = ("words.js", "requests.js", "tokens.js", "chat.js")  # each uses those before it


def chat_page(language: str = "auto") -> str:
    """The page as HTML.

    Args:
        language: "en", "zh", or "auto": as `?lang=` of the address or the browser says.
    """
    return page_html(
        title="Tinkersmith chat",
        language=language,
        body=part(_PACKAGE, "chat.html"),
        data={"language": language},
        scripts=[part(_PACKAGE, name) for name in _SCRIPTS],
        styles=[part(_PACKAGE, "chat.css")],
        generator="tinkersmith serve",
        connect=True,
    )
