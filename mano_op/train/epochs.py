"""neuraloperator's Trainer, one epoch at a time."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from neuralop import Trainer
from torch import nn

from mano_op.train.checkpoint import Training
from mano_op.train.logging import Log
from mano_op.train.precision import autocast_to
from mano_op.train.steps import Steps
from mano_op.train.watched import Diverged, Watched


def train_epochs(
    state: Training,
    watched: Watched,
    steps: Steps,
    processor: nn.Module,
    epochs: int,
    *,
    precision: str = "float32",
    validate: Callable[[], Mapping[str, float]] | None = None,
    report: Log | None = None,
    keep: Callable[[int, bool], object] | None = None,
) -> None:
    """Train from where the state is to the last epoch, or until it no longer pays.

    The Trainer goes from its ``start_epoch`` to its ``n_epochs``, and has no hook at the end of an epoch. So
    it is called for one epoch at a time, as it is, and what has to happen between them happens here. It
    trains as if it was called once.

    Parameters
    ----------
    state : Training
        Whose history has an entry for each epoch that is over.
    watched : Watched
        The loader and the loss.
    steps : Steps
        The optimiser.
    processor : nn.Module
        Such as `FieldProcessor` or `PerturbedInputs`.
    epochs : int
        Those of the whole training.
    precision : str
        Of autocast; see `mano_op.train.precision`.
    validate : callable, optional
        Gives the ``validation_error`` of the model as it is, by which the best is chosen, and what else the
        history is to have.
    report : callable, optional
        Called with each epoch and its numbers.
    keep : callable, optional
        Called with each epoch, after all else, and whether it is the last.

    Raises
    ------
    Diverged
        If the loss or the validation error is not finite.
    """
    trainer: Any = Trainer(
        model=state.model,
        n_epochs=epochs,
        device=state.device,
        data_processor=processor,
        mixed_precision=precision != "float32",
    )
    begun = len(state.history)
    if state.best.enough(begun):  # stopped early, and then killed before its run was written
        return
    for epoch in range(begun + 1, epochs + 1):
        rate = float(state.schedule.get_last_lr()[0])
        trainer.start_epoch, trainer.n_epochs = epoch - 1, epoch
        with warnings.catch_warnings(), autocast_to(precision, state.device):
            # The Trainer hands models the whole sample, and FNO says of each call that it ignores y.
            warnings.filterwarnings("ignore", message=r".*received unexpected keyword arguments")
            # While a scaler finds its scale, all steps of an epoch may be left out; the schedule goes on.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)` before")
            trainer.train(watched, {}, steps, state.schedule, training_loss=watched.loss)
        entry = state.history[-1]
        if validate is not None:
            found = validate()
            error = found["validation_error"]
            if not math.isfinite(error):
                raise Diverged(f"{watched.title}: the validation error is {error}", epoch, epochs)
            entry.update(found)
            state.best.see(epoch, error, state.model)
        over = epoch == epochs or state.best.enough(epoch)
        if report is not None:
            numbers = {name: value for name, value in entry.items() if name != "epoch"}
            report(epoch, {**numbers, "learning_rate": rate})
        if keep is not None:
            keep(epoch, over)
        if over:
            return
