"""ViT and Swin-V2 of Hugging Face transformers, as models of neuraloperator's registry.

Importing this module registers them as ``"vit_classifier"`` and ``"swin_classifier"``. transformers, of
``pip install 'mano_op[vision]'``, is imported when the first of them is built.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn

from mano_op.errors import InputError, check_whole
from mano_op.models.data_model import DataModel
from mano_op.vision.decode import require
from mano_op.vision.options import check_heads, check_shares, check_stages
from mano_op.vision.resize import height_width

_STD = 0.02  # of initial weights, in the papers


class ViTClassifier(DataModel, name="ViT_classifier"):
    r"""Vision transformer [1]_: dense attention between all patches of an image.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : int or (int, int)
        Height and width. For images of other sizes the positions of a square `image_size` are interpolated.
    patch_size : int
    embed_dim, depth, n_heads : int
        Channels of a token, number of blocks, heads of each.
    mlp_ratio : float
        Hidden channels of the MLPs over `embed_dim`.
    drop, attention_drop : float
        Dropout of the tokens' features and of the attention.
    attention : {"sdpa", "eager"}
        torch's kernel, which keeps no scores, or scores as a matrix. Outputs are the same.

    Notes
    -----
    `backbone` is transformers' ``ViTModel``; `head` maps its normalised class token to logits. transformers
    checks the options; `mano_op.registry.build_model` turns its errors into `InputError`.

    References
    ----------
    .. [1] Dosovitskiy et al. (2021), An Image is Worth 16x16 Words: Transformers for Image Recognition at
       Scale, ICLR.

    Examples
    --------
    >>> import torch
    >>> model = ViTClassifier(3, 10, image_size=32, patch_size=8, embed_dim=16, depth=2, n_heads=2)
    >>> model(torch.rand(1, 3, 64, 48)).shape
    torch.Size([1, 10])
    """

    _version = "1"

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        *,
        image_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        n_heads: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        # What transformers would take, and make another model of.
        check_whole(depth=depth, n_heads=n_heads, hidden_channels=int(mlp_ratio * embed_dim))
        check_heads(embed_dim, n_heads)
        transformers = require("transformers")
        self.in_channels, self.n_dim = in_channels, 2
        self.patch_size, self.image_size = patch_size, height_width(image_size)
        config = transformers.ViTConfig(
            image_size=self.image_size,
            patch_size=patch_size,
            num_channels=in_channels,
            hidden_size=embed_dim,
            num_hidden_layers=depth,
            num_attention_heads=n_heads,
            intermediate_size=int(mlp_ratio * embed_dim),
            hidden_dropout_prob=drop,
            attention_probs_dropout_prob=attention_drop,
            attn_implementation=attention,
            initializer_range=_STD,
            layer_norm_eps=1e-6,  # the paper's; transformers' 1e-12 is lost in single precision
        )
        self.backbone = transformers.ViTModel(config, add_pooling_layer=False)
        self.head = _head(embed_dim, n_classes)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to logits, ``(batch, n_classes)``.

        Other entries of a sample are ignored.

        Raises
        ------
        InputError
            If the patches do not tile the image, or its size is another one and `image_size` not square.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        size, p = tuple(x.shape[2:]), self.patch_size
        other = size != self.image_size
        if any(n % p for n in size) or (other and self.image_size[0] != self.image_size[1]):
            raise InputError(
                f"images of {size[0]} x {size[1]} for image_size={self.image_size} and patch_size={p}: give "
                "images whose sides are multiples of patch_size, or of image_size itself if it is not square"
            )
        tokens = self.backbone(x, interpolate_pos_encoding=other).last_hidden_state
        logits: Tensor = self.head(tokens[:, 0])
        return logits

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build ViT-Tiny, the default shape, with some `options` changed.

        Examples
        --------
        >>> sum(p.numel() for p in ViTClassifier.tiny().parameters())
        5717416
        """
        return cls(in_channels, n_classes, **options)


class SwinClassifier(DataModel, name="Swin_classifier"):
    r"""Swin-V2 [1]_: attention in windows, shifted in every second block, on ever coarser grids.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : int or (int, int)
        Height and width that windows are laid out for; images of other sizes are completed with zeros.
    patch_size : int
    embed_dim : int
        Channels of a token in the first stage.
    depths, n_heads : sequence of int
        Blocks of each stage, and their heads.
    window : int
        Points along each side of a window.
    mlp_ratio : float
        Hidden channels of the MLPs over those of a token.
    drop, attention_drop : float
        Dropout of the tokens' features and of the attention.
    drop_path : float
        Stochastic depth of the last block; it grows linearly from 0 in the first.

    Notes
    -----
    `backbone` is transformers' ``Swinv2Model``; `head` maps the mean of its normalised features to logits.
    Each block starts as the identity, its norms at 0, as in the authors' code and timm, not in transformers.
    transformers checks the options; `mano_op.registry.build_model` turns its errors into `InputError`.

    References
    ----------
    .. [1] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, CVPR.

    Examples
    --------
    >>> import torch
    >>> model = SwinClassifier(
    ...     3, 10, image_size=32, embed_dim=16, depths=(2, 2), n_heads=(2, 4), window=4
    ... )
    >>> model(torch.rand(1, 3, 50, 64)).shape
    torch.Size([1, 10])
    """

    _version = "1"

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        *,
        image_size: int | Sequence[int] = 256,
        patch_size: int = 4,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        n_heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 8,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_stages(embed_dim, depths, n_heads)
        check_shares(drop_path=drop_path)
        transformers = require("transformers")
        self.in_channels, self.n_dim = in_channels, 2
        config = transformers.Swinv2Config(
            image_size=height_width(image_size),
            patch_size=patch_size,
            num_channels=in_channels,
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=list(n_heads),
            window_size=window,
            mlp_ratio=float(mlp_ratio),
            hidden_dropout_prob=drop,
            attention_probs_dropout_prob=attention_drop,
            drop_path_rate=drop_path,
            initializer_range=_STD,
        )
        self.backbone = transformers.Swinv2Model(config)
        for stage in self.backbone.encoder.layers:
            for block in stage.blocks:
                nn.init.zeros_(block.layernorm_before.weight)
                nn.init.zeros_(block.layernorm_after.weight)
        self.head = _head(self.backbone.num_features, n_classes)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to logits, ``(batch, n_classes)``.

        Other entries of a sample are ignored.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        logits: Tensor = self.head(self.backbone(x).pooler_output)
        return logits

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build Swin-V2-T, the default shape with stochastic depth 0.2, with some `options` changed.

        Examples
        --------
        >>> sum(p.numel() for p in SwinClassifier.tiny().parameters())
        28347154
        """
        return cls(in_channels, n_classes, **{"drop_path": 0.2, **options})


def _head(channels: int, n_classes: int) -> nn.Linear:
    head = nn.Linear(channels, n_classes)
    nn.init.normal_(head.weight, std=_STD)
    nn.init.zeros_(head.bias)
    return head
