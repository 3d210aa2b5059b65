"""Whatever lies in a file: an importer makes a store of its very values, or says what is wrong with it."""

import tempfile
import warnings
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st

from mano_op.data.check import check_store
from mano_op.data.importers import (
    import_fno_mat,
    import_netcdf,
    import_neuralop_pt,
    import_pdebench,
    import_the_well,
)
from mano_op.data.layout import Variable
from mano_op.data.times import Times
from mano_op.errors import InputError

NAMES = [
    "time",
    "sample",
    "split",
    "bnds",
    "x",
    "t",
    "2m_temperature",
    "a b",
    "\N{DEGREE SIGN}C",
    "__u",
    "u+1",
]
DTYPES = ["f2", "f8", ">f4", ">f8", "i2", ">i4", "i8", "u1", "?", "c8", "S4", "O"]
SHAPES = [
    lambda array, axis: array[None],
    lambda array, axis: array[..., None],
    lambda array, axis: array.take(0, axis),
    lambda array, axis: array.take(range(1), axis),
    lambda array, axis: array.take([], axis),
    lambda array, axis: array.take(range(array.shape[axis] - 1), axis),
    lambda array, axis: np.concatenate([array, array + 1000], axis),
    lambda array, axis: np.flip(array, axis),
    lambda array, axis: np.moveaxis(array, axis, 0),
    lambda array, axis: array.T,
    lambda array, axis: array.flat[0],
    lambda array, axis: np.full_like(array, np.nan),
    lambda array, axis: array + 1e9,
    lambda array, axis: array + 0.1,
]
ATTRIBUTES = [None, 3, -1, 2.5, "one", "", b"two", np.nan, [1, 2, 3], ["x"], ["x", "y", "z"], True, [[True]]]


def values(seed, *shape):
    return 100 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def retyped(array, dtype):
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(array).astype(str if dtype == "O" else dtype).astype(dtype)


@st.composite
def changes(draw, names):
    """A change of one array of a file: of its shape, its type or its name."""
    name = draw(st.sampled_from(names))
    what = draw(st.sampled_from(["shape", "shape", "type", "name", "copy"]))
    if what == "shape":
        reshape, axis = draw(st.sampled_from(SHAPES)), draw(st.integers(0, 4))

        def change(array):
            array = np.asarray(array)
            assume(array.ndim and array.size and array.dtype.kind == "f")
            return np.asarray(reshape(array, axis % array.ndim))

        return lambda arrays: arrays | {name: change(arrays[name])} if name in arrays else arrays
    if what == "type":
        dtype = draw(st.sampled_from(DTYPES))
        return lambda arrays: arrays | {name: retyped(arrays[name], dtype)} if name in arrays else arrays
    new = draw(st.sampled_from([None, *NAMES, *names]))

    def rename(arrays):
        kept = {key: array for key, array in arrays.items() if key != name or what == "copy"}
        return kept | ({new: arrays[name]} if new is not None and name in arrays else {})

    return rename


@st.composite
def contents(draw, make, n_files=2):
    """What lies in each file of a layout; up to two changes in the first, the second or all."""
    files = [make(i) for i in range(n_files)]
    for change in draw(st.lists(changes(sorted(files[0])), max_size=2)):
        places = draw(st.sampled_from([[0], [1], [0, 1]]))
        files = [change(arrays) if i in places else arrays for i, arrays in enumerate(files)]
    return files


def imported(call):
    """The store that an importer makes, which is as the format asks; None if it refuses the file."""
    try:
        store = call()
    except InputError as error:
        assert len(str(error)) > 20, str(error)
        return None
    assert check_store(store.path, progress=False) == []
    return store


def assert_fields(store, expected):
    assert sorted([*store.inputs, *store.outputs]) == sorted(expected)
    (level,) = store.grids
    for name, parts in expected.items():
        wanted = np.concatenate([np.asarray(part) for part in parts]).astype(np.float32)
        np.testing.assert_array_equal(store.read(level, name), wanted)


def assert_axes(store, points):
    (grid,) = store.grids.values()
    assert list(grid.names) == list(points)
    for axis in grid:
        np.testing.assert_allclose(np.asarray(points[axis.name], dtype=float), axis.points, atol=1e-2)


def write_hdf5(path, arrays, attributes=()):
    """Arrays by their paths in an HDF5 file, where these fit one another."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            try:
                file[name] = array
            except (ValueError, OSError, TypeError):  # a group in the place of an array, say
                assume(False)
        for name, given in dict(attributes).items():
            for key, value in given.items():
                if name in file and value is not None:
                    file[name].attrs[key] = value
    return path


CENTRES = {"x": (np.arange(4) + 0.5) / 4, "y": (np.arange(5) + 0.5) / 5}
TIMES = np.arange(4.0)


def pde_fields(names, axes, seed):
    shape = [len(CENTRES[axis]) for axis in axes]
    made = {name: values(10 * seed + i, 2, 3, *shape) for i, name in enumerate(names)}
    return made | {f"{axis}-coordinate": CENTRES[axis] for axis in axes} | {"t-coordinate": TIMES}


def pde_darcy(seed):
    steady = {"nu": values(10 * seed, 2, 4, 5), "tensor": values(10 * seed + 1, 2, 1, 4, 5)}
    return steady | {f"{axis}-coordinate": points for axis, points in CENTRES.items()}


def pde_groups(seed):
    made = {}
    for i in range(2):
        made[f"000{i}/data"] = values(10 * seed + i, 3, 4, 5, 2)
        made |= {f"000{i}/grid/t": TIMES[:3]} | {f"000{i}/grid/{axis}": CENTRES[axis] for axis in CENTRES}
    return made


PDEBENCH = {
    "tensor": (partial(pde_fields, ["tensor"], ["x"]), "x"),
    "plane tensor": (partial(pde_fields, ["tensor"], ["x", "y"]), "xy"),
    "fields": (partial(pde_fields, ["Vx", "density"], ["x", "y"]), "xy"),
    "darcy": (pde_darcy, "xy"),
    "groups": (pde_groups, "xy"),
}


def pde_expected(files):
    """The fields that files hold, by the rules of their layouts."""
    if any("/data" in name for name in files[0]):
        samples = [array for arrays in files for name, array in sorted(arrays.items()) if "/data" in name]
        return {f"u{i}": [np.stack(samples)[..., i]] for i in range(samples[0].shape[-1])}
    fields = {
        name: [np.asarray(arrays[name]) for arrays in files]
        for name, array in files[0].items()
        if "coordinate" not in name and np.ndim(array) > 1 + ("y-coordinate" in files[0])
    }
    if "nu" in fields:
        fields["tensor"] = [array[:, 0] for array in fields["tensor"]]
    renamed = "nu" in fields or len(fields) == 1
    return {"u" if name == "tensor" and renamed else name: parts for name, parts in fields.items()}


@pytest.mark.parametrize("layout", PDEBENCH)
@given(data=st.data())
def test_a_pdebench_file_is_imported_as_it_is_or_refused(layout, data):
    make, axes = PDEBENCH[layout]
    files = data.draw(contents(make))
    axes = data.draw(st.sampled_from([axes, axes, axes, "x", "yx"]))
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_hdf5(Path(folder, f"{i}.h5"), arrays) for i, arrays in enumerate(files)]
        store = imported(
            lambda: import_pdebench(
                f"{folder}/s.zarr",
                {"train": paths[:1], "test": paths[1:]},
                boundary_conditions=dict.fromkeys(axes, "periodic"),
                domain=dict.fromkeys(axes, (0.0, 1.0)),
                progress=False,
            )
        )
        if store is None:
            return
        assert_fields(store, pde_expected(files))
        place = "{}-coordinate" if "x-coordinate" in files[0] else "0000/grid/{}"
        assert_axes(store, {axis: files[0][place.format(axis)] for axis in store.layout.coordinates})
        if times := store.layout.times:
            np.testing.assert_array_equal(times, np.asarray(files[0][place.format("t")])[: len(times)])


def well_arrays(seed):
    return {
        "dimensions/time": TIMES[:3],
        "dimensions/x": CENTRES["x"],
        "dimensions/y": CENTRES["y"],
        "t0_fields/pressure": values(10 * seed, 2, 3, 4, 5),
        "t0_fields/height": values(10 * seed + 1, 4, 1),
        "t1_fields/velocity": values(10 * seed + 2, 2, 3, 4, 5, 2),
        "t2_fields/stress": values(10 * seed + 3, 2, 4, 5, 2, 2),
        "boundary_conditions/x_open/mask": np.ones(4, dtype=bool),
        "boundary_conditions/y_wall/mask": np.ones(5, dtype=bool),
    }


WELL = {
    "/": {"n_trajectories": 2, "n_spatial_dims": 2, "grid_type": "cartesian", "dataset_name": "made"},
    "dimensions": {"spatial_dims": ["x", "y"]},
    "t0_fields": {"field_names": ["pressure", "height"]},
    "t0_fields/pressure": {"sample_varying": True, "time_varying": True, "dim_varying": [True, True]},
    "t0_fields/height": {"sample_varying": False, "time_varying": False, "dim_varying": [True, False]},
    "t1_fields/velocity": {"sample_varying": True, "time_varying": True, "dim_varying": [True, True]},
    "t2_fields/stress": {"sample_varying": True, "time_varying": False, "dim_varying": [True, True]},
    "boundary_conditions/x_open": {"bc_type": "OPEN", "associated_dims": ["x"]},
    "boundary_conditions/y_wall": {"bc_type": "WALL", "associated_dims": ["y"]},
}


@st.composite
def well_attributes(draw):
    """The attributes of a file of The Well, up to one of them missing or of another type or value."""
    made = {name: dict(about) for name, about in WELL.items()}
    for _ in range(draw(st.integers(0, 1))):
        name = draw(st.sampled_from(sorted(made)))
        key = draw(st.sampled_from(sorted(made[name])))
        made[name][key] = draw(st.sampled_from(ATTRIBUTES))
    return made


def well_expected(files):
    first = files[0]
    found = {}
    for name in first:
        group, _, field = name.partition("/")
        parts = [np.asarray(arrays[name]) for arrays in files if name in arrays]
        if group not in ("t0_fields", "t1_fields", "t2_fields"):
            continue
        if field == "height":
            parts = [np.broadcast_to(part.reshape(4, 1), (2, 4, 5)) for part in parts]
        components = {"t0_fields": [""], "t1_fields": ["_x", "_y"], "t2_fields": ["_xx", "_xy", "_yx", "_yy"]}
        for i, component in enumerate(components[group]):
            picked = [
                part if not component else part.reshape(*part.shape[: 4 - (group == "t2_fields")], -1)[..., i]
                for part in parts
            ]
            found[field + component] = picked
    return found


@given(data=st.data())
def test_a_file_of_the_well_is_imported_as_it_is_or_refused(data):
    files = data.draw(contents(well_arrays))
    attributes = [WELL, data.draw(well_attributes())]
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            write_hdf5(Path(folder, f"{i}.h5"), arrays, about)
            for i, (arrays, about) in enumerate(
                zip(files, data.draw(st.permutations(attributes)), strict=True)
            )
        ]
        store = imported(
            lambda: import_the_well(
                f"{folder}/s.zarr",
                {"train": paths[:1], "test": paths[1:]},
                registration="cell",
                domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
                progress=False,
            )
        )
        if store is None:
            return
        assert store.layout.boundary_conditions == {"x": "open", "y": "wall"}
        assert_fields(store, well_expected(files))
        assert_axes(store, {axis: files[0][f"dimensions/{axis}"] for axis in "xy"})
        if store.layout.times:
            np.testing.assert_array_equal(store.layout.times, files[0]["dimensions/time"])


MATLAB = {
    "burgers": lambda seed: {"a": values(10 * seed, 2, 5), "u": values(10 * seed + 1, 2, 5)},
    "darcy": lambda seed: {"coeff": values(10 * seed, 2, 4, 5), "sol": values(10 * seed + 1, 2, 4, 5)},
    "navier_stokes": lambda seed: {
        "a": values(10 * seed, 2, 4, 5),
        "u": values(10 * seed + 1, 2, 4, 5, 3),
        "t": TIMES[None, 1:],
    },
}
MATLAB_NAMES = {"a": "initial", "u": "velocity", "coeff": "permeability", "sol": "pressure"}
FLOW_NAMES = {"a": "initial_vorticity", "u": "vorticity"}


def write_mat(path, arrays, version):
    if version == 7.3:
        return write_hdf5(path, {name: np.asarray(array).T for name, array in arrays.items()})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scipy.io.savemat(path, arrays)
    except (ValueError, TypeError, OSError):
        assume(False)
    return path


@pytest.mark.parametrize("version", [5, 7.3])
@pytest.mark.parametrize("kind", MATLAB)
@given(data=st.data())
def test_a_matlab_file_is_imported_as_it_is_or_refused(kind, version, data):
    files = data.draw(contents(MATLAB[kind]))
    said = data.draw(st.sampled_from([kind, kind, kind, *MATLAB]))
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_mat(Path(folder, f"{i}.mat"), arrays, version) for i, arrays in enumerate(files)]
        store = imported(
            lambda: import_fno_mat(
                f"{folder}/s.zarr", {"train": paths[:1], "test": paths[1:]}, kind=said, progress=False
            )
        )
        if store is None:
            return
        names = FLOW_NAMES if said == "navier_stokes" else MATLAB_NAMES
        expected = {names[name]: [arrays[name] for arrays in files] for name in files[0] if name in names}
        if said == "navier_stokes":
            expected["vorticity"] = [np.moveaxis(part, -1, 1) for part in expected["vorticity"]]
            np.testing.assert_array_equal(store.layout.times, np.ravel(files[0]["t"]))
        assert_fields(store, {name: expected[name] for name in (*store.inputs, *store.outputs)})


def labelled(seed):
    """The arrays of a NetCDF file; which of its dimensions each of their lengths is, is said by that."""
    return {
        "a": values(10 * seed, 2, 4, 5),
        "u": values(10 * seed + 1, 2, 3, 4, 5),
        "run": 2 * seed + np.arange(2),
        "t": TIMES[:3],
        "x": CENTRES["x"],
        "y": CENTRES["y"],
    }


DIMENSIONS = {"a": ("run", "x", "y"), "u": ("run", "t", "x", "y")}
UNITS = ["1", "m", "days since 2000-01-01", "hours", "degrees_north", "nonsense since then", "", 3]


HALVES = "`pandas.Index` does not support the `float16`"


def write_netcdf(path, arrays, engine, units):
    try:
        data = xr.Dataset()
        for name, array in arrays.items():
            array = np.asarray(array)
            dims = [*DIMENSIONS.get(name, (name,)), "extra", "more"][: array.ndim]
            data[name] = (dims, array, {"units": units[name]} if name in units else {})
        data.to_netcdf(path, engine=engine)
    except (ValueError, TypeError, OSError, KeyError, NotImplementedError, OverflowError):
        assume(False)
    return path


@pytest.mark.parametrize("engine", ["scipy", "h5netcdf"])
@given(data=st.data())
def test_a_netcdf_file_is_imported_as_it_is_or_refused(engine, data):
    files = data.draw(contents(labelled))
    units = data.draw(
        st.dictionaries(st.sampled_from(["u", "run", "t", "x"]), st.sampled_from(UNITS), max_size=1)
    )
    relabel = data.draw(st.booleans())
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", HALVES)
        paths = [
            write_netcdf(Path(folder, f"{i}.nc"), arrays, engine, units) for i, arrays in enumerate(files)
        ]
        store = imported(
            lambda: import_netcdf(
                f"{folder}/s.zarr",
                {(4, 5): paths},
                sample="run",
                time="t",
                relabel=relabel,
                inputs=["a"],
                outputs=["u"],
                splits={"train": 2, "test": 2},
                registration="cell",
                domain={"x": (0.0, 1.0), "y": (0.0, 1.0)},
                boundary_conditions={"x": "open", "y": "periodic"},
                progress=False,
            )
        )
        if store is None:
            return
        turned = tuple(
            slice(None, None, -1 if np.diff(files[0][axis]).sum() < 0 else 1) for axis in ("x", "y")
        )
        expected = {name: [np.asarray(arrays[name])[(..., *turned)] for arrays in files] for name in "au"}
        assert_fields(store, expected)
        if store.layout.times and "since" not in str(units.get("t")):
            np.testing.assert_array_equal(store.layout.times, files[0]["t"])


TENSORS = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@st.composite
def tensor_files(draw, problem):
    """Two files at 4 and 8 points for each split, up to two of their tensors changed."""
    made = {}
    for seed, split in enumerate(("train", "test")):
        fine = {name: torch.from_numpy(values(10 * seed + i, 2, 8, 8)) for i, name in enumerate("xy")}
        if problem == "darcy":
            fine["x"] = (fine["x"] > 0).float()
        for n in (4, 8):
            made[split, n] = {name: tensor[:, :: 8 // n, :: 8 // n].clone() for name, tensor in fine.items()}
    for _ in range(draw(st.integers(0, 2))):
        places = draw(st.sampled_from([*([place] for place in made), list(made)]))
        name = draw(st.sampled_from("xy"))
        what = draw(st.sampled_from(["shape", "type", "missing", "content"]))
        axis, reshape, dtype = (draw(st.sampled_from(some)) for some in (range(3), SHAPES, TENSORS))
        content = draw(st.sampled_from([None, 1.0, "x", [1, 2], {"x": 1}, torch.zeros(2, 4, 4).to_sparse()]))
        for place in places:
            tensor = made[place].get(name)
            if not isinstance(tensor, torch.Tensor):
                continue
            if what == "shape" and tensor.ndim and tensor.numel() and tensor.dtype == torch.float32:
                changed = np.asarray(reshape(tensor.numpy(), axis % tensor.ndim), dtype=np.float32)
                made[place][name] = torch.from_numpy(np.ascontiguousarray(changed).copy())
            elif what == "type" and not tensor.is_complex():
                made[place][name] = tensor.to(dtype)
            elif what == "content":
                made[place][name] = content
            elif what == "missing":
                del made[place][name]
    return made


@pytest.mark.parametrize("problem", ["darcy", "navier_stokes"])
@given(data=st.data())
def test_a_file_of_neuraloperator_is_imported_as_it_is_or_refused(problem, data):
    made = data.draw(tensor_files(problem))
    said = data.draw(st.sampled_from([problem, problem, "darcy", "navier_stokes", None]))
    levels = data.draw(st.sampled_from(["resampled", "independent"]))
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for (split, n), content in made.items():
            torch.save(content, f"{folder}/{split}_{n}.pt")
            files.setdefault(split, []).append((n, f"{folder}/{split}_{n}.pt"))
        store = imported(
            lambda: import_neuralop_pt(f"{folder}/s.zarr", files, problem=said, levels=levels, progress=False)
        )
        if store is None:
            return
        for name, key in zip((*store.inputs, *store.outputs), "xy", strict=True):
            for n in (4, 8):
                expected = np.concatenate([made[split, n][key].float().numpy() for split in files])
                np.testing.assert_array_equal(store.read(n, name), expected)


FLOW = {
    "force": values(0, 2, 8, 8, 2),
    "particles": values(1, 2, 3, 8, 8, 1),
    "velocity": values(2, 2, 3, 8, 8, 2),
    "t": np.tile(TIMES[:3], (2, 1)),
}
ROW = {"x-coordinate": CENTRES["x"], "t-coordinate": TIMES}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (FLOW, r"has force, particles, t, velocity; expected .*components last.*`mano_op.write_fields`"),
        (ROW | {"tensor": values(0, 1, 2, 3, 4)}, r"tensor: shape \(1, 2, 3, 4\); expected \(1, 2, 4\)"),
        (
            ROW | {"tensor": values(0, 2, 3, 4, 1)},
            r"tensor: shape .* expected \(2, 3, 4\).* samples and times",
        ),
        (
            ROW | {"tensor": values(0, 2, 3, 4), "t-coordinate": np.tile(TIMES, (2, 1))},
            r"t-coordinate: shape \(2, 4\); expected \(8,\)",
        ),
        (
            pde_groups(0) | {"0001/grid/t": TIMES[:3] * 2},
            r"0001/grid: coordinate t 1 = 2.0, in .*0000/grid 1.0",
        ),
    ],
)
def test_a_pdebench_file_of_no_layout_is_told_what_is_expected(tmp_path, arrays, message):
    file = write_hdf5(tmp_path / "a.h5", arrays)
    with pytest.raises(InputError, match=message):
        import_pdebench(
            tmp_path / "s.zarr",
            {"train": [file]},
            boundary_conditions={"x": "periodic"},
            domain={"x": (0.0, 1.0)},
        )
    assert not list(tmp_path.glob("s.zarr*"))


@pytest.mark.parametrize("version", [5, 7.3])
def test_flows_of_matlab_files_say_where_they_began_and_agree_in_time(tmp_path, version):
    files = [
        write_mat(
            tmp_path / f"{i}.mat", MATLAB["navier_stokes"](i) | {"t": TIMES[None, 1:] + 0.5 * i}, version
        )
        for i in range(2)
    ]
    store = import_fno_mat(tmp_path / "s.zarr", {"train": files[:1]}, kind="navier_stokes", progress=False)
    assert [variable.initial_of for variable in store.variables] == ["vorticity", None]
    with pytest.raises(
        InputError, match=r"1\.mat: time 0 = 1\.5, in .*0\.mat 1\.0; make them agree, or import"
    ):
        import_fno_mat(tmp_path / "t.zarr", {"train": files}, kind="navier_stokes", progress=False)


def test_neuraloperator_files_with_both_ends_are_refused(tmp_path):
    x = torch.linspace(0, 1, 9, dtype=torch.float64)
    wave = torch.sin(2 * torch.pi * (x[:, None] + 2 * x) + 0.3)[None]
    torch.save({"x": wave, "y": wave**2 + wave}, tmp_path / "ns.pt")
    with pytest.raises(InputError, match="along y the last of 9 points repeats the first"):
        import_neuralop_pt(tmp_path / "s.zarr", {"train": [(9, tmp_path / "ns.pt")]}, problem="navier_stokes")


@pytest.mark.parametrize("given", ["a.pt", ["a.pt"], [("8", "a.pt")], [(8.5, "a.pt")], [(0, "a.pt")]])
def test_neuraloperator_files_come_with_their_resolutions(tmp_path, given):
    with pytest.raises(InputError, match="expected"):
        import_neuralop_pt(tmp_path / "s.zarr", {"train": given})


def test_a_coordinate_that_one_netcdf_file_has_is_not_given_to_others(tmp_path):
    for i in range(2):
        arrays = labelled(i)
        write_netcdf(
            tmp_path / f"{i}.nc", {k: v for k, v in arrays.items() if i or k != "t"}, "scipy", units={}
        )
    with pytest.raises(InputError, match=r"1\.nc: coordinates = .*'t'.*, in .*0\.nc .*; make them agree"):
        import_netcdf(
            tmp_path / "s.zarr", {(4, 5): [tmp_path / "0.nc", tmp_path / "1.nc"]}, sample="run", time="t"
        )


def test_dates_have_units_of_their_own_and_periods_are_none():
    dates = np.datetime64("2000-01-01", "ns") + np.arange(2) * np.timedelta64(1, "D")
    times = Times.of(8, xr.Variable("time", dates, {"units": "m"}))
    assert (times.numbers.tolist(), times.units) == ([0.0, 1.0], "days since 2000-01-01 00:00:00")
    periods = xr.Dataset(coords={"time": pd.period_range("2000", "2001", freq="Y")})["time"].variable
    with pytest.raises(InputError, match=r"8: times of type period.*expected numbers, dates or durations"):
        Times.of(8, periods)


def test_a_reference_may_be_a_number_of_numpy():
    variable = Variable("p", "output", reference=np.float32(101325))
    assert (type(variable.reference), variable.reference) == (float, 101325.0)
