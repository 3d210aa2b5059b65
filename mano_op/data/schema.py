"""What a `Layout` looks like as zarr groups, arrays and attributes, written and read back.

``data/README.md`` draws the whole format as a tree.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec, ZstdCodec

from mano_op.data.layout import COORDINATE_ATTRIBUTES, Layout, Variable
from mano_op.data.precision import Rounding
from mano_op.errors import InputError, refusing
from mano_op.grid import Axis, Grid
from mano_op.paths import partial_path, target_of

FORMAT, FORMAT_VERSION = "mano_op fields", 1
CONVENTIONS = "CF-1.11"

# The packages whose versions a store's provenance names.
VERSIONS = ("mano_op", "numpy", "zarr")

# One value for each chunk of samples, each in a file of its own, so that writers of different chunks
# never touch the same file. It exists for as long as the store is being written.
WRITTEN = "written"

# What rounding to float32 loses of each chunk of samples, by resolution and variable: rows of
# `mano_op.data.precision.Rounding`. Likewise.
ROUNDING = "rounding"

# A random word in the attributes of a store that is being written, so that who writes to it can tell it from
# another one that was begun in its place since.
TOKEN = "being_written"

# What zarr meets damaged metadata and chunks with, depending on what the damage leads to.
DAMAGED = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def array(root: zarr.Group, path: str) -> zarr.Array:
    """Return the array at `path`; KeyError if there is none."""
    node = root[path]
    if not isinstance(node, zarr.Array):
        raise KeyError(path)
    return node


def values_of(
    root: zarr.Group, path: str, rows: slice | NDArray[np.int64] = slice(None), times: slice = slice(None)
) -> NDArray[Any]:
    """Read some rows of the array at `path`, and some of its second dimension."""
    return np.asarray(array(root, path).oindex[rows if times == slice(None) else (rows, times)])


def place_of(path: str | Path) -> Path | str:
    """Return a full path on the file system, or an address of fsspec, such as ``s3://bucket/darcy.zarr``."""
    what, remedy = f"{type(path).__name__} is no path", "give the folder of a store, or its address"
    with refusing(what, remedy, TypeError):
        return path if isinstance(path, str) and "://" in path else Path(path).absolute()


def path_of(path: str | Path | Store) -> Path:
    """Return the full path where a store can be written; of a symbolic link, its target."""
    place = path if isinstance(path, Store) else place_of(path)
    if not isinstance(place, Path):
        raise InputError(
            f"{path}: a store is written to a file system; write it there, and copy it when finished"
        )
    return target_of(place)


def make_folder(path: Path) -> None:
    """Make the folder that a store is to be in."""
    with refusing(f"there can be no {path}", "give a path in a folder", OSError):
        path.parent.mkdir(parents=True, exist_ok=True)


def open_root(path: Path | str | Store, storage_options: dict[str, Any] | None = None) -> zarr.Group:
    """Open the root of the store at `path` for reading, if it is one of a version that is known."""
    other = _other_content(path) if isinstance(path, Path) else None
    if other is None:
        remedy = "give the path of a store; if it is one, its zarr.json is damaged, restore that"
        # ImportError where fsspec lacks what speaks to an address.
        with refusing(f"{path} is no zarr store of format 3", remedy, *DAMAGED, ImportError):
            root = zarr.open_group(path, mode="r", zarr_format=3, storage_options=storage_options)
        if (given := root.attrs.get("format")) != FORMAT:
            other = f"is a zarr store, but not one of fields (attribute format={given!r})"
    if other is not None:
        raise InputError(
            f"{path} {other}; correct the path, or make a store with `mano-op generate`, `write_fields` or "
            "`mano-op store import`"
        )
    if root.attrs.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {root.attrs.get('format_version')}, this mano_op "
            f"({version('mano_op')}) reads version {FORMAT_VERSION}: read it with the mano_op that wrote it"
        )
    return root


def _other_content(path: Path) -> str | None:
    """Say what is at a path instead of a zarr 3 group; None where nothing tells."""
    if not path.exists():
        return "does not exist"
    if path.is_file():
        return "is a file, no zarr store of format 3"
    if (path / "zarr.json").exists():
        return None
    kinds = {".zgroup": "a group of zarr format 2", ".zmetadata": "a group of zarr format 2"}
    kinds[".zarray"] = "an array of zarr format 2"
    kind = next((kinds[file] for file in kinds if (path / file).exists()), "a folder without a zarr.json")
    return f"is {kind}, no zarr store of format 3"


def clear(path: Path, overwrite: bool) -> None:
    """Refuse what is at the path, or remove a half-written store; `put_in_place` replaces a complete one."""
    for place in filter(Path.exists, (path, partial_path(path))):
        if not overwrite:
            refuse_present(path, "give another path, or overwrite=True to replace the store there")
        _check_is_store(place)
    if partial_path(path).exists():
        shutil.rmtree(partial_path(path))


def refuse_present(path: Path, remedy: str) -> None:
    """Refuse to write where a store is, or was begun."""
    begun = partial_path(path)
    state = f"was begun and not finished ({begun} is there)" if begun.exists() else "exists"
    raise InputError(f"{path} {state}; {remedy}")


def put_in_place(path: Path) -> None:
    """Move the finished store beside `path` there, replacing a store."""
    replaced = path.with_name(path.name + ".replaced")
    if replaced.exists():  # from a process that was killed just after the next lines
        shutil.rmtree(replaced)
    if path.exists():
        _check_is_store(path)
        path.rename(replaced)
    partial_path(path).rename(path)
    if replaced.exists():
        shutil.rmtree(replaced)


def _check_is_store(path: Path) -> None:
    kind = None
    with suppress(*DAMAGED):
        kind = zarr.open_group(path, mode="r").attrs.get("format")
    if kind != FORMAT:
        raise InputError(
            f"{path} is no store of fields, so overwrite=True leaves it alone; give another path"
        )


def root_attributes(layout: Layout, title: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the root of a store with this plan, in JSON types."""
    axes = next(iter(layout.grids.values())).axes
    versions = {name: version(name) for name in VERSIONS}
    attributes = {
        "Conventions": CONVENTIONS,
        "title": title,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "complete": False,
        TOKEN: secrets.token_hex(8),
        "domain": {axis.name: [axis.start, axis.stop] for axis in axes},
        "registration": {axis.name: axis.registration for axis in axes},
        "boundary_conditions": layout.boundary_conditions,
        "input_fields": list(layout.named("input")),
        "output_fields": list(layout.named("output")),
        "levels": layout.levels,
        **({"as_plane": True} if layout.as_plane else {}),
        "splits": layout.splits,
        "samples_per_chunk": layout.chunk,
        **({"times_per_chunk": layout.chunk_times} if layout.times else {}),
        # https://github.com/zarr-conventions/multiscales: tells other readers which groups are resolutions.
        # https://github.com/zarr-conventions/spatial: where a grid of two dimensions lies.
        "zarr_conventions": [
            {"uuid": "d35379db-88df-4056-af3a-620245f8e347", "name": "multiscales"},
            {"uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "name": "spatial"},
        ],
        "multiscales": {"layout": multiscales(layout)},
        "provenance": {"versions": versions, **provenance},
    }
    with refusing(f"provenance={provenance}", "expected only what JSON can hold", TypeError, ValueError):
        json.dumps(attributes, allow_nan=False)
    return attributes


def multiscales(layout: Layout) -> list[dict[str, Any]]:
    """List the resolutions, finest first, as https://github.com/zarr-conventions/multiscales lays them out.

    Along each axis, point i of a derived grid lies at ``scale * i + translation``, in points of its source.
    """
    return [{"asset": key, **_derivation(layout, key)} for key in reversed(layout.grids)]


def _derivation(layout: Layout, key: str) -> dict[str, Any]:
    if key not in layout.derived:
        return {}
    source, method = layout.derived[key]
    scales = [
        fine.intervals / coarse.intervals
        for fine, coarse in zip(layout.grids[source], layout.grids[key], strict=True)
    ]
    # A coarser cell's centre lies further from the start of the domain, by half of what its width has grown.
    shifts = [axis.offset * (scale - 1) for axis, scale in zip(layout.grids[key], scales, strict=True)]
    return {
        "derived_from": source,
        "resampling_method": method,
        "transform": {"scale": scales, "translation": shifts},
    }


def lay_out(path: Path | Store, layout: Layout, attributes: dict[str, Any]) -> None:
    """Write a store with all its labels and none of its fields."""
    root = zarr.create_group(path, zarr_format=3, attributes=attributes)
    shape = (len(layout.chunks), len(layout.grids), len(layout.variables), len(Rounding().to_row()))
    root.create_array(WRITTEN, shape=shape[:1], chunks=(1,), dtype=bool, dimension_names=("chunk",))
    root.create_array(ROUNDING, shape=shape, chunks=(1, *shape[1:]), dtype=np.float64)
    for key in layout.grids:
        _create_group(root, layout, key)


def _create_group(root: zarr.Group, layout: Layout, key: str) -> None:
    grid, samples, held = layout.grids[key], layout.samples(key), layout.held[key]
    attributes = {"Conventions": CONVENTIONS, "splits": list(held), **_spatial(grid)}
    group = root.create_group(key, attributes=attributes)

    def label(name: str, values: NDArray[Any], dimensions: tuple[str, ...], **attributes: Any) -> None:
        created = group.create_array(
            name,
            shape=values.shape,
            dtype=str if values.dtype.kind == "O" else values.dtype,
            compressors=[Crc32cCodec()],
            dimension_names=dimensions,
            attributes=attributes,
        )
        created[...] = values

    split = np.concatenate([np.full(layout.splits[name], name, dtype=object) for name in held])
    label("sample", samples, ("sample",), long_name="number of the sample, the same at every level")
    label("split", split, ("sample",), long_name="what the sample is for: training or a test")
    if layout.times:
        label("time", np.array(layout.times), ("time",), units=layout.time_units, long_name="time", axis="T")
    for axis in grid:
        bounds = f"{axis.name}_bnds"
        cf_axis = {"axis": axis.name.upper()} if axis.name in ("x", "y", "z") else {}
        label(axis.name, axis.points, (axis.name,), **layout.coordinates[axis.name], bounds=bounds, **cf_axis)
        label(bounds, axis.bounds, (axis.name, "bnds"))
    for variable in layout.variables:
        times = slice(layout.chunk_times)
        group.create_array(
            variable.name,
            shape=(len(samples), *layout.shape(key, variable)),
            chunks=(min(layout.chunk, len(samples)), *layout.shape(key, variable, times)),  # whole fields
            dtype=np.float32,
            fill_value=np.nan,  # what a lost chunk reads as, and a value that is never written
            compressors=[ZstdCodec(level=3), Crc32cCodec()],
            dimension_names=("sample", *(["time"] if variable.time else []), *grid.names),
            attributes={
                "units": variable.units,
                "long_name": variable.long_name,
                "cell_methods": variable.cell_methods_at(key),
                "role": variable.role,
                "coordinates": "split",
                **({} if variable.boundary_value is None else {"boundary_value": variable.boundary_value}),
                **({} if not variable.reference else {"reference": variable.reference}),
                **({} if variable.initial_of is None else {"initial_of": variable.initial_of}),
            },
        )


def _spatial(grid: Grid) -> dict[str, Any]:
    """Return the attributes of a map, whose box is through the outer nodes, or around the cells."""
    cells = {axis.registration == "cell" for axis in grid}
    if grid.n_dim != 2 or len(cells) > 1:
        return {}
    y, x = grid
    ends = [(axis.start, axis.stop) if cells == {True} else axis.points[[0, -1]] for axis in (x, y)]
    first, last = ([float(end[i]) for end in ends] for i in (0, 1))
    return {  # as https://github.com/zarr-conventions/spatial defines them
        "spatial:dimensions": list(grid.names),
        "spatial:shape": list(grid.shape),
        "spatial:registration": "pixel" if cells == {True} else "node",
        "spatial:bbox": [*first, *last],
        "spatial:transform": [x.spacing, 0.0, first[0], 0.0, y.spacing, first[1]],
    }


def read_layout(root: zarr.Group) -> Layout:
    """Read the plan of a store, and check that it describes the arrays."""
    remedy = "it was not laid out to the end, or was changed since: make it anew with overwrite=True"
    with refusing(f"{root.store_path}: the labels of the store do not fit together", remedy, *DAMAGED):
        layout = _read_layout(root)
        for key, grid in layout.grids.items():
            for variable in layout.variables:
                shape = array(root, f"{key}/{variable.name}").shape
                expected = (len(layout.samples(key)), *layout.shape(key, variable))
                if shape != expected:
                    raise ValueError(f"{key}/{variable.name} has shape {shape}, its labels say {expected}")
            if layout.times and not np.array_equal(values_of(root, f"{key}/time"), layout.times):
                raise ValueError(f"{key}/time differs from the times of another resolution")
            for axis in grid:
                points = values_of(root, f"{key}/{axis.name}")
                if not np.allclose(points, axis.points, rtol=0, atol=1e-6 * axis.spacing):
                    raise ValueError(
                        f"{key}/{axis.name} is not where a {axis.registration} axis has its points"
                    )
    return layout


def _read_layout(root: zarr.Group) -> Layout:
    attributes: dict[str, Any] = dict(root.attrs)
    levels: list[dict[str, str]] = attributes["multiscales"]["layout"]
    names, axes = attributes["input_fields"] + attributes["output_fields"], list(attributes["domain"])
    keys = [level["asset"] for level in levels]
    grids = {}
    for key in keys:
        shape = array(root, f"{key}/{names[0]}").shape[-len(axes) :]
        grids[key] = Grid(tuple(_axis(attributes, name, n) for name, n in zip(axes, shape, strict=True)))
    variables = []
    for name in names:
        first = array(root, f"{keys[0]}/{name}")
        optional = [label for label in ("boundary_value", "reference", "initial_of") if label in first.attrs]
        labels: dict[str, Any] = {
            label: first.attrs[label] for label in ("role", "units", "long_name", *optional)
        }
        methods = {key: str(array(root, f"{key}/{name}").attrs["cell_methods"]) for key in keys}
        varies = first.ndim == len(axes) + 2
        variables.append(Variable(name, cell_methods=methods, time=varies, **labels))
    times: dict[str, Any] = {}
    if "times_per_chunk" in attributes:
        stored = array(root, f"{keys[0]}/time")
        times = {"times": values_of(root, stored.path).tolist(), "time_units": stored.attrs["units"]}
        times["chunk_times"] = attributes["times_per_chunk"]
    coordinates = {axis: array(root, f"{keys[0]}/{axis}").attrs for axis in axes}
    return Layout.plan(
        list(grids.values()),
        variables,
        attributes["splits"],
        boundary_conditions=attributes["boundary_conditions"],
        levels=attributes["levels"],
        chunk=attributes["samples_per_chunk"],
        held={grid: list(root[key].attrs["splits"]) for key, grid in grids.items()},  # type: ignore
        coordinates={
            axis: {name: str(labels[name]) for name in COORDINATE_ATTRIBUTES if name in labels}
            for axis, labels in coordinates.items()
        },
        derived={  # `check_store` reports what is odd
            grids[level["asset"]]: (grids[level["derived_from"]], str(level.get("resampling_method", "")))
            for level in levels
            if level.get("derived_from") in grids
        },
        as_plane=bool(attributes.get("as_plane", False)),
        **times,
    )


def read_statistics(root: zarr.Group) -> dict[str, dict[str, float]]:
    """Read the mean and standard deviation of each variable from the root; empty where it has none."""
    statistics: Any = root.attrs.get("statistics", {})
    what = f"{root.store_path}: attribute statistics={statistics!r:.80}"
    remedy = (
        "expected a mean and a std of each variable, under 'variables': restore the store or make it anew"
    )
    with refusing(what, remedy, *DAMAGED):
        return {
            name: {moment: float(moments[moment]) for moment in ("mean", "std")}
            for name, moments in statistics.get("variables", {}).items()
        }


def _axis(attributes: Mapping[str, Any], name: str, n: int) -> Axis:
    start, stop = attributes["domain"][name]
    periodic = attributes["boundary_conditions"][name] == "periodic"
    return Axis(name, n, start, stop, attributes["registration"][name], periodic)
