"""neuraloperator's Darcy files: the real ones where they are, small ones in their layout otherwise."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from mano_op.data.check import check_store
from mano_op.data.importers import import_neuralop_pt
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

DARCY = Path(os.environ.get("MANO_OP_DARCY_SMALL", "not given"))


def fields(samples, n, seed=0):
    """Samples at 16 points, seen at n of them along each axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((samples, 16, 16), generator=generator) > 0.5
    y = torch.randn((samples, 16, 16), generator=generator)
    return {"x": x[:, :: 16 // n, :: 16 // n].clone(), "y": y[:, :: 16 // n, :: 16 // n].clone()}


@pytest.fixture
def files(tmp_path):
    """Six training samples at 8, and two tests at 8 and 16."""
    made = {}
    for name, samples, n, seed in (("train_8", 6, 8, 1), ("test_8", 2, 8, 2), ("test_16", 2, 16, 2)):
        made[name] = tmp_path / f"darcy_{name}.pt"
        torch.save(fields(samples, n, seed), made[name])
    return {"train": [(8, made["train_8"])], "test": [(16, made["test_16"]), (8, made["test_8"])]}


def test_store_has_the_fields_grids_and_splits_of_the_files(tmp_path, files):
    store = import_neuralop_pt(tmp_path / "darcy.zarr", files)
    assert store.grids == {"r8": Grid.uniform((8, 8)), "r16": Grid.uniform((16, 16))}
    assert (store.inputs, store.outputs) == (("permeability",), ("pressure",))
    assert store.layout.boundary_conditions == {"y": "dirichlet", "x": "dirichlet"}
    assert store.layout.held == {"r8": ("train", "test"), "r16": ("test",)}
    train, test, fine = fields(6, 8, 1), fields(2, 8, 2), fields(2, 16, 2)
    for name, key in (("permeability", "x"), ("pressure", "y")):
        np.testing.assert_array_equal(store.read(8, name), torch.cat([train[key], test[key]]).float())
        np.testing.assert_array_equal(store.read(16, name), fine[key].float())
    tree = xr.open_datatree(store.path)
    shared = tree["r8"].to_dataset().sel(sample=tree["r16"]["sample"])
    np.testing.assert_array_equal(shared["pressure"], tree["r16"]["pressure"].values[:, ::2, ::2])


def save(path, content):
    torch.save(content, path)
    return path


class Surprise:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    "content",
    [
        Surprise(),
        {"x": Surprise(), "y": torch.zeros(2, 8, 8)},
        b"",
        b"no tensors",
        pickle.dumps(Surprise()),
        b"PK\x03\x04",
    ],
)
def test_untrusted_files_are_not_unpickled(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pt"
    file.write_bytes(content) if isinstance(content, bytes) else save(file, content)
    message = (
        r"It is not unpickled|cannot be read as tensors"
        if isinstance(content, bytes)
        else "It is not unpickled"
    )
    with pytest.raises(InputError, match=message):
        import_neuralop_pt(tmp_path / "darcy.zarr", {"train": [(8, file)]})
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(2, 8, 8), r"holds a Tensor, expected a dictionary"),
        ([1, 2], "holds a list"),
        ({"x": torch.zeros(2, 8, 8)}, "has no tensor 'y'; it has x"),
        (fields(2, 16), r"'x': shape \(2, 16, 16\); expected \(2, 8, 8\)"),
        ({"x": fields(2, 8)["x"], "y": [0.0]}, "has no tensor 'y'"),
        (
            {"x": fields(2, 8)["x"], "y": fields(2, 8)["y"].to_sparse()},
            "'y': of torch.float32; expected real",
        ),
        ({"x": fields(2, 8)["x"], "y": fields(3, 8)["y"]}, r"'y': shape \(3, 8, 8\); expected \(2, 8, 8\)"),
        ({"x": fields(2, 8)["x"], "y": torch.full((2, 8, 8), torch.nan)}, r"y: sample 0 \(and 1 more"),
    ],
)
def test_files_of_another_layout_are_refused_before_writing(tmp_path, content, message):
    file = save(tmp_path / "file.pt", content)
    with pytest.raises(InputError, match=message):
        import_neuralop_pt(tmp_path / "darcy.zarr", {"train": [(8, file)]})
    assert not (tmp_path / "darcy.zarr").exists()


def test_files_that_do_not_match_each_other_are_refused(tmp_path, files):
    path = tmp_path / "darcy.zarr"
    with pytest.raises(InputError, match="expected pairs of a resolution and a file"):
        import_neuralop_pt(path, {})
    with pytest.raises(InputError, match=r"none\.pt does not exist"):
        import_neuralop_pt(path, {"train": [(8, tmp_path / "none.pt")]})
    twice = [files["train"][0], (8, files["test"][1][1])]
    for given in ([], twice, "a.pt", ["a.pt"], [("8", "a.pt")], [(8.5, "a.pt")], [(0, "a.pt")]):
        with pytest.raises(InputError, match=r"one file for each of a split's|a whole number"):
            import_neuralop_pt(path, {"train": given})
    fewer = save(tmp_path / "fewer.pt", fields(1, 16, 2))
    with pytest.raises(InputError, match=r"samples differ between resolutions: \{8: 2, 16: 1\}"):
        import_neuralop_pt(path, {**files, "test": [files["test"][1], (16, fewer)]})
    other = save(tmp_path / "other.pt", fields(2, 16, 3))
    mixed = {**files, "test": [files["test"][1], (16, other)]}
    with pytest.raises(InputError, match="split 'test': 'x' at 8 differs from that at 16"):
        import_neuralop_pt(path, mixed)
    store = import_neuralop_pt(path, mixed, levels="independent")
    np.testing.assert_array_equal(store.read(16, "pressure"), fields(2, 16, 3)["y"])


def flow(samples, n, seed=0):
    """Forcing and vorticity at 16 points, seen at n of them along each axis."""
    generator = torch.Generator().manual_seed(seed)
    forcing, vorticity = torch.randn((2, samples, 16, 16), generator=generator)
    return {"x": forcing[:, :: 16 // n, :: 16 // n], "y": vorticity[:, :: 16 // n, :: 16 // n]}


def test_navier_stokes_files_need_their_problem_and_lie_on_a_torus(tmp_path):
    files = {"train": [(n, save(tmp_path / f"{n}.pt", flow(3, n))) for n in (8, 16)]}
    with pytest.raises(InputError, match=r"8\.pt: 'x' has the value .*give problem='navier_stokes'"):
        import_neuralop_pt(tmp_path / "a.zarr", files)
    with pytest.raises(InputError, match=r"8\.pt: 'x' has the value .*of neuraloperator's Darcy flow"):
        import_neuralop_pt(tmp_path / "a.zarr", files, problem="darcy")
    assert not (tmp_path / "a.zarr").exists()
    store = import_neuralop_pt(tmp_path / "a.zarr", files, problem="navier_stokes", progress=False)
    assert (store.inputs, store.outputs) == (("forcing",), ("vorticity",))
    assert store.grids["r8"] == Grid.uniform((8, 8), registration="node", periodic=True)
    assert store.layout.boundary_conditions == {"y": "periodic", "x": "periodic"}
    assert store.variables[1].boundary_value is None
    assert store.attrs["title"] == "Navier-Stokes flow, neuraloperator"
    for name, key in (("forcing", "x"), ("vorticity", "y")):
        np.testing.assert_array_equal(store.read(16, name), flow(3, 16)[key])
    assert check_store(store.path, progress=False) == []


def test_navier_stokes_files_with_both_ends_are_refused(tmp_path):
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * (x[:, None] + 2 * x) + 0.3)[None]
    file = save(tmp_path / "ns.pt", {"x": wave, "y": wave**2 + wave})
    with pytest.raises(InputError, match="along y the last of 9 points repeats the first"):
        import_neuralop_pt(tmp_path / "s.zarr", {"train": [(9, file)]}, problem="navier_stokes")


def test_darcy_files_are_refused_as_another_problem(tmp_path, files):
    with pytest.raises(InputError, match=r"'x' is 0 or 1 everywhere; .*give problem='darcy'"):
        import_neuralop_pt(tmp_path / "a.zarr", files, problem="navier_stokes")
    with pytest.raises(InputError, match="problem='burgers'; expected one of darcy, navier_stokes"):
        import_neuralop_pt(tmp_path / "a.zarr", files, problem="burgers")
    as_numbers = {"x": fields(2, 8)["x"].to(torch.bfloat16), "y": fields(2, 8)["y"]}
    file = save(tmp_path / "numbers.pt", as_numbers)
    store = import_neuralop_pt(tmp_path / "b.zarr", {"train": [(8, file)]}, problem="darcy", progress=False)
    np.testing.assert_array_equal(store.read(8, "permeability"), as_numbers["x"].float())


@pytest.mark.skipif(
    not DARCY.is_dir(), reason="MANO_OP_DARCY_SMALL names no folder of neuraloperator's Darcy files"
)
def test_published_darcy_files_have_nodes_and_the_left_boundary(tmp_path):
    files = {
        "train": [(16, DARCY / "darcy_train_16.pt")],
        "test": [(n, DARCY / f"darcy_test_{n}.pt") for n in (16, 32)],
    }
    store = open_store(import_neuralop_pt(tmp_path / "darcy.zarr", files).path)
    assert store.splits == {"train": 1000, "test": 50}
    tests = store.layout.rows("r16", "test")
    for name in ("permeability", "pressure"):
        np.testing.assert_array_equal(store.read(16, name, tests), store.read(32, name)[:, ::2, ::2])
    assert set(np.unique(store.read(16, "permeability"))) == {0.0, 1.0}
    pressure = store.read(32, "pressure")
    # Nodes, left end in, right end out: u is near zero in the first row and column, and in the last as
    # large as in the second, which is as far from the boundary.
    for lines in (np.abs(pressure).mean(axis=(0, 2)), np.abs(pressure).mean(axis=(0, 1))):
        assert lines[0] < 0.05 * lines[1]
        assert 0.6 < lines[-1] / lines[1] < 1.4
    raw = torch.load(DARCY / "darcy_train_16.pt", weights_only=True)["y"].double()
    weights = torch.from_numpy(Grid.uniform((16, 16)).weights)
    assert store.statistics["pressure"]["mean"] == pytest.approx(
        float((raw * weights).sum() / 1000), rel=1e-12
    )
