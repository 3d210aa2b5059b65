"""Normalise images, and turn labels into targets of the cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.data.processor import Processor
from mano_op.errors import InputError
from mano_op.options import Count, Finite, Fraction, NonNegative, checked
from mano_op.vision.images import ImageSplit

# Statistics of ImageNet in [0, 1], red, green and blue, with which published models were trained.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class ImageProcessor(Processor):
    r"""Normalise images, and turn labels into targets: a data processor of neuraloperator.

    Each channel c has one mean and one standard deviation,

    .. math:: \hat x_c = (x_c - \mu_c) / \sigma_c,

    and a constant channel is only shifted. A label k becomes the target of the cross-entropy, smoothed in
    training by :math:`\epsilon` over the K classes,

    .. math:: t_j = (1 - \epsilon) \delta_{jk} + \epsilon / K,

    of shape ``(batch, 1, K)``. Probabilities are smoothed alike. Logits, ``(batch, K)``, are not changed.

    Parameters
    ----------
    mean, std : sequence of float
        One value per channel.
    n_classes : int
    smoothing : float
        :math:`\epsilon`.

    Raises
    ------
    InputError
        If numbers are not finite, a standard deviation is negative, or the smoothing not in [0, 1).

    Examples
    --------
    >>> processor = ImageProcessor([0.5], [0.25], n_classes=2, smoothing=0.1).train()
    >>> sample = processor.preprocess({"x": torch.ones(1, 1, 1, 1), "y": torch.tensor([1])})
    >>> sample["x"].item(), sample["y"]
    (2.0, tensor([[[0.0500, 0.9500]]]))
    >>> processor.eval().preprocess({"y": torch.tensor([1]), "x": torch.ones(1, 1, 1, 1)})["y"]
    tensor([[[0., 1.]]])
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(
        self, mean: Sequence[Finite], std: Sequence[NonNegative], n_classes: Count, smoothing: Fraction = 0.0
    ) -> None:
        super().__init__()
        if not 0 < len(mean) == len(std) or n_classes < 2:
            raise InputError(
                f"mean={mean}, std={std} and n_classes={n_classes}, expected one mean and std of each "
                "channel, and at least 2 classes"
            )
        # In double precision, as the buffers are not.
        self._state = {"mean": list(mean), "std": list(std), "n_classes": n_classes, "smoothing": smoothing}
        self.channels, self.n_classes, self.smoothing = len(mean), n_classes, smoothing
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    def preprocess(self, data_dict: Mapping[str, Any], batched: bool = True) -> dict[str, Any]:
        """Normalise a copy of a batch and make its targets; without the batch axis unless `batched`.

        ``x`` has the shape ``(batch, channels, height, width)``, in [0, 1]; ``y``, if it is given, labels
        ``(batch,)`` or probabilities ``(batch, 1, n_classes)``. `InputError` if images have other channels
        or are not floating, or a label is outside the classes.
        """
        data = self._moved(data_dict, self.mean.device)
        x = data["x"]
        if x.ndim != (4 if batched else 3) or x.shape[-3] != self.channels or not x.is_floating_point():
            raise InputError(
                f"images of shape {tuple(x.shape)} and {x.dtype}, expected {self.channels} channels, "
                f"({'batch, ' if batched else ''}channels, height, width), floating, in [0, 1]: divide bytes "
                f"by 255, and open files with in_channels={self.channels}"
            )
        scale = torch.where(self.std == 0, 1.0, self.std)
        data["x"] = (x - self.mean.view(-1, 1, 1)) / scale.view(-1, 1, 1)
        if "y" in data:
            y = torch.as_tensor(data["y"])
            data["y"] = self._target(y) if batched else self._target(y[None])[0]
        return data

    def postprocess(
        self, output: Tensor, data_dict: dict[str, Any], step: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits unchanged."""
        return output, data_dict

    def _target(self, y: Tensor) -> Tensor:
        n = self.n_classes
        if y.ndim == 1 and not y.is_floating_point() and bool(((y >= 0) & (y < n)).all()):
            y = F.one_hot(y.long(), n)[:, None].to(self.mean.dtype)
        if not y.is_floating_point() or y.shape[1:] != (1, n):
            raise InputError(
                f"targets of shape {tuple(y.shape)} from {y.min()} to {y.max()}, expected labels (batch,) "
                f"from 0 to {n - 1} or probabilities (batch, 1, {n}): open the images with these classes"
            )
        smoothing = self.smoothing if self.training else 0.0
        return (1 - smoothing) * y + smoothing / n if smoothing else y

    def to_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON types."""
        return dict(self._state)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ImageProcessor:
        """Build the processor that `to_dict` describes."""
        return cls(**state)


def moments(split: ImageSplit) -> dict[str, list[float]]:
    r"""Mean and standard deviation of each channel, over all pixels of all images of a split.

    .. math:: \mu_c = \langle x_c \rangle, \qquad \sigma_c^2 = \langle (x_c - \mu_c)^2 \rangle

    Sums are in double precision, of deviations from the mean of the first image, so that nothing cancels.

    Examples
    --------
    >>> from mano_op.vision.images import open_images
    >>> statistics = moments(open_images("digits")["train"])
    >>> round(statistics["mean"][0], 2), round(statistics["std"][0], 2)
    (0.31, 0.38)
    """
    shift = split[0]["x"].double().mean((1, 2))
    total = square = torch.zeros(split.channels, dtype=torch.float64)
    for i in range(len(split)):
        x = split[i]["x"].double().flatten(1) - shift[:, None]
        total, square = total + x.mean(1), square + x.square().mean(1)
    mean = total / len(split)
    std = (square / len(split) - mean.square()).clamp(min=0).sqrt()
    return {"mean": (shift + mean).tolist(), "std": std.tolist()}
