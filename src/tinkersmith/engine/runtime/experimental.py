"""The options for code that has hardly run on a GPU: each is off unless the user asks for it.

This is the only place that names engine/gpu/, and it imports a module of it only when asked to.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tinkersmith.engine.errors import Refused
from tinkersmith.engine.kernels.products import TorchProducts
from tinkersmith.engine.model.base_model import BaseModel, LinearStorage
from tinkersmith.engine.model.kernels import Elementwise, Products
from tinkersmith.engine.sampling.sampler import OwnSampler, Sampler


@dataclass(frozen=True, slots=True)
class Experimental:
    """The experimental options that the user asked for."""

    float8: bool = False  # --dtype float8
    graphs: bool = False  # --gpu-graphs
    vllm: bool = False  # --sampler vllm

    def check(self, device: torch.device) -> None:
        """Check what can be known before the engine serves.

        Raises:
            Refused: an option would have no effect here, or would not work.
        """
        if device.type != "cuda":
            for asked, option in (
                (self.float8, "--dtype float8 needs a GPU; on a CPU use --dtype bfloat16."),
                (self.graphs, "--gpu-graphs needs a GPU; on a CPU leave it out."),
                (self.vllm, "--sampler vllm needs a GPU; on a CPU leave it out."),
            ):
                if asked:
                    raise Refused(option)
        if self.vllm and self.float8:
            raise Refused(
                "--sampler vllm reads the weights from the model's folder and cannot be used with "
                "--dtype float8; leave one of them out."
            )
        if self.float8:
            from tinkersmith.engine.gpu.float8 import check_device

            check_device(device)
        if self.vllm:
            from tinkersmith.engine.gpu.vllm_sampler import check_installed

            check_installed()

    def storage(self) -> LinearStorage | None:
        """How the layers of a base model are stored; None: in the model's dtype."""
        if not self.float8:
            return None
        from tinkersmith.engine.gpu.float8 import FLOAT8

        return FLOAT8

    def products(self, base: BaseModel) -> Callable[[Elementwise], Products]:
        """What makes the products of a model that was loaded with `storage`."""
        if not self.float8:
            return TorchProducts
        from tinkersmith.engine.gpu.float8 import float8_products

        return float8_products(base)

    def with_graphs(self, base: BaseModel) -> BaseModel:
        """The model, its training passes launched as CUDA graphs if asked for.

        Raises:
            Refused: that is not possible for this model.
        """
        if not self.graphs:
            return base
        from tinkersmith.engine.gpu.cuda_graphs import with_cuda_graphs

        return with_cuda_graphs(base)

    def sampler(self) -> Sampler:
        """What answers sampling requests."""
        if not self.vllm:
            return OwnSampler()
        from tinkersmith.engine.gpu.vllm_sampler import VllmSampler

        return VllmSampler()


NOTHING = Experimental()
