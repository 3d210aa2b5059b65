"""Training images as they might have been taken: shifted, mirrored, cut out, mixed.

What is drawn comes from one generator on the CPU, in the order of the batches, so it depends neither on the
device nor on who reads the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.errors import InputError, check_finite_number, check_whole, did_you_mean
from mano_op.vision.resize import interpolated

_RATIO = 4 / 3  # of width to height, or the other way round, of what is cut out


@dataclass(frozen=True)
class Augmentation:
    r"""What is done to the images of a batch, each by itself, in this order.

    Attributes
    ----------
    crop : float
        Of photographs: a rectangle of an area between this part of the image and all of it, of proportions
        between 3:4 and 4:3, brought to the size of the image. 1 cuts nothing out.
    shift : int
        Up to so many pixels up or down and left or right, all as often; what comes in at the edge has the
        value of the edge.
    flip : bool
        Whether half of the images are mirrored, left to right.
    mixup : float
        :math:`\alpha` of [1]_: image and label become :math:`\lambda a + (1 - \lambda) b` with another
        image of the batch, where :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` is drawn for each
        batch. 0 mixes nothing.

    Raises
    ------
    InputError
        If a number is not one of these.

    References
    ----------
    .. [1] Zhang, Cisse, Dauphin, Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
       arXiv:1710.09412.

    Examples
    --------
    >>> augment = Augmentation(shift=1).bound(2, torch.Generator().manual_seed(3))
    >>> x, y = augment(torch.tensor([[[[1.0, 2.0, 3.0]]]]), torch.tensor([1]))
    >>> x.flatten().tolist(), y.tolist()
    ([2.0, 3.0, 3.0], [1])
    """

    crop: float = 1.0
    shift: int = 0
    flip: bool = False
    mixup: float = 0.0

    def __post_init__(self) -> None:
        check_whole(at_least=0, shift=self.shift)
        check_finite_number(zero=False, crop=self.crop)
        check_finite_number(zero=True, mixup=self.mixup)
        if self.crop > 1:
            raise InputError(f"crop={self.crop}, expected a part of the image, more than 0 and at most 1")
        if not isinstance(self.flip, bool):
            raise InputError(f"flip={self.flip!r}, expected True or False")

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> Augmentation:
        """The augmentation of a mapping of its attributes; nothing is done without any.

        Examples
        --------
        >>> Augmentation.from_options({"shift": 2}).to_dict()
        {'shift': 2}
        """
        known = [one.name for one in fields(cls)]
        for name in options or {}:
            if name not in known:
                raise InputError(
                    f"there is no augmentation {name!r}; there are {', '.join(known)}"
                    f"{did_you_mean(name, known)}"
                )
        return cls(**(options or {}))

    def to_dict(self) -> dict[str, Any]:
        """What is not left as it is."""
        nothing = asdict(Augmentation())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}

    def check(self, size: tuple[int, int], *, has_hand: bool) -> None:
        """Refuse what makes other images of these.

        Raises
        ------
        InputError
            If a mirrored image is of another class, or a shift may leave nothing of an image.
        """
        if self.flip and has_hand:
            raise InputError("flip=True for digits, but a mirrored 2 is no 2: leave it out")
        if self.shift >= min(size):
            raise InputError(
                f"shift={self.shift} for images of {size[0]} x {size[1]} pixels, which may leave nothing of "
                f"them: give at most {min(size) // 4}, say"
            )

    def bound(
        self, n_classes: int, generator: torch.Generator
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """A function of the images of a batch and their labels; None if nothing is done.

        Images are ``(batch, channels, height, width)``, labels ``(batch,)``. If images are mixed the labels
        become shares of the classes, ``(batch, 1, n_classes)``.
        """
        if not self.to_dict():
            return None

        def augmented(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            if self.crop < 1:
                x = torch.stack([_cut_out(image, self.crop, generator) for image in x])
            if self.shift:
                x = _shifted(x, self.shift, generator)
            if self.flip:
                mirrored = (torch.rand(len(x), generator=generator) < 0.5).to(x.device)
                x = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
            if self.mixup:
                x, y = _mixed(x, F.one_hot(y, n_classes)[:, None].to(x.dtype), self.mixup, generator)
            return x, y

        return augmented


def _shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    height, width = x.shape[-2:]
    wide = F.pad(x, (most, most, most, most), mode="replicate")
    starts = torch.randint(2 * most + 1, (len(x), 2), generator=generator).tolist()
    cut = [image[:, i : i + height, j : j + width] for image, (i, j) in zip(wide, starts, strict=True)]
    return torch.stack(cut)


def _cut_out(image: Tensor, least: float, generator: torch.Generator) -> Tensor:
    """A random rectangle of an image, ``(channels, height, width)``, at the size of the image."""
    height, width = image.shape[-2:]
    area, ratio, i, j = torch.rand(4, generator=generator).tolist()
    part = least + (1 - least) * area
    wider = math.exp((2 * ratio - 1) * math.log(_RATIO))
    h = min(height, max(1, round(height * math.sqrt(part / wider))))
    w = min(width, max(1, round(width * math.sqrt(part * wider))))
    top, left = int(i * (height - h + 1)), int(j * (width - w + 1))
    return interpolated(image[:, top : top + h, left : left + w], (height, width))


def _mixed(x: Tensor, y: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # torch draws from a beta distribution by no generator of one's own.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    other = torch.randperm(len(x), generator=generator).to(x.device)
    return share * x + (1 - share) * x[other], share * y + (1 - share) * y[other]
