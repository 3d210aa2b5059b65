"""``mano-op evaluate``, ``predict``, ``export`` and ``demo``: what becomes of trained models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.types import ExistingDirectory

from mano_op.cli.values import Device, Int, Overwrite, Quiet, Size, Sizes, Source, Store, words
from mano_op.errors import InputError

app = App(name="evaluate", help="Evaluate trained models.")
Card = Annotated[bool, Parameter(help="Write the table into the model card of each run too, README.md.")]
Split = Annotated[str, Parameter(help="Samples or images to evaluate on.")]


def _named_run(text: str) -> tuple[str, Path]:
    """``runs/mano``, or ``MANO=runs/mano``; a folder whose own name has a = needs the latter."""
    name, equals, folder = text.partition("=")
    if not equals or "/" in name:
        return Path(text).name, Path(text)
    if not (name and folder):
        raise ValueError(f"{text!r}: expected FOLDER or NAME=FOLDER, MANO=runs/mano_seed1")
    return name, Path(folder)


@app.command
def fields(
    store: Store,
    runs: Annotated[list[Any], words(_named_run, metavar="[NAME=]FOLDER...")],
    /,
    *,
    out: Path,
    resolution: Sizes | None = None,
    split: Split = "test",
    rollout: Int = 1,
    title: str = "Resolution transfer",
    card: Card = False,
    quiet: Quiet = False,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate trained models at several resolutions of a store.

    Parameters
    ----------
    runs : list
        Made by mano-op train fields: FOLDER, or NAME=FOLDER for a name other than the folder's.
        Runs of one name are one model, trained at other resolutions or from other seeds.
    out : path
        Folder for the report and its numbers.
    resolution : list
        Resolutions of the store; all if not given.
    rollout : int
        Of models that step on in time: how many steps to take, each from the predictions before it.
    title : str
        Of the report.
    """
    from mano_op.report import check_report_folder

    check_report_folder(out, overwrite=overwrite)  # at once; what follows takes seconds to import
    from mano_op.data.store import open_store
    from mano_op.report import write_report
    from mano_op.runs import load_run, write_evaluation
    from mano_op.transfer import Evidence, evaluate_transfer, summary, table
    from mano_op.transfer.rollout import shown_steps

    opened, loaded = open_store(store), dict[str, list[Any]]()
    for name, path in runs:
        loaded.setdefault(name, []).append(load_run(path, task="fields"))
    evidence, resolutions = Evidence(), resolution or list(opened.grids)
    options: dict[str, Any] = {"split": split, "rollout": rollout, "progress": not quiet}
    results = evaluate_transfer(loaded, opened, resolutions, evidence=evidence, **options)
    judged = summary(results)
    report = write_report(out, results, judged, evidence, title=title, overwrite=overwrite)
    errors = table(shown_steps(judged))
    if card:
        on = opened.attrs.get("title") or opened.path
        for _, path in runs:
            write_evaluation(path, f"On the split {split!r} of {on}, by mano-op evaluate fields:\n\n{errors}")
    print(errors)
    print(f"\nThe report, with pictures: {report}")


@app.command
def images(
    source: Source,
    run: ExistingDirectory,
    /,
    *,
    split: Split = "test",
    image_size: Sizes | None = None,
    out: Path | None = None,
    card: Card = False,
    device: Device = "cpu",
    batch_size: Int = 64,
    num_workers: Int = 0,
    quiet: Quiet = False,
    overwrite: Overwrite = False,
) -> None:
    """Evaluate a classifier of images.

    Parameters
    ----------
    run : path
        Made by mano-op train images.
    image_size : list
        Sizes of the images, besides that of the training.
    out : path
        File for the numbers too, those of each class: NAME.json.
    batch_size : int
        Images at a time.
    num_workers : int
        Processes that read images.
    """
    from mano_op.files import check_file, write_file

    if out is not None:
        check_file(out, overwrite=overwrite)  # at once; what follows takes seconds to import
    from mano_op.runs import load_run, read_card, write_evaluation
    from mano_op.vision.evaluate import evaluate_classifier

    classifier = load_run(run, task="images")
    if card:
        read_card(run)
    reading: dict[str, Any] = {"device": device, "batch_size": batch_size, "num_workers": num_workers}
    evaluation = evaluate_classifier(
        classifier, source, split=split, sizes=image_size or [], **reading, progress=not quiet
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, json.dumps(evaluation.to_dict(), indent=1, allow_nan=False))
    if card:
        write_evaluation(run, f"By mano-op evaluate images:\n\n{evaluation.table()}")
    print(evaluation.table())


def predict(
    run: ExistingDirectory,
    source: Path,
    out: Path,
    /,
    *,
    steps: Int = 1,
    grid: Size = None,
    resolution: Size = None,
    split: str | None = None,
    batch_size: Int = 1,
    device: Device = "cpu",
    quiet: Quiet = False,
    overwrite: Overwrite = False,
) -> None:
    """Predict the fields of a file, and write them as a file.

    Parameters
    ----------
    run : path
        Made by mano-op train fields.
    source : path
        NetCDF, zarr, or a store; larger than memory or not.
    out : path
        NAME.nc or NAME.zarr.
    steps : int
        Of models that step on in time: how many steps to take, from the last times of the file.
    grid : size
        Points along each axis to interpolate the predictions to; those of the file if not given.
    resolution : size
        Of a store: which one to take.
    split : str
        Of a store: which samples to take; all if not given.
    batch_size : int
        Samples at a time. With 1 no number depends on how the file is cut into pieces.
    """
    from contextlib import ExitStack

    from mano_op.prediction import check_dataset_path, open_dataset, write_dataset
    from mano_op.runs import load_run

    check_dataset_path(out, overwrite=overwrite)
    trained = load_run(run, task="fields")
    trained.model.to(device)
    with ExitStack() as stack:
        data = open_dataset(source, stack, resolution=resolution, split=split)
        options: dict[str, Any] = {"steps": steps, "shape": grid, "batch_size": batch_size}
        predicted = trained.predict(data, **options)
        write_dataset(predicted, out, overwrite=overwrite, progress=not quiet)
    print(f"{out}: {', '.join(map(str, predicted.data_vars))} {dict(predicted.sizes)}")


def export(
    run: Path,
    /,
    *,
    out: Annotated[Path, Parameter(metavar="FILE")],
    shape: Size = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a trained model as one file for other programs.

    Parameters
    ----------
    run : path
        Made by mano-op train fields.
    out : path
        NAME.onnx, for ONNX, or NAME.pt2, a program of torch.export; it maps units to units.
    shape : size
        Points along each axis of the one grid that the file is for, of models other than MANO.
        The file of a MANO is for all grids at least as fine as the reference.
    """
    from mano_op.export import export_onnx, export_program
    from mano_op.runs import load_run

    written = {".onnx": export_onnx, ".pt2": export_program}
    if out.suffix not in written:
        raise InputError(f"--out {out}, expected a name that ends in {' or '.join(written)}")
    shape = (shape,) if isinstance(shape, int) else shape
    errors = written[out.suffix](load_run(run, task="fields"), out, shape=shape, overwrite=overwrite)
    inputs = ", ".join("x".join(map(str, shape)) for shape in errors)
    print(f"{out}: within {max(errors.values()):.1e} of the model, relative, on inputs of {inputs}")


def demo(folder: Path, /, *, seed: Int = 0, quiet: Quiet = False, overwrite: Overwrite = False) -> None:
    """Make Darcy fields, train MANO and FNO at 16, evaluate them at 16, 32 and 64.

    Parameters
    ----------
    folder : path
        Where everything goes.
    seed : int
        Of the fields and of the training.
    """
    from mano_op.demo import run_demo

    print(run_demo(folder, seed=seed, overwrite=overwrite, progress=not quiet))
    print(f"\nThe report, with pictures: {folder / 'report.html'}")
