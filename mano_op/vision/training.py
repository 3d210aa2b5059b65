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
from mano_op.train.checkpoint import check_out
from mano_op.train.distributed import sum_numbers
from mano_op.train.loop import train
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.options import ImageOptions
from mano_op.train.task import Task, check_output, model_options
from mano_op.vision.evaluate import class_metrics
from mano_op.vision.images import DIGITS, Images, image_loader, open_images, stratified
from mano_op.vision.processor import IMAGENET, ImageProcessor, moments
from mano_op.vision.transforms import augmentation
from mano_op.weights import check_entries, entries_of, parameters_of

_HELD_OUT = 2  # a stream of its own, apart from the splits of the source


def train_classifier(
    images: str | Path | Images,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    arch: str = "mano_classifier",
    options: Mapping[str, Any] | None = None,
    **training: Any,
) -> Run:
    r"""Train a classifier of neuraloperator's registry on images, and keep it as a run.

    Parameters
    ----------
    images, arch, options
        As in `ImageTask`.
    out, resume, overwrite
        As in `mano_op.train.loop.train`; `out` cannot be among the images, which is an `InputError`.
    **training
        Options of `mano_op.train.options.ImageOptions`: ``epochs=30, batch_size=64, ...``.

    Examples
    --------
    >>> import tempfile
    >>> small = {"embed_dim": 8, "depths": [1], "n_heads": [1], "window": 2}
    >>> run = train_classifier("digits", f"{tempfile.mkdtemp()}/run", options=small, epochs=1, validate=0.2,
    ...                        progress=False)
    >>> run.options["n_classes"], sorted(run.history[0])
    (10, ['epoch', 'seconds', 'training_error', 'validation_accuracy', 'validation_error'])
    """
    check_out(out, resume=resume, overwrite=overwrite)
    task = ImageTask(images, ImageOptions(**training), arch=arch, options=options)
    source, folder = Path(task.images.source).resolve(), Path(out).resolve()
    if task.images.origin["kind"] != DIGITS and source in (folder, *folder.parents):
        raise InputError(  # the run would be taken for a class
            f"{out} is within {task.images.source}, where the images are: give a folder elsewhere for the run"
        )
    return train(task, out, resume=resume, overwrite=overwrite)


class ImageTask(Task):
    r"""A classifier to train on images.

    AdamW, by the schedule of `mano_op.train.optimizer`, decays matrices alone. The loss is the cross-entropy
    with the targets :math:`t` of `mano_op.vision.processor.ImageProcessor`, summed over a batch,

    .. math:: -\sum_i \sum_k t_{ik} \log p_{ik}, \qquad p_i = \mathrm{softmax}(\mathrm{logits}_i).

    The history has its mean, in nats; and if the training is validated, "validation_error", the mean
    cross-entropy with the labels, and "validation_accuracy".

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
        self.images = images = _opened(images, training)
        classes, size = images.classes, images.image_size
        self._augment = augmentation(training.augmentation, len(classes), self.augmentation_rng)
        self._train, validate = images["train"], training.validate
        self._validation = images[validate] if isinstance(validate, str) else None
        if isinstance(validate, float):
            labels, seed = self._train.labels.numpy(), training.seed
            held_out = stratified(labels, validate, seed, classes, stream=_HELD_OUT)
            parts = (self._train.subset(np.flatnonzero(rows)) for rows in (~held_out, held_out))
            self._train, self._validation = parts
        self.validated = self._validation is not None
        self._start = start = None if training.start is None else _Start(training.start, arch)
        derived = {"in_channels": images.channels, "n_classes": len(classes)}
        defaults = dict(start.options) if start else {}
        if "image_size" in inspect.signature(model_class(arch)).parameters:
            defaults.setdefault("image_size", size[0] if size[0] == size[1] else list(size))
        self.options = model_options(options or {}, derived, f"the images of {images.source}", defaults)
        targets = {"n_classes": len(classes), "smoothing": training.label_smoothing}
        statistics, saved = training.normalise, start and start.processor
        if statistics is None:
            statistics = saved.to_dict() if saved else moments(self._train)
        elif statistics == "imagenet":
            statistics = IMAGENET
        try:
            self.processor = ImageProcessor(**{**statistics, **targets})
            self.processor.preprocess(self._train[0], batched=False)
        except (InputError, TypeError) as error:
            raise InputError(
                f"normalise={training.normalise!r}, expected 'imagenet', or {{'mean': [...], 'std': [...]}}, "
                f"a number of each channel ({error})"
            ) from error
        loading = {"batch_size": training.batch_size, "num_workers": training.num_workers}
        self.loader = image_loader(self._train, seed=training.seed, **loading)
        self._batches = self._validation and image_loader(self._validation, **loading)
        self.title = f"{arch} at {size[0]}x{size[1]}"

    def build(self) -> nn.Module:
        """Return the model with its initial parameters, or those of the saved model."""
        model = super().build()
        if self._start is not None:
            self._start.copy_to(model)
        if self.training.freeze == "backbone":
            head = getattr(model, "head", None)
            if not isinstance(head, nn.Module) or not list(head.parameters()):
                children = ", ".join(name for name, _ in model.named_children())
                raise InputError(
                    f"freeze='backbone', but {self.arch} has no module 'head' with parameters among "
                    f"{children}: give the last layer that name, or freeze='none'"
                )
            model.requires_grad_(False)
            head.requires_grad_(True)
        return model

    def check(self, model: nn.Module) -> None:
        """Refuse a model that makes no logit of each class of an image."""
        shape = (2, self.images.channels, *self.images.image_size)
        check_output(model, self.arch, self.options, shape, (2, len(self.images.classes)))

    def set_mode(self, model: nn.Module) -> None:
        """Put the model into training mode, but not a frozen backbone, which keeps all its state."""
        frozen = self.training.freeze == "backbone"
        (model.eval().get_submodule("head") if frozen else model).train()

    def optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW, which decays matrices alone, and the schedule."""
        return optimizer_and_schedule("adamw", model, self.training, self.steps, matrices_only=True)

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
        return F.cross_entropy(out, y.squeeze(1), reduction="sum")

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean cross-entropy with the labels, and the accuracy, averaged over the ranks."""
        # Layers such as batch normalisation have statistics of each rank.
        metrics, together = class_metrics(model, self.processor, self._batches or (), self.device), ranks()[0]
        error, accuracy = sum_numbers(metrics.cross_entropy, metrics.accuracy(), device=self.device)
        return {"validation_error": error / together, "validation_accuracy": accuracy / together}

    def describe(self) -> dict[str, Any]:
        """Return the source, its classes and sizes, and how many images are trained on."""
        images, start, validation = self.images, self._start, self._validation
        return {
            "source": images.source,
            "images": images.origin,
            "classes": images.classes,
            "channels": images.channels,
            "image_size": images.image_size,
            "samples": len(self._train),
            **({"start": str(self.training.start), "started": start.digest} if start else {}),
            **({} if validation is None else {"validation": {"samples": len(validation)}}),
        }

    def packages(self, model: nn.Module) -> list[str]:
        """Return the packages that read the images, and made the model."""
        readers = {DIGITS: ["scikit-learn"], "folder": ["pillow"], "dataset": ["pillow", "datasets"]}
        theirs = any(type(module).__module__.startswith("transformers.") for module in model.modules())
        return [*readers.get(self.images.origin["kind"], []), *["transformers"] * theirs]


class _Start:
    """A saved model to start from."""

    def __init__(self, folder: str | Path, arch: str) -> None:
        self.path = fetched(folder)
        run = load_run(self.path, task="images") if (self.path / RUN).exists() else None
        saved = (run.model, run.arch, run.options) if run else load_model(self.path)
        self._model, name, self.options = saved
        self.processor = run.processor if run else None
        if name.lower() != arch.lower():
            raise InputError(f"start={folder} holds a {name}, arch={arch!r}: give arch={name!r}")
        self.digest = weights_digest(self.path)

    def copy_to(self, model: nn.Module) -> None:
        """Copy the parameters to a model, except those of a head of another number of classes."""
        saved, own = parameters_of(self._model), parameters_of(model)
        backbone, built = (
            {name: entry for name, entry in entries_of(tensors).items() if not name.startswith("head.")}
            for tensors in (saved, own)
        )
        remedy = f"leave out the options that differ from {self.options}"
        check_entries(backbone, built, f"{self.path} holds other parameters than the model to train", remedy)
        fitting = {name: t for name, t in saved.items() if name in own and t.shape == own[name].shape}
        nn.Module.load_state_dict(model, own | fitting)


def _opened(images: str | Path | Images, training: ImageOptions) -> Images:
    """Open images, and refuse options that contradict them."""
    changes, size = training.augmentation, training.image_size
    if not isinstance(images, Images):
        images = open_images(images, image_size=size)
    elif size is not None:
        raise InputError(f"image_size={size} for images that are opened already: give it to open_images")
    if changes.flip and images.origin["kind"] == DIGITS:
        raise InputError("flip=True for digits, but a mirrored 2 is no 2: leave it out")
    height, width = images.image_size
    if changes.shift >= min(height, width):
        raise InputError(
            f"shift={changes.shift} may leave nothing of images of {height} x {width} pixels: give at most "
            f"{min(height, width) // 4}, say"
        )
    return images


def _of_all_ranks(own: Tensor, together: int) -> Tensor:
    """Return the batch of all ranks, to which each contributes every `together`-th sample."""
    parts = [torch.empty_like(own) for _ in range(together)]
    dist.all_gather(parts, own.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)
