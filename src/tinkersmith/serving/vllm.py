"""Exported folders -> the command that serves them by vLLM, on a machine with a GPU."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinkersmith.bundled import BUNDLED_MODELS
from tinkersmith.command_line import command_line
from tinkersmith.errors import UserError, unreadable
from tinkersmith.files import read_json_object
from tinkersmith.peft_format import ADAPTER_CONFIG, highest_rank, vllm_options
from tinkersmith.serving.models import ServedModels

VLLM_KEY_VARIABLE = "VLLM_API_KEY"


def run_vllm(
    models: ServedModels, host: str, port: int, key: str | None, say: Callable[[str], None]
) -> int:
    """Start vLLM on exported folders, wait for its end, and return its exit code.

    Raises:
        UserError: vLLM or a GPU is missing, or a model is not an exported folder.
    """
    command = vllm_command(models, host, port)
    if shutil.which("vllm") is None:
        raise UserError("vLLM is not installed. Install it with: pip install vllm")
    if shutil.which("nvidia-smi") is None and shutil.which("rocm-smi") is None:
        raise UserError("--vllm needs a GPU, and this machine has none. Leave --vllm out.")
    say(f"Starting: {shlex.join(command)}")
    environment = {**os.environ, VLLM_KEY_VARIABLE: key} if key else dict(os.environ)
    try:
        return subprocess.run(command, env=environment).returncode
    except OSError as error:
        raise UserError(f"vLLM cannot be started: {error.strerror or error}.") from None


def vllm_command(models: ServedModels, host: str, port: int) -> list[str]:
    """The command line; the key is not in it, since other users can read command lines.

    Raises:
        UserError: a model is not an exported folder, or the models have different templates.
    """
    tuned = [model for model in models.models if model.kind == "tuned"]
    stored = [model for model in tuned if model.upstream.startswith("tinker://")]
    if stored:
        export = command_line("export", "--model-path", stored[0].upstream)
        raise UserError(
            f"vLLM loads folders, and {stored[0].name} is a checkpoint. Export it, and name the "
            f"folder: {export}"
        )
    base = BUNDLED_MODELS.get(models.base_model, models.base_model)
    whole = [model.name for model in tuned if model.adapter is None]  # under several names
    names_of_base = dict.fromkeys([models.base_name, *whole])
    command = ["vllm", "serve", str(base), "--served-model-name", *names_of_base]
    command += ["--host", host, "--port", str(port)]
    templates = {model.chat_template for model in tuned}
    if len(templates) > 1:
        raise UserError(
            "These models were trained with different prompt templates, and vLLM uses one for all. "
            "Serve them by commands of their own."
        )
    folders = {model.name: model.adapter for model in tuned if model.adapter is not None}
    if folders:
        first = next(iter(folders.values()))
        rank = max(_rank_of(folder) for folder in folders.values())
        written = "" if templates == {None} else first / "chat_template.jinja"
        try:
            command += vllm_options(folders, rank, written)
        except ValueError as error:
            raise UserError(str(error)) from None
    return command


def _rank_of(folder: Path) -> int:
    file = folder / ADAPTER_CONFIG
    try:
        config: dict[str, Any] = read_json_object(file)
        return highest_rank(config)
    except OSError as error:
        raise unreadable(file, error) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{file} is damaged: its rank is no number. Export it again.") from None
