"""The files of a report, and the check of a folder for them, which imports no pictures."""

from __future__ import annotations

from pathlib import Path

from mano_op.errors import InputError
from mano_op.files import check_folder

FILES = ("report.html", "results.csv", "results.json", "results.nc")


def check_report_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that cannot be made, or, without `overwrite`, one that has any of `FILES`."""
    existing = [name for name in FILES if (check_folder(folder) / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{folder} has {', '.join(existing)} already: give another folder, or overwrite=True"
        )
