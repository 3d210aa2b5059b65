r"""MANO, the Multipole Attention Neural Operator, as a model of neuraloperator.

``import mano_op`` registers it, so that neuraloperator's ``get_model(config)`` finds it as ``"mano"``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mano_op.errors import InputError, check_whole
from mano_op.grid import Grid, Registration
from mano_op.layers.multipole import MultipoleAttention
from mano_op.models.block import Block, Mlp, NonLinearity, width
from mano_op.models.grid_model import GridModel


class MANO(GridModel, name="MANO"):
    r"""Multipole Attention Neural Operator: a map from fields to fields on a uniform grid.

    Lift the channels of each point, apply blocks of multipole attention and a pointwise MLP, project:

    .. math::

        z = P\,[a; x], \qquad
        z \leftarrow z + \mathrm{MA}(z),\quad z \leftarrow z + \mathrm{MLP}(z)
        \quad (\times\, n_{layers}), \qquad
        u = Q(\mathrm{LN}(z)) .

    MA is `mano_op.layers.multipole.MultipoleAttention`: attention within windows at full resolution and on a
    pyramid of coarser levels, at a cost linear in the number of points. With 3 levels and windows of 4 a
    layer sees all of a 16-point grid; a larger one needs more levels, about :math:`\log_2 n - 1`. It
    takes the place of FNO's spectral convolution, and the model that of
    ``neuralop.models.FNO``: the same training code works with either.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and the output fields.
    hidden_channels : int
        Width of the network.
    n_layers : int
        Number of blocks.
    n_heads : int
        Attention heads; divides `hidden_channels`.
    n_dim : int
        Spatial dimensions, 1 to 3.

    Other Parameters
    ----------------
    window : int
        Points along each side of an attention window, on every level.
    halo : int
        Points beyond a window that its queries see too.
    n_levels : int
        Levels of the pyramid, the input's own included; each has half as many points a side as the one
        before.
    channel_mlp_expansion : float
        Hidden width of the blocks' MLP over `hidden_channels`.
    projection_channel_ratio : float
        Hidden width of the projection Q over `hidden_channels`.
    non_linearity : {"gelu", "relu", "silu", "tanh"}
        Of the MLPs and the projection.
    positional_embedding : {"grid", None}
        "grid" appends the coordinates of the points, scaled to [0, 1], to the input's channels; on a
        periodic axis their sine and cosine.
    registration : {"node", "node_both", "cell"}
        Where the points of your fields lie; see `mano_op.grid`. neuraloperator's Darcy data is "node".
    periodic : bool or sequence of bool
        Whether each axis wraps around.

    Notes
    -----
    Resolution: the model takes any grid size, but `window`, `halo` and `n_levels` count points of the grid
    that comes in. A model trained on one grid sees half as far on one twice as fine, and its error
    grows. Until levels are physical lengths, predict on the training grid and interpolate
    (`mano_op.transfer.evaluate_transfer` judges both).

    Every option is a plain value, so a checkpoint holds no code.

    References
    ----------
    .. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.

    Examples
    --------
    >>> import torch
    >>> from mano_op import MANO
    >>> model = MANO(in_channels=1, out_channels=1, hidden_channels=16, n_layers=2, n_heads=2)
    >>> model(torch.rand(4, 1, 16, 16)).shape
    torch.Size([4, 1, 16, 16])
    """

    _version = "1"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        hidden_channels: int = 32,
        n_layers: int = 4,
        n_heads: int = 4,
        n_dim: int = 2,
        window: int = 4,
        halo: int = 1,
        n_levels: int = 3,
        channel_mlp_expansion: float = 2.0,
        projection_channel_ratio: float = 2.0,
        non_linearity: NonLinearity = "gelu",
        positional_embedding: Literal["grid"] | None = "grid",
        registration: Registration = "node",
        periodic: bool | Sequence[bool] = False,
    ) -> None:
        super().__init__()
        check_whole(
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            n_layers=n_layers,
        )
        if positional_embedding not in ("grid", None):
            raise InputError(
                f"positional_embedding={positional_embedding!r}, expected 'grid', which appends coordinates, "
                "or None"
            )
        self.in_channels, self.out_channels, self.n_dim = in_channels, out_channels, n_dim
        self.registration, self.positional_embedding = registration, positional_embedding
        blocks = [
            Block(
                MultipoleAttention(
                    hidden_channels,
                    n_heads,
                    n_dim=n_dim,
                    window=window,
                    halo=halo,
                    n_levels=n_levels,
                    registration=registration,
                    periodic=periodic,
                ),
                Mlp(
                    hidden_channels,
                    width(hidden_channels, channel_mlp_expansion=channel_mlp_expansion),
                    hidden_channels,
                    norm=True,
                    non_linearity=non_linearity,
                ),
            )
            for _ in range(n_layers)
        ]
        self.periodic = (periodic,) * n_dim if isinstance(periodic, bool) else tuple(periodic)
        n_coordinates = n_dim + sum(self.periodic) if positional_embedding == "grid" else 0
        self.lifting = nn.Linear(in_channels + n_coordinates, hidden_channels)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(hidden_channels)
        self.projection = Mlp(
            hidden_channels,
            width(hidden_channels, projection_channel_ratio=projection_channel_ratio),
            out_channels,
            norm=False,
            non_linearity=non_linearity,
        )

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``.

        neuraloperator's Trainer passes every entry of a sample, ``y`` too; the others are not used.
        """
        self._check_input(x)
        if self.positional_embedding == "grid":
            coordinates = self.coordinates(x.shape[2:]).to(x)
            x = torch.cat([x, coordinates.expand(len(x), *coordinates.shape)], dim=1)
        return self._map(x)

    def coordinates(self, shape: Sequence[int]) -> Tensor:
        """The channels that "grid" appends, ``(n_coordinates, *shape)``."""
        mesh = Grid.uniform(shape, registration=self.registration, periodic=self.periodic).mesh
        channels = []
        for coordinate, wraps in zip(torch.as_tensor(mesh), self.periodic, strict=True):
            turn = 2 * torch.pi * coordinate
            channels += [turn.sin(), turn.cos()] if wraps else [coordinate]
        return torch.stack(channels)
