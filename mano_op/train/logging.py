"""Logs of a training: the numbers of each epoch, as the history of the run has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from mano_op.errors import InputError, refusing

# The module of each log, and how its package is installed.
LOGS = {
    "tensorboard": ("torch.utils.tensorboard", "pip install 'mano_op[tensorboard]'"),
    "wandb": ("wandb", "pip install wandb"),
}

Log = Callable[[int, Mapping[str, float]], object]


def check_log(log: str | Log | Sequence[str | Log] | None) -> list[str | Log]:
    """Return the logs as a list; unknown ones and those whose package is not installed are refused."""
    if log is None:
        return []
    logs = list(log) if isinstance(log, Sequence) and not isinstance(log, str) else [log]
    for name in logs:
        if callable(name):
            continue
        if name not in [*LOGS]:
            raise InputError(
                f"log={name!r}, expected {', '.join(LOGS)}, or a function of the epoch and its numbers"
            )
        _package(name)
    return logs


@contextmanager
def opened_logs(
    logs: Sequence[str | Log], folder: str | Path, settings: Mapping[str, Any], epochs: int
) -> Iterator[Log]:
    """Return a function of the epoch and its numbers that calls all logs, and close them in the end.

    "tensorboard" writes to ``tensorboard/`` in the folder, and drops what a killed process has logged after
    the complete `epochs`. "wandb" adds to the active run, or begins one with the name of the folder and the
    `settings` of the run; its environment variables hold (``WANDB_PROJECT``, ``WANDB_MODE``, ...).

    Examples
    --------
    >>> with opened_logs([print], "run", {}, 0) as log:
    ...     log(1, {"training_error": 0.5})
    1 {'training_error': 0.5}
    """
    with ExitStack() as stack:
        opened: list[Log] = []
        for log in logs:
            if callable(log):
                opened.append(log)
            elif log == "tensorboard":
                opened.append(_tensorboard(stack, Path(folder), epochs))
            else:
                opened.append(_weights_and_biases(stack, Path(folder), settings))

        def call(epoch: int, metrics: Mapping[str, float]) -> None:
            for log in opened:
                log(epoch, metrics)

        yield call


def _tensorboard(stack: ExitStack, folder: Path, epochs: int) -> Log:
    writer = _package("tensorboard").SummaryWriter(str(folder / "tensorboard"), purge_step=epochs + 1)
    stack.callback(writer.close)

    def log(epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return log


def _weights_and_biases(stack: ExitStack, folder: Path, settings: Mapping[str, Any]) -> Log:
    wandb = _package("wandb")
    if wandb.run is None:
        remedy = "log in by `wandb login`, or set the environment variable WANDB_MODE=offline"
        with refusing("log='wandb', but Weights & Biases begins no run", remedy, wandb.Error):
            wandb.init(name=folder.name, config=dict(settings))
        stack.callback(wandb.finish)
    return lambda epoch, metrics: wandb.log({"epoch": epoch, **metrics})


def _package(log: str) -> Any:
    module, install = LOGS[log]
    with refusing(f"log={log!r} needs a package", install, ImportError):
        return import_module(module)
