"""The model card of a repository on a hub: what the README says, with data, settings and scores."""

from pathlib import Path
from typing import Any, cast

from tinkersmith.files import read_json_object
from tinkersmith.models.names import local_model_folder
from tinkersmith.peft_format import ADAPTER_CONFIG
from tinkersmith.runs.trained_model import ModelReference
from tinkersmith.version import __version__

_SETTINGS = (
    *("lora_rank", "learning_rate", "num_epochs", "batch_size", "lr_schedule", "warmup_ratio"),
    *("max_sequence_length", "train_on", "thinking", "seed"),
)
_SCORES = {
    "final_answer": "final answer right",
    "exact_match": "whole answer right",
    "contains_answer": "answer contained",
}


def hub_card(
    model: ModelReference, folder: Path, repository: str, verified: str, results: Path
) -> str:
    """The Markdown with the metadata that hubs read.

    Args:
        verified: what the verification found.
        results: the file of an evaluation; it is used if it scores this model.
    """
    import huggingface_hub

    hub: Any = huggingface_hub
    scores = _scores(results, model)
    data: Any = hub.ModelCardData(
        base_model=None if local_model_folder(model.base_model) else model.base_model,
        base_model_relation=_relation(folder),
        library_name=_library(folder),
        license="unknown",
        model_name=repository.partition("/")[2],
        pipeline_tag="text-generation",
        tags=["tinkersmith", "lora"],
    )
    readme = (folder / "README.md").read_text(encoding="utf-8").rstrip()
    lines = [
        readme,
        "",
        "## How it was made",
        "",
        *_about_training(model),
        f"- Verified before the upload: {verified}",
        f"- Made with Tinkersmith {__version__}.",
        "",
        *scores,
        "## Licence",
        "",
        "Unknown: the licence of the base model and that of the data decide, and the program that "
        "made this card knows neither. Name it here before you publish the model.",
        "",
    ]
    card: Any = hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines))
    return str(card)


def _relation(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return "adapter"
    return "quantized" if any(folder.glob("*.gguf")) else "finetune"


def _library(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG).is_file():
        return "peft"
    return "gguf" if any(folder.glob("*.gguf")) else "transformers"


def _about_training(model: ModelReference) -> list[str]:
    if model.run is None:
        return ["- The run is not on the machine that made this card."]
    facts = model.run.facts()
    settings = model.run.settings()
    lines: list[str] = []
    if (samples := facts.get("training_samples")) is not None:
        skipped = len(model.run.lines("skipped.jsonl"))
        left_out = f" ({skipped:,} more were left out)" if skipped else ""
        lines.append(f"- Trained on {samples:,} samples{left_out}.")
    values = ", ".join(f"`{name.upper()}` {getattr(settings, name)}" for name in _SETTINGS)
    return [*lines, f"- Settings: {values}."]


def _scores(results: Path, model: ModelReference) -> list[str]:
    """The table of an evaluation of this model; nothing if the file scores another one."""
    try:
        values = read_json_object(results)
    except (OSError, ValueError):
        return []
    if values.get("model_path") != model.sampler_path:
        return []
    metrics = cast("dict[str, dict[str, Any]]", values.get("metrics") or {})
    base = cast("dict[str, Any]", values.get("base") or {}).get("metrics", {})
    count = cast("dict[str, Any]", values.get("counts") or {}).get("evaluated")
    rows = [
        f"| {words} | {_share(metrics[name])} | {_share(base.get(name))} |"
        for name, words in _SCORES.items()
        if isinstance(metrics.get(name), dict)
    ]
    if not rows:
        return []
    heading = ["## Scores", "", f"On {count} questions of a test set, with 95 % intervals:", ""]
    return [*heading, "| Measure | Model | Base model |", "| --- | --- | --- |", *rows, ""]


def _share(metric: Any) -> str:
    if not isinstance(metric, dict):
        return ""
    values = cast("dict[str, Any]", metric)
    low, high = values.get("interval_95") or (None, None)
    interval = "" if low is None or high is None else f" ({low:.1%} to {high:.1%})"
    return f"{values['rate']:.1%}{interval}"
