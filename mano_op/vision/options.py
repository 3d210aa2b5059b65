"""Options of the classifiers, each declared once: constructor keywords, kept in a model's ``config.json``."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any, Literal

from pydantic import SkipValidation

from mano_op.errors import InputError, check_whole
from mano_op.options import Count, Flag, Fraction, Positive, Whole, options

Size = Annotated[int | Sequence[int], SkipValidation]  # which `height_width` checks
_LARGEST_SIDE = 2**14


def height_width(image_size: Size) -> tuple[int, int]:
    """Return height and width, from one side or a pair; `InputError` unless they are from 1 to 16384."""
    sides: list[Any] = list(image_size) if isinstance(image_size, list | tuple) else [image_size] * 2
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not 1 <= min(sides) <= max(sides) <= _LARGEST_SIDE:
        raise InputError(
            f"image_size={image_size!r}, expected a side or (height, width), whole numbers from 1 to "
            f"{_LARGEST_SIDE}: give 32, say"
        )
    return int(sides[0]), int(sides[1])


@options
class ClassifierOptions:
    """Options of every classifier.

    Attributes
    ----------
    in_channels : int
        3 for colour, 1 for grey.
    n_classes : int
    image_size : int or (int, int)
        Height and width, in pixels. Images may have other sizes.
    patch_size : int
        Pixels along each side of a patch.
    embed_dim : int
        Channels of a token, in the first stage; each further stage has twice as many.
    mlp_ratio : float
        Hidden channels of the MLPs over those of a token.
    """

    in_channels: Count = 3
    n_classes: Count = 1000
    image_size: Size = 256
    patch_size: Count = 4
    embed_dim: Count = 96
    mlp_ratio: Positive = 4.0


@options
class TransformersOptions(ClassifierOptions):
    """Options of the classifiers from transformers.

    Attributes
    ----------
    drop, attention_drop : float
        Dropout of the tokens' features and of the attention.
    """

    drop: float = 0.0
    attention_drop: float = 0.0


@options
class ViTOptions(TransformersOptions):
    """Options of `ViTClassifier`; the defaults are ViT-Tiny.

    Attributes
    ----------
    depth, n_heads : int
        Number of blocks, and attention heads of each.
    attention : {"sdpa", "eager"}
        torch's kernel, which keeps no scores, or scores as a matrix. Outputs are the same.
    """

    image_size: Size = 224
    patch_size: Count = 16
    embed_dim: Count = 192
    depth: Count = 12
    n_heads: Count = 3
    attention: Literal["sdpa", "eager"] = "sdpa"

    def __post_init__(self) -> None:
        check_whole(hidden_channels=int(self.mlp_ratio * self.embed_dim))
        if self.embed_dim % self.n_heads:  # transformers would build another model
            raise InputError(f"embed_dim={self.embed_dim}, expected a multiple of n_heads={self.n_heads}")


@options
class StageOptions(ClassifierOptions):
    """Options of a classifier in stages; the defaults are Swin-V2-Tiny.

    Attributes
    ----------
    depths, n_heads : sequence of int
        Blocks and attention heads of each stage.
    window : int
        Points along each side of an attention window.
    drop_path : float
        Stochastic depth of the last block; it grows linearly from 0 in the first.
    """

    depths: Sequence[Count] = (2, 2, 6, 2)
    n_heads: Sequence[Count] = (3, 6, 12, 24)
    window: Count = 8
    drop_path: Fraction = 0.0


@options
class SwinOptions(StageOptions, TransformersOptions):
    """Options of `SwinClassifier`; the defaults are Swin-V2-Tiny without stochastic depth."""


@options
class MANOOptions(StageOptions):
    """Options of `MANOClassifier`; levels are chosen for `image_size`.

    Attributes
    ----------
    halo : int
        Points that a window attends to beyond its sides.
    n_levels : int or sequence of int, optional
        Levels of the attention in each stage; by default a window of the coarsest covers an image of
        `image_size`. 1 is Swin.
    shifted : bool
        Whether every other block shifts its windows by half a window, as in Swin.
    blocks : {"swin", "operator"}
        "swin": cosine attention, Swin's position bias, one attention for all levels, post-norm
        (`mano_op.vision.stages.SwinBlock`). "operator": dot products, an attention for each level, pre-norm,
        as in `MANO` (`mano_op.models.block.Block`).
    bias_window : int or sequence of int, optional
        Window in which the position bias of "swin" blocks counts offsets, for all stages or each, if weights
        were trained with smaller windows. By default, or if 0, `window` cut to the stage.
    positional_embedding : {"grid", None}
        "grid" appends the coordinates of the pixels, scaled to [0, 1], to the image's channels.
    anchored : bool
        Whether `image_size` is the network's reference grid, as in `MANO`: a finer image is averaged to the
        reference, goes through the network there, and its own pixels attend to the sources there; a coarser
        image is interpolated. Requires patches of one pixel and a single stage.
    checkpointed : bool
        Whether blocks keep the results of attention alone for the backward pass and compute the rest again,
        for half of the memory; above 12 MiB a field they always do. Not for images of another size in an
        anchored network.
    """

    halo: Whole = 0
    n_levels: Count | Sequence[Count] | None = None
    shifted: Flag = True
    blocks: Literal["swin", "operator"] = "swin"
    bias_window: Whole | Sequence[Whole] | None = None
    positional_embedding: Literal["grid"] | None = None
    anchored: Flag = False
    checkpointed: Flag = False

    def __post_init__(self) -> None:
        swins = [name for name in ("drop_path", "bias_window") if getattr(self, name)]
        if self.blocks != "swin" and swins:
            value = getattr(self, swins[0])
            raise InputError(
                f"{swins[0]}={value!r} with blocks={self.blocks!r}, which have none: leave it out"
            )
        shape = (self.patch_size, len(self.depths), self.blocks, self.shifted)
        if self.anchored and shape != (1, 1, "operator", False):
            raise InputError(
                "anchored=True with patch_size={}, {} stages, blocks={!r} and shifted={}, expected 1, one "
                "stage, 'operator' and False: use MANOClassifier.plain, or resize the images".format(*shape)
            )
