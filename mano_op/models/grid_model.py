"""What MANO's models of fields have in common: the way through them, and what they take."""

from __future__ import annotations

from einops import rearrange
from neuralop.models.base_model import BaseModel
from torch import Tensor

from mano_op.models.data_model import DataModel


class GridModel(DataModel, name="_grid_model"):
    """Lift the channels of each point, apply blocks, project; with checks of the input.

    A subclass builds ``lifting``, ``blocks``, ``norm`` and ``projection``, and sets ``in_channels`` and
    ``n_dim``.
    """

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
        names = ", ".join(f"n_{i + 1}" for i in range(self.n_dim))
        self._check_field(x, names, self.lifting.weight.dtype)


# A base class is not a model to ask for: neuraloperator registers every subclass as one.
del BaseModel._models["_grid_model"]
