"""``mano-op train``: fields and images. The options are those of `mano_op.train.options`."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import App, Group, Parameter
from docstring_parser.numpydoc import parse

from mano_op.cli.values import (
    RUNNING,
    Int,
    Options,
    Size,
    Sizes,
    Source,
    Store,
    Writing,
    literal,
    one_or_each,
    pairs,
    whole,
    word,
    word_or_pair,
    words,
)
from mano_op.data.mixed import Mixed
from mano_op.errors import check_whole
from mano_op.train.options import Augmentation, FieldOptions, ImageOptions

app = App(name="train", help="Train a model on fields, or a classifier on images.")

MODEL, DATA = Group("Model", sort_key=2), Group("Data", sort_key=3)
TRAINING, VALIDATION = Group("Training", sort_key=4), Group("Validation", sort_key=5)
_GROUPS = {
    DATA: "resolution time_steps at transforms symmetries noise pushforward image_size normalise num_workers",
    VALIDATION: "validate validate_resolution patience",
    MODEL: "freeze start",
    RUNNING: "log checkpoint_every",
}


def flags(options: type, **types: Any) -> Any:
    """Return a dataclass of the same options for the command line, whose help is in their docstrings.

    `types` are those of fields whose words are more than their type says; None leaves a field out.
    """
    hints = {**get_type_hints(options), **types}
    groups = {name: group for group, names in _GROUPS.items() for name in names.split()}
    texts = {
        p.arg_name: p.description for c in reversed(options.__mro__) for p in parse(c.__doc__ or "").params
    }
    flagged = []
    for option in fields(options):
        if hints[option.name] is not None:
            shown = Parameter(group=groups.get(option.name, TRAINING))
            if hints[option.name] in (int, int | None):
                hints[option.name] = Int if hints[option.name] is int else Int | None
            text = " ".join((texts[option.name] or "").replace("`", "").split())
            documented = field(default=option.default, kw_only=True, metadata={"help": text})
            flagged.append((option.name, Annotated[hints[option.name], shown], documented))
    flag_class = make_dataclass(options.__name__, flagged, namespace={"__module__": __name__}, frozen=True)
    return Parameter(name="*")(flag_class)


_COMMON: dict[str, Any] = {
    "progress": None,
    "validate": Annotated[Any, word(literal, metavar="SPLIT|PART")],
    "log": Annotated[
        list[Literal["tensorboard", "wandb"]] | None,
        Parameter(help="Where the numbers of each epoch go as well; tensorboard's lie in the run's folder."),
    ],
}
Arch = Annotated[str, Parameter(group=MODEL)]
Part = Annotated[float | None, Parameter(group=DATA, metavar="PART")]
Column = Annotated[str | None, Parameter(group=DATA, help="Of a data set on disk.")]
if TYPE_CHECKING:
    FieldFlags = Any
    ImageFlags = Any
    AugmentationFlags = Any
else:
    resolutions = "Resolution of the store to train on, or several, which are mixed: each batch is of one."
    sizes = "Samples in a batch, of each process if several train one model; one number, or one a resolution."
    variables = "Of variables, before they are normalised: permeability=log or asinh; may be repeated."
    FieldFlags = flags(
        FieldOptions,
        resolution=Annotated[Sizes, Parameter(help=resolutions)],
        validate_resolution=Sizes | None,
        batch_size=Annotated[int | list[int], words(whole, metavar="N...", help=sizes)],
        transforms=Annotated[
            dict[str, Any] | None,
            pairs("VARIABLE=FUNCTION", "permeability=log", allow_repeating=True, help=variables),
        ],
        **_COMMON,
    )
    ImageFlags = flags(
        ImageOptions,
        image_size=Size,
        normalise=Annotated[list[Any] | None, words(word_or_pair, metavar="imagenet|NAME=VALUES...")],
        augmentation=None,
        **_COMMON,
    )
    AugmentationFlags = flags(
        Augmentation, mixup=Annotated[float, Parameter(help="Alpha of mixup, arXiv:1710.09412: 0.2.")]
    )
_IMAGES: Any = ImageFlags()
_AUGMENTATION: Any = AugmentationFlags()


@app.command(name="fields")
def train_fields(
    store: Store,
    run: Path,
    /,
    *,
    training: FieldFlags,
    ratios: Annotated[list[float] | None, Parameter(group=DATA)] = None,
    arch: Arch = "mano",
    option: Annotated[Options | None, Parameter(group=MODEL)] = None,
    writing: Writing = Writing(),
) -> None:
    """Train a model on one resolution of a store, or several.

    Several processes train one model: torchrun --nproc-per-node 2 -m mano_op.cli train fields ...

    Parameters
    ----------
    run : path
        Folder for the trained model.
    ratios : list
        Of several resolutions, the part of an epoch's samples that each has; all samples of all if left out.
    arch : str
        Name in neuraloperator's registry: mano, fno, ...
    option : mapping
        Of the model, as JSON: hidden_channels=24; may be given more than once.
    """
    from mano_op.train import train_model
    from mano_op.train.distributed import is_first

    sizes = training.batch_size if isinstance(training.batch_size, list) else [training.batch_size]
    mixed = len(training.resolution) > 1 or len(sizes) > 1 or ratios is not None
    of_each = Mixed(training.resolution, ratios, sizes if len(sizes) > 1 else None)
    choices: dict[str, Any] = vars(training) | {"resolution": of_each if mixed else training.resolution[0]}
    if len(sizes) > 1:
        del choices["batch_size"]  # the mixture has one for each resolution
    else:
        choices["batch_size"] = sizes[0]
    if at := training.validate_resolution:
        choices["validate_resolution"] = Mixed(at) if len(at) > 1 else at[0]
    trained = train_model(store, run, arch=arch, options=option, **choices, **writing.choices)
    if is_first():  # of several processes one speaks
        print(f"{run}: {arch}, {trained.n_parameters:,} parameters, {_errors(trained)}")


@app.command(name="images")
def train_images(
    source: Source,
    run: Path,
    /,
    *,
    training: ImageFlags = _IMAGES,
    augmentation: AugmentationFlags = _AUGMENTATION,
    in_channels: Annotated[Literal[1, 3] | None, Parameter(group=DATA)] = None,
    test_part: Part = None,
    validation_part: Part = None,
    split_seed: Annotated[Int, Parameter(group=DATA)] = 0,
    image_column: Column = None,
    label_column: Column = None,
    arch: Arch = "mano_classifier",
    option: Annotated[Options | None, Parameter(group=MODEL)] = None,
    writing: Writing = Writing(),
) -> None:
    """Train a classifier of images.

    Parameters
    ----------
    run : path
        Folder for the trained model.
    in_channels : int
        1 for grey or 3 for colour; as the first image if left out.
    test_part : float
        Part of a source without that split that becomes it, 0.2.
    validation_part : float
        Part of the training images that becomes the split validation.
    split_seed : int
        By which splits are drawn.
    arch : str
        Name in neuraloperator's registry: mano_classifier, vit_classifier, swin_classifier, ...
    option : mapping
        Of the model, as JSON: embed_dim=24; may be given more than once.
    """
    from mano_op.vision.images import open_images
    from mano_op.vision.training import train_classifier

    check_whole(at_least=0, split_seed=split_seed)
    choices: dict[str, Any] = vars(training) | {"augmentation": vars(augmentation)}
    if training.normalise is not None:
        expected = "imagenet, or mean=[...] std=[...]"
        choices["normalise"] = one_or_each(training.normalise, expected)
    reading: dict[str, Any] = {"image_size": choices.pop("image_size"), "in_channels": in_channels}
    columns: dict[str, Any] = {"image_column": image_column, "label_column": label_column}
    parts: dict[str, Any] = {"test": test_part, "validation": validation_part, "seed": split_seed}
    images = open_images(source, **reading, **columns, **parts)
    trained = train_classifier(images, run, arch=arch, options=option, **choices, **writing.choices)
    print(f"{run}: {arch}, {trained.n_parameters:,} parameters, {_errors(trained)}")


def _errors(run: Any) -> str:
    """Return the errors of the epoch whose parameters a run has, as a text."""
    errors = run.errors
    text = f"training error {errors['training_error']:.4f}"
    if best := run.training.get("best"):
        text += f", validation error {errors['validation_error']:.4f}"
        if "validation_accuracy" in errors:
            text += f" and accuracy {100 * errors['validation_accuracy']:.1f} %"
        text += f" of epoch {best['epoch']}"
    return text
