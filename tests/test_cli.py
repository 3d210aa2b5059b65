"""The command line, as a user meets it: what it makes, what it prints, what it refuses."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
import scipy.io
import torch
import xarray as xr
from dask import config
from helpers import files

from mano_op.cli import main
from mano_op.data.layout import Variable
from mano_op.data.store import create_store, open_store
from mano_op.grid import Axis, Grid
from mano_op.problems.darcy import Darcy
from mano_op.runs import load_run
from mano_op.train import train_model
from mano_op.transfer import load_results

SMALL_MANO = ["--option", "hidden_channels=8", "--option", "n_layers=1", "--option", "n_heads=2"]
SMALL_FNO = ["--model", "fno", "--option", "n_modes=[4,4]", "--option", "hidden_channels=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, two runs and a report, made with the commands."""
    folder = tmp_path_factory.mktemp("cli")
    store = str(folder / "darcy.zarr")
    generate = ["--resolutions", "8", "16", "--train", "12", "--test", "6", "--seed", "3", "--quiet"]
    assert main(["generate", "darcy", store, *generate]) == 0
    training = ["--resolution", "8", "--epochs", "2", "--batch-size", "4", "--quiet"]
    assert main(["train", store, str(folder / "mano"), *SMALL_MANO, *training]) == 0
    assert main(["train", store, str(folder / "fno"), *SMALL_FNO, *training]) == 0
    runs = [str(folder / "mano"), str(folder / "fno")]
    assert main(["transfer", store, *runs, "--out", str(folder / "report"), "--quiet"]) == 0
    return folder


def test_generated_fields_are_the_librarys(folder: Path, tmp_path: Path) -> None:
    from mano_op import generate_darcy

    samples = {"train": 12, "test": 6}
    library = generate_darcy(tmp_path / "same.zarr", [8, 16], samples=samples, seed=3, progress=False)
    command = open_store(folder / "darcy.zarr")
    for key in ("r8", "r16"):
        for name in ("permeability", "pressure"):
            np.testing.assert_array_equal(command.read(key, name), library.read(key, name))


def test_processes_of_a_cluster_make_the_same_store(
    tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.toml").write_text(
        'problem = "darcy"\nresolutions = [8, 16]\nseed = 3\n[samples]\ntrain = 9\ntest = 4\n'
        '[options]\ncoefficient = "lognormal"\nn_modes = 16\n'
    )
    recipe, options = str(tmp_path / "small.toml"), ["--chunk", "2", "--quiet"]
    assert main(["generate", recipe, str(tmp_path / "here.zarr"), *options]) == 0

    def here(*given: object) -> None:
        raise AssertionError("solved in the process of the command")

    monkeypatch.setattr(Darcy, "sample", here)  # which the workers, having loaded it themselves, do not see
    there = str(tmp_path / "there.zarr")
    assert main(["generate", recipe, there, *options, "--scheduler", scheduler]) == 0
    assert files(tmp_path / "there.zarr") == files(tmp_path / "here.zarr")


def test_a_chunk_has_as_many_samples_as_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str(tmp_path / "made.zarr")
    command = ["generate", "darcy", made, "--resolutions", "8", "16", "--train", "12", "--test", "6"]
    assert main([*command, "--seed", "3", "--chunk", "5", "--quiet"]) == 0
    store, other = open_store(made), open_store(folder / "darcy.zarr")
    assert (store.layout.chunk, other.layout.chunk) == (5, 18)  # the latter at most all samples
    assert len(list((tmp_path / "made.zarr" / "r8" / "pressure" / "c").iterdir())) == 4
    for name in ("permeability", "pressure"):
        np.testing.assert_array_equal(store.read(16, name), other.read(16, name))
    assert main([*command, "--seed", "3", "--resume", "--quiet"]) == 2
    assert "chunk is 5, not 18" in capsys.readouterr().err


def test_the_table_goes_into_the_model_cards(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(shutil.copytree(folder / name, tmp_path / name)) for name in ("mano", "fno")]
    command = ["transfer", str(folder / "darcy.zarr"), *runs, "--out", str(tmp_path / "out"), "--quiet"]
    assert main(command) == 0
    assert all("Not judged" in (Path(run) / "README.md").read_text() for run in runs)
    assert main([*command, "--overwrite", "--cards"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("| mano  | r8         | r16"))
    for run in runs:
        card = (Path(run) / "README.md").read_text()
        assert row in card
        assert "Not judged" not in card
        assert f"# {Path(run).name}: permeability to pressure" in card
        assert load_run(run).n_parameters > 0  # it is read as before


def test_options_reach_the_model(folder: Path) -> None:
    mano, fno = (load_run(folder / name) for name in ("mano", "fno"))
    assert (mano.arch, mano.options["hidden_channels"], mano.options["n_heads"]) == ("mano", 8, 2)
    assert (fno.arch, fno.options["n_modes"]) == ("fno", [4, 4])
    assert len(mano.history) == 2


def test_the_numbers_beside_the_pictures_are_the_errors(folder: Path) -> None:
    """The CSV's direct errors against a prediction made here."""
    from mano_op.data.dataset import FieldDataset

    with (folder / "report" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    run = load_run(folder / "mano")
    data = FieldDataset(folder / "darcy.zarr", 16, "test")
    for i, sample in enumerate(data):
        x = run.processor.preprocess({"x": sample["x"][None], "y": sample["y"][None]})
        predicted, _ = run.processor.postprocess(run.model(x["x"]), x)
        expected = (predicted[0] - sample["y"]).norm() / sample["y"].norm()
        [row] = [
            row
            for row in rows
            if (row["model"], row["resolution"], row["predictor"], row["metric"])
            == ("mano", "r16", "direct", "relative_l2_points")
            and int(row["sample"]) == 12 + i  # after the training samples
        ]
        assert float(row["error"]) == pytest.approx(expected.item(), rel=1e-4)
    assert json.loads((folder / "report" / "results.json").read_text())
    assert (folder / "report" / "report.html").stat().st_size > 10_000


def test_a_run_becomes_a_file_for_other_programs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From permeability to pressure, both in units: MANO at any size from 8 on, FNO at the one asked for."""

    def predicted(name: str, x: torch.Tensor) -> torch.Tensor:
        run = load_run(folder / name)
        with torch.no_grad():
            out = run.model(run.processor.preprocess({"x": x})["x"])
        return run.processor.postprocess(out, {})[0]

    onnx, pt2 = tmp_path / "mano.onnx", tmp_path / "fno.pt2"
    assert main(["export", str(folder / "mano"), "--out", str(onnx)]) == 0
    assert capsys.readouterr().out.startswith(f"{onnx}: within ")
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    for level in (8, 16):
        x = torch.as_tensor(open_store(folder / "darcy.zarr").read(level, "permeability"))[:3, None]
        expected = predicted("mano", x)
        (found,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    command = ["export", str(folder / "fno"), "--out", str(pt2), "--shape", "16x16"]
    assert main(command) == 0
    assert torch.equal(torch.export.load(pt2).module()(x[:1]), predicted("fno", x[:1]))
    capsys.readouterr()
    assert main(command) == 2
    assert "give another path, or --overwrite to replace it" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0


def test_info_describes_the_store(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(folder / "darcy.zarr")]) == 0
    said = capsys.readouterr().out
    for part in ("complete, 18 samples: train 12, test 6", "r8 ", "r16", "permeability (input)", "dirichlet"):
        assert part in said


def test_info_of_a_partial_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_store(
        tmp_path / "part.zarr",
        [Grid.uniform((4, 4))],
        [Variable("a", "input"), Variable("u", "output")],
        {"train": 5},
        title="Part",
        provenance={},
        levels="unknown",
        boundary_conditions={"x": "open", "y": "open"},
        chunk=2,
    )
    assert main(["info", str(tmp_path / "part.zarr")]) == 0
    assert "partial: 5 of 5 samples missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train {store} {new} --resolution 32", "no resolution 32; it has r8 (8 x 8), r16 (16 x 16)"),
        ("train {store} {new} --resolution 8 --model mono", "there is no model 'mono'"),
        ("train {store} {new} --resolution 8 --option hiden=8", "mano has no option hiden"),
        ("train {store} {mano} --resolution 8", "holds a run already"),
        ("train {folder}/nothing.zarr {new} --resolution 8", "nothing.zarr does not exist"),
        ("transfer {store} {folder}/fno {folder}/darcy.zarr --out {new}", "holds no run.json"),
        ("transfer {store} {mano} --out {folder}/report", "report.html, results.csv"),
        ("transfer {store} {mano} --out {new} --resolutions 8 12", "no resolution 12"),
        ("transfer {store} {mano} --out {new} --split validation", "no split 'validation'"),
        ("transfer {store} {mano} --out {folder}/fno/run.json", "cannot be a folder for results"),
        ("generate darcy {store} --resolutions 8", "exists"),
        ("generate darcy {new} --resolutions 8 --train 0 --test 0", "no splits"),
        ("generate darci {new} --resolutions 8", "neither a problem"),
        ("generate darcy {new}", "generate darcy: give the --resolutions"),
        (
            "generate darcy {new} --resolutions 8 --option coefficient=smooth",
            "coefficient='smooth', expected 'piecewise' or 'lognormal'",
        ),
        ("coarsen {store} {new} --resolutions 4 --method stride", "method 'stride' for permeability"),
        (
            "coarsen {store} {new} --resolutions 4 --method mean injection",
            "expected one method, or VARIABLE=METHOD",
        ),
        ("coarsen {store} {new} --resolutions 32 --method mean", "r32 is not coarser than r16"),
        ("generate darcy {new} --resolutions 8 --chunk 0", "chunk=0, expected a whole number, at least 1"),
        ("generate darcy {new} --resolutions 8 --seed -1", "seed=-1, expected a whole number, at least 0"),
        (
            "coarsen {store} {new} --resolutions 4 --method pressure=mean pressure=injection",
            "pressure=mean pressure=injection: expected one method, or VARIABLE=METHOD",
        ),
        (
            "import netcdf {new} --files 8=a.nc --outputs u --splits train=2 --registration cell y=node",
            "cell y=node: expected one registration, or AXIS=REGISTRATION for every axis",
        ),
        ("generate darcy {new} --resolutions 8 --train -3", "split 'train' has -3 samples"),
        ("generate darcy {store} --resolutions 8 --resume --overwrite", "--resume and --overwrite: pass one"),
        ("info {folder}/mano", "is no zarr store"),
        ("import neuralop {new} --train 16={folder}/absent.pt", "absent.pt does not exist"),
        ("demo {folder}", "is not empty"),
        ("demo {folder}/fno/run.json", "cannot be a folder for results"),
        ("train {store} {folder}/fno/run.json --resolution 8 --epochs 1", "cannot be a folder for results"),
        ("train {store} {new} --resolution 8 --device nowhere", "device='nowhere'"),
        ("train {store} {new} --resolution 8 --resume --overwrite", "--resume and --overwrite: pass one"),
        (
            "train {store} {new} --resolution 8 --validate valid",
            "r8 has no split 'valid'; it has train, test",
        ),
        ("train {store} {new} --resolution 8 --patience 3", "patience=3 without validate"),
        ("train {store} {mano} --resolution 8 --resume", "a finished run of another training"),
        ("export {folder} --out {new}/a.onnx", "holds no run.json"),
        ("export {mano} --out {new}/a.txt", "a.txt, expected a name that ends in .onnx or .pt2"),
        ("export {mano} --out {new}/a.pt2 --shape 8x8", "all sizes from its reference on: leave it out"),
        ("export {folder}/fno --out {new}/a.pt2", "for one grid only, and there is no shape: give that"),
        ("export {folder}/fno --out {new}/a.onnx --shape 8x8", "FNO has complex parameters, for which ONNX"),
        ("generate darcy {folder}/fno/run.json/x.zarr --resolutions 8 --train 2", "give a path in a folder"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(
    command: str, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = tmp_path / "new"
    words = command.format(store=folder / "darcy.zarr", folder=folder, mano=folder / "mano", new=new)
    assert main(words.split()) == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.startswith("mano-op: ")
    assert "\n" not in said
    assert not new.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("generate darcy x.zarr --resolutions abc", "'abc': expected a size, 16, or one an axis, 16x24"),
        ("train x.zarr run --resolution 8 --option foo", "'foo': expected NAME=VALUE"),
        ("import neuralop x.zarr --train foo", "'foo': expected RESOLUTION=FILE"),
        ("import neuralop x.zarr --train a=b.pt", "expected a whole number before ="),
        ("import pdebench x.zarr --domain x=0-1", "'x=0-1': expected AXIS=START:STOP"),
        ("import netcdf x.zarr --splits train", "'train': expected SPLIT=SAMPLES"),
        (
            "import netcdf x.zarr --registration y=nodes",
            "'y=nodes': expected node, node_both, cell, or one of them for an axis, y=cell",
        ),
        ("import netcdf x.zarr --registration =cell", "'=cell': expected node, node_both, cell, or"),
        ("import netcdf x.zarr --files a.nc", "'a.nc': expected RESOLUTION=FILE"),
    ],
)
def test_words_that_make_no_sense(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_the_library_calls_overwrite_is_a_flag_here(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = folder / "darcy.zarr"
    assert main(["generate", "darcy", str(store), "--resolutions", "8"]) == 2
    said = capsys.readouterr().err
    assert "--resume" in said and "--overwrite" in said
    assert "=True" not in said


def test_a_split_of_no_samples_is_left_out(tmp_path: Path) -> None:
    command = f"generate darcy {tmp_path}/d.zarr --resolutions 4x8 --train 0 --test 3 --quiet"
    assert main(command.split()) == 0
    store = open_store(tmp_path / "d.zarr")
    assert store.splits == {"test": 3}
    assert store.read("r4x8", "pressure").shape == (3, 4, 8)


def test_a_coarsened_store_is_as_the_format_asks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = str(tmp_path / "coarse.zarr")
    command = ["coarsen", str(folder / "darcy.zarr"), made, "--resolutions", "4", "--drop-finest", "--quiet"]
    assert main([*command, "--method", "permeability=mean", "pressure=injection"]) == 0
    fine, coarse = open_store(folder / "darcy.zarr"), open_store(made)
    assert list(coarse.grids) == ["r4"]
    np.testing.assert_array_equal(coarse.read(4, "pressure"), fine.read(16, "pressure")[:, ::4, ::4])
    capsys.readouterr()
    assert main(["check", made, "--quiet"]) == 0
    assert capsys.readouterr().out == f"{made}: as the format asks\n"
    (tmp_path / "coarse.zarr" / "r4" / "pressure" / "c" / "0" / "0" / "0").unlink()
    assert main(["check", made, "--quiet"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("r4/pressure: sample 0 (and 17 more samples) has a NaN")
    assert said[-1] == f"{made}: 1 violations"


def test_files_of_other_formats_become_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.random.default_rng(0).normal(size=(4, 3, 8)).astype(np.float32)
    x, t = (np.arange(8) + 0.5) / 8, np.arange(3) / 10
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["tensor"], file["x-coordinate"], file["t-coordinate"] = values, x, t
    command = ["import", "pdebench", str(tmp_path / "a.zarr"), "--train", str(tmp_path / "a.hdf5"), "--quiet"]
    grid = ["--domain", "x=0:1", "--boundary", "x=periodic"]
    assert main([*command, *grid, "--variables", "wave"]) == 0
    np.testing.assert_array_equal(open_store(tmp_path / "a.zarr").read(8, "wave"), values)

    data = xr.Dataset({"wave": (("run", "t", "x"), values)}, {"x": x, "t": t})
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    command = ["import", "netcdf", str(tmp_path / "n.zarr"), "--files", f"8={tmp_path / 'a.nc'}", "--quiet"]
    names = ["--sample", "run", "--time", "t", "--outputs", "wave", "--splits", "train=3", "test=1"]
    assert main([*command, *names, *grid, "--registration", "cell"]) == 0
    assert open_store(tmp_path / "n.zarr").splits == {"train": 3, "test": 1}
    np.testing.assert_array_equal(open_store(tmp_path / "n.zarr").read(8, "wave"), values)

    scipy.io.savemat(tmp_path / "b.mat", {"a": values[:, 0], "u": values[:, 1]})
    command = ["import", "fno-mat", str(tmp_path / "m.zarr"), "--kind", "burgers", "--quiet"]
    assert main([*command, "--train", str(tmp_path / "b.mat")]) == 0
    np.testing.assert_array_equal(open_store(tmp_path / "m.zarr").read(8, "velocity"), values[:, 1])
    capsys.readouterr()
    well = ["import", "the-well", str(tmp_path / "w.zarr"), "--train", str(tmp_path / "a.hdf5")]
    assert main([*well, "--registration", "cell", "--domain", "x=0:1"]) == 2
    assert "has no attribute 'n_trajectories'" in capsys.readouterr().err


def test_an_axis_may_have_a_registration_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Walls with points on both of them, and cells between: the first axis of a file and the second."""
    y, x = Axis("y", 5, registration="node_both"), Axis("x", 4, 0.0, 2.0, "cell", periodic=True)
    values = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    data = xr.Dataset({"a": (("sample", "y", "x"), values)}, {"y": y.points, "x": x.points})
    data["u"] = 2 * data["a"]
    data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    command = ["import", "netcdf", str(tmp_path / "a.zarr"), "--files", f"5x4={tmp_path / 'a.nc'}", "--quiet"]
    command += ["--inputs", "a", "--outputs", "u", "--splits", "train=3", "--domain", "y=0:1", "x=0:2"]
    command += ["--boundary", "y=wall", "x=periodic", "--registration"]
    assert main([*command, "x=cell", "y=node_both"]) == 0
    store = open_store(tmp_path / "a.zarr")
    assert store.grids == {"r5x4": Grid((y, x))}
    np.testing.assert_array_equal(store.read((5, 4), "u"), 2 * values)
    for given, message in (
        ("y=node_both", "expected one word, or one for each of y, x: node, node_both or cell"),
        ("cell", "registration='node_both' would fit"),
    ):
        assert main([*command, given, "--overwrite"]) == 2
        assert message in capsys.readouterr().err
    assert open_store(tmp_path / "a.zarr").grids == store.grids


def test_levels_go_by_their_names_too(folder: Path, tmp_path: Path) -> None:
    command = ["transfer", str(folder / "darcy.zarr"), str(folder / "fno"), "--out", str(tmp_path / "named")]
    assert main([*command, "--resolutions", "r16", "--split", "train", "--quiet"]) == 0
    with (tmp_path / "named" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["resolution"] for row in rows} == {"r16"}
    assert {int(row["sample"]) for row in rows} == set(range(12))


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.split() == ["mano_op", version("mano_op")]


def test_an_interrupt_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the second chunk of samples, then resumed: the store is what an unbroken run makes."""
    from mano_op.problems import generate

    write = generate._write_chunk
    calls = []

    def stopped(*args: object) -> int:
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return write(*args)  # type: ignore[arg-type]

    command = f"generate darcy {tmp_path}/d.zarr --resolutions 4 --train 60 --test 60 --quiet"
    with monkeypatch.context() as patch, config.set(num_workers=1):
        patch.setattr(generate, "_write_chunk", stopped)
        assert main(command.split()) == 130
    said = capsys.readouterr().err
    assert said == "mano-op: interrupted. What is solved is kept: go on with --resume and the same options.\n"
    assert main([*command.split(), "--resume"]) == 0
    assert main(command.replace("d.zarr", "unbroken.zarr").split()) == 0
    broken, unbroken = (open_store(tmp_path / name) for name in ("d.zarr", "unbroken.zarr"))
    np.testing.assert_array_equal(broken.read(4, "pressure"), unbroken.read(4, "pressure"))


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    """``mano-op info STORE | head -1``, with the pipe closed before anything is printed."""
    command = [sys.executable, "-m", "mano_op.cli", "info", str(folder / "darcy.zarr")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_said_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/big/disk")

    monkeypatch.setattr("mano_op.problems.generate.generate_fields", full)
    assert main(["generate", "darcy", str(tmp_path / "d.zarr"), "--resolutions", "8"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("mano-op: /big/disk: No space left on device")
    assert said.count("\n") == 1


def test_a_run_trained_on_other_fields_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's variables are not those that the model knows."""
    shutil.copytree(folder / "mano", tmp_path / "mano")
    path = tmp_path / "mano" / "run.json"
    description = json.loads(path.read_text())
    del description["sha256"]  # changed on purpose
    described = json.dumps(description).replace("permeability", "temperature")
    path.write_text(described)
    command = ["transfer", str(folder / "darcy.zarr"), str(tmp_path / "mano"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "temperature" in capsys.readouterr().err


def test_the_labelled_results_open_in_xarray(folder: Path) -> None:
    [path] = [p for p in (folder / "report").iterdir() if p.suffix in (".nc", ".zarr")]
    with xr.open_dataset(path) as results:
        assert set(results["model"].values) == {"mano", "fno"}
        assert results["error"].sel(predictor="mean").notnull().any()


def test_trains_with_the_options_of_the_function(folder: Path, tmp_path: Path) -> None:
    store = str(folder / "darcy.zarr")
    chosen = ["--optimizer", "muon", "--symmetries", "transpose", "reflect", "--learning-rate", "0.02"]
    small = ["--resolution", "8", *SMALL_MANO, "--epochs", "2", "--batch-size", "6", "--quiet"]
    assert main(["train", store, str(tmp_path / "run"), *chosen, *small]) == 0
    made = load_run(tmp_path / "run")
    assert (made.training["optimizer"], made.training["symmetries"]) == ("muon", ["transpose", "reflect"])
    same = train_model(
        store,
        tmp_path / "same",
        resolution=8,
        options={"hidden_channels": 8, "n_layers": 1, "n_heads": 2},
        epochs=2,
        batch_size=6,
        optimizer="muon",
        symmetries=["transpose", "reflect"],
        learning_rate=0.02,
        progress=False,
    )
    for one, other in zip(same.model.parameters(), made.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_training_that_is_interrupted_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all that bears on it; told to begin again it does not, told to go on it comes to the same."""
    from mano_op.train import fit

    store = str(folder / "darcy.zarr")
    options = "--resolution 8 16 --epochs 4 --batch-size 6 4 --validate 0.25 --validate-resolution 16"
    options += " --patience 4 --clip 0.7 --accumulate 2 --precision bfloat16 --checkpoint-every 2 --quiet"
    command = ["train", store, str(tmp_path / "run"), *SMALL_MANO, *options.split()]
    error, calls = fit.validation_error, []

    def stopped(*args: object) -> float:
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return error(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(fit, "validation_error", stopped)
        assert main(command) == 130
    said = "The last checkpoint is kept, if there is one: go on with --resume and the same options.\n"
    assert capsys.readouterr().err == f"mano-op: interrupted. {said}"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint.pt"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "begun and not finished: pass --resume to go on with it, --overwrite to start anew" in said
    assert main([*command, "--seed", "1", "--resume"]) == 2
    assert "checkpoint.pt is of another training: seed is 0 there, not 1" in capsys.readouterr().err
    for _ in range(2):  # the second time it is finished, and says so in the same words
        assert main([*command, "--resume"]) == 0
        said = capsys.readouterr().out
        run = load_run(tmp_path / "run")
        best = run.training["best"]
        assert said.endswith(f"validation error {best['validation_error']:.4f} of epoch {best['epoch']}\n")
        assert f"training error {run.history[best['epoch'] - 1]['training_error']:.4f}" in said
    whole = train_model(
        store,
        tmp_path / "whole",
        resolution=[8, 16],
        options={"hidden_channels": 8, "n_layers": 1, "n_heads": 2},
        epochs=4,
        batch_size=[6, 4],
        validate=0.25,
        validate_resolution=[16],
        patience=4,
        clip=0.7,
        accumulate=2,
        precision="bfloat16",
        progress=False,
    )
    assert {**run.training, "machine": 0} == {**whole.training, "machine": 0}
    for one, other in zip(run.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_runs_of_one_name_are_one_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(folder / "darcy.zarr")
    small = [*SMALL_MANO, "--epochs", "1", "--quiet"]
    mixed = ["--resolution", "8", "16", "--ratios", "0.75", "0.25", "--batch-size", "4", "2"]
    assert main(["train", store, str(tmp_path / "mixed"), *mixed, *small]) == 0
    run = load_run(tmp_path / "mixed")
    assert (run.resolutions, run.training["samples"]) == (("r8", "r16"), {"r8": 12, "r16": 4})
    assert main(["train", store, str(tmp_path / "other"), "--resolution", "8", "--seed", "5", *small]) == 0
    runs = [f"MANO={folder / 'mano'}", f"MANO={tmp_path / 'mixed'}", f"MANO={tmp_path / 'other'}"]
    command = ["transfer", store, *runs, str(folder / "fno"), "--out", str(tmp_path / "report"), "--quiet"]
    assert main(command) == 0
    results = load_results(tmp_path / "report" / "results.nc")
    expected = [("MANO", "r8", 0), ("MANO", "r8", 5), ("MANO", "r8+r16", 0), ("fno", "r8", 0)]
    assert results["run"].values.tolist() == expected
    page = (tmp_path / "report" / "report.html").read_text()
    assert "MANO (r8+r16), seed 0" in page and "<svg" not in page
    same = ["transfer", store, *runs[:1], *runs[:1], "--out", str(tmp_path / "again"), "--quiet"]
    assert main(same) == 2
    assert "judge them under different names" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["transfer", store, "=x", "--out", str(tmp_path / "again")])
    assert "expected FOLDER or NAME=FOLDER" in capsys.readouterr().err
