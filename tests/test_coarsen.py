"""Coarser levels against their definitions, whatever computes them."""

import dask
import numpy as np
import pytest
import zarr
from distributed import Client
from helpers import files, store_of, wave_store, waves
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.coarsen import coarsen_store, coarsened
from mano_op.data.layout import Layout, Variable
from mano_op.data.schema import multiscales
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.problems import generate_darcy

FINE = Grid.uniform((12, 24))
SPLITS = {"train": 5, "test": 3}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return wave_store(tmp_path_factory.mktemp("fine") / "fine.zarr", [FINE], SPLITS, chunk=2)


def coarsen(source, path, resolutions=((6, 8),), method="mean", **options):
    return coarsen_store(source, path, resolutions, method=method, progress=False, **options)


@given(
    n=st.integers(2, 9),
    factor=st.integers(1, 4),
    registration=st.sampled_from(REGISTRATIONS),
    periodic=st.booleans(),
)
def test_means_keep_the_integral(n, factor, registration, periodic):
    periodic = periodic and registration != "node_both"
    coarse = Grid.uniform((n,), registration=registration, periodic=periodic)
    fine = coarse.refine(factor)
    values = np.random.default_rng(n).normal(size=(3, *fine.shape)).astype(np.float32)
    means = coarsened(values, fine, coarse, "mean").astype(float)
    widths = [np.diff(grid.axes[0].bounds, axis=1)[:, 0] for grid in (fine, coarse)]
    np.testing.assert_allclose(means @ widths[1], values.astype(float) @ widths[0], atol=1e-5)


def test_cells_are_the_means_of_their_parts(tmp_path):
    grid = Grid.uniform((6, 8), registration="cell")
    fine = wave_store(tmp_path / "fine.zarr", [grid], SPLITS)
    store = coarsen(fine, tmp_path / "both.zarr", [(3, 4), (2, 8)])
    for name, values in waves(range(8), grid).items():
        values = values.astype(np.float32).astype(float)
        blocks = values.reshape(8, 3, 2, 4, 2).mean(axis=(2, 4))
        np.testing.assert_allclose(store.read((3, 4), name), blocks, rtol=1e-6, atol=1e-6)
        rows = values.reshape(8, 2, 3, 8).mean(axis=2)
        np.testing.assert_allclose(store.read((2, 8), name), rows, rtol=1e-6, atol=1e-5)
    for variable in store.variables:
        assert variable.cell_methods == {"r2x8": "area: mean", "r3x4": "area: mean", "r6x8": "area: point"}


def stored(level, name):
    """The attributes of an array, and its chunks as they lie on disk."""
    chunks = {
        file.relative_to(level): file.read_bytes()
        for file in (level / name / "c").rglob("*")
        if file.is_file()
    }
    return dict(zarr.open_array(level / name, mode="r").attrs), chunks


def test_source_of_means_is_kept_unchanged(source, tmp_path):
    made = coarsen(source, tmp_path / "both.zarr", [(6, 8)], "mean", keep=True)
    for name in ("a", "b", "u"):
        attributes, chunks = stored(source.path / "r12x24", name)
        assert attributes["cell_methods"] == "area: point" and len(chunks) == 4
        assert stored(made.path / "r12x24", name) == (attributes, chunks)
        averaged, _ = stored(made.path / "r6x8", name)
        assert averaged == {**attributes, "cell_methods": "area: mean"}
        means = coarsened(source.read(FINE, name), FINE, made.grids["r6x8"], "mean")
        np.testing.assert_array_equal(made.read("r6x8", name), means)


def levels_of(store):
    return zarr.open_group(store.path, mode="r").attrs["multiscales"]["layout"]


def test_derivation_names_source_method_and_transform(tmp_path):
    """Along y cells, whose centres move as they grow; along x nodes, which stay."""
    y, x = Axis("y", 12, registration="cell"), Axis("x", 12, 0.0, 3.0)
    fine = wave_store(tmp_path / "fine.zarr", [Grid((y, x))], SPLITS)
    store = coarsen(fine, tmp_path / "both.zarr", [(6, 4), (8, 3)])
    made = {"derived_from": "r12", "resampling_method": "average"}
    expected = [
        {"asset": "r12"},
        {"asset": "r6x4", **made, "transform": {"scale": [2.0, 3.0], "translation": [0.5, 0.0]}},
        {"asset": "r8x3", **made, "transform": {"scale": [1.5, 4.0], "translation": [0.25, 0.0]}},
    ]
    assert sorted(levels_of(store), key=str) == sorted(expected, key=str)
    assert levels_of(store)[0] == {"asset": "r12"}
    assert open_store(store.path).layout.derived == dict.fromkeys(["r6x4", "r8x3"], ("r12", "average"))


@given(
    registration=st.sampled_from(REGISTRATIONS),
    n=st.integers(2, 9),
    more=st.integers(1, 20),
    start=st.floats(-3, 3),
    length=st.floats(0.1, 3),
)
def test_the_transform_leads_to_the_coordinates(registration, n, more, start, length):
    coarse, fine = (
        Grid.uniform((size,), domain=[(start, start + length)], registration=registration)
        for size in (n, n + more)
    )
    layout = Layout.plan(
        [coarse, fine],
        [Variable("a", "input"), Variable("u", "output")],
        {"test": 1},
        boundary_conditions={"x": "open"},
        levels="resampled",
        chunk=1,
        derived={coarse: (fine, "average")},
    )
    ((scale,), (translation,)) = multiscales(layout)[1]["transform"].values()
    there = fine.points[0][0] + fine.spacing[0] * (scale * np.arange(n) + translation)
    np.testing.assert_allclose(there, coarse.points[0], rtol=0, atol=1e-12)


def test_methods_in_the_words_of_the_convention(source, tmp_path):
    def said(name, **options):
        return levels_of(coarsen(source, tmp_path / f"{name}.zarr", [(6, 8)], **options))[1:]

    (copied,) = said("copied", method="injection")
    assert copied["resampling_method"] == "injection"
    assert copied["transform"] == {"scale": [2.0, 3.0], "translation": [0.0, 0.0]}
    (mixed,) = said("mixed", method={"u": "mean", "a": "injection", "b": "mean"})
    assert mixed["resampling_method"] == "a: injection, b: average, u: average"
    assert said("alone", method="mean", keep=False) == []
    alone = open_store(tmp_path / "alone.zarr")
    assert {variable.cell_methods for variable in alone.variables} == {"area: mean"}
    assert levels_of(alone) == [{"asset": "r6x8"}]


def test_solved_resolutions_derive_from_none(tmp_path):
    store = generate_darcy(tmp_path / "d.zarr", [4, 8], samples={"test": 1}, progress=False)
    assert levels_of(store) == [{"asset": "r8"}, {"asset": "r4"}] and store.layout.derived == {}
    options = {
        "variables": [Variable("a", "input"), Variable("u", "output")],
        "splits": {"test": 1},
        "boundary_conditions": {"y": "open", "x": "open"},
        "chunk": 1,
    }
    grids = [FINE.coarsen(2), FINE]
    with pytest.raises(InputError, match="derived: r12x24 from r12x24"):
        Layout.plan(grids, **options, levels="resampled", derived={FINE: (FINE, "average")})


def test_injection_copies_the_shared_points(source, tmp_path):
    store = coarsen(source, tmp_path / "both.zarr", [(6, 8), (4, 12)], "injection")
    for name in ("a", "b", "u"):
        values = source.read(FINE, name)
        np.testing.assert_array_equal(store.read((6, 8), name), values[:, ::2, ::3])
        np.testing.assert_array_equal(store.read((4, 12), name), values[:, ::3, ::2])
        np.testing.assert_array_equal(store.read(FINE, name), values)
    assert store.variables == source.variables
    assert store.attrs["levels"] == "resampled"
    assert store.attrs["provenance"]["coarsened"]["method"] == dict.fromkeys("abu", "injection")


def test_lowpass_keeps_the_modes_that_the_coarse_grid_carries(tmp_path):
    grid = Grid.uniform((16,), periodic=True)

    def modes(samples, grid):
        x = 2 * np.pi * grid.mesh[0]
        kept = np.stack([np.cos(x + i) + np.sin(2 * x) for i in samples])
        return {"a": kept + np.cos(6 * x), "u": kept}

    variables = [Variable("a", "input"), Variable("u", "output")]
    fine = store_of(tmp_path / "fine.zarr", [grid], variables, modes, SPLITS)
    store = coarsen(fine, tmp_path / "coarse.zarr", [8], "lowpass", keep=False)
    assert list(store.grids) == ["r8"]
    kept = modes(range(8), Grid.uniform((8,), periodic=True))["u"]
    for name in ("a", "u"):  # the sixth mode is gone, not aliased into the second
        np.testing.assert_allclose(store.read(8, name), kept, atol=1e-6)


def test_method_may_differ_between_variables_and_times_are_kept(tmp_path):
    times = (0.0, 1.0, 3.0)

    def moving(samples, grid):
        fields = waves(samples, grid)
        return {"a": fields["a"], "u": fields["u"][:, None] * np.array([1.0, 2.0, 3.0])[:, None, None]}

    variables = [Variable("a", "input"), Variable("u", "output", time=True)]
    options = {"ends": None, "chunk": 3, "times": times, "time_units": "s", "chunk_times": 2}
    store = store_of(tmp_path / "fine.zarr", [FINE], variables, moving, SPLITS, **options)
    made = coarsen(store, tmp_path / "both.zarr", method={"u": "mean", "a": "injection"})
    assert made.layout.times == times and made.layout.time_units == "s"
    np.testing.assert_array_equal(made.read((6, 8), "a"), store.read(FINE, "a")[:, ::2, ::3])
    still = coarsened(store.read(FINE, "u")[:, 1], FINE, made.grids["r6x8"], "mean")
    np.testing.assert_array_equal(made.read((6, 8), "u")[:, 1], still)
    assert made.variables[0].cell_methods == "area: point"
    assert made.variables[1].cell_methods == {"r6x8": "area: mean", "r12x24": "area: point"}


def test_coarse_store_has_the_splits_of_its_source_resolution(tmp_path):
    grids = [Grid.uniform((6, 6)), Grid.uniform((12, 12))]
    fine = wave_store(tmp_path / "fine.zarr", grids, {"train": 4, "test": 2}, held={grids[1]: ["test"]})
    store = coarsen(fine, tmp_path / "coarse.zarr", [4], "injection")
    assert store.splits == {"test": 2}
    np.testing.assert_array_equal(store.read(4, "u"), fine.read(12, "u")[:, ::3, ::3])
    from_coarse = coarsen(fine, tmp_path / "other.zarr", [3], "injection", from_resolution=6)
    assert from_coarse.splits == fine.splits


def test_interrupted_coarsening_resumes(source, tmp_path, monkeypatch):
    whole = coarsen(source, tmp_path / "whole.zarr")
    path, write, calls = tmp_path / "broken.zarr", FieldStore.write, []

    def cut(self, *arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("the power went off")
        write(self, *arguments)

    with monkeypatch.context() as patch, dask.config.set(num_workers=1):
        patch.setattr(FieldStore, "write", cut)
        with pytest.raises(RuntimeError, match="power"):
            coarsen(source, path)
    with pytest.raises(InputError, match="partial store: 4 of 8"):
        open_store(path)
    with pytest.raises(InputError, match=r"started with other options: .*coarsened is"):
        coarsen(source, path, method="injection", resume=True)
    with Client(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=":0") as client:
        store = coarsen(source, path, resume=True, client=client)
    assert files(store.path) == files(whole.path)


@pytest.mark.parametrize(
    ("resolutions", "options", "message"),
    [
        ([(6, 8)], {"method": "stride"}, "method for a='stride'; expected one of mean, lowpass, injection"),
        ([(12, 24)], {}, r"resolution \(12, 24\) from \(12, 24\)"),
        ([(6, 8, 2)], {}, r"resolution \(6, 8, 2\) from .* for each of 2 axes"),
        ([6.5], {}, "6.5"),
        ([], {}, r"resolutions=\[\]; expected at least one to make"),
        ([(6, 8)], {"method": {"a": "mean"}}, "expected one for each of a, b, u"),
        ([(6, 8)], {"method": "lowpass"}, "by 'lowpass': expected axes that all wrap; use 'mean'"),
        ([(5, 8)], {"method": "injection"}, "do not share the coarse points .*; use 'mean', or a resolution"),
        ([(6, 8)], {"from_resolution": 64}, "no resolution 64"),
        ([(6, 8)], {"level": 12}, "there is no option level=12 of coarsen_store: give from_resolution=64"),
    ],
)
def test_impossible_coarsening_is_refused_before_writing(source, tmp_path, resolutions, options, message):
    with pytest.raises(InputError, match=message):
        coarsen(source, tmp_path / "new.zarr", resolutions, **options)
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="is the source itself; give another path"):
        coarsen(source, source.path)
