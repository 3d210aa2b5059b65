"""Accuracy and cross-entropy of a classifier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.vision.processor import ImageProcessor


@dataclass(frozen=True)
class ClassMetrics:
    """Per image: true class, rank of the true class among the logits, cross-entropy.

    Attributes
    ----------
    labels, ranks : Tensor
        Of int64, ``(images,)``; rank 0 is a correct answer. Of equal logits the first class ranks first.
    losses : Tensor
        In nats, of float64, ``(images,)``.

    Examples
    --------
    >>> metrics = ClassMetrics(
    ...     torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0]), torch.tensor([0.1, 2.0, 0.3])
    ... )
    >>> round(metrics.accuracy(), 3), metrics.accuracy(top=2), round(metrics.cross_entropy, 3)
    (0.667, 1.0, 0.8)
    >>> [round(end, 3) for end in metrics.accuracy_interval()]
    [0.208, 0.939]
    >>> metrics.accuracy_by_class(["cat", "dog", "owl"])
    {'cat': 0.5, 'dog': 1.0, 'owl': None}
    """

    labels: Tensor
    ranks: Tensor
    losses: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def accuracy(self, top: int = 1) -> float:
        """Fraction of images whose class is among the `top` highest logits."""
        return int((self.ranks < top).sum()) / len(self)

    def accuracy_interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy.

        Images count as independent draws. It says nothing about other seeds of the training.
        """
        correct = binomtest(int((self.ranks == 0).sum()), len(self))
        low, high = correct.proportion_ci(0.95, "wilson")
        return float(low), float(high)

    @property
    def cross_entropy(self) -> float:
        """Mean over the images, in nats."""
        return float(self.losses.mean())

    def accuracy_by_class(self, classes: Iterable[str]) -> dict[str, float | None]:
        """Accuracy on the images of each class; None for a class without images."""
        ranks = {name: self.ranks[self.labels == label] for label, name in enumerate(classes)}
        return {name: float((r == 0).double().mean()) if len(r) else None for name, r in ranks.items()}


def class_metrics(
    model: nn.Module, processor: ImageProcessor, batches: Iterable[Mapping[str, Any]], device: str = "cpu"
) -> ClassMetrics:
    """Apply a classifier in evaluation mode to batches of images ``x`` and labels ``y``; some must be there.

    All modes are restored, also after an error.

    Examples
    --------
    >>> processor = ImageProcessor([0.0], [1.0], n_classes=2)
    >>> batch = {"x": torch.tensor([[[[0.0, 1.0]]], [[[3.0, 0.0]]]]), "y": torch.tensor([1, 1])}
    >>> class_metrics(nn.Flatten(), processor, [batch]).ranks
    tensor([0, 1])
    """
    modes = [(module, module.training) for part in (model, processor) for module in part.modules()]
    labels, ranks, losses = [], [], []
    try:
        model.eval()
        processor.to(device).eval()
        with torch.no_grad():
            for batch in batches:
                logits = model(processor.preprocess(batch)["x"]).cpu().double()
                y = batch["y"].cpu()
                own = logits.gather(1, y[:, None])
                earlier = torch.arange(logits.shape[1])[None] < y[:, None]
                rank = ((logits > own) | ((logits == own) & earlier)).sum(1)
                # A logit that is NaN is no answer.
                ranks.append(torch.where(logits.isfinite().all(1), rank, logits.shape[1]))
                losses.append(F.cross_entropy(logits, y, reduction="none"))
                labels.append(y)
    finally:
        for module, training in modes:
            module.training = training
    if not labels:
        raise InputError("there are no images to evaluate: give some")
    return ClassMetrics(torch.cat(labels), torch.cat(ranks), torch.cat(losses))
