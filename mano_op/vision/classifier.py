r"""MANO for images: a backbone in stages, as Swin Transformer's, with multipole attention in every block.

``import mano_op.vision`` registers it with neuraloperator as ``"mano_classifier"``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from mano_op.grid import Grid
from mano_op.layers.attention import SwinPositionBias, WindowAttention
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import covering_levels
from mano_op.layers.refinement import Refinement, Stages, run, run_by_parts
from mano_op.layers.tokens import at_points
from mano_op.models.block import KEPT, Block, Mlp, recomputed, width
from mano_op.models.coordinates import grid_points, with_coordinates
from mano_op.models.data_model import DataModel
from mano_op.options import with_fields_of
from mano_op.vision.options import MANOOptions, Size, height_width
from mano_op.vision.stages import PatchEmbedding, PatchMerging, SwinBlock, per_stage

# Pixels, of all images, that are done at a time where no gradient is recorded.
_TILE = 2**14
_CELLS: tuple[Literal["cell"], tuple[bool, bool]] = "cell", (False, False)  # of images, which wrap nowhere


class MANOClassifier(DataModel, name="MANO_classifier"):
    r"""Image classifier: patches, stages of blocks with multipole attention, mean over the image, head.

    .. math::

        z_1 = \mathrm{LN}(P\, x), \qquad
        z_s \leftarrow \mathrm{Block}(z_s)\ (\times\, depth_s), \qquad
        z_{s+1} = \mathrm{LN}(M_s\, z_s), \qquad
        \text{logits} = H\, \overline{\mathrm{LN}(z_S)}

    with the patch embedding P and M, which merges 2 x 2 points into one of twice the features. The defaults
    are the shape of Swin-V2-Tiny (arXiv:2111.09883), with `mano_op.layers.multipole.MultipoleAttention` in
    place of Swin's window attention, as in arXiv:2507.02748: coarser levels show every block the whole image.

    Parameters
    ----------
    in_channels, n_classes : int
    **options
        Of `mano_op.vision.options.MANOOptions`: ``image_size=256, depths=(2, 2, 6, 2), window=8, ...``.

    Attributes
    ----------
    feature_channels, feature_strides : tuple of int
        Channels of the fields that `forward_features` returns, and their pixels from one point to the next.

    Notes
    -----
    Images may have any size. Patches that the image's end cuts are completed, and windows that it cuts have
    fewer keys. Swin attends to zeros there: with its weights the two agree where the points of each stage are
    a multiple of the window, or, for a square `image_size`, fewer than a window. Without `anchored`, lengths
    count in pixels: better resize images of one scene to the resolution of the training first.

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

    @with_fields_of(MANOOptions)
    def __init__(self, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> None:
        super().__init__()
        config = MANOOptions(in_channels=in_channels, n_classes=n_classes, **options)
        size, window, n_stages = height_width(config.image_size), config.window, len(config.depths)
        n_blocks = sum(config.depths)
        drops = [config.drop_path * i / max(1, n_blocks - 1) for i in range(n_blocks)]
        self.in_channels, self.n_classes, self.n_dim = in_channels, n_classes, 2
        self.image_size, self.anchored, self.checkpointed = size, config.anchored, config.checkpointed
        self.positional_embedding = config.positional_embedding
        self.feature_channels = tuple(config.embed_dim * 2**i for i in range(n_stages))
        self.feature_strides = tuple(config.patch_size * 2**i for i in range(n_stages))
        grids = [tuple(-(-n // stride) for n in size) for stride in self.feature_strides]
        levels = [covering_levels(grid, window) for grid in grids]
        n_heads = per_stage("n_heads", config.n_heads, n_stages)
        n_levels = per_stage("n_levels", levels if config.n_levels is None else config.n_levels, n_stages)
        bias_windows = per_stage("bias_window", config.bias_window or 0, n_stages)
        coordinates = 0 if config.positional_embedding is None else 2
        self.patches = PatchEmbedding(in_channels + coordinates, config.embed_dim, config.patch_size)
        self.stages = nn.ModuleList()
        self.merging = nn.ModuleList(PatchMerging(channels) for channels in self.feature_channels[:-1])
        operator = config.blocks == "operator"
        for s, channels in enumerate(self.feature_channels):
            hidden = width(channels, mlp_ratio=config.mlp_ratio)
            # Swin cuts the window to the stage, and counts offsets in the cut window.
            bias_window = tuple(bias_windows[s] or min(window, n) for n in grids[s])
            stage = nn.ModuleList()
            shape: dict[str, Any] = {"window": window, "halo": config.halo, "n_levels": n_levels[s]}
            for i in range(config.depths[s]):
                shape["shift"] = window // 2 if config.shifted and i % 2 else 0
                if operator:
                    attention = MultipoleAttention(channels, n_heads[s], registration="cell", **shape)
                else:
                    attention = MultipoleAttention.swin(channels, n_heads[s], **shape)
                    bias = cast(WindowAttention, attention.attention[0]).bias
                    cast(SwinPositionBias, bias).window = bias_window
                mlp = Mlp(channels, hidden, channels, norm=operator, non_linearity="gelu")
                stage.append(Block(attention, mlp) if operator else SwinBlock(attention, mlp, drops.pop(0)))
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
        **options: Any,
    ) -> MANOClassifier:
        """Build the network of `mano_op.MANO`: one resolution, each pixel a point, anchored to `image_size`.

        Further `options` are those of the class, by default ``window=4, halo=1, mlp_ratio=2.0``.

        Examples
        --------
        >>> import torch
        >>> model = MANOClassifier.plain(1, 10, image_size=8)
        >>> model(torch.rand(5, 1, 16, 16)).shape
        torch.Size([5, 10])
        """
        stage = {"patch_size": 1, "embed_dim": channels, "depths": [n_layers], "n_heads": [n_heads]}
        plain = {"shifted": False, "blocks": "operator", "positional_embedding": "grid", "anchored": True}
        defaults = {"window": 4, "halo": 1, "mlp_ratio": 2.0}
        return cls(in_channels, n_classes, image_size=image_size, **stage, **plain, **(defaults | options))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, height, width)`` to logits, ``(batch, n_classes)``."""
        place = self._place(x)
        if place is None or not place.refines or torch.is_grad_enabled():
            pooled = self._features(x, place)[-1].mean((2, 3))
        else:
            parts = run_by_parts(x, place, self._stages, _TILE // max(1, len(x)), settled=False)
            pooled = torch.stack([part.sum((2, 3)) for _, part in parts]).sum(0) / math.prod(place.working)
        out: Tensor = self.head(pooled)
        return out

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the fields at the end of each stage, finest first; the last one normalised, as for the head.

        Shapes are ``(batch, feature_channels[s], ceil(height / feature_strides[s]), ...)``. With `anchored`
        there is one, of the size of the image, or of `image_size` if that is larger.
        """
        return self._features(x, self._place(x))

    def _place(self, x: Tensor) -> Refinement | None:
        """Return the grid of an image beside the reference; None without a reference, or on it."""
        self._check_field(x, "height, width", self.norm.weight.dtype)
        shape = tuple(x.shape[2:])
        if not self.anchored or shape == self.image_size:
            return None
        registration, periodic = _CELLS
        return Refinement(Grid.uniform(self.image_size, registration=registration, periodic=periodic), shape)

    def _features(self, x: Tensor, place: Refinement | None) -> list[Tensor]:
        if place is not None:
            return [run(x, place, self._stages, settled=False)]
        x = self.patches(self._located(x, grid_points(x.shape[2:], "cell", x.device)))
        fields = []
        for i, stage in enumerate(self.stages):
            x = self.merging[i - 1](x) if i else x
            for block in cast(nn.ModuleList, stage):
                x = recomputed(block, x, most=0 if self.checkpointed else KEPT)
            fields.append(x)
        return [*fields[:-1], at_points(self.norm, x)]

    @property
    def _stages(self) -> Stages:
        """Lifting, blocks and norm of an anchored network."""
        return Stages(
            lift=lambda x, points: self.patches(self._located(x, points)),
            blocks=[block for stage in self.stages for block in cast(nn.ModuleList, stage)],
            head=lambda x, points: at_points(self.norm, x),
        )

    def _located(self, x: Tensor, points: Sequence[Tensor]) -> Tensor:
        return x if self.positional_embedding is None else with_coordinates(x, points, (False, False))
