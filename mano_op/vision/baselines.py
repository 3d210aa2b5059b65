"""ViT and Swin-V2, to compare with: Hugging Face transformers' own, as models of neuraloperator's registry.

Importing this module registers them as ``"vit_classifier"`` and ``"swin_classifier"``. transformers itself is
imported when the first of them is built; it comes with ``pip install 'mano_op[vision]'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from torch import Tensor, nn

from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.models.data_model import DataModel
from mano_op.vision.options import check_heads, check_shares, check_stages
from mano_op.vision.resize import size_of

# Of the weights at the start, in the papers and their code, whose truncation at 100 times that cuts nothing.
_SPREAD = 0.02


class ViTClassifier(DataModel, name="ViT_classifier"):
    r"""A vision transformer [1]_: dense attention between all patches of an image.

    A patch is mapped linearly to a token, a class token is put before them, learned positions are added,
    and blocks follow:

    .. math::

        z \leftarrow z + \mathrm{attention}(\mathrm{norm}(z)), \qquad
        z \leftarrow z + \mathrm{mlp}(\mathrm{norm}(z))

    The logits are a linear map, `head`, of the normalised class token. The rest, `backbone`, is
    transformers' ``ViTModel``.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : int or pair of int
        Height and width of the images, multiples of the patches. The model takes others too: see Notes.
    patch_size : int
    embed_dim, depth, n_heads : int
        Channels of a token, number of blocks, heads of each.
    mlp_ratio : float
        Hidden channels of the MLPs over `embed_dim`.
    drop, attention_drop : float
        Shares that dropout takes of the tokens' features and of the attention.
    attention : {"sdpa", "eager"}
        By torch's kernel, which keeps no scores, or with the scores written out. Outputs are the same.

    Attributes
    ----------
    backbone : nn.Module
    head : nn.Linear

    Raises
    ------
    InputError
        If an option cannot be used, or transformers is not installed.

    Notes
    -----
    On images of another size the positions are interpolated, bicubically with cell centres
    (``align_corners=False``), from the square of `image_size` to the patches of the image. So `image_size`
    has to be square for that.

    Weights start normal with a standard deviation of 0.02, as do the class token and the positions, which
    is how transformers draws them and, up to a truncation that cuts nothing, the papers' code; biases are 0.

    References
    ----------
    .. [1] Dosovitskiy et al. (2021), An Image is Worth 16x16 Words: Transformers for Image Recognition at
       Scale, ICLR.

    Examples
    --------
    >>> import torch
    >>> model = ViTClassifier(3, 10, image_size=32, patch_size=8, embed_dim=16, depth=2, n_heads=2)
    >>> model(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 10])
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
        check_whole(
            in_channels=in_channels,
            n_classes=n_classes,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            n_heads=n_heads,
        )
        size = size_of(image_size)
        if any(n % patch_size for n in size):
            raise InputError(
                f"image_size={image_size!r} is not cut into patches of patch_size={patch_size}: give "
                "multiples of it"
            )
        check_heads(embed_dim, n_heads)
        _check_ratio(mlp_ratio, embed_dim)
        check_shares(drop=drop, attention_drop=attention_drop)
        if attention not in ("sdpa", "eager"):
            raise InputError(f"attention={attention!r}, expected 'sdpa' or 'eager': give one of them")
        transformers = _transformers()
        self.in_channels, self.n_dim = in_channels, 2
        self.patch_size, self.image_size = patch_size, size
        self.backbone = transformers.ViTModel(
            transformers.ViTConfig(
                image_size=size,
                patch_size=patch_size,
                num_channels=in_channels,
                hidden_size=embed_dim,
                num_hidden_layers=depth,
                num_attention_heads=n_heads,
                intermediate_size=int(mlp_ratio * embed_dim),
                hidden_dropout_prob=drop,
                attention_probs_dropout_prob=attention_drop,
                attn_implementation=attention,
                initializer_range=_SPREAD,
                layer_norm_eps=1e-6,  # the papers'; transformers' 1e-12 is lost in single precision
            ),
            add_pooling_layer=False,
        )
        self.head = _head(embed_dim, n_classes)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images, ``(batch, in_channels, h, w)``, to logits, ``(batch, n_classes)``.

        The other entries of a sample are not used.

        Raises
        ------
        InputError
            If these are no images that the model takes.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        size = tuple(x.shape[2:])
        if any(n % self.patch_size for n in size):
            raise InputError(
                f"images of {size[0]} x {size[1]} are not cut into patches of patch_size={self.patch_size}: "
                "give images whose sides are multiples of it"
            )
        other = size != self.image_size
        if other and self.image_size[0] != self.image_size[1]:
            raise InputError(
                f"images of {size[0]} x {size[1]} for image_size={self.image_size}, whose positions are not "
                "interpolated, as they are no square: give images of that size, or build the model with a "
                "square one"
            )
        tokens = self.backbone(x, interpolate_pos_encoding=other).last_hidden_state
        logits: Tensor = self.head(tokens[:, 0])
        return logits

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """ViT-Tiny: patches of 16, images of 224, 12 blocks of 192 channels, unless `options` say otherwise.

        Examples
        --------
        >>> sum(p.numel() for p in ViTClassifier.tiny().parameters())
        5717416
        """
        return cls(in_channels, n_classes, **options)


class SwinClassifier(DataModel, name="Swin_classifier"):
    r"""Swin-V2 [1]_: attention in windows, which every second block shifts by half, on ever coarser grids.

    Scores are cosines, times a learned scale of at most 100, with a bias that a small MLP makes of the
    logarithm of the offset. In each block what is added is normalised last:

    .. math::

        z \leftarrow z + \mathrm{norm}(\mathrm{attention}(z)), \qquad
        z \leftarrow z + \mathrm{norm}(\mathrm{mlp}(z))

    Between stages the features of four points are mapped linearly to twice the channels of one. The logits
    are a linear map, `head`, of the mean of the last stage's normalised features. The rest, `backbone`, is
    transformers' ``Swinv2Model``.

    Parameters
    ----------
    in_channels, n_classes : int
    image_size : int or pair of int
        Height and width of the images. The model takes others too: see Notes.
    patch_size : int
    embed_dim : int
        Channels of a token in the first stage.
    depths, n_heads : sequence of int
        Blocks, and heads of each, by stage.
    window : int
        Points along each side of a window.
    mlp_ratio : float
        Hidden channels of the MLPs over those of a token.
    drop, attention_drop : float
        Shares that dropout takes of the tokens' features and of the attention.
    drop_path : float
        Stochastic depth: with which probability the last block is skipped; it grows linearly from 0 in the
        first.

    Attributes
    ----------
    backbone : nn.Module
    head : nn.Linear

    Raises
    ------
    InputError
        If an option cannot be used, or transformers is not installed.

    Notes
    -----
    Where the grid of a stage is no larger than a window at `image_size`, that stage has one window of the
    grid's height, and no shift. The windows stay what they are on images of other sizes. Images that are not
    a multiple of the patches, grids that are not one of the windows, and odd ones that are to be halved are
    completed with zeros, to which other points attend: transformers and torchvision do it so.

    Weights start normal with a standard deviation of 0.02, scales at 10, biases at 0, and the weights of the
    norms in blocks at 0, so that each block starts as the identity. The last is the authors' initialisation
    and timm's, not transformers', which has 1.

    References
    ----------
    .. [1] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, CVPR.

    Examples
    --------
    >>> import torch
    >>> model = SwinClassifier(
    ...     3, 10, image_size=32, embed_dim=16, depths=(2, 2), n_heads=(2, 4), window=4
    ... )
    >>> model(torch.rand(1, 3, 32, 32)).shape
    torch.Size([1, 10])
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
        check_whole(
            in_channels=in_channels,
            n_classes=n_classes,
            patch_size=patch_size,
            embed_dim=embed_dim,
            window=window,
        )
        size = size_of(image_size)
        check_stages(embed_dim, depths, n_heads)
        coarsest = patch_size * 2 ** (len(depths) - 1)
        if min(size) < coarsest:
            raise InputError(
                f"image_size={image_size!r} has no point left in the last of {len(depths)} stages, expected "
                f"at least {coarsest}: give larger images, smaller patches or fewer stages"
            )
        _check_ratio(mlp_ratio, embed_dim)
        check_shares(drop=drop, attention_drop=attention_drop, drop_path=drop_path)
        transformers = _transformers()
        self.in_channels, self.n_dim = in_channels, 2
        self.backbone = transformers.Swinv2Model(
            transformers.Swinv2Config(
                image_size=size,
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
                initializer_range=_SPREAD,
            )
        )
        for stage in self.backbone.encoder.layers:
            for block in stage.blocks:
                for norm in (block.layernorm_before, block.layernorm_after):
                    nn.init.zeros_(norm.weight)
        self.head = _head(self.backbone.num_features, n_classes)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map images, ``(batch, in_channels, h, w)``, to logits, ``(batch, n_classes)``.

        The other entries of a sample are not used.

        Raises
        ------
        InputError
            If these are no images that the model takes.
        """
        self._check_field(x, "height, width", self.head.weight.dtype)
        logits: Tensor = self.head(self.backbone(x).pooler_output)
        return logits

    @classmethod
    def tiny(cls, in_channels: int = 3, n_classes: int = 1000, **options: Any) -> Self:
        """Swin-V2-T, windows of 8 on images of 256, stochastic depth 0.2, unless `options` say otherwise.

        Examples
        --------
        >>> sum(p.numel() for p in SwinClassifier.tiny().parameters())
        28347154
        """
        return cls(in_channels, n_classes, **{"drop_path": 0.2, **options})


def _transformers() -> Any:
    """Hugging Face's library, when it is needed: to import it takes seconds."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"ViT and Swin are Hugging Face transformers', and {error.name} is not installed: "
            "pip install 'mano_op[vision]'"
        ) from error
    return transformers


def _head(channels: int, n_classes: int) -> nn.Linear:
    head = nn.Linear(channels, n_classes)
    nn.init.normal_(head.weight, std=_SPREAD)
    nn.init.zeros_(head.bias)
    return head


def _check_ratio(mlp_ratio: object, channels: int) -> None:
    check_finite_number(zero=False, mlp_ratio=mlp_ratio)
    if int(mlp_ratio * channels) < 1:  # type: ignore[operator]
        raise InputError(
            f"mlp_ratio={mlp_ratio!r} of {channels} channels leaves no hidden one: give at least "
            f"{1 / channels:.2g}"
        )
