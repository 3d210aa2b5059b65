"""Where the numbers of each epoch are sent while a model is trained.

neuraloperator's Trainer can send its own to Weights & Biases, but only while it prints them too, to a run
that is active already, and what it sends depends on the size of the batches. So what is sent here is the
history that a run keeps, by one call an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from mano_op.errors import InputError

LOGS = ("tensorboard", "wandb")

Log = Callable[[int, Mapping[str, float]], object]


def check_log(log: str | Log | Sequence[str | Log] | None) -> list[str | Log]:
    """What is to be logged to, as a list; what is not installed is refused.

    Raises
    ------
    InputError
        If a name is not known, what it names is not installed, or something is no function.

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
    for one in asked:
        if not callable(one) and one not in LOGS:
            raise InputError(
                f"log={one!r}, expected {', '.join(LOGS)}, or a function of the epoch and its numbers"
            )
        if one == "tensorboard":
            _summary_writer()
        elif one == "wandb":
            _wandb()
    return asked


@contextmanager
def opened_logs(
    logs: Sequence[str | Log], folder: str | Path, settings: Mapping[str, Any], epochs: int
) -> Iterator[Log]:
    """One function that logs to all of some places.

    Parameters
    ----------
    logs : sequence of {"tensorboard", "wandb"} or callable
        As `check_log` gives them. "tensorboard" writes to ``tensorboard/`` in the folder. "wandb" adds to
        the active run, if there is one, and otherwise begins one under the folder's name, for which its own
        environment variables hold (``WANDB_PROJECT``, ``WANDB_RUN_ID``, ``WANDB_MODE``, ...).
    folder : path
        Of the run.
    settings : mapping
        What the run was trained with, for those that keep it.
    epochs : int
        That are over already: what was logged of later ones, by a process that was killed, is taken back
        where that can be.

    Examples
    --------
    >>> with opened_logs([print], "run", {}, 0) as log:
    ...     log(1, {"training_error": 0.5})
    1 {'training_error': 0.5}
    """
    with ExitStack() as stack:
        places: list[Log] = []
        for one in logs:
            if callable(one):
                places.append(one)
            elif one == "tensorboard":
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
