"""What a classifier says of images, one by one, and the numbers that follow from that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.vision.processor import ImageProcessor

_Z = 1.959963984540054  # of the normal distribution, 95 % lie within so many standard deviations


@dataclass(frozen=True)
class Judged:
    """Of each image its class, where that class came in the order of the logits, and the cross-entropy.

    Attributes
    ----------
    labels, ranks : Tensor
        Of int64, ``(images,)``; rank 0 is a right answer. Of equal logits the first class comes first.
    losses : Tensor
        In nats, of float64.

    Examples
    --------
    >>> judged = Judged(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([0.1, 2.0, 0.3]))
    >>> round(judged.accuracy(), 3), judged.accuracy(top=2), round(judged.cross_entropy, 3)
    (0.667, 1.0, 0.8)
    >>> judged.by_class(["cat", "dog", "owl"])
    {'cat': 0.5, 'dog': 1.0, 'owl': None}
    """

    labels: Tensor
    ranks: Tensor
    losses: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def right(self, top: int = 1) -> int:
        """How many images have their class among the first `top`."""
        return int((self.ranks < top).sum())

    def accuracy(self, top: int = 1) -> float:
        """The part of the images that have."""
        return self.right(top) / len(self)

    @property
    def cross_entropy(self) -> float:
        """The mean over the images, in nats."""
        return float(self.losses.mean())

    def by_class(self, classes: Iterable[str]) -> dict[str, float | None]:
        """The accuracy on each class; None where there is no image of it."""
        found: dict[str, float | None] = {}
        for label, name in enumerate(classes):
            ranks = self.ranks[self.labels == label]
            found[name] = float((ranks == 0).double().mean()) if len(ranks) else None
        return found


def judge(
    model: nn.Module, processor: ImageProcessor, batches: Iterable[Mapping[str, Any]], device: str = "cpu"
) -> Judged:
    """What a classifier says of images, in evaluation mode; the modes are afterwards what they were,
    also if it raises.

    Parameters
    ----------
    model : nn.Module
        Whose logits are ``(batch, classes)``.
    processor : ImageProcessor
    batches : iterable of mapping
        With images ``x`` and labels ``y``.
    device : str
        Where the model is.

    Raises
    ------
    InputError
        If there are no images.

    Examples
    --------
    >>> processor = ImageProcessor([0.0], [1.0], n_classes=2)
    >>> batch = {"x": torch.tensor([[[[0.0, 1.0]]], [[[3.0, 0.0]]]]), "y": torch.tensor([1, 1])}
    >>> judge(nn.Flatten(), processor, [batch]).ranks
    tensor([0, 1])
    """
    were = [(module, module.training) for part in (model, processor) for module in part.modules()]
    labels, ranks, losses = [], [], []
    try:
        model.eval()
        processor.to(device).eval()
        with torch.no_grad():
            for batch in batches:
                sample = processor.preprocess(batch)
                logits = model(sample["x"]).cpu().double()
                y = batch["y"].cpu()
                own = logits.gather(1, y[:, None])
                before = torch.arange(logits.shape[1])[None] < y[:, None]
                rank = ((logits > own) | ((logits == own) & before)).sum(1)
                # What is no number is no answer.
                ranks.append(torch.where(logits.isfinite().all(1), rank, logits.shape[1]))
                losses.append(F.cross_entropy(logits, y, reduction="none"))
                labels.append(y)
    finally:
        for module, training in were:
            module.training = training
    if not labels:
        raise InputError("there are no images to judge: give some")
    return Judged(torch.cat(labels), torch.cat(ranks), torch.cat(losses))


def wilson(right: int, n: int) -> tuple[float, float]:
    r"""The interval that holds a proportion with 95 % confidence, of which so many of n were seen [1]_.

    .. math::

        \frac{\hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}}}
             {1 + \frac{z^2}{n}}, \qquad z = 1.96

    Images are taken as drawn independently of each other. It says nothing of other seeds of the training.

    References
    ----------
    .. [1] E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
       the American Statistical Association 22 (1927).

    Examples
    --------
    >>> [round(end, 4) for end in wilson(9, 10)]
    [0.5958, 0.9821]
    """
    p, z2 = right / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)
