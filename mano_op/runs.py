"""A run: a trained model with all it takes to use it, in a folder.

Beside the files of `mano_op.pretrained` it has ``run.json``: the processor, what the model was trained on and
how, and its history. All of it is data: nothing in the folder is run when it is read. A model of any name in
neuraloperator's registry can be kept this way, of fields and of images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
import xarray as xr
from pydantic import PositiveInt
from torch import Tensor, nn

from mano_op.card import model_card, with_evaluation
from mano_op.cost import count_parameters
from mano_op.data.mixed import Mixed
from mano_op.data.record import FieldRecord
from mano_op.description import dumps, read_description
from mano_op.errors import InputError, refusing
from mano_op.files import check_folder, make_folder, write_file
from mano_op.options import Part, Whole, checked
from mano_op.prediction import predict_fields
from mano_op.pretrained import fetched, load_model, save_model

FORMAT, FORMAT_VERSION = "mano_op run", 3
CARD, RUN = "README.md", "run.json"
# The processor of each task, and the modules that register the models of the package with neuraloperator.
_TASKS = {
    "fields": ("mano_op.data.processor", "FieldProcessor", ["mano_op.models"]),
    "images": (
        "mano_op.vision.processor",
        "ImageProcessor",
        ["mano_op.vision.classifier", "mano_op.vision.baselines"],
    ),
}


@dataclass
class _Best:
    epoch: PositiveInt


@dataclass
class _Split:
    test: Part | None = None
    validation: Part | None = None
    seed: Whole = 0


@dataclass
class _Origin:
    kind: str
    digest: str
    split: _Split


@dataclass
class _Training:
    """The types of the entries of "training" that are read here; it may have more."""

    task: Literal["fields", "images"]
    epochs: PositiveInt = 1
    resolution: str | Mixed = ""
    time_steps: tuple[PositiveInt, PositiveInt] = (1, 1)
    at: list[float] = field(default_factory=list)
    best: _Best | None = None
    units: dict[str, str | None] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    image_size: tuple[PositiveInt, PositiveInt] = (1, 1)
    images: _Origin | None = None


@dataclass
class _Description:
    """The types of the entries of ``run.json``."""

    processor: dict[str, Any]
    training: _Training
    history: list[dict[str, float]]


@dataclass(frozen=True, repr=False)
class Run:
    """A trained model and where it comes from.

    Attributes
    ----------
    model : nn.Module
    processor : FieldProcessor or ImageProcessor
        Between physical units and the model's.
    arch : str
        The model's name in neuraloperator's registry.
    options : dict
        The model's constructor arguments.
    training : dict
        What it was trained on and how: ``training["task"]`` is "fields" or "images";
        ``training["resolution"]`` is the key of its resolution, or of a mixture the options of
        `mano_op.data.mixed.Mixed`; ``training["image_size"]`` height and width of its images.
    history : list of dict
        An entry for each epoch.

    Examples
    --------
    >>> from mano_op.data.processor import FieldProcessor
    >>> unit, degrees = {"mean": 0.0, "std": 1.0}, {"mean": 10.0, "std": 2.0}
    >>> processor = FieldProcessor({"a": unit}, {"u": degrees})
    >>> run = Run(nn.Identity(), processor, "identity", {}, {"resolution": "r4", "epochs": 2}, [])
    >>> run
    Run(identity of 0 parameters: a to u, trained at r4 for 2 epochs)
    >>> run.predict(torch.ones(1, 1, 4))
    tensor([[[12., 12., 12., 12.]]])
    """

    model: nn.Module
    processor: Any
    arch: str
    options: dict[str, Any]
    training: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    def __repr__(self) -> str:
        at = f", trained at {'+'.join(map(str, self.resolutions))}" if self.resolutions else ""
        epochs = len(self.history) or self.training.get("epochs", 0)
        errors = "".join(f", {name.replace('_', ' ')} {error:.3g}" for name, error in self.errors.items())
        model = f"{self.arch} of {self.n_parameters:,} parameters"
        return f"Run({model}: {self.title}{at} for {epochs} epoch{'s' * (epochs != 1)}{errors})"

    @property
    def task(self) -> str:
        """The task: "fields" or "images"."""
        return str(self.training.get("task", "fields"))

    @property
    def title(self) -> str:
        """The names of its inputs and outputs, for people."""
        if self.task == "images":
            return f"images to {len(self.classes)} classes"
        return f"{', '.join(self.processor.inputs)} to {', '.join(self.processor.outputs)}"

    @property
    def resolutions(self) -> tuple[Any, ...]:
        """The keys of the resolutions of the training, or the size of its images, "8x8"."""
        if "image_size" in self.training:
            return ("x".join(map(str, self.training["image_size"])),)
        resolution = self.training.get("resolution", [])
        if isinstance(resolution, Mapping):
            resolution = resolution["resolutions"]
        return tuple(resolution) if isinstance(resolution, list) else (resolution,)

    @property
    def errors(self) -> dict[str, float]:
        """Errors and accuracies in training and validation, of the epoch whose parameters it has."""
        best = self.training.get("best", {}).get("epoch", len(self.history))
        entry = self.history[best - 1] if self.history else {}
        return {name: value for name, value in entry.items() if name.endswith(("error", "accuracy"))}

    @property
    def times(self) -> dict[str, Any]:
        """The times of its fields, as options of `mano_op.data.dataset.FieldDataset`."""
        return {
            name: value for name in ("time_steps", "at") if (value := self.training.get(name)) is not None
        }

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes of a classifier, in the order of its logits."""
        return tuple(self.training.get("classes", ()))

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images of the training."""
        height, width = self.training["image_size"]
        return height, width

    @property
    def n_parameters(self) -> int:
        """The number of learned real numbers; a complex parameter is two."""
        return count_parameters(self.model)

    @overload
    def predict(self, x: xr.Dataset, **options: Any) -> xr.Dataset: ...

    @overload
    def predict(self, x: Any, **options: Any) -> Tensor: ...

    def predict(self, x: Any, **options: Any) -> Tensor | xr.Dataset:
        """Return the model's output in physical units; of a classifier its logits.

        Parameters
        ----------
        x : Dataset, Tensor or array
            Labelled fields, as `mano_op.prediction.predict_fields` takes them. Or numbers in physical units,
            ``(batch, in_channels, *grid)``, on a grid of any size; images in [0, 1]. Complex numbers, whole
            numbers of images and other channels raise an `InputError`.
        **options
            Of a data set those of `predict_fields`: ``steps``, ``shape``, ``batch_size``. Otherwise further
            arguments of the model, such as ``coordinates``.

        Returns
        -------
        Dataset or Tensor
            As `x` is: labelled fields, or ``(batch, out_channels, *grid)``, or ``(batch, classes)``, on the
            model's device.
        """
        parameter = next(iter(self.model.parameters()), None)
        self.processor.to(parameter.device if parameter is not None else "cpu")
        if isinstance(x, xr.Dataset):
            return predict_fields(self.model, self.processor, self._record(), x, who=self.about, **options)
        self.model.eval()
        self.processor.eval()
        x = torch.as_tensor(x if isinstance(x, Tensor) else np.asarray(x))
        if x.ndim < 3:
            raise InputError(f"x of shape {tuple(x.shape)}, expected (batch, in_channels, *grid)")
        if x.is_complex():
            raise InputError(
                f"x of {x.dtype}, expected real numbers: give real and imaginary part as channels"
            )
        if x.is_floating_point() or self.task == "fields":  # bytes of images are for the processor to refuse
            x = x.float()
        with torch.inference_mode():
            data = self.processor.preprocess({**options, "x": x})
            out, _ = self.processor.postprocess(self.model(data.pop("x"), **data), data)
        return out

    @property
    def about(self) -> str:
        """The model in a few words, as the history of its predictions has it."""
        at = "+".join(map(str, self.resolutions))
        model = f"{self.arch} of {self.n_parameters:,} parameters"
        return f"{model}, trained at {at} of {self.training.get('title') or 'some fields'!r}"

    def _record(self) -> FieldRecord:
        """What it was trained on."""
        if self.task != "fields" or "record" not in self.training:
            raise InputError(
                f"a run of {self.task} without a record of their grid predicts arrays, not data sets: train "
                "it anew with this mano_op, or give `run.predict(array)`"
            )
        what, remedy = "the record of the fields of the run is damaged", "restore the run, or train again"
        with refusing(what, remedy, AttributeError, KeyError, TypeError, ValueError):
            return FieldRecord.from_dict(self.training["record"])

    def save(self, folder: str | Path) -> None:
        """Write the run into a folder; see `save_run`."""
        save_run(folder, self)


def save_run(folder: str | Path, run: Run) -> None:
    """Write a run into a folder, which is made if need be; ``run.json`` is written last and in one piece.

    Numbers that are not finite raise a `ValueError`, and nothing is written.
    """
    folder = make_folder(folder)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "parameters": run.n_parameters,
        "processor": run.processor.to_dict(),
        "training": {"task": run.task, **run.training},
        "history": run.history,
    }
    text, card = dumps(description), model_card(run)
    # A run that is replaced is none from here on until the new one is whole.
    (folder / RUN).unlink(missing_ok=True)
    save_model(folder, run.model, run.arch, run.options)
    write_file(folder / CARD, card)
    write_file(folder / RUN, text)


@checked
def load_run(
    folder: str | Path, *, revision: str | None = None, task: Literal["fields", "images"] | None = None
) -> Run:
    """Read what `save_run` wrote; the model and the processor are in evaluation mode.

    Parameters
    ----------
    folder, revision
        As in `mano_op.pretrained.load_model`.
    task : {"fields", "images"}, optional
        What the run has to be for.

    Raises
    ------
    InputError
        If the folder holds no run, one of another task or version, one that is damaged, or the parameters of
        another model.
    """
    folder = fetched(folder, revision)
    _check_finished(folder, task or "fields")
    path = folder / RUN
    description, known = read_description(path, FORMAT, FORMAT_VERSION, _Description)
    run_classes = known.training.classes
    training, history, kind = description["training"], description["history"], known.training.task
    if task not in (None, kind):
        raise InputError(
            f"{path} is of the task {kind!r}, expected {task}: give a run of `mano-op train {task}`"
        )
    module, name, models = _TASKS[kind]
    for registers in models:
        import_module(registers)
    what, remedy = f"{path} does not describe a run of {kind}", "restore the file or train again"
    with refusing(what, remedy, AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError):
        processor = getattr(import_module(module), name).from_dict(known.processor)
        if kind == "images" and (len(run_classes) != processor.n_classes or "image_size" not in training):
            raise ValueError(f"an image_size and n_classes={processor.n_classes}, with {run_classes!r:.99}")
        if known.training.best and known.training.best.epoch > len(history):
            raise ValueError(f"the best epoch is {known.training.best.epoch} of {len(history)}")
    model, arch, options = load_model(folder)
    return Run(model.eval(), processor.eval(), arch, options, training, history)


def write_evaluation(folder: str | Path, evaluation: str) -> None:
    """Write the results of an evaluation, in Markdown, into the model card of a run; the rest of it stays."""
    write_file(Path(folder) / CARD, with_evaluation(read_card(folder), evaluation))


def read_card(folder: str | Path) -> str:
    """Return the model card of a run, empty if there is none; it is to be written."""
    folder = check_folder(folder)
    _check_finished(folder)
    path = folder / CARD
    remedy = "move it elsewhere, or save it as UTF-8"
    with refusing(f"{path} is no text in UTF-8", remedy, UnicodeDecodeError, IsADirectoryError):
        return path.read_text(encoding="utf-8") if path.exists() else ""


def _check_finished(folder: Path, task: str = "fields") -> None:
    if not (folder / RUN).exists():
        raise InputError(
            f"{folder} holds no {RUN}, so it is no finished run: make one with `mano-op train {task}`"
        )
