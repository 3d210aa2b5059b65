"""A classifier's run: a trained model with all it takes to use it, in a folder.

The files are those of `mano_op.runs`, and as there all of it is data; ``run.json`` has the format "mano_op
classifier run", and the names of the classes. Importing this registers the classifiers of the package, so
that any of them can be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from mano_op.cost import count_parameters
from mano_op.description import describe, entry, read_description, write_description
from mano_op.errors import InputError
from mano_op.files import make_folder, write_file
from mano_op.pretrained import fetched, load_model, save_model
from mano_op.vision.baselines import SwinClassifier as SwinClassifier
from mano_op.vision.baselines import ViTClassifier as ViTClassifier
from mano_op.vision.card import classifier_card
from mano_op.vision.classifier import MANOClassifier as MANOClassifier
from mano_op.vision.processor import ImageProcessor

FORMAT, FORMAT_VERSION = "mano_op classifier run", 1
CARD = "README.md"


@dataclass(frozen=True)
class ClassifierRun:
    """A trained classifier and where it comes from.

    Attributes
    ----------
    model : nn.Module
    processor : ImageProcessor
        Between images in [0, 1] and the model's.
    arch : str
        The model's name in neuraloperator's registry.
    options : dict
        The model's constructor arguments.
    classes : tuple of str
        Whose logits the model makes, in that order.
    training : dict
        What it was trained on and how; ``training["image_size"]`` is the size of the images.
    history : list of dict
        One entry an epoch.
    """

    model: nn.Module
    processor: ImageProcessor
    arch: str
    options: dict[str, Any]
    classes: tuple[str, ...]
    training: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that it was trained on."""
        height, width = self.training["image_size"]
        return height, width

    @property
    def n_parameters(self) -> int:
        """Real numbers to be learned, those that were frozen too."""
        return count_parameters(self.model)

    def save(self, folder: str | Path) -> None:
        """As `save_classifier`."""
        save_classifier(folder, self)

    @classmethod
    def load(cls, folder: str | Path, *, revision: str | None = None) -> ClassifierRun:
        """As `load_classifier`."""
        return load_classifier(folder, revision=revision)


def save_classifier(folder: str | Path, run: ClassifierRun) -> None:
    """Write a run into a folder, which is made if need be.

    ``run.json`` is written last and in one piece, so a folder that has it is whole.
    """
    folder = make_folder(folder)
    processor = run.processor.to_dict()
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "parameters": run.n_parameters,
        "processor": processor,
        "classes": list(run.classes),
        "training": run.training,
        "history": run.history,
    }
    describe(description)  # before anything is written: raises if there is a number that is none
    # A run that is replaced is none from here on until the new one is whole.
    (folder / "run.json").unlink(missing_ok=True)
    save_model(folder, run.model, run.arch, run.options)
    card = classifier_card(
        run.arch, run.options, run.n_parameters, processor, run.classes, run.training, run.history
    )
    write_file(folder / CARD, card)
    write_description(folder / "run.json", description)


def load_classifier(folder: str | Path, *, revision: str | None = None) -> ClassifierRun:
    """Read what `save_classifier` wrote; the model and the processor are in evaluation mode.

    Parameters
    ----------
    folder : path or str
        A folder, or a repository of the Hugging Face Hub, ``"owner/name"``, which is fetched.
    revision : str, optional
        Of the repository: a branch, a tag or a commit.

    Raises
    ------
    InputError
        If the folder holds no such run, one of another version, one that is damaged, or parameters that are
        not this model's.
    """
    folder = fetched(folder, revision)
    path = folder / "run.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no run.json, so it is no finished run: make one with `mano-op classify train`"
        )
    described = read_description(path, FORMAT, (FORMAT_VERSION,))
    training, history = entry(path, described, "training", dict), entry(path, described, "history", list)
    processor = processor_of(path, described)
    classes = entry(path, described, "classes", list)
    size = training.get("image_size")
    sizes = isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)
    if not sizes or not all(isinstance(name, str) for name in classes):
        raise InputError(
            f"{path}: 'classes' or the 'image_size' of the training are none: restore the file or train again"
        )
    if len(classes) != processor.n_classes:
        raise InputError(
            f"{path} has {len(classes)} classes and a processor of {processor.n_classes}: restore the file "
            "or train again"
        )
    model, arch, options = load_model(folder)
    return ClassifierRun(model.eval(), processor.eval(), arch, options, tuple(classes), training, history)


def processor_of(path: Path, described: Mapping[str, Any]) -> ImageProcessor:
    """The processor of a description of a run.

    Raises
    ------
    InputError
        If there is none.
    """
    try:
        return ImageProcessor.from_dict(entry(path, described, "processor", dict))
    except (AttributeError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"{path}: 'processor' is no description of one ({type(error).__name__}: {error}): restore the "
            "file or train again"
        ) from error
