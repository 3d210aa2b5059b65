"""Images at another size: how their pixels lie, what is between them, and what is cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mano_op.errors import InputError, check_whole

Size = int | Sequence[int]
_MOST_SIDE = 2**14


class _Resized(Dataset[dict[str, Tensor]]):
    def __init__(self, dataset: Dataset[dict[str, Tensor]], size: tuple[int, int]) -> None:
        self._dataset, self._size = dataset, size

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        sample = self._dataset[index]
        return {**sample, "x": interpolated(sample["x"], self._size)}


def resized(dataset: Dataset[dict[str, Tensor]], size: Size) -> Dataset[dict[str, Tensor]]:
    """The samples of a data set with each image interpolated to another size, whatever its shape becomes.

    Where `mano_op.vision.images.ImageSplit.at` goes back to the source, this knows nothing but the images
    that it is given; see `interpolated`.

    Examples
    --------
    >>> from mano_op.vision.images import open_images
    >>> fine = open_images("digits")["test"].at(16)
    >>> tuple(resized(fine, 8)[0]["x"].shape)
    (1, 8, 8)
    """
    return _Resized(dataset, size_of(size))


def interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Images ``(..., channels, height, width)`` at another size: bilinear, with antialiasing.

    Pixels are cells: the corners of the image stay where they are, and values lie in the middle of pixels
    (``align_corners=False``). When an image becomes smaller, the bilinear kernel is as wide as the new
    pixels, so all old ones count. Values stay between those that there were.

    Examples
    --------
    >>> import torch
    >>> interpolated(torch.tensor([[[0.0, 1.0]]]), (1, 4))
    tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    if tuple(x.shape[-2:]) == size:
        return x
    batch = x.reshape(-1, *x.shape[-3:])
    found = F.interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)
    return found.reshape(*x.shape[:-2], *size)


def fitted(x: Tensor, size: tuple[int, int]) -> Tensor:
    """An image ``(channels, height, width)`` brought to a size without being stretched.

    It is resized (`interpolated`) to the smallest size of its own proportions that covers the new one, so for
    a square its shorter side is the side of the square, and of that the middle is taken.

    Examples
    --------
    >>> import torch
    >>> fitted(torch.tensor([[[9.0, 1.0, 2.0, 9.0], [9.0, 3.0, 4.0, 9.0]]]), (2, 2))
    tensor([[[1., 2.],
             [3., 4.]]])
    """
    height, width = x.shape[-2:]
    if (height, width) == size:
        return x
    scale = max(size[0] / height, size[1] / width)
    # Of a long strip nearly all is cut off, and need not be made larger before that.
    for dim, (there, wanted) in enumerate(((height, size[0]), (width, size[1])), start=-2):
        most = 4 * math.ceil(wanted / scale)
        if there > most:
            x = x.narrow(dim, (there - most) // 2, most)
    height, width = x.shape[-2:]
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    x = interpolated(x, covering)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return x[..., top : top + size[0], left : left + size[1]].contiguous()


def size_of(image_size: Size) -> tuple[int, int]:
    """Height and width, from one number for both or one for each.

    Raises
    ------
    InputError
        If it is neither.

    Examples
    --------
    >>> size_of(8), size_of([8, 12])
    ((8, 8), (8, 12))
    """
    sides: list[Any] = list(image_size) if isinstance(image_size, list | tuple) else [image_size, image_size]
    if len(sides) != 2:
        raise InputError(f"image_size={image_size!r}, expected a side or (height, width): give 32, say")
    for side in sides:
        check_whole(image_size=side)
        if side > _MOST_SIDE:
            raise InputError(f"image_size={image_size!r}, expected at most {_MOST_SIDE} pixels a side")
    return int(sides[0]), int(sides[1])
