"""The report of a resolution transfer: one HTML file that needs nothing else, and its numbers beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import xarray as xr

from mano_op.data.store import FieldStore
from mano_op.errors import InputError
from mano_op.files import write_file
from mano_op.labels import variable_of
from mano_op.report import sections
from mano_op.report.page import page, paragraph
from mano_op.report.samples import samples, spectra_of_samples
from mano_op.runs import Run
from mano_op.transfer.entries import Entry, Models, entries_of, first_of_each
from mano_op.transfer.rollout import shown_steps
from mano_op.transfer.saved import netcdf_bytes
from mano_op.transfer.series import series_of
from mano_op.transfer.tables import csv_text, json_text
from mano_op.transfer.verdict import summary

FILES = ("report.html", "results.csv", "results.json", "results.nc")


def check_report_folder(folder: str | Path, *, overwrite: bool = False) -> None:
    """Refuse a folder that has a file of a report, before the work that would go into it.

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
    there = [name for name in FILES if (Path(folder) / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"{folder} has {', '.join(there)} already: give another folder, or overwrite=True to replace them"
        )


def write_report(
    folder: str | Path,
    results: xr.Dataset,
    runs: Models,
    store: FieldStore,
    *,
    title: str,
    overwrite: bool = False,
) -> Path:
    """Write ``report.html`` and the numbers it shows: ``results.csv``, ``results.json``, ``results.nc``.

    The page holds its pictures, asks for nothing from a network, and can be sent as it is. The CSV has
    every error as a row, the JSON the summary, and the netCDF file the labelled data set `results`.

    Parameters
    ----------
    folder : path
        Made if need be.
    results : Dataset
        From `mano_op.transfer.evaluate.evaluate_transfer`.
    runs : mapping of str to Run, or to a sequence of Run
        The models of the results, as `mano_op.transfer.evaluate.evaluate_transfer` was given them.
    store : FieldStore
        That they were judged on.
    title : str
    overwrite : bool
        Whether a report that is there may be replaced.

    Returns
    -------
    Path
        Of the page, which is written last.

    Raises
    ------
    InputError
        Before anything is written, if a report is there, or the results are of other models or of another
        store.
    """
    folder = Path(folder)
    check_report_folder(folder, overwrite=overwrite)
    models = results["model"].values.tolist()
    if missing := [model for model in models if model not in runs]:
        raise InputError(
            f"results of {', '.join(missing)}, but runs of {', '.join(runs)} only: pass all runs"
        )
    entries = entries_of({model: runs[model] for model in models}, store)
    given = {(one.model, one.train_resolution): one.run for one in reversed(first_of_each(entries))}
    every = series_of(results)
    if lacking := [one for one in every if (one.model, one.train_resolution) not in given]:
        raise InputError(
            f"results of {lacking[0].model} trained at {lacking[0].train_resolution}, but no such run: "
            "pass the runs that were judged"
        )
    shown = {one.label: given[one.model, one.train_resolution] for one in every}
    keys, variables = results["resolution"].values.tolist(), results["variable"].values.tolist()
    known = {variable_of(variable) for variable in variables}  # what follows is the time
    if not (set(keys) <= set(store.grids) and known == set(store.outputs)):
        raise InputError(
            f"results for {', '.join(variables)} at {', '.join(keys)}, but {store.path} has "
            f"{', '.join(store.outputs)} at {', '.join(store.grids)}: pass the store that was judged on"
        )
    judged = summary(results)
    contents: dict[str, str | bytes] = {
        "results.csv": csv_text(results),
        "results.json": json_text(judged),
        "results.nc": netcdf_bytes(results),
        "report.html": _page(title, results, judged, shown, entries, store),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_file(folder / name, content)
    return folder / "report.html"


def _page(
    title: str,
    results: xr.Dataset,
    judged: xr.Dataset,
    runs: Mapping[str, Run],
    entries: Sequence[Entry],
    store: FieldStore,
) -> str:
    every_step, results, judged = judged, shown_steps(results), shown_steps(judged)
    return page(
        title,
        [
            *sections.findings(judged, store),
            *sections.errors(results, judged),
            *sections.rollout(every_step),
            *spectra_of_samples(judged, runs, store),
            *samples(results, judged, runs, store),
            *sections.costs(judged),
            *sections.training(runs, entries, judged),
            *sections.data(store),
            *sections.how_to_read(judged),
            paragraph(f"Beside this page: {', '.join(FILES[1:])}."),
        ],
    )
