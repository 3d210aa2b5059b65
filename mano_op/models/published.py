r"""MANO as published, to compare with.

``import mano_op`` registers it with neuraloperator as ``"mano_published"``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mano_op.errors import check_whole
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import Sampling
from mano_op.models.block import Block, Mlp, width
from mano_op.models.grid_model import GridModel


class PublishedMANO(GridModel, name="MANO_published"):
    r"""MANO as published [1]_: the baseline to compare `MANO` with.

    The same succession of lifting, blocks and projection, with the published attention
    (`MultipoleAttention.published`), no coordinates, and a hyperbolic tangent in the projection.

    Parameters
    ----------
    in_channels, out_channels, hidden_channels, n_layers, n_heads, n_dim : int
        As in `MANO`.
    head_dim : int, optional
        Channels of a head; ``hidden_channels // n_heads`` if not given.
    window, stride, rate, n_levels, sampling
        As in `MultipoleAttention.published`; `n_levels` None takes as many as fit.
    channel_mlp_expansion, projection_channel_ratio : float
        As in `MANO`.

    Notes
    -----
    The number of levels follows from the size of the grid, and with it the factorial damping of all of
    them: the same parameters are another operator on another grid.

    References
    ----------
    .. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.

    Examples
    --------
    >>> import torch
    >>> model = PublishedMANO(in_channels=3, out_channels=1, hidden_channels=8, n_layers=2, n_heads=2)
    >>> model(torch.rand(1, 3, 16, 16)).shape
    torch.Size([1, 1, 16, 16])
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
        head_dim: int | None = None,
        n_dim: int = 2,
        window: int = 2,
        stride: int = 1,
        rate: int = 2,
        n_levels: int | None = None,
        sampling: Sampling = "conv",
        channel_mlp_expansion: float = 2.0,
        projection_channel_ratio: float = 0.5,
    ) -> None:
        super().__init__()
        check_whole(
            in_channels=in_channels,
            out_channels=out_channels,
            hidden_channels=hidden_channels,
            n_layers=n_layers,
        )
        self.in_channels, self.out_channels, self.n_dim = in_channels, out_channels, n_dim
        self.lifting = nn.Linear(in_channels, hidden_channels)
        self.blocks = nn.ModuleList(
            Block(
                MultipoleAttention.published(
                    hidden_channels,
                    n_heads,
                    n_dim=n_dim,
                    head_dim=head_dim,
                    window=window,
                    stride=stride,
                    rate=rate,
                    n_levels=n_levels,
                    sampling=sampling,
                ),
                Mlp(
                    hidden_channels,
                    width(hidden_channels, channel_mlp_expansion=channel_mlp_expansion),
                    hidden_channels,
                    norm=True,
                    non_linearity="gelu",
                ),
            )
            for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(hidden_channels)
        self.projection = Mlp(
            hidden_channels,
            width(hidden_channels, projection_channel_ratio=projection_channel_ratio),
            out_channels,
            norm=False,
            non_linearity="tanh",
        )

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``.

        The other entries of a sample are not used.
        """
        self._check_input(x)
        return self._map(x)
