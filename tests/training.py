"""Small trainings of fields and of images, which several test files share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mano_op.grid import Grid
from mano_op.models.data_model import DataModel
from mano_op.runs import Run
from mano_op.train import train_model
from mano_op.vision.images import Images, open_images
from mano_op.vision.training import train_classifier

GRIDS = [Grid.uniform((n, n), registration="cell") for n in (8, 16)]
SMALL = {"hidden_channels": 8, "n_layers": 2, "n_heads": 2, "n_levels": 2}
FNO = {"arch": "fno", "options": {"n_modes": [4, 4], "hidden_channels": 8, "n_layers": 1}}
FILES = ["README.md", "config.json", "model.safetensors", "run.json"]  # of a run


class Pooled(DataModel, name="Test_pooled"):
    """A small classifier for images of any size, with all that a backbone may have of state."""

    def __init__(self, in_channels: int, n_classes: int, width: int = 6, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4 * width, n_classes)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = self.dropout(F.gelu(self.norm(self.stem(x))))
        logits: torch.Tensor = self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))
        return logits


class Flat(DataModel, name="Test_flat"):
    """A linear map of the pixels of images of one size, zero at first."""

    def __init__(self, in_channels: int, n_classes: int, image_size: int = 8) -> None:
        super().__init__()
        self.head = nn.Linear(in_channels * image_size**2, n_classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def train_fields(store: Any, out: Path, **options: Any) -> Run:
    """Train a MANO at 8 x 8 points for 4 epochs of batches of 5, or by other options."""
    settings = {"resolution": 8, "options": SMALL, "epochs": 4, "batch_size": 5, "progress": False}
    return train_model(store, out, **(settings | options))


def train_images(images: Any, out: Path, **options: Any) -> Run:
    """Train a `Pooled` for 4 epochs of batches of 40, or by other options."""
    settings = {"arch": "test_pooled", "epochs": 4, "batch_size": 40, "learning_rate": 1e-2}
    return train_classifier(images, out, **(settings | {"progress": False} | options))


def interrupt(train: Callable[..., Run], data: Any, out: Path, after: int, **options: Any) -> None:
    """Stop a training in the epoch after some."""

    def stop(epoch: int, metrics: object) -> None:
        if epoch > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, out, log=stop, **options)


def assert_same_run(one: Run, other: Run) -> None:
    """Compare all of two runs, parameters and buffers to the last bit, but the seconds and the machine."""
    a, b = (nn.Module.state_dict(run.model) for run in (one, other))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    histories = [[{**epoch, "seconds": 0} for epoch in run.history] for run in (one, other)]
    assert histories[0] == histories[1]
    assert {**one.training, "machine": 0} == {**other.training, "machine": 0}
    assert one.processor.to_dict() == other.processor.to_dict()
    assert (one.arch, one.options) == (other.arch, other.options)


def tenth_of_digits() -> Images:
    """Every tenth of scikit-learn's digits, 144 to train on."""
    whole = open_images("digits")
    splits = {name: split.subset(range(0, len(split), 10)) for name, split in whole.splits.items()}
    return Images(whole.source, splits, whole.classes, 1, (8, 8), {**whole.origin, "digest": "a tenth"})


def batch_of(split: Any) -> dict[str, torch.Tensor]:
    """All images of a split as one batch."""
    samples = [split[i] for i in range(len(split))]
    return {name: torch.stack([sample[name] for sample in samples]) for name in ("x", "y")}


def noise(folder: Path, n: int, start: int = 0) -> None:
    """Images of two classes, each of its own values and size on the disk."""
    random = np.random.default_rng(start)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(start, start + n):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
