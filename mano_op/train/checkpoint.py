"""The checkpoint of a training, from which it continues to the same numbers, and checks of the run's folder.

``checkpoint.pt`` is in the run's folder until the run is complete. It is written in one piece, holds tensors
and plain values, and is read without unpickling. Beside its format it has ``asked``, the options, model, data
and versions of the training, and ``training``, the state after an epoch; see `Progress`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mano_op.errors import InputError, refusing
from mano_op.files import check_folder, make_folder, read_tensors, write_tensors
from mano_op.paths import partial_path
from mano_op.runs import Run
from mano_op.train.task import State
from mano_op.weights import parameters_of

FORMAT, FORMAT_VERSION = "mano_op checkpoint", 2
_FILE = "checkpoint.pt"
# Packages that a training continues with in the same version only.
COMPUTE = ("mano_op", "neuraloperator", "torch")
# Entries of a run in which one and the same training may differ: paths, the machine, the outcome.
UNCOMPARED = ("store", "source", "start", "machine", "best")


@dataclass
class Best:
    """The parameters with the lowest validation error so far, kept on the CPU, and its epoch, 0 before any.

    After `patience` epochs without a lower error, if that is given, training stops.

    Examples
    --------
    >>> best = Best(patience=2)
    >>> for epoch, error in enumerate([0.5, 0.3, 0.4, 0.3], 1):
    ...     best.see(epoch, error, nn.Linear(1, 1))
    >>> best.epoch, best.error, best.enough(3), best.enough(4)
    (2, 0.3, False, True)
    """

    patience: int | None = None
    epoch: int = 0
    error: float = math.inf
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def see(self, epoch: int, error: float, model: nn.Module) -> None:
        """Keep the parameters of an epoch if its error is lower than all before."""
        if error < self.error:
            self.epoch, self.error = epoch, error
            kept = parameters_of(model).items()
            self.parameters = {name: value.detach().to("cpu", copy=True) for name, value in kept}

    def enough(self, epoch: int) -> bool:
        """Return whether the last `patience` epochs had no lower error."""
        return self.patience is not None and epoch - self.epoch >= self.patience


@dataclass
class Progress:
    """The state of a training, which changes from epoch to epoch; `history` has an entry for each."""

    model: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    best: Best
    scaler: GradScaler | None
    generators: Mapping[str, State]
    history: list[dict[str, float]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after an epoch, as tensors and plain values."""
        return {
            "model": parameters_of(self.model),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "best": vars(self.best),
            "history": [dict(epoch) for epoch in self.history],
            "random": {name: read() for name, (read, _) in self.generators.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(dict(state["model"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler is not None:
            self.scaler.load_state_dict(state["scaler"])
        vars(self.best).update(state["best"])
        self.history[:] = state["history"]
        for name, (_, write) in self.generators.items():
            if name in state["random"]:  # one that began on a CPU has no state of a GPU
                write(state["random"][name])


class Checkpoint:
    """The checkpoint of a run's folder, for a training by the options, model, data and versions `asked`.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> Checkpoint(folder, {"epochs": 3}).write({"history": [{"epoch": 1}]})
    >>> Checkpoint(folder, {"epochs": 3}).read()
    {'history': [{'epoch': 1}]}
    >>> Checkpoint(folder, {"epochs": 4}).read()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: .../checkpoint.pt is of another training: epochs is 3 there, not 4. ...
    """

    def __init__(self, folder: str | Path, asked: Mapping[str, Any]) -> None:
        self.path = Path(folder) / _FILE
        self._asked = dict(asked)

    def write(self, training: Mapping[str, Any]) -> None:
        """Write the state of the training, in place of the one before."""
        make_folder(self.path.parent)
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, "asked": self._asked}
        write_tensors(self.path, {**content, "training": dict(training)})

    def read(self) -> dict[str, Any]:
        """Return the state of the training; a checkpoint of another format or another training is refused."""
        anew = "pass overwrite=True to start anew"
        content = read_tensors(self.path)
        stated = content.get("format"), content.get("format_version")
        if stated != (FORMAT, FORMAT_VERSION):
            raise InputError(
                f"{self.path} has format {stated[0]!r} version {stated[1]}, expected {FORMAT!r} version "
                f"{FORMAT_VERSION}: use the release of mano_op that wrote it, or {anew}"
            )
        asked, training = content.get("asked"), content.get("training")
        if not isinstance(asked, dict) or not isinstance(training, dict):
            raise InputError(f"{self.path} lacks its 'asked' or its 'training': {anew}")
        if different := differences(asked, self._asked):
            begun = "To continue it, use what it was begun with"
            raise InputError(f"{self.path} is of another training: {different}. {begun}, or {anew}")
        return training

    def restore(self, progress: Progress) -> None:
        """Continue from the checkpoint; the errors are those of `read`."""
        state, what = self.read(), f"{self.path} does not fit the training that it says it is of"
        errors = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
        with refusing(what, "pass overwrite=True to start anew", *errors):
            progress.load_state_dict(state)

    def remove(self) -> None:
        """Remove the file, and the part of the next one that a killed process has left."""
        partial_path(self.path).unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def differences(saved: Mapping[str, Any], asked: Mapping[str, Any], most: int = 6) -> str:
    """Return the first values in which two nested mappings differ, in the order of what is asked for.

    Examples
    --------
    >>> differences({"model": {"width": 8}, "seed": 0}, {"seed": 1, "model": {"width": 8, "depth": 2}})
    'seed is 0 there, not 1; model.depth is not given there, not 2'
    """
    old, new = dict(_leaves(saved)), dict(_leaves(asked))
    different = [
        f"{name} is {old.get(name, 'not given')} there, {f'not {new[name]}' if name in new else 'not here'}"
        for name in {**new, **old}
        if name not in old or name not in new or old[name] != new[name]
    ]
    more = f" and {len(different) - most} more" if len(different) > most else ""
    return "; ".join(different[:most]) + more


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def check_out(out: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or holds what may be neither continued nor replaced."""
    if resume and overwrite:
        raise InputError("resume=True and overwrite=True: pass one of them, to continue or to start anew")
    folder = check_folder(out)
    reasons = {folder / "zarr.json": "is a store: give a folder of its own for the run"}
    if not (resume or overwrite):
        reasons[folder / _FILE] = (
            "holds a training that was begun and not finished: pass resume=True to go on with it, "
            "overwrite=True to start anew, or give another folder"
        )
        reasons[folder / "run.json"] = (
            "holds a run already: give another folder, or overwrite=True to replace it"
        )
    for path, reason in reasons.items():
        if path.exists():
            raise InputError(f"{out} {reason}")


def check_finished(out: str | Path, run: Run, asked: Mapping[str, Any]) -> None:
    """Refuse the finished run of a folder if its options, model or data are not those of the training."""
    saved = {**run.training, "arch": run.arch, "options": run.options, "processor": run.processor.to_dict()}
    if different := differences({name: saved[name] for name in saved if name not in UNCOMPARED}, asked):
        raise InputError(
            f"{out} holds a finished run of another training: {different}. Give another folder, or "
            "overwrite=True to replace it"
        )
