"""Train a classifier of images, with neuraloperator's own Trainer."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.data.jobs import only_writer
from mano_op.data.sampler import ranks
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.machine import machine
from mano_op.registry import build_model, model_class
from mano_op.train.checkpoint import Checkpoint, Training, behind, plain
from mano_op.train.distributed import join
from mano_op.train.epochs import train_epochs
from mano_op.train.folder import check_finished, check_out
from mano_op.train.logging import Log, check_log, opened_logs
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.precision import check_device, check_precision, scaler_for
from mano_op.train.steps import Steps
from mano_op.train.stopping import Best
from mano_op.train.watched import Diverged, Watched
from mano_op.vision.augment import Augmentation
from mano_op.vision.head import freeze_backbone, only_head
from mano_op.vision.images import DIGITS, Images, ImageSplit, check_part, open_images, stratified
from mano_op.vision.judge import judge
from mano_op.vision.loaders import image_loader
from mano_op.vision.processor import IMAGENET, ImageProcessor, moments
from mano_op.vision.runs import ClassifierRun, load_classifier, save_classifier
from mano_op.vision.start import SavedModel, saved_model

FREEZE = ("none", "backbone")
_HELD_OUT = 2  # a stream of its own, apart from the splits of the source


def train_classifier(
    images: str | Path | Images,
    out: str | Path,
    *,
    arch: str = "mano_classifier",
    options: Mapping[str, Any] | None = None,
    image_size: int | Sequence[int] | None = None,
    epochs: int = 30,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.05,
    label_smoothing: float = 0.0,
    augmentation: Mapping[str, Any] | None = None,
    normalise: str | Mapping[str, Sequence[float]] | None = None,
    freeze: str = "none",
    start: str | Path | None = None,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "float32",
    clip: float | None = None,
    accumulate: int = 1,
    validate: str | float | None = None,
    patience: int | None = None,
    num_workers: int = 0,
    log: str | Log | Sequence[str | Log] | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> ClassifierRun:
    r"""Train a classifier of neuraloperator's registry on images, and keep it as a run.

    AdamW, by the schedule of `mano_op.train.train_model`; biases, norms and whatever else has one dimension
    is left without weight decay. The loss is the cross-entropy with the targets :math:`t` of
    `mano_op.vision.processor.ImageProcessor`, summed over the images of a batch,

    .. math:: -\sum_i \sum_k t_{ik} \log p_{ik}, \qquad p_i = \mathrm{softmax}(\mathrm{logits}_i).

    A training that was interrupted, by whatever means, is gone on with by the same call with ``resume=True``:
    on a CPU it comes to the same numbers as one that was not, to the last bit. It is of one process.

    Parameters
    ----------
    images : str, path or Images
        A source as `mano_op.vision.images.open_images` takes it, or what that gave.
    out : path
        Folder for the run; see `mano_op.vision.runs`.
    arch : str
        Name in neuraloperator's registry: "mano_classifier", "vit_classifier", "swin_classifier", ...
    options : mapping
        The model's constructor arguments. ``in_channels`` and ``n_classes`` follow from the images, and for
        models that have it, unless given, ``image_size``. With `start` its own are taken where none is given.
    image_size : int or (int, int), optional
        Of a source that is not opened yet.
    epochs, batch_size : int
    learning_rate, weight_decay : float
    label_smoothing : float
        What part of each target is spread over all classes.
    augmentation : mapping, optional
        Of `mano_op.vision.augment.Augmentation`: ``{"shift": 1}``, ``{"crop": 0.35, "flip": True}``.
    normalise : {"imagenet"} or mapping, optional
        Mean and standard deviation of each channel: ``{"mean": [0.5], "std": [0.5]}``. If not given, those of
        the run that is begun from, or of the training images, which takes a pass over them.
    freeze : {"none", "backbone"}
        "backbone" is the linear evaluation: only the parameters of the model's ``head`` are trained, all
        other modules stay in evaluation mode and bit for bit as they are.
    start : path, optional
        Of a saved model, whose parameters are begun with: a folder as ``save_pretrained`` or a run writes it.
        Its head is left out if it is of another number of classes.
    seed : int
        Of the initial parameters, the order of the images, what is done to them, and which are held out.
    device : str
    precision : {"float32", "bfloat16", "float16"}
    clip : float, optional
        The largest norm of the gradient of the loss of a step, which is summed over its images.
    accumulate : int
        Batches for each step.
    validate : str or float, optional
        What to validate on after each epoch: a split, or the part of each class of the training images that
        is held out, 0.1. The run has the parameters with the lowest cross-entropy there; without, those of
        the last epoch. A split that models are judged on later is not one to choose them by.
    patience : int, optional
        Stop after so many epochs without a lower one.
    num_workers : int
        Processes that read images. Nothing but time depends on them.
    log, checkpoint_every, progress, resume, overwrite
        As in `mano_op.train.train_model`.

    Returns
    -------
    ClassifierRun
        Also written to `out`. Its ``history`` has an entry for each epoch: "training_error", the mean
        cross-entropy in nats with the targets, as smoothed and mixed as they were, of the model as it was
        when each image came up; "seconds"; and if it was validated "validation_error", the mean cross-entropy
        with the labels, and "validation_accuracy". ``training["best"]`` says which epoch's parameters it has.

    Raises
    ------
    InputError
        Before any work, if `out` holds a run or a checkpoint already, or with ``resume=True`` one of other
        arguments, images or versions, or cannot be written, or is among the images; a number is not one that
        can be trained with; a name, an option or the device does not exist; the model does not make a logit
        of each class of such an image; or what it is to begin from is another model. Later only if an image
        cannot be read, or training diverges.

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
    check_whole(epochs=epochs, accumulate=accumulate, batch_size=batch_size)
    check_whole(at_least=0, seed=seed, checkpoint_every=checkpoint_every, num_workers=num_workers)
    if seed >= 2**63:
        raise InputError(f"seed={seed}, expected less than 2**63")
    check_finite_number(zero=False, learning_rate=learning_rate)
    check_finite_number(zero=True, weight_decay=weight_decay)
    check_finite_number(zero=True, label_smoothing=label_smoothing)
    if label_smoothing >= 1:
        raise InputError(f"label_smoothing={label_smoothing}, expected less than 1: give 0.1, say")
    if clip is not None:
        check_finite_number(zero=False, clip=clip)
    logs = check_log(log)
    augment = Augmentation.from_options(augmentation)
    if freeze not in FREEZE:
        raise InputError(f"freeze={freeze!r}, expected one of {', '.join(FREEZE)}")
    device = join(device)
    if ranks()[0] > 1:
        raise InputError("a classifier is trained in one process: start it without torchrun")
    if not isinstance(images, Images):
        images = open_images(images, image_size=image_size)
    elif image_size is not None:
        raise InputError("image_size for images that are opened already: give it to open_images")
    _check_apart(out, images)
    augment.check(images.image_size, has_hand=images.has_hand)
    train, tested, validation = _parts(images, validate, patience, seed)
    begun_from = None if start is None else saved_model(start, arch)
    options = _options_for(images, arch, options or {}, begun_from)
    check_device(device)
    check_precision(precision, device)
    statistics = _statistics(normalise, train, begun_from)
    processor = ImageProcessor(
        statistics["mean"], statistics["std"], len(images.classes), smoothing=label_smoothing
    )
    if processor.channels != images.channels:
        raise InputError(
            f"normalise={statistics} for images of {images.channels} channels: give a mean and a std of each"
        )

    torch.manual_seed(seed)
    model = build_model(arch, options)
    if begun_from is not None:
        begun_from.give(model)
    _check_classifies(model, arch, options, images)
    if freeze == "backbone":
        freeze_backbone(model, arch)

    training = plain(
        {
            "source": images.source,
            "images": images.origin,
            "classes": len(images.classes),
            "channels": images.channels,
            "image_size": list(images.image_size),
            "samples": len(train),
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            **({} if not augment.to_dict() else {"augmentation": augment.to_dict()}),
            **({} if freeze == "none" else {"freeze": freeze}),
            **({} if begun_from is None else {"start": str(start), "started": begun_from.digest}),
            "seed": seed,
            **({} if precision == "float32" else {"precision": precision}),
            **({} if clip is None else {"clip": clip}),
            **({} if accumulate == 1 else {"accumulate": accumulate}),
            **({} if tested is None else {"validation": validation | {"samples": len(tested)}}),
            "machine": machine(device, also=_used(images, model)),
        }
    )
    asked = {"arch": arch, "options": plain(options), "processor": plain(processor.to_dict())}
    asked |= {name: one for name, one in training.items() if name not in ("source", "start", "machine")}
    checkpoint = Checkpoint(out, asked | behind({"names": list(images.classes)}, training["machine"]))
    if resume and not checkpoint.there and (Path(out) / "run.json").exists():
        found = load_classifier(out)
        check_finished(out, found, asked)
        return found

    model.to(device)
    stepped, schedule = optimizer_and_schedule(
        "adamw", model, learning_rate, weight_decay, epochs, matrices_only=True
    )
    scaler, best = scaler_for(precision, device), Best(patience)
    turns = torch.Generator().manual_seed(seed)
    loader = image_loader(train, batch_size, num_workers=num_workers, seed=seed)
    tests = None if tested is None else image_loader(tested, batch_size, num_workers=num_workers)
    state = Training(model, stepped, schedule, loader, turns, best, scaler, device)
    with only_writer(checkpoint.path):
        if overwrite:
            checkpoint.remove()
        elif resume and checkpoint.there:
            checkpoint.restore(state)
        begun = len(state.history)
        title = f"{arch} at {images.image_size[0]}x{images.image_size[1]}"
        turn = augment.bound(len(images.classes), turns)
        watched = Watched(loader, cross_entropy, epochs, title, progress, turn, scaler, state.history)

        def judged() -> dict[str, float]:
            found = judge(model, processor, tests or (), device)
            return {"validation_error": found.cross_entropy, "validation_accuracy": found.accuracy()}

        def keep(epoch: int, over: bool) -> None:
            if checkpoint_every and (over or epoch % checkpoint_every == 0):
                checkpoint.write(state.state_dict())

        try:
            with (
                watched,
                opened_logs(logs, out, training, begun) as report,
                only_head(model) if freeze == "backbone" else nullcontext(),
            ):
                train_epochs(
                    state,
                    watched,
                    Steps(stepped, len(loader), accumulate=accumulate, clip=clip, scaler=scaler),
                    processor,
                    epochs,
                    precision=precision,
                    validate=None if tests is None else judged,
                    report=report,
                    keep=keep,
                )
        except Diverged:
            checkpoint.remove()
            raise

        if tests is not None:
            model.load_state_dict(dict(best.parameters))
            training["best"] = {"epoch": best.epoch, "validation_error": best.error}
        model.requires_grad_(True)
        run = ClassifierRun(
            model.cpu().eval(),
            processor.to("cpu").eval(),
            arch,
            options,
            images.classes,
            training,
            state.history,
        )
        save_classifier(out, run)
        checkpoint.remove()
    return run


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The cross-entropy of logits ``(batch, K)`` with targets ``(batch, 1, K)``, summed over the batch.

    Examples
    --------
    >>> even = torch.zeros(2, 4), torch.tensor([[[1.0, 0.0, 0.0, 0.0]], [[0.5, 0.5, 0.0, 0.0]]])
    >>> bool(torch.isclose(cross_entropy(*even), 2 * torch.tensor(4.0).log()))
    True
    """
    return -(targets.squeeze(1) * F.log_softmax(logits, dim=-1)).sum()


def _check_apart(out: str | Path, images: Images) -> None:
    """Refuse to write a run among images, of which it would be taken for a class."""
    if images.origin["kind"] == DIGITS:
        return
    source, folder = Path(images.source).resolve(), Path(out).resolve()
    if source in (folder, *folder.parents):
        raise InputError(
            f"{out} is within {images.source}, where the images are: give a folder elsewhere for the run"
        )


def _used(images: Images, model: nn.Module) -> list[str]:
    """The packages that read the images, and made the model."""
    readers = {DIGITS: ["scikit-learn"], "folder": ["pillow"], "dataset": ["pillow", "datasets"]}
    theirs = any(type(module).__module__.startswith("transformers.") for module in model.modules())
    return [*readers.get(images.origin["kind"], []), *["transformers"] * theirs]


def _parts(
    images: Images, validate: str | float | None, patience: int | None, seed: int
) -> tuple[ImageSplit, ImageSplit | None, dict[str, Any]]:
    """What is trained on, what is validated on, and how a run says the latter."""
    train = images["train"]
    if validate is None:
        if patience is not None:
            raise InputError(
                f"patience={patience} without validate: name a split to validate on, or give the part of the "
                "training images to hold out, validate=0.1"
            )
        return train, None, {}
    if isinstance(validate, str):
        if validate == "train":
            raise InputError(
                "validate='train', which is trained on: name another split, or hold out a part of it, "
                "validate=0.1"
            )
        tested, found = images[validate], {"split": validate}
    else:
        check_part(validate=validate)
        labels = train.labels.numpy()
        held = stratified(labels, validate, seed, images.classes, stream=_HELD_OUT)
        train, tested = train.subset(np.flatnonzero(~held)), train.subset(np.flatnonzero(held))
        found = {"part": validate}  # type: ignore[dict-item]
    if patience is not None:
        check_whole(patience=patience)
        found["patience"] = patience  # type: ignore[assignment]
    return train, tested, found


def _statistics(
    normalise: str | Mapping[str, Sequence[float]] | None, train: ImageSplit, start: SavedModel | None
) -> dict[str, Any]:
    """The mean and standard deviation of each channel that images are normalised by."""
    if normalise is None:
        if start is not None and start.processor is not None:
            found: dict[str, Any] = start.processor.to_dict()
            return {name: found[name] for name in ("mean", "std")}
        return moments(train)
    if normalise == "imagenet":
        return {name: list(values) for name, values in IMAGENET.items()}
    if not isinstance(normalise, Mapping) or set(normalise) != {"mean", "std"}:
        raise InputError(
            f"normalise={normalise!r}, expected 'imagenet', or {{'mean': [...], 'std': [...]}}, a number of "
            "each channel"
        )
    return {name: list(values) for name, values in normalise.items()}


def _options_for(
    images: Images, arch: str, given: Mapping[str, Any], start: SavedModel | None
) -> dict[str, Any]:
    """The given options of a model and those that follow from the images, or from what it begins with."""
    derived = {"in_channels": images.channels, "n_classes": len(images.classes)}
    for name, value in given.items():
        if name in derived and value != derived[name]:
            raise InputError(
                f"option {name}={value!r}, but the images of {images.source} have {name}={derived[name]!r}: "
                "leave it out, it follows from them"
            )
    options = {**({} if start is None else start.options), **given, **derived}
    options = {**derived, **{name: value for name, value in options.items() if name not in derived}}
    if "image_size" in inspect.signature(model_class(arch)).parameters:
        height, width = images.image_size
        options.setdefault("image_size", height if height == width else [height, width])
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options={options} cannot be kept with the run ({error}); use plain values"
        ) from error
    return options


def _check_classifies(model: nn.Module, arch: str, options: Mapping[str, Any], images: Images) -> None:
    """Refuse a model that makes no logits of these images, before its first step."""
    training = model.training
    shape = (2, images.channels, *images.image_size)
    try:
        with torch.no_grad():
            logits = model.eval()(torch.zeros(shape))
    except Exception as error:  # any model of the registry: whatever it raises is its answer
        raise InputError(
            f"{arch} with {dict(options)} cannot take images of shape {shape}: "
            f"{type(error).__name__}: {error}"
        ) from error
    model.train(training)
    expected = (2, len(images.classes))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{arch} with {dict(options)} makes {found} of two images, expected logits of shape {expected}: "
            "give a classifier"
        )
