"""Training on the fields of a store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mano_op.boundary import Boundary, ends_by_axis
from mano_op.data.channels import channels_of
from mano_op.data.loaders import Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.processor import FieldProcessor
from mano_op.data.record import FieldRecord
from mano_op.data.sampler import ResolutionBatchSampler, ranks
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.runs import Run
from mano_op.train.checkpoint import check_out
from mano_op.train.distributed import sum_numbers
from mano_op.train.loop import train
from mano_op.train.objective import training_loss
from mano_op.train.optimizer import optimizer_and_schedule
from mano_op.train.options import FieldOptions
from mano_op.train.perturbation import PerturbedInputs, check_perturbation
from mano_op.train.symmetry import Symmetries
from mano_op.train.task import State, Task, check_output, model_options


def train_model(
    store: str | Path | FieldStore,
    out: str | Path,
    *,
    arch: str = "mano",
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **training: Any,
) -> Run:
    r"""Train a model of neuraloperator's registry on a store, and keep it as a run.

    Parameters
    ----------
    store, arch, options
        As in `FieldTask`.
    out, resume, overwrite
        As in `mano_op.train.loop.train`.
    **training
        Options of `mano_op.train.options.FieldOptions`: ``resolution=16, epochs=30, ...``.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> folder = tempfile.mkdtemp()
    >>> store = generate_darcy(f"{folder}/darcy.zarr", [8], samples={"train": 8}, progress=False)
    >>> small = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2}
    >>> run = train_model(store, f"{folder}/run", resolution=8, options=small, epochs=2, validate=0.25,
    ...                   progress=False)
    >>> run.training["validation"]["samples"], sorted(run.history[0])
    ({'r8': 2}, ['epoch', 'seconds', 'training_error', 'validation_error'])
    """
    check_out(out, resume=resume, overwrite=overwrite)
    task = FieldTask(store, FieldOptions(**training), arch=arch, options=options)
    return train(task, out, resume=resume, overwrite=overwrite)


class FieldTask(Task):
    r"""A model to train on a resolution of a store, or several.

    The loss is the relative error of the normalised output, :math:`\lVert \hat y - y\rVert / \lVert y \rVert`
    in L2 or H1 (`mano_op.train.objective.training_loss`), with the spacings of each resolution.

    Parameters
    ----------
    store : path or FieldStore
    training : FieldOptions
    arch : str
        Name of the model in neuraloperator's registry: "mano", "mano_published", "fno", ...
    options : mapping, optional
        The model's constructor arguments. The numbers of channels follow from the store, and so do
        ``registration``, ``periodic`` and ``n_dim`` for models that have such arguments, and, unless given,
        MANO's ``reference_shape``, ``boundary_values`` and ``restriction``.

    Raises
    ------
    InputError
        If the store has no such resolution, split or variable, or an argument contradicts the fields.
    """

    kind = "fields"

    def __init__(
        self,
        store: str | Path | FieldStore,
        training: FieldOptions,
        *,
        arch: str = "mano",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.store = store if isinstance(store, FieldStore) else open_store(store)
        self.keys = _keys(self.store, training.resolution)
        mixed = training.resolution if isinstance(training.resolution, Mixed) else None
        self._resolution = Mixed(self.keys, mixed.ratios, mixed.batch_size) if mixed else self.keys[0]
        self.channels = channels_of(self.store.layout, training.time_steps, training.at)
        at = training.validate_resolution
        tested = self.keys if at is None else _keys(self.store, at)
        self._tested = [] if training.validate is None else tested
        self._grids = {key: self.store.grids[key] for key in dict.fromkeys([*self.keys, *self._tested])}
        self._losses = {grid.shape: training_loss(training.loss, grid) for grid in self._grids.values()}
        if training.optimizer is None:
            training = replace(training, optimizer="muon" if arch.lower() == "mano" else "adamw")
        super().__init__(training, arch)
        self.training: FieldOptions = training
        self.validated = training.validate is not None
        validate = training.validate
        splits = Splits(hold_out=validate) if isinstance(validate, float) else Splits(test=validate or "test")
        named = ("batch_size", "time_steps", "at", "pushforward", "transforms", "seed")
        try:
            self.loader, self._tests, self.processor = field_loaders(
                self.store,
                train=self._resolution,
                test=self._tested,
                splits=splits,
                **{name: getattr(training, name) for name in named},
            )
        except InputError as error:
            raise InputError(str(error).replace("hold_out", "validate")) from error
        check_perturbation(self.processor, training.noise, training.pushforward)
        self._inputs: FieldProcessor | PerturbedInputs = self.processor
        sampler = self.loader.batch_sampler
        drawn = sampler.drawn if isinstance(sampler, ResolutionBatchSampler) else [len(self.loader.dataset)]  # type: ignore[arg-type]
        self._drawn = dict(zip(self.keys, drawn, strict=True))
        order = list(self.store.grids)
        home = self._home = max(self.keys, key=lambda key: (self._drawn[key], order.index(key)))
        stated = {variable.name: variable.boundary_value for variable in self.store.variables}
        known = [stated[channel.variable] for channel in self.channels.y]
        targets = known * (1 + training.pushforward)
        self._turns = {
            grid.shape: Symmetries(training.symmetries, grid, targets, self.augmentation_rng)
            for grid in (self.store.grids[key] for key in self.keys if training.symmetries)
        }
        self.options = self._model_options(home, options or {}, known)
        self.title = f"{arch} at {'+'.join(self.keys)}"

    def _model_options(
        self, key: str, arguments: Mapping[str, Any], known: Sequence[Boundary | None]
    ) -> dict[str, Any]:
        """Return the model's arguments: those that follow from the fields, and the others."""
        grid, arch = self.store.grids[key], self.arch.lower()
        derived: dict[str, Any] = {"in_channels": len(self.channels.x), "out_channels": len(self.channels.y)}
        defaults: dict[str, Any] = {}
        if arch in ("mano", "mano_published"):
            derived["n_dim"] = grid.n_dim
        if arch == "mano":
            registrations = {axis.name: axis.registration for axis in grid}
            if len(set(registrations.values())) > 1:
                raise InputError(
                    f"{key} has registrations {registrations}, MANO takes one for all axes: `resample` the "
                    "fields to a grid with one"
                )
            periodic = [axis.periodic for axis in grid]
            derived |= {"registration": grid.axes[0].registration, "periodic": periodic}
            defaults = {
                "reference_shape": list(grid.shape),
                "boundary_values": _normalised_boundary(grid, known, self.processor),
                "restriction": "average" if self.training.time_steps is None else "sample",
            }
        data = f"the fields of {self.store.path} at {key}"
        return model_options(arguments, derived, data, defaults)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that cannot take a sample, or puts its output on another grid."""
        x, y = len(self.channels.x), len(self.channels.y)
        for grid in self._grids.values():
            check_output(model, self.arch, self.options, (1, x, *grid.shape), (1, y, *grid.shape))

    def begin(self, model: nn.Module) -> None:
        """Put the data on the device, and perturb inputs as the options say."""
        super().begin(model)
        options = {name: getattr(self.training, name) for name in ("noise", "pushforward", "seed")}
        if options["noise"] or options["pushforward"]:
            self._inputs = PerturbedInputs(self.processor, model, **options)

    def optimizer(self, model: nn.Module) -> tuple[Optimizer, LRScheduler]:
        """Return AdamW or Muon, and the schedule."""
        return optimizer_and_schedule(str(self.training.optimizer), model, self.training, self.steps)

    def sample(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Return the fields of a batch, turned, perturbed and normalised."""
        if self._turns:
            x, y = self._turns[tuple(batch["y"].shape[2:])](batch["x"], batch["y"])
            batch = {**batch, "x": x, "y": y}
        data = self._inputs.preprocess(batch)
        return data["x"], data["y"]

    def loss(self, out: Tensor, y: Tensor) -> Tensor:
        """Return the relative error, summed over samples and channels."""
        value: Tensor = self._losses[tuple(y.shape[2:])](out, y)
        return value

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Return the mean loss of true inputs over the samples and channels to validate on.

        The model is in evaluation mode and in single precision, as it will be used. Each rank takes its share
        of the batches, and all get the same number.
        """
        n_ranks, rank = ranks()
        model.eval()
        self.processor.train()  # which normalises y too
        total, terms = 0.0, 0
        with torch.no_grad():
            for loader in self._tests.values():
                for batch in islice(loader, rank, None, n_ranks):
                    sample = self.processor.preprocess(batch)
                    total += self.loss(model(sample["x"]), sample["y"]).item()
                    terms += sample["y"].shape[0] * sample["y"].shape[1]
        total, terms = sum_numbers(total, terms, device=self.device)  # type: ignore[assignment]
        return {"validation_error": total / terms}

    def generators(self) -> dict[str, State]:
        """Return the sources of random numbers, that of the perturbation too."""
        inputs = self._inputs
        if not isinstance(inputs, PerturbedInputs):
            return super().generators()
        seen = (lambda: inputs.seen, lambda seen: setattr(inputs, "seen", seen))
        return {**super().generators(), "seen": seen}

    def describe(self) -> dict[str, Any]:
        """Return the store, its resolutions, variables and units, and how many samples are trained on."""
        training, store, mixed = self.training, self.store, isinstance(self._resolution, Mixed)
        grids = [str(store.grids[key]) for key in self.keys]
        described: dict[str, Any] = {
            "store": str(store.path),
            "title": store.attrs.get("title", ""),
            "resolution": self._resolution,
            "grid": grids if mixed else grids[0],
            "inputs": list(self.channels.inputs),
            "outputs": list(self.channels.outputs),
            "units": {variable.name: variable.units for variable in store.variables},
            "record": FieldRecord.of(store.layout, self._home).to_dict(),
            "samples": self._drawn if mixed else self._drawn[self.keys[0]],
        }
        if self.validated:
            tested = {key: len(loader.dataset) for key, loader in self._tests.items()}  # type: ignore[arg-type]
            described |= {"validation": {"resolution": self._tested, "samples": tested}}
            if training.validate_resolution is not None:
                described["validate_resolution"] = self._tested
        return described

    def fingerprint(self) -> dict[str, Any]:
        """Return what tells the fields of the store from others; the store may be moved."""
        store = self.store
        return {
            "fields": {
                "grids": {key: str(grid) for key, grid in store.grids.items()},
                "splits": store.splits,
                "provenance": store.attrs.get("provenance", {}),
            }
        }


def _keys(store: FieldStore, resolution: Any) -> list[str]:
    """Return the keys of one resolution, or of several that are mixed, in their order."""
    asked = resolution.resolutions if isinstance(resolution, Mixed) else [resolution]
    keys = [store.key(tuple(each) if isinstance(each, list) else each) for each in asked]
    if not keys or len(set(keys)) < len(keys):
        raise InputError(f"resolution={list(asked)}, expected at least one resolution, and each of them once")
    return keys


def _normalised_boundary(
    grid: Grid, known: Sequence[Boundary | None], processor: FieldProcessor
) -> list[float | None] | None:
    """Return the value of each output at all ends of axes that are not periodic, normalised, where known."""
    known_ends = [ends_by_axis(grid, boundary) for boundary in known]
    names = [axis.name for axis in grid if not axis.periodic]
    each = [{end for name in names for end in ends.get(name, (None, None))} for ends in known_ends]
    values = [ends.pop() if len(ends) == 1 else None for ends in each]
    if all(value is None for value in values):
        return None
    ones, mode = [1] * grid.n_dim, processor.training
    x, y = torch.zeros(1, len(processor.inputs), *ones), torch.tensor([value or 0.0 for value in values])
    normalised = processor.train().preprocess({"x": x, "y": y.view(1, -1, *ones)})["y"]
    processor.train(mode)
    # A model cannot have the logarithm of 0.
    return [
        number if value is not None and math.isfinite(number) else None
        for value, number in zip(values, normalised.flatten().tolist(), strict=True)
    ]
