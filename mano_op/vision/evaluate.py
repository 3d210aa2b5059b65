"""Accuracy of a classifier, at the size of its training and at others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mano_op.errors import InputError, check_whole
from mano_op.runs import Run
from mano_op.train.precision import check_device
from mano_op.vision.images import Images, image_loader, open_images
from mano_op.vision.metrics import class_metrics
from mano_op.vision.resize import Size, height_width

_USED = {
    "training": " It was trained on these images.",
    "validation": " Its parameters were chosen on these images.",
}


@dataclass(frozen=True)
class SizeResult:
    """Metrics of one split at one size.

    Attributes
    ----------
    size : (int, int)
        Height and width of the images.
    how : {"direct", "resized"}
        Whether the model got the images themselves, or resized to the size of its training.
    images : int
    accuracy, interval, cross_entropy, by_class
        See `mano_op.vision.metrics.ClassMetrics`.
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
    arch : str
    source, split : str
    trained_at : (int, int)
    rows : tuple of SizeResult
        The size of the training first; for every other size "direct" and then "resized".
    used : {"training", "validation"}, optional
        What these images were used for before: to train the model, or to choose its parameters.
    """

    arch: str
    source: str
    split: str
    trained_at: tuple[int, int]
    rows: tuple[SizeResult, ...]
    used: str | None = None

    def row(self, size: Size | None = None, how: str = "direct") -> SizeResult:
        """Metrics at a size, by default that of the training; `InputError` for a size without metrics."""
        wanted = self.trained_at if size is None else height_width(size)
        for row in self.rows:
            if (row.size, row.how) == (wanted, how):
                return row
        known = ", ".join(f"{_by(row.size)} {row.how}" for row in self.rows)
        raise InputError(f"{_by(wanted)} {how} was not evaluated; there are {known}: name one of these")

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        rows = [{**asdict(row), "size": list(row.size), "interval": list(row.interval)} for row in self.rows]
        return {**asdict(self), "trained_at": list(self.trained_at), "rows": rows}

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
            how = f"resized to {_by(self.trained_at)}" if row.how == "resized" else "as they are"
            low, high = row.interval
            cells.append(
                [
                    _by(row.size),
                    "as trained" if row.size == self.trained_at else how,
                    f"{100 * row.accuracy:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
                    *[f"{100 * (row.top5 or 0):.1f}"] * five,
                    f"{row.cross_entropy:.4f}",
                ]
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
            for line in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        about = (
            f"{self.arch} on {self.rows[0].images} images of the split {self.split!r} of {self.source}: "
            "accuracy in % [95 % interval, of the images alone], cross-entropy in nats."
        )
        return "\n".join([*lines, "", about + _USED.get(self.used or "", "")])


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

    At another size images are made anew from the source (`ImageSplit.at`), and evaluated both as they are and
    resized to the size of the training.

    Parameters
    ----------
    run : Run
    images : str, path or Images
        A source, opened with the size, channels and splits of the training, but for splits that it has
        itself; or opened images.
    split : str
    sizes : sequence of int or (int, int), optional
        Sizes beside that of the training.
    device : str
    batch_size : int
        Affects nothing but rounding.
    num_workers : int
        Processes that decode images.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    InputError
        If there is no such split, the images have other classes or channels than the run or may be images of
        its training, or the model cannot take a size.

    Examples
    --------
    >>> import tempfile, torch
    >>> from torch import nn
    >>> from mano_op.models.data_model import DataModel
    >>> from mano_op.vision.training import train_classifier
    >>> class Mean(DataModel, name="doctest_mean"):
    ...     def __init__(self, in_channels, n_classes):
    ...         super().__init__()
    ...         self.head = nn.Linear(in_channels, n_classes)
    ...     def forward(self, x, **kwargs):
    ...         return self.head(x.mean((2, 3)))
    >>> run = train_classifier("digits", f"{tempfile.mkdtemp()}/run", arch="doctest_mean", epochs=1,
    ...                        progress=False)
    >>> evaluation = evaluate_classifier(run, "digits", sizes=[16])
    >>> [(row.size, row.how, row.images) for row in evaluation.rows]
    [((8, 8), 'direct', 359), ((16, 16), 'direct', 359), ((16, 16), 'resized', 359)]
    """
    check_whole(batch_size=batch_size)
    check_whole(at_least=0, num_workers=num_workers)
    check_device(device)
    home = run.image_size
    if not isinstance(images, Images):
        origin = run.training.get("images")
        like = origin if isinstance(origin, dict) else None
        images = open_images(images, image_size=home, in_channels=run.processor.channels, like=like)
    _check_fits(run, images, split)
    data = images[split]
    cases = [(home, "direct", data.at(home))]
    for size in dict.fromkeys(map(height_width, sizes or ())):
        if size != home:
            cases += [(size, "direct", data.at(size)), (size, "resized", data.at(size, resized_to=home))]
    rows = []
    model = run.model.to(device)
    try:
        for size, how, case in cases:
            batches = image_loader(case, batch_size, num_workers=num_workers)
            bar = tqdm(batches, desc=f"{_by(size)} {how}", unit="batch", disable=not progress)
            rows.append(_result(run, bar, size, how, device))
    finally:
        model.cpu()
        run.processor.cpu()
    return Evaluation(run.arch, images.source, split, home, tuple(rows), _used(run, images, split))


def _result(run: Run, batches: Any, size: tuple[int, int], how: str, device: str) -> SizeResult:
    try:
        metrics = class_metrics(run.model, run.processor, batches, device)
        if not math.isfinite(metrics.cross_entropy):
            raise FloatingPointError("its logits are not finite")
    except InputError:
        raise
    except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.arch} cannot take images of {_by(size)} ({type(error).__name__}: {error}): leave that "
            "size out"
        ) from error
    return SizeResult(
        size=size,
        how=how,
        images=len(metrics),
        accuracy=metrics.accuracy(),
        interval=metrics.accuracy_interval(),
        top5=metrics.accuracy(top=5) if len(run.classes) > 5 else None,
        cross_entropy=metrics.cross_entropy,
        by_class=metrics.accuracy_by_class(run.classes),
    )


def _check_fits(run: Run, images: Images, split: str) -> None:
    """Refuse images of other classes or channels, and a split that may contain images of the training."""
    if images.classes != run.classes:
        pairs = enumerate(zip_longest(images.classes, run.classes))
        label, (theirs, ours) = next((label, pair) for label, pair in pairs if pair[0] != pair[1])
        raise InputError(
            f"{images.source} has {theirs!r} as class {label}, the run was trained with {ours!r}: give "
            "images of the same classes, under the same names"
        )
    origin, own = run.training.get("images"), images.origin
    if not isinstance(origin, dict) or origin.get("kind") != own["kind"]:
        return
    drawn, same = own["split"], origin.get("digest") == own["digest"]
    # With another set of images other ones are drawn.
    again = split in images.splits and (split in drawn or (split == "train" and drawn))
    if (same and origin.get("split") != drawn) or (not same and again):
        raise InputError(
            f"{images.source} (digest {own['digest']:.8}) was split by {drawn}, for the training (digest "
            f"{origin.get('digest')!s:.8}) by {origin.get('split')}, so images that it was trained on may be "
            f"in the split {split!r}: restore the images and open them with the same parts and seed, or give "
            "images with a split 'test' of their own"
        )


def _used(run: Run, images: Images, split: str) -> str | None:
    """Former use of the images in the training of the run."""
    if run.training.get("images") != images.origin:
        return None
    if split == "train":
        return "training"
    return "validation" if run.training.get("validate") == split else None


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
