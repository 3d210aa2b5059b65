"""The Well's HDF5 files."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import chain, product
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np

from mano_op.data.coordinates import Registrations
from mano_op.data.guards import check_has, check_one_of, check_shape
from mano_op.data.importers.lazy import (
    Files,
    Part,
    coordinate,
    dataset,
    lazy,
    open_hdf5,
    paths_of,
    place,
    write_parts,
)
from mano_op.data.store import FieldStore
from mano_op.errors import InputError, check_whole
from mano_op.grid import Registration


def import_the_well(
    path: str | Path,
    files: Files,
    *,
    registration: Registration | Registrations,
    domain: dict[str, tuple[float, float]],
    **options: Any,
) -> FieldStore:
    """Import HDF5 files in the format of The Well [1]_, on cartesian grids.

    Scalars (``t0_fields``) are variables of their names; vectors and tensors (``t1_fields``, ``t2_fields``)
    one for each component, ``velocity_x``, ``stress_xy``. Steady fields are inputs, others outputs; fields
    that are the same for all samples, or along an axis, are repeated. Boundary conditions are the file's:
    "periodic", "wall", "open", or "mixed". ``scalars`` that are one number are kept in ``provenance``.

    Parameters
    ----------
    path : path
    files : mapping of str to sequence of path
        Of each split, with the same fields on one grid.
    registration, domain
        As in `mano_op.data.write.write_fields`; the format does not say them.
    **options
        Of `write_fields`: ``overwrite``, ``resume``, ``title``, ...

    References
    ----------
    .. [1] Ohana et al., "The Well: a Large-Scale Collection of Diverse Physics Simulations for Machine
       Learning", NeurIPS 2024, arXiv:2412.00568; https://polymathic-ai.org/the_well/data_format/.
    """
    paths = paths_of(files, "{'train': ['a.hdf5']}")
    with ExitStack() as stack:
        opened = {file: open_hdf5(stack, file) for file in chain(*paths.values())}
        parts = {file: _part(file, root) for file, root in opened.items()}
        file, first = next(iter(parts.items()))
        options.setdefault("title", _text(opened[file].attrs.get("dataset_name", "The Well")))
        return write_parts(
            path,
            paths,
            parts,
            inputs=[name for name, (dims, _) in first.fields.items() if "time" not in dims],
            registration=registration,
            domain=domain,
            boundary_conditions=first.about["boundary conditions"],
            provenance={
                "source": "The Well",
                "scalars": {file.name: _scalars(root) for file, root in opened.items()},
            },
            **options,
        )


def _part(path: Path, root: h5py.File) -> Part:
    axes = _axes(path, root)
    varying = _fields(path, root, axes)
    fields = {
        name: (("sample", *(["time"] if flag else []), *axes), values)
        for name, (flag, values) in varying.items()
    }
    names = (*axes, *(["time"] if any(flag for flag, _ in varying.values()) else []))
    coordinates = {name: coordinate(root["dimensions"], name) for name in names}
    return Part(fields, coordinates, {"boundary conditions": _conditions(root, axes)})


_FORMAT = "; expected a file in The Well's format"


def _attribute(node: h5py.Group | h5py.Dataset, name: str) -> Any:
    check_has(place(node), "attribute", [name], node.attrs, _FORMAT)
    return node.attrs[name]


def _whole(node: h5py.Group, name: str) -> int:
    """Read a number of samples or axes."""
    value = np.asarray(_attribute(node, name))
    whole = value.size == 1 and value.dtype.kind in "iu"
    check_whole(**{f"{place(node)}: attribute {name}": value.item() if whole else value.tolist()})
    return int(value.item())


def _flags(node: h5py.Dataset, name: str, n: int) -> list[bool]:
    """Read `n` times yes or no."""
    value = np.atleast_1d(_attribute(node, name))
    if value.shape != (n,) or value.dtype.kind not in "biu" or not np.isin(value, (0, 1)).all():
        raise InputError(f"{place(node)}: attribute {name}={value}; expected True or False, {n} times")
    return [bool(flag) for flag in value]


def _group(root: h5py.Group, name: str, *, needed: bool = False) -> h5py.Group | None:
    """A group of a file, if it is there."""
    node = root.get(name)
    if needed or name in root:
        groups = [key for key in root if isinstance(root.get(key), h5py.Group)]
        check_has(place(root), "group", [name], groups, _FORMAT)
    return node


def _axes(path: Path, root: h5py.File) -> tuple[str, ...]:
    _whole(root, "n_trajectories")
    check_one_of(f"{path}: grid_type", _text(_attribute(root, "grid_type")), ["cartesian"])
    dimensions = _group(root, "dimensions", needed=True)
    axes = tuple(_text(name) for name in np.ravel(_attribute(dimensions, "spatial_dims")))
    if len(set(axes)) != _whole(root, "n_spatial_dims") or len(set(axes)) != len(axes):
        raise InputError(
            f"{path}: n_spatial_dims={root.attrs['n_spatial_dims']}, but spatial_dims={list(axes)}; expected "
            "as many names, each once"
        )
    return axes


def _scalars(root: h5py.File) -> dict[str, Any]:
    """Read the numbers that hold for all of a file, such as a Reynolds number."""
    group = _group(root, "scalars") or {}
    return {
        name: node[()].item()
        for name in group
        if isinstance(node := group.get(name), h5py.Dataset)
        and node.size == 1
        and node.dtype.kind in "biuf"
        and np.isfinite(node[()]).all()
    }


def _fields(path: Path, root: h5py.File, axes: tuple[str, ...]) -> dict[str, tuple[bool, da.Array]]:
    """Return for each variable whether it varies in time, and its values, samples first."""
    found: dict[str, tuple[bool, da.Array]] = {}
    n, steps = _whole(root, "n_trajectories"), len(coordinate(root["dimensions"], "time"))
    points = tuple(len(coordinate(root["dimensions"], name)) for name in axes)
    for order in range(3):
        group = _group(root, f"t{order}_fields")
        for name in [] if group is None else _names(group):
            node = dataset(group, name)
            flags = {flag: _flags(node, flag, 1)[0] for flag in ("sample_varying", "time_varying")}
            every = "dim_varying" not in node.attrs
            along = [True] * len(axes) if every else _flags(node, "dim_varying", len(axes))
            kept = [k for k, varies in zip(points, along, strict=True) if varies]
            ones = [k if varies else 1 for k, varies in zip(points, along, strict=True)]
            leading = [k for k, flag in ((n, "sample_varying"), (steps, "time_varying")) if flags[flag]]
            # An axis along which it does not vary is left out, as the format says, or has one point, as The
            # Well's own reader needs it; the components of a tensor have two axes, or one as it says.
            shapes = [
                (*leading, *sizes, *components)
                for sizes in (kept, ones)
                for components in ((len(axes),) * order, *([(len(axes) ** order,)] if order > 1 else []))
            ]
            fitting = node.shape if node.shape in shapes else shapes[0]
            check_shape(place(node), node.shape, fitting, "make it, its attributes and the dimensions agree")
            times = [steps] if flags["time_varying"] else []
            last = [len(axes) ** order] if order else []
            values = lazy(node).reshape((n if flags["sample_varying"] else 1, *times, *ones, *last))
            values = da.broadcast_to(values, (n, *times, *points, *last))
            for i, component in enumerate(product(axes, repeat=order)):
                called = f"{name}_{''.join(component)}" if order else name
                if called in found:
                    raise InputError(
                        f"{path}: {called} is there twice, as a field and as a component of another, say; "
                        "rename one of them in the file"
                    )
                found[called] = (flags["time_varying"], values[..., i] if order else values)
    if not found:
        raise InputError(f"{path} has no fields in t0_fields, t1_fields or t2_fields")
    return found


def _names(group: h5py.Group) -> list[str]:
    """Order the fields as the file and The Well's own reader do."""
    said = [_text(name) for name in np.ravel(group.attrs.get("field_names", []))]
    return list(dict.fromkeys([*said, *group]))


def _conditions(root: h5py.File, axes: tuple[str, ...]) -> dict[str, str]:
    """Read the boundary condition of each axis."""
    kinds: dict[str, set[str]] = {name: set() for name in axes}
    group = _group(root, "boundary_conditions") or {}
    for part in (node for name in group if (node := _group(group, name)) is not None):
        kind = _text(_attribute(part, "bc_type")).lower()
        check_one_of(f"{place(part)}: bc_type", kind.upper(), ["PERIODIC", "WALL", "OPEN"])
        for name in np.ravel(_attribute(part, "associated_dims")):
            kinds.setdefault(_text(name), set()).add(kind)
    unknown = [name for name in axes if not kinds[name]]
    if unknown:
        raise InputError(
            f"{root.filename} says no boundary condition of {', '.join(unknown)}; expected a group for each "
            "axis in 'boundary_conditions', with bc_type and associated_dims"
        )
    return {name: kinds[name].pop() if len(kinds[name]) == 1 else "mixed" for name in axes}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
