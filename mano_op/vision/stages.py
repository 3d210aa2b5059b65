r"""Parts of a backbone in stages: patch embedding, Swin's block with multipole attention, patch merging.

Names and arithmetic are those of Swin Transformer V2 (arXiv:2111.09883), so that its weights fit. An image is
a grid of cells. Where its end cuts a patch, each line of the patch is completed with the mean of its pixels
(`mano_op.layers.pyramid.fill_last_cells`): every size works, and no black border appears.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import fill_last_cells
from mano_op.layers.tokens import at_points
from mano_op.models.block import Mlp


def per_stage(name: str, value: int | Sequence[int], n_stages: int) -> list[int]:
    """Return a number for each stage, from one for all or a sequence."""
    values = list(value) if isinstance(value, Sequence) else [value] * n_stages
    if len(values) != n_stages or not values:
        raise InputError(f"{name}={value!r}, expected one for each of {n_stages} stages, at least 1")
    return values


class PatchEmbedding(nn.Module):
    r"""Linear map of the pixels of each p x p patch (`patch_size` p), and a LayerNorm.

    Examples
    --------
    >>> import torch
    >>> patches = PatchEmbedding(3, 8, patch_size=4)
    >>> patches(torch.rand(2, 3, 9, 16)).shape
    torch.Size([2, 8, 3, 4])
    """

    def __init__(self, in_channels: int, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.project = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, h, w)`` to ``(batch, channels, ceil(h / p), ceil(w / p))``."""
        p = self.patch_size
        pixels = rearrange(fill_last_cells(x, p), "b c (h i) (w j) -> b h w (c i j)", i=p, j=p)
        tokens = self.norm(F.linear(pixels, self.project.weight.flatten(1), self.project.bias))
        return rearrange(tokens, "b h w c -> b c h w")


class PatchMerging(nn.Module):
    r"""Linear map of 2 x 2 points to one of twice the channels, and a LayerNorm.

    Examples
    --------
    >>> import torch
    >>> merging = PatchMerging(8)
    >>> merging(torch.rand(2, 8, 5, 6)).shape
    torch.Size([2, 16, 3, 3])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to ``(batch, 2 channels, ceil(h / 2), ceil(w / 2))``."""
        # Swin's order of the four points: down the left column first.
        four = rearrange(fill_last_cells(x, 2), "b c (h i) (w j) -> b h w (j i c)", i=2, j=2)
        return rearrange(self.norm(self.reduction(four)), "b h w c -> b c h w")


class SwinBlock(nn.Module):
    r"""Block of Swin Transformer V2 with multipole attention: it normalises what it adds, not its input.

    .. math::

        x \leftarrow x + \mathrm{LN}_1(\mathrm{MA}(x)), \qquad x \leftarrow x + \mathrm{LN}_2(\mathrm{MLP}(x))

    Parameters
    ----------
    attention : MultipoleAttention
    mlp : Mlp
        Of as many channels.
    drop_path : float
        Stochastic depth: the probability that a sample skips an addition in training; others are scaled up.

    Examples
    --------
    >>> import torch
    >>> attention = MultipoleAttention.swin(8, n_heads=2, window=4)
    >>> block = SwinBlock(attention, Mlp(8, 32, 8, norm=False, non_linearity="gelu"))
    >>> x = torch.rand(1, 8, 6, 6)
    >>> bool((block(x) == x).all())  # the identity, as Swin starts
    True
    """

    def __init__(self, attention: MultipoleAttention, mlp: Mlp, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention, self.mlp, self.drop_path = attention, mlp, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(attention.channels), nn.LayerNorm(attention.channels)
        for norm in (self.norm1, self.norm2):
            nn.init.zeros_(norm.weight)  # training starts at the identity

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to the same shape."""
        x = self._add(x, self.attention(x), self.norm1)
        return self._add(x, self.mlp(x), self.norm2)

    def _add(self, x: Tensor, update: Tensor, norm: nn.LayerNorm) -> Tensor:
        update = at_points(norm, update)
        if self.training and self.drop_path:
            kept = 1 - self.drop_path
            update = update * (update.new_empty(len(x), 1, 1, 1).bernoulli_(kept) / kept)
        return x + update
