"""Files of the formats that the importers read, small ones built from the specifications."""

import warnings

import h5py
import numpy as np
import scipy.io
import xarray as xr
from hypothesis import assume


def values(seed, *shape):
    return 100 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


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


def well_arrays(seed, n=2):
    """The fields of `n` samples, of which one is the same for all."""
    return {
        "dimensions/time": TIMES[:3],
        "dimensions/x": CENTRES["x"],
        "dimensions/y": CENTRES["y"],
        "t0_fields/pressure": values(10 * seed, n, 3, 4, 5),
        "t0_fields/height": values(10 * seed + 1, 4, 1),
        "t1_fields/velocity": values(10 * seed + 2, n, 3, 4, 5, 2),
        "t2_fields/stress": values(10 * seed + 3, n, 4, 5, 2, 2),
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


MATLAB = {
    "burgers": lambda seed: {"a": values(10 * seed, 2, 5), "u": values(10 * seed + 1, 2, 5)},
    "darcy": lambda seed: {"coeff": values(10 * seed, 2, 4, 5), "sol": values(10 * seed + 1, 2, 4, 5)},
    "navier_stokes": lambda seed: {
        "a": values(10 * seed, 2, 4, 5),
        "u": values(10 * seed + 1, 2, 4, 5, 3),
        "t": TIMES[None, 1:],
    },
}


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


def labelled(seed, n=2):
    """The arrays of a NetCDF file of `n` samples."""
    return {
        "a": values(10 * seed, n, 4, 5),
        "u": values(10 * seed + 1, n, 3, 4, 5),
        "run": n * seed + np.arange(n),
        "t": TIMES[:3],
        "x": CENTRES["x"],
        "y": CENTRES["y"],
    }


DIMENSIONS = {"a": ("run", "x", "y"), "u": ("run", "t", "x", "y")}
LABELLED = {
    "sample": "run",
    "time": "t",
    "inputs": ["a"],
    "outputs": ["u"],
    "splits": {"train": 2, "test": 2},
    "registration": "cell",
    "domain": {"x": (0.0, 1.0), "y": (0.0, 1.0)},
    "boundary_conditions": {"x": "open", "y": "periodic"},
}


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
