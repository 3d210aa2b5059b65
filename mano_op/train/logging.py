"""Logs of a training: the numbers of each epoch, as the history of the run has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mano_op.errors import InputError

LOGS = ("tensorboard", "wandb")

Log = Callable[[int, Mapping[str, float]], object]


def check_log(log: str | Log | Sequence[str | Log] | None) -> list[str | Log]:
    """Return the logs as a list.

    Raises
    ------
    InputError
        If a log is neither a known name nor a function, or its package is not installed.

    Examples
    --------
    >>> check_log("paper")
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: log='paper', expected tensorboard, wandb, or a function of the epoch and its
    numbers
    """
    if log is None:
        return []
    asked = list(log) if isinstance(log, Sequence) and not isinstance(log, str) else [log]
    for name in asked:
        if not callable(name) and name not in LOGS:
            raise InputError(
                f"log={name!r}, expected {', '.join(LOGS)}, or a function of the epoch and its numbers"
            )
        if name == "tensorboard":
            _summary_writer()
        elif name == "wandb":
            _wandb()
    return asked


@contextmanager
def opened_logs(
    logs: Sequence[str | Log], folder: str | Path, settings: Mapping[str, Any], epochs: int
) -> Iterator[Log]:
    """Return a function of the epoch and its numbers that calls all logs, which are closed in the end.

    Parameters
    ----------
    logs : sequence of {"tensorboard", "wandb"} or callable
        As `check_log` returns them. "tensorboard" writes to ``tensorboard/`` in the folder. "wandb" adds to
        the active run, or begins one with the name of the folder; its environment variables hold
        (``WANDB_PROJECT``, ``WANDB_RUN_ID``, ``WANDB_MODE``, ...).
    folder : path
        Of the run.
    settings : mapping
        The options of the run, for Weights & Biases.
    epochs : int
        Completed before. TensorBoard drops what a killed process has logged of later ones.

    Examples
    --------
    >>> with opened_logs([print], "run", {}, 0) as log:
    ...     log(1, {"training_error": 0.5})
    1 {'training_error': 0.5}
    """
    with ExitStack() as stack:
        places: list[Log] = []
        for name in logs:
            if callable(name):
                places.append(name)
            elif name == "tensorboard":
                places.append(stack.enter_context(_tensorboard(Path(folder), epochs)))
            else:
                places.append(stack.enter_context(_weights_and_biases(Path(folder), settings)))

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            for place in places:
                place(epoch, metrics)

        yield log


@contextmanager
def _tensorboard(folder: Path, epochs: int) -> Iterator[Log]:
    writer = _summary_writer()(str(folder / "tensorboard"), purge_step=epochs + 1)

    def log(epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    try:
        yield log
    finally:
        writer.close()


@contextmanager
def _weights_and_biases(folder: Path, settings: Mapping[str, Any]) -> Iterator[Log]:
    wandb = _wandb()
    ours = wandb.run is None
    if ours:
        wandb.init(name=folder.name, config=dict(settings))
    try:
        yield lambda epoch, metrics: wandb.log({"epoch": epoch, **metrics})
    finally:
        if ours:
            wandb.finish()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            f"log='tensorboard' needs TensorBoard ({error}): pip install 'mano_op[tensorboard]'"
        ) from error
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise InputError(f"log='wandb' needs Weights & Biases ({error}): pip install wandb") from error
    return wandb
