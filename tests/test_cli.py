"""The command line, as a user meets it: what it makes, what it prints, what it refuses."""

import csv
import errno
import itertools
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import torch
import xarray as xr
from dask import config
from distributed import Client, LocalCluster

from mano_op import generate_darcy, train_model
from mano_op.cli import app, main
from mano_op.data.mixed import Mixed
from mano_op.data.store import open_store
from mano_op.grid import Axis, Grid
from mano_op.problems import generate
from mano_op.problems.darcy import Darcy
from mano_op.runs import Run, load_run
from mano_op.train.fields import FieldTask
from mano_op.train.options import FieldOptions, ImageOptions
from mano_op.transfer import evaluate_transfer, load_results

SMALL_MANO = "--option hidden_channels=8 --option n_layers=1 --option n_heads=2"
SMALL_FNO = "--arch fno --option n_modes=[4,4] --option hidden_channels=8"
BRIEF = "--resolution 8 --epochs 2 --batch-size 4 --quiet"


def mano_op(words: str) -> int:
    return main(words.split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, three runs and a report, made with the commands; the page is tested in `test_report`."""
    folder = tmp_path_factory.mktemp("cli")
    store = f"{folder}/darcy.zarr"
    samples = "--samples train=12 test=6 hard=0 --seed 3 --chunk 5"
    assert mano_op(f"generate darcy {store} --resolution 8 16 {samples} --quiet") == 0
    assert mano_op(f"train fields {store} {folder}/mano {SMALL_MANO} {BRIEF}") == 0
    mixed = "--resolution 8 16 --ratios 0.75 0.25 --batch-size 4 2 --epochs 1 --quiet"
    assert mano_op(f"train fields {store} {folder}/mixed {SMALL_MANO} {mixed}") == 0
    assert mano_op(f"train fields {store} {folder}/fno {SMALL_FNO} {BRIEF}") == 0
    runs = f"MANO={folder}/mano MANO={folder}/mixed {folder}/fno"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mano_op.report.page.page", lambda *parts: "")
        assert mano_op(f"evaluate fields {store} {runs} --out {folder}/report --card --quiet") == 0
    return folder


def test_generated_fields_are_the_librarys(folder: Path, tmp_path: Path) -> None:
    samples = {"train": 12, "test": 6}
    library = generate_darcy(tmp_path / "same.zarr", [8, 16], samples=samples, seed=3, progress=False)
    command = open_store(folder / "darcy.zarr")
    assert (command.layout.chunk, library.layout.chunk) == (5, 18)  # 18: at most all samples
    assert command.splits == library.splits
    for key in ("r8", "r16"):
        np.testing.assert_array_equal(command.read(key, "pressure"), library.read(key, "pressure"))


def test_recipe_is_solved_by_the_scheduler_of_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(
        'problem = "darcy"\nresolutions = [8, 16]\nseed = 3\n[samples]\ntrain = 9\n[options]\nn_modes = 16\n'
    )
    calls = []

    def generate_fields(
        store: object, problem: Darcy, sizes: list[int], *, client: Client, seed: int, **options: object
    ) -> None:
        calls.append((problem.n_modes, sizes, seed, client.scheduler.address))

    monkeypatch.setattr("mano_op.problems.generate.generate_fields", generate_fields)
    with LocalCluster(n_workers=1, processes=False, dashboard_address=":0") as cluster:
        address = cluster.scheduler_address
        assert (
            mano_op(f"generate {tmp_path}/small.toml {tmp_path}/d.zarr --scheduler {address} --seed 4") == 0
        )
    assert calls == [(16, [8, 16], 4, address)]


def test_report_has_the_librarys_errors(folder: Path) -> None:
    """Runs of one name are one model, trained at several resolutions."""
    runs = {"MANO": [load_run(folder / name) for name in ("mano", "mixed")], "fno": load_run(folder / "fno")}
    library = evaluate_transfer(runs, open_store(folder / "darcy.zarr"), [8, 16], progress=False)
    results = load_results(folder / "report" / "results.nc")
    xr.testing.assert_allclose(results["error"], library["error"])
    assert results["model"].values.tolist() == ["MANO", "MANO", "fno"]
    assert results["train_resolution"].values.tolist() == ["r8", "r8+r16", "r8"]
    training = load_run(folder / "mixed").training
    assert training["resolution"]["resolutions"] == ["r8", "r16"]
    assert (training["samples"], training["resolution"]["batch_size"]) == ({"r8": 12, "r16": 4}, [4, 2])
    with (folder / "report" / "results.csv").open() as file:
        rows = {(row["model"], row["resolution"]) for row in csv.DictReader(file)}
    assert {("MANO", "r8"), ("MANO", "r16"), ("fno", "r8"), ("fno", "r16")} <= rows
    for name in ("mano", "mixed", "fno"):
        card = (folder / name / "README.md").read_text()
        assert re.search(r"^\| MANO +\| r8 +\| r16", card, re.MULTILINE) and "Not evaluated" not in card


def test_run_becomes_a_file_for_other_programs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The functions, which `test_export` tests, get the words as values."""
    calls: list[object] = []

    def export(run: Run, path: Path, **options: object) -> dict[tuple[int, ...], float]:
        calls.append((run.arch, path.name, options))
        return {(1, 1, 8, 8): 1e-6}

    for kind in ("program", "onnx"):
        monkeypatch.setattr(f"mano_op.export.export_{kind}", export)
    assert mano_op(f"export {folder}/fno --out {tmp_path}/fno.pt2 --shape 16x16") == 0
    assert mano_op(f"export {folder}/mano --out {tmp_path}/mano.onnx --overwrite") == 0
    assert calls == [
        ("fno", "fno.pt2", {"shape": (16, 16), "overwrite": False}),
        ("mano", "mano.onnx", {"shape": None, "overwrite": True}),
    ]
    assert capsys.readouterr().out.endswith("within 1.0e-06 of the model, relative, on inputs of 1x1x8x8\n")


def test_info_describes_a_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mano_op(f"store info {folder}/darcy.zarr") == 0
    said = capsys.readouterr().out
    for part in ("complete, 18 samples: train 12, test 6", "r8 ", "r16", "permeability (input)", "dirichlet"):
        assert part in said


def test_coarsened_store_is_as_the_format_asks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = f"{tmp_path}/coarse.zarr"
    methods = "--method permeability=mean pressure=injection"
    options = f"--resolution 4 --drop-finest {methods} --quiet"
    assert mano_op(f"store coarsen {folder}/darcy.zarr {made} {options}") == 0
    fine, coarse = open_store(folder / "darcy.zarr"), open_store(made)
    assert list(coarse.grids) == ["r4"]
    np.testing.assert_array_equal(coarse.read(4, "pressure"), fine.read(16, "pressure")[:, ::4, ::4])
    capsys.readouterr()
    assert mano_op(f"store check {made} --quiet") == 0
    assert capsys.readouterr().out == f"{made}: as the format asks\n"
    (tmp_path / "coarse.zarr" / "r4" / "pressure" / "c" / "0" / "0" / "0").unlink()
    assert mano_op(f"store check {made} --quiet") == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("r4/pressure: sample 0 (and 4 more samples) has a NaN")
    assert said[-1] == f"{made}: violations: 1"


def test_files_of_other_formats_become_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    x, t = (np.arange(8) + 0.5) / 8, np.arange(3) / 10
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["tensor"], file["x-coordinate"], file["t-coordinate"] = values, x, t
    grid = "--domain x=0:1 --boundary x=periodic --quiet"
    split = f"--train {tmp_path}/a.hdf5"
    assert mano_op(f"store import pdebench {tmp_path}/p.zarr {split} {grid} --variables wave") == 0
    np.testing.assert_array_equal(open_store(tmp_path / "p.zarr").read(8, "wave"), values)

    data = xr.Dataset({"wave": (("run", "t", "x"), values)}, {"x": x, "t": t})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    names = "--sample run --time t --outputs wave --samples train=3 test=1 --registration cell"
    command = f"store import netcdf {tmp_path}/n.zarr --files 8={tmp_path}/a.nc"
    assert mano_op(f"{command} {names} {grid}") == 0
    assert open_store(tmp_path / "n.zarr").splits == {"train": 3, "test": 1}
    np.testing.assert_array_equal(open_store(tmp_path / "n.zarr").read(8, "wave"), values)

    scipy.io.savemat(tmp_path / "b.mat", {"a": values[:, 0], "u": values[:, 1]})
    command = f"store import fno-mat {tmp_path}/m.zarr --kind burgers --train {tmp_path}/b.mat --quiet"
    assert mano_op(command) == 0
    np.testing.assert_array_equal(open_store(tmp_path / "m.zarr").read(8, "velocity"), values[:, 1])

    fields = {"x": torch.ones(3, 4, 4), "y": torch.ones(3, 4, 4)}
    torch.save(fields, tmp_path / "c.pt")
    assert mano_op(f"store import neuralop {tmp_path}/d.zarr --test 4={tmp_path}/c.pt --quiet") == 0
    assert open_store(tmp_path / "d.zarr").splits == {"test": 3}
    capsys.readouterr()
    well = f"store import the-well {tmp_path}/w.zarr {split} --registration cell --domain x=0:1"
    assert mano_op(well) == 2
    assert "has no attribute 'n_trajectories'" in capsys.readouterr().err


def test_axes_may_have_registrations_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Walls with points on both of them, and cells between: the first axis of a file and the second."""
    y, x = Axis("y", 5, registration="node_both"), Axis("x", 4, 0.0, 2.0, "cell", periodic=True)
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    fields = (("sample", "y", "x"), values)
    data = xr.Dataset({"a": fields, "u": fields}, {"y": y.points, "x": x.points})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    command = (
        f"store import netcdf {tmp_path}/a.zarr --files 5x4={tmp_path}/a.nc --inputs a --outputs u --quiet"
    )
    command += " --samples train=3 --domain y=0:1 x=0:2 --boundary y=wall x=periodic --registration"
    assert mano_op(f"{command} x=cell y=node_both") == 0
    assert open_store(tmp_path / "a.zarr").grids == {"r5x4": Grid((y, x))}
    for given, message in (
        ("y=node_both", "expected one word, or one for each of y, x: node, node_both or cell"),
        ("cell", "--registration node_both would fit"),
        ("x=cell y=nodes", "--registration nodes"),
    ):
        assert mano_op(f"{command} {given} --overwrite") == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate darcy x.zarr --resolution abc", "'abc': expected a size, 16, or one"),
        ("train fields x.zarr run --resolution 8 --option foo", "'foo': expected NAME=VALUE"),
        ("train fields x.zarr run --resolution 8 --epochs many", "'many': expected a whole number"),
        ("train fields x.zarr run --resolution 8 --epohs 2", "Did you mean --epochs?"),
        ("train fields x.zarr", "RUN requires an argument; see `mano-op train fields --help`"),
        ("trian fields x.zarr run", 'Unknown command "trian". Did you mean "train"?'),
        ("store import neuralop x.zarr --train foo", "'foo': expected N=FILE, 16=darcy_test_16.pt"),
        ("store import pdebench x.zarr --domain x=0-1", "'x=0-1': expected AXIS=START:STOP"),
        ("store import netcdf x.zarr --files a.nc", "'a.nc': expected RESOLUTION=FILE"),
        ("store import netcdf x --files 8=a.nc --outputs u --samples a", "'a': expected SPLIT=SAMPLES"),
        ("evaluate fields x.zarr =x --out y", "'=x': expected FOLDER or NAME=FOLDER"),
        ("train fields {store} {new} --resolution 32", "no resolution 32; it has r8 (8 x 8)"),
        ("train fields {store} {new} --resolution 8 --epochs 0", "--epochs 0, expected a whole number"),
        ("train fields {store} {new} --resolution 8 --patience 3", "--patience 3, but nothing to validate"),
        ("train fields {store} {new} --resolution 8 8", "--resolution 8 8, expected at least one resolution"),
        (
            "train fields {store} {new} --resolution 8 --ratios 1 2",
            "--ratios 1.0 2.0 with --resolution 8, ex",
        ),
        (
            "train fields {store} {new} --resolution 8 --arch fno",
            "--option n_modes=[8,8] hidden_channels=32,",
        ),
        ("train fields {store} {new} --resolution 8 --validate 0.01", "--validate 0.01 of 12 samples is 0"),
        ("train fields {store} {new} --resolution 8 --noise 1", "known times, --time-steps STEPS_IN STEP"),
        ("train fields {store} {mano} --resolution 8 --resume", "a finished run of another training"),
        ("train fields {store} {mano} --resolution 8 --resume --overwrite", "--resume and --overwrite"),
        ("evaluate fields {store} {folder}/fno {store} --out {new}", "holds no run.json"),
        ("evaluate fields x.zarr {new} --out {folder}/report", "results.nc already: give another folder, or"),
        (
            "evaluate images digits {mano} --out {mano}/run.json",
            "there already: give another path, or --over",
        ),
        ("evaluate fields {store} {mano} --out {new} --resolution 8 12", "no resolution 12"),
        ("generate darci {new} --resolution 8", "neither a problem"),
        ("generate darcy {new}", "generate darcy: give the --resolution"),
        ("generate darcy {new} --resolution 8 --samples train=0 test=0", "samples: splits={}"),
        ("generate darcy {store} --resolution 8", "--resume to go on with it, --overwrite"),
        ("store coarsen {store} {new} --resolution 4 --method mean injection", "expected one method"),
        ("store coarsen {store} {new} --resolution 4 --method a=mean a=mean", "a=mean a=mean: expected"),
        ("store info {mano}", "no zarr store of format 3"),
        ("store import neuralop {new} --train 16={folder}/absent.pt", "absent.pt does not exist"),
        ("demo {folder}", "is not empty"),
        ("export {folder} --out {new}/a.onnx", "holds no run.json"),
        ("export {mano} --out {new}/a.txt", "a.txt, expected a name that ends in .onnx"),
        ("export {mano} --out {new}/a.pt2 --shape 8x8", "--shape 8x8, but the file of a MANO is for all"),
    ],
)
def test_input_that_cannot_be_used_is_refused_in_one_line(
    command: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    words = command.format(store=folder / "darcy.zarr", folder=folder, mano=folder / "mano", new=new)
    assert mano_op(words) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.startswith("mano-op: ")
    assert "\n" not in said
    assert not new.exists()


def test_help_and_mistakes_wait_for_no_torch(tmp_path: Path) -> None:
    """Nor for xarray and pydantic: they are answered within half a second of processor time."""
    (tmp_path / "run.yaml").write_text("epohs: 3")
    code = f"""
import sys
from mano_op.cli import main
wrong = ["train fields a b --resolution 8 --epohs 1", "train fields a b --resolution 8 --epochs x", "generat"]
wrong += ["train fields a b --config {tmp_path}/run.yaml", "store import netcdf"]
assert {{main(words.split()) for words in wrong}} == {{2}}
right = ["", "--version", "--help", "train --help", "train fields --help", "train images --help"]
right += ["store import netcdf --help", "evaluate fields --help", "generate --help", "demo -h"]
assert {{main(words.split()) for words in right}} == {{0}}
print([name for name in ("torch", "neuralop", "xarray", "matplotlib", "pydantic") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
    assert f"mano_op {version('mano_op')}" in done.stdout
    assert f'Unknown option: "[epohs]" from {tmp_path}/run.yaml. Did you mean --epochs?' in done.stderr


@pytest.mark.parametrize(("kind", "options"), [("fields", FieldOptions), ("images", ImageOptions)])
def test_every_option_of_a_training_is_a_flag(
    kind: str, options: type, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mano_op(f"train {kind} --help") == 0
    said = capsys.readouterr().out
    names = {field.name for field in fields(options)} - {"progress", "augmentation"}
    assert {name for name in names if f"--{name.replace('_', '-')} " not in said} == set()
    for group in ("Model", "Data", "Training", "Validation", "Logging and resuming"):
        assert f"─ {group} ─" in said
    completed = app.generate_completion(shell="bash")
    assert "--validate" in completed and f"--{'noise' if kind == 'fields' else 'mixup'}" in completed


def test_file_of_options_equals_the_flags(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """YAML with their names, or the run.json of a run. The function with the same options trains the same."""
    store = f"{folder}/darcy.zarr"
    (tmp_path / "run.yaml").write_text(
        "resolution: [8, 16]\nratios: [0.75, 0.25]\nbatch_size: [6, 4]\nepochs: 9\nvalidate: 0.25\n"
        "validate_resolution: [[16, 16]]\nsymmetries: [transpose, reflect]\noptimizer: muon\nclip: 0.7\n"
        "transforms: {permeability: log}\nlearning_rate: 0.02\npatience: null\nquiet: true\n"
        "option: {hidden_channels: 8, n_layers: 1, n_heads: 2}\n"
    )
    command = f"train fields {store} {tmp_path}/run --config {tmp_path}/run.yaml --epochs 2"
    assert mano_op(command) == 0
    function = train_model(
        store,
        tmp_path / "function",
        resolution=Mixed([8, 16], ratios=[0.75, 0.25], batch_size=[6, 4]),
        epochs=2,
        validate=0.25,
        validate_resolution=16,
        symmetries=["transpose", "reflect"],
        optimizer="muon",
        clip=0.7,
        transforms={"permeability": "log"},
        learning_rate=0.02,
        options={"hidden_channels": 8, "n_layers": 1, "n_heads": 2},
        progress=False,
    )
    assert mano_op(f"train fields {store} {tmp_path}/again --config {tmp_path}/run/run.json --quiet") == 0
    for name in ("run", "again"):
        run = load_run(tmp_path / name)
        assert run.training | {"machine": 0} == function.training | {"machine": 0}
        assert run.options == function.options
        for command_line, library in zip(run.model.parameters(), function.model.parameters(), strict=True):
            torch.testing.assert_close(command_line, library, rtol=0, atol=0)
    (tmp_path / "run.yaml").write_text("- epochs\n")
    capsys.readouterr()
    assert mano_op(command) == 2
    assert "holds ['epochs'], expected names of options" in capsys.readouterr().err


def stopping(function: Callable[..., Any], after: int) -> Callable[..., Any]:
    """The function, interrupted when it has been called so many times."""
    calls = itertools.count()

    def call(*args: Any) -> Any:
        if next(calls) == after:
            raise KeyboardInterrupt
        return function(*args)

    return call


def test_interrupted_training_is_continued(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """To begin it again is refused, to continue it is not."""
    options = f"{SMALL_MANO} --resolution 8 --epochs 3 --validate test --checkpoint-every 2 --quiet"
    command = f"train fields {folder}/darcy.zarr {tmp_path}/run {options}"
    with monkeypatch.context() as patch:
        patch.setattr(FieldTask, "validate", stopping(FieldTask.validate, after=2))
        assert mano_op(command) == 130
    said = "The last checkpoint is kept, if there is one: go on with --resume and the same options.\n"
    assert capsys.readouterr().err == f"mano-op: interrupted. {said}"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
    assert mano_op(command) == 2
    said = capsys.readouterr().err
    assert "begun and not finished: pass --resume to go on with it, --overwrite to start anew" in said
    assert mano_op(f"{command} --seed 1 --resume") == 2
    assert "checkpoint.pt is of another training: seed is 0 there, not 1" in capsys.readouterr().err
    for _ in range(2):  # the second time it is finished, and says so in the same words
        assert mano_op(f"{command} --resume") == 0
        run = load_run(tmp_path / "run")
        best = run.training["best"]
        assert capsys.readouterr().out == (
            f"{tmp_path}/run: mano, {run.n_parameters:,} parameters, "
            f"training error {run.history[best['epoch'] - 1]['training_error']:.4f}, "
            f"validation error {best['validation_error']:.4f} of epoch {best['epoch']}\n"
        )


def test_interrupt_says_how_to_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"generate darcy {tmp_path}/d.zarr --resolution 4 --samples train=60 test=60 --quiet"
    with monkeypatch.context() as patch, config.set(num_workers=1):
        patch.setattr(generate, "_write_chunk", stopping(generate._write_chunk, after=1))
        assert mano_op(command) == 130
    said = capsys.readouterr().err
    assert said == "mano-op: interrupted. What is solved is kept: go on with --resume and the same options.\n"
    assert mano_op(f"store info {tmp_path}/d.zarr") == 0
    assert re.search(r"partial: (50|70) of 120 samples missing", capsys.readouterr().out)
    assert mano_op(f"{command} --resume") == 0
    assert open_store(tmp_path / "d.zarr").splits == {"train": 60, "test": 60}


def test_reader_that_goes_away_is_no_error(folder: Path) -> None:
    """``mano-op store info STORE | head -1``, with the pipe closed before anything is printed."""
    command = [sys.executable, "-m", "mano_op.cli", "store", "info", str(folder / "darcy.zarr")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_full_disk_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/big/disk")

    monkeypatch.setattr("mano_op.problems.generate.generate_fields", full)
    assert mano_op(f"generate darcy {tmp_path}/d.zarr --resolution 8") == 2
    said = capsys.readouterr().err
    assert said.startswith("mano-op: /big/disk: No space left on device")
    assert said.count("\n") == 1
