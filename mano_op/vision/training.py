"""Training on images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mano_op.data.sampler import ranks
from mano_op.errors import InputError
from mano_op.pretrained import fetched, load_model, weights_digest
from mano_op.registry import model_class
from mano_op.runs import RUN, Run, load_run
from mano_op.train.distributed import sum_numbers
from mano_op.train.folder import check_out
from mano_op.train.loop import train
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.options import ImageOptions
from mano_op.train.task import Task, check_output, model_options
from mano_op.vision.augment import augmentation, check_augmentation
from mano_op.vision.baselines import SwinClassifier as SwinClassifier
from mano_op.vision.baselines import ViTClassifier as ViTClassifier
from mano_op.vision.classifier import MANOClassifier as MANOClassifier
from mano_op.vision.images import DIGITS, Images, ImageSplit, image_loader, open_images, stratified
from mano_op.vision.linear_probe import freeze_backbone, train_head
from mano_op.vision.metrics import class_metrics
from mano_op.vision.processor import IMAGENET, ImageProcessor, moments
from mano_op.weights import parameters_of

_HELD_OUT = 2  # a stream of its own, apart from the splits of the source


def train_classifier(
    images: str | Path | Images,
    out: str | Path,
    *,
    arch: str = "mano_classifier",
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **training: Any,
) -> Run:
    r"""Train a classifier of neuraloperator's registry on images, and keep it as a run.

    It is ``train(ImageTask(images, ImageOptions(**training), arch=arch, options=options), out)``.

    Parameters
    ----------
    images : str, path or Images
        A source as `mano_op.vision.images.open_images` takes it, or what that returns.
    out : path
        Folder for the run; see `mano_op.runs`. It cannot be among the images.
    arch, options
        As in `ImageTask`.
    resume, overwrite : bool
        As in `mano_op.train.loop.train`.
    **training
        Options of `mano_op.train.options.ImageOptions`: ``epochs=30, batch_size=64, ...``.

    Raises
    ------
    InputError
        As `ImageOptions`, `ImageTask` and `mano_op.train.loop.train`; or if `out` is among the images.

    Examples
    --------
    A linear map of the pixels in the place of a classifier:

    >>> import tempfile
    >>> from mano_op.models.data_model import DataModel
    >>> class Pixels(DataModel, name="doctest_pixels"):
    ...     def __init__(self, in_channels, n_classes):
    ...         super().__init__()
    ...         self.head = nn.Linear(64 * in_channels, n_classes)
    ...     def forward(self, x, **kwargs):
    ...         return self.head(x.flatten(1))
    >>> run = train_classifier("digits", f"{tempfile.mkdtemp()}/run", arch="doctest_pixels", epochs=2,
    ...                        validate=0.2, progress=False)
    >>> run.options, [sorted(epoch) for epoch in run.history][0]
    ({'in_channels': 1, 'n_classes': 10},
     ['epoch', 'seconds', 'training_error', 'validation_accuracy', 'validation_error'])
    """
    check_out(out, resume=resume, overwrite=overwrite)
    task = ImageTask(images, ImageOptions(**training), arch=arch, options=options)
    _check_apart(out, task.images)
    return train(task, out, resume=resume, overwrite=overwrite)


class ImageTask(Task):
    r"""A classifier to train on images.

    AdamW, by the schedule of `mano_op.train.optimizer`; biases, norms and whatever else has one dimension is
    left without weight decay. The loss is the cross-entropy with the targets :math:`t` of
    `mano_op.vision.processor.ImageProcessor`, summed over the images of a batch,

    .. math:: -\sum_i \sum_k t_{ik} \log p_{ik}, \qquad p_i = \mathrm{softmax}(\mathrm{logits}_i).

    The history has its mean in nats, with the targets as smoothed and mixed as they were; and if the training
    is validated, "validation_error", the mean cross-entropy with the labels, and "validation_accuracy".

    Parameters
    ----------
    images : str, path or Images
        A source as `mano_op.vision.images.open_images` takes it, or what that returns.
    training : ImageOptions
    arch : str
        Name of the model in neuraloperator's registry: "mano_classifier", "vit_classifier", ...
    options : mapping, optional
        The model's constructor arguments. ``in_channels`` and ``n_classes`` follow from the images, and for
        models that have it, unless given, ``image_size``. With `start` the arguments of the saved model are
        taken where none is given.

    Raises
    ------
    InputError
        If the source, a split or a saved model does not exist, or an option contradicts the images.
    """

    kind = "images"

    def __init__(
        self,
        images: str | Path | Images,
        training: ImageOptions,
        *,
        arch: str = "mano_classifier",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(training, arch)
        self.training: ImageOptions = training
        if not isinstance(images, Images):
            images = open_images(images, image_size=training.image_size)
        elif training.image_size is not None:
            raise InputError("image_size for images that are opened already: give it to open_images")
        self.images = images
        check_augmentation(training.augmentation, images.image_size, flippable=images.flippable)
        self._augment = augmentation(training.augmentation, len(images.classes), self.augmentation_rng)
        self._train, self._tested = _parts(images, training.validate, training.seed)
        self.validated = self._tested is not None
        self._start = None if training.start is None else _Start(training.start, arch)
        self.options = self._model_options(options or {})
        classes = {"n_classes": len(images.classes), "smoothing": training.label_smoothing}
        statistics, sample = self._statistics() | classes, self._train[0]
        try:
            self.processor = ImageProcessor(**statistics)
            self.processor.preprocess(sample, batched=False)
        except (InputError, TypeError) as error:
            raise InputError(
                f"normalise={training.normalise!r}, expected 'imagenet', or {{'mean': [...], 'std': [...]}}, "
                f"a number of each channel ({error})"
            ) from error
        workers = training.num_workers
        self.loader = image_loader(self._train, training.batch_size, num_workers=workers, seed=training.seed)
        self._tests = self._tested and image_loader(self._tested, training.batch_size, num_workers=workers)
        self.title = f"{arch} at {images.image_size[0]}x{images.image_size[1]}"

    def _model_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the model's arguments: of the images, the given ones, those of the saved model."""
        images = self.images
        derived = {"in_channels": images.channels, "n_classes": len(images.classes)}
        defaults = {} if self._start is None else dict(self._start.options)
        if "image_size" in inspect.signature(model_class(self.arch)).parameters:
            height, width = images.image_size
            defaults.setdefault("image_size", height if height == width else [height, width])
        return model_options(given, derived, f"the images of {images.source}", defaults)

    def _statistics(self) -> dict[str, Any]:
        """Return the mean and standard deviation of each channel that images are normalised by."""
        normalise = self.training.normalise
        if normalise == "imagenet":
            return dict(IMAGENET)
        if normalise is None:
            if self._start is not None and self._start.processor is not None:
                return self._start.processor.to_dict()
            return moments(self._train)
        return dict(normalise)

    def build(self) -> nn.Module:
        """Return the model with its initial parameters, or those of the saved model."""
        model = super().build()
        if self._start is not None:
            self._start.give(model)
        if self.training.freeze == "backbone":
            freeze_backbone(model, self.arch)
        return model

    def check(self, model: nn.Module) -> None:
        """Refuse a model that makes no logit of each class of an image."""
        images = self.images
        shape = (2, images.channels, *images.image_size)
        check_output(model, self.arch, self.options, shape, (2, len(images.classes)))

    def set_mode(self, model: nn.Module) -> None:
        """Put the model into training mode, of a frozen one the head alone."""
        if self.training.freeze == "backbone":
            train_head(model)
        else:
            model.train()

    def optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW, which decays matrices alone, and the schedule."""
        of = self.training
        return optimizer_and_schedule(
            "adamw", model, of.learning_rate, of.weight_decay, of.epochs, matrices_only=True
        )

    def sample(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the images of a batch, augmented with those of all ranks, normalised, and their targets."""
        x, y = batch["x"], batch["y"]
        if self._augment is not None:
            together, rank = ranks()
            if together > 1:
                x, y = (_of_all_ranks(t, together) for t in (x, y))
            x, y = (t[rank::together] for t in self._augment(x, y))
        data = self.processor.preprocess({"x": x, "y": y})
        return data["x"], data["y"]

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        """Return the cross-entropy, summed over the images."""
        return cross_entropy(out, y)

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean cross-entropy with the labels, and the accuracy.

        Ranks take the mean of theirs, since layers such as batch normalisation have statistics of each rank.
        """
        metrics, together = class_metrics(model, self.processor, self._tests or (), self.device), ranks()[0]
        error, accuracy = sum_numbers(metrics.cross_entropy, metrics.accuracy(), device=self.device)
        return {"validation_error": error / together, "validation_accuracy": accuracy / together}

    def describe(self) -> dict[str, Any]:
        """Return the source, its classes and sizes, and how many images are trained on."""
        images, start = self.images, self._start
        described: dict[str, Any] = {
            "source": images.source,
            "images": images.origin,
            "classes": list(images.classes),
            "channels": images.channels,
            "image_size": list(images.image_size),
            "samples": len(self._train),
        }
        if start is not None:
            described |= {"start": str(self.training.start), "started": start.digest}
        if self._tested is not None:
            described["validation"] = {"samples": len(self._tested)}
        return described

    def fingerprint(self) -> dict[str, Any]:
        """Return nothing: the description has the digests of the images."""
        return {}

    def packages(self, model: nn.Module) -> list[str]:
        """Return the packages that read the images, and made the model."""
        readers = {DIGITS: ["scikit-learn"], "folder": ["pillow"], "dataset": ["pillow", "datasets"]}
        theirs = any(type(module).__module__.startswith("transformers.") for module in model.modules())
        return [*readers.get(self.images.origin["kind"], []), *["transformers"] * theirs]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of logits ``(batch, K)`` and targets ``(batch, 1, K)``, summed over images.

    Examples
    --------
    >>> even = torch.zeros(2, 4), torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.5, 0.5, 0.0, 0.0]]])
    >>> bool(torch.isclose(cross_entropy(*even), 2 * torch.tensor(4.0).log()))
    True
    """
    return -(targets.squeeze(1) * F.log_softmax(logits, dim=-1)).sum()


class _Start:
    """A saved model whose parameters are begun with."""

    def __init__(self, folder: str | Path, arch: str) -> None:
        self.path, self.processor = fetched(folder), None
        if (self.path / RUN).exists():
            run = load_run(self.path, task="images")
            self._model, saved, self.options, self.processor = run.model, run.arch, run.options, run.processor
        else:
            self._model, saved, self.options = load_model(self.path)
        if saved.lower() != arch.lower():
            raise InputError(f"start={folder} holds a {saved}, arch={arch!r}: give arch={saved!r}")
        self.digest = weights_digest(self.path)

    def give(self, model: nn.Module) -> None:
        """Give a model these parameters, except those of a head of another number of classes."""
        saved, own = parameters_of(self._model), parameters_of(model)
        shapes = [{name: tuple(t.shape) for name, t in each.items()} for each in (own, saved)]
        different = [name for name in {**own, **saved} if shapes[0].get(name) != shapes[1].get(name)]
        other = [name for name in different if not name.startswith("head.")]
        if other:
            raise InputError(
                f"{self.path} has {other[0]} of shape {shapes[1].get(other[0])}, the model to train of "
                f"{shapes[0].get(other[0])}: leave out the options that differ from {self.options}"
            )
        taken = {name: t.to(own[name].dtype) for name, t in saved.items() if name not in different}
        nn.Module.load_state_dict(model, {**own, **taken})


def _of_all_ranks(own: Tensor, together: int) -> Tensor:
    """Return the batch of all ranks, to which each contributes every `together`-th sample."""
    parts = [torch.empty_like(own) for _ in range(together)]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def _check_apart(out: str | Path, images: Images) -> None:
    """Refuse to write a run among images, where it would be taken for a class."""
    if images.origin["kind"] == DIGITS:
        return
    source, folder = Path(images.source).resolve(), Path(out).resolve()
    if source in (folder, *folder.parents):
        raise InputError(
            f"{out} is within {images.source}, where the images are: give a folder elsewhere for the run"
        )


def _parts(images: Images, validate: str | float | None, seed: int) -> tuple[ImageSplit, ImageSplit | None]:
    """Return the images to train on, and those to validate on."""
    train = images["train"]
    if validate is None:
        return train, None
    if isinstance(validate, str):
        return train, images[validate]
    labels = train.labels.numpy()
    held = stratified(labels, validate, seed, images.classes, stream=_HELD_OUT)
    return train.subset(np.flatnonzero(~held)), train.subset(np.flatnonzero(held))
