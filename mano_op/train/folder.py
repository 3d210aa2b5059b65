"""What a run's folder holds before training: nothing, a finished run, or one that was begun."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mano_op.errors import InputError
from mano_op.files import check_folder
from mano_op.runs import Run
from mano_op.train.checkpoint import checkpoint_path, differences

# What a run records besides what was asked for: where its data lay, where it ran, how it ended.
UNCOMPARED = ("store", "source", "start", "machine", "best")


def check_out(out: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or holds something that is not to be gone on with or replaced.

    Examples
    --------
    >>> check_out("run", resume=True, overwrite=True)
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: resume=True and overwrite=True: pass one of them, to go on or to start anew
    """
    if resume and overwrite:
        raise InputError("resume=True and overwrite=True: pass one of them, to go on or to start anew")
    folder = check_folder(out)
    if resume or overwrite:
        return
    if checkpoint_path(folder).exists():
        raise InputError(
            f"{out} holds a training that was begun and not finished: pass resume=True to go on with it, "
            "overwrite=True to start anew, or give another folder"
        )
    if (folder / "run.json").exists():
        raise InputError(f"{out} holds a run already: give another folder, or overwrite=True to replace it")


def check_finished(out: str | Path, run: Run, asked: Mapping[str, Any]) -> None:
    """Refuse the run that a folder holds if it is not what was asked for.

    Raises
    ------
    InputError
        If it is of another model or was trained otherwise.
    """
    there = {"arch": run.arch, "options": run.options, "processor": run.processor.to_dict(), **run.training}
    different = differences({name: there[name] for name in there if name not in UNCOMPARED}, asked)
    if different:
        raise InputError(
            f"{out} holds a finished run of another training: {'; '.join(different)}. Give another folder, "
            "or overwrite=True to replace it"
        )
