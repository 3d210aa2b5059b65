"""Resize images: bilinear with antialiasing, pixels as cells, proportions kept by cropping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Annotated, Any

import torch.nn.functional as F
from pydantic import SkipValidation
from torch import Tensor

from mano_op.errors import InputError

Size = Annotated[int | Sequence[int], SkipValidation]  # which `height_width` checks
_LARGEST_SIDE = 2**14


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate images ``(..., channels, height, width)`` to another size: bilinear, with antialiasing.

    Pixels are cells: the corners of the image stay, and values lie at the centres of pixels
    (``align_corners=False``). In a smaller image the kernel is as wide as the new pixels, so that every old
    pixel counts. Values stay in the range of the old values.

    Examples
    --------
    >>> import torch
    >>> resize(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    if tuple(x.shape[-2:]) == size:
        return x
    batch = x.reshape(-1, *x.shape[-3:])
    resized = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*x.shape[:-2], *size)


def resize_and_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring an image ``(channels, height, width)`` to a size without stretching it.

    The image is resized (`resize`) to the smallest size of its own proportions that covers the new one, and
    the middle is kept.

    Examples
    --------
    >>> import torch
    >>> resize_and_crop(torch.tensor([[[9.0, 1.0, 2.0, 9.0], [9.0, 3.0, 4.0, 9.0]]]), (2, 2))
    tensor([[[1., 2.],
             [3., 4.]]])
    """
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    scale = max(size[0] / height, size[1] / width)
    # Nearly all of a long strip is cropped: crop most of it before it is enlarged.
    for dim, (side, target) in enumerate(((height, size[0]), (width, size[1])), start=-2):
        enough = 4 * math.ceil(target / scale)
        if side > enough:
            x = x.narrow(dim, (side - enough) // 2, enough)
    height, width = x.shape[-2:]
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    x = resize(x, covering)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]].contiguous()


def height_width(image_size: Size) -> tuple[int, int]:
    """Height and width, from one side for both or from a pair.

    Raises
    ------
    InputError
        If `image_size` is neither, or a side is not from 1 to 16384.

    Examples
    --------
    >>> height_width(8), height_width([8, 12])
    ((8, 8), (8, 12))
    """
    sides: list[Any] = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    whole = all(isinstance(side, Integral) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not 1 <= min(sides) <= max(sides) <= _LARGEST_SIDE:
        raise InputError(
            f"image_size={image_size!r}, expected a side or (height, width), whole numbers from 1 to "
            f"{_LARGEST_SIDE}: give 32, say"
        )
    return int(sides[0]), int(sides[1])
