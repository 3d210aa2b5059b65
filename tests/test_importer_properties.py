"""Whatever lies in a file: an importer makes a store of its very values, or says what is wrong with it."""

import contextlib
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from importer_files import (
    CENTRES,
    LABELLED,
    MATLAB,
    TIMES,
    WELL,
    labelled,
    pde_darcy,
    pde_fields,
    pde_groups,
    values,
    well_arrays,
    write_hdf5,
    write_mat,
    write_netcdf,
)

from mano_op.data import importers
from mano_op.data.check import check_store
from mano_op.errors import InputError
from mano_op.grid import Grid

NAMES = [*["time", "sample", "split", "bnds", "x", "t", "2m_temperature", "°C", "__u", "u+1"], "a b"]
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
    """What lies in each file of a layout; up to two changes in one of them or all."""
    files = [make(i) for i in range(n_files)]
    for change in draw(st.lists(changes(sorted(files[0])), max_size=2)):
        places = draw(st.sampled_from([*([i] for i in range(n_files)), list(range(n_files))]))
        files = [change(arrays) if i in places else arrays for i, arrays in enumerate(files)]
    return files


@contextlib.contextmanager
def imported(importer, write, files, names=None, **options):
    """The store that an importer makes, which is as the format asks; None if it refuses a file."""
    names = names or {"train": [0], "test": [1]}
    with tempfile.TemporaryDirectory() as folder:
        paths = [write(Path(folder, str(i)), arrays) for i, arrays in enumerate(files)]
        given = {
            key: [paths[i] if i in range(4) else (i[0], paths[i[1]]) for i in some]
            for key, some in names.items()
        }
        try:
            store = importer(f"{folder}/s.zarr", given, progress=False, **options)
        except InputError as error:
            assert len(str(error)) > 20, str(error)
            store = None
        else:
            assert check_store(store.path, progress=False) == []
        yield store


def assert_fields(store, expected):
    assert sorted([*store.inputs, *store.outputs]) == sorted(expected)
    (level,) = store.grids
    for name, parts in expected.items():
        wanted = np.concatenate([np.asarray(part) for part in parts]).astype(np.float32)
        np.testing.assert_array_equal(store.read(level, name), wanted)


def assert_axes(store, points, times=()):
    (grid,) = store.grids.values()
    assert list(grid.names) == list(points)
    for axis in grid:
        np.testing.assert_allclose(np.asarray(points[axis.name], dtype=float), axis.points, atol=1e-2)
    np.testing.assert_array_equal(store.layout.times, np.asarray(times)[: len(store.layout.times)])


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


@settings(max_examples=20)
@given(data=st.data())
def test_pdebench_file_is_imported_exactly_or_refused(data):
    make, axes = PDEBENCH[data.draw(st.sampled_from(sorted(PDEBENCH)))]
    files = data.draw(contents(make))
    axes = data.draw(st.sampled_from([axes, axes, axes, "x", "yx"]))
    about = {
        "boundary_conditions": dict.fromkeys(axes, "periodic"),
        "domain": dict.fromkeys(axes, (0.0, 1.0)),
    }
    with imported(importers.import_pdebench, write_hdf5, files, **about) as store:
        if store is not None:
            assert_fields(store, pde_expected(files))
            place = "{}-coordinate" if "x-coordinate" in files[0] else "0000/grid/{}"
            points = {axis: files[0][place.format(axis)] for axis in store.layout.coordinates}
            assert_axes(store, points, files[0].get(place.format("t"), ()))


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
    expected = {}
    components = {"t0_fields": [""], "t1_fields": ["_x", "_y"], "t2_fields": ["_xx", "_xy", "_yx", "_yy"]}
    for name in files[0]:
        group, _, field = name.partition("/")
        parts = [np.asarray(arrays[name]) for arrays in files if name in arrays]
        if field == "height":
            parts = [np.broadcast_to(part.reshape(4, 1), (2, 4, 5)) for part in parts]
        for i, component in enumerate(components.get(group, [])):
            expected[field + component] = [
                part.reshape(*part.shape[: 4 - (group == "t2_fields")], -1)[..., i] if component else part
                for part in parts
            ]
    return expected


@settings(max_examples=15)
@given(data=st.data())
def test_file_of_the_well_is_imported_exactly_or_refused(data):
    files = data.draw(contents(well_arrays))
    attributes = iter(data.draw(st.permutations([WELL, data.draw(well_attributes())])))
    about = {"registration": "cell", "domain": {"x": (0.0, 1.0), "y": (0.0, 1.0)}}

    def write(path, arrays):
        return write_hdf5(path, arrays, next(attributes))

    with imported(importers.import_the_well, write, files, **about) as store:
        if store is not None:
            assert store.layout.boundary_conditions == {"x": "open", "y": "wall"}
            assert_fields(store, well_expected(files))
            points = {axis: files[0][f"dimensions/{axis}"] for axis in "xy"}
            assert_axes(store, points, files[0]["dimensions/time"])


MATLAB_NAMES = {"a": "initial", "u": "velocity", "coeff": "permeability", "sol": "pressure"}
FLOW_NAMES = {"a": "initial_vorticity", "u": "vorticity"}


@settings(max_examples=20)
@given(data=st.data(), version=st.sampled_from([5, 7.3]), kind=st.sampled_from(sorted(MATLAB)))
def test_matlab_file_is_imported_exactly_or_refused(data, version, kind):
    files = data.draw(contents(MATLAB[kind]))
    said = data.draw(st.sampled_from([kind, kind, kind, *MATLAB]))
    with imported(importers.import_fno_mat, partial(write_mat, version=version), files, kind=said) as store:
        if store is None:
            return
        names = FLOW_NAMES if said == "navier_stokes" else MATLAB_NAMES
        expected = {names[name]: [arrays[name] for arrays in files] for name in files[0] if name in names}
        if said == "navier_stokes":
            expected["vorticity"] = [np.moveaxis(part, -1, 1) for part in expected["vorticity"]]
            np.testing.assert_array_equal(store.layout.times, np.ravel(files[0]["t"]))
        assert_fields(store, {name: expected[name] for name in (*store.inputs, *store.outputs)})
        (grid,) = store.grids.values()
        ends = {"registration": "node_both"} if said == "darcy" else {"periodic": True}
        assert grid == Grid.uniform(grid.shape, **ends)
        assert store.variables[1].boundary_value == (0.0 if said == "darcy" else None)


UNITS = ["1", "m", "days since 2000-01-01", "hours", "degrees_north", "nonsense since then", "", 3]


HALVES = "`pandas.Index` does not support the `float16`"


@settings(max_examples=15)
@given(data=st.data(), engine=st.sampled_from(["scipy", "h5netcdf"]), relabel=st.booleans())
def test_netcdf_file_is_imported_exactly_or_refused(data, engine, relabel):
    files = data.draw(contents(labelled))
    units = data.draw(
        st.dictionaries(st.sampled_from(["u", "run", "t", "x"]), st.sampled_from(UNITS), max_size=1)
    )
    write, names = partial(write_netcdf, engine=engine, units=units), {(4, 5): [0, 1]}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", HALVES)
        with imported(importers.import_netcdf, write, files, names, relabel=relabel, **LABELLED) as store:
            if store is None:
                return
            turned = tuple(
                slice(None, None, -1 if np.diff(files[0][axis]).sum() < 0 else 1) for axis in ("x", "y")
            )
            parts = {name: [np.asarray(arrays[name])[(..., *turned)] for arrays in files] for name in "au"}
            assert_fields(store, parts)
            if store.layout.times and "since" not in str(units.get("t")):
                np.testing.assert_array_equal(store.layout.times, files[0]["t"])


def tensors(problem, i):
    """The arrays of the files of two splits, at 4 and 8 points each."""
    split, step = i // 2, 2 - i % 2
    x, y = (values(10 * split + k, 2, 8, 8)[:, ::step, ::step] for k in range(2))
    return {"x": (x > 0).astype(np.float32) if problem == "darcy" else x, "y": y}


def write_pt(path, arrays):
    torch.save(
        {
            name: array.tolist()
            if array.dtype.kind in "SO"
            else torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
            for name, array in arrays.items()
        },
        path,
    )
    return path


PAIRS = {"train": [(4, 0), (8, 1)], "test": [(4, 2), (8, 3)]}


@settings(max_examples=15)
@given(data=st.data(), problem=st.sampled_from(["darcy", "navier_stokes"]))
def test_file_of_neuraloperator_is_imported_exactly_or_refused(data, problem):
    files = data.draw(contents(partial(tensors, problem), 4))
    said = data.draw(st.sampled_from([problem, problem, "darcy", "navier_stokes", None]))
    levels = data.draw(st.sampled_from(["resampled", "independent"]))
    with imported(importers.import_neuralop_pt, write_pt, files, PAIRS, problem=said, levels=levels) as store:
        if store is not None:
            for name, key in zip((*store.inputs, *store.outputs), "xy", strict=True):
                for k, n in enumerate((4, 8)):
                    parts = [files[2 * split + k][key].astype(np.float32) for split in range(2)]
                    np.testing.assert_array_equal(store.read(n, name), np.concatenate(parts))


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
        (FLOW, r"has force, particles, t, velocity; expected .*no coordinates.*`mano_op.write_fields`"),
        (
            ROW | {"tensor": values(0, 1, 2, 3, 4)},
            r"\(1, 2, 3, 4\); expected \(1, 2, 4\).* samples and times",
        ),
        (pde_groups(0) | {"0001/grid/t": TIMES[:3] * 2}, r"0001: time = 2.0, in .*0000 1.0"),
        (pde_groups(0) | {"0001/data": values(0, 3, 4, 5, 1)}, "0001: variables = 1, in .*0000 2"),
    ],
)
def test_pdebench_file_of_no_layout_is_refused(tmp_path, arrays, message):
    file = write_hdf5(tmp_path / "a.h5", arrays)
    with pytest.raises(InputError, match=message):
        importers.import_pdebench(
            tmp_path / "s.zarr",
            {"train": [file]},
            boundary_conditions={"x": "periodic"},
            domain={"x": (0.0, 1.0)},
        )
    assert not list(tmp_path.glob("s.zarr*"))


@pytest.mark.parametrize("version", [5, 7.3])
def test_matlab_flows_have_initial_fields_and_common_times(tmp_path, version):
    files = [
        write_mat(
            tmp_path / f"{i}.mat", MATLAB["navier_stokes"](i) | {"t": TIMES[None, 1:] + 0.5 * i}, version
        )
        for i in range(2)
    ]
    store = importers.import_fno_mat(
        tmp_path / "s.zarr", {"train": files[:1]}, kind="navier_stokes", progress=False
    )
    assert [variable.initial_of for variable in store.variables] == ["vorticity", None]
    with pytest.raises(
        InputError, match=r"1\.mat: time = 1\.5, in .*0\.mat 1\.0; make them agree, or import"
    ):
        importers.import_fno_mat(tmp_path / "t.zarr", {"train": files}, kind="navier_stokes", progress=False)


def test_coordinate_of_one_netcdf_file_is_not_given_to_others(tmp_path):
    for i in range(2):
        arrays = labelled(i)
        write_netcdf(
            tmp_path / f"{i}.nc", {k: v for k, v in arrays.items() if i or k != "t"}, "scipy", units={}
        )
    with pytest.raises(InputError, match=r"1\.nc: coordinates = .*'t'.*, in .*0\.nc .*; make them agree"):
        importers.import_netcdf(
            tmp_path / "s.zarr", {(4, 5): [tmp_path / "0.nc", tmp_path / "1.nc"]}, **LABELLED
        )
