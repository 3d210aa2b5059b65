"""Write the report of a resolution transfer: one HTML file that needs nothing else, and its numbers."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.report.folder import FILES, check_report_folder
from mano_op.report.page import page
from mano_op.transfer.evidence import Evidence
from mano_op.transfer.io import save_results
from mano_op.transfer.tables import check_summary, to_csv, to_json


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

    The page holds its pictures and loads nothing from a network. The CSV file has a row for every error, the
    JSON file has the summary, and the NetCDF file the labelled data set `results`.

    Parameters
    ----------
    folder : path
        Made if need be.
    results, judged, evidence
        From `mano_op.transfer.evaluate_transfer`, from `mano_op.transfer.summary` of the results, and as
        `evaluate_transfer` filled it.
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
        Before anything is written, if the folder has a report, or the parts are not of one evaluation.
    """
    folder = Path(folder)
    check_report_folder(folder, overwrite=overwrite)
    _check_parts(results, judged, evidence)
    content = page(title, results, judged, evidence, list(FILES[1:]))
    folder.mkdir(parents=True, exist_ok=True)
    save_results(results, folder / "results.nc", overwrite=True)
    to_csv(results, folder / "results.csv")
    to_json(judged, folder / "results.json")
    write_file(folder / "report.html", content)
    return folder / "report.html"


def _check_parts(results: xr.Dataset, judged: xr.Dataset, evidence: Evidence) -> None:
    """Refuse results, a summary and evidence of different evaluations."""
    check_summary(judged, "write_report")
    keys, runs = results["resolution"].values.tolist(), [run.coordinates for run in evidence.runs]
    labels, judged_labels = (data["label"].values.tolist() for data in (results, judged))
    if (
        list(results.get_index("run")) != runs
        or keys[-1] != list(evidence.fields)[-1]
        or not set(judged_labels) <= set(labels)
        or keys != judged["resolution"].values.tolist()
    ):
        raise InputError(
            f"results of {', '.join(labels)} at {', '.join(keys)}, a summary of {', '.join(judged_labels)} "
            f"at {', '.join(judged['resolution'].values)} and evidence of "
            f"{', '.join(run.name for run in evidence.runs) or 'nothing'}: give those of one evaluation, "
            "evaluate_transfer(..., evidence=evidence), and summary(results)"
        )
