"""The two kinds of prompt template, under the names that other rooms import them by."""

from tinkersmith.text.chat_template import ChatTemplate
from tinkersmith.text.choose import choose_template
from tinkersmith.text.pieces import Piece, Rendered
from tinkersmith.text.stored import template_from_json
from tinkersmith.text.text_template import TextTemplate, check_template_setting

PromptTemplate = TextTemplate | ChatTemplate

__all__ = [
    "ChatTemplate",
    "Piece",
    "PromptTemplate",
    "Rendered",
    "TextTemplate",
    "check_template_setting",
    "choose_template",
    "template_from_json",
]
