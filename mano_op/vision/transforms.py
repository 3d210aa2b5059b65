"""Transforms of images: resize with pixels as cells, crop; and the augmentation of batches.

All random numbers come from one generator on the CPU, in the order of the batches: they depend neither on the
device nor on the number of processes that read images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.train.options import Augmentation

_RATIO = 4 / 3  # largest ratio of the sides of a random crop


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate images ``(..., channels, height, width)`` to another size: bilinear, with antialiasing.

    Pixels are cells, with values at their centres (``align_corners=False``). In a smaller image the kernel is
    as wide as the new pixels, so that every old pixel counts. Values stay in the range of the old values.

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

    The image is resized to the smallest size of its own proportions that covers the new one, and the middle
    is kept.

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


def augmentation(
    options: Augmentation, n_classes: int, generator: torch.Generator
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Bind an augmentation to a generator of the CPU; None if nothing changes.

    It maps images ``(batch, channels, height, width)`` and labels ``(batch,)`` to the same; mixup makes
    probabilities ``(batch, 1, n_classes)`` of the labels.

    Examples
    --------
    >>> augment = augmentation(Augmentation(shift=1), 2, torch.Generator().manual_seed(3))
    >>> x, y = augment(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([1]))
    >>> x.flatten().tolist(), y.tolist()
    ([2.0, 3.0, 3.0], [1])
    """
    if options == Augmentation():
        return None

    def augment(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if options.crop < 1:
            x = torch.stack([_crop(image, options.crop, generator) for image in x])
        if options.shift:
            x = _shift(x, options.shift, generator)
        if options.flip:
            mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
            x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
        if options.mixup:
            x, y = _mix(x, F.one_hot(y, n_classes)[:, None].to(x.dtype), options.mixup, generator)
        return x, y

    return augment


def _shift(x: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    height, width = x.shape[-2:]
    padded = F.pad(x, (largest,) * 4, mode="replicate")
    starts = torch.randint(2 * largest + 1, (len(x), 2), generator=generator).tolist()
    return torch.stack(
        [image[:, i : i + height, j : j + width] for image, (i, j) in zip(padded, starts, strict=True)]
    )


def _crop(image: Tensor, smallest: float, generator: torch.Generator) -> Tensor:
    """Resize a random rectangle of an image, ``(channels, height, width)``, to the image."""
    height, width = image.shape[-2:]
    area, ratio, i, j = torch.rand(4, generator=generator).tolist()
    area = smallest + (1 - smallest) * area
    ratio = math.exp((2 * ratio - 1) * math.log(_RATIO))
    h = min(height, max(1, round(height * math.sqrt(area / ratio))))
    w = min(width, max(1, round(width * math.sqrt(area * ratio))))
    top, left = int(i * (height - h + 1)), int(j * (width - w + 1))
    return resize(image[:, top : top + h, left : left + w], (height, width))


def _mix(x: Tensor, y: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # torch's Beta takes no generator.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    weight = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(x), generator=generator).to(x.device)
    return weight * x + (1 - weight) * x[other], weight * y + (1 - weight) * y[other]
