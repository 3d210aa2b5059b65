"""Augment batches of images: crop, shift, flip, mixup.

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

from mano_op.errors import InputError
from mano_op.train.options import Augmentation
from mano_op.vision.resize import resize

_RATIO = 4 / 3  # largest ratio of the sides of a crop


def check_augmentation(options: Augmentation, size: tuple[int, int], *, flippable: bool) -> None:
    """Raise `InputError` if images of this size may vanish, or a mirrored image changes its class.

    Examples
    --------
    >>> check_augmentation(Augmentation(flip=True), (8, 8), flippable=False)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: flip=True for digits, but a mirrored 2 is no 2: leave it out
    """
    if options.flip and not flippable:
        raise InputError("flip=True for digits, but a mirrored 2 is no 2: leave it out")
    if options.shift >= min(size):
        raise InputError(
            f"shift={options.shift} for images of {size[0]} x {size[1]} pixels, which may leave nothing of "
            f"them: give at most {min(size) // 4}, say"
        )


def augmentation(
    options: Augmentation, n_classes: int, generator: torch.Generator
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Bind an augmentation to a generator of the CPU; None if nothing changes.

    It is a function of images ``(batch, channels, height, width)`` and labels ``(batch,)``, which mixup turns
    into probabilities ``(batch, 1, n_classes)``.

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
