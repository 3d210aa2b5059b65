"""Labelled images as torch data sets: scikit-learn's digits, folders of images, saved data sets.

A sample is ``{"x": ..., "y": ...}``: a float32 image of shape ``(channels, height, width)`` in [0, 1] and the
number of its class.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mano_op.data.loaders import workers
from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.errors import InputError, did_you_mean
from mano_op.options import Part, Whole, checked
from mano_op.vision.decode import as_input_error, channels_of, decode, require
from mano_op.vision.options import Size, height_width
from mano_op.vision.transforms import resize, resize_and_crop

DIGITS = "digits"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_SPLITS = {"train": "train", **dict.fromkeys(("validation", "valid", "val"), "validation"), "test": "test"}
_TEST_PART = 0.2  # of each class, for a source without splits


@dataclass(eq=False)
class ImageSplit(Dataset[dict[str, Tensor]]):
    """Images of a source at one size, decoded when they are indexed.

    Attributes
    ----------
    images : sequence
        Grey tensors ``(height, width)`` in [0, 1], paths, or rows of ``datasets.Image(decode=False)``.
    labels : Tensor
        Of int64, ``(len,)``.
    convert : bool
        Whether images in colour may become grey.
    image_size, resized_to : (int, int)
        Height and width of all images, after `resize_and_crop`, and perhaps after a further `resize`.
    rows : array of int, optional
        Position in `images` of each label's image; all positions by default.

    Examples
    --------
    >>> split = open_images("digits")["test"]
    >>> sample = split[0]
    >>> tuple(sample["x"].shape), sample["y"].dtype, split.image_size, len(split.classes)
    ((1, 8, 8), torch.int64, (8, 8), 10)
    """

    images: Sequence[Any]
    labels: Tensor
    classes: tuple[str, ...]
    name: str
    channels: int = 1
    convert: bool = False
    image_size: tuple[int, int] = (8, 8)
    resized_to: tuple[int, int] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = index if self.rows is None else int(self.rows[index])
        x = self.images[row]
        if isinstance(x, Tensor):
            x = x.expand(self.channels, -1, -1).contiguous()
        else:
            name = str(x) if isinstance(x, Path) else f"image {row} of {self.name}"
            x = decode(x, name, self.channels, self.convert)
        x = resize_and_crop(x, self.image_size)
        return {"x": resize(x, self.resized_to or self.image_size), "y": self.labels[index]}

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> ImageSplit:
        """Return the images at some positions of this split."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels = self.labels[torch.from_numpy(chosen)]
        return replace(self, labels=labels, rows=chosen if self.rows is None else self.rows[chosen])

    def at(self, image_size: Size, *, resized_to: tuple[int, int] | None = None) -> ImageSplit:
        """Return the same images at another size, read anew from the source: finer where the source is.

        With `resized_to` they are then interpolated to that size, and lose what it does not resolve.

        Examples
        --------
        >>> split = open_images("digits")["test"]
        >>> tuple(split.at(16)[0]["x"].shape)
        (1, 16, 16)
        """
        return replace(self, image_size=height_width(image_size), resized_to=resized_to)


@dataclass(frozen=True)
class Images:
    """Splits of a source by name: ``images["train"]``.

    Attributes
    ----------
    source : str
        Argument of `open_images`.
    origin : dict
        Kind of source, its digest, and the parts that were split off. The digest is of the names and sizes of
        a folder's files, the labels and metadata of a saved data set, or all pixels of digits.
    """

    source: str
    splits: dict[str, ImageSplit]
    classes: tuple[str, ...]
    channels: int
    image_size: tuple[int, int]
    origin: dict[str, Any]

    def __getitem__(self, split: str) -> ImageSplit:
        if split not in self.splits:
            raise InputError(
                f"{self.source} has no split {split!r}; it has {', '.join(self.splits)}"
                f"{did_you_mean(split, self.splits) or ': name one of these'}"
            )
        return self.splits[split]


@checked
def open_images(
    source: str | Path,
    *,
    image_size: Size | None = None,
    in_channels: Literal[1, 3] | None = None,
    test: Part | None = None,
    validation: Part | None = None,
    seed: Whole = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    like: Mapping[str, Any] | None = None,
) -> Images:
    """Open a source of labelled images.

    Parameters
    ----------
    source : str or path
        ``"digits"``: scikit-learn's 1797 scans of handwritten digits, 8 x 8 pixels, values divided by 16. A
        folder of that name is ``"./digits"``.
        A folder of images, ``root/train/CLASS/*.png``, ``root/test/CLASS/*`` and perhaps ``root/validation``,
        or ``root/CLASS/*``. Classes are sorted by name. Hidden files and folders are skipped.
        A data set that ``save_to_disk`` of Hugging Face's ``datasets`` wrote. Nothing is fetched.
    image_size : int or (int, int), optional
        Height and width of all images, after `resize_and_crop`. Required, but for digits: 8.
    in_channels : {1, 3}, optional
        Grey or colour; by default as the first training image. If that is grey, an image in colour is
        refused. Otherwise grey is repeated and colour converted to its luminance.
    test, validation : float, optional
    seed : int
        Parts of each class of the training images to split off, if the source has no such splits, and the
        seed by which they are drawn. The default of `test` is 0.2 for a source without any splits.
    image_column, label_column : str, optional
        Columns of a saved data set; by default the only ones of images and of class labels.
    like : dict, optional
        `Images.origin` of other images: the same parts are split off, with the same seed, but for splits that
        the source has itself.

    Raises
    ------
    InputError
        If there is no such source, no training split, fewer than two classes, a class without training
        images or too small to be split, or a label outside the classes.

    Notes
    -----
    Images, of several the first frame, are rotated by their EXIF orientation, and blended with white where
    they are transparent. Damaged ones and those of more than 8 bits per channel are refused when decoded.

    Examples
    --------
    >>> images = open_images("digits", validation=0.1, seed=1)
    >>> {name: len(split) for name, split in images.splits.items()}
    {'train': 1295, 'validation': 143, 'test': 359}
    >>> images.classes[:3], images.channels, images.image_size
    (('0', '1', '2'), 1, (8, 8))
    """
    columns = {"image_column": image_column, "label_column": label_column}
    kind, stored, digest, whole = _read(source, {name: c for name, c in columns.items() if c is not None})
    size = height_width(8 if image_size is None and kind == DIGITS else image_size)  # type: ignore[arg-type]
    train, channels = stored["train"], int(in_channels or 1)
    if in_channels is None and kind != DIGITS:
        channels = channels_of(train.images[0], f"the first image of {train.name}")
    parts: dict[str, Any] = {"test": test, "validation": validation}
    if like is not None:
        parts = {name: None if name in stored else like["split"].get(name) for name in parts}
        seed = like["split"].get("seed", 0)
    if whole and parts["test"] is None:
        parts["test"] = _TEST_PART
    drawn: dict[str, Any] = {}
    for stream, (name, part) in enumerate(parts.items()):
        if part is None:
            continue
        if name in stored:
            raise InputError(f"{name}={part}, but {source} has a split {name!r}: leave it out")
        rest = stored["train"]
        held_out = stratified(rest.labels.numpy(), part, seed, rest.classes, stream=stream)
        stored["train"] = rest.subset(np.flatnonzero(~held_out))
        stored[name] = rest.subset(np.flatnonzero(held_out))
        drawn |= {name: part, "seed": seed}
    splits = {
        name: replace(stored[name], channels=channels, convert=in_channels is not None, image_size=size)
        for name in dict.fromkeys((*_SPLITS.values(), *stored))
        if name in stored
    }
    origin = {"kind": kind, "digest": digest, "split": drawn}
    return Images(str(source), splits, train.classes, channels, size, origin)


def stratified(
    labels: NDArray[np.int64], part: float, seed: int, classes: Sequence[str], *, stream: int = 0
) -> NDArray[np.bool_]:
    """Return the mask of a random part of each class, with at least one sample in and one out.

    Masks of different streams are independent. A class with a single sample raises `InputError`.

    Examples
    --------
    >>> mask = stratified(np.array([0, 0, 0, 0, 1, 1]), 0.5, 0, ["a", "b"])
    >>> int(mask[:4].sum()), int(mask[4:].sum())
    (2, 1)
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
    mask = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            raise InputError(
                f"class {name!r} has one image, which cannot be in two splits: add some, or leave it out"
            )
        size = min(max(1, round(part * len(rows))), len(rows) - 1) if len(rows) else 0
        mask[random.permutation(rows)[:size]] = True
    return mask


def image_loader(
    data: ImageSplit, batch_size: int, *, num_workers: int = 0, seed: int | None = None
) -> DataLoader[dict[str, Tensor]]:
    """Load batches of `batch_size` images and labels for each process that trains.

    A seed shuffles them, anew in each epoch. They do not depend on `num_workers`, the processes that decode.

    Examples
    --------
    >>> split = open_images("digits")["test"]
    >>> batch = next(iter(image_loader(split, 100)))
    >>> tuple(batch["x"].shape), bool((batch["y"] == split.labels[:100]).all())
    ((100, 1, 8, 8), True)
    """
    options = workers(num_workers, seed or 0)
    if seed is None:
        return DataLoader(data, batch_size, **options)
    order = ResolutionBatchSampler([len(data)], batch_size, seed=seed)
    return DataLoader(data, batch_sampler=order, **options)


# Kind of a source, its splits, a digest, and whether it came without splits.
_Stored = tuple[str, dict[str, ImageSplit], str, bool]


def _read(source: str | Path, columns: Mapping[str, str]) -> _Stored:
    path, digits = Path(source), source == DIGITS
    saved = not digits and any((path / name).exists() for name in ("dataset_dict.json", "dataset_info.json"))
    if columns and not saved:
        raise InputError(f"{', '.join(columns)} for {source}, which has no columns: leave it out")
    if not digits and not path.is_dir():
        raise InputError(
            f"{source} is no folder: give one of images, a data set that save_to_disk wrote, or {DIGITS!r}"
            f"{did_you_mean(str(source), [DIGITS]) if not path.exists() else ''}"
        )
    stored = _digits() if digits else _saved(path, columns) if saved else _folder(path)
    for split in stored[1].values():
        _check_labels(split, stored[1]["train"])
    return stored


def _split_names(source: Path, names: Iterable[str], *, others: bool) -> dict[str, str]:
    splits = {name: _SPLITS.get(name, name if others else "") for name in names}
    if len(set(splits.values())) < len(splits) or "" in splits.values() or "train" not in splits:
        raise InputError(
            f"{source} has the splits {', '.join(splits)}, expected 'train' and, if there are others, one "
            "'test' and one 'validation': rename, merge or move those that do not fit"
        )
    return splits


def _digits() -> _Stored:
    digits = require("sklearn.datasets").load_digits()
    pixels = np.ascontiguousarray(digits.images, dtype=np.float32) / 16
    labels = np.asarray(digits.target, dtype=np.int64)
    digest = hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest()
    classes = tuple(map(str, digits.target_names))
    train = ImageSplit(list(torch.from_numpy(pixels)), torch.from_numpy(labels), classes, DIGITS)
    return DIGITS, {"train": train}, digest, True


def _folder(root: Path) -> _Stored:
    """Read a folder. Not ``datasets``' imagefolder, which reads splits and labels out of file names."""
    named = {path.name: path for path in _folders(root)}
    whole = "train" not in named and not (named and named.keys() <= _SPLITS.keys())
    names = {} if whole else _split_names(root, named, others=False)
    folders = {split: named[name] for name, split in names.items()} or {"train": root}
    known = [path.name for path in _folders(folders["train"])]
    splits, digest = {}, hashlib.sha256()
    for split, folder in folders.items():
        files, labels, classes = [], [], list(known)
        for file in sorted(folder.rglob("*")):
            relative = file.relative_to(folder)
            hidden = any(part.startswith(".") for part in relative.parts)
            if hidden or file.suffix.lower() not in SUFFIXES or len(relative.parts) < 2 or not file.is_file():
                continue
            name = relative.parts[0]
            if name not in classes:
                classes.append(name)
            files.append(file)
            labels.append(classes.index(name))
            digest.update(f"{split}/{relative.as_posix()} {file.stat().st_size}\n".encode())
        splits[split] = ImageSplit(files, torch.tensor(labels), tuple(classes), str(folder))
    return "folder", splits, digest.hexdigest(), whole


def _folders(root: Path) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]


def _saved(root: Path, columns: Mapping[str, str]) -> _Stored:
    datasets = require("datasets")
    with as_input_error(f"{root} cannot be read as a data set", "write it again with save_to_disk"):
        opened = datasets.load_from_disk(str(root))
    whole = isinstance(opened, datasets.Dataset)
    named = {"train": opened} if whole else opened
    splits: dict[str, ImageSplit] = {}
    names, digest = _split_names(root, named, others=True), hashlib.sha256()
    for stored, data in named.items():
        name = str(root) if whole else f"the split {stored!r} of {root}"
        image = _column(data, "image_column", columns, datasets.Image, name)
        label = _column(data, "label_column", columns, datasets.ClassLabel, name)
        # Not decoded by datasets, which would fetch files and read any format.
        data = data.with_format(None).cast_column(image, datasets.Image(decode=False))
        labels = torch.tensor([-1 if value is None else value for value in data[label]], dtype=torch.int64)
        splits[names[stored]] = ImageSplit(data[image], labels, tuple(data.features[label].names), name)
        digest.update(f"{stored} {len(labels)}\n".encode() + labels.numpy().tobytes())
    for path in sorted(root.rglob("*.json")):
        digest.update(path.read_bytes())  # among them the fingerprint of each split
    return "dataset", splits, digest.hexdigest(), whole


def _column(data: Any, argument: str, columns: Mapping[str, str], feature: Any, name: str) -> str:
    """Return the column of a feature type: the one that was named, or the only one."""
    fitting = [column for column, value in data.features.items() if isinstance(value, feature)]
    column = columns.get(argument, fitting[0] if len(fitting) == 1 else "")
    if column not in fitting:
        remedy = f"give {argument}={fitting[0]!r}, say" if fitting else "cast a column to it, and save again"
        raise InputError(
            f"{argument}={columns.get(argument)!r} for {name}, which has {len(fitting)} columns of "
            f"{feature.__name__} among {', '.join(data.features)}, expected one: {remedy}"
        )
    return column


def _check_labels(split: ImageSplit, train: ImageSplit) -> None:
    """Refuse labels outside the classes, other classes than in the training, and classes without images."""
    name, labels, classes, problem = split.name, split.labels, split.classes, ""
    outside = ((labels < 0) | (labels >= len(classes))).nonzero().flatten().tolist()
    missing = [classes[i] for i in sorted(set(range(len(classes))) - set(labels.tolist()))]
    if outside:
        problem = (
            f"image {outside[0]} of {name} has the label {labels[outside[0]]}, expected 0 to "
            f"{len(classes) - 1}: leave images without a label out"
        )
    elif classes != train.classes:
        of_train = f"the training images {train.classes[:20]}"
        problem = f"{name} has the classes {classes[:20]}, {of_train}: give both the same"
    elif len(classes) < 2 or (split is train and missing):
        problem = (
            f"{name} has the classes {list(classes[:20])}, without images {missing[:20]}, expected at least "
            f"two, with images of each: add some (in folders, CLASS/*.png or {', '.join(SUFFIXES[1:])}), or "
            "remove the class"
        )
    if problem:
        raise InputError(problem)
