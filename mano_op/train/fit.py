"""Train a model on a store, with neuraloperator's own Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mano_op.data.channels import channels_of
from mano_op.data.jobs import only_writer
from mano_op.data.layout import Resolution
from mano_op.data.loaders import Splits, field_loaders
from mano_op.data.mixed import Mixed
from mano_op.data.sampler import ResolutionBatchSampler, ranks
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError, check_finite_number, check_whole
from mano_op.machine import machine
from mano_op.registry import build_model
from mano_op.runs import Run, load_run, save_run
from mano_op.train.checkpoint import Checkpoint, Training, behind, fields_of, plain
from mano_op.train.distributed import check_all_have, copy_from_first, is_first, join, wait_for_all
from mano_op.train.epochs import train_epochs
from mano_op.train.folder import check_finished, check_out
from mano_op.train.logging import Log, check_log, opened_logs
from mano_op.train.model_options import check_maps, options_for
from mano_op.train.objective import training_loss
from mano_op.train.optimizer import OPTIMIZERS, optimizer_and_schedule
from mano_op.train.perturbation import PerturbedInputs, check_perturbation
from mano_op.train.precision import check_device, check_precision, scaler_for
from mano_op.train.steps import Steps
from mano_op.train.stopping import Best
from mano_op.train.symmetry import turns_of
from mano_op.train.validation import sample_counts, validation_error, validation_of
from mano_op.train.watched import Diverged, Watched


def train_model(
    store: str | Path | FieldStore,
    out: str | Path,
    *,
    resolution: Resolution | list[Resolution],
    ratios: Sequence[float] | None = None,
    arch: str = "mano",
    options: Mapping[str, Any] | None = None,
    time_steps: Sequence[int] | None = None,
    at: Sequence[float] | None = None,
    transforms: Mapping[str, str] | None = None,
    epochs: int = 30,
    batch_size: int | Sequence[int] = 20,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-4,
    loss: str = "l2",
    optimizer: str = "adamw",
    symmetries: Sequence[str] = (),
    noise: float = 0.0,
    pushforward: int = 0,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "float32",
    clip: float | None = None,
    accumulate: int = 1,
    validate: str | float | None = None,
    validate_resolution: Resolution | list[Resolution] | None = None,
    patience: int | None = None,
    log: str | Log | Sequence[str | Log] | None = None,
    checkpoint_every: int = 1,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Run:
    r"""Train a model of neuraloperator's registry on a level of a store, or several, and keep it as a run.

    AdamW, unless another `optimizer` is named; the learning rate rises to `learning_rate` in the first fifth
    of the epochs, as attention needs it to, and falls to zero along a cosine, stepped once an epoch; the
    first moment's decay cycles against it between 0.95 and 0.85 (torch's ``OneCycleLR``). The loss is the
    relative error of the normalised output, :math:`\lVert \hat y - y\rVert / \lVert y \rVert` in L2 or H1,
    summed over the samples and channels of a batch (`mano_op.train.objective.training_loss`),
    with the spacings of its level.

    A training that was interrupted, by whatever means, is gone on with by the same call with ``resume=True``:
    on a CPU it comes to the same numbers as one that was not, to the last bit.

    Started by ``torchrun``, or in a process group, all processes train one model, and the first of them
    writes. Each has its own part of every batch, of `batch_size` samples, at the resolution that all have in
    that step, and a step is that of one process with the whole batch; where samples do not divide among
    them, some come twice. One process has the same order of samples if `resolution` is a list.

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
    time_steps : (int, int), optional
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
    noise : float
        Of models with `time_steps`: the standard deviation of the noise that is added, in training, to inputs
        that vary in time, in units of theirs: 0.01. A rollout's inputs are off too, and a model that has seen
        such goes astray later; see `mano_op.train.perturbation`.
    pushforward : int
        Of models with ``time_steps=(steps_in, 1)``, for the same end: training samples are first stepped on
        by the model itself, without gradients, 0 to so many times, drawn anew for each.
    seed : int
        Of the initial parameters, the order of the samples, how they are turned and perturbed, and which are
        held out.
    device : str
        As torch names it: "cpu", "cuda", "cuda:1", ... In several processes "cuda" is one GPU for each.
    precision : {"float32", "bfloat16", "float16"}
        Of the matrix products, by torch's autocast; parameters, losses and validation are in float32. With
        "float16" the loss is scaled so that gradients do not vanish, and a step that overflows is left out.
    clip : float, optional
        The largest norm of the gradient, all parameters together, of the loss of a step, which is summed
        over its samples; a longer one is shortened to it.
    accumulate : int
        Batches for each step. Of one level and without symmetries it is the step of a batch as large as
        they are together, up to rounding, with `noise` and `pushforward` too; an epoch's last step may have
        fewer.
    validate : str or float, optional
        What to validate on after each epoch: a split of the store, or a part of the training samples, which
        is then held out of training: 0.1. The run has the parameters with the lowest error there; without,
        those of the last epoch. A split that models are judged on later is not one to choose them by.
    validate_resolution : int, tuple, str or Grid, or list of these, optional
        The levels to validate at, together; those that are trained on if not given.
    patience : int, optional
        Stop after so many epochs without a lower validation error. The learning rate falls as for all epochs.
    log : {"tensorboard", "wandb"} or callable, or list of these, optional
        Where each epoch's numbers go; a function is called with the epoch and a dictionary of them: the
        history's and "learning_rate". See `mano_op.train.logging`.
    checkpoint_every : int
        Epochs from one checkpoint to the next, the last epoch having one too; 0 for none. Checkpoints are in
        `out`, one in the place of the other, and gone when the run is written.
    progress : bool
        Whether to show a bar.
    resume : bool
        Whether to go on from the checkpoint in `out`, given the same arguments; `device`, `log`,
        `checkpoint_every` and `progress` may be others. Where there is nothing, training begins; a finished
        run is read and returned.
    overwrite : bool
        Whether a run or a checkpoint in `out` may be replaced. A run is there until the new one is whole.

    Returns
    -------
    Run
        Also written to `out`. Its ``history`` has an entry for each epoch: "training_error", the mean
        over samples and channels of the loss, in normalised units, with the model as it was when each sample
        came up and inputs as they were perturbed; "seconds"; and if it was validated "validation_error", the
        same mean of samples that are not trained on, of one step from true inputs, with the model as it was
        after the epoch. ``training["best"]`` says which epoch's parameters it has.

    Raises
    ------
    InputError
        Before any work, if `out` holds a run or a checkpoint already, or with ``resume=True`` one of other
        arguments, another store or other versions, or cannot be written, a number is not one that can be
        trained with, or a name, an option, the device or the resolution does not exist, or the model does
        not map the store's fields. Later only if training diverges; nothing is kept then.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> folder = tempfile.mkdtemp()
    >>> store = generate_darcy(f"{folder}/darcy.zarr", [8], samples={"train": 8}, progress=False)
    >>> small = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2}
    >>> run = train_model(store, f"{folder}/run", resolution=8, options=small, epochs=2, validate=0.25,
    ...                   progress=False)
    >>> run.training["validation"]["samples"], [sorted(epoch) for epoch in run.history][0]
    ({'r8': 2}, ['epoch', 'seconds', 'training_error', 'validation_error'])
    >>> again = train_model(store, f"{folder}/run", resolution=8, options=small, epochs=2, validate=0.25,
    ...                     progress=False, resume=True)  # is there, and read
    >>> again.history == run.history
    True
    """
    check_out(out, resume=resume, overwrite=overwrite)
    check_whole(epochs=epochs, accumulate=accumulate)
    mixed = isinstance(resolution, list)
    if not mixed:
        check_whole(batch_size=batch_size)
    check_whole(at_least=0, seed=seed, checkpoint_every=checkpoint_every, pushforward=pushforward)
    if seed >= 2**63:
        raise InputError(f"seed={seed}, expected less than 2**63")
    check_finite_number(zero=False, learning_rate=learning_rate)
    check_finite_number(zero=True, weight_decay=weight_decay)
    if clip is not None:
        check_finite_number(zero=False, clip=clip)
    check_finite_number(zero=True, noise=noise)
    logs = check_log(log)
    store = store if isinstance(store, FieldStore) else open_store(store)
    keys = _keys(store, resolution)
    channels = channels_of(store.layout, time_steps, at)
    if optimizer not in OPTIMIZERS:
        raise InputError(f"optimizer={optimizer!r}, expected one of {', '.join(OPTIMIZERS)}")
    elsewhere = None if validate_resolution is None else _keys(store, validate_resolution)
    validation = validation_of(store, keys, validate, elsewhere, patience)
    tested: list[str] = validation.get("resolution", [])
    grids = {key: store.grids[key] for key in dict.fromkeys([*keys, *tested])}
    objectives = {grid.shape: training_loss(loss, grid) for grid in grids.values()}
    device = join(device)
    sizes = batch_size if isinstance(batch_size, Sequence) else None
    loaders = field_loaders(
        store,
        train=Mixed(keys, ratios, sizes) if mixed else keys[0],
        test=tested,
        splits=Splits(test=validation.get("split", "test"), hold_out=validation.get("part")),
        batch_size=20 if isinstance(batch_size, Sequence) else batch_size,
        time_steps=time_steps,
        at=at,
        pushforward=pushforward,
        transforms=transforms,
        seed=seed,
    )
    check_perturbation(loaders.processor, noise, pushforward)
    drawn = _drawn(loaders.train, keys)
    levels = list(store.grids)
    key = max(keys, key=lambda one: (drawn[one], levels.index(one)))
    turns = torch.Generator().manual_seed(seed)
    stated = {variable.name: variable.boundary_value for variable in store.variables}
    known = [stated[channel.variable] for channel in channels.y] * (1 + pushforward)
    turn = turns_of(symmetries, {one: store.grids[one] for one in keys}, known, turns)
    options = options_for(store, key, channels, arch, options or {}, loaders.processor)
    check_device(device)
    check_precision(precision, device)

    torch.manual_seed(seed)
    model = build_model(arch, options)
    for grid in grids.values():
        check_maps(model, arch, options, channels, grid)

    together, _ = ranks()
    training = plain(
        {
            "store": str(store.path),
            "title": store.attrs.get("title", ""),
            "resolution": list(keys) if mixed else key,
            "grid": [str(store.grids[one]) for one in keys] if mixed else str(store.grids[key]),
            **({} if ratios is None else {"ratios": list(ratios)}),
            "inputs": list(channels.inputs),
            "outputs": list(channels.outputs),
            "units": {variable.name: variable.units for variable in store.variables},
            **({} if time_steps is None else {"time_steps": list(time_steps)}),
            **({} if at is None else {"at": list(at)}),
            "samples": drawn if mixed else drawn[key],
            "epochs": epochs,
            "batch_size": list(batch_size) if isinstance(batch_size, Sequence) else batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "loss": loss,
            "optimizer": optimizer,
            "symmetries": list(symmetries),
            **({} if noise == 0 else {"noise": noise}),
            **({} if pushforward == 0 else {"pushforward": pushforward}),
            "seed": seed,
            **({} if precision == "float32" else {"precision": precision}),
            **({} if clip is None else {"clip": clip}),
            **({} if accumulate == 1 else {"accumulate": accumulate}),
            **({} if together == 1 else {"processes": together}),
            **(
                {}
                if validate is None
                else {"validation": validation | {"samples": sample_counts(loaders.test)}}
            ),
            "machine": machine(device),
        }
    )
    asked = {"arch": arch, "options": plain(options), "processor": plain(loaders.processor.to_dict())}
    asked |= {name: value for name, value in training.items() if name not in ("store", "machine")}
    checkpoint = Checkpoint(out, asked | behind(fields_of(store), training["machine"]))

    wait_for_all()
    finished = resume and not checkpoint.there and (Path(out) / "run.json").exists()
    check_all_have(f"whether {out} holds a finished run", int(finished), device)
    if finished:
        found = load_run(out)
        check_finished(out, found, asked)
        return found

    model.to(device)
    copy_from_first(model)
    stepped, schedule = optimizer_and_schedule(optimizer, model, learning_rate, weight_decay, epochs)
    scaler, best = scaler_for(precision, device), Best(patience)
    inputs = None
    if noise or pushforward:
        inputs = PerturbedInputs(loaders.processor, model, noise=noise, pushforward=pushforward, seed=seed)
    state = Training(model, stepped, schedule, loaders.train, turns, best, scaler, device, inputs=inputs)
    first = is_first()
    # The lock is in the folder: what is beside it need not be ours to write to.
    lock: AbstractContextManager[Any] = only_writer(checkpoint.path) if first else nullcontext()
    with lock:
        if first and overwrite:
            checkpoint.remove()
        elif resume and checkpoint.there:
            checkpoint.restore(state)
        begun = len(state.history)
        check_all_have(f"the number of epochs behind the checkpoint in {out}", begun, device)

        def objective(out: Tensor, y: Tensor) -> Tensor:
            value: Tensor = objectives[tuple(y.shape[2:])](out, y)
            return value

        title = f"{arch} at {'+'.join(keys)}"
        watched = Watched(
            loaders.train, objective, epochs, title, progress and first, turn, scaler, state.history
        )
        tests = list(loaders.test.values())

        def error() -> dict[str, float]:
            found = validation_error(model, loaders.processor, tests, objective, device)
            return {"validation_error": found}

        def keep(epoch: int, over: bool) -> None:
            if first and checkpoint_every and (over or epoch % checkpoint_every == 0):
                checkpoint.write(state.state_dict())

        try:
            with watched, opened_logs(logs if first else [], out, training, begun) as report:
                train_epochs(
                    state,
                    watched,
                    Steps(stepped, len(loaders.train), accumulate=accumulate, clip=clip, scaler=scaler),
                    inputs or loaders.processor,
                    epochs,
                    precision=precision,
                    validate=None if validate is None else error,
                    report=report,
                    keep=keep,
                )
        except Diverged:
            if first:
                checkpoint.remove()
            raise

        if validate is not None:
            model.load_state_dict(dict(best.parameters))
            training["best"] = {"epoch": best.epoch, "validation_error": best.error}
        processor = loaders.processor.to("cpu").eval()
        run = Run(model.cpu().eval(), processor, arch, options, training, state.history)
        if first:
            save_run(out, run)
            checkpoint.remove()
    wait_for_all()
    return run


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
