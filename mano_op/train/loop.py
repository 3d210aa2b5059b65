"""The training loop: batches, gradients, steps, validation, logs and checkpoints, for every task."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from time import perf_counter
from typing import Any

from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from mano_op.data.jobs import only_writer
from mano_op.errors import InputError
from mano_op.runs import Run, load_run, save_run
from mano_op.train.checkpoint import (
    COMPUTE,
    UNCOMPARED,
    Best,
    Checkpoint,
    Progress,
    check_finished,
    check_out,
)
from mano_op.train.distributed import (
    check_all_have,
    copy_from_first,
    is_first,
    sum_gradients,
    sum_numbers,
    wait_for_all,
)
from mano_op.train.logging import Log, opened_logs
from mano_op.train.precision import autocast, scaler_for
from mano_op.train.task import Task, plain


class Diverged(InputError):
    """Raised when the loss or the validation error of a training is not finite."""

    def __init__(self, task: Task, error: str, value: float, epoch: int) -> None:
        super().__init__(
            f"{task.title}: the {error} is {value} in epoch {epoch} of {task.training.epochs}, training has "
            "diverged and nothing is kept: give a smaller learning rate"
        )


def train(task: Task, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> Run:
    r"""Train the model of a task, and keep it as a run.

    A step follows the gradient of the loss, in single precision, that is summed over the samples of
    `accumulate` batches, shortened to the norm `clip`. The learning rate changes after each step.

    Started by ``torchrun``, or in a process group, all processes train one model, and the first one writes.
    Each takes its part of every batch, and a step is that of one process with the whole batch. Where samples
    do not divide among them, some come twice.

    Parameters
    ----------
    task : Task
        `mano_op.train.fields.FieldTask` or `mano_op.vision.training.ImageTask`.
    out : path
        Folder for the run; see `mano_op.runs`.
    resume : bool
        Whether to continue from the checkpoint in `out`, given the same options; `device`, `log`,
        `checkpoint_every` and `progress` may be others. On a CPU the numbers are those of an uninterrupted
        training to the last bit. Without a checkpoint it begins. A finished run is read and returned.
    overwrite : bool
        Whether a run or a checkpoint in `out` may be replaced. A run is there until the new one is whole.

    Returns
    -------
    Run
        Also written to `out`. Its ``history`` has an entry for each epoch: "training_error", the mean of the
        loss over samples and channels before the step of each; "seconds"; and of a validated training
        "validation_error" after the epoch. ``training["best"]`` has the epoch of its parameters.

    Raises
    ------
    InputError
        Before any work, if `out` holds a run or a checkpoint, or with ``resume=True`` one of other options,
        data or versions, or cannot be written, or the model does not fit the data. Also, as `Diverged`, if a
        loss is not finite; nothing is kept then.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> from mano_op.train import FieldOptions, FieldTask
    >>> folder = tempfile.mkdtemp()
    >>> store = generate_darcy(f"{folder}/darcy.zarr", [8], samples={"train": 8}, progress=False)
    >>> small = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2}
    >>> task = FieldTask(store, FieldOptions(resolution=8, epochs=2, progress=False), options=small)
    >>> [sorted(epoch) for epoch in train(task, f"{folder}/run").history]
    [['epoch', 'seconds', 'training_error'], ['epoch', 'seconds', 'training_error']]
    """
    check_out(out, resume=resume, overwrite=overwrite)
    options, device, first = task.training, task.device, is_first()
    model = task.build()
    training = task.description(model)
    # Differences are listed in this order: the user's options, what follows from them, statistics.
    asked = {name: value for name, value in training.items() if name not in UNCOMPARED}
    asked |= plain({"arch": task.arch, "options": task.options})
    statistics = plain({"processor": task.processor.to_dict()})
    versions = {"versions": {name: training["machine"]["versions"][name] for name in COMPUTE}}
    checkpoint = Checkpoint(out, asked | plain(task.fingerprint()) | versions | statistics)

    wait_for_all()
    finished = resume and not checkpoint.path.exists() and (Path(out) / "run.json").exists()
    check_all_have(f"whether {out} holds a finished run", int(finished), device)
    if finished:
        run = load_run(out)
        check_finished(out, run, asked | statistics)
        return run

    model.to(device)
    copy_from_first(model)
    task.begin(model)
    optimizer, schedule = task.optimizer(model)
    scaler = scaler_for(options.precision, device)
    state = Progress(model, optimizer, schedule, Best(options.patience), scaler, task.generators())
    # The lock is in the folder: what is beside the folder need not be ours to write to.
    lock: AbstractContextManager[Any] = only_writer(checkpoint.path) if first else nullcontext()
    with lock:
        if first and overwrite:
            checkpoint.remove()
        elif resume and checkpoint.path.exists():
            checkpoint.restore(state)
        epochs_done = len(state.history)
        check_all_have(f"the number of epochs behind the checkpoint in {out}", epochs_done, device)
        try:
            with opened_logs(options.log if first else [], out, training, epochs_done) as log:
                _train_epochs(task, state, checkpoint, log)
        except Diverged:
            if first:
                checkpoint.remove()
            raise
        if task.validated:
            model.load_state_dict(dict(state.best.parameters))
            training["best"] = {"epoch": state.best.epoch, "validation_error": state.best.error}
        processor = task.processor.to("cpu").eval()
        model.cpu().eval().requires_grad_(True)
        run = Run(model, processor, task.arch, task.options, training, state.history)
        if first:
            save_run(out, run)
            checkpoint.remove()
    wait_for_all()
    return run


def _train_epochs(task: Task, state: Progress, checkpoint: Checkpoint, log: Log) -> None:
    """Train from where the state is to the last epoch, or until patience ends."""
    options, epochs_done, first = task.training, len(state.history), is_first()
    epochs, batches = options.epochs, len(task.loader)
    if state.best.enough(epochs_done):  # stopped early, and interrupted before the run was written
        return
    with tqdm(
        total=epochs * batches,
        initial=epochs_done * batches,
        desc=task.title,
        unit="step",
        disable=not (options.progress and first),
    ) as bar:
        for epoch in range(epochs_done + 1, epochs + 1):
            rate = float(state.schedule.get_last_lr()[0])
            entry = _train_epoch(task, state, epoch, bar)
            state.history.append(entry)
            bar.set_postfix(training_error=f"{entry['training_error']:.4f}")
            if task.validated:
                entry.update(task.validate(state.model))
                error = entry["validation_error"]
                if not math.isfinite(error):
                    raise Diverged(task, "validation error", error, epoch)
                state.best.see(epoch, error, state.model)
            over = epoch == epochs or state.best.enough(epoch)
            numbers = {name: value for name, value in entry.items() if name != "epoch"}
            log(epoch, {**numbers, "learning_rate": rate})
            interval = options.checkpoint_every
            if first and interval and (over or epoch % interval == 0):
                checkpoint.write(state.state_dict())
            if over:
                return


def _train_epoch(task: Task, state: Progress, epoch: int, bar: Any) -> dict[str, float]:
    """Train on every batch once, and return the entry of the history."""
    options, start, total, terms = task.training, perf_counter(), 0.0, 0
    task.set_mode(state.model)
    task.processor.train()
    last = len(task.loader)
    for number, batch in enumerate(task.loader, start=1):
        if (number - 1) % options.accumulate == 0:
            state.optimizer.zero_grad(set_to_none=True)
        x, y = task.sample(batch)
        with autocast(options.precision, task.device):
            out = state.model(x)
        loss = task.loss(out.to(y.dtype), y)
        # All ranks have the sum of all, so that all continue or none does.
        value, n = sum_numbers(loss.item(), y.shape[0] * y.shape[1], device=str(loss.device))
        if not math.isfinite(value):
            raise Diverged(task, "loss", value, epoch)
        total, terms = total + value, terms + int(n)
        (loss if state.scaler is None else state.scaler.scale(loss)).backward()
        if number == last or number % options.accumulate == 0:
            _step(state, options.clip)
        bar.update()
    return {"epoch": epoch, "training_error": total / terms, "seconds": perf_counter() - start}


def _step(state: Progress, clip: float | None) -> None:
    """Take a step by the gradients of all ranks. One whose scaled gradients overflow is left out."""
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    sum_gradients(parameters)
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    if clip is not None:
        clip_grad_norm_(parameters, clip)
    if state.scaler is None:
        state.optimizer.step()
    else:
        state.scaler.step(state.optimizer)
        state.scaler.update()
    with warnings.catch_warnings():
        # While a scaler finds its scale, the first steps may be left out; the schedule goes on.
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
        state.schedule.step()
