"""Normalise images, and turn labels into targets of the cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.vision.images import ImageSplit

# Statistics of ImageNet in [0, 1], red, green and blue, with which published models were trained.
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


class ImageProcessor(nn.Module):
    r"""Normalise images, and turn labels into targets: a data processor of neuraloperator.

    Each channel c has one mean and one standard deviation,

    .. math:: \hat x_c = (x_c - \mu_c) / \sigma_c,

    and a constant channel is only shifted. A label k becomes the target of the cross-entropy, smoothed in
    training by :math:`\epsilon` over the K classes,

    .. math:: t_j = (1 - \epsilon) \delta_{jk} + \epsilon / K,

    of shape ``(batch, 1, K)``. Probabilities are smoothed alike. Nothing is smoothed in evaluation. Logits,
    ``(batch, K)``, are not changed.

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

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], n_classes: int, smoothing: float = 0.0
    ) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if len(means) != len(stds) or not means or min(stds) < 0:
            raise InputError(f"mean={mean} and std={std}, expected one of each channel, std of at least 0")
        if not isinstance(n_classes, int) or isinstance(n_classes, bool) or n_classes < 2:
            raise InputError(f"n_classes={n_classes!r}, expected a whole number, at least 2")
        if not 0 <= _numbers("smoothing", [smoothing])[0] < 1:
            raise InputError(f"smoothing={smoothing!r}, expected 0 or more and less than 1: give 0.1, say")
        self.n_classes, self.smoothing = n_classes, float(smoothing)
        self._exact = means, stds  # in double precision, for `to_dict`
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32))

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def preprocess(self, data_dict: Mapping[str, Any], batched: bool = True) -> dict[str, Any]:
        """Normalise a batch and make its targets; the given dictionary is not changed.

        Parameters
        ----------
        data_dict : mapping
            ``x`` of shape ``(batch, channels, height, width)`` in [0, 1]; optionally ``y``, labels of shape
            ``(batch,)`` or probabilities ``(batch, 1, n_classes)``.
        batched : bool
            Whether there is a batch dimension.

        Raises
        ------
        InputError
            If images have other channels or are not floating, or a label is outside the classes.
        """
        data = {
            key: value.to(self.mean.device) if isinstance(value, Tensor) else value
            for key, value in data_dict.items()
        }
        data["x"] = self._normalise(data["x"], batched)
        if "y" in data:
            y = data["y"] if batched else torch.as_tensor(data["y"])[None]
            data["y"] = self._target(y) if batched else self._target(y)[0]
        return data

    def postprocess(
        self, output: Tensor, data_dict: dict[str, Any], step: int | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the logits unchanged."""
        return output, data_dict

    def wrap(self, model: nn.Module) -> ImageProcessor:
        """Put a model behind `preprocess`, to be called through `forward`."""
        self.model = model
        return self

    def forward(self, **data_dict: Any) -> tuple[Tensor, dict[str, Any]]:
        """Normalise images and call the wrapped model with them.

        Examples
        --------
        >>> processor = ImageProcessor([0.5], [0.5], n_classes=4).wrap(nn.Flatten()).eval()
        >>> processor(x=torch.ones(1, 1, 2, 2))[0]
        tensor([[1., 1., 1., 1.]])
        """
        if self.model is None:
            raise InputError("the processor has no model to call; give it one with `processor.wrap(model)`")
        data = self.preprocess(data_dict)
        return self.model(data["x"]), data

    def _normalise(self, x: Tensor, batched: bool) -> Tensor:
        if x.ndim != (4 if batched else 3) or x.shape[-3] != self.channels or not x.is_floating_point():
            raise InputError(
                f"images of shape {tuple(x.shape)} and {x.dtype} with batched={batched}, expected "
                f"{self.channels} channels, ({'batch, ' if batched else ''}channels, height, width), "
                "floating, in [0, 1]: divide bytes by 255"
            )
        scale = torch.where(self.std == 0, 1.0, self.std)
        return (x - self.mean.view(-1, 1, 1)) / scale.view(-1, 1, 1)

    def _target(self, y: Tensor) -> Tensor:
        n = self.n_classes
        if y.is_floating_point():
            if y.ndim != 3 or tuple(y.shape[1:]) != (1, n):
                raise InputError(f"probabilities of shape {tuple(y.shape)}, expected (batch, 1, {n})")
        else:
            if y.ndim != 1 or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < n):
                raise InputError(
                    f"labels of shape {tuple(y.shape)} from {y.min()} to {y.max()}, expected (batch,) from 0 "
                    f"to {n - 1}: open the images with the classes of the processor"
                )
            y = F.one_hot(y.long(), n)[:, None].to(self.mean.dtype)
        smoothing = self.smoothing if self.training else 0.0
        return (1 - smoothing) * y + smoothing / n if smoothing else y

    def to_dict(self) -> dict[str, Any]:
        """Constructor arguments as JSON types."""
        means, stds = self._exact
        return {"mean": means, "std": stds, "n_classes": self.n_classes, "smoothing": self.smoothing}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> ImageProcessor:
        """Build the processor that `to_dict` describes.

        Examples
        --------
        >>> processor = ImageProcessor([0.5], [0.25], n_classes=2, smoothing=0.1)
        >>> ImageProcessor.from_dict(processor.to_dict()).to_dict() == processor.to_dict()
        True
        """
        return cls(state["mean"], state["std"], state["n_classes"], state["smoothing"])


def _numbers(name: str, values: object) -> list[float]:
    finite = isinstance(values, Sequence) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in values
    )
    if not finite:
        raise InputError(f"{name}={values!r}, expected finite numbers")
    return [float(value) for value in values]  # type: ignore[attr-defined]


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
