"""Accuracy and cross-entropy of a classifier, at the size of its training and at others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor, nn
from tqdm import tqdm

from mano_op.card import markdown_table
from mano_op.errors import InputError, check_whole
from mano_op.registry import evaluating
from mano_op.runs import Run
from mano_op.train.precision import check_device
from mano_op.train.task import plain
from mano_op.vision.decode import as_input_error
from mano_op.vision.images import Images, image_loader, open_images
from mano_op.vision.options import Size, height_width
from mano_op.vision.processor import ImageProcessor

_USED = {
    "training": " It was trained on these images.",
    "validation": " Its parameters were chosen on these images.",
}


@dataclass(frozen=True)
class ClassMetrics:
    """True class, rank of the true class among the logits, and cross-entropy of each image.

    Attributes
    ----------
    labels, ranks : Tensor
        Of int64, ``(images,)``; rank 0 is a correct answer. Of equal logits the first class ranks first.
    losses : Tensor
        In nats, of float64, ``(images,)``.

    Examples
    --------
    >>> labels, ranks = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    >>> metrics = ClassMetrics(labels, ranks, losses=torch.tensor([0.1, 2.0, 0.3]))
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
        """Return the fraction of images whose class is among the `top` highest logits."""
        return int((self.ranks < top).sum()) / len(self)

    def accuracy_interval(self) -> tuple[float, float]:
        """Return Wilson's 95 % interval of the accuracy, for independent images; not for seeds."""
        low, high = binomtest(int((self.ranks == 0).sum()), len(self)).proportion_ci(0.95, "wilson")
        return float(low), float(high)

    @property
    def cross_entropy(self) -> float:
        """Mean over the images, in nats."""
        return float(self.losses.mean())

    def accuracy_by_class(self, classes: Iterable[str]) -> dict[str, float | None]:
        """Return the accuracy on the images of each class; None for a class without images."""
        ranks = {name: self.ranks[self.labels == label] for label, name in enumerate(classes)}
        return {name: float((r == 0).double().mean()) if len(r) else None for name, r in ranks.items()}


def class_metrics(
    model: nn.Module, processor: ImageProcessor, batches: Iterable[Mapping[str, Any]], device: str = "cpu"
) -> ClassMetrics:
    """Apply a classifier in evaluation mode to batches of images ``x`` and labels ``y``; modes are restored.

    Examples
    --------
    >>> processor = ImageProcessor([0.0], [1.0], n_classes=2)
    >>> batch = {"x": torch.tensor([[[[0.0, 1.0]]], [[[3.0, 0.0]]]]), "y": torch.tensor([1, 1])}
    >>> class_metrics(nn.Flatten(), processor, [batch]).ranks
    tensor([0, 1])
    """
    labels, ranks, losses = [], [], []
    with evaluating(model, processor.to(device)):
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
    if not labels:
        raise InputError("there are no images to evaluate: give some")
    return ClassMetrics(torch.cat(labels), torch.cat(ranks), torch.cat(losses))


@dataclass(frozen=True)
class SizeResult:
    """Metrics of one split at one size.

    Attributes
    ----------
    size : (int, int)
        Height and width of the images.
    how : {"direct", "resized"}
        Whether the model got the images themselves, or resized to the size of its training.
    top5 : float, optional
        Fraction of images whose class was among the five highest logits, for more than five classes.
    """

    size: tuple[int, int]
    how: str
    images: int
    accuracy: float
    interval: tuple[float, float]
    top5: float | None
    cross_entropy: float
    by_class: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a classifier on a split, at the size of its training and perhaps others.

    Attributes
    ----------
    rows : tuple of SizeResult
        The size of the training first; for every other size "direct" and then "resized".
    used : {"training", "validation"}, optional
        Former use of these images: to train the model, or to choose its parameters.
    """

    arch: str
    source: str
    split: str
    trained_at: tuple[int, int]
    rows: tuple[SizeResult, ...]
    used: str | None = None

    def row(self, size: Size | None = None, how: str = "direct") -> SizeResult:
        """Return the metrics at a size, by default the training's; `InputError` for one without metrics."""
        wanted = self.trained_at if size is None else height_width(size)
        rows = {(row.size, row.how): row for row in self.rows}
        if (wanted, how) not in rows:
            known = ", ".join(f"{_by(size)} {how}" for size, how in rows)
            raise InputError(f"{_by(wanted)} {how} was not evaluated; there are {known}: name one of these")
        return rows[wanted, how]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON types."""
        return dict(plain(asdict(self)))

    def table(self) -> str:
        """Format the rows as a Markdown table.

        Examples
        --------
        >>> row = SizeResult((8, 8), "direct", 10, 0.9, (0.5958, 0.9821), None, 0.25, {"cat": 0.9})
        >>> print(Evaluation("mano_classifier", "pets", "test", (8, 8), (row,)).table())
        | size | images are | accuracy          | cross-entropy |
        |------|------------|-------------------|---------------|
        | 8x8  | as trained | 90.0 [59.6, 98.2] | 0.2500        |
        <BLANKLINE>
        mano_classifier on 10 images of the split 'test' of pets: accuracy in % [95 % interval, of
        the images alone], cross-entropy in nats.
        """
        five = any(row.top5 is not None for row in self.rows)
        cells = [["size", "images are", "accuracy", *["in first 5"] * five, "cross-entropy"]]
        for row in self.rows:
            resized = f"resized to {_by(self.trained_at)}" if row.how == "resized" else "as they are"
            how = "as trained" if row.size == self.trained_at else resized
            accuracy = "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * p for p in (row.accuracy, *row.interval)))
            top5 = [f"{100 * (row.top5 or 0):.1f}"] * five
            cells.append([_by(row.size), how, accuracy, *top5, f"{row.cross_entropy:.4f}"])
        about = (
            f"{self.arch} on {self.rows[0].images} images of the split {self.split!r} of {self.source}: "
            "accuracy in % [95 % interval, of the images alone], cross-entropy in nats."
        )
        return "\n".join([*markdown_table(cells), "", about + _USED.get(self.used or "", "")])


def evaluate_classifier(
    run: Run,
    images: str | Path | Images,
    *,
    split: str = "test",
    sizes: Sequence[Size] | None = None,
    device: str = "cpu",
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Evaluate a classifier on a split, at the size of its training and at others.

    At another size images are read anew from the source, and evaluated both as they are and resized to the
    size of the training.

    Parameters
    ----------
    run : Run
    images : str, path or Images
        A source, opened with the size, channels and parts of the training, but for splits that it has itself;
        or opened images.
    sizes : sequence of int or (int, int), optional
        Sizes beside that of the training.
    split, device : str
    batch_size, num_workers : int
        Of images, and processes that decode them.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    InputError
        If there is no such split, the images have other classes or channels than the run or may be images of
        its training, or the model cannot take a size.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.vision import train_classifier
    >>> small = {"embed_dim": 8, "depths": [1], "n_heads": [1], "window": 2}
    >>> run = train_classifier("digits", f"{tempfile.mkdtemp()}/run", options=small, epochs=1, progress=False)
    >>> evaluation = evaluate_classifier(run, "digits", sizes=[16])
    >>> [(row.size, row.how, row.images) for row in evaluation.rows]
    [((8, 8), 'direct', 359), ((16, 16), 'direct', 359), ((16, 16), 'resized', 359)]
    """
    check_whole(batch_size=batch_size)
    check_whole(at_least=0, num_workers=num_workers)
    check_device(device)
    home, origin = run.image_size, run.training.get("images")
    if not isinstance(images, Images):
        images = open_images(images, image_size=home, in_channels=run.processor.channels, like=origin)
    data = images[split]
    _check_images(run, images, split)
    cases = [(home, "direct", data.at(home))]
    for size in dict.fromkeys(map(height_width, sizes or ())):
        if size != home:
            cases += [(size, "direct", data.at(size)), (size, "resized", data.at(size, resized_to=home))]
    rows = []
    try:
        run.model.to(device)
        for size, how, case in cases:
            batches = image_loader(case, batch_size, num_workers=num_workers)
            bar = tqdm(batches, desc=f"{_by(size)} {how}", unit="batch", disable=not progress)
            rows.append(_result(run, bar, size, how, device))
    finally:
        run.model.cpu()
        run.processor.cpu()
    uses = {run.training.get("validate"): "validation", "train": "training"}
    used = uses.get(split) if origin == images.origin else None
    return Evaluation(run.arch, images.source, split, home, tuple(rows), used)


def _result(run: Run, batches: Any, size: tuple[int, int], how: str, device: str) -> SizeResult:
    with as_input_error(f"{run.arch} cannot take images of {_by(size)}", "leave that size out"):
        metrics = class_metrics(run.model, run.processor, batches, device)
        if not math.isfinite(metrics.cross_entropy):
            raise FloatingPointError("its logits are not finite")
    top5 = metrics.accuracy(top=5) if len(run.classes) > 5 else None
    accuracy, by_class = metrics.accuracy(), metrics.accuracy_by_class(run.classes)
    interval, loss = metrics.accuracy_interval(), metrics.cross_entropy
    return SizeResult(size, how, len(metrics), accuracy, interval, top5, loss, by_class)


def _check_images(run: Run, images: Images, split: str) -> None:
    """Refuse images of other classes, and a split that may contain images of the training."""
    for label, (name, trained) in enumerate(zip_longest(images.classes, run.classes)):
        if name != trained:
            raise InputError(
                f"{images.source} has {name!r} as class {label}, the run was trained with {trained!r}: give "
                "images of the same classes, under the same names"
            )
    origin, own = run.training.get("images"), images.origin
    if origin is None or origin["kind"] != own["kind"]:
        return
    drawn, same = own["split"], origin["digest"] == own["digest"]
    # Parts of another set of images are drawn anew.
    anew = split in drawn or (split == "train" and drawn)
    if (origin["split"] != drawn) if same else anew:
        raise InputError(
            f"{images.source} (digest {own['digest']:.8}) was split by {drawn}, for the training (digest "
            f"{origin['digest']:.8}) by {origin['split']}, so images that it was trained on may be in the "
            f"split {split!r}: restore the images and open them with the same parts and seed, or give images "
            "with a split 'test' of their own"
        )


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
