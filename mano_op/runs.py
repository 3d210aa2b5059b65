"""A run: a trained model with all it takes to use it, in a folder.

======================  =====================================================================================
file                    holds
======================  =====================================================================================
``run.json``            the model's name and options, the processor, what it was trained on and how, the
                        history of its errors, versions and machine
``parameters.pt``       the model's parameters: tensors and nothing else
======================  =====================================================================================

Both are data. A run is read without unpickling anything, so one from somebody else can be opened; and
any model of neuraloperator's registry can be kept this way, `MANO` and ``FNO`` alike.
"""

from __future__ import annotations

import inspect
import json
import os
import pickle
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from neuralop.models.base_model import BaseModel
from torch import nn

from mano_op.cost import count_parameters
from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError

FORMAT, FORMAT_VERSION = "mano_op run", 1


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
        known = ", ".join(sorted(name for name in models if not name.startswith("_")))
        raise InputError(f"there is no model {arch!r}; neuraloperator knows {known}")
    cls = models[arch.lower()]
    known_options = list(inspect.signature(cls).parameters)
    unknown = [name for name in options if name not in known_options]
    if unknown:
        raise InputError(f"{arch} has no option {', '.join(unknown)}; it has {', '.join(known_options)}")
    return cls(**options)


def make_folder(folder: str | Path) -> Path:
    """Make a folder for results, if need be, or say why there can be none: before the work, not after it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        raise InputError(f"{folder} cannot be a folder for results ({error}): give another path") from error
    return folder


def save_run(folder: str | Path, run: Run) -> None:
    """Write a run into a folder, which is made if need be.

    ``run.json`` is written last and in one piece, so a folder that has it is whole.
    """
    folder = make_folder(folder)
    # neuraloperator's models put their constructor's arguments, functions among them, into state_dict().
    parameters = {key: value for key, value in run.model.state_dict().items() if key != "_metadata"}
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": {"arch": run.arch, "options": run.options, "parameters": run.n_parameters},
        "processor": run.processor.to_dict(),
        "training": run.training,
        "history": run.history,
        "machine": machine(),
    }
    text = json.dumps(description, indent=1)
    # A run that is replaced is none from here on until the new one is whole.
    (folder / "run.json").unlink(missing_ok=True)
    torch.save(parameters, folder / "parameters.pt")
    partial = folder / "run.json.partial"
    partial.write_text(text)
    os.replace(partial, folder / "run.json")


def load_run(folder: str | Path) -> Run:
    """Read what `save_run` wrote; the model and the processor are in evaluation mode.

    Raises
    ------
    InputError
        If the folder holds no run, one of another version, or parameters that are not this model's.
    """
    folder = Path(folder)
    path = folder / "run.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no run.json, so it is no finished run: make one with `mano-op train`"
        )
    try:
        description = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}): restore it or train again") from error
    found = description.get("format"), description.get("format_version")
    if found != (FORMAT, FORMAT_VERSION):
        raise InputError(
            f"{path} has format {found[0]!r} version {found[1]}, expected {FORMAT!r} version "
            f"{FORMAT_VERSION}: use the release of mano_op that wrote it"
        )
    arch, options = description["model"]["arch"], description["model"]["options"]
    model = build_model(arch, options)
    try:
        parameters = torch.load(folder / "parameters.pt", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, OSError, EOFError) as error:
        raise InputError(f"{folder / 'parameters.pt'} cannot be read as tensors: {error}") from error
    try:
        model.load_state_dict(parameters)
    except RuntimeError as error:
        raise InputError(
            f"the parameters in {folder} are not those of {arch} with {options}: {error}"
        ) from error
    return Run(
        model.eval(),
        FieldProcessor.from_dict(description["processor"]).eval(),
        arch,
        options,
        description["training"],
        description["history"],
    )


def machine() -> dict[str, Any]:
    """What the numbers of a run depend on besides its options: versions, processor, threads."""
    packages = ("mano_op", "neuraloperator", "torch", "numpy", "xarray", "zarr")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in packages},
    }


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
