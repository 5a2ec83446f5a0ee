"""How vLLM serves an export: the command, and requests to copy, for its README and the terminal."""

import shlex
from pathlib import Path

from tinkersmith.errors import UserError
from tinkersmith.export.base_folder import read_model_json
from tinkersmith.export.targets.asking import about_inputs, curl_lines, python_lines
from tinkersmith.peft_format import ADAPTER_CONFIG, highest_rank, vllm_options
from tinkersmith.text.templates import PromptTemplate

_URL = "http://127.0.0.1:8000"


def vllm_serve(folder: Path, shown: Path | str, name: str, base: str | None) -> str | None:
    """The command that serves an export; None where vLLM does not load its adapter.

    Args:
        folder: where the export is now.
        shown: the folder as the command names it.
        base: the base model's folder or name; None for a merged model.
    """
    if base is None:
        return shlex.join(["vllm", "serve", str(shown), "--served-model-name", name])
    template = Path(shown) / "chat_template.jinja" if has_chat_template(folder) else ""
    try:
        rank = highest_rank(read_model_json(folder / ADAPTER_CONFIG))
        return shlex.join(["vllm", "serve", base, *vllm_options({name: shown}, rank, template)])
    except (ValueError, UserError):
        return None


def vllm_section(
    folder: Path, name: str, base: str | None, template: PromptTemplate, refusal: str
) -> list[str]:
    """The part of an export's README about vLLM.

    Args:
        base: as in `vllm_serve`.
        refusal: why vLLM does not load the adapter; "" if it does.
    """
    command = vllm_serve(folder, ".", name, base)
    title = ["## Serve it with vLLM", ""]
    if refusal or command is None:
        reason = refusal or "vLLM takes no adapter of this rank; serve a merged model"
        return [*title, f"{reason}. `--merged` exports one.", ""]
    lines = [*title, "In this folder:", "", "```bash", command, "```", ""]
    if not has_chat_template(folder):
        return [
            *lines,
            "There is no chat template that writes the trained prompt: send the prompt whole, to "
            "`/v1/completions`.",
            "",
        ]
    if base is not None:
        lines += [
            "vLLM takes no chat template from an adapter: without `--chat-template`, it writes the "
            "prompts of the base model.",
            "",
        ]
    lines += [about_inputs(template), "", "```bash", *curl_lines(template, name, _URL), "```", ""]
    return [*lines, "```python", *python_lines(template, name, _URL), "```", ""]


def has_chat_template(folder: Path) -> bool:
    """Whether an exported folder has a template that writes the trained prompt."""
    return (folder / "chat_template.jinja").is_file()
