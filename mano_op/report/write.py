"""Write the report of a resolution transfer: one HTML file that needs nothing else, and its numbers."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.report.page import page
from mano_op.transfer.evidence import Evidence
from mano_op.transfer.io import netcdf_bytes
from mano_op.transfer.tables import csv_text, json_text

FILES = ("report.html", "results.csv", "results.json", "results.nc")


def check_report_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that has a file of a report, before the evaluation.

    Parameters
    ----------
    folder : path
        Need not exist.
    overwrite : bool
        Whether a report may be replaced.

    Raises
    ------
    InputError
        If one of `FILES` is there and `overwrite` is not set.
    """
    existing = [name for name in FILES if (Path(folder) / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{folder} has {', '.join(existing)} already: give another folder, or overwrite=True to replace "
            "them"
        )


def write_report(
    folder: str | Path,
    results: xr.Dataset,
    judged: xr.Dataset,
    evidence: Evidence,
    *,
    title: str,
    overwrite: bool = False,
) -> Path:
    """Write ``report.html`` and the numbers it shows: ``results.csv``, ``results.json``, ``results.nc``.

    The page holds its pictures, loads nothing from a network, and can be sent as it is. The CSV has every
    error as a row, the JSON the summary, and the netCDF file the labelled data set `results`.

    Parameters
    ----------
    folder : path
        Made if need be.
    results : Dataset
        From `mano_op.transfer.evaluate_transfer`.
    judged : Dataset
        From `mano_op.transfer.summary`, of the results.
    evidence : Evidence
        That `evaluate_transfer` was given.
    title : str
    overwrite : bool
        Whether a report in the folder may be replaced.

    Returns
    -------
    Path
        Of the page, which is written last.

    Raises
    ------
    InputError
        Before anything is written, if the folder has a report, or the three are not of one evaluation.
    """
    folder = Path(folder)
    check_report_folder(folder, overwrite=overwrite)
    _check_evidence(results, judged, evidence)
    contents: dict[str, str | bytes] = {
        "results.csv": csv_text(results),
        "results.json": json_text(judged),
        "results.nc": netcdf_bytes(results),
        "report.html": page(title, results, judged, evidence, list(FILES[1:])),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(folder / name, content)
    return folder / "report.html"


def _check_evidence(results: xr.Dataset, judged: xr.Dataset, evidence: Evidence) -> None:
    """Refuse results, a summary and evidence of different evaluations."""
    if not evidence.fields:
        raise InputError("evidence of no evaluation: give it to evaluate_transfer(..., evidence=evidence)")
    runs = [(run.model, run.train_resolution, run.seed) for run in evidence.runs]
    keys = results["resolution"].values.tolist()
    if list(results.get_index("run")) != runs or keys[-1] != list(evidence.fields)[-1]:
        raise InputError(
            f"results of {', '.join(results['label'].values)} at {', '.join(keys)}, but evidence of "
            f"{', '.join(run.name for run in evidence.runs)} at {', '.join(evidence.fields)}: give the "
            "evidence of the same evaluation"
        )
    if not (judged["label"].isin(results["label"]).all() and keys == judged["resolution"].values.tolist()):
        raise InputError(
            f"a summary of {', '.join(judged['label'].values)}, but results of "
            f"{', '.join(results['label'].values)}: give summary(results)"
        )
