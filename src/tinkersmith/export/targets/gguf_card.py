"""The README.md of a folder with a GGUF file, and the commands that use it."""

import shlex
from pathlib import Path

from tinkersmith.export.targets.asking import EXAMPLE, about_inputs, curl_lines, python_lines
from tinkersmith.prompts.guards import unguarded
from tinkersmith.runs.trained_model import ModelReference
from tinkersmith.text.templates import PromptTemplate

_URL = "http://127.0.0.1:8080"


def gguf_commands(folder: Path, file: str, name: str) -> list[str]:
    """Shell commands for Ollama and llama.cpp, from where the user stands."""
    model = ollama_name(name)
    return [
        shlex.join(["ollama", "create", model, "-f", str(folder / "Modelfile")]),
        shlex.join(["llama-server", "-m", str(folder / file), "--jinja", "--port", "8080"]),
    ]


def ollama_name(name: str) -> str:
    """A name that Ollama takes for a model."""
    return name.lower()


def gguf_card(
    model: ModelReference, file: str, template: PromptTemplate, has_chat: bool, in_ollama: bool
) -> str:
    """The Markdown of the README.md.

    Args:
        has_chat: whether the file has a chat template that writes the trained prompt.
        in_ollama: whether the Modelfile has one.
    """
    from tinkersmith.data.samples import Source, alpaca_sample

    sample = alpaca_sample(*EXAMPLE, "x", Source("", 1))
    prompt = unguarded(template.render_prompt(sample))
    name = ollama_name(model.name)
    lines = [
        f"# {model.name}",
        "",
        f"A GGUF file for llama.cpp and Ollama, fine-tuned from `{model.base_model}` with "
        "Tinkersmith.",
        f"Source: `{model.sampler_path}`.",
        "",
        "## The trained prompt",
        "",
        "```text",
        prompt,
        "```",
        "",
        f"Answers end with `{template.end.strip() or 'the end token'}`. {about_inputs(template)}",
        "",
        "## Ollama",
        "",
        "```bash",
        f"ollama create {name} -f Modelfile",
        f"ollama run {name}",
        "```",
        "",
        (
            "The Modelfile has the trained prompt as its template, the end of answers, and "
            "sampling without limits. It also takes an input as a message of its own, with the "
            'role "input", before the message of the user.'
            if in_ollama
            else "Ollama's templates cannot write the trained prompt. Send it whole, to "
            '`/api/generate` with `"raw": true`.'
        ),
        "",
        "## llama.cpp",
        "",
        "```bash",
        f"llama-server -m {file} --jinja --port 8080",
        "```",
        "",
    ]
    if has_chat:
        lines += ["```bash", *curl_lines(template, name, _URL), "```", ""]
        lines += ["```python", *python_lines(template, name, _URL), "```", ""]
    else:
        lines += [
            "The file has no chat template, since none can write the trained prompt. llama-server "
            "then uses one of its own, which the model was not trained on: send the prompt whole, "
            "to `/v1/completions`.",
            "",
        ]
    return "\n".join(lines)
