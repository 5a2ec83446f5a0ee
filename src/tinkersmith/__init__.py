"""From a JSON file of samples to a fine-tuned model: data, LoRA training, scores, export.

The public names load on first use, so that `import tinkersmith` stays quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tinkersmith.version import __version__ as __version__

if TYPE_CHECKING:
    from tinkersmith.errors import UserError
    from tinkersmith.evaluation.evaluate import evaluate
    from tinkersmith.export.export import export_model
    from tinkersmith.settings.fields import Settings
    from tinkersmith.training.finish import TrainedRun
    from tinkersmith.training.train import train


__all__ = ["Settings", "TrainedRun", "UserError", "evaluate", "export_model", "train"]

_HOMES = {
    "Settings": "settings.fields",
    "TrainedRun": "training.finish",
    "UserError": "errors",
    "evaluate": "evaluation.evaluate",
    "export_model": "export.export",
    "train": "training.train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinkersmith' has no attribute {name!r}")
    return getattr(import_module(f"tinkersmith.{_HOMES[name]}"), name)
