r"""MANO for images: a backbone in stages, as Swin Transformer's, with multipole attention in every block.

``import mano_op.vision`` registers it with neuraloperator as ``"mano_classifier"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from einops import rearrange
from pydantic import StrictBool
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mano_op.errors import InputError
from mano_op.layers.anchors import Anchoring, anchoring
from mano_op.layers.attention import SwinPositionBias, WindowAttention
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import covering_levels
from mano_op.models.block import Block, Mlp, width
from mano_op.models.coordinates import grid_points, with_coordinates
from mano_op.models.data_model import DataModel
from mano_op.options import Count, Fraction, Positive, Whole, checked
from mano_op.vision.resize import Size, height_width
from mano_op.vision.stages import PatchEmbedding, PatchMerging, SwinBlock, per_stage

# Pixels, of all images, that are done at a time where no gradient is recorded.
_TILE = 2**14
# An image is a grid of cells that wraps nowhere.
_CELLS: tuple[Literal["cell"], tuple[bool, bool]] = ("cell", (False, False))


class MANOClassifier(DataModel, name="MANO_classifier"):
    r"""Image classifier: patches, stages of blocks with multipole attention, mean over the image, head.

    .. math::

        z_1 = \mathrm{LN}(P\, x), \qquad
        z_s \leftarrow \mathrm{Block}(z_s)\ (\times\, depth_s), \qquad
        z_{s+1} = \mathrm{LN}(M_s\, z_s), \qquad
        \text{logits} = H\, \overline{\mathrm{LN}(z_S)}

    with the patch embedding P and M, which merges 2 x 2 points into one of twice the features. The defaults
    are the shape of Swin-V2-Tiny [1]_, with `mano_op.layers.multipole.MultipoleAttention` in place of Swin's
    window attention, as in [2]_: coarser levels show every block the rest of the image.
    `mano_op.vision.swin.from_swin_v2` starts from Swin's weights.

    Parameters
    ----------
    in_channels : int
        3 for colours, 1 for grey.
    n_classes : int

    Other Parameters
    ----------------
    image_size : int or sequence of int
        Height and width, in pixels, that levels are chosen for. Images may have other sizes.
    patch_size : int
        Pixels along each side of a patch.
    embed_dim : int
        Features of the first stage; each further one has twice as many as the one before.
    depths, n_heads : sequence of int
        Blocks and attention heads of each stage.
    window, halo : int
        Points along each side of an attention window, and seen beyond it, on the grids of stage and level.
    n_levels : int or sequence of int, optional
        Levels of the attention in each stage; by default as many as it takes for a window of the coarsest to
        cover an image of `image_size`. 1 is Swin.
    shifted : bool
        Whether every other block shifts its windows by half a window, as in Swin.
    blocks : {"swin", "operator"}
        "swin": cosine attention, Swin's position bias, one attention for all levels, post-norm
        (`mano_op.vision.stages.SwinBlock`). "operator": dot products, an attention for each level, pre-norm,
        as in `MANO` (`mano_op.models.block.Block`).
    mlp_ratio : float
        Hidden width of the MLPs over their features.
    bias_window : int or sequence of int, optional
        Window that the position bias of "swin" blocks counts offsets in, one for all stages or for each, if
        weights were trained with smaller windows. By default, or if 0, `window` cut to the stage.
    drop_path : float
        Stochastic depth of the last block, in [0, 1); it grows linearly from the first block, which has none.
        Of "swin" blocks.
    positional_embedding : {"grid", None}
        "grid" appends the coordinates of the pixels, scaled to [0, 1], to the image's channels.
    anchored : bool
        Whether `image_size` is the network's reference grid, as in `MANO`: a finer image is averaged to it,
        goes through the network there, and its own pixels attend to the sources there; a coarser one is
        interpolated. Requires patches of one pixel and a single stage.
    checkpointed : bool
        Whether blocks are recomputed in the backward pass (`torch.utils.checkpoint`), for a half to a third
        of the memory of large images. Not for images of another size in an anchored network.

    Attributes
    ----------
    feature_channels, feature_strides : tuple of int
        Channels of the fields that `forward_features` returns, and their pixels from one point to the next.

    Notes
    -----
    Images may have any size. Patches that the image's end cuts are completed, and windows that it cuts have
    fewer keys. Swin attends to zeros there: with its weights the two agree where the points of each stage are
    a multiple of the window, or, for a square `image_size`, fewer than a window.

    A larger image has more patches, not larger ones: without `anchored`, lengths count in pixels. Images of
    one scene at other resolutions are better resized to that of the training first.

    References
    ----------
    .. [1] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883.
    .. [2] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.

    Examples
    --------
    >>> import torch
    >>> model = MANOClassifier(3, 10, image_size=64, embed_dim=16, depths=[1, 2], n_heads=[2, 4], window=4)
    >>> model(torch.rand(2, 3, 64, 48)).shape
    torch.Size([2, 10])
    >>> [tuple(field.shape) for field in model.forward_features(torch.rand(2, 3, 64, 48))]
    [(2, 16, 16, 12), (2, 32, 8, 6)]
    """

    _version = "1"

    @checked
    def __init__(
        self,
        in_channels: Count = 3,
        n_classes: Count = 1000,
        *,
        image_size: Size = 256,
        patch_size: Count = 4,
        embed_dim: Count = 96,
        depths: Sequence[Count] = (2, 2, 6, 2),
        n_heads: Sequence[Count] = (3, 6, 12, 24),
        window: Count = 8,
        halo: Whole = 0,
        n_levels: Count | Sequence[Count] | None = None,
        shifted: StrictBool = True,
        blocks: Literal["swin", "operator"] = "swin",
        mlp_ratio: Positive = 4.0,
        bias_window: Whole | Sequence[Whole] | None = None,
        drop_path: Fraction = 0.0,
        positional_embedding: Literal["grid"] | None = None,
        anchored: StrictBool = False,
        checkpointed: StrictBool = False,
    ) -> None:
        super().__init__()
        size, n_stages, n_blocks = height_width(image_size), len(depths), sum(depths)
        n_heads = per_stage("n_heads", n_heads, n_stages)
        for name, value in (("drop_path", drop_path), ("bias_window", bias_window)):
            if value and blocks != "swin":
                raise InputError(f"{name}={value!r} with blocks={blocks!r}, which have none: leave it out")
        drops = [drop_path * i / max(1, n_blocks - 1) for i in range(n_blocks)]
        if anchored and (patch_size != 1 or n_stages != 1 or blocks != "operator" or shifted):
            raise InputError(
                f"anchored=True with patch_size={patch_size}, {n_stages} stages, blocks={blocks!r} and "
                f"shifted={shifted}, expected 1, one stage, 'operator' and False: use MANOClassifier.plain, "
                "or resize the images"
            )
        self.in_channels, self.n_classes, self.n_dim = in_channels, n_classes, 2
        self.image_size, self.anchored, self.positional_embedding = size, anchored, positional_embedding
        self.checkpointed = checkpointed
        self.feature_channels = tuple(embed_dim * 2**i for i in range(n_stages))
        self.feature_strides = tuple(patch_size * 2**i for i in range(n_stages))
        grids = [tuple(-(-n // stride) for n in size) for stride in self.feature_strides]
        if n_levels is None:
            n_levels = [covering_levels(grid, window) for grid in grids]
        levels = per_stage("n_levels", n_levels, n_stages)
        counted = [
            # Swin cuts the window to the stage, and counts offsets in the cut window.
            tuple(counts or min(window, n) for n in grid)
            for counts, grid in zip(per_stage("bias_window", bias_window or 0, n_stages), grids, strict=True)
        ]

        coordinates = 0 if positional_embedding is None else 2
        self.patches = PatchEmbedding(in_channels + coordinates, embed_dim, patch_size)
        self.stages = nn.ModuleList()
        self.merging = nn.ModuleList(PatchMerging(channels) for channels in self.feature_channels[:-1])
        each = zip(self.feature_channels, depths, n_heads, levels, counted, strict=True)
        for channels, depth, heads, n, counts in each:
            hidden = width(channels, mlp_ratio=mlp_ratio)
            stage = nn.ModuleList()
            for i in range(depth):
                shift = window // 2 if shifted and i % 2 else 0
                attention = _attention(blocks, channels, heads, window, halo, shift, n, counts)
                norm = blocks == "operator"
                mlp = Mlp(channels, hidden, channels, norm=norm, non_linearity="gelu")
                stage.append(Block(attention, mlp) if norm else SwinBlock(attention, mlp, drops.pop(0)))
            self.stages.append(stage)
        self.norm = nn.LayerNorm(self.feature_channels[-1])
        self.head = nn.Linear(self.feature_channels[-1], n_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def plain(
        cls,
        in_channels: int = 3,
        n_classes: int = 1000,
        *,
        image_size: Size,
        channels: int = 32,
        n_layers: int = 4,
        n_heads: int = 4,
        window: int = 4,
        halo: int = 1,
        n_levels: int | None = None,
        mlp_ratio: float = 2.0,
    ) -> MANOClassifier:
        """The network of `mano_op.MANO`: one resolution, every pixel a point, anchored to `image_size`.

        Examples
        --------
        >>> import torch
        >>> model = MANOClassifier.plain(1, 10, image_size=8)
        >>> model(torch.rand(5, 1, 16, 16)).shape
        torch.Size([5, 10])
        """
        return cls(
            in_channels,
            n_classes,
            image_size=image_size,
            patch_size=1,
            embed_dim=channels,
            depths=[n_layers],
            n_heads=[n_heads],
            window=window,
            halo=halo,
            n_levels=n_levels,
            shifted=False,
            blocks="operator",
            mlp_ratio=mlp_ratio,
            positional_embedding="grid",
            anchored=True,
        )

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, height, width)`` to logits, ``(batch, n_classes)``."""
        self._check_field(x, "height, width", self.head.weight.dtype)
        shape = tuple(x.shape[2:])
        if self.anchored and shape != self.image_size:
            place = anchoring(shape, self.image_size, *_CELLS)
            points = math.prod(place.working.shape)
            parts = self._tiles(x, place, points if torch.is_grad_enabled() else _TILE // max(1, len(x)))
            pooled = torch.stack([part.sum((2, 3)) for part in parts]).sum(0) / points
        else:
            pooled = self._features(x)[-1].mean((2, 3))
        out: Tensor = self.head(pooled)
        return out

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """The fields at the end of each stage, finest first; the last one normalised, as the head has it.

        Shapes are ``(batch, feature_channels[s], ceil(height / feature_strides[s]), ...)``. With `anchored`
        there is one, of the size of the image, or of `image_size` if that is larger.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        shape = tuple(x.shape[2:])
        if self.anchored and shape != self.image_size:
            place = anchoring(shape, self.image_size, *_CELLS)
            return self._tiles(x, place, math.prod(place.working.shape))
        return self._features(x)

    def _features(self, x: Tensor) -> list[Tensor]:
        """The fields at the end of each stage."""
        x = self.patches(self._located(x, grid_points(x.shape[2:], *_CELLS)))
        fields = []
        for i, stage in enumerate(self.stages):
            x = self.merging[i - 1](x) if i else x
            for block in cast(nn.ModuleList, stage):
                again = self.checkpointed and torch.is_grad_enabled()
                x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            fields.append(x)
        fields[-1] = self._normalised(x)
        return fields

    def _tiles(self, x: Tensor, place: Anchoring, most: int) -> list[Tensor]:
        """Return the last features at the points of the finer grid of image and reference, in tiles."""
        x = place.lift(x)
        reference = grid_points(self.image_size, *_CELLS)
        anchors = self.patches(self._located(place.anchors(x), reference))
        blocks = [cast(Block, block) for stage in self.stages for block in cast(nn.ModuleList, stage)]
        sources = []
        for block in blocks:
            anchors, of_block = block.on_reference(anchors)
            sources.append(of_block)
        if not place.refines:
            return [self._normalised(anchors)]
        parts = []
        for tile in place.tiles(most):
            fine = self.patches(self._located(tile.smooth(x), tile.points))
            for block, of_block in zip(blocks, sources, strict=True):
                fine = block.between(fine, of_block, tile)
            parts.append(self._normalised(fine))
        return parts

    def _normalised(self, x: Tensor) -> Tensor:
        return rearrange(self.norm(rearrange(x, "b c h w -> b h w c")), "b h w c -> b c h w")

    def _located(self, x: Tensor, points: Sequence[Tensor]) -> Tensor:
        return x if self.positional_embedding is None else with_coordinates(x, points, (False, False))


def _attention(
    blocks: str,
    channels: int,
    heads: int,
    window: int,
    halo: int,
    shift: int,
    n_levels: int,
    bias_window: tuple[int, ...],
) -> MultipoleAttention:
    """The attention of a block, whose position bias counts in a window of some points along each side."""
    options: dict[str, Any] = {"window": window, "halo": halo, "shift": shift, "n_levels": n_levels}
    if blocks == "operator":
        return MultipoleAttention(channels, heads, **options, registration="cell")
    layer = MultipoleAttention.swin(channels, heads, **options)
    cast(SwinPositionBias, cast(WindowAttention, layer.attention[0]).bias).window = bias_window
    return layer
