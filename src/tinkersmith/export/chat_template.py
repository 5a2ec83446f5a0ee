"""A run's prompt template -> the chat template of an exported folder."""

import json
from pathlib import Path

from tinkersmith.export.base_folder import read_model_json
from tinkersmith.text.jinja_template import chat_template_of
from tinkersmith.text.templates import PromptTemplate


def write_chat_template(template: PromptTemplate, folder: Path) -> bool:
    """Make the tokenizer in `folder` use the run's template; False: it now has none.

    The base model's chat template is removed: prompts in a format that the model was not trained on
    would give worse answers, without any error.
    """
    source = chat_template_of(template)
    config = folder / "tokenizer_config.json"
    if config.is_file():
        values = read_model_json(config)
        if values.pop("chat_template", None) is not None:
            text = json.dumps(values, ensure_ascii=False, indent=2) + "\n"
            config.write_text(text, encoding="utf-8")
    for file in folder.glob("chat_template*"):
        file.unlink()
    if source is not None:
        (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    return source is not None
