"""A model folder whose chat template refuses conversations in which roles do not alternate."""

import shutil
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS

REASON = "Conversation roles must alternate user/assistant/user/assistant/..."
STRICT_TEMPLATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('" + REASON + "') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_strict(folder: Path) -> Path:
    """Give the model in a folder the template."""
    (folder / "chat_template.jinja").write_text(STRICT_TEMPLATE, encoding="utf-8")
    return folder


def strict_tokenizer(folder: Path) -> Path:
    """A folder with the bundled model's tokenizer and the template, without weights."""
    (source,) = BUNDLED_MODELS.values()
    folder.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, folder)
    return make_strict(folder)


def talk(*roles: str) -> dict[str, Any]:
    """A record of messages with these roles."""
    messages = [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)]
    return {"messages": messages}


# Records 2 and 4 are refused.
MIXED = [
    talk("user", "assistant"),
    talk("system", "user", "assistant"),
    talk("user", "assistant", "user", "assistant"),
    talk("system", "user", "assistant", "user", "assistant"),
]
