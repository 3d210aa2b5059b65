"""A run: a trained model with all it takes to use it, in a folder.

======================  =====================================================================================
file                    holds
======================  =====================================================================================
``run.json``            the model's name and options, the processor, what it was trained on and how, with the
                        versions and the machine, and the history of its errors
``parameters.pt``       the model's parameters: tensors and nothing else
======================  =====================================================================================

Both are data. A run is read without unpickling anything, so one from somebody else can be opened; and
any model of neuraloperator's registry can be kept this way, `MANO` and ``FNO`` alike.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from neuralop.models.base_model import BaseModel
from torch import nn

from mano_op.cost import count_parameters
from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError, did_you_mean
from mano_op.files import make_folder, read_tensors, write_file, write_tensors

FORMAT, FORMAT_VERSION = "mano_op run", 1

_T = TypeVar("_T")


@dataclass(frozen=True)
class Run:
    """A trained model and where it comes from.

    Attributes
    ----------
    model : nn.Module
    processor : FieldProcessor
        Between physical units and the model's.
    arch : str
        The model's name in neuraloperator's registry.
    options : dict
        The model's constructor arguments.
    training : dict
        What it was trained on and how; ``training["resolution"]`` is the key of the training level.
    history : list of dict
        One entry an epoch.
    """

    model: nn.Module
    processor: FieldProcessor
    arch: str
    options: dict[str, Any]
    training: dict[str, Any]
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def times(self) -> dict[str, Any]:
        """Which times of the fields it is for, as `mano_op.data.dataset.FieldDataset` takes them."""
        return {name: self.training[name] for name in ("window", "at") if self.training.get(name) is not None}

    @property
    def n_parameters(self) -> int:
        """Real numbers to be learned; a complex parameter is two of them."""
        return count_parameters(self.model)


def build_model(arch: str, options: Mapping[str, Any]) -> nn.Module:
    """A model of neuraloperator's registry, by name.

    Raises
    ------
    InputError
        If there is no such model or it has no such option.

    Examples
    --------
    >>> import mano_op
    >>> type(build_model("mano", {"in_channels": 1, "out_channels": 1})).__name__
    'MANO'
    >>> build_model("fno", {"in_channels": 1, "out_channels": 1, "n_mode": [8, 8]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: fno has no option n_mode; it has n_modes, in_channels, ...
    """
    models: dict[str, type[nn.Module]] = BaseModel._models
    if arch.lower() not in models:
        known = sorted(name for name in models if not name.startswith("_"))
        raise InputError(
            f"there is no model {arch!r}; neuraloperator knows {', '.join(known)}"
            f"{did_you_mean(arch.lower(), known)}"
        )
    cls = models[arch.lower()]
    signature = inspect.signature(cls)
    unknown = [name for name in options if name not in signature.parameters]
    if unknown:
        raise InputError(
            f"{arch} has no option {', '.join(unknown)}; it has {', '.join(signature.parameters)}"
            f"{did_you_mean(unknown[0], signature.parameters)}"
        )
    try:
        signature.bind(**options)
    except TypeError as error:
        raise InputError(f"{arch} needs more options, {error}: give it a value") from error
    try:
        return cls(**options)
    except InputError:
        raise
    except Exception as error:  # any model of the registry: whatever it raises is its answer
        raise InputError(
            f"{arch} cannot be built with {dict(options)} ({type(error).__name__}: {error}): see its options"
        ) from error


def parameters_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model, and nothing that is no tensor.

    neuraloperator's models put their constructor's arguments, functions among them, into ``state_dict()``.

    Examples
    --------
    >>> list(parameters_of(nn.Linear(1, 1)))
    ['weight', 'bias']
    """
    return {key: value for key, value in model.state_dict().items() if key != "_metadata"}


def save_run(folder: str | Path, run: Run) -> None:
    """Write a run into a folder, which is made if need be.

    ``run.json`` is written last and in one piece, so a folder that has it is whole.
    """
    folder = make_folder(folder)
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": {"arch": run.arch, "options": run.options, "parameters": run.n_parameters},
        "processor": run.processor.to_dict(),
        "training": run.training,
        "history": run.history,
    }
    text = json.dumps(description, indent=1, allow_nan=False)
    # A run that is replaced is none from here on until the new one is whole.
    (folder / "run.json").unlink(missing_ok=True)
    write_tensors(folder / "parameters.pt", parameters_of(run.model))
    write_file(folder / "run.json", text)


def load_run(folder: str | Path) -> Run:
    """Read what `save_run` wrote; the model and the processor are in evaluation mode.

    Raises
    ------
    InputError
        If the folder holds no run, one of another version, one that is damaged, or parameters that are not
        this model's.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no run.json, so it is no finished run: make one with `mano-op train`"
        )
    try:
        description = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}): restore it or train again") from error
    found = (_entry(path, description, "format", str), _entry(path, description, "format_version", int))
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path} has format {found[0]!r} version {found[1]}, expected {FORMAT!r} version "
            f"{FORMAT_VERSION}: use the release of mano_op that wrote it"
        )
    described = _entry(path, description, "model", dict)
    arch, options = _entry(path, described, "arch", str), _entry(path, described, "options", dict)
    training, history = (
        _entry(path, description, "training", dict),
        _entry(path, description, "history", list),
    )
    try:
        processor = FieldProcessor.from_dict(_entry(path, description, "processor", dict))
    except (AttributeError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: 'processor' is no description of one ({type(error).__name__}: {error}): restore the "
            "file or train again"
        ) from error
    model = build_model(arch, options)
    parameters = read_tensors(folder / "parameters.pt")
    try:
        model.load_state_dict(parameters)
    except (RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"the parameters in {folder} are not those of {arch} with {options}: {error}"
        ) from error
    return Run(model.eval(), processor.eval(), arch, options, training, history)


def _entry(path: Path, description: Any, name: str, kind: type[_T]) -> _T:
    """An entry of a JSON object, if it is there and of its kind."""
    value = description.get(name) if isinstance(description, dict) else None
    if not isinstance(value, kind):
        raise InputError(
            f"{path}: {name!r} is {value!r}, expected a {kind.__name__}: restore the file or train again"
        )
    return value
