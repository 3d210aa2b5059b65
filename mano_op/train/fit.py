"""Train a model on a store, with neuraloperator's own Trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from neuralop import Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from mano_op.data.channels import Channels, channels_of
from mano_op.data.layout import Resolution
from mano_op.data.loaders import field_loaders
from mano_op.data.sampler import ResolutionBatchSampler
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.files import check_folder
from mano_op.grid import Grid
from mano_op.machine import machine
from mano_op.registry import build_model
from mano_op.runs import Run, save_run
from mano_op.train.objective import training_loss
from mano_op.train.optimizer import OPTIMIZERS, MuonAdamW, warm_up_and_cosine
from mano_op.train.options import options_for
from mano_op.train.symmetry import Symmetries
from mano_op.train.watched import Watched

WARM_UP = 0.2  # of the epochs


def train_model(
    store: str | Path | FieldStore,
    out: str | Path,
    *,
    resolution: Resolution | list[Resolution],
    ratios: Sequence[float] | None = None,
    arch: str = "mano",
    options: Mapping[str, Any] | None = None,
    window: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
    transforms: Mapping[str, str] | None = None,
    epochs: int = 30,
    batch_size: int | Sequence[int] = 20,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    loss: str = "l2",
    optimizer: str = "adamw",
    symmetries: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    overwrite: bool = False,
) -> Run:
    r"""Train a model of neuraloperator's registry on a level of a store, or several, and keep it as a run.

    AdamW, unless another `optimizer` is named; the learning rate rises to `learning_rate` in the first fifth
    of the epochs, as attention needs it to, and falls to zero along a cosine, stepped once an epoch; the
    first moment's decay cycles against it between 0.95 and 0.85 (torch's ``OneCycleLR``). The loss is the
    relative error of the normalised output, :math:`\lVert \hat y - y\rVert / \lVert y \rVert` in L2 or H1,
    summed over the samples and channels of a batch (`mano_op.train.objective.training_loss`),
    with the spacings of its level.

    Parameters
    ----------
    store : path or FieldStore
    out : path
        Folder for the run; see `mano_op.runs`.
    resolution : int, tuple, str or Grid, or list of these
        The level to train on. Those of a list are mixed in every epoch, each batch of one:
        ``[16, (32, 48)]``. The one that most samples have, the finest of several such, is the model's home
        level: a MANO's ``reference_shape`` is that of it unless given.
    ratios : sequence of float, optional
        Of several levels, what part of an epoch's samples each has; see
        `mano_op.data.sampler.ResolutionBatchSampler`. All samples of all levels if not given.
    arch : str
        Name in neuraloperator's registry: "mano", "mano_published", "fno", ...
    options : mapping, optional
        The model's constructor arguments. The numbers of channels follow from the store, and so do
        ``registration``, ``periodic`` and ``n_dim`` for models that have such options, and, unless given,
        MANO's ``reference_shape`` and ``boundary_values``.
    window : (int, int), optional
        Of fields that vary in time, how many steps the model is given and how many it predicts.
    at : sequence of float, optional
        Instead, the times that it predicts from the steady inputs.
    transforms : mapping of str to str, optional
        Of variables, before they are normalised: ``{"permeability": "log"}``.
    epochs : int
    batch_size : int, or sequence of int
        A sequence has one for each level.
    learning_rate, weight_decay : float
    loss : {"l2", "h1"}
    optimizer : {"adamw", "muon"}
        "muon" is Muon for the hidden matrices and AdamW for the rest (`mano_op.train.optimizer`), with a
        learning rate that rises in the first tenth of the epochs.
    symmetries : sequence of {"transpose", "reflect"}
        Those of the problem, by which each batch is turned at random; see `mano_op.train.symmetry`.
    seed : int
        Of the initial parameters, the order of the samples and how they are turned.
    device : str
        As torch names it: "cpu", "cuda", "cuda:1", ...
    progress : bool
        Whether to show a bar.
    overwrite : bool
        Whether a run in `out` may be replaced.

    Returns
    -------
    Run
        Also written to `out`. Its ``history`` has an entry for each epoch: "training_error", the mean
        over samples and channels of the loss, in normalised units and with the model as it was when each
        sample came up; and "seconds".

    Raises
    ------
    InputError
        Before any work, if `out` holds a run already or cannot be written, a number is not one that can be
        trained with, or a name, an option, the device or the resolution does not exist, or the model does
        not map the store's fields. Later only if training diverges; nothing is written then.
    """
    _check_out(out, overwrite)
    check_whole(epochs=epochs)
    mixed = isinstance(resolution, list)
    if not mixed:
        check_whole(batch_size=batch_size)
    check_whole(at_least=0, seed=seed)
    if seed >= 2**63:
        raise InputError(f"seed={seed}, expected less than 2**63")
    check_finite_number(zero=False, learning_rate=learning_rate)
    check_finite_number(zero=True, weight_decay=weight_decay)
    store = store if isinstance(store, FieldStore) else open_store(store)
    keys = _keys(store, resolution)
    channels = channels_of(store.layout, window, at)
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
    objectives = {store.grids[key].shape: training_loss(loss, store.grids[key]) for key in keys}
    loaders = field_loaders(
        store,
        train=list(keys) if mixed else keys[0],
        test=[],
        ratios=ratios,
        batch_size=batch_size,
        window=window,
        at=at,
        transforms=transforms,
        seed=seed,
    )
    drawn = _drawn(loaders.train, keys)
    levels = list(store.grids)
    key = max(keys, key=lambda one: (drawn[one], levels.index(one)))
    turn = _turn(symmetries, store, keys, channels, seed)
    options = options_for(store, key, channels, arch, options or {}, loaders.processor)
    _check_device(device)

    torch.manual_seed(seed)
    model = build_model(arch, options)
    for one in keys:
        _check_maps(model, arch, options, channels, store.grids[one])

    def objective(out: Tensor, y: Tensor) -> Tensor:
        value: Tensor = objectives[tuple(y.shape[2:])](out, y)
        return value

    watched = Watched(loaders.train, objective, epochs, f"{arch} at {'+'.join(keys)}", progress, turn)
    stepped, schedule = _optimizer(optimizer, model, learning_rate, weight_decay, epochs)
    trainer = Trainer(model=model, n_epochs=epochs, device=device, data_processor=loaders.processor)
    with warnings.catch_warnings():
        # The Trainer hands models the whole sample, and FNO says of each call that it ignores y.
        warnings.filterwarnings("ignore", message=r".*received unexpected keyword arguments")
        trainer.train(watched, {}, stepped, schedule, training_loss=watched.loss)

    run = Run(
        model.cpu().eval(),
        loaders.processor.to("cpu").eval(),
        arch,
        options,
        {
            "store": str(store.path),
            "title": store.attrs.get("title", ""),
            "resolution": list(keys) if mixed else key,
            "grid": [str(store.grids[one]) for one in keys] if mixed else str(store.grids[key]),
            **({} if ratios is None else {"ratios": list(ratios)}),
            "inputs": list(channels.inputs),
            "outputs": list(channels.outputs),
            "units": {variable.name: variable.units for variable in store.variables},
            **({} if window is None else {"window": list(window)}),
            **({} if at is None else {"at": list(at)}),
            "samples": drawn if mixed else drawn[key],
            "epochs": epochs,
            "batch_size": list(batch_size) if isinstance(batch_size, Sequence) else batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "loss": loss,
            "optimizer": optimizer,
            "symmetries": list(symmetries),
            "seed": seed,
            "machine": machine(device),
        },
        watched.history,
    )
    save_run(out, run)
    return run


def _turn(
    symmetries: Sequence[str], store: FieldStore, keys: Sequence[str], channels: Channels, seed: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """What turns the batches, if anything does: each by the symmetries of its level."""
    if not symmetries:
        return None
    stated = {variable.name: variable.boundary_value for variable in store.variables}
    known = [stated[channel.variable] for channel in channels.y]
    generator = torch.Generator().manual_seed(seed)
    turns = {
        store.grids[key].shape: Symmetries(symmetries, store.grids[key], known, generator) for key in keys
    }
    return lambda x, y: turns[tuple(y.shape[2:])](x, y)


def _optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, epochs: int
) -> tuple[Optimizer, LRScheduler]:
    """An optimiser and its schedule, which is stepped once after every epoch."""
    if name == "muon":
        muon = MuonAdamW(model, learning_rate, weight_decay)
        return muon, torch.optim.lr_scheduler.LambdaLR(muon, warm_up_and_cosine(epochs))
    adamw = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    # The last step is one more than there are changes of the rate.
    warm_up = max(1, round(WARM_UP * epochs))
    return adamw, torch.optim.lr_scheduler.OneCycleLR(
        adamw, max_lr=learning_rate, total_steps=epochs + 1, pct_start=(warm_up + 1) / (epochs + 1)
    )


def _check_out(out: str | Path, overwrite: bool) -> None:
    if (check_folder(out) / "run.json").exists() and not overwrite:
        raise InputError(f"{out} holds a run already: give another folder, or overwrite=True to replace it")


def _keys(store: FieldStore, resolution: Resolution | list[Resolution]) -> list[str]:
    """The levels to train on, in the order given."""
    asked = resolution if isinstance(resolution, list) else [resolution]
    keys = [store.key(one) for one in asked]
    if not keys or len(set(keys)) < len(keys):
        raise InputError(f"resolution={resolution}, expected at least one level, and each of them once")
    return keys


def _drawn(loader: DataLoader[Any], keys: Sequence[str]) -> dict[str, int]:
    """How many samples of each level an epoch has."""
    if isinstance(loader.batch_sampler, ResolutionBatchSampler):
        return dict(zip(keys, loader.batch_sampler.drawn, strict=True))
    return {keys[0]: len(loader.dataset)}  # type: ignore[arg-type]


def _check_device(device: str) -> None:
    try:
        torch.ones(1, device=device).item()  # "meta" has tensors, but no values in them
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used here ({reason}): give device='cpu'") from error


def _check_maps(
    model: nn.Module, arch: str, options: Mapping[str, Any], channels: Channels, grid: Grid
) -> None:
    """Refuse a model that cannot take these fields, before its first step and before anything is written."""
    training = model.training
    try:
        with torch.no_grad():
            y = model.eval()(torch.zeros(1, len(channels.x), *grid.shape))
    except Exception as error:  # any model of the registry: whatever it raises is its answer
        raise InputError(
            f"{arch} with {dict(options)} cannot take an input of shape (batch, {len(channels.x)}, "
            f"{', '.join(map(str, grid.shape))}): {type(error).__name__}: {error}"
        ) from error
    model.train(training)
    expected = (1, len(channels.y), *grid.shape)
    if tuple(y.shape) != expected:
        raise InputError(
            f"{arch} with {dict(options)} makes an output of shape {tuple(y.shape)} of a sample, expected "
            f"{expected}: give a model that keeps the grid"
        )
