"""Options: frozen, checked where they are made, and recorded so that they can be read again."""

import json
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from training import SMALL, train_fields, train_images

from mano_op import Grid, InputError
from mano_op.data.mixed import Mixed
from mano_op.options import record
from mano_op.train.options import Augmentation, FieldOptions, ImageOptions

WHOLE, POSITIVE, NOT_NEGATIVE = "a whole number, at least 1", "a finite number, more than 0", "0 or more"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, f"epochs=0, expected {WHOLE}"),
        ({"epochs": 2.5}, f"epochs=2.5, expected {WHOLE}"),
        ({"batch_size": True}, f"batch_size=True, expected {WHOLE}"),
        ({"accumulate": "2"}, f"accumulate='2', expected {WHOLE}"),
        ({"checkpoint_every": -1}, "checkpoint_every=-1, expected a whole number, at least 0"),
        ({"seed": -1}, "seed=-1, expected a whole number, at least 0 and less than 2**63"),
        (
            {"seed": 2**63},
            "seed=9223372036854775808, expected a whole number, at least 0 and less than 2**63",
        ),
        ({"learning_rate": -1.0}, f"learning_rate=-1.0, expected {POSITIVE}"),
        ({"learning_rate": float("nan")}, f"learning_rate=nan, expected {POSITIVE}"),
        ({"weight_decay": float("inf")}, f"weight_decay=inf, expected a finite number, {NOT_NEGATIVE}"),
        ({"clip": 0.0}, f"clip=0.0, expected {POSITIVE}"),
        ({"clip": 10**400}, "clip=1000"),
        ({"precision": "half"}, "precision='half', expected 'float32', 'bfloat16' or 'float16'"),
        ({"progress": "yes"}, "progress='yes', expected True or False"),
        ({"device": 3}, "device=3, expected a valid string"),
        ({"log": "paper"}, "log='paper', expected tensorboard, wandb, or a function of the epoch"),
        ({"log": [3]}, "log=3, expected tensorboard, wandb, or a function"),
        ({"validate": 0.0}, "validate=0.0, expected the name of a split, or a number of more than 0"),
        ({"validate": 1.0}, "validate=1.0, expected the name of a split, or a number of more than 0"),
        ({"validate": True}, "validate=True, expected the name of a split, or a number"),
        ({"validate": "train"}, "validate='train', which is trained on: name another split, or a part"),
        ({"validate": 0.5, "patience": 0}, f"patience=0, expected {WHOLE}"),
        ({"patience": 3}, "patience=3, but nothing to validate on: give the name of a split"),
        ({"epoch": 3}, "there is no option epoch=3 of {cls}; did you mean 'epochs'?"),
        ({"colour": 3}, "there is no option colour=3 of {cls}: it has epochs, batch_size, learning_rate"),
    ],
)
@pytest.mark.parametrize("cls", [FieldOptions, ImageOptions])
def test_refused_options_of_every_training(cls: Any, options: dict[str, Any], message: str) -> None:
    needed = {"resolution": 8} if cls is FieldOptions else {}
    with pytest.raises(InputError, match="^" + re.escape(message.format(cls=cls.__name__))):
        cls(**needed, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FieldOptions(), "resolution is missing: give resolution="),
        (
            lambda: of_fields(window=(2, 1)),
            "there is no option window=(2, 1) of FieldOptions: give time_steps=(1",
        ),
        (
            lambda: of_fields(ratios=[1, 2]),
            "there is no option ratios=[1, 2] of FieldOptions: give resolution=Mixed([16, 32], ratios=[1,",
        ),
        (lambda: of_fields(loss="l3"), "loss='l3', expected 'l2' or 'h1'"),
        (
            lambda: of_fields(symmetries=["rotate"]),
            "symmetries=['rotate'], expected 'transpose' or 'reflect'",
        ),
        (lambda: of_fields(symmetries="reflect"), "symmetries='reflect', expected a valid tuple"),
        (lambda: of_fields(time_steps=[1, 0]), f"time_steps=0, expected {WHOLE}"),
        (lambda: of_fields(time_steps=[1, 1, 1]), "time_steps=[1, 1, 1]: Tuple should have at most 2 items"),
        (lambda: of_fields(transforms=["log"]), "transforms=['log'], expected a valid dictionary"),
        (lambda: of_fields(noise=-0.1), f"noise=-0.1, expected a finite number, {NOT_NEGATIVE}"),
        (lambda: of_fields(pushforward=0.5), "pushforward=0.5, expected a whole number, at least 0"),
        (lambda: of_fields(validate_resolution=16), "validate_resolution=16, but nothing to validate on"),
        (
            lambda: FieldOptions(resolution={"resolutions": [8, 16], "ratio": [1, 2]}),
            "resolution={'resolutions': [8, 16], 'ratio': [1, 2]}, expected 'resolutions', and where needed",
        ),
        (
            lambda: FieldOptions(resolution={"resolutions": []}),
            "resolutions=[], expected a list of one or mo",
        ),
        (
            lambda: FieldOptions(resolution={"resolutions": [8, 16], "ratios": [1]}),
            "ratios=[1] with resolutions=[8, 16], expected a list, one for each resolution",
        ),
        (lambda: ImageOptions(image_size=0), f"image_size=0, expected {WHOLE}"),
        (
            lambda: ImageOptions(label_smoothing=1.0),
            "label_smoothing=1.0, expected a number of at least 0 and",
        ),
        (lambda: ImageOptions(freeze="head"), "freeze='head', expected 'none' or 'backbone'"),
        (
            lambda: ImageOptions(normalise="mine"),
            "normalise='mine', expected 'imagenet' or a valid dictionary",
        ),
        (lambda: ImageOptions(start=3), "start=3, expected a valid string"),
        (lambda: ImageOptions(augmentation=3), "augmentation=3, expected a dictionary or an instance of Aug"),
        (
            lambda: ImageOptions(augmentation={"flips": True}),
            "there is no option flips=True of Augmentation; did you mean 'flip'?",
        ),
        (
            lambda: ImageOptions(augmentation={"crop": 1.5}),
            "crop=1.5, expected a part of the image, more than 0",
        ),
        (lambda: Augmentation(flip=1), "flip=1, expected True or False"),
        (lambda: Augmentation(shift=-1), "shift=-1, expected a whole number, at least 0"),
        (lambda: Augmentation(crop=0.0), "crop=0.0, expected a part of the image, more than 0"),
    ],
)
def test_refused_options_of_fields_and_images(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        make()


def of_fields(**options: Any) -> FieldOptions:
    return FieldOptions(resolution=8, **options)


def test_values_are_those_of_the_field_and_stay() -> None:
    options = of_fields(epochs=np.int64(3), learning_rate=np.float32(0.5), time_steps=[2, 1], at=[1])
    assert type(options.epochs) is int and type(options.learning_rate) is float
    assert (options.time_steps, options.at) == ((2, 1), (1.0,))
    with pytest.raises(FrozenInstanceError):
        options.epochs = 4  # type: ignore[misc]
    image = ImageOptions(augmentation={"shift": 1})
    assert image.augmentation == Augmentation(shift=1)
    assert (image.batch_size, options.batch_size) == (64, 8)  # each task has defaults of its own
    assert "clip" not in record(options) and record(options)["noise"] == 0.0


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"resolutions": ["r8", "r16"], "ratios": [3, 1]}, Mixed(["r8", "r16"], ratios=[3, 1])),
        (["r8", "r16"], Mixed(["r8", "r16"])),
        ([32, 48], (32, 48)),  # one grid
        (Grid.uniform((8, 8)), Grid.uniform((8, 8))),
    ],
)
def test_resolutions_are_read_as_they_are_recorded(given: Any, expected: Any) -> None:
    assert FieldOptions(resolution=given).resolution == expected


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (
            "fields",
            {
                "resolution": Mixed([8, 16], ratios=[3, 1], batch_size=[4, 2]),
                "symmetries": ["reflect"],
                "transforms": {"u": "asinh"},
                "validate": "test",
                "validate_resolution": (16, 16),
                "clip": 2.0,
            },
        ),
        (
            "images",
            {
                "augmentation": {"shift": 1},
                "validate": 0.25,
                "patience": 3,
                "normalise": {"mean": [0.5], "std": [1]},
            },
        ),
    ],
)
def test_options_in_run_json_ask_for_the_same_run(
    task: str, options: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """They are those that were given, and the finished run is taken for theirs."""
    train, cls = {"fields": (train_fields, FieldOptions), "images": (train_images, ImageOptions)}[task]
    data = request.getfixturevalue(task)
    run = train(data, tmp_path, epochs=1, **options)
    training = json.loads((tmp_path / "run.json").read_text())["training"]
    known = {name: training[name] for name in (field.name for field in fields(cls)) if name in training}
    read = cls(**known)
    assert {name for name in record(read)} >= set(options) and read.epochs == 1
    model = SMALL if task == "fields" else {}
    known.pop("image_size", None)  # of images that are open
    assert train(data, tmp_path, resume=True, options=model, **known).history == run.history
