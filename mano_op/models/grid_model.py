"""What MANO's models of fields have in common: the way through them, and what they take."""

from __future__ import annotations

import torch
from einops import rearrange
from neuralop.models.base_model import BaseModel
from torch import Tensor

from mano_op.errors import InputError
from mano_op.models.data_model import DataModel


class GridModel(DataModel, name="_grid_model"):
    """Lift the channels of each point, apply blocks, project; with checks of the input.

    A subclass builds ``lifting``, ``blocks``, ``norm`` and ``projection``, and sets ``in_channels`` and
    ``n_dim``.
    """

    in_channels: int
    n_dim: int

    def _map(self, x: Tensor) -> Tensor:
        """Lift, blocks, project."""
        x = self._lift(x)
        for block in self.blocks:
            x = block(x)
        return self._project(x)

    def _lift(self, x: Tensor) -> Tensor:
        return rearrange(self.lifting(rearrange(x, "b c ... -> b ... c")), "b ... c -> b c ...")

    def _project(self, x: Tensor) -> Tensor:
        out: Tensor = self.projection(x, before=self.norm)
        return out

    def _check_input(self, x: Tensor) -> None:
        if x.ndim != self.n_dim + 2 or x.shape[1] != self.in_channels or 0 in x.shape[2:]:
            raise InputError(
                f"{self._name} got an input of shape {tuple(x.shape)}, expected (batch, "
                f"in_channels={self.in_channels}, {', '.join(f'n_{i + 1}' for i in range(self.n_dim))}), "
                "each n at least 1: reshape it, or build the model with your data's in_channels and n_dim"
            )
        if not x.is_floating_point():
            raise InputError(f"{self._name} got {x.dtype} input, expected a floating type: use x.float()")
        dtype = self.lifting.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"{self._name} got {x.dtype} input and has {dtype} parameters: use x.to({dtype}), or "
                f"model.to({x.dtype})"
            )


# A base class is not a model to ask for: neuraloperator registers every subclass as one.
del BaseModel._models["_grid_model"]
