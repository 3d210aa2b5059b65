"""A training that is under way, as a file: what goes on from it comes to the same numbers.

``checkpoint.pt`` lies in the run's folder until the run is whole. It is one file, written in one piece, so
there is the last one or the one before, and holds tensors and plain values, which are read without
unpickling anything:

==================  ===================================================================================
entry               holds
==================  ===================================================================================
``format``          "mano_op checkpoint", and ``format_version``
``asked``           what was asked for, in JSON's types: the model, the training, the store, the versions
``training``        all that changes; see `Training`
==================  ===================================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, RandomSampler

from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.files import make_folder, partial_file, read_tensors, write_tensors
from mano_op.train.perturbation import PerturbedInputs
from mano_op.train.stopping import Best
from mano_op.weights import parameters_of

FORMAT, FORMAT_VERSION = "mano_op checkpoint", 1
# What a checkpoint's numbers were computed by, and have to be gone on with by.
COMPUTE = ("mano_op", "neuraloperator", "torch")


@dataclass
class Training:
    """All that changes from epoch to epoch.

    Attributes
    ----------
    model : nn.Module
    optimizer : Optimizer
    schedule : LRScheduler
    loader : DataLoader
        Whose sampler draws the order of the samples.
    turns : torch.Generator
        From which symmetries, or shifts of images, are drawn.
    best : Best
    scaler : GradScaler, optional
    device : str
    history : list of dict
        One entry for each epoch that is over.
    inputs : PerturbedInputs, optional
        Which draws from how many samples have come.
    """

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    loader: DataLoader[Any]
    turns: torch.Generator
    best: Best
    scaler: GradScaler | None = None
    device: str = "cpu"
    history: list[dict[str, float]] = field(default_factory=list)
    inputs: PerturbedInputs | None = None

    def state_dict(self) -> dict[str, Any]:
        """All of it after an epoch, as tensors and plain values."""
        return {
            "model": parameters_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "best": self.best.state_dict(),
            "history": [dict(epoch) for epoch in self.history],
            "random": {name: read() for name, (read, _) in self._random().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; the history stays the list that it is."""
        self.model.load_state_dict(dict(state["model"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.best.load_state_dict(state["best"])
        self.history[:] = state["history"]
        for name, (_, write) in self._random().items():
            if name in state["random"]:  # one begun on a CPU has nothing of a GPU
                write(state["random"][name])

    def _random(self) -> dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]:
        """Whatever numbers are drawn from: how its state is read, and how it is set."""
        found: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
            "torch": (torch.get_rng_state, torch.set_rng_state),
            "turns": (self.turns.get_state, self.turns.set_state),
        }
        if self.device.startswith("cuda"):
            found["cuda"] = (
                lambda: torch.cuda.get_rng_state(self.device),
                lambda state: torch.cuda.set_rng_state(state, self.device),
            )
        if (inputs := self.inputs) is not None:
            found["seen"] = (lambda: inputs.seen, lambda seen: setattr(inputs, "seen", seen))
        batches = self.loader.batch_sampler
        if isinstance(batches, ResolutionBatchSampler):
            found["order"] = (lambda: batches.epoch, batches.set_epoch)
        elif isinstance(self.loader.sampler, RandomSampler):
            order = self.loader.sampler.generator
            found["order"] = (order.get_state, order.set_state)
        return found


class Checkpoint:
    """The checkpoint of a run's folder.

    Parameters
    ----------
    folder : path
        Of the run.
    asked : mapping
        What a training has to have been asked for, in JSON's types, to be gone on with. It may be nested.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> Checkpoint(folder, {"epochs": 3}).there
    False
    >>> Checkpoint(folder, {"epochs": 3}).write({"history": [{"epoch": 1}]})
    >>> Checkpoint(folder, {"epochs": 3}).read()
    {'history': [{'epoch': 1}]}
    >>> Checkpoint(folder, {"epochs": 4}).read()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: .../checkpoint.pt is of another training: epochs is 3 there, not 4. ...
    """

    def __init__(self, folder: str | Path, asked: Mapping[str, Any]) -> None:
        self.path = checkpoint_path(folder)
        self._asked = dict(asked)

    @property
    def there(self) -> bool:
        """Whether there is one."""
        return self.path.exists()

    def write(self, training: Mapping[str, Any]) -> None:
        """Write what a training has come to, in the place of what it had come to before."""
        make_folder(self.path.parent)
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "asked": self._asked}
        write_tensors(self.path, {**content, "training": dict(training)})

    def read(self) -> dict[str, Any]:
        """What the training had come to.

        Raises
        ------
        InputError
            If the file is no checkpoint, of another version, or of a training that was asked for with other
            arguments, on another store, or with other versions of what computes.
        """
        anew = "pass overwrite=True to start anew"
        content = read_tensors(self.path)
        found = content.get("format"), content.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{self.path} has format {found[0]!r} version {found[1]}, expected {FORMAT!r} version "
                f"{FORMAT_VERSION}: go on with the release of mano_op that wrote it, or {anew}"
            )
        asked, training = content.get("asked"), content.get("training")
        if not isinstance(asked, dict) or not isinstance(training, dict):
            raise InputError(f"{self.path} lacks what was asked for, or what was trained: {anew}")
        different = differences(asked, self._asked)
        if different:
            raise InputError(
                f"{self.path} is of another training: {'; '.join(different)}. To go on with it, use what "
                f"it was begun with, or {anew}"
            )
        return training

    def restore(self, training: Training) -> None:
        """Let a training go on from where it had come to; the errors are those of `read`."""
        found = self.read()
        try:
            training.load_state_dict(found)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.path} does not fit the training that it says it is of ({type(error).__name__}: "
                f"{error}): pass overwrite=True to start anew"
            ) from error

    def remove(self) -> None:
        """Remove it, and what a process that was killed has left of the next one."""
        partial_file(self.path).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def checkpoint_path(folder: str | Path) -> Path:
    """Where the checkpoint of a run's folder is.

    Examples
    --------
    >>> checkpoint_path("runs/mano").as_posix()
    'runs/mano/checkpoint.pt'
    """
    return Path(folder) / "checkpoint.pt"


def plain(content: Any) -> Any:
    """The same in JSON's types, numpy's numbers too, so that it compares with what was read.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"time_steps": (2, 1), "epochs": np.int64(3)})
    {'time_steps': [2, 1], 'epochs': 3}
    """
    return json.loads(json.dumps(content, default=lambda value: value.item()))


def differences(there: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Which values of two nested mappings differ, and how.

    Examples
    --------
    >>> differences({"seed": 0, "model": {"width": 8}}, {"seed": 0, "model": {"width": 16, "depth": 2}})
    ['model.width is 8 there, not 16', 'model.depth is not given there, not 2']
    """
    have, want = dict(_leaves(there)), dict(_leaves(asked))
    return [
        f"{name} is {have.get(name, 'not given')} there, not {want.get(name, 'not given')}"
        for name in {**have, **want}
        if name not in have or name not in want or have[name] != want[name]
    ]


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def behind(data: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any]:
    """What a training's numbers follow from besides its arguments: the data, and what computes.

    Parameters
    ----------
    data : mapping
        What tells them from others; see `fields_of`.
    machine : mapping
        As `mano_op.machine.machine` gives it.

    Examples
    --------
    >>> from mano_op.machine import machine
    >>> behind({"fields": {"splits": {"train": 8}}}, machine())  # doctest: +ELLIPSIS
    {'fields': {'splits': {'train': 8}}, 'versions': {'mano_op': '0.1.0', ...}}
    """
    return {**plain(data), "versions": {name: machine["versions"][name] for name in COMPUTE}}


def fields_of(store: FieldStore) -> dict[str, Any]:
    """What tells the fields of a store from others. Its place does not count, so it may be moved."""
    return {
        "fields": {
            "grids": {key: str(grid) for key, grid in store.grids.items()},
            "splits": store.splits,
            "provenance": store.attrs.get("provenance", {}),
        }
    }
