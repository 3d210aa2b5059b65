"""ViT and Swin-V2 of Hugging Face transformers, as models of neuraloperator's registry.

Importing this module registers them as ``"vit_classifier"`` and ``"swin_classifier"``. transformers, of
``pip install 'mano_op[vision]'``, is imported when the first of them is built.
"""

from __future__ import annotations

from typing import Any, Self, cast

from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.models.data_model import DataModel
from mano_op.options import with_fields_of
from mano_op.vision.decode import require
from mano_op.vision.options import ClassifierOptions, SwinOptions, ViTOptions, height_width
from mano_op.vision.stages import per_stage

_STD = 0.02  # of initial weights, in the papers


class _Classifier(DataModel, name="_transformers_classifier"):
    """A backbone of transformers, whose features a linear `head` maps to logits."""

    _version = "1"
    n_dim = 2

    def _set(self, config: ClassifierOptions, backbone: nn.Module, channels: int) -> None:
        self.in_channels, self.backbone = config.in_channels, backbone
        self.head = nn.Linear(channels, config.n_classes)
        nn.init.normal_(self.head.weight, std=_STD)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images ``(batch, in_channels, h, w)`` to logits, ``(batch, n_classes)``."""
        norm = cast(nn.LayerNorm, self.backbone.layernorm)  # no layer that quantisation replaces
        self._check_field(x, "height, width", norm.weight.dtype)
        logits: Tensor = self.head(self._features(x))
        return logits

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build the smallest published shape, ViT-Tiny or Swin-V2-T, with some `options` changed.

        Examples
        --------
        >>> sum(p.numel() for p in ViTClassifier.tiny().parameters())
        5717416
        """
        return cls(in_channels, n_classes, **options)


class ViTClassifier(_Classifier, name="ViT_classifier"):
    """Vision transformer (arXiv:2010.11929): dense attention between all patches of an image.

    `backbone` is transformers' ``ViTModel``; `head` maps its normalised class token to logits.

    Parameters
    ----------
    in_channels, n_classes : int
    **options
        Of `mano_op.vision.options.ViTOptions`: ``image_size=224, patch_size=16, ...``. For images of other
        sizes the positions of a square `image_size` are interpolated.

    Examples
    --------
    >>> import torch
    >>> model = ViTClassifier(3, 10, image_size=32, patch_size=8, embed_dim=16, depth=2, n_heads=2)
    >>> model(torch.rand(1, 3, 64, 48)).shape
    torch.Size([1, 10])
    """

    @with_fields_of(ViTOptions)
    def __init__(self, in_channels: int, n_classes: int, **options: Any) -> None:
        super().__init__()
        config = ViTOptions(in_channels=in_channels, n_classes=n_classes, **options)
        transformers = require("transformers")
        self.patch_size, self.image_size = config.patch_size, height_width(config.image_size)
        theirs = transformers.ViTConfig(
            image_size=self.image_size,
            patch_size=config.patch_size,
            num_channels=in_channels,
            hidden_size=config.embed_dim,
            num_hidden_layers=config.depth,
            num_attention_heads=config.n_heads,
            intermediate_size=int(config.mlp_ratio * config.embed_dim),
            hidden_dropout_prob=config.drop,
            attention_probs_dropout_prob=config.attention_drop,
            attn_implementation=config.attention,
            initializer_range=_STD,
            layer_norm_eps=1e-6,  # the paper's; transformers' 1e-12 is lost in single precision
        )
        self._set(config, transformers.ViTModel(theirs, add_pooling_layer=False), config.embed_dim)

    def _features(self, x: Tensor) -> Any:
        """Return the class token; images that patches do not tile, or positions not fit, are refused."""
        size, p = tuple(x.shape[2:]), self.patch_size
        other = size != self.image_size
        if any(n % p for n in size) or (other and self.image_size[0] != self.image_size[1]):
            raise InputError(
                f"images of {size[0]} x {size[1]} for image_size={self.image_size} and patch_size={p}: give "
                "images whose sides are multiples of patch_size, or of image_size itself if it is not square"
            )
        return self.backbone(x, interpolate_pos_encoding=other).last_hidden_state[:, 0]


class SwinClassifier(_Classifier, name="Swin_classifier"):
    """Swin-V2 (arXiv:2111.09883): attention in windows, shifted in every other block, on ever coarser grids.

    `backbone` is transformers' ``Swinv2Model``; `head` maps the mean of its normalised features to logits.
    Each block starts as the identity, its norms at 0, as in the authors' code and timm, not in transformers.

    Parameters
    ----------
    in_channels, n_classes : int
    **options
        Of `mano_op.vision.options.SwinOptions`: ``image_size=256, depths=(2, 2, 6, 2), window=8, ...``.
        Windows are laid out for `image_size`; images of other sizes are completed with zeros.

    Examples
    --------
    >>> import torch
    >>> model = SwinClassifier(3, 10, image_size=32, embed_dim=16, depths=[2, 2], n_heads=[2, 4], window=4)
    >>> model(torch.rand(1, 3, 50, 64)).shape
    torch.Size([1, 10])
    """

    @with_fields_of(SwinOptions)
    def __init__(self, in_channels: int, n_classes: int, **options: Any) -> None:
        super().__init__()
        config = SwinOptions(in_channels=in_channels, n_classes=n_classes, **options)
        transformers = require("transformers")
        theirs = transformers.Swinv2Config(
            image_size=height_width(config.image_size),
            patch_size=config.patch_size,
            num_channels=in_channels,
            embed_dim=config.embed_dim,
            depths=list(config.depths),
            num_heads=per_stage("n_heads", config.n_heads, len(config.depths)),
            window_size=config.window,
            mlp_ratio=config.mlp_ratio,
            hidden_dropout_prob=config.drop,
            attention_probs_dropout_prob=config.attention_drop,
            drop_path_rate=config.drop_path,
            initializer_range=_STD,
        )
        backbone = transformers.Swinv2Model(theirs)
        for name, parameter in backbone.named_parameters():
            if name.endswith(("layernorm_before.weight", "layernorm_after.weight")):
                nn.init.zeros_(parameter)
        self._set(config, backbone, backbone.num_features)

    def _features(self, x: Tensor) -> Any:
        return self.backbone(x).pooler_output

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Build Swin-V2-T, with stochastic depth 0.2, with some `options` changed."""
        return super().tiny(in_channels, n_classes, **{"drop_path": 0.2, **options})
