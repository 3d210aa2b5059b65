"""Check that a store is what the format says, all of it read: each violation is a sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from tqdm import tqdm
from zarr.abc.store import Store
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

from mano_op.data import schema
from mano_op.data.digests import Digests
from mano_op.data.layout import AVERAGE, COORDINATE_ATTRIBUTES, Variable, pieces
from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError, listed
from mano_op.paths import partial_path
from mano_op.resample import nests

# How far fields that are one at shared points may differ there, in standard deviations: float32, and a sum.
_SAME = 1e-4
_RESTORE = "restore it or make the store anew"

# Attributes of fields and coordinates that a reader goes by.
_ATTRIBUTES = (*COORDINATE_ATTRIBUTES, "bounds", "role", "reference", "initial_of", "boundary_value")


def check_store(
    path: str | Path | Store, *, progress: bool = True, storage_options: dict[str, Any] | None = None
) -> list[str]:
    """Read all of a store and list what is not as the format asks.

    Checked are labels, coordinates, conventions and provenance; types, chunks and checksums of fields; every
    value; the statistics; fields of "resampled" resolutions at shared points; fields that two splits share;
    and undeclared initial fields. What can be read as it was meant, such as float64, is a violation too.
    `path` and `storage_options` are those of `open_store`. `InputError` if there is nothing at the path.

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
        place = None if isinstance(path, Store) else schema.place_of(path)
        if isinstance(place, Path) and not (place.exists() or partial_path(place).exists()):
            raise
        return [str(error)]
    root = zarr.open_group(store.location, mode="r", use_consolidated=False, storage_options=storage_options)
    # What the store should be, by its own labels at the finest resolution.
    memory = MemoryStore()
    schema.lay_out(memory, store.layout, {})
    expected = zarr.open_group(memory, mode="r")
    if violations := list(_missing(root, expected)):
        return violations
    violations += [*_about(store, root), *_derived(store)]
    variables, groups = store.layout.named(), dict(expected.groups())
    for key, grid in store.grids.items():
        for name in sorted(groups[key].array_keys(), key=lambda name: (name in variables, name)):
            where = f"{key}/{name}"
            stored, right = schema.array(root, where), schema.array(expected, where)
            violations += (_field if name in variables else _label)(where, stored, right)
            if name in (*grid.names, *variables):
                violations += _attributes(where, stored, right)
    digests = Digests(store)
    damaged = list(_fields(store, progress, digests))
    violations += damaged
    if not damaged:  # else these would say the same again
        violations += [*_statistics(store), *_shared_points(store)]
        violations += [*digests.shared_fields(), *digests.initial_fields()]
    return violations


def _missing(root: zarr.Group, expected: zarr.Group) -> Iterator[str]:
    """Find resolutions and arrays in the root's metadata that are missing or damaged."""
    for key, group in expected.groups():
        for where in (key, *(f"{key}/{name}" for name in sorted(group.array_keys()))):
            try:
                _ = root[key] if where == key else schema.array(root, where)
                continue
            except KeyError:
                yield f"{where}: {'its zarr.json' if where == key else 'the array'} is missing; {_RESTORE}"
            except schema.DAMAGED as error:
                yield f"{where}: its zarr.json is damaged ({error}); {_RESTORE}"
            if where == key:
                break


def _about(store: FieldStore, root: zarr.Group) -> Iterator[str]:
    for name in sorted({*root.group_keys()} - {*store.grids}):
        yield f"{name}: a group that the layout of multiscales does not name; take it out, or name it there"
    for name in sorted(root.array_keys()):
        yield f"{name}: an array at the root; a complete store has resolutions only; take it out"
    nodes = {"": store.attrs} | {f"{key}: ": root[key].attrs for key in store.grids}
    for where, attributes in nodes.items():
        conventions = attributes.get("Conventions")
        # CF lets a file name several, between blanks or commas.
        if schema.CONVENTIONS not in re.split(r"[\s,]+", str(conventions)):
            yield f"{where}attribute Conventions={conventions!r}, expected {schema.CONVENTIONS!r}; set it"
    title, provenance = (store.attrs.get(name) for name in ("title", "provenance"))
    if not isinstance(title, str):
        yield f"attribute title={title!r}, expected a text, which may be empty; set it"
    if not isinstance(provenance, Mapping):
        yield f"attribute provenance={provenance!r}, expected what the fields were made with; set it"
        return
    versions = provenance.get("versions")
    if not isinstance(versions, Mapping) or not set(schema.VERSIONS) <= set(versions):
        yield (
            f"attribute provenance has versions={versions!r}, expected those of "
            f"{', '.join(schema.VERSIONS)}; add them, or make the store anew"
        )


def _derived(store: FieldStore) -> Iterator[str]:
    expected = {level["asset"]: level for level in schema.multiscales(store.layout)}
    for level in store.attrs["multiscales"]["layout"]:
        key, source = level["asset"], level.get("derived_from")
        if source is None:
            continue
        where = f"multiscales: {key} has"
        if source not in expected:
            keys = ", ".join(expected)
            yield f"{where} derived_from={source!r}, expected one of {keys}; set it, or leave it out"
            continue
        if not (method := level.get("resampling_method")):
            yield f"{where} resampling_method={method!r}, expected how it was made from {source}; set it"
        if (transform := level.get("transform")) != (right := expected[key]["transform"]):
            yield f"{where} transform={transform!r}, expected {right!r}, from the grids; set it"
        for variable in store.variables if method == AVERAGE else ():
            if "mean" not in (methods := variable.cell_methods_at(key)):
                yield (
                    f"{key}/{variable.name}: attribute cell_methods={methods!r}, expected 'area: mean', as "
                    f"multiscales has resampling_method={method!r} for {key}; set the one that is wrong"
                )


def _field(where: str, stored: zarr.Array, expected: zarr.Array) -> Iterator[str]:
    if stored.dtype != expected.dtype:
        yield f"{where}: stored as {stored.dtype}, expected {expected.dtype}; write the array anew"
    elif not np.isnan(stored.fill_value):
        yield (
            f"{where}: fill_value={stored.fill_value}, expected NaN, or a chunk that is lost reads as "
            "values; write the array anew"
        )
    if stored.chunks != expected.chunks:
        yield (
            f"{where}: chunks of shape {stored.chunks}, expected {expected.chunks}, whole fields of "
            "samples_per_chunk samples; write the array anew"
        )
    yield from _checksum(where, stored)


def _label(where: str, stored: zarr.Array, expected: zarr.Array) -> Iterator[str]:
    try:
        values = np.asarray(stored[...])
    except schema.DAMAGED as error:
        yield f"{where}: cannot be read ({error}); {_RESTORE}"
        return
    right = np.asarray(expected[...])
    if right.dtype.kind == "f" and right.shape == values.shape:
        same = np.allclose(values, right, rtol=0, atol=1e-6 * np.ptp(right) / len(right))
    else:
        same = np.array_equal(values.astype(object), right.astype(object))
    if not same:
        yield f"{where}: expected {listed(right.ravel().tolist())}; set them"
    yield from _checksum(where, stored)


def _attributes(where: str, stored: zarr.Array, expected: zarr.Array) -> Iterator[str]:
    for name in _ATTRIBUTES:
        default = 0.0 if name == "reference" else None
        value, right = (array.attrs.get(name, default) for array in (stored, expected))
        if value != right:
            yield f"{where}: attribute {name}={value!r}, expected {right!r}, as at all resolutions; set it"


def _checksum(where: str, stored: zarr.Array) -> Iterator[str]:
    if not any(isinstance(codec, Crc32cCodec) for codec in stored.compressors[-1:]):
        codecs = ", ".join(type(codec).__name__ for codec in stored.compressors) or "none"
        yield (
            f"{where}: compressors {codecs}, expected Crc32cCodec as the last, or a flipped bit reads as a "
            "value; write the array anew"
        )


def _fields(store: FieldStore, progress: bool, digests: Digests) -> Iterator[str]:
    """Find chunks that cannot be read, and samples that are not finite."""
    layout = store.layout
    total = sum(len(layout.samples(key)) for key in store.grids) * len(layout.variables)
    with tqdm(total=total, unit="field", disable=not progress) as bar:
        for key, variable in product(store.grids, layout.variables):
            n = len(layout.samples(key))
            spans = layout.time_chunks if variable.time else [slice(None)]
            for rows, times in product(pieces(slice(0, n), layout.chunk), spans):
                try:
                    values = store.read(key, variable.name, rows, times)
                except InputError as error:
                    yield str(error).removeprefix(f"{store.path}, ")
                else:
                    digests.add(key, variable, rows.start, values)
            bar.update(n)


def _statistics(store: FieldStore) -> Iterator[str]:
    if "train" not in store.splits:
        return
    expected = store.statistics_of("train")["variables"]
    for name, moments in expected.items():
        stored = store.statistics.get(name, {})
        for moment, value in moments.items():
            if not np.isclose(stored.get(moment, np.nan), value, rtol=1e-6, atol=1e-6 * moments["std"]):
                yield f"statistics of {name}: {moment} {stored.get(moment)}, expected {value:.9g}; set it"


def _shared_points(store: FieldStore) -> Iterator[str]:
    if store.layout.levels != "resampled":
        return
    finest, fine = next(reversed(store.grids.items()))
    for (key, grid), variable in product(store.grids.items(), store.variables):
        methods = {variable.cell_methods_at(level) for level in (key, finest)}
        if key == finest or not nests(fine, grid) or methods != {"area: point"}:
            continue
        sample = _first_that_differs(store, variable, key, finest)
        if sample is not None:
            yield (
                f"{key}/{variable.name}: sample {sample} differs from {finest} where they share points, "
                "though the resolutions are resampled and values are at points ('area: point'); write them "
                "from one field, or say levels='independent'"
            )


def _first_that_differs(store: FieldStore, variable: Variable, coarse: str, fine: str) -> int | None:
    """Return the first sample whose values differ at the points that two resolutions share."""
    tolerance = _SAME * max(store.statistics.get(variable.name, {}).get("std", 1.0), 1e-30)
    axes = zip(store.grids[coarse], store.grids[fine], strict=True)
    at = np.ix_(*(np.rint((few.points - many.points[0]) / many.spacing).astype(int) for few, many in axes))
    samples, *rows = np.intersect1d(
        store.layout.samples(coarse), store.layout.samples(fine), return_indices=True
    )
    for span in pieces(slice(0, len(samples)), store.layout.chunk):
        apart = np.zeros(span.stop - span.start)
        for times in store.layout.time_chunks if variable.time else [slice(None)]:
            values, others = (
                store.read(key, variable.name, at_key[span], times)
                for key, at_key in zip((coarse, fine), rows, strict=True)
            )
            difference = np.abs(values - others[(Ellipsis, *at)])
            apart = np.maximum(apart, difference.reshape(len(values), -1).max(axis=1))
        if (apart > tolerance).any():
            return int(samples[span][np.argmax(apart > tolerance)])
    return None
