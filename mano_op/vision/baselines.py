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
from mano_op.options import Count, Fraction, Positive, checked
from mano_op.vision.decode import require
from mano_op.vision.resize import Size, height_width
from mano_op.vision.stages import per_stage

_STD = 0.02  # of initial weights, in the papers


class _Classifier(DataModel, name="_transformers_classifier"):
    """A backbone of transformers, whose features a linear `head` maps to logits."""

    _version = "1"
    n_dim = 2

    def _set(self, in_channels: int, n_classes: int, backbone: nn.Module, channels: int) -> None:
        self.in_channels, self.backbone = in_channels, backbone
        self.head = nn.Linear(channels, n_classes)
        nn.init.normal_(self.head.weight, std=_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to logits, ``(batch, n_classes)``.

        Other entries of a sample are ignored.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        logits: Tensor = self.head(self._features(x))
        return logits


class ViTClassifier(_Classifier, name="ViT_classifier"):
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
    `backbone` is transformers' ``ViTModel``; `head` maps its normalised class token to logits.

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

    @checked
    def __init__(
        self,
        in_channels: Count,
        n_classes: Count,
        *,
        image_size: Size = 224,
        patch_size: Count = 16,
        embed_dim: Count = 192,
        depth: Count = 12,
        n_heads: Count = 3,
        mlp_ratio: Positive = 4.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        attention: Literal["sdpa", "eager"] = "sdpa",
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * embed_dim)
        check_whole(hidden_channels=hidden)
        if embed_dim % n_heads:  # of which transformers makes another model
            raise InputError(f"embed_dim={embed_dim}, expected a multiple of n_heads={n_heads}")
        transformers = require("transformers")
        self.patch_size, self.image_size = patch_size, height_width(image_size)
        config = transformers.ViTConfig(
            image_size=self.image_size,
            patch_size=patch_size,
            num_channels=in_channels,
            hidden_size=embed_dim,
            num_hidden_layers=depth,
            num_attention_heads=n_heads,
            intermediate_size=hidden,
            hidden_dropout_prob=drop,
            attention_probs_dropout_prob=attention_drop,
            attn_implementation=attention,
            initializer_range=_STD,
            layer_norm_eps=1e-6,  # the paper's; transformers' 1e-12 is lost in single precision
        )
        backbone = transformers.ViTModel(config, add_pooling_layer=False)
        self._set(in_channels, n_classes, backbone, embed_dim)

    def _features(self, x: Tensor) -> Tensor:
        """Return the class token; images that patches do not tile, or positions not fit, are refused."""
        size, p = tuple(x.shape[2:]), self.patch_size
        other = size != self.image_size
        if any(n % p for n in size) or (other and self.image_size[0] != self.image_size[1]):
            raise InputError(
                f"images of {size[0]} x {size[1]} for image_size={self.image_size} and patch_size={p}: give "
                "images whose sides are multiples of patch_size, or of image_size itself if it is not square"
            )
        tokens: Tensor = self.backbone(x, interpolate_pos_encoding=other).last_hidden_state
        return tokens[:, 0]

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build ViT-Tiny, the default shape, with some `options` changed.

        Examples
        --------
        >>> sum(p.numel() for p in ViTClassifier.tiny().parameters())
        5717416
        """
        return cls(in_channels, n_classes, **options)


class SwinClassifier(_Classifier, name="Swin_classifier"):
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

    @checked
    def __init__(
        self,
        in_channels: Count,
        n_classes: Count,
        *,
        image_size: Size = 256,
        patch_size: Count = 4,
        embed_dim: Count = 96,
        depths: Sequence[Count] = (2, 2, 6, 2),
        n_heads: Sequence[Count] = (3, 6, 12, 24),
        window: Count = 8,
        mlp_ratio: Positive = 4.0,
        drop: float = 0.0,
        attention_drop: float = 0.0,
        drop_path: Fraction = 0.0,
    ) -> None:
        super().__init__()
        transformers = require("transformers")
        config = transformers.Swinv2Config(
            image_size=height_width(image_size),
            patch_size=patch_size,
            num_channels=in_channels,
            embed_dim=embed_dim,
            depths=list(depths),
            num_heads=per_stage("n_heads", n_heads, len(depths)),
            window_size=window,
            mlp_ratio=mlp_ratio,
            hidden_dropout_prob=drop,
            attention_probs_dropout_prob=attention_drop,
            drop_path_rate=drop_path,
            initializer_range=_STD,
        )
        backbone = transformers.Swinv2Model(config)
        for stage in backbone.encoder.layers:
            for block in stage.blocks:
                nn.init.zeros_(block.layernorm_before.weight)
                nn.init.zeros_(block.layernorm_after.weight)
        self._set(in_channels, n_classes, backbone, backbone.num_features)

    def _features(self, x: Tensor) -> Tensor:
        """Return the mean of the normalised features."""
        features: Tensor = self.backbone(x).pooler_output
        return features

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build Swin-V2-T, the default shape with stochastic depth 0.2, with some `options` changed.

        Examples
        --------
        >>> sum(p.numel() for p in SwinClassifier.tiny().parameters())
        28347154
        """
        return cls(in_channels, n_classes, **{"drop_path": 0.2, **options})
