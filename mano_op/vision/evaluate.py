"""How often a classifier is right, at the size of its training and at others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from mano_op.errors import InputError, check_whole
from mano_op.runs import Run
from mano_op.train.precision import check_device
from mano_op.vision.images import Images, open_images_as
from mano_op.vision.judge import judge, wilson
from mano_op.vision.loaders import image_loader
from mano_op.vision.resize import Size, resized, size_of

_FIVE = 5
_USED = {
    "training": " It was trained on these images.",
    "validation": " Its parameters were chosen on these images.",
}


@dataclass(frozen=True)
class SizeResult:
    """The numbers of one split at one size.

    Attributes
    ----------
    size : (int, int)
        Of the images that are given.
    how : {"direct", "resized"}
        Whether the model saw them as they are, or brought to the size of its training first.
    images : int
    accuracy : float
        The part of them whose class had the highest logit.
    interval : (float, float)
        Of the accuracy, 95 %; see `mano_op.vision.judge.wilson`.
    top5 : float, optional
        The part whose class was among the five highest, where there are more than five classes.
    cross_entropy : float
        Mean, in nats.
    by_class : dict of str to float
        The accuracy on each class; None where there is no image of it.
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
    """A classifier judged on a split, at the size of its training and perhaps others.

    Attributes
    ----------
    arch : str
    source, split : str
    trained_at : (int, int)
    rows : tuple of SizeResult
        That at the size of the training first; of any other size "direct" and then "resized".
    used : {"training", "validation"}, optional
        For what these images were used before: the model was trained on them, or its parameters chosen.
    """

    arch: str
    source: str
    split: str
    trained_at: tuple[int, int]
    rows: tuple[SizeResult, ...]
    used: str | None = None

    def row(self, size: Size | None = None, how: str = "direct") -> SizeResult:
        """The numbers at a size; at that of the training if none is given.

        Raises
        ------
        InputError
            If that was not judged.
        """
        asked = self.trained_at if size is None else size_of(size)
        for row in self.rows:
            if (row.size, row.how) == (asked, how):
                return row
        there = ", ".join(f"{_shown(row.size)} {row.how}" for row in self.rows)
        raise InputError(f"{_shown(asked)} {how} was not judged; there are {there}: name one of these")

    def to_dict(self) -> dict[str, Any]:
        """All of it in JSON types."""
        rows = [{**asdict(row), "size": list(row.size), "interval": list(row.interval)} for row in self.rows]
        return {**asdict(self), "trained_at": list(self.trained_at), "rows": rows}

    def table(self) -> str:
        """For people, in Markdown.

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
        home = _shown(self.trained_at)
        for row in self.rows:
            how = f"resized to {home}" if row.how == "resized" else "as they are"
            low, high = row.interval
            cells.append(
                [
                    _shown(row.size),
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
    """Judge a classifier on a split, at the size of its training and at others.

    At another size the images are made anew of what the source has (`ImageSplit.at`), and the answer to them
    stands beside two that no claim of transfer may ignore: that to the same images resized to the size of the
    training first, and that at the size of the training.

    Parameters
    ----------
    run : Run
    images : str, path or Images
        A source, which is opened with the size, the channels and the splits of the training, but for those
        that it has of its own; or one that is opened.
    split : str
    sizes : sequence of int or (int, int), optional
        Others than that of the training.
    device : str
    batch_size : int
        Numbers do not depend on it, but for rounding.
    num_workers : int
        Processes that read images.
    progress : bool
        Whether to show a bar.

    Raises
    ------
    InputError
        If there is no such split, or its images are of other classes or channels than the run's, or were
        split otherwise, or drawn from a source that is not as it was, so that it may have been trained on
        them; or if the model cannot take a size.

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
    >>> found = evaluate_classifier(run, "digits", sizes=[16])
    >>> [(row.size, row.how, row.images) for row in found.rows]
    [((8, 8), 'direct', 359), ((16, 16), 'direct', 359), ((16, 16), 'resized', 359)]
    """
    check_whole(batch_size=batch_size)
    check_whole(at_least=0, num_workers=num_workers)
    check_device(device)
    home = run.image_size
    others = [size for size in dict.fromkeys(size_of(one) for one in sizes or ()) if size != home]
    if not isinstance(images, Images):
        images = open_images_as(
            images,
            run.training.get("images"),
            image_size=home,
            in_channels=run.processor.channels,
        )
    _check_fits(run, images, split)
    there = images[split].at(home)
    asked: list[tuple[tuple[int, int], str, Dataset[dict[str, Tensor]]]] = [(home, "direct", there)]
    for size in others:
        given = there.at(size)
        asked += [(size, "direct", given), (size, "resized", resized(given, home))]
    rows = []
    model = run.model.to(device)
    try:
        for size, how, data in asked:
            batches = image_loader(data, batch_size, num_workers=num_workers)
            shown = tqdm(batches, desc=f"{_shown(size)} {how}", unit="batch", disable=not progress)
            rows.append(_judged(run, shown, size, how, device))
    finally:
        model.cpu()
        run.processor.to("cpu")
    return Evaluation(run.arch, images.source, split, home, tuple(rows), _used(run, images, split))


def _judged(run: Run, batches: Any, size: tuple[int, int], how: str, device: str) -> SizeResult:
    try:
        found = judge(run.model, run.processor, batches, device)
    except InputError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{run.arch} cannot take images of {_shown(size)} ({type(error).__name__}: {error}): leave that "
            "size out"
        ) from error
    if not math.isfinite(found.cross_entropy):
        raise InputError(
            f"{run.arch} makes logits that are no finite numbers of images of {_shown(size)}: leave that "
            "size out, or train again"
        )
    return SizeResult(
        size=size,
        how=how,
        images=len(found),
        accuracy=found.accuracy(),
        interval=wilson(found.right(), len(found)),
        top5=found.accuracy(top=_FIVE) if len(run.classes) > _FIVE else None,
        cross_entropy=found.cross_entropy,
        by_class=found.by_class(run.classes),
    )


def _check_fits(run: Run, images: Images, split: str) -> None:
    if images.classes != run.classes:
        theirs, mine = images.classes, run.classes
        n = next((i for i in range(min(len(theirs), len(mine))) if theirs[i] != mine[i]), None)
        what = f"{len(theirs)}" if n is None else f"{theirs[n]!r} as class {n}"
        expected = f"{len(mine)}" if n is None else f"{mine[n]!r}"
        raise InputError(
            f"{images.source} has the classes {what}, the run was trained with {expected}: give images of "
            "the same classes, under the same names"
        )
    if images.channels != run.processor.channels:
        raise InputError(
            f"{images.source} was opened with {images.channels} channels, the run was trained with "
            f"{run.processor.channels}: open it with in_channels={run.processor.channels}"
        )
    origin = run.training.get("images")
    if not isinstance(origin, dict) or origin.get("kind") != images.origin["kind"]:
        return
    if origin.get("digest") != images.origin["digest"]:
        drawn = images.origin["split"]
        # Each image more or less changes which are drawn.
        if split in images.splits and (split in drawn or (split == "train" and drawn)):
            raise InputError(
                f"{images.source} holds other images than the run was trained on (digest "
                f"{images.origin['digest']:.8}, then {origin.get('digest')!s:.8}), and its split {split!r} "
                "is drawn from them, so images that it was trained on may be in it: restore what was there, "
                "or give images with a split 'test' of their own"
            )
        return
    if origin.get("split") != images.origin["split"]:
        raise InputError(
            f"{images.source} was split by {images.origin['split']}, for the training by "
            f"{origin.get('split')}, so images that it was trained on may be among these: open it as then"
        )


def _used(run: Run, images: Images, split: str) -> str | None:
    """For what these images were used in the training."""
    if run.training.get("images") != images.origin:
        return None
    if split == "train":
        return "training"
    return "validation" if run.training.get("validate") == split else None


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
