"""A model folder -> a base model whose dense path plain torch computes."""

from pathlib import Path

from tinkersmith.engine.kernels.choose import with_torch_kernels
from tinkersmith.engine.model.base_model import BaseModel, load_base_model


def load_with_torch(name: str, folder: Path, dtype: str = "auto", device: str = "cpu") -> BaseModel:
    return with_torch_kernels(load_base_model(name, folder, dtype, device))
