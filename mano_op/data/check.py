"""Check that a store is what the format says, all of it read: each violation is a sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from tqdm import tqdm
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec

from mano_op.data.digests import Digests
from mano_op.data.layout import AVERAGE, Variable
from mano_op.data.schema import CONVENTIONS, DAMAGED, VERSIONS, array, multiscales, values_of
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.resample import nests

# How far fields that are one at shared points may differ there, in standard deviations: float32, and a sum.
_SAME = 1e-4
_RESTORE = "restore it or make the store anew"


def check_store(
    path: str | Path | Store, *, progress: bool = True, storage_options: Mapping[str, Any] | None = None
) -> list[str]:
    """Read all of a store and list what is not as the format asks.

    Checked are labels, coordinates, conventions and provenance; types, chunks and checksums of fields; every
    value; the statistics; fields of "resampled" levels at shared points; fields that two splits share; and
    undeclared initial fields. What can still be read as it was meant, such as float64, is a violation too.
    `path` and `storage_options` are those of `open_store`; `progress` shows a bar on stderr.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems import generate_darcy
    >>> store = generate_darcy(f"{tempfile.mkdtemp()}/darcy.zarr", [4, 8], samples={"train": 2},
    ...                        progress=False)
    >>> check_store(store.path, progress=False)
    []
    >>> u = zarr.open_group(store.path, mode="r+")["r8/pressure"]
    >>> u[1, 3, 4] = np.nan
    >>> print(*check_store(store.path, progress=False))
    r8/pressure: sample 1 has a NaN or an infinity; a chunk of the store is lost or was changed: restore the
    store or make it anew
    """
    try:
        store = open_store(path, storage_options=storage_options)
    except InputError as error:
        return [str(error)]
    options = None if storage_options is None else dict(storage_options)
    root = zarr.open_group(store.location, mode="r", use_consolidated=False, storage_options=options)
    found = list(_arrays(store, root))
    if found:
        return found
    found += [*_groups(store, root), *_about(store, root), *_derived(store)]
    for key in store.grids:
        damaged = list(_damaged_labels(store, root, key))
        found += damaged or _labels(store, root, key)
        found += _storage(store, root, key)
    digests = Digests(store)
    bad = list(_fields(store, progress, digests))
    found += bad
    if not bad:  # else these would say the same again
        found += [
            *_statistics(store),
            *_shared_points(store),
            *digests.shared_fields(),
            *digests.initial_fields(),
        ]
    return found


def _arrays(store: FieldStore, root: zarr.Group) -> Iterator[str]:
    """Find levels and arrays in the root's metadata that are missing or damaged."""
    for key in store.grids:
        names = [*_names(store, key), *store.inputs, *store.outputs]
        for where in (key, *(f"{key}/{name}" for name in names)):
            try:
                _ = root[key] if where == key else array(root, where)
                continue
            except KeyError:
                yield f"{where}: {'its zarr.json' if where == key else 'the array'} is missing; {_RESTORE}"
            except DAMAGED as error:
                yield f"{where}: its zarr.json is damaged ({error}); {_RESTORE}"
            if where == key:
                break


def _names(store: FieldStore, key: str) -> list[str]:
    """Names of the arrays that label the others."""
    axes = [name for axis in store.grids[key].names for name in (axis, f"{axis}_bnds")]
    return ["sample", "split", *(["time"] if store.layout.times else []), *axes]


def _damaged_labels(store: FieldStore, root: zarr.Group, key: str) -> Iterator[str]:
    for name in _names(store, key):
        try:
            values_of(root, f"{key}/{name}")
        except DAMAGED as error:
            yield f"{key}/{name}: cannot be read ({error}); {_RESTORE}"


def _groups(store: FieldStore, root: zarr.Group) -> Iterator[str]:
    for name in sorted({*root.group_keys()} - {*store.grids}):
        yield f"{name}: a group that the layout of the levels does not name; take it out, or name it there"
    for name in sorted(root.array_keys()):
        yield f"{name}: an array at the root; a complete store has levels only; take it out"


def _about(store: FieldStore, root: zarr.Group) -> Iterator[str]:
    yield from _conventions("", store.attrs)
    for key in store.grids:
        yield from _conventions(f"{key}: ", dict(root[key].attrs))
    title, provenance = (store.attrs.get(name) for name in ("title", "provenance"))
    if not isinstance(title, str):
        yield f"attribute title={title!r}, expected a text, which may be empty; set it"
    if not isinstance(provenance, Mapping):
        yield f"attribute provenance={provenance!r}, expected what the fields were made with; set it"
        return
    versions = provenance.get("versions")
    if not isinstance(versions, Mapping) or not set(VERSIONS) <= set(versions):
        yield (
            f"attribute provenance has versions={versions!r}, expected those of {', '.join(VERSIONS)}; "
            "add them, or make the store anew"
        )


def _conventions(where: str, attributes: Mapping[str, Any]) -> Iterator[str]:
    given = attributes.get("Conventions")
    # CF lets a file name several, between blanks or commas.
    if CONVENTIONS not in re.split(r"[\s,]+", str(given)):
        yield f"{where}attribute Conventions={given!r}, expected {CONVENTIONS!r}; set it"


def _derived(store: FieldStore) -> Iterator[str]:
    expected = {level["asset"]: level for level in multiscales(store.layout)}
    for level in store.attrs["multiscales"]["layout"]:
        key, source = level["asset"], level.get("derived_from")
        if source is None:
            continue
        where = f"multiscales: level {key} has"
        if source not in expected:
            levels = ", ".join(expected)
            yield f"{where} derived_from={source!r}, expected one of {levels}; set it, or leave it out"
            continue
        if not (method := level.get("resampling_method")):
            yield f"{where} resampling_method={method!r}, expected how it was made from {source}; set it"
        if (given := level.get("transform")) != (right := expected[key]["transform"]):
            yield f"{where} transform={given!r}, expected {right!r}, from the grids; set it"
        for variable in store.variables if method == AVERAGE else ():
            if "mean" not in (given := variable.cell_methods_at(key)):
                yield (
                    f"{key}/{variable.name}: attribute cell_methods={given!r}, expected 'area: mean', as "
                    f"multiscales has resampling_method={method!r} for {key}; set the one that is wrong"
                )


def _storage(store: FieldStore, root: zarr.Group, key: str) -> Iterator[str]:
    for name in _names(store, key):
        yield from _checksum(f"{key}/{name}", array(root, f"{key}/{name}"))
    for variable in store.variables:
        where = f"{key}/{variable.name}"
        stored, expected = array(root, where), store.layout.chunk_shape(key, variable)
        if stored.dtype != np.float32:
            yield f"{where}: stored as {stored.dtype}, expected float32; write the array anew"
        elif not np.isnan(stored.fill_value):
            yield (
                f"{where}: fill_value={stored.fill_value}, expected NaN, or a chunk that is lost reads as "
                "values; write the array anew"
            )
        if stored.chunks != expected:
            yield (
                f"{where}: chunks of shape {stored.chunks}, expected {expected}, whole fields of "
                f"samples_per_chunk={store.layout.chunk} samples; write the array anew"
            )
        yield from _checksum(where, stored)


def _checksum(where: str, stored: zarr.Array) -> Iterator[str]:
    if not any(isinstance(codec, Crc32cCodec) for codec in stored.compressors[-1:]):
        codecs = ", ".join(type(codec).__name__ for codec in stored.compressors) or "none"
        yield (
            f"{where}: compressors {codecs}, expected Crc32cCodec as the last, or a flipped bit reads as a "
            "value; write the array anew"
        )


def _labels(store: FieldStore, root: zarr.Group, key: str) -> Iterator[str]:
    grid, layout = store.grids[key], store.layout
    samples, held = layout.samples(key), layout.held[key]
    if not np.array_equal(values_of(root, f"{key}/sample"), samples):
        yield (
            f"{key}/sample: expected the numbers {samples[0]} to {samples[-1]} of {', '.join(held)}, as they "
            "are at other levels; set them"
        )
    split = np.concatenate([np.full(layout.splits[name], name, dtype=object) for name in held])
    if not np.array_equal(values_of(root, f"{key}/split").astype(object), split):
        told = ", ".join(f"{name} {layout.splits[name]} times" for name in held)
        yield f"{key}/split: expected {told}; set them"
    for axis in grid:
        where, bounds = f"{key}/{axis.name}", f"{axis.name}_bnds"
        if array(root, where).attrs.get("bounds") != bounds:
            given = array(root, where).attrs.get("bounds")
            yield f"{where}: attribute bounds={given!r}, expected {bounds!r}; set it"
        for about, expected in layout.coordinates[axis.name].items():
            yield from _same(where, about, array(root, where).attrs.get(about), expected)
        if not np.allclose(values_of(root, f"{key}/{bounds}"), axis.bounds, rtol=0, atol=1e-6 * axis.spacing):
            yield (
                f"{key}/{bounds}: expected the interval that each point of a {axis.registration} axis stands "
                "for; set them to the `bounds` of the grid's axis"
            )
    for variable in layout.variables:
        yield from _attributes(key, variable, dict(array(root, f"{key}/{variable.name}").attrs))


def _attributes(key: str, variable: Variable, attributes: dict[str, Any]) -> Iterator[str]:
    for name in ("units", "long_name", "role", "reference", "initial_of", "boundary_value"):
        given = attributes.get(name, 0.0 if name == "reference" else None)
        # Compared as JSON has it, with lists for pairs.
        yield from _same(
            f"{key}/{variable.name}", name, given, json.loads(json.dumps(getattr(variable, name)))
        )


def _same(where: str, name: str, given: object, expected: object) -> Iterator[str]:
    if given != expected:
        yield (
            f"{where}: attribute {name}={given!r}, another level has {expected!r}; say the same at all levels"
        )


def _fields(store: FieldStore, progress: bool, digests: Digests) -> Iterator[str]:
    """Find chunks that cannot be read, and samples that are not finite."""
    layout = store.layout
    total = sum(len(layout.samples(key)) for key in store.grids) * len(layout.variables)
    with tqdm(total=total, unit="field", disable=not progress) as bar:
        for key, variable in product(store.grids, layout.variables):
            n = len(layout.samples(key))
            spans = layout.time_chunks if variable.time else [slice(None)]
            for start, times in product(range(0, n, layout.chunk), spans):
                try:
                    values = store.read(key, variable.name, slice(start, start + layout.chunk), times)
                except InputError as error:
                    yield str(error).removeprefix(f"{store.path}, ")
                else:
                    digests.add(key, variable, start, values)
            bar.update(n)


def _statistics(store: FieldStore) -> Iterator[str]:
    if "train" not in store.splits:
        return
    expected = store.statistics_of("train")["variables"]
    for name, told in expected.items():
        given = store.statistics.get(name, {})
        for what, value in told.items():
            if not np.isclose(given.get(what, np.nan), value, rtol=1e-6, atol=1e-6 * told["std"]):
                yield f"statistics of {name}: {what} {given.get(what)}, expected {value:.9g}; set it"


def _shared_points(store: FieldStore) -> Iterator[str]:
    if store.layout.levels != "resampled":
        return
    finest = next(reversed(store.grids))
    fine = store.grids[finest]
    for key, grid in store.grids.items():
        if key == finest or not nests(fine, grid):
            continue
        common, in_coarse, in_fine = np.intersect1d(
            store.layout.samples(key), store.layout.samples(finest), return_indices=True
        )
        if not len(common):
            continue
        at = np.ix_(*(_positions(fine, grid, i) for i in range(grid.n_dim)))
        for variable in store.variables:
            if {variable.cell_methods_at(level) for level in (key, finest)} == {"area: point"}:
                differing = _differing(store, variable, (key, in_coarse), (finest, in_fine), at)
                for i in differing[:1]:
                    yield (
                        f"{key}/{variable.name}: sample {common[i]} differs from {finest} where they share "
                        "points, though the levels are resampled and values are at points ('area: point'); "
                        "write them from one field, or say levels='independent'"
                    )


def _positions(fine: Grid, coarse: Grid, axis: int) -> NDArray[np.int64]:
    here, there = fine.axes[axis], coarse.axes[axis]
    return np.rint((there.points - here.points[0]) / here.spacing).astype(np.int64)


def _differing(
    store: FieldStore,
    variable: Variable,
    coarse: tuple[str, NDArray[np.int64]],
    fine: tuple[str, NDArray[np.int64]],
    at: tuple[NDArray[np.int64], ...],
) -> list[int]:
    """Find samples that differ at the points that two levels share."""
    tolerance = _SAME * max(store.statistics.get(variable.name, {}).get("std", 1.0), 1e-30)
    found: list[int] = []
    for start in range(0, len(coarse[1]), store.layout.chunk):
        rows = slice(start, start + store.layout.chunk)
        apart = np.zeros(len(coarse[1][rows]))
        for times in store.layout.time_chunks if variable.time else [slice(None)]:
            one = store.read(coarse[0], variable.name, coarse[1][rows], times)
            other = store.read(fine[0], variable.name, fine[1][rows], times)
            shared = other[(Ellipsis, *at)]  # type: ignore[arg-type]
            difference = np.abs(np.subtract(one, shared))
            apart = np.maximum(apart, difference.reshape(len(one), -1).max(axis=1))
        found += (start + np.flatnonzero(apart > tolerance)).tolist()
    return found
