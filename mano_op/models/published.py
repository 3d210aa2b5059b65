"""MANO as published, ``"mano_published"`` in neuraloperator's registry."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import Sampling
from mano_op.models.grid_model import GridModel, Network
from mano_op.options import Count, Positive, checked, with_fields_of


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
        As in `MultipoleAttention.published`.
    channel_mlp_expansion, projection_channel_ratio : float
        As in `MANO`.

    Notes
    -----
    The number of levels and their factorial damping follow from the size of the grid, so the same parameters
    are another operator on another grid.

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

    @with_fields_of(Network)
    @checked
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        n_heads: Count = 4,
        head_dim: Count | None = None,
        n_dim: Count = 2,
        window: Count = 2,
        stride: Count = 1,
        rate: Count = 2,
        n_levels: Count | None = None,
        sampling: Sampling = "conv",
        projection_channel_ratio: Positive = 0.5,
        **network: Any,
    ) -> None:
        super().__init__()
        parts = Network(projection_channel_ratio=projection_channel_ratio, **network)
        self.in_channels, self.out_channels, self.n_dim = in_channels, out_channels, n_dim
        self.lifting = nn.Linear(in_channels, parts.hidden_channels)
        self.blocks = parts.blocks(
            lambda _: MultipoleAttention.published(
                parts.hidden_channels,
                n_heads,
                n_dim=n_dim,
                head_dim=head_dim,
                window=window,
                stride=stride,
                rate=rate,
                n_levels=n_levels,
                sampling=sampling,
            ),
            "gelu",
        )
        self.norm = nn.LayerNorm(parts.hidden_channels)
        self.projection = parts.projection(out_channels, "tanh")

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``.

        The other entries of a sample are not used.
        """
        self._check_input(x)
        return self._map(x)
