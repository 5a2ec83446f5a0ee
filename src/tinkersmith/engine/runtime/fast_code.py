"""A loaded model -> the same with what makes it fast on this machine."""

from tinkersmith.engine.gpu.recorded_passes import with_recorded_passes
from tinkersmith.engine.kernels.native.build import cache_folder, native_library
from tinkersmith.engine.model.base_model import BaseModel
from tinkersmith.engine.runtime.compilation import compile_elementwise
from tinkersmith.engine.runtime.native_code import with_native_code

_TINY = 20_000_000  # parameters


def with_fast_code(base: BaseModel) -> BaseModel:
    """The same model with what makes its dense path fast on this machine, kept for later runs."""
    if base.device.type == "cpu" and (library := native_library(cache_folder())) is not None:
        faster = with_native_code(base, library)
        if faster is not base:
            return faster
    # A tiny model's functions are not worth the wait for the compiler.
    large = base.model.num_parameters() >= _TINY
    return with_recorded_passes(compile_elementwise(base, cache_folder()) if large else base)
