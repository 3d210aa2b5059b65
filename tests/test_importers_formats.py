"""Files in published formats that do not fit are refused; each value of a file is read once."""

from collections import Counter

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr
from distributed import Client
from helpers import files
from importer_files import (
    LABELLED,
    MATLAB,
    WELL,
    labelled,
    pde_fields,
    pde_groups,
    values,
    well_arrays,
    write_hdf5,
    write_mat,
    write_netcdf,
)
from xarray.backends.h5netcdf_ import H5NetCDFArrayWrapper
from xarray.backends.scipy_ import ScipyArrayWrapper
from zarr.storage import LocalStore

from mano_op.data.check import check_store
from mano_op.data.importers import import_fno_mat, import_netcdf, import_pdebench, import_the_well
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

UNIT = {"x": (0.0, 1.0), "y": (0.0, 1.0)}
LINE = {"boundary_conditions": {"x": "periodic"}, "domain": {"x": (0.0, 1.0)}}
PLANE = pde_fields(["tensor"], ["x", "y"], 0)


def import_pde(path, *parts, **options):
    options = {"boundary_conditions": {"x": "periodic", "y": "periodic"}, "domain": UNIT} | options
    return import_pdebench(path, {"train": parts}, progress=False, **options)


def test_pdebench_groups_become_samples_of_named_variables(tmp_path):
    groups, names = pde_groups(0), ("activator", "inhibitor")
    file = write_hdf5(tmp_path / "reaction.h5", groups)
    store = import_pde(tmp_path / "r.zarr", file, variables=names)
    assert check_store(store.path, progress=False) == []
    for i, name in enumerate(names):
        expected = np.stack([groups[f"{sample:04}/data"][..., i] for sample in range(2)])
        np.testing.assert_array_equal(store.read((4, 5), name), expected)
    for names in (("u",), ("u", "u")):
        with pytest.raises(InputError, match=r"expected one name for each field .*, each once: give 2"):
            import_pde(tmp_path / "s.zarr", file, variables=names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": PLANE["tensor"]}, r"other.hdf5: variables = .*density.*, in .*u"),
        (
            {"tensor": values(0, 2, 3, 4, 6), "y-coordinate": np.arange(0.5, 6) / 6},
            "points along y = 6, in .* 5",
        ),
        ({"t-coordinate": np.arange(2.0)}, r"times: shape \(2,\); expected"),
        (
            {"tensor": np.full((2, 3, 4, 5), b"a")},
            "expected real numbers, stored densely: write it anew with",
        ),
        ({"t-coordinate": np.zeros((2, 4))}, "others go into stores of their own"),
        ({"tensor": np.array(1.0)}, r"tensor: shape \(\); expected \(1, 1, 4, 5\)"),
        ({"tensor": None}, "has no data set 'tensor'; it has t-coordinate, x-coordinate, y-coordinate"),
        ({"nu": values(0, 2, 4, 5)}, r"tensor: shape \(2, 3, 4, 5\); expected \(2, 1, 4, 5\)"),
        (None, r"other.hdf5 cannot be opened \(OSError: .*expected an HDF5 file"),
    ],
)
def test_pdebench_files_that_do_not_fit_are_refused(tmp_path, change, message):
    good, other = write_hdf5(tmp_path / "good.hdf5", PLANE), tmp_path / "other.hdf5"
    if change is None:
        other.write_text("no HDF5")
    else:
        write_hdf5(other, {name: array for name, array in (PLANE | change).items() if array is not None})
    with pytest.raises(InputError, match=message):
        import_pde(tmp_path / "new.zarr", good, other)
    with pytest.raises(InputError, match=r"good.hdf5 is given twice; expected files to import, each once"):
        import_pde(tmp_path / "new.zarr", good, good)
    with pytest.raises(InputError, match=r"none.h5 does not exist; expected files to import"):
        import_pde(tmp_path / "new.zarr", tmp_path / "none.h5")
    assert not (tmp_path / "new.zarr").exists()


def test_nan_in_a_file_names_its_sample_and_keeps_earlier_ones(tmp_path):
    tensor = values(0, 4, 3, 4, 5)
    tensor[2, 1, 0, 0] = np.nan
    file = write_hdf5(tmp_path / "a.hdf5", PLANE | {"tensor": tensor})
    with pytest.raises(InputError, match="r4x5/u: sample 2 has a NaN"):
        import_pde(tmp_path / "new.zarr", file, chunk=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "new.zarr.partial"]
    begun = open_store(tmp_path / "new.zarr", incomplete=True)
    assert 2 in [samples.start for samples in begun.pending()]


def well(path, n=2, attributes=None, arrays=None):
    """A file of The Well, and its arrays."""
    arrays = well_arrays(n, n) if arrays is None else arrays
    root = {"/": WELL["/"] | {"n_trajectories": n}}
    return write_hdf5(path, arrays, WELL | root | (attributes or {})), arrays


def import_well(path, *parts, **options):
    return import_the_well(
        path, {"train": parts}, registration="cell", domain=UNIT, progress=False, **options
    )


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"/": WELL["/"] | {"n_spatial_dims": 3}}, "expected as many names, each once"),
        (
            {"t0_fields/height": WELL["t0_fields/height"] | {"time_varying": 2}},
            "expected True or False, 1 times",
        ),
        ({"/": WELL["/"] | {"grid_type": "spherical"}}, "grid_type='spherical'; expected one of cartesian"),
        (
            {"boundary_conditions/y_wall": {"bc_type": "WALL", "associated_dims": ["x"]}},
            "has no boundary condition of axis 'y'",
        ),
        ({"t0_fields/height": {}}, "has no attribute 'sample_varying'"),
    ],
)
def test_well_files_that_do_not_fit_are_refused(tmp_path, attributes, message):
    file, _ = well(tmp_path / "a.hdf5", attributes=attributes)
    with pytest.raises(InputError, match=message):
        import_well(tmp_path / "w.zarr", file)
    assert not (tmp_path / "w.zarr").exists()


def test_well_fields_have_names_of_their_own(tmp_path):
    none = {name: array for name, array in well_arrays(0).items() if "_fields" not in name}
    pressure = well_arrays(0)["t0_fields/pressure"]
    twice = well_arrays(0) | {"t0_fields/velocity_x": pressure}
    about = {"t0_fields/velocity_x": WELL["t0_fields/pressure"]}
    for arrays, message in ((none, "has no fields in t0_fields"), (twice, "rename one of them in the files")):
        file, _ = well(tmp_path / "well.h5", attributes=about, arrays=arrays)
        with pytest.raises(InputError, match=message):
            import_well(tmp_path / "w.zarr", file)


def test_well_walls_that_differ_are_mixed_and_scalars_are_kept(tmp_path):
    both = {"boundary_conditions/y_wall": {"bc_type": "WALL", "associated_dims": ["x", "y"]}}
    file, _ = well(tmp_path / "well.h5", attributes=both)
    with h5py.File(file, "r+") as root:
        root["scalars/Re"], root["scalars/each"] = 1e4, np.arange(2.0)
    store = import_well(tmp_path / "w.zarr", file)
    assert store.layout.boundary_conditions == {"x": "mixed", "y": "wall"}
    assert store.attrs["title"] == "made"
    assert store.attrs["provenance"]["scalars"] == {"well.h5": {"Re": 1e4}}


@pytest.mark.parametrize("version", [5, 7.3])
def test_fno_files_that_do_not_fit_are_refused(tmp_path, version):
    file = write_mat(tmp_path / "a.mat", MATLAB["burgers"](0) | {"u": values(0, 2, 4)}, version)
    for kind, message in (
        ("burgers", r"u: shape \(2, 4\); expected \(2, 5\)"),
        ("darcy", "has no array 'coeff'; it has a, u"),
        ("waves", "kind='waves'; expected one of burgers, darcy"),
    ):
        with pytest.raises(InputError, match=message):
            import_fno_mat(tmp_path / "new.zarr", {"train": [file]}, kind=kind, progress=False)
    assert not (tmp_path / "new.zarr").exists()


@pytest.mark.parametrize("t", [np.zeros((2, 3)), np.array(0.0)])
def test_times_of_an_fno_file_are_a_row_or_a_column(tmp_path, t):
    arrays = {"a": values(0, 2, 4, 4), "u": values(1, 2, 4, 4, t.size), "t": t}
    file = write_mat(tmp_path / "a.mat", arrays, 7.3)
    with pytest.raises(InputError, match=r"t: shape \(.*a row or a column of times"):
        import_fno_mat(tmp_path / "s.zarr", {"train": [file]}, kind="navier_stokes", progress=False)


def test_matlab_text_objects_and_groups_are_refused(tmp_path):
    (tmp_path / "text.mat").write_text("no MATLAB file, but text that is long enough to have a header " * 4)
    scipy.io.savemat(tmp_path / "cell.mat", {"a": np.array([{"x": 1.0}], dtype=object), "u": values(0, 1, 4)})
    write_hdf5(tmp_path / "group.mat", {"a/b": np.zeros(3), "u": np.zeros((6, 2))})
    write_hdf5(tmp_path / "no_grid.h5", {"0000/data": np.zeros((3, 6, 1), dtype=np.float32)})
    for name, message in (
        ("text", "is no MATLAB file"),
        ("cell", "expected real numbers"),
        ("group", "no data set 'a'"),
    ):
        with pytest.raises(InputError, match=message):
            import_fno_mat(tmp_path / "new.zarr", {"train": [tmp_path / f"{name}.mat"]}, kind="burgers")
    with pytest.raises(InputError, match="0000 has no group 'grid'"):
        import_pde(tmp_path / "s.zarr", tmp_path / "no_grid.h5", **LINE)


def netcdf(path, i, n, engine):
    """A file of NetCDF, and its arrays."""
    arrays = labelled(i, n) | {"run": 10 * i + np.arange(n)}
    return write_netcdf(path, arrays, engine, {"u": "kg kg-1"}), arrays


def test_netcdf_times_may_be_the_samples(tmp_path):
    file, _ = netcdf(tmp_path / "a.nc", 0, 3, "scipy")
    with xr.open_dataset(file) as data:
        data[["a"]].rename(run="time").assign(u=lambda data: 2 * data["a"]).to_netcdf(tmp_path / "t.nc")
    options = LABELLED | {"sample": "time", "time": "time", "splits": {"train": 3}, "progress": False}
    assert import_netcdf(tmp_path / "s.zarr", {(4, 5): tmp_path / "t.nc"}, **options).splits == {"train": 3}


def test_netcdf_files_of_both_versions_are_concatenated(tmp_path):
    parts = [netcdf(tmp_path / f"{i}.nc", i, 2, engine) for i, engine in enumerate(("scipy", "h5netcdf"))]
    store = import_netcdf(
        tmp_path / "a.zarr", {(4, 5): [file for file, _ in parts]}, progress=False, **LABELLED
    )
    np.testing.assert_array_equal(
        store.read((4, 5), "u"), np.concatenate([arrays["u"] for _, arrays in parts])
    )
    assert store.variables[1].units == "kg kg-1" and store.attrs["provenance"]["files"] == ["0.nc", "1.nc"]
    for without in ({}, "runs.nc", {(4, 5): []}):
        with pytest.raises(InputError, match="expected at least one for each"):
            import_netcdf(tmp_path / "new.zarr", without, **LABELLED)


@pytest.mark.parametrize("name", [None, "run", "sample"])
def test_netcdf_files_of_one_run_each_are_samples(tmp_path, name):
    """In the order of the numbers in their names; what is not asked for may differ."""
    rows, order = values(0, 3, 4), [10, 2, 1]
    for row, number in zip(rows, order, strict=True):
        fields = {"a": ("x", row), "u": ("x", 2 * row), "viscosity": float(row[0])}
        labels = {"x": (np.arange(4) + 0.5) / 4} | ({name: number} if name else {})
        xr.Dataset(fields, labels).to_netcdf(tmp_path / f"run_{number}.nc", engine="scipy")
    options = LINE | {"inputs": ["a"], "outputs": ["u"], "splits": {"train": 3}, "registration": "cell"}
    sample = {"sample": name} if name else {}
    for runs in (tmp_path, f"{tmp_path}/run_*.nc"):
        store = import_netcdf(
            tmp_path / "s.zarr", {4: runs}, progress=False, overwrite=True, relabel=True, **sample, **options
        )
        np.testing.assert_array_equal(store.read(4, "u"), 2 * rows[::-1].astype("f4"))


def test_netcdf_axes_without_coordinates_lie_where_they_are_declared(tmp_path):
    """As those of WRF; an axis with coordinates keeps them."""
    rows, dims = values(0, 3, 4, 5), ("Time", "south_north", "west_east")
    data = xr.Dataset({"height": (dims, rows), "t2": (dims, 2 * rows)}, {"west_east": np.arange(5) * 600.0})
    data.to_netcdf(tmp_path / "wrfout", engine="scipy")
    options = {
        "inputs": ["height"],
        "outputs": ["t2"],
        "splits": {"train": 3},
        "registration": {"south_north": "cell", "west_east": "node_both"},
        "domain": {"south_north": (0.0, 4000.0), "west_east": (0.0, 2400.0)},
        "boundary_conditions": {"south_north": "open", "west_east": "open"},
    }
    run = {(4, 5): tmp_path / "wrfout"}
    store = import_netcdf(tmp_path / "s.zarr", run, sample="Time", progress=False, **options)
    rows_at, columns_at = (axis.points for axis in store.grids["r4x5"])
    assert (rows_at == [500.0, 1500.0, 2500.0, 3500.0]).all() and (columns_at == 600.0 * np.arange(5)).all()
    with pytest.raises(InputError, match="the coordinate of axis 'south_north' is missing"):
        import_netcdf(tmp_path / "new.zarr", run, sample="Time", **{**options, "domain": None})
    del options["registration"]
    with pytest.raises(TypeError, match="'registration'"):
        import_netcdf(tmp_path / "new.zarr", run, sample="Time", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["q"].attrs.update(units="hPa"), "1.nc: units of q = 'hPa', in .*0.nc 'Pa'"),
        (lambda data: data["q"].attrs.update(cell_methods="area: mean"), "cell_methods of q = 'area: mean'"),
        (lambda data: data["q"].attrs.pop("units"), "units of q = None"),
        (lambda data: data["x"].attrs.update(units="km"), "units of x = 'km'"),
        (lambda data: data.assign_coords(x=data["x"] + 0.01), "1.nc: x = .*, in .*0.nc"),
        (lambda data: data.isel(x=slice(0, 3)), "1.nc: points along x = 3, in .*0.nc 4"),
        (lambda data: data.rename(q="p"), "1.nc has no variable 'q'; it has a, p"),
        (lambda data: data.drop_vars("x"), "1.nc: coordinates = .., in .*0.nc .'x'."),
        (lambda data: data.transpose("x", "sample"), "dimensions of a ="),
    ],
)
def test_netcdf_files_that_do_not_continue_each_other_are_refused(tmp_path, change, message):
    options = LINE | {"inputs": ["a"], "outputs": ["q"], "splits": {"train": 4}, "registration": "cell"}
    for i in range(2):
        dims = ("sample", "x")
        made = xr.Dataset(
            {"a": (dims, values(0, 2, 4)), "q": (dims, values(0, 2, 4), {"units": "Pa"})},
            {"x": (np.arange(4) + 0.5) / 4},
        )
        changed = change(made) if i else None
        (changed if isinstance(changed, xr.Dataset) else made).to_netcdf(tmp_path / f"{i}.nc", engine="scipy")
    both = [tmp_path / "0.nc", tmp_path / "1.nc"]
    with pytest.raises(InputError, match=message):
        import_netcdf(tmp_path / "new.zarr", {4: both}, progress=False, **options)
    assert not list(tmp_path.glob("new.zarr*"))


@pytest.fixture
def values_read(monkeypatch):
    """The number of values that are read of each array of an HDF5 file."""
    read, get = Counter(), h5py.Dataset.__getitem__

    def counted(self, index, **options):
        found = get(self, index, **options)
        read[self.name.rpartition("/")[2]] += np.size(found)
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    return read


@pytest.mark.parametrize("kind", ["pdebench", "fno_mat"])
def test_sample_of_a_file_is_read_once(tmp_path, values_read, kind):
    """Also where files end within a chunk of the store, and chunks do not divide the samples."""
    fields, parts = [values(n, n, 4, 6) for n in (7, 6)], []
    for i, field in enumerate(fields):
        arrays = {"a": field[:, 0].T, "u": field[:, 1].T}
        if kind == "pdebench":
            centres = (np.arange(6) + 0.5) / 6
            arrays = {"tensor": field, "x-coordinate": centres, "t-coordinate": np.arange(4.0)}
        parts.append(write_hdf5(tmp_path / f"{i}.h5", arrays))
    if kind == "pdebench":
        store = import_pde(tmp_path / "s.zarr", *parts, chunk=3, **LINE)
        np.testing.assert_array_equal(store.read(6, "u"), np.concatenate(fields))
        assert values_read["tensor"] == 13 * 4 * 6
    else:
        store = import_fno_mat(tmp_path / "s.zarr", {"train": parts}, kind="burgers", chunk=3, progress=False)
        np.testing.assert_array_equal(store.read(6, "velocity"), np.concatenate(fields)[:, 1])
        assert values_read["a"] + values_read["u"] == 2 * 13 * 6


@pytest.mark.parametrize(("engine", "chunk"), [("scipy", 5), ("h5netcdf", None)])
def test_netcdf_file_is_read_once_and_a_chunk_written_once(tmp_path, monkeypatch, engine, chunk):
    """Two files that end within a chunk of the store, and a finer resolution with the last split only."""
    made = {}
    for name, n, samples in (("0", 64, 180), ("1", 64, 120), ("fine", 128, 100)):
        grid = Grid.uniform((n, n), registration="cell")
        dims, (y, x) = ("sample", "y", "x"), grid.points
        data = {key: (dims, values(seed, samples, n, n)) for seed, key in enumerate("au")}
        made[name] = xr.Dataset(data, {"y": y, "x": x})
    made["fine"] = made["fine"].assign_coords(sample=np.arange(200, 300))
    for name, data in made.items():
        data.to_netcdf(tmp_path / f"{name}.nc", engine=engine)
    read, written = Counter(), Counter()
    wrapper = ScipyArrayWrapper if engine == "scipy" else H5NetCDFArrayWrapper
    get, put = wrapper._getitem if engine == "h5netcdf" else wrapper.__getitem__, LocalStore.set

    def counted(self, key):
        found = get(self, key)
        read[self.variable_name] += np.size(found)
        return found

    async def noted(self, key, value):
        written[key] += 1
        await put(self, key, value)

    monkeypatch.setattr(wrapper, get.__name__, counted)
    monkeypatch.setattr(LocalStore, "set", noted)
    store = import_netcdf(
        tmp_path / "s.zarr",
        {64: [tmp_path / "0.nc", tmp_path / "1.nc"], 128: tmp_path / "fine.nc"},
        inputs=["a"],
        outputs=["u"],
        splits={"train": 200, "test": 100},
        registration="cell",
        domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
        boundary_conditions={"x": "open", "y": "open"},
        chunk=chunk,
        progress=False,
    )
    assert store.layout.chunk == (chunk or 10)
    for name in ("a", "u"):
        assert read[name] == sum(made[part][name].size for part in made)
        np.testing.assert_array_equal(store.read(64, name), np.concatenate([made[i][name] for i in "01"]))
        np.testing.assert_array_equal(store.read(128, name), made["fine"][name])
    chunks = {key: n for key, n in written.items() if "/u/c/" in key or "/a/c/" in key}
    assert len(chunks) == 2 * (300 + 100) // store.layout.chunk and set(chunks.values()) == {1}


@pytest.mark.parametrize("chunk", [2, None])
def test_sample_of_the_well_is_read_once(tmp_path, values_read, chunk):
    """Of scalars, vectors and tensors, and of what is the same for all samples of a file."""
    parts = [well(tmp_path / f"{n}.h5", n) for n in (5, 3)]
    store = import_well(tmp_path / "s.zarr", *(file for file, _ in parts), chunk=chunk)
    for name in ("t0_fields/pressure", "t0_fields/height", "t1_fields/velocity", "t2_fields/stress"):
        size = sum(arrays[name].size for _, arrays in parts)
        assert (name, values_read[name.partition("/")[2]]) == (name, size)
    pressure = np.concatenate([arrays["t0_fields/pressure"] for _, arrays in parts])
    np.testing.assert_array_equal(store.read((4, 5), "pressure"), pressure)


@pytest.mark.parametrize("kind", ["h5netcdf", "the_well"])
def test_workers_of_a_cluster_read_files(tmp_path, scheduler, kind):
    if kind == "the_well":
        parts = [well(tmp_path / f"{n}.h5", n)[0] for n in (5, 3)]
        run = lambda path, **options: import_well(path, *parts, chunk=2, **options)  # noqa: E731
    else:
        parts = [netcdf(tmp_path / f"{n}.nc", i, n, kind)[0] for i, n in enumerate((5, 3))]
        about = LABELLED | {"splits": {"train": 8}, "chunk": 2, "progress": False}
        run = lambda path, **options: import_netcdf(path, {(4, 5): parts}, **about, **options)  # noqa: E731
    run(tmp_path / "threads.zarr")
    with Client(scheduler) as client:
        run(tmp_path / "cluster.zarr", client=client)
    assert files(tmp_path / "cluster.zarr") == files(tmp_path / "threads.zarr")
