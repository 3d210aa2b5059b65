"""The options of a training, each declared once.

Keywords of `mano_op.train.train_model` and `mano_op.vision.train_classifier`, flags of the command line with
their help, the record of a run and the fingerprint of a checkpoint are made from these classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from mano_op.data.mixed import Mixed
from mano_op.errors import InputError
from mano_op.options import (
    Check,
    Count,
    Flag,
    Fraction,
    NonNegative,
    Positive,
    Seed,
    Whole,
    number,
    options,
    options_of,
)
from mano_op.train.logging import check_log

_PART = number(
    "the name of a split, or a number of more than 0 and less than 1, the part of the training samples to "
    "hold out: give 0.1, say",
    lambda value: 0 < value < 1,
)
_CROP = number("a part of the image, more than 0 and at most 1", lambda part: 0 < part <= 1)


def _held_out(value: Any, name: str) -> Any:
    if value == "train":
        raise InputError("validate='train', which is trained on: name another split, or a part, validate=0.1")
    return value if value is None or isinstance(value, str) else _PART.function(value, name)


def _resolution(value: Any, name: str) -> Any:
    """Return a mixture for the mapping that a run records of it, or for a list of keys."""
    if isinstance(value, Mapping):
        if "resolutions" not in value or not set(value) <= {"resolutions", "ratios", "batch_size"}:
            expected = "'resolutions', and where needed 'ratios' and 'batch_size', as Mixed takes them"
            raise InputError(f"{name}={value!r}, expected {expected}")
        return Mixed(**value)
    if isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        return Mixed(value)
    return tuple(value) if isinstance(value, list) else value


@options
class TrainOptions:
    """Options of every training.

    Attributes
    ----------
    epochs : int
        Passes over the training samples.
    batch_size : int
        Samples in a batch, of each process if several train one model.
    learning_rate : float
        The largest. It rises to this in the first fifth of the steps, and falls to zero along a cosine.
    weight_decay : float
        Each step shrinks the parameters by this times the learning rate.
    seed : int
        Of the initial parameters, the order of the samples, their augmentation, and which are held out.
    device : str
        As torch names it: "cpu", "cuda", "cuda:1". In several processes "cuda" is one GPU for each.
    precision : {"float32", "bfloat16", "float16"}
        Of the matrix products, by torch's autocast. Parameters, losses and validation are in float32. With
        "float16" the loss is scaled so that gradients do not vanish, and a step that overflows is left out.
    clip : float, optional
        The largest norm of the gradient of a step's loss, which is summed over its samples.
    accumulate : int
        Batches in each step. Up to rounding it is the step of one batch of all their samples. The last step
        of an epoch may have fewer.
    validate : str or float, optional
        What to validate on after each epoch: the name of a split, or the part of the training samples that is
        held out, 0.1. The run has the parameters with the lowest error there; without, those of the last
        epoch. A split that models are judged on later is not one to choose them by.
    patience : int, optional
        Stop after so many epochs without a lower validation error. The learning rate falls as for all epochs.
    log : {"tensorboard", "wandb"} or callable, or list of these, optional
        Where each epoch's numbers go; a function gets the epoch and a dictionary of the history's numbers and
        "learning_rate". See `mano_op.train.logging`.
    checkpoint_every : int
        Epochs from one checkpoint to the next, the last epoch having one too; 0 for none. The checkpoint lies
        in the run's folder, and is gone when the run is written.
    progress : bool
        Whether to show a bar.
    """

    epochs: Count = 30
    batch_size: Count = 8
    learning_rate: Positive = 1e-2
    weight_decay: NonNegative = 1e-4
    seed: Seed = 0
    device: str = "cpu"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    clip: Positive | None = None
    accumulate: Count = 1
    validate: Annotated[str | float | None, Check(_held_out)] = None
    patience: Count | None = None
    log: Annotated[Any, Check(lambda value, name: check_log(value))] = ()
    checkpoint_every: Whole = 1
    progress: Flag = True

    # No number of a training follows from these, so a training goes on with others.
    UNRECORDED: ClassVar[tuple[str, ...]] = ("device", "log", "checkpoint_every", "progress", "num_workers")

    def __post_init__(self) -> None:
        for name in ("patience", "validate_resolution"):
            if self.validate is None and (value := getattr(self, name, None)) is not None:
                raise InputError(
                    f"{name}={value}, but nothing to validate on: give the name of a split, validate='test', "
                    "or the part of the training samples to hold out, validate=0.1"
                )


@options
class FieldOptions(TrainOptions):
    """Options of a training on fields.

    Attributes
    ----------
    resolution : int, str, sequence of int, Grid or Mixed
        The resolution of the store to train on: 16, "r16", (32, 48); or several, ``Mixed([16, 32])``. The one
        of several that most samples have, the finest of several such, is the model's home: a MANO's
        ``reference_shape`` unless its options have one.
    time_steps : (int, int), optional
        Of fields that vary in time: how many times the model takes, and how many it predicts.
    at : sequence of float, optional
        Instead, the times that it predicts from the steady inputs.
    transforms : mapping of str to str, optional
        Of variables, before they are normalised: ``{"permeability": "log"}``.
    loss : {"l2", "h1"}
        The relative error that is minimised; see `mano_op.train.objective.training_loss`.
    optimizer : {"adamw", "muon"}, optional
        "muon" is Muon for hidden matrices, AdamW for the rest (`mano_op.train.optimizer`); its learning rate
        rises in the first tenth of the steps. If not given, "muon" for MANO, "adamw" for other models.
    symmetries : sequence of {"transpose", "reflect"}
        Symmetries of the problem, by which each batch is turned at random; see `mano_op.train.symmetry`.
    noise : float
        Of models with `time_steps`: the standard deviation of the noise that training adds to the inputs that
        vary in time, in units of their own; see `mano_op.train.perturbation`.
    pushforward : int
        Of models with ``time_steps=(steps_in, 1)``: training samples are first stepped on by the model
        itself, without gradients, 0 to so many times, drawn anew for each.
    validate_resolution : int, str, sequence of int, Grid or Mixed, optional
        The resolutions to validate at, together; those of the training if it is left out.
    """

    RENAMED: ClassVar = {
        "model": "arch='mano', say",
        "lr": "learning_rate=1e-3, say",
        "window": "time_steps=(1, 1), say",
        "ratios": "resolution=Mixed([16, 32], ratios=[1, 3]), say",
    }

    resolution: Annotated[Any, Check(_resolution)]
    time_steps: tuple[Count, Count] | None = None
    at: tuple[float, ...] | None = None
    transforms: Mapping[str, str] | None = None
    loss: Literal["l2", "h1"] = "l2"
    optimizer: Literal["adamw", "muon"] | None = None
    symmetries: tuple[Literal["transpose", "reflect"], ...] = ()
    noise: NonNegative = 0.0
    pushforward: Whole = 0
    validate_resolution: Annotated[Any, Check(_resolution)] = None


@options
class Augmentation:
    r"""Changes of the images of a batch, each by itself, in this order.

    Attributes
    ----------
    crop : float
        Of photographs: a rectangle of an area from this part of the image to all of it, of proportions from
        3:4 to 4:3, brought to the size of the image. 1 cuts nothing out.
    shift : int
        Up to so many pixels up or down and left or right. What comes in at the edge has the edge's value.
    flip : bool
        Whether half of the images are mirrored, left to right.
    mixup : float
        :math:`\alpha` of mixup (arXiv:1710.09412): image and label become
        :math:`\lambda a + (1 - \lambda) b` with another image of the batch, with
        :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` drawn for each batch. 0 mixes nothing.
    """

    crop: Annotated[float, _CROP] = 1.0
    shift: Whole = 0
    flip: Flag = False
    mixup: NonNegative = 0.0


@options
class ImageOptions(TrainOptions):
    """Options of a training on images.

    Attributes
    ----------
    image_size : int or (int, int), optional
        Height and width that images are brought to, of a source that is not opened yet.
    label_smoothing : float
        The part of each target that is spread over all classes.
    augmentation : Augmentation
        Or a mapping of its options: ``{"shift": 1}``, ``{"crop": 0.35, "flip": True}``.
    normalise : {"imagenet"} or mapping, optional
        Mean and standard deviation of each channel: ``{"mean": [0.5], "std": [0.5]}``. If left out, those of
        the model that is begun from, or else of the training images, which takes a pass over them.
    freeze : {"none", "backbone"}
        "backbone" is the linear evaluation: only the parameters of the model's ``head`` are trained, all
        other modules stay in evaluation mode and bit for bit as they are.
    start : path, optional
        Folder of a saved model whose parameters are begun with: a run, or what ``save_pretrained`` writes.
        Its head is left out if it is of another number of classes.
    num_workers : int
        Processes that read images. Nothing but time depends on them.
    """

    batch_size: Count = 64
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.05
    image_size: Count | tuple[Count, Count] | None = None
    label_smoothing: Fraction = 0.0
    augmentation: Annotated[Augmentation, options_of(Augmentation)] = field(default_factory=Augmentation)
    normalise: Literal["imagenet"] | Mapping[str, Any] | None = None
    freeze: Literal["none", "backbone"] = "none"
    start: str | Path | None = None
    num_workers: Whole = 0
