"""Images with labels, from three kinds of source, as torch data sets: digits, folders, data sets on disk.

Each sample is ``{"x": ..., "y": ...}``: float32 of shape ``(channels, height, width)`` in [0, 1], and the
number of its class. How files become tensors is for `mano_op.vision.decode` to say, and how these become of
one size for `mano_op.vision.resize`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mano_op.errors import InputError, check_whole, did_you_mean
from mano_op.vision.decode import channels_in, decoded, missing
from mano_op.vision.resize import Size, fitted, size_of

DIGITS = "digits"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff")
_SPLITS = {"train": "train", "test": "test", "validation": "validation", "valid": "validation"}
_SPLITS["val"] = "validation"
_TEST = 0.2  # of each class, where a source has no split of its own


class ImageSplit(Dataset[dict[str, Tensor]]):
    """Some images of a source, all of one size, read when they are asked for.

    Parameters
    ----------
    read : callable
        Gives the image of a number, float32 of shape ``(channels, height, width)`` in [0, 1], of any size.
    rows : array of int
        The numbers of the images.
    labels : array of int
        The class of each.
    classes : sequence of str
    channels : int
    image_size : int or (int, int)
        Height and width that all images are brought to; see `fitted`.

    Attributes
    ----------
    labels : Tensor
        Of int64, ``(len,)``.
    classes : tuple of str
    channels : int
    image_size : (int, int)

    Examples
    --------
    >>> split = open_images("digits")["test"]
    >>> sample = split[0]
    >>> tuple(sample["x"].shape), sample["y"].dtype, split.image_size, len(split.classes)
    ((1, 8, 8), torch.int64, (8, 8), 10)
    """

    def __init__(
        self,
        read: Callable[[int], Tensor],
        rows: NDArray[np.int64],
        labels: NDArray[np.int64],
        classes: Sequence[str],
        channels: int,
        image_size: Size,
    ) -> None:
        self._read, self._rows = read, rows
        self.labels = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        self.classes, self.channels = tuple(classes), channels
        self.image_size = size_of(image_size)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        x = fitted(self._read(int(self._rows[index])), self.image_size)
        return {"x": x, "y": self.labels[index]}

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> ImageSplit:
        """Some of the images, by their place in this split."""
        chosen = np.asarray(rows, dtype=np.int64)
        labels = self.labels.numpy()[chosen]
        return ImageSplit(
            self._read, self._rows[chosen], labels, self.classes, self.channels, self.image_size
        )

    def at(self, image_size: Size) -> ImageSplit:
        """The same images in another size, made of what the source has: finer where that is finer.

        Examples
        --------
        >>> split = open_images("digits")["test"]
        >>> tuple(split.at(16)[0]["x"].shape)
        (1, 16, 16)
        """
        labels = self.labels.numpy()
        return ImageSplit(self._read, self._rows, labels, self.classes, self.channels, image_size)


@dataclass(frozen=True)
class Images:
    """The splits of a source by their names: ``images["train"]``.

    Attributes
    ----------
    source : str
        What was opened.
    splits : dict of str to ImageSplit
    classes : tuple of str
    channels : int
    image_size : (int, int)
    origin : dict
        What tells these images from others: the kind of source, a digest, and how it was split. The digest
        is of the names and sizes of a folder's files, of the labels and the fingerprint that ``datasets``
        keeps of a data set, and of all of digits; a file that was replaced by one as large is not noticed.
        Its place does not count, so a folder may be moved.
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

    @property
    def has_hand(self) -> bool:
        """Whether an image and its mirror image are of different classes, as of digits."""
        return bool(self.origin["kind"] == DIGITS)


def open_images(
    source: str | Path,
    *,
    image_size: Size | None = None,
    in_channels: int | None = None,
    test: float | None = None,
    validation: float | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
) -> Images:
    """Open a source of images with labels.

    Parameters
    ----------
    source : str or path
        ``"digits"``: scikit-learn's 1797 scans of handwritten digits, 8 x 8, their values over 16; a folder
        of that name is ``"./digits"``.
        A folder of images, ``root/train/CLASS/*.png`` and ``root/test/CLASS/*``, perhaps with
        ``root/validation``, or ``root/CLASS/*``; classes are in the order of their names. Files and folders
        whose names begin with a dot are passed over.
        A data set of Hugging Face's ``datasets`` that ``save_to_disk`` wrote. Nothing is fetched.
    image_size : int or (int, int), optional
        That all images are brought to, by `fitted`; has to be given for all but digits, which have 8.
    in_channels : {1, 3}, optional
        Grey or colour. If not given, as the first training image is; one in colour among grey ones is then
        refused. Grey ones become colour by repeating, colour ones grey by their luminance.
    test : float, optional
        Where the source has no split "test": what part of each class becomes it, drawn by `seed`; 0.2 if
        the source has no splits at all.
    validation : float, optional
        What part of each class of the training images becomes a split "validation", drawn by `seed`.
    seed : int
    image_column, label_column : str, optional
        Of a data set on disk; if not given, the one column of images and the one of class labels.

    Raises
    ------
    InputError
        If there is no such source, a class has no images or there is only one, a label is none of the
        classes, there is no split to train on, or a class is too small to be split.

    Notes
    -----
    Images are turned as their EXIF data says. Transparent pixels are seen on white, and of several frames the
    first is taken. Images of more than 8 bits a channel, cut short, or of more pixels than Pillow holds safe
    are refused when they are read.

    Examples
    --------
    >>> images = open_images("digits", validation=0.1, seed=1)
    >>> {name: len(split) for name, split in images.splits.items()}
    {'train': 1295, 'validation': 143, 'test': 359}
    >>> images.classes[:3], images.channels, images.image_size
    (('0', '1', '2'), 1, (8, 8))
    """
    if in_channels not in (None, 1, 3) or isinstance(in_channels, bool):
        raise InputError(f"in_channels={in_channels!r}, expected 1 for grey or 3 for colour")
    check_whole(at_least=0, seed=seed)
    check_part(test=test, validation=validation)
    columns = {"image_column": image_column, "label_column": label_column}
    found = _found(source, in_channels, {name: one for name, one in columns.items() if one is not None})
    return _split(source, found, image_size, test, validation, seed)


def open_images_as(
    source: str | Path, origin: object, *, image_size: Size | None = None, in_channels: int | None = None
) -> Images:
    """Open a source and draw those of its splits that were drawn of another, where it has none of its own.

    Parameters
    ----------
    source : str or path
    origin : dict
        Of the other images, as `Images` has it; of anything else no splits are drawn.
    image_size, in_channels
        As in `open_images`.

    Examples
    --------
    >>> origin = open_images("digits", test=0.5, seed=3).origin
    >>> open_images_as("digits", origin).origin == origin
    True
    """
    how = origin.get("split") if isinstance(origin, dict) else None
    found = _found(source, in_channels, {})
    parts = {name: how.get(name) for name in ("test", "validation")} if isinstance(how, dict) else {}
    parts = {name: None if name in found.splits else part for name, part in parts.items()}
    seed = how.get("seed", 0) if isinstance(how, dict) else 0
    check_whole(at_least=0, seed=seed)
    check_part(**parts)
    return _split(source, found, image_size, parts.get("test"), parts.get("validation"), seed)


def _found(source: str | Path, in_channels: int | None, given: Mapping[str, str]) -> _Found:
    """What a source holds; of its columns those that are given."""
    path = Path(source)
    if source == DIGITS:
        found = _digits(in_channels)
    elif not path.is_dir():
        hint = did_you_mean(str(source), [DIGITS]) if not path.exists() else ""
        raise InputError(
            f"{source} is no folder: give one of images, a data set that save_to_disk wrote, or "
            f"{DIGITS!r}{hint}"
        )
    elif (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        return _saved(path, in_channels, given)
    else:
        found = _folder(path, in_channels)
    if given:
        raise InputError(f"{', '.join(given)} for {source}, which has no columns: leave it out")
    return found


def _split(
    source: str | Path,
    found: _Found,
    image_size: Size | None,
    test: float | None,
    validation: float | None,
    seed: int,
) -> Images:
    """The images of a source, in its own splits and those that are drawn."""
    if image_size is None and found.kind == DIGITS:
        image_size = 8
    if image_size is None:
        raise InputError(f"{source} has images of any size: give the one to bring them to, image_size=32")
    size = size_of(image_size)
    if len(found.classes) < 2:
        raise InputError(
            f"{source} has the classes {list(found.classes)}, expected at least two: nothing else can be "
            "told apart"
        )
    how: dict[str, Any] = {}
    splits = dict(found.splits)
    if len(splits) == 1 and "train" in splits and found.whole:
        test = _TEST if test is None else test
    if test is not None:
        if "test" in splits:
            raise InputError(f"test={test}, but {source} has a split 'test': leave it out")
        splits["train"], splits["test"] = _divided(splits, test, seed, found.classes, "test")
        how["test"] = test
    if validation is not None:
        if "validation" in splits:
            raise InputError(f"validation={validation}, but {source} has that split: leave it out")
        # Drawn apart from the test images, which it says nothing of.
        splits["train"], splits["validation"] = _divided(
            splits, validation, seed, found.classes, "validation", stream=1
        )
        how["validation"] = validation
    if how:
        how["seed"] = seed
    order: list[str] = [name for name in ("train", "validation", "test") if name in splits]
    order += [name for name in splits if name not in _SPLITS]
    return Images(
        str(source),
        {name: ImageSplit(found.read, *splits[name], found.classes, found.channels, size) for name in order},
        found.classes,
        found.channels,
        size,
        {"kind": found.kind, "digest": found.digest, "split": how},
    )


def check_part(**parts: object) -> None:
    """Refuse a part that is none: a number between 0 and 1, or None for no part.

    Examples
    --------
    >>> check_part(validation=1.5)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: validation=1.5, expected a part, between 0 and 1: give 0.1, say
    """
    for name, part in parts.items():
        if part is None:
            continue
        if not isinstance(part, int | float) or isinstance(part, bool) or not 0 < part < 1:
            raise InputError(f"{name}={part!r}, expected a part, between 0 and 1: give 0.1, say")


def stratified(
    labels: NDArray[np.int64], part: float, seed: int, classes: Sequence[str], *, stream: int = 0
) -> NDArray[np.bool_]:
    """Which samples are in a part that has the same share of every class, at least one of each.

    Parameters
    ----------
    labels : array of int
    part : float
    seed : int
    classes : sequence of str
        Their names, for the message.
    stream : int
        Parts of other streams are drawn independently.

    Raises
    ------
    InputError
        If a class has a single sample, which cannot be in both.

    Examples
    --------
    >>> drawn = stratified(np.array([0, 0, 0, 0, 1, 1]), 0.5, 0, ["a", "b"])
    >>> int(drawn[:4].sum()), int(drawn[4:].sum())
    (2, 1)
    """
    random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))
    drawn = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(classes):
        rows = np.flatnonzero(labels == label)
        if len(rows) == 1:
            raise InputError(
                f"class {name!r} has one image, which cannot be in two splits: add some, or leave it out"
            )
        size = min(max(1, round(part * len(rows))), len(rows) - 1) if len(rows) else 0
        drawn[random.permutation(rows)[:size]] = True
    return drawn


_Split = tuple[NDArray[np.int64], NDArray[np.int64]]  # rows and labels


@dataclass(frozen=True)
class _Found:
    """What a source holds."""

    kind: str
    read: Callable[[int], Tensor]
    splits: dict[str, _Split]
    classes: tuple[str, ...]
    channels: int
    digest: str
    whole: bool = False  # without splits of its own


def _divided(
    splits: Mapping[str, _Split], part: float, seed: int, classes: Sequence[str], name: str, stream: int = 0
) -> tuple[_Split, _Split]:
    if "train" not in splits:
        raise InputError(f"{name}={part}, but there is no split 'train' to take it from: leave it out")
    rows, labels = splits["train"]
    drawn = stratified(labels, part, seed, classes, stream=stream)
    return (rows[~drawn], labels[~drawn]), (rows[drawn], labels[drawn])


@dataclass(frozen=True)
class _Array:
    """Grey images that are in memory."""

    values: Tensor
    channels: int

    def __call__(self, row: int) -> Tensor:
        return self.values[row].expand(self.channels, -1, -1).contiguous()


def _digits(in_channels: int | None) -> _Found:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise missing("scikit-learn", error) from error
    found = load_digits()
    values = np.ascontiguousarray(found.images, dtype=np.float32) / 16
    labels = np.asarray(found.target, dtype=np.int64)
    digest = hashlib.sha256(values.tobytes() + labels.tobytes()).hexdigest()
    return _Found(
        DIGITS,
        _Array(torch.from_numpy(values)[:, None], in_channels or 1),
        {"train": (np.arange(len(labels)), labels)},
        tuple(str(name) for name in found.target_names),
        in_channels or 1,
        digest,
        whole=True,
    )


@dataclass(frozen=True)
class _Files:
    """Images in files, by their paths."""

    paths: tuple[Path, ...]
    channels: int
    given: bool  # whether the channels were asked for

    def __call__(self, row: int) -> Tensor:
        path = self.paths[row]
        return decoded(path, str(path), self.channels, self.given)


def _folder(root: Path, in_channels: int | None) -> _Found:
    # A folder of one of these names is a split only where the training split is.
    named = (root / "train").is_dir()
    folders = {"train": root}
    if named:
        folders = {}
        for path in sorted(root.iterdir()):
            if path.name.startswith(".") or not path.is_dir():
                continue
            split = _SPLITS.get(path.name)
            if split is None or split in folders:
                raise InputError(
                    f"{path} beside {root / 'train'}, expected the splits train, test and validation, each "
                    "once: move it elsewhere, or give it one of these names"
                )
            folders[split] = path
    elif (lost := [name for name in _SPLITS if (root / name).is_dir()]) and _only_splits(root):
        raise InputError(f"{root} has {', '.join(lost)} and no folder 'train': name the training images so")
    classes = tuple(_class_names(folders["train"]))
    paths: list[Path] = []
    splits: dict[str, _Split] = {}
    digest = hashlib.sha256()
    for split, folder in folders.items():
        names = _class_names(folder)
        if unknown := [name for name in names if name not in classes]:
            raise InputError(
                f"{folder} has the class {unknown[0]!r}, which {folders['train']} has not: the classes are "
                f"{', '.join(classes[:20])}"
            )
        labels: list[int] = []
        first = len(paths)
        for name in names:
            files = _image_files(folder / name)
            paths += files
            labels += [classes.index(name)] * len(files)
            for file in files:
                relative = file.relative_to(folder).as_posix()
                digest.update(f"{split}/{relative} {file.stat().st_size}\n".encode())
        splits[split] = (np.arange(first, len(paths)), np.array(labels, dtype=np.int64))
    first_of_train = paths[int(splits["train"][0][0])] if classes else None
    channels = in_channels
    if channels is None:
        channels = 1 if first_of_train is None else channels_in(first_of_train, str(first_of_train))
    files_of = _Files(tuple(paths), channels, in_channels is not None)
    return _Found("folder", files_of, splits, classes, channels, digest.hexdigest(), whole=not named)


def _only_splits(root: Path) -> bool:
    return all(path.name in _SPLITS for path in root.iterdir() if path.is_dir())


def _class_names(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not names:
        raise InputError(f"{folder} has no folders: expected one for each class, {folder}/CLASS/*.png")
    return names


def _image_files(folder: Path) -> list[Path]:
    """The images of a class, in folders of it too, but for those that are hidden."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    if not files:
        raise InputError(
            f"class {folder.name!r} has no images in {folder}, expected files that end in "
            f"{', '.join(SUFFIXES)}: add some, or remove the folder"
        )
    return files


@dataclass(frozen=True)
class _Rows:
    """Images of data sets on disk, by their number in all of them together."""

    parts: tuple[Any, ...]
    names: tuple[str, ...]
    ends: tuple[int, ...]
    channels: int
    given: bool

    def __call__(self, row: int) -> Tensor:
        source, name = self.found(row)
        return decoded(source, name, self.channels, self.given)

    def found(self, row: int) -> tuple[Path | bytes, str]:
        """An image as bytes or a file, and what to call it."""
        part = int(np.searchsorted(self.ends, row, side="right"))
        place = row - (self.ends[part - 1] if part else 0)
        name = f"image {place} of {self.names[part]}"
        [stored] = self.parts[part][place].values()
        content, path = (stored or {}).get("bytes"), (stored or {}).get("path")
        if content is not None:
            return content, name
        if not path or "://" in path:
            raise InputError(
                f"{name} is {path or 'missing'}, and nothing is fetched: save the data set with its images"
            )
        return Path(path), name


def _saved(root: Path, in_channels: int | None, given: Mapping[str, str]) -> _Found:
    try:
        import datasets
    except ImportError as error:
        raise missing("datasets", error) from error
    try:
        opened = datasets.load_from_disk(str(root))
        whole = not isinstance(opened, datasets.DatasetDict)
        named = {"train": opened} if whole else dict(opened)
    except Exception as error:  # of damaged files it raises whatever the damage leads to
        raise InputError(
            f"{root} cannot be read as a data set ({type(error).__name__}: {error}): write it again with "
            "save_to_disk"
        ) from error
    parts: list[Any] = []
    names: list[str] = []
    ends: list[int] = []
    splits: dict[str, _Split] = {}
    classes: tuple[str, ...] = ()
    digest = hashlib.sha256()
    if "train" not in named:
        raise InputError(f"{root} has the splits {', '.join(named)} and no 'train': name that split so")
    for split, part in sorted(named.items(), key=lambda one: one[0] != "train"):
        if _SPLITS.get(split, split) in splits:
            there = [one for one in named if _SPLITS.get(one, one) == _SPLITS[split]]
            raise InputError(
                f"{root} has the splits {' and '.join(there)}, expected one of them: save it with one, or "
                "with both together"
            )
        name = str(root) if whole else f"{root}, split {split!r},"
        image = _column(part, "image_column", given, datasets.Image, name)
        label = _column(part, "label_column", given, datasets.ClassLabel, name)
        here = tuple(part.features[label].names)
        if split == "train":
            classes = here
        elif here != classes:
            raise InputError(f"{name} has the classes {here[:20]}, the training images {classes[:20]}")
        plain = part.with_format(None)
        labels = np.array([-1 if one is None else one for one in plain[label]], dtype=np.int64)
        _check_labels(labels, classes, name, every=split == "train")
        # Not decoded there: what is read here says which file is damaged, and fetches nothing.
        parts.append(plain.select_columns([image]).cast_column(image, datasets.Image(decode=False)))
        names.append(name)
        start = ends[-1] if ends else 0
        ends.append(start + len(labels))
        splits[_SPLITS.get(split, split)] = (np.arange(start, ends[-1]), labels)
        digest.update(f"{split} {len(labels)} {part._fingerprint}\n".encode() + labels.tobytes())
    rows = _Rows(tuple(parts), tuple(names), tuple(ends), in_channels or 1, in_channels is not None)
    channels = in_channels or channels_in(*rows.found(0))
    rows = _Rows(rows.parts, rows.names, rows.ends, channels, rows.given)
    return _Found("dataset", rows, splits, classes, channels, digest.hexdigest(), whole)


def _column(part: Any, argument: str, given: Mapping[str, str], feature: Any, name: str) -> str:
    """The column of a feature type, which may be named."""
    kind = feature.__name__
    fit = [column for column, one in part.features.items() if isinstance(one, feature)]
    if argument in given:
        column = given[argument]
        if column not in fit:
            raise InputError(
                f"{argument}={column!r}, but {name} has the columns {dict(part.features)}: name one of {kind}"
            )
        return column
    if len(fit) != 1:
        raise InputError(
            f"{name} has {len(fit)} columns of {kind} among {', '.join(part.features)}, expected one: "
            + (f"name it, {argument}={fit[0]!r}" if fit else "cast a column to that feature, and save again")
        )
    return fit[0]


def _check_labels(labels: NDArray[np.int64], classes: Sequence[str], name: str, *, every: bool) -> None:
    """Refuse labels that are none of the classes, and of the training images classes without any."""
    if not len(labels):
        raise InputError(f"{name} has no images: leave the split out")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        raise InputError(
            f"image {wrong[0]} of {name} has the label {labels[wrong[0]]}, expected 0 to {len(classes) - 1}: "
            "leave images without a label out"
        )
    if every and (empty := [classes[i] for i in range(len(classes)) if not (labels == i).any()]):
        raise InputError(f"{name} has no image of the class {empty[0]!r}: add some, or remove the class")
