"""Checks of a run's folder before training: it is empty, or holds a finished run, or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mano_op.errors import InputError
from mano_op.files import check_folder
from mano_op.runs import Run
from mano_op.train.checkpoint import checkpoint_path, differences

# Entries of a run in which one and the same training may differ: paths, the machine, the outcome.
UNCOMPARED = ("store", "source", "start", "machine", "best")


def check_out(out: str | Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or holds what may be neither continued nor replaced."""
    if resume and overwrite:
        raise InputError("resume=True and overwrite=True: pass one of them, to continue or to start anew")
    folder = check_folder(out)
    begun = (
        "holds a training that was begun and not finished: pass resume=True to go on with it, overwrite=True "
        "to start anew, or give another folder"
    )
    reasons = {folder / "zarr.json": "is a store: give a folder of its own for the run"}
    if not (resume or overwrite):
        held = "holds a run already: give another folder, or overwrite=True to replace it"
        reasons |= {checkpoint_path(folder): begun, folder / "run.json": held}
    for path, reason in reasons.items():
        if path.exists():
            raise InputError(f"{out} {reason}")


def check_finished(out: str | Path, run: Run, asked: Mapping[str, Any]) -> None:
    """Refuse the finished run of a folder if its options, model or data are not those of the training."""
    saved = {**run.training, "arch": run.arch, "options": run.options, "processor": run.processor.to_dict()}
    if different := differences({name: saved[name] for name in saved if name not in UNCOMPARED}, asked):
        raise InputError(
            f"{out} holds a finished run of another training: {different}. Give another folder, or "
            "overwrite=True to replace it"
        )
