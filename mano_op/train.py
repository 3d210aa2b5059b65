"""Train a model on a store, with neuraloperator's own Trainer."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from neuralop import Trainer
from neuralop.losses import H1Loss, LpLoss
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mano_op.data.dataset import field_loaders
from mano_op.data.layout import Resolution
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.runs import Run, build_model, make_folder, save_run

LOSSES = ("l2", "h1")
WARM_UP = 0.2  # of the epochs


def train_model(
    store: str | Path | FieldStore,
    out: str | Path,
    *,
    resolution: Resolution,
    arch: str = "mano",
    options: Mapping[str, Any] | None = None,
    epochs: int = 30,
    batch_size: int = 20,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    loss: str = "l2",
    seed: int = 0,
    device: str = "cpu",
    progress: bool = True,
    overwrite: bool = False,
) -> Run:
    r"""Train a model of neuraloperator's registry on one level of a store, and keep it as a run.

    AdamW; the learning rate rises to `learning_rate` in the first fifth of the epochs, as attention needs it
    to, and falls to zero along a cosine, stepped once an epoch. The loss is the mean over samples of the
    relative error of the normalised output, :math:`\lVert \hat y - y\rVert / \lVert y \rVert` in L2 or H1.

    Parameters
    ----------
    store : path or FieldStore
    out : path
        Folder for the run; see `mano_op.runs`.
    resolution : int, tuple, str or Grid
        The level to train on.
    arch : str
        Name in neuraloperator's registry: "mano", "mano_published", "fno", ...
    options : mapping, optional
        The model's constructor arguments. The numbers of channels follow from the store, and so do
        ``registration``, ``periodic`` and ``n_dim`` for models that have such options.
    epochs, batch_size : int
    learning_rate, weight_decay : float
    loss : {"l2", "h1"}
    seed : int
        Of the initial parameters and the order of the samples.
    device : str
    progress : bool
        Whether to show a bar.
    overwrite : bool
        Whether a run in `out` may be replaced.

    Returns
    -------
    Run
        Also written to `out`.

    Raises
    ------
    InputError
        Before any work, if `out` holds a run already or cannot be written, or a name, an option, the device
        or the resolution does not exist.
    """
    out = Path(out)
    if (out / "run.json").exists() and not overwrite:
        raise InputError(f"{out} holds a run already: give another folder, or overwrite=True to replace it")
    if loss not in LOSSES:
        raise InputError(f"loss={loss!r}, expected one of {', '.join(LOSSES)}")
    for name, number in (("epochs", epochs), ("batch_size", batch_size), ("learning_rate", learning_rate)):
        if number <= 0:
            raise InputError(f"{name}={number}, expected more than 0")
    store = store if isinstance(store, FieldStore) else open_store(store)
    key = store.key(resolution)
    options = {**_options_from(store, key, arch), **(options or {})}

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InputError(f"device={device!r} is not to be had here ({error}); expected cpu, say") from error

    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"options={options} cannot be kept with the run ({error}); use plain values"
        ) from error

    torch.manual_seed(seed)
    model = build_model(arch, options)
    make_folder(out)
    loaders = field_loaders(store, train=key, test=[], batch_size=batch_size, seed=seed)
    watched = _Watched(loaders.train, _loss(loss, store, key), epochs, f"{arch} at {key}", progress)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    # The Trainer steps once after every epoch, so once more than there are changes of the rate.
    warm_up = max(1, round(WARM_UP * epochs))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=learning_rate, total_steps=epochs + 1, pct_start=(warm_up + 1) / (epochs + 1)
    )
    trainer = Trainer(model=model, n_epochs=epochs, device=device, data_processor=loaders.processor)
    with warnings.catch_warnings():
        # The Trainer hands models the whole sample, and FNO says of each call that it ignores y.
        warnings.filterwarnings("ignore", message=r".*received unexpected keyword arguments")
        trainer.train(watched, {}, optimizer, schedule, training_loss=watched.loss)

    run = Run(
        model.cpu().eval(),
        loaders.processor.to("cpu").eval(),
        arch,
        options,
        {
            "store": str(store.path),
            "title": store.attrs.get("title", ""),
            "resolution": key,
            "grid": str(store.grids[key]),
            "inputs": list(store.inputs),
            "outputs": list(store.outputs),
            "samples": len(loaders.train.dataset),  # type: ignore[arg-type]
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "loss": loss,
            "seed": seed,
        },
        watched.history,
    )
    save_run(out, run)
    return run


def _options_from(store: FieldStore, key: str, arch: str) -> dict[str, Any]:
    """What a model has to know of the fields it is for."""
    grid = store.grids[key]
    registrations = {axis.name: axis.registration for axis in grid}
    if arch.lower() == "mano" and len(set(registrations.values())) > 1:
        raise InputError(
            f"{key} has registrations {registrations}, MANO takes one for all axes: "
            "`resample` the fields to a grid with one"
        )
    options: dict[str, Any] = {"in_channels": len(store.inputs), "out_channels": len(store.outputs)}
    if arch.lower() in ("mano", "mano_published"):
        options["n_dim"] = grid.n_dim
    if arch.lower() == "mano":
        options |= {
            "registration": grid.axes[0].registration,
            "periodic": [axis.periodic for axis in grid],
        }
    return options


def _loss(name: str, store: FieldStore, key: str) -> Callable[..., Tensor]:
    grid = store.grids[key]
    lengths = [axis.spacing * axis.n for axis in grid]  # divided by n again there, to get the spacing
    if name == "l2":
        return LpLoss(d=grid.n_dim, p=2, measure=lengths)
    # Its default wraps differences around every axis, which is wrong where the field does not.
    wraps = {f"periodic_in_{name}": axis.periodic for name, axis in zip("xyz", grid, strict=False)}
    return H1Loss(d=grid.n_dim, measure=lengths, **wraps)


class _Watched:
    """A training loader and a loss that show how far training is, and keep its history.

    The Trainer has no hook for either. It sees a loader and a loss, as it expects to.
    """

    def __init__(
        self, loader: DataLoader[Any], loss: Callable[..., Tensor], epochs: int, title: str, progress: bool
    ) -> None:
        self._loader, self._loss = loader, loss
        self._bar = tqdm(total=epochs * len(loader), desc=title, unit="step", disable=not progress)
        self._epochs = epochs
        self.history: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def dataset(self) -> Dataset[Any]:
        """The loader's."""
        return self._loader.dataset

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start, self._total, self._samples = perf_counter(), 0.0, 0
        for sample in self._loader:
            yield sample
            self._bar.update()
        error = self._total / self._samples
        self.history.append(
            {"epoch": len(self.history) + 1, "training_error": error, "seconds": perf_counter() - start}
        )
        self._bar.set_postfix(training_error=f"{error:.4f}")
        if len(self.history) == self._epochs:
            self._bar.close()

    def loss(self, out: Tensor, y: Tensor, **sample: Any) -> Tensor:
        """The loss summed over the batch, which is noted."""
        value = self._loss(out, y)
        self._total += value.item()
        self._samples += len(y)
        return value
