"""The main job, end to end and small: fields, two models, and how they do at other resolutions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mano_op.errors import InputError
from mano_op.files import make_folder
from mano_op.problems.generate import generate_darcy
from mano_op.report import write_report
from mano_op.train import train_model
from mano_op.transfer import Evidence, evaluate_transfer, summary, table

RESOLUTIONS = (16, 32, 64)
SAMPLES = {"train": 800, "test": 100}
# Both models are trained with the symmetries of the square.
BUDGET: dict[str, Any] = {"epochs": 30, "symmetries": ["transpose", "reflect"]}

# The same budget: no more parameters than FNO, and less than twice its floating point operations.
MODELS: dict[str, dict[str, Any]] = {
    "MANO": {
        "arch": "mano",
        "options": {"hidden_channels": 24},
        "learning_rate": 1e-2,
    },
    "FNO": {"arch": "fno", "options": {"n_modes": [8, 8], "hidden_channels": 32}, "learning_rate": 5e-3},
}


def run_demo(folder: str | Path, *, seed: int = 0, overwrite: bool = False, progress: bool = True) -> str:
    """Make Darcy fields, train MANO and FNO at the coarsest resolution, judge them at all.

    Parameters
    ----------
    folder : path
        Gets ``darcy.zarr``, a run of each model, and the report: ``report.html`` with its numbers beside it.
    seed : int
        Of the fields and of the training.
    overwrite : bool
        Whether a demo that is there already may be replaced.
    progress : bool
        Whether to show bars.

    Returns
    -------
    str
        The table of errors.
    """
    folder = make_folder(folder)
    if any(folder.iterdir()) and not overwrite:
        raise InputError(f"{folder} is not empty: give another folder, or --overwrite to make the demo anew")
    writing: dict[str, Any] = {"seed": seed, "progress": progress, "overwrite": overwrite}
    store = generate_darcy(folder / "darcy.zarr", RESOLUTIONS, samples=SAMPLES, **writing)
    options = {"resolution": RESOLUTIONS[0], **BUDGET, **writing}
    runs = {
        name: train_model(store, folder / name.lower(), **model, **options) for name, model in MODELS.items()
    }
    evidence = Evidence()
    results = evaluate_transfer(runs, store, RESOLUTIONS, evidence=evidence, progress=progress)
    judged = summary(results)
    write_report(folder, results, judged, evidence, title="MANO and FNO on Darcy flow", overwrite=overwrite)
    return table(judged)
