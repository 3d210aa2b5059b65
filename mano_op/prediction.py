"""Predictions as labelled fields: from a data set to a data set, in memory or larger than it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
import zarr
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.dask import TqdmCallback

from mano_op.data.coordinates import spread
from mano_op.data.importers.netcdf import is_zarr, open_file, pieced
from mano_op.data.processor import FieldProcessor
from mano_op.data.record import FieldRecord
from mano_op.data.schema import FORMAT
from mano_op.data.store import open_store
from mano_op.errors import InputError, check_whole
from mano_op.files import check_folder
from mano_op.grid import Grid
from mano_op.labels import variable_of, varies_in_time
from mano_op.paths import partial_path, target_of
from mano_op.resample import interpolate


def predict(network: nn.Module, processor: FieldProcessor, x: Tensor, steps: int = 1) -> Tensor:
    """Predict in physical units, on the CPU, from ``x`` of shape ``(batch, in_channels, *grid)``.

    With several `steps` each step after the first starts from the outputs of the step before. The channels
    of the prediction are the outputs of the first step, then those of the second, and so on.
    """
    network.eval()
    processor.eval()
    expected = (len(x), len(processor.outputs), *x.shape[2:])
    outputs: list[Tensor] = []
    with torch.inference_mode():
        x = x.to(processor.device)
        for step in range(steps):
            if step:
                x = processor.next_known(x, outputs[-1])
            data = processor.preprocess({"x": x})
            output = network(data["x"])
            _check_output(output, expected)
            outputs.append(processor.postprocess(output, data)[0])
        return torch.cat(outputs, dim=1).cpu()


def _check_output(output: Any, expected: tuple[int, ...]) -> None:
    """Refuse what is no real tensor of a shape: networks and functions are anybody's."""
    kind = type(output).__name__
    if isinstance(output, Tensor):
        kind = f"{output.dtype} of shape {tuple(output.shape)}".removeprefix("torch.")
        if tuple(output.shape) == expected and not output.is_complex():
            return
    raise InputError(f"its output is {kind}, expected a tensor or array of real numbers of shape {expected}")


def predict_fields(
    network: nn.Module,
    processor: FieldProcessor,
    record: FieldRecord,
    data: xr.Dataset,
    *,
    steps: int = 1,
    shape: int | Sequence[int] | None = None,
    batch_size: int = 1,
    who: str = "a model",
) -> xr.Dataset:
    """Predict a data set from a data set, in physical units.

    Parameters
    ----------
    network, processor
        A model and what is between units and its own.
    record : FieldRecord
        Of what it was trained on.
    data : Dataset
        Has the inputs as variables, over the domain of the training, on a grid of any number of points; axes
        may decrease. Other dimensions than axes and "time" are samples; a variable without one of them, or
        without some of the axes, is the same along it. Of times, which have to be one step apart, the last
        ones are stepped on from. Variables of dask give variables of dask, computed sample by sample when
        they are asked for.
    steps : int
        Of models that step on in time: how many steps to take, each from the predictions before it.
    shape : int or sequence of int, optional
        Points along each axis to interpolate the predictions to; those of the input if not given.
    batch_size : int
        Samples to map at a time. With 1 a prediction is the same to the last bit, however the data are cut.
    who : str
        Names the model in the attribute "history".

    Returns
    -------
    Dataset
        The outputs in single precision, in double with a reference, on the coordinates of the inputs.

    Raises
    ------
    InputError
        Before any prediction, if a variable, axis or coordinate is missing, or does not fit the training;
        where values are read, if one is not finite.
    """
    check_whole(steps=steps, batch_size=batch_size)
    if steps > 1:
        processor.check_rollout()
    names = list(dict.fromkeys(map(variable_of, processor.inputs)))
    if missing := [name for name in names if name not in data.data_vars]:
        raise InputError(
            f"the data set has no variable {', '.join(missing)}, which the model takes; it has "
            f"{', '.join(map(str, data.data_vars)) or 'none'}: rename those of the data"
        )
    axes = list(record.grid.names)
    turned = [name for name in axes if name in data.indexes and data.indexes[name].is_monotonic_decreasing]
    data = data.isel(dict.fromkeys((name for name in turned if data.sizes[name] > 1), slice(None, None, -1)))
    grid = record.grid_of(data)
    for name in names:
        _check_units(name, data[name], record)
    later = _later(processor, record, data, steps)
    inputs = [_values(processor, record, data, name, axes) for name in names]
    target = grid if shape is None else _resized(grid, shape)

    def function(*fields: NDArray[Any]) -> NDArray[np.float32]:
        return _predicted(network, processor, dict(zip(names, fields, strict=True)), steps, batch_size, axes)

    channels = steps * len(processor.outputs)
    out = xr.apply_ufunc(
        function,
        *inputs,
        input_core_dims=[[dim for dim in field.dims if dim in ("time", *axes)] for field in inputs],
        output_core_dims=[["channel", *axes]],
        dask="parallelized",
        output_dtypes=[np.float32],
        dask_gufunc_kwargs={"output_sizes": {"channel": channels}},
    )
    labels, variables = [variable_of(label) for label in processor.outputs] * steps, {}
    for name in dict.fromkeys(labels):
        places = [i for i, label in enumerate(labels) if label == name]
        field = out.isel(channel=places)
        field = field.isel(channel=0) if later is None else field.rename(channel="time")
        variables[name] = _finished(field, record, name, grid, target)
    predicted = xr.Dataset(variables)
    kept = {
        name: values for name, values in data.coords.items() if _kept(values, predicted, axes, target == grid)
    }
    for axis in target:
        labels_of_axis = data[axis.name].attrs or record.coordinates[axis.name]
        points = data[axis.name].values if target == grid else axis.points
        kept[axis.name] = xr.DataArray(points, dims=axis.name, attrs=labels_of_axis)
    predicted = predicted.assign_coords(kept | ({} if later is None else {"time": later}))
    predicted = predicted.isel(dict.fromkeys(turned, slice(None, None, -1)))
    note = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} mano_op {version('mano_op')}: predicted by {who}"
    history = "\n".join(filter(None, [str(data.attrs.get("history", "")), note]))
    attributes = {name: value for name, value in data.attrs.items() if not _of_a_store(str(name))}
    return predicted.assign_attrs({**attributes, "Conventions": "CF-1.11", "history": history})


def _of_a_store(attribute: str) -> bool:
    """Whether an attribute says what a resolution of a store has, which predictions may not have."""
    return attribute == "splits" or attribute.startswith("spatial:")


def _resized(grid: Grid, shape: int | Sequence[int]) -> Grid:
    """Return the grid of another number of points over the same domain."""
    numbers = (shape,) * grid.n_dim if isinstance(shape, int) else tuple(shape)
    if len(numbers) != grid.n_dim:
        raise InputError(f"shape={shape}, expected a number, or one for each of {', '.join(grid.names)}")
    return Grid(tuple(replace(axis, n=n) for axis, n in zip(grid, numbers, strict=True)))


def _check_units(name: str, values: xr.DataArray, record: FieldRecord) -> None:
    expected, units = record.variables[name]["units"], values.attrs.get("units")
    if units not in (None, expected):
        raise InputError(
            f"{name} is in {units!r}, the model was trained on {expected!r}: convert it, and its attribute"
        )


def _later(
    processor: FieldProcessor, record: FieldRecord, data: xr.Dataset, steps: int
) -> xr.Variable | None:
    """Return the times of the predictions; None if outputs are steady."""
    varying = [label for label in processor.inputs if varies_in_time(label)]
    outputs = [label.rpartition("@")[2] for label in processor.outputs if varies_in_time(label)]
    if not outputs:
        return None
    times = list(dict.fromkeys(outputs))
    if not varying:
        at = [float(time.removeprefix("t=")) for time in times]
        return xr.Variable("time", at, {"units": record.time_units})
    known = len({label.rpartition("@")[2] for label in varying})
    if data.sizes.get("time", 0) < known or "time" not in data.coords:
        raise InputError(
            f"the data set has {data.sizes.get('time', 'no')} times"
            f"{'' if 'time' in data.coords else ' without a coordinate'}, expected {known} or more, for the "
            "model to step on from: `data.expand_dims(time=[...])`, `data.assign_coords(time=[...])`"
        )
    return record.later(data["time"].variable[-known:], steps * len(times))


def _values(
    processor: FieldProcessor, record: FieldRecord, data: xr.Dataset, name: str, axes: Sequence[str]
) -> xr.DataArray:
    """Return a variable with its axes last, in one piece, the times that are stepped on from before them."""
    values = spread(data, name, [*(str(dim) for dim in data[name].dims if dim not in axes), *axes], axes)
    known = sum(variable_of(label) == name and varies_in_time(label) for label in processor.inputs)
    dims = [*(["time"] if known else []), *axes]
    if known:
        values = values.isel(time=slice(-known, None))
    elif "time" in values.dims:
        raise InputError(
            f"{name} has times, and the model takes one that is steady: select one, "
            f"`data.assign({name}=data[{name!r}].isel(time=0, drop=True))`"
        )
    values = values.transpose(..., *dims)
    if values.chunks is not None:
        values = values.chunk(dict.fromkeys(dims, -1))
    if reference := record.variables[name]["reference"]:
        values = values.astype(np.float64) - reference
    return values.drop_vars([coord for coord in values.coords if coord not in values.indexes])


def _predicted(
    network: nn.Module,
    processor: FieldProcessor,
    fields: dict[str, NDArray[Any]],
    steps: int,
    batch_size: int,
    axes: Sequence[str],
) -> NDArray[np.float32]:
    """Predict from variables ``(*samples, [times], *axes)``, ``(*samples, channels, *axes)``."""
    n_dim = len(axes)
    for name, values in fields.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"{name} has values that are not finite: fill them, `data[{name!r}].fillna(...)`, or leave "
                "out the samples that have them"
            )
    channels, counts = [], dict.fromkeys(fields, 0)
    for label in processor.inputs:
        name = variable_of(label)
        values = fields[name]
        if varies_in_time(label):
            values = values.take(counts[name], axis=-n_dim - 1)
            counts[name] += 1
        channels.append(values)
    stacked = np.stack(np.broadcast_arrays(*channels), axis=-n_dim - 1).astype(np.float32)
    samples = stacked.reshape(-1, *stacked.shape[-n_dim - 1 :])
    outputs = [
        predict(network, processor, torch.from_numpy(samples[i : i + batch_size]), steps).numpy()
        for i in range(0, len(samples), batch_size)
    ]
    shape = stacked.shape[: -n_dim - 1]
    width = steps * len(processor.outputs)
    empty = np.empty((0, width, *stacked.shape[-n_dim:]), np.float32)
    return np.concatenate(outputs or [empty]).reshape(*shape, width, *stacked.shape[-n_dim:])


def _finished(field: xr.DataArray, record: FieldRecord, name: str, grid: Grid, target: Grid) -> xr.DataArray:
    """Interpolate a prediction, add its reference, and label it."""
    known = record.variables[name]
    if target != grid:
        axes = list(grid.names)
        field = xr.apply_ufunc(
            lambda values: interpolate(torch.from_numpy(values), grid, target, record.boundary(name)).numpy(),
            field,
            input_core_dims=[axes],
            output_core_dims=[axes],
            exclude_dims=set(axes),
            dask="parallelized",
            output_dtypes=[np.float32],
            dask_gufunc_kwargs={"output_sizes": dict(zip(axes, target.shape, strict=True))},
        )
    if known["reference"]:
        field = field.astype(np.float64) + known["reference"]
    return field.assign_attrs(units=known["units"], long_name=known["long_name"])


def _kept(values: xr.DataArray, predicted: xr.Dataset, axes: Sequence[str], same: bool) -> bool:
    """Whether a coordinate of the input is one of the predictions: not of times, nor of another grid."""
    dims = set(values.dims)
    return dims <= {*predicted.dims} - {"time"} and values.name != "time" and (same or not dims & {*axes})


def open_dataset(
    path: str | Path,
    stack: ExitStack,
    *,
    resolution: int | Sequence[int] | None = None,
    split: str | None = None,
) -> xr.Dataset:
    """Open a file, a folder of zarr or a resolution of a store, unread and in pieces; `stack` closes it."""
    path = Path(path)
    if is_zarr(path) and zarr.open_group(path, mode="r").attrs.get("format") == FORMAT:
        store = open_store(path)
        if resolution is None:
            raise InputError(f"resolution=None of {path}, a store; expected one of {', '.join(store.grids)}")
        key = store.key(resolution if isinstance(resolution, int) else tuple(resolution))
        data = store.dataset(key)
        if split is not None:
            data = data.isel(sample=store.layout.rows(key, split))
        data = data.drop_vars([name for name in data.variables if str(name).endswith("_bnds")])
        return data.assign({name: pieced(data[name]) for name in data.data_vars})
    if resolution is not None or split is not None:
        raise InputError(
            f"resolution={resolution}, split={split} of {path}, which is no store: leave them out"
        )
    data = open_file(stack, path, "zarr" if is_zarr(path) else None)
    return data.assign({name: pieced(data[name]) for name in data.data_vars})


def write_dataset(
    data: xr.Dataset, path: str | Path, *, overwrite: bool = False, progress: bool = True
) -> None:
    """Write a data set as NetCDF or zarr, piece by piece; the path never has half of it.

    Parameters
    ----------
    data : Dataset
        Of dask, where it is larger than memory.
    path : path
        ``NAME.nc`` or ``NAME.zarr``.
    overwrite : bool
        Whether what is there may be replaced.
    progress : bool
        Whether to show a bar.
    """
    path = check_dataset_path(path, overwrite=overwrite)
    partial = partial_path(path)
    _remove(partial)
    with dask.config.set(scheduler="synchronous"), TqdmCallback(desc="pieces", disable=not progress):
        if path.suffix == ".zarr":
            # zarr 3 has strings of any length, and no other kind.
            texts = [name for name, values in data.variables.items() if values.dtype.kind in "OU"]
            encoding = {name: {"dtype": np.dtypes.StringDType()} for name in texts}
            data.to_zarr(partial, zarr_format=3, consolidated=False, encoding=encoding)
        else:
            data.to_netcdf(partial, engine="h5netcdf")
    if path.is_dir():  # which a folder cannot replace
        _remove(path)
    os.replace(partial, path)


def check_dataset_path(path: str | Path, *, overwrite: bool) -> Path:
    """Refuse a path where no data set can be written, or where something is that may not be replaced."""
    path = target_of(path)
    check_folder(path.parent)
    if path.suffix not in (".nc", ".zarr"):
        raise InputError(f"{path} ends in {path.suffix!r}, expected .nc for NetCDF or .zarr")
    if path.exists() and not overwrite:
        raise InputError(f"{path} is there already: give another path, or overwrite=True to replace it")
    if path.suffix == ".nc" and find_spec("h5netcdf") is None:
        raise InputError(f"{path} would be NetCDF 4, which needs h5netcdf: pip install 'mano_op[netcdf]'")
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
