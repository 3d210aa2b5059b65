"""Files in published layouts, built here from their specifications, become the fields that are in them."""

from collections import Counter

import h5py
import numpy as np
import pytest
import scipy.io
import xarray as xr
from distributed import Client
from helpers import files
from xarray.backends.h5netcdf_ import H5NetCDFArrayWrapper
from xarray.backends.scipy_ import ScipyArrayWrapper
from zarr.storage import LocalStore

from mano_op.data.check import check_store
from mano_op.data.importers import import_fno_mat, import_netcdf, import_pdebench, import_the_well
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

RANDOM = np.random.default_rng(0)
TIMES = np.array([0.0, 0.1, 0.2, 0.3], dtype=np.float32)
CELLS = Grid.uniform((6, 8), registration="cell", names=("x", "y"))
UNIT = {"x": (0.0, 1.0), "y": (0.0, 1.0)}
LINE = {"boundary_conditions": {"x": "periodic"}, "domain": {"x": (0.0, 1.0)}}


def values(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def right(store):
    assert check_store(store.path, progress=False) == []
    return open_store(store.path)


def pdebench(path, fields, grid=CELLS, times=TIMES):
    with h5py.File(path, "w") as file:
        for name, array in fields.items():
            file[name] = array
        for axis in grid:
            file[f"{axis.name}-coordinate"] = axis.points.astype(np.float32)
        if times is not None:
            file["t-coordinate"] = np.append(times, times[-1] + 0.1)  # one more than the fields have
    return path


def import_pde(path, files, **options):
    options = {"boundary_conditions": {"x": "periodic", "y": "periodic"}, "domain": UNIT} | options
    return import_pdebench(path, files, progress=False, **options)


def test_pdebench_groups_become_samples(tmp_path):
    data = values(3, 4, 6, 8, 2)
    with h5py.File(tmp_path / "reaction.h5", "w") as file:
        for i, sample in enumerate(data):
            group = file.create_group(f"{i:04d}")
            group["data"] = sample
            for name, points in (("t", TIMES), *((axis.name, axis.points) for axis in CELLS)):
                group[f"grid/{name}"] = points
    files = {"train": [tmp_path / "reaction.h5"]}
    options = {"boundary_conditions": {"x": "neumann", "y": "neumann"}}
    names = ("activator", "inhibitor")
    store = right(import_pde(tmp_path / "r.zarr", files, variables=names, **options))
    for i, name in enumerate(store.outputs):
        np.testing.assert_array_equal(store.read((6, 8), name), data[..., i])
    for names in (("u",), ("u", "u")):
        with pytest.raises(InputError, match=r"expected one name for each field .*, each once: give 2"):
            import_pde(tmp_path / "s.zarr", files, variables=names)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"density": values(2, 4, 6, 8)}, {}, r"other.hdf5: variables = .*density.*, in .*u"),
        (
            {"tensor": values(2, 4, 6, 9)},
            {"grid": Grid.uniform((6, 9), names=("x", "y"))},
            "points along y = 9, in .* 8",
        ),
        ({"tensor": values(2, 4, 6, 8)}, {"times": TIMES[:2]}, r"times: shape \(3,\); expected"),
        (None, {}, r"other.hdf5 cannot be opened \(OSError: .*expected an HDF5 file"),
    ],
)
def test_pdebench_files_that_do_not_fit_are_refused(tmp_path, fields, options, message):
    good = pdebench(tmp_path / "good.hdf5", {"tensor": values(2, 4, 6, 8)})
    other = tmp_path / "other.hdf5"
    other.write_text("no HDF5") if fields is None else pdebench(other, fields, **options)
    with pytest.raises(InputError, match=message):
        import_pde(tmp_path / "new.zarr", {"train": [good, other]})
    assert not (tmp_path / "new.zarr").exists()


def test_nan_in_a_file_names_its_sample_and_keeps_earlier_ones(tmp_path):
    tensor = values(4, 4, 6, 8)
    tensor[2, 1, 0, 0] = np.nan
    file = pdebench(tmp_path / "a.hdf5", {"tensor": tensor})
    with pytest.raises(InputError, match="r6x8/u: sample 2 has a NaN"):
        import_pde(tmp_path / "new.zarr", {"train": [file]}, chunk=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.hdf5", "new.zarr.partial"]
    begun = open_store(tmp_path / "new.zarr", incomplete=True)
    assert 2 in [samples.start for samples in begun.pending()]


def well(path, n, *, conditions=(("x", "PERIODIC"), ("y", "WALL")), grid_type="cartesian", grid=CELLS):
    made = {
        "pressure": values(n, 4, 6, 8),
        "porosity": values(n, 6, 8),
        "height": values(6),
        "velocity": values(n, 4, 6, 8, 2),
        "stress": values(n, 4, 6, 8, 2, 2),
    }
    with h5py.File(path, "w") as file:
        file.attrs.update(n_trajectories=n, n_spatial_dims=2, grid_type=grid_type, dataset_name="channel")
        file.create_group("dimensions").attrs["spatial_dims"] = [axis.name for axis in grid]
        file["dimensions/time"] = TIMES
        for axis in grid:
            file[f"dimensions/{axis.name}"] = axis.points.astype(np.float32)
        for i, (axis, kind) in enumerate(conditions):
            group = file.create_group(f"boundary_conditions/{axis}_{i}")
            group.attrs.update(bc_type=kind, associated_dims=[axis])
            group["mask"] = np.ones(4, dtype=bool)
        flags = {
            "t0_fields/pressure": (True, True, [True, True]),
            "t0_fields/porosity": (True, False, [True, True]),
            "t0_fields/height": (False, False, [True, False]),
            "t1_fields/velocity": (True, True, [True, True]),
            "t2_fields/stress": (True, True, [True, True]),
        }
        for name, (sample, time, along) in flags.items():
            file[name] = made[name.partition("/")[2]]
            file[name].attrs.update(sample_varying=sample, time_varying=time, dim_varying=along)
    return made


def import_well(path, *parts, **options):
    files = dict(zip(("train", "test"), ([part] for part in parts), strict=False))
    return import_the_well(path, files, registration="cell", domain=UNIT, progress=False, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid_type": "spherical"}, "grid_type='spherical'; expected one of cartesian"),
        ({"conditions": (("x", "PERIODIC"),)}, "has no boundary condition of axis 'y'"),
    ],
)
def test_well_files_that_do_not_fit_are_refused(tmp_path, options, message):
    well(tmp_path / "a.hdf5", 2, **options)
    with pytest.raises(InputError, match=message):
        import_well(tmp_path / "w.zarr", tmp_path / "a.hdf5")
    assert not (tmp_path / "w.zarr").exists()


def test_well_walls_that_differ_are_mixed_and_scalars_are_kept(tmp_path):
    well(tmp_path / "well.h5", 2, conditions=(("x", "PERIODIC"), ("y", "WALL"), ("y", "OPEN")))
    with h5py.File(tmp_path / "well.h5", "r+") as file:
        scalars = file.require_group("scalars")
        scalars["Re"], scalars["each"] = 1e4, np.arange(2.0)
    store = import_well(tmp_path / "w.zarr", tmp_path / "well.h5")
    assert store.layout.boundary_conditions == {"x": "periodic", "y": "mixed"}
    assert store.attrs["title"] == "channel"
    assert store.attrs["provenance"]["scalars"] == {"well.h5": {"Re": 1e4}}


def save_mat(path, arrays, version):
    if version == 5:
        scipy.io.savemat(path, arrays)
        return path
    with h5py.File(path, "w") as file:  # 7.3: the first index varies fastest
        for name, array in arrays.items():
            file[name] = np.asarray(array).T
    return path


@pytest.mark.parametrize("version", [5, 7.3])
def test_fno_files_that_do_not_fit_are_refused(tmp_path, version):
    file = save_mat(tmp_path / "a.mat", {"a": values(4, 16), "u": values(4, 8)}, version)
    for kind, message in (
        ("burgers", r"u: shape \(4, 8\); expected \(4, 16\)"),
        ("darcy", "has no array 'coeff'; it has a, u"),
        ("waves", "kind='waves'; expected one of burgers, darcy"),
    ):
        with pytest.raises(InputError, match=message):
            import_fno_mat(tmp_path / "new.zarr", {"train": [file]}, kind=kind, progress=False)
    (tmp_path / "text.mat").write_text("no MATLAB file, but text that is long enough to have a header " * 4)
    with pytest.raises(InputError, match="is no MATLAB file"):
        import_fno_mat(tmp_path / "new.zarr", {"train": [tmp_path / "text.mat"]}, kind="darcy")
    assert not (tmp_path / "new.zarr").exists()


def test_matlab_objects_are_no_fields(tmp_path):
    scipy.io.savemat(tmp_path / "cell.mat", {"a": np.array([{"x": 1.0}], dtype=object), "u": values(1, 4)})
    with pytest.raises(InputError, match="expected real numbers"):
        import_fno_mat(tmp_path / "new.zarr", {"train": [tmp_path / "cell.mat"]}, kind="burgers")


CLIMATE = {
    "sample": "member",
    "time": "t",
    "inputs": ["orography"],
    "outputs": ["q"],
    "registration": "cell",
    "domain": {"x": (0.0, 1.0), "height": (-90.0, 90.0)},
    "boundary_conditions": {"x": "periodic", "height": "open"},
}


def netcdf(path, samples, *, engine="scipy"):
    height = CELLS.axes[1].points * 180 - 90
    dims = ("member", "t", "x", "height")
    data = xr.Dataset(
        {"q": (dims, values(samples, 4, 6, 8)), "orography": (dims[:1] + dims[2:], values(samples, 6, 8))},
        {"x": CELLS.axes[0].points, "height": height, "t": TIMES},
    )
    data["q"].attrs["units"] = "kg kg-1"
    data.to_netcdf(path, engine=engine)
    return data


def test_netcdf_files_of_both_versions_are_concatenated(tmp_path):
    parts = [netcdf(tmp_path / "0.nc", 3), netcdf(tmp_path / "1.nc", 2, engine="h5netcdf")]
    files = [tmp_path / "0.nc", tmp_path / "1.nc"]
    options = CLIMATE | {"splits": {"train": 3, "test": 2}, "progress": False}
    store = right(import_netcdf(tmp_path / "both.zarr", {(6, 8): files}, **options))
    np.testing.assert_array_equal(store.read((6, 8), "q"), np.concatenate([part["q"] for part in parts]))
    assert store.variables[1].units == "kg kg-1" and store.attrs["provenance"]["files"] == ["0.nc", "1.nc"]
    for without in ({}, "runs.nc", {(6, 8): []}):
        with pytest.raises(InputError, match="expected at least one for each"):
            import_netcdf(tmp_path / "new.zarr", without, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["q"].attrs.update(units="hPa"), "1.nc: units of q = 'hPa', in .*0.nc 'Pa'"),
        (lambda data: data["q"].attrs.update(cell_methods="area: mean"), "cell_methods of q = 'area: mean'"),
        (lambda data: data["q"].attrs.pop("units"), "units of q = None"),
        (lambda data: data["x"].attrs.update(units="km"), "units of x = 'km'"),
        (lambda data: data.assign_coords(x=data["x"] + 0.01), "1.nc: x = .*, in .*0.nc"),
        (lambda data: data.isel(x=slice(0, 3)), "1.nc: points along x = 3, in .*0.nc 4"),
        (lambda data: data.rename(q="p"), "1.nc: variables = .'a', 'p'., in .*0.nc .'a', 'q'."),
        (lambda data: data.drop_vars("x"), "1.nc: coordinates = .., in .*0.nc .'x'."),
        (lambda data: data.transpose("x", "sample"), "dimensions of a ="),
    ],
)
def test_netcdf_files_that_do_not_continue_each_other_are_refused(tmp_path, change, message):
    options = LINE | {"inputs": ["a"], "outputs": ["q"], "splits": {"train": 4}, "registration": "cell"}
    for i in range(2):
        dims = ("sample", "x")
        made = xr.Dataset(
            {"a": (dims, values(2, 4)), "q": (dims, values(2, 4), {"units": "Pa"})},
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
    fields = [values(n, 4, 6).astype(np.float32) for n in (7, 6)]
    for i, field in enumerate(fields):
        with h5py.File(tmp_path / f"{i}.h5", "w") as file:
            if kind == "pdebench":
                file["tensor"], file["x-coordinate"] = field, (np.arange(6) + 0.5) / 6
                file["t-coordinate"] = np.arange(4.0)
            else:
                file["a"], file["u"] = field[:, 0].T, field[:, 1].T
    files = {"train": [tmp_path / "0.h5", tmp_path / "1.h5"]}
    if kind == "pdebench":
        store = import_pde(tmp_path / "s.zarr", files, chunk=3, **LINE)
        np.testing.assert_array_equal(store.read(6, "u"), np.concatenate(fields))
        assert values_read["tensor"] == 13 * 4 * 6
    else:
        store = import_fno_mat(tmp_path / "s.zarr", files, kind="burgers", chunk=3, progress=False)
        np.testing.assert_array_equal(store.read(6, "velocity"), np.concatenate(fields)[:, 1])
        assert values_read["a"] + values_read["u"] == 2 * 13 * 6


@pytest.mark.parametrize(("engine", "chunk"), [("scipy", 5), ("h5netcdf", None)])
def test_netcdf_file_is_read_once_and_a_chunk_written_once(tmp_path, monkeypatch, engine, chunk):
    """Two files that end within a chunk of the store, and a finer resolution that holds the last split only."""
    made = {}
    for name, n, samples in (("0", 64, 180), ("1", 64, 120), ("fine", 128, 100)):
        grid = Grid.uniform((n, n), registration="cell")
        dims, (y, x) = ("sample", "y", "x"), grid.points
        data = {key: (dims, values(samples, n, n)) for key in ("a", "u")}
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
    parts = [well(tmp_path / f"{i}.h5", n) for i, n in enumerate((5, 3))]
    store = import_well(tmp_path / "s.zarr", tmp_path / "0.h5", tmp_path / "1.h5", chunk=chunk)
    for name in ("pressure", "porosity", "velocity", "stress"):
        assert (name, values_read[name]) == (name, sum(part[name].size for part in parts))
    assert values_read["height"] == 2 * 6
    pressure = np.concatenate([part["pressure"] for part in parts])
    np.testing.assert_array_equal(store.read((6, 8), "pressure"), pressure)


@pytest.mark.parametrize("kind", ["h5netcdf", "the_well"])
def test_workers_of_a_cluster_read_files(tmp_path, scheduler, kind):
    made = {}
    with Client(scheduler) as client:
        for name, where in (("here", {}), ("there", {"client": client})):
            path, options = tmp_path / f"{name}.zarr", {"registration": "cell", "chunk": 2, "progress": False}
            if kind == "the_well":
                parts = [tmp_path / "0.h5", tmp_path / "1.h5"]
                made = made or {file: well(file, n) for file, n in zip(parts, (5, 3), strict=True)}
                store = import_the_well(path, {"train": parts}, domain=UNIT, **options, **where)
            else:
                parts = [tmp_path / "0.nc", tmp_path / "1.nc"]
                made = made or {
                    file: netcdf(file, n, engine=kind) for file, n in zip(parts, (5, 3), strict=True)
                }
                options |= CLIMATE | {"splits": {"train": 8}}
                store = import_netcdf(path, {(6, 8): parts}, **options, **where)
    assert files(tmp_path / "there.zarr") == files(tmp_path / "here.zarr")
    name = "pressure" if kind == "the_well" else "q"
    expected = np.concatenate([np.asarray(part[name]) for part in made.values()])
    np.testing.assert_array_equal(store.read((6, 8), name), expected)


def test_groups_and_attributes_that_are_missing_are_named(tmp_path):
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        file["0000/data"] = np.zeros((3, 6, 1), dtype=np.float32)
    with pytest.raises(InputError, match="0000 has no group 'grid'"):
        import_pde(tmp_path / "s.zarr", {"train": [tmp_path / "groups.h5"]}, **LINE)
    well(tmp_path / "well.h5", 2)
    with h5py.File(tmp_path / "well.h5", "r+") as file:
        del file["t0_fields/height"].attrs["sample_varying"]
    with pytest.raises(InputError, match="has no attribute 'sample_varying'"):
        import_well(tmp_path / "s.zarr", tmp_path / "well.h5")
    with h5py.File(tmp_path / "group.mat", "w") as file:
        file["a/b"], file["u"] = np.zeros(3), np.zeros((6, 2))
    with pytest.raises(InputError, match="no data set 'a'"):
        import_fno_mat(tmp_path / "s.zarr", {"train": [tmp_path / "group.mat"]}, kind="burgers")
