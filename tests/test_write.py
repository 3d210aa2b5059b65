"""Data sets that people have become the store that they describe, or it is said what does not fit."""

import pickle

import numpy as np
import pytest
import xarray as xr
from distributed import Client
from helpers import files, waves
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.check import check_store
from mano_op.data.coarsen import coarsen_store
from mano_op.data.coordinates import _domain
from mano_op.data.info import describe
from mano_op.data.store import FieldStore, open_store
from mano_op.data.write import write_fields
from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid

NODES, CELLS = Grid.uniform((6, 4)), Grid.uniform((6, 4), registration="cell")
SPLITS = {"train": 5, "test": 3}


def labelled(grid, samples=range(8)):
    fields = {name: (("sample", *grid.names), values) for name, values in waves(samples, grid).items()}
    data = xr.Dataset(fields, dict(zip(grid.names, grid.points, strict=True)))
    data["u"].attrs = {"units": "Pa", "long_name": "pressure", "cell_methods": "area: mean"}
    return data


def write(path, fields, **changes):
    options = {
        "inputs": ["b", "a"],
        "outputs": ["u"],
        "splits": SPLITS,
        "registration": "node",
        "boundary_conditions": {"y": "open", "x": "open"},
        "domain": {"y": (0.0, 1.0), "x": (0.0, 1.0)} if len(fields) == 1 else None,
    }
    return write_fields(path, fields, **(options | changes))


def assert_holds(store, grid, samples):
    for name, values in waves(samples, grid).items():
        np.testing.assert_array_equal(store.read(grid, name), values.astype(np.float32))


def test_fields_and_their_labels_are_kept(tmp_path):
    fine = NODES.refine()
    store = write(tmp_path / "a.zarr", {(6, 4): labelled(NODES), (12, 8): labelled(fine)}, chunk=3)
    assert list(store.grids.values()) == [NODES, fine]
    assert (store.inputs, store.outputs, store.splits) == (("b", "a"), ("u",), SPLITS)
    assert store.variables[-1].cell_methods == "area: mean"
    assert store.attrs["levels"] == "unknown"
    for grid in (NODES, fine):
        assert_holds(open_store(store.path), grid, range(8))


@pytest.mark.parametrize("dims", [("y", "x"), ("sample", "y"), ("x",)])
@pytest.mark.parametrize("lazy", [False, True])
def test_static_fields_and_profiles_have_a_value_at_each_point(tmp_path, dims, lazy):
    data = labelled(NODES)
    data["a"] = data["a"].isel({dim: 0 for dim in data["a"].dims if dim not in dims}, drop=True)
    store = write(tmp_path / "a.zarr", {(6, 4): data.chunk(sample=3) if lazy else data})
    expected = data["a"].broadcast_like(data["u"]).transpose(*data["u"].dims)
    np.testing.assert_array_equal(store.read((6, 4), "a"), expected.astype("f4"))


def test_cell_methods_may_differ_between_resolutions(tmp_path):
    fine = labelled(NODES.refine())
    fine["u"].attrs["cell_methods"] = "area: point"
    store = open_store(write(tmp_path / "a.zarr", {(6, 4): labelled(NODES), (12, 8): fine}).path)
    assert store.variables[-1].cell_methods == {"r6x4": "area: mean", "r12x8": "area: point"}
    assert store.variables[0].cell_methods == "area: point"
    assert store.dataset((6, 4))["u"].attrs["cell_methods"] == "area: mean"
    assert store.dataset((12, 8))["u"].attrs["cell_methods"] == "area: point"


def two_levels():
    """Fields in time, in memory, and on a finer grid, behind dask, those of the tests."""
    fine = in_time(NODES.refine(), [0.0, 0.5, 1.5], [5, 6, 7]).assign_coords(sample=[5, 6, 7])
    return {(6, 4): in_time(NODES, [0.0, 0.5, 1.5]), (12, 8): fine.chunk(sample=2)}


def test_cluster_writes_the_same_store(tmp_path, scheduler, monkeypatch):
    here, there = (write(tmp_path / "here.zarr", two_levels(), chunk=1).path, tmp_path / "there.zarr")
    spoilt = two_levels()
    spoilt[6, 4]["u"][6, 0] = np.nan
    with Client(scheduler) as client, monkeypatch.context() as patch:
        patch.setattr(FieldStore, "write", None)  # here; the workers have their own
        with pytest.raises(InputError, match="r6x4/u: sample 6 has a NaN"):
            write(there, spoilt, chunk=1, client=client)
        with pytest.raises(InputError, match=r"samples (\d) to \1 were written with other values"):
            write(
                there, {**two_levels(), (6, 4): two_levels()[6, 4] + 1}, client=client, resume=True, chunk=1
            )
        write(there, two_levels(), chunk=1, client=client, resume=True)
    assert files(there) == files(here)
    for grid, samples in ((NODES, range(8)), (NODES.refine(), [5, 6, 7])):
        np.testing.assert_array_equal(
            open_store(there).read(grid, "a"), np.float32(waves(samples, grid)["a"])
        )


@pytest.mark.parametrize("behind_dask", [False, True])
def test_worker_is_sent_its_chunk_alone(tmp_path, scheduler, behind_dask):
    data = labelled(NODES.refine(24))
    whole, sent = sum(data[name].nbytes for name in data), []

    class Counting(Client):
        """Notes the bytes of every task."""

        def submit(self, function, *arguments, **options):
            sent.append(len(pickle.dumps((function, arguments))))
            return super().submit(function, *arguments, **options)

    fields = {(144, 96): data.chunk(sample=1) if behind_dask else data}
    with Counting(scheduler) as client:
        write(tmp_path / "a.zarr", fields, chunk=1, client=client)
    assert len(sent) >= 8 and whole < sum(sent) < 1.1 * whole


def test_dataset_of_a_store_is_written_again_unchanged(tmp_path):
    first = write(tmp_path / "a.zarr", {(6, 4): labelled(NODES)}, splits=SPLITS)
    # Its bounds say what the domain is.
    again = write(tmp_path / "b.zarr", {(6, 4): first.dataset((6, 4))}, splits=first.splits, domain=None)
    xr.testing.assert_identical(again.dataset((6, 4)).load(), first.dataset((6, 4)).load())
    assert again.statistics == first.statistics


@given(
    n=st.integers(2, 200),
    ends=st.sampled_from(
        [(0.0, 1.0), (-1.0, 1.0), (0.0, 2 * np.pi), (2.5, 1000.0), (-90.0, 90.0), (0.0, 1e-6)]
    ),
    registration=st.sampled_from(REGISTRATIONS),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_domain_follows_from_points_and_registration(n, ends, registration, dtype):
    points = Axis("x", n, *ends, registration).points.astype(dtype)
    # Where the ends are round numbers they are found exactly.
    close = 0 if ends[1] != 2 * np.pi else 8 * np.finfo(dtype).eps
    domain = _domain(points, registration)
    np.testing.assert_allclose(domain, ends, rtol=close, atol=0)
    assert np.signbit(domain).tolist() == np.signbit(ends).tolist()  # no -0.0


def test_two_resolutions_reveal_a_wrong_registration(tmp_path):
    fields = {(6, 4): labelled(CELLS), (12, 8): labelled(CELLS.refine())}
    with pytest.raises(
        InputError, match=r"\(6, 4\): y is 0.0833333, 0.25, ..., 0.916667, but 6 points in regist"
    ):
        write(tmp_path / "a.zarr", fields, registration="node")
    assert list(write(tmp_path / "a.zarr", fields, registration="cell").grids.values()) == [
        CELLS,
        CELLS.refine(),
    ]


def test_boundary_values_are_kept_by_variable(tmp_path):
    values = {"u": {"y": (1.0, 0.0)}, "a": 2.0}
    store = write(tmp_path / "a.zarr", {(6, 4): labelled(NODES)}, boundary_values=values)
    assert {v.name: v.boundary_value for v in open_store(store.path).variables} == {**values, "b": None}


def in_time(grid, times, samples=range(8)):
    """`labelled`, with u at some times."""
    data = labelled(grid, samples)
    growth = xr.DataArray(np.arange(1.0, 1 + len(times)), {"time": times}, "time")
    return data.assign(u=(data["u"] * growth).transpose("sample", "time", "y", "x"))


@pytest.mark.parametrize(
    ("times", "numbers", "units"),
    [
        ([0.0, 0.5, 2.0], [0.0, 0.5, 2.0], "1"),
        (np.array([0, 1, 3], "timedelta64[D]").astype("timedelta64[ns]"), [0, 1, 3], "days"),
        (
            np.array(["2000-01-01T00", "2000-01-01T06", "2000-01-02T00"], "datetime64[ns]"),
            [0, 6, 24],
            "hours since 2000-01-01 00:00:00",
        ),
    ],
)
def test_times_are_kept_as_numbers_and_units(tmp_path, times, numbers, units):
    fields = {(6, 4): in_time(NODES, times), (12, 8): in_time(NODES.refine(), times)}
    store = write(tmp_path / "a.zarr", fields)
    assert (list(store.layout.times), store.layout.time_units) == (numbers, units)
    u = waves(range(8), NODES)["u"]
    expected = np.stack([u, 2 * u, 3 * u], axis=1).astype(np.float32)
    np.testing.assert_array_equal(store.read((6, 4), "u"), expected)
    again = write(tmp_path / "b.zarr", {(6, 4): store.dataset((6, 4))}, domain=None)
    assert again.layout.times == store.layout.times
    np.testing.assert_array_equal(again.read((6, 4), "u"), expected)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda d: d.rename(u="v"), {}, "has no variable 'u'; it has a, b, v"),
        (lambda d: d.assign(u=d.u.transpose("sample", "x", "y")), {}, "the same axes for all"),
        (
            lambda d: d.assign(a=d.a[:, 0, 0].drop_vars(["y", "x"])),
            {},
            r"none of the axes y, x; expected a field: `data.assign\(a=data\['a'\].broadcast_like",
        ),
        (
            lambda d: d.isel(x=slice(None, None, -1)),
            {},
            r"expected values that increase: `data.sortby\('x'\)`",
        ),
        (lambda d: d, {"domain": {"y": (0.0, 1.0)}}, "no axis 'x'"),
        (lambda d: d, {"boundary_conditions": "periodic"}, "='periodic'; expected one for each of y, x"),
        (
            lambda d: d,
            {"domain": {"y": (0.0, 1.0), "x": (0.0, 2.0)}},
            "registration and the domain of your data",
        ),
        (lambda d: d.assign_coords(sample=np.arange(8)[::-1]), {}, "not whole splits"),
        (lambda d: d, {"inputs": [], "outputs": []}, "and names of its variables"),
        (lambda d: d, {"splits": {"train": 8.0}}, "samples of split 'train'=8.0, expected a whole number"),
        (lambda d: d.assign_coords(x=d.x**2), {"domain": None}, "the spacing is not uniform"),
        (lambda d: d, {"chunk": 0}, "chunk=0"),
        (lambda d: d, {"chunks": 3}, "there is no option chunks=3 of write_fields; did you mean 'chunk'"),
        (lambda d: d, {"boundary_value": {}}, "of write_fields; did you mean 'boundary_values'"),
    ],
)
def test_misfitting_labels_are_refused_before_writing(tmp_path, change, options, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a.zarr", {(6, 4): change(labelled(NODES))}, **options)
    assert not (tmp_path / "a.zarr").exists()


def test_periodic_domain_follows_from_one_resolution(tmp_path):
    store = write(
        tmp_path / "a.zarr",
        {(6, 4): labelled(Grid.uniform((6, 4), periodic=True))},
        boundary_conditions={"y": "periodic", "x": "periodic"},
        domain=None,
    )
    assert store.grids["r6x4"] == Grid.uniform((6, 4), periodic=True)


def test_bounds_give_the_domain_and_reveal_a_wrong_registration(tmp_path):
    data = labelled(CELLS)
    for axis in CELLS:
        data[axis.name].attrs["bounds"] = f"{axis.name}_edges"
        data[f"{axis.name}_edges"] = ((axis.name, "bnds"), axis.bounds)
    store = write(tmp_path / "a.zarr", {(6, 4): data}, registration="cell", domain=None)
    assert store.grids["r6x4"] == CELLS
    with pytest.raises(InputError, match="registration='cell' would fit"):
        write(tmp_path / "b.zarr", {(6, 4): data}, registration="node", domain=None)


@pytest.mark.parametrize("there", [False, True])
def test_nan_is_named_and_leaves_the_old_store(tmp_path, there):
    if there:
        write(tmp_path / "a.zarr", {(6, 4): labelled(NODES)})
    data = labelled(NODES)
    data["a"][5, 0, 0] = np.nan
    with pytest.raises(InputError, match="r6x4/a: sample 5 has a NaN"):
        write(tmp_path / "a.zarr", {(6, 4): data}, chunk=2, overwrite=True)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.zarr.partial"} | ({"a.zarr"} if there else set())
    if there:
        assert_holds(open_store(tmp_path / "a.zarr"), NODES, range(8))


def test_chunks_before_a_nan_are_kept_for_resume(tmp_path):
    data, path = labelled(NODES), tmp_path / "a.zarr"
    first, spoilt = data.copy(deep=True), data.copy(deep=True)
    first["a"][0, 0, 0], spoilt["a"][5, 0, 0] = np.nan, np.nan
    with pytest.raises(InputError, match="sample 0 has a NaN"):
        write(path, {(6, 4): first})
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="sample 5 has a NaN"):
        write(path, {(6, 4): spoilt}, chunk=2)
    with pytest.raises(InputError, match="sample 5 has a NaN"):  # again: nothing is lost by trying
        write(path, {(6, 4): spoilt}, chunk=2, resume=True)
    assert open_store(path, incomplete=True).pending()[0].start == 4
    assert_holds(write(path, {(6, 4): data}, chunk=2, resume=True), NODES, range(8))
    assert [found.name for found in tmp_path.iterdir()] == ["a.zarr"]


def test_store_is_rewritten_from_itself(tmp_path):
    """Its fields are read, lazily, while the store that replaces it is written."""
    path = write(tmp_path / "a.zarr", {(6, 4): labelled(NODES)}).path
    lazy = xr.open_zarr(path, group="r6x4")
    lazy["u"] = 2 * lazy["u"]
    store = write(path, {(6, 4): lazy}, overwrite=True, inputs=["a"])
    assert store.inputs == ("a",)
    expected = 2 * waves(range(8), NODES)["u"].astype(np.float32)
    np.testing.assert_array_equal(open_store(path).read((6, 4), "u"), expected)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float64", ">f4"])
def test_any_type_is_read_back(tmp_path, dtype):
    values = np.random.default_rng(0).integers(0, 100, size=(8, 6, 4)) % (2 if dtype == "bool" else 100)
    data = labelled(NODES)
    data["u"] = data["u"].dims, values.astype(dtype)
    store = write(tmp_path / "a.zarr", {(6, 4): data}, inputs=["a"])
    np.testing.assert_array_equal(store.read((6, 4), "u"), values.astype(np.float32))


def about_x(data, **attributes):
    data = data.copy()
    data["x"] = data["x"].assign_attrs(attributes)
    return data


def test_attributes_of_coordinates_are_kept(tmp_path):
    said = {"units": "km", "standard_name": "projection_x_coordinate", "long_name": "east of the gauge"}
    store = write(tmp_path / "a.zarr", {(6, 4): about_x(labelled(NODES), **said)})
    level = xr.open_zarr(store.path, group="r6x4")
    assert {name: level["x"].attrs[name] for name in said} == said
    assert level["y"].attrs["units"] == "1"
    assert open_store(store.path).layout.coordinates == {"y": {"units": "1", "long_name": "y"}, "x": said}
    coarse = coarsen_store(store, tmp_path / "b.zarr", [(3, 2)], method="mean", progress=False)
    assert coarse.layout.coordinates == store.layout.coordinates
    assert check_store(coarse.path, progress=False) == []


def test_coordinates_in_two_units_are_refused(tmp_path):
    fields = {
        (6, 4): about_x(labelled(NODES), units="km"),
        (12, 8): about_x(labelled(NODES.refine()), units="m"),
    }
    with pytest.raises(InputError, match=r"axis 'x': attributes differ .*'km'.*'m'.*agree"):
        write(tmp_path / "a.zarr", fields)
    with pytest.raises(InputError, match=r"axis 'x': attributes differ .*'km'.*'1'.*agree"):
        write(tmp_path / "a.zarr", {**fields, (12, 8): labelled(NODES.refine())})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "about", "sign"),
    [
        ("x", {"units": "degrees_north"}, "units 'degrees_north'"),
        ("x", {"units": "degree_east"}, "units 'degree_east'"),
        ("x", {"units": "degreesN"}, "units 'degreesN'"),
        ("x", {"units": "degrees", "standard_name": "latitude"}, "standard_name 'latitude'"),
        ("x", {"standard_name": "grid_longitude"}, "standard_name 'grid_longitude'"),
        ("x", {"long_name": "Latitude", "units": "deg"}, "called 'Latitude', from 0 to 1"),
        ("lat", {}, "called 'lat', from 0 to 1"),
        ("nav_lon", {"units": "degrees"}, "called 'nav_lon'"),
        ("XLAT", {"units": "radians"}, "called 'XLAT'"),
    ],
)
def test_latitude_and_longitude_are_refused(tmp_path, name, about, sign):
    axes = {"y": (0.0, 1.0), name: (0.0, 1.0)}
    options = {"domain": axes, "boundary_conditions": dict.fromkeys(axes, "open")}
    fields = {(6, 4): about_x(labelled(NODES), **about).rename(x=name)}
    with pytest.raises(InputError, match=rf"axis '{name}' \({sign}.*\) is on a sphere.*Cartesian.*Project"):
        write(tmp_path / "a.zarr", fields, **options)
    assert not any(tmp_path.iterdir())


def test_latitude_and_longitude_are_said_to_be_a_plane(tmp_path):
    fields = {(6, 4): about_x(labelled(NODES), units="degrees_north")}
    store = open_store(write(tmp_path / "a.zarr", fields, as_plane=True).path)
    assert store.layout.as_plane and store.attrs["as_plane"] is True
    assert "taken as lengths on a plane" in describe(store)
    assert check_store(store.path, progress=False) == []
    coarse = coarsen_store(store, tmp_path / "b.zarr", [(3, 2)], method="mean", progress=False)
    assert coarse.layout.as_plane


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("x", {"units": "degrees"}),
        ("lat", {"units": "m"}),
        ("lat", {}),
        ("late", {}),
        ("lateral", {"units": "degrees"}),
    ],
)
def test_other_angles_and_lengths_are_accepted(tmp_path, name, about):
    length = 400.0 if (name, about) == ("lat", {}) else 1.0  # beyond the poles
    axes = {"y": (0.0, 1.0), name: (0.0, length)}
    options = {"domain": axes, "boundary_conditions": dict.fromkeys(axes, "open")}
    data = about_x(labelled(NODES), **about).rename(x=name)
    fields = {(6, 4): data.assign_coords({name: length * data[name]})}
    store = write(tmp_path / "a.zarr", fields, **options)
    assert not store.layout.as_plane and "as_plane" not in store.attrs


def test_registrations_may_differ_between_axes(tmp_path):
    """Walls with points on both of them, in a channel that wraps."""
    y, x = Axis("y", 7, 0.0, 1.0, "node_both"), Axis("x", 4, 0.0, 2.0, "node", periodic=True)
    channel, fine = Grid((y, x)), Grid((y, x)).refine()
    options = {
        "registration": {"y": "node_both", "x": "node"},
        "boundary_conditions": {"y": "wall", "x": "periodic"},
    }
    store = write(tmp_path / "a.zarr", {(7, 4): labelled(channel), (13, 8): labelled(fine)}, **options)
    assert list(open_store(store.path).grids.values()) == [channel, fine]
    for grid in (channel, fine):
        assert_holds(store, grid, range(8))
    assert check_store(store.path, progress=False) == []
    with pytest.raises(InputError, match=r"right for y = 0, .*if that is not the domain"):
        write(tmp_path / "b.zarr", {(7, 4): labelled(channel)}, domain=None, **options)
    with pytest.raises(
        InputError, match=r"expected one word, or one for each of y, x: node, node_both or cell"
    ):
        write(tmp_path / "b.zarr", {(7, 4): labelled(channel)}, registration={"y": "node_both"})


def test_steady_and_varying_fields_are_no_resolutions_of_one_store(tmp_path):
    fields = {(6, 4): labelled(NODES), (12, 8): in_time(NODES.refine(), [0.0, 1.0])}
    with pytest.raises(InputError, match="then the same axes for all"):
        write(tmp_path / "a.zarr", fields)
    assert not any(tmp_path.iterdir())


CIRCLE = {"inputs": ["a"], "splits": {"train": 4}, "boundary_conditions": {"x": "periodic"}}


def on_a_circle(n, last):
    x = np.linspace(0, 1, n, endpoint=last)
    u = np.sin(2 * np.pi * (x + 0.1 * np.arange(4)[:, None]))
    return xr.Dataset({"a": (("sample", "x"), u**2), "u": (("sample", "x"), u)}, {"x": x}), u


@pytest.mark.parametrize("kind", ["decimals", "single"])
def test_coarse_rounding_of_coordinates_is_named_and_its_remedy_works(tmp_path, kind):
    data, u = on_a_circle(64, last=False)
    start = 0.0 if kind == "decimals" else 5_634_000.0
    exact = start + data["x"].values * (1.0 if kind == "decimals" else 38.4)
    rounded = np.round(exact, 2) if kind == "decimals" else exact.astype(np.float32)
    options = CIRCLE | {"domain": {"x": (start, start + (1.0 if kind == "decimals" else 38.4))}}
    with pytest.raises(InputError, match=r"these are rounded to .* give the exact ones") as caught:
        write(tmp_path / "a.zarr", {64: data.assign_coords(x=rounded)}, **options)
    assert "interpolate" not in str(caught.value)
    exactly = eval(str(caught.value).split("`")[1], {"data": data.assign_coords(x=rounded), "Axis": Axis})
    store = write(tmp_path / "a.zarr", {64: exactly}, **options)
    np.testing.assert_array_equal(store.read(64, "u"), u.astype(np.float32))


def test_boolean_fields_are_checked_like_numbers(tmp_path):
    data, u = on_a_circle(16, last=False)
    data["a"] = data["u"] > 0
    options = CIRCLE | {"domain": None}
    store = write(tmp_path / "a.zarr", {16: data}, **options)
    np.testing.assert_array_equal(store.read(16, "a"), (u > 0).astype(np.float32))
    both = data[["a"]].assign(u=data["a"])
    both["a"], both["u"] = (both[name].copy() for name in ("a", "u"))
    for name in ("a", "u"):
        both[name][:, -1] = both[name][:, 0]
    with pytest.raises(InputError, match=r"along x the last of 1. points repeats the first"):
        write(tmp_path / "b.zarr", {16: both}, **options)
