"""The states of layers that carry one from token to token, such as a gated delta-net or a Mamba.

Axes: B rows; K tokens that a convolution sees; a state has further axes of its layer's own.
"""

from collections.abc import Iterator

import torch

_Key = tuple[str, int, int]  # "conv" or "recurrent", the layer's index, the state's number in it


class LayerStates:
    """States of some rows in all layers that have one. No state at all is the same as zeros.

    A layer reads and writes it by the methods of transformers' caches that such layers call. Where
    gradients are computed, a new state takes the place of the one before, which they need.
    """

    def __init__(self) -> None:
        self.tensors: dict[_Key, torch.Tensor] = {}  # each (B, ...)

    # ---- what layers call

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.tensors.get(("conv", layer_idx, state_idx))

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> torch.Tensor | None:
        return self.tensors.get(("recurrent", layer_idx, state_idx))

    def has_previous_state(self, layer_idx: int, state_idx: int = 0) -> bool:
        return ("conv", layer_idx, state_idx) in self.tensors

    def is_recording_past(self, layer_idx: int) -> bool:
        return False

    def update_conv_state(
        self,
        conv_states: torch.Tensor,  # (B, channels, new tokens)
        layer_idx: int,
        state_idx: int = 0,
        conv_kernel_size: int | None = None,
    ) -> torch.Tensor:
        """Keep the last K inputs of a convolution; returns all that it sees now."""
        size = conv_states.shape[-1] if conv_kernel_size is None else conv_kernel_size
        key = ("conv", layer_idx, state_idx)
        before = self.tensors.get(key)
        if before is None:
            missing = max(0, size - conv_states.shape[-1])
            seen = torch.nn.functional.pad(conv_states, (missing, 0))
            self.tensors[key] = seen[..., -size:].clone()
        else:
            seen = torch.cat([before, conv_states], -1)
            self._renew(key, before, seen[..., -size:])
        return seen

    def update_recurrent_state(
        self, recurrent_states: torch.Tensor, layer_idx: int, state_idx: int = 0
    ) -> torch.Tensor:
        key = ("recurrent", layer_idx, state_idx)
        before = self.tensors.get(key)
        if before is None:
            self.tensors[key] = recurrent_states.clone()
        else:
            self._renew(key, before, recurrent_states)
        return self.tensors[key]

    def _renew(self, key: _Key, before: torch.Tensor, state: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self.tensors[key] = state.to(before.dtype)
        else:
            before.copy_(state)

    # ---- what a sampler calls

    def first(self, rows: int) -> "LayerStates":
        """The states of the first rows; what is written to them is written here."""
        view = LayerStates()
        view.tensors = {key: tensor[:rows] for key, tensor in self.tensors.items()}
        return view

    def copy(self) -> "LayerStates":
        copy = LayerStates()
        copy.tensors = {key: tensor.clone() for key, tensor in self.tensors.items()}
        return copy

    def adopt(self, view: "LayerStates", rows: int) -> None:
        """Take over states that layers have made in a view, where there were none."""
        for key, tensor in view.tensors.items():
            if key not in self.tensors:
                self.tensors[key] = tensor.new_zeros(rows, *tensor.shape[1:])
                self.tensors[key][: len(tensor)] = tensor

    def put(self, row: int, states: "LayerStates | None", rows: int) -> None:
        """Begin one of `rows` rows with the only row of `states`, or without a state."""
        for key, tensor in states.tensors.items() if states else ():
            if key not in self.tensors:
                self.tensors[key] = tensor.new_zeros(rows, *tensor.shape[1:])
            self.tensors[key][row] = tensor[0]
        if states is None:
            for tensor in self.tensors.values():
                tensor[row] = 0

    def move(self, source: int, target: int) -> None:
        for tensor in self.tensors.values():
            tensor[target] = tensor[source]

    def resize(self, rows: int) -> None:
        for key, old in self.tensors.items():
            self.tensors[key] = old.new_zeros(rows, *old.shape[1:])
            used = min(rows, len(old))
            self.tensors[key][:used] = old[:used]

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def layers(self) -> Iterator[int]:
        """The indices of layers that have a state, each once, in order."""
        return iter(sorted({layer for _, layer, _ in self.tensors}))
