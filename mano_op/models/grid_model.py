"""Models of fields on uniform grids: lift, blocks, project."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from neuralop.models.base_model import BaseModel
from torch import Tensor, nn

from mano_op.layers.modes import LowModes
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.tokens import at_points
from mano_op.models.block import Block, Mlp, NonLinearity, width
from mano_op.models.data_model import DataModel
from mano_op.options import Count, Positive, options


@options
class Network:
    """Options of the network around the attention, under the names that FNO has for them.

    Parameters
    ----------
    hidden_channels : int
        Width of the network.
    n_layers : int
        Number of blocks.
    channel_mlp_expansion : float
        Hidden width of the blocks' MLP over `hidden_channels`.
    projection_channel_ratio : float
        Hidden width of the projection over `hidden_channels`.
    """

    hidden_channels: Count = 32
    n_layers: Count = 4
    channel_mlp_expansion: Positive = 2.0
    projection_channel_ratio: Positive = 2.0

    def blocks(
        self,
        mixing: Callable[[int], MultipoleAttention | LowModes],
        non_linearity: NonLinearity,
        *,
        norm: bool = True,
    ) -> nn.ModuleList:
        """Build the blocks, given a function from their number to attention or low modes."""
        channels, blocks = self.hidden_channels, nn.ModuleList()
        hidden = width(channels, channel_mlp_expansion=self.channel_mlp_expansion)
        for i in range(self.n_layers):
            layer = mixing(i)  # before the MLP, so that a seed gives the same parameters as ever
            mlp = Mlp(channels, hidden, channels, norm=norm, non_linearity=non_linearity)
            blocks.append(Block(layer, mlp))
        return blocks

    def projection(self, out_channels: int, non_linearity: NonLinearity) -> Mlp:
        """Build the projection."""
        hidden = width(self.hidden_channels, projection_channel_ratio=self.projection_channel_ratio)
        return Mlp(self.hidden_channels, hidden, out_channels, norm=False, non_linearity=non_linearity)


class GridModel(DataModel, name="_grid_model"):
    """Lift the channels of each point, apply blocks, project.

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
        return at_points(self.lifting, x)

    def _project(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.projection(at_points(self.norm, x)))

    def _check_input(self, x: Tensor) -> None:
        self._check_field(x, "", self._parameter.dtype)

    @property
    def _parameter(self) -> Tensor:
        """A parameter of a layer that quantisation does not replace."""
        return next(self.parameters())


# A base class is not a model to ask for: neuraloperator registers every subclass as one.
del BaseModel._models["_grid_model"]
