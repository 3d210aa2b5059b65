r"""Patches: an image as a field of features, and the steps from each stage of a backbone to the next.

The words and the arithmetic are Swin Transformer's [1]_, so that its weights fit. An image is a grid of
cells. Where its end cuts a patch, each line of the patch is filled up with the mean of the pixels it has
(`mano_op.layers.pyramid.fill_last_cells`), so that every size works and no black border comes in.

References
----------
.. [1] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883.
"""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mano_op.layers.pyramid import fill_last_cells


class PatchEmbedding(nn.Module):
    r"""The features of each patch of p x p pixels: a linear map of its pixels, and a LayerNorm.

    Parameters
    ----------
    in_channels, channels : int
    patch_size : int
        Pixels along each side, p.

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
    r"""Half as many points a side, with twice the features: a linear map of 2 x 2 points, and a LayerNorm.

    Parameters
    ----------
    channels : int
        Of the input.

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
        # Of the four points first the two of the left column, as Swin has them.
        four = rearrange(fill_last_cells(x, 2), "b c (h i) (w j) -> b h w (j i c)", i=2, j=2)
        return rearrange(self.norm(self.reduction(four)), "b h w c -> b c h w")
