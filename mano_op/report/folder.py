"""The files of a report, and the check of a folder for them, which imports no pictures."""

from __future__ import annotations

from pathlib import Path

from mano_op.errors import InputError
from mano_op.files import check_folder

FILES = ("report.html", "results.csv", "results.json", "results.nc")


def check_report_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that a report cannot be written to, before the evaluation.

    Parameters
    ----------
    folder : path
        Need not exist.
    overwrite : bool
        Whether a report may be replaced.

    Raises
    ------
    InputError
        If one of `FILES` is there and `overwrite` is not set, or the folder cannot be made.
    """
    existing = [name for name in FILES if (check_folder(folder) / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{folder} has {', '.join(existing)} already: give another folder, or overwrite=True to replace "
            "them"
        )
