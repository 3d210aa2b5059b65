"""The Well's HDF5 files."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np

from mano_op.data.coordinates import Registrations
from mano_op.data.guards import check_has, check_one_of, check_shape
from mano_op.data.importers import lazy
from mano_op.data.store import FieldStore
from mano_op.errors import InputError, check_whole
from mano_op.grid import Registration


def import_the_well(
    path: str | Path,
    files: lazy.Files,
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
    provenance = {"source": "The Well"}
    return lazy.import_files(
        path, files, _read, registration=registration, domain=domain, provenance=provenance, **options
    )


_FORMAT = "; expected a file in The Well's format"


def _read(stack: ExitStack, path: Path) -> lazy.Part:
    root = lazy.open_hdf5(stack, path)
    axes = _axes(path, root)
    fields = _fields(path, root, axes)
    varies = {name: field.ndim > 1 + len(axes) for name, field in fields.items()}
    names = (*axes, *(["time"] if any(varies.values()) else []))
    data = lazy.labelled(path, fields, {name: lazy.coordinate(root["dimensions"], name) for name in names})
    options = {
        "inputs": [name for name in fields if not varies[name]],
        "boundary_conditions": _conditions(root, axes),
        "title": _text(root.attrs.get("dataset_name", "The Well")),
    }
    return lazy.Part(data, options, _scalars(root))


def _attribute(node: h5py.Group | h5py.Dataset, name: str) -> Any:
    check_has(lazy.location(node), "attribute", [name], node.attrs, _FORMAT)
    return node.attrs[name]


def _whole(node: h5py.Group, name: str) -> int:
    value = np.asarray(_attribute(node, name))
    number = value.item() if value.size == 1 else value.tolist()
    check_whole(**{f"{lazy.location(node)}: attribute {name}": number})
    return int(number)


def _flags(node: h5py.Dataset, name: str, n: int = 1) -> list[bool]:
    """Read `n` times yes or no."""
    value = np.atleast_1d(_attribute(node, name))
    if value.shape != (n,) or value.dtype.kind not in "biu" or not np.isin(value, (0, 1)).all():
        raise InputError(
            f"{lazy.location(node)}: attribute {name}={value}; expected True or False, {n} times"
        )
    return [bool(flag) for flag in value]


def _group(root: h5py.Group, name: str, *, needed: bool = False) -> Any:
    """Return a group of a file; empty if there is none and none is needed."""
    if needed or name in root:
        groups = [key for key in root if isinstance(root.get(key), h5py.Group)]
        check_has(lazy.location(root), "group", [name], groups, _FORMAT)
    return root.get(name, {})


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
    group = _group(root, "scalars")
    nodes = {name: node for name in group if isinstance(node := group.get(name), h5py.Dataset)}
    single = {name: node[()] for name, node in nodes.items() if node.size == 1 and node.dtype.kind in "biuf"}
    return {name: value.item() for name, value in single.items() if np.isfinite(value).all()}


def _fields(path: Path, root: h5py.File, axes: tuple[str, ...]) -> dict[str, da.Array]:
    """Return the fields, ``(samples, [times], *axes)``, vectors and tensors as their components."""
    fields: dict[str, da.Array] = {}
    n, steps = _whole(root, "n_trajectories"), len(lazy.coordinate(root["dimensions"], "time"))
    points = [len(lazy.coordinate(root["dimensions"], name)) for name in axes]
    for order in range(3):
        group = _group(root, f"t{order}_fields")
        for name in _names(group):
            values = _field(lazy.dataset(group, name), order, n, steps, points)
            for i, component in enumerate(product(axes, repeat=order)):
                variable = f"{name}_{''.join(component)}" if order else name
                lazy.check_free(path, [variable], fields)
                fields[variable] = values[..., i]
    if not fields:
        raise InputError(f"{path} has no fields in t0_fields, t1_fields or t2_fields{_FORMAT}")
    return fields


def _field(node: h5py.Dataset, order: int, n: int, steps: int, points: list[int]) -> da.Array:
    """Return a tensor field ``(samples, [times], *points, components)``, repeated where it does not vary."""
    per_sample, in_time = (_flags(node, name)[0] for name in ("sample_varying", "time_varying"))
    along = _flags(node, "dim_varying", len(points)) if "dim_varying" in node.attrs else [True] * len(points)
    sizes = [size if varies else 1 for size, varies in zip(points, along, strict=True)]
    leading, times = [n] if per_sample else [], [steps] if in_time else []
    tensor, n_components = [len(points)] * order, len(points) ** order
    # An axis along which a field does not vary is left out, as the format says, or has one point, as The
    # Well's own reader needs it; the components of a tensor have two axes, or one as that reader says.
    shapes = [
        (*leading, *times, *axes, *components)
        for axes in ([size for size, varies in zip(points, along, strict=True) if varies], sizes)
        for components in (tensor, [n_components] if order else [])
    ]
    expected = node.shape if node.shape in shapes else shapes[0]
    check_shape(lazy.location(node), node.shape, expected, "make it, its attributes and the dimensions agree")
    values = lazy.in_pieces(node).reshape((*(leading or [1]), *times, *sizes, n_components))
    return da.broadcast_to(values, (n, *times, *points, n_components))


def _names(group: Any) -> list[str]:
    """Order the fields as the file and The Well's own reader do."""
    names = group.attrs.get("field_names", []) if group != {} else []
    return list(dict.fromkeys([*(_text(name) for name in np.ravel(names)), *group]))


def _conditions(root: h5py.File, axes: tuple[str, ...]) -> dict[str, str]:
    kinds: dict[str, set[str]] = {}
    ends = _group(root, "boundary_conditions")
    for group in (_group(ends, name) for name in ends):
        kind = _text(_attribute(group, "bc_type")).lower()
        check_one_of(f"{lazy.location(group)}: bc_type", kind.upper(), ["PERIODIC", "WALL", "OPEN"])
        for name in np.ravel(_attribute(group, "associated_dims")):
            kinds.setdefault(_text(name), set()).add(kind)
    remedy = "; expected a group for each axis in 'boundary_conditions', with bc_type and associated_dims"
    check_has(root.filename, "boundary condition of axis", axes, kinds, remedy)
    return {name: kinds[name].pop() if len(kinds[name]) == 1 else "mixed" for name in axes}


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
