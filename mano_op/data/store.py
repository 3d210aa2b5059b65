"""Fields on disk: one zarr store, one group for each resolution, labelled as CF asks.

`create_store` lays a store out, `FieldStore.write` fills it by chunks of samples, in any order and from any
number of processes, `FieldStore.finish` completes it. ``xarray.open_datatree(path)`` reads it too.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import ArrayLike, NDArray
from zarr.abc.store import Store
from zarr.errors import ZarrUserWarning

from mano_op.data import schema
from mano_op.data.guards import check_has, check_one_of, check_some_of
from mano_op.data.layout import Layout, Levels, Resolution, Variable, pieces
from mano_op.data.moments import Moments
from mano_op.data.precision import Rounding
from mano_op.data.transforms import TRANSFORMS, transformed
from mano_op.data.validate import LOST, accept, check_finite
from mano_op.errors import InputError, refusing
from mano_op.grid import Grid
from mano_op.paths import partial_path

__all__ = ["FieldStore", "Levels", "Resolution", "Variable", "create_store", "open_store"]

# As `map` of a function over chunks of samples.
Each = Callable[[Callable[[slice], Any], Sequence[slice]], Iterable[Any]]


def create_store(
    path: str | Path,
    grids: Sequence[Grid],
    variables: Sequence[Variable],
    splits: Mapping[str, int],
    *,
    title: str,
    provenance: Mapping[str, Any],
    overwrite: bool = False,
    **layout: Any,
) -> FieldStore:
    """Lay out an empty store: all labels, no fields yet. `FieldStore.finish` puts it at `path`.

    Parameters
    ----------
    path : path
        Folder that does not exist yet, by custom ``*.zarr``.
    grids, variables, splits
        As in `mano_op.data.layout.Layout.plan`.
    title, provenance
        As in `mano_op.data.options.StoreOptions`.
    overwrite : bool
        Replace the store at `path` when this one is finished. Only a store is ever replaced.
    **layout
        The other options of `Layout.plan`: ``boundary_conditions``, ``levels``, ``chunk``, ``times``, ...

    Examples
    --------
    >>> import tempfile
    >>> fields = [Variable("a", "input"), Variable("u", "output")]
    >>> grid = Grid.uniform((8, 8))
    >>> store = create_store(f"{tempfile.mkdtemp()}/ones.zarr", [grid], fields, {"train": 3},
    ...     title="Ones", provenance={"problem": "none"}, levels="unknown",
    ...     boundary_conditions={"y": "dirichlet", "x": "dirichlet"}, chunk=2)
    >>> for samples in store.pending():
    ...     ones = np.ones((samples.stop - samples.start, 8, 8))
    ...     store.write(samples, {grid: {"a": ones, "u": 2 * ones}})
    >>> store.finish()
    >>> store.statistics["u"]
    {'mean': 2.0, 'std': 0.0}
    """
    plan = Layout.plan(grids, variables, splits, **layout)
    return begin_store(path, plan, title, provenance, overwrite=overwrite)


def begin_store(
    path: str | Path, layout: Layout, title: str, provenance: Mapping[str, Any], *, overwrite: bool = False
) -> FieldStore:
    """Lay out an empty store of a layout, as `create_store`."""
    attributes = schema.root_attributes(layout, title, provenance)
    path = schema.path_of(path)
    schema.clear(path, overwrite)
    schema.make_folder(path)
    schema.lay_out(partial_path(path), layout, attributes)
    return FieldStore(path, partial_path(path))


def open_store(
    path: str | Path | Store, *, incomplete: bool = False, storage_options: dict[str, Any] | None = None
) -> FieldStore:
    """Open a store for reading, unless it is partial, of a newer version, or its arrays do not fit.

    Parameters
    ----------
    path : path
        Or an address of fsspec, "s3://bucket/darcy.zarr"; or a ``zarr.abc.store.Store``.
    incomplete : bool
        Accept a store that is being written too, and prefer it to the one that it replaces.
    storage_options : dict, optional
        Of fsspec, for an address: ``{"anon": True}``.
    """
    place = path if isinstance(path, Store) else schema.place_of(path)
    if isinstance(place, str | Store):
        store = FieldStore(place, storage_options=storage_options)
    else:
        beside = partial_path(place)
        begun = beside.exists() and (incomplete or not place.exists())
        store = FieldStore(place, beside if begun else place)
    if not (incomplete or store.complete):
        total = store.layout.n_samples
        raise InputError(
            f"{store.path} is a partial store: {total - store.n_pending} of {total} samples are written. To "
            "resume, run again what was making it with resume=True, or write what "
            "`open_store(path, incomplete=True).pending()` lists and call `finish()`. To start anew, make it "
            "with overwrite=True"
        )
    return store


def opened(store: str | Path | FieldStore) -> FieldStore:
    """Open a store by its path, or return a complete one as it is."""
    if isinstance(store, FieldStore):
        return store if store.complete else open_store(store.path)
    return open_store(store)


class FieldStore:
    """Store of fields, made by `create_store` and `open_store`; it pickles as its paths.

    Attributes
    ----------
    path : Path or str
        Where it is, or will be when finished; an address, if it is read from one.
    location : Path, str or Store
        What zarr opens: `path`, the partial store, or another reader's store.
    complete : bool
        Whether it is finished, and at `path`.
    attrs : dict
        Attributes of the root.
    layout : Layout
        Which sample of which variable lies where.
    grids : dict of str to Grid
        Of each resolution, coarsest first, under the names of their groups: ``"r16"``.
    variables : tuple of Variable
    inputs, outputs : tuple of str
        Names of the variables, in the order of a model's channels.
    splits : dict of str to int
        Number of samples of each split.
    statistics : dict of str to dict
        ``{"mean": ..., "std": ...}`` of each variable over "train"; empty before `finish` or without it.
    """

    def __init__(
        self,
        path: str | Path | Store,
        location: Path | Store | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        self.path = str(path) if isinstance(path, Store) else schema.place_of(path)
        self.location: Path | str | Store = location or (path if isinstance(path, Store) else self.path)
        self._storage_options = storage_options
        self._read_layout()
        self._token = self.attrs.get(schema.TOKEN)

    def __reduce__(self) -> tuple[Any, ...]:
        return FieldStore, (self.path, self.location, self._storage_options), {"_token": self._token}

    @property
    def _partial(self) -> bool:
        return isinstance(self.location, Path) and self.location != self.path

    @property
    def name(self) -> str:
        """Last part of the path."""
        return str(self.path).rstrip("/").rpartition("/")[2]

    def __repr__(self) -> str:
        resolutions = ", ".join(f"{key}: {'+'.join(held)}" for key, held in self.layout.held.items())
        fields = f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"
        return f"FieldStore({str(self.path)!r}: {fields}; {resolutions})"

    def _read_layout(self) -> None:
        self._root = schema.open_root(self.location, self._storage_options)
        self.attrs: dict[str, Any] = dict(self._root.attrs)
        self.layout = schema.read_layout(self._root)
        self.grids, self.variables, self.splits = self.layout.grids, self.layout.variables, self.layout.splits
        self.inputs, self.outputs = self.layout.named("input"), self.layout.named("output")
        self.complete = bool(self.attrs.get("complete")) and not self._partial
        self.statistics = schema.read_statistics(self._root)

    def key(self, resolution: Resolution) -> str:
        """Name the resolution that is meant by 16, (16, 24), [16, 24], "r16" or a grid."""
        if key := self._key(resolution):
            return key
        present = ", ".join(f"{key} ({' x '.join(map(str, grid.shape))})" for key, grid in self.grids.items())
        parts = list(resolution) if isinstance(resolution, list | tuple) else []
        mixed = parts and all(self._key(part) for part in parts)
        hint = f"; to train on several resolutions, give Mixed({parts})" if mixed else ""
        raise InputError(f"{self.path} has no resolution {resolution}; it has {present}{hint}")

    def _key(self, resolution: Resolution) -> str:
        shape = tuple(resolution) if isinstance(resolution, list | tuple) else ()
        for key, grid in self.grids.items():
            if grid.shape == shape or (
                not shape and (resolution in (key, grid) or {*grid.shape} == {resolution})
            ):
                return key
        return ""

    def dataset(self, resolution: Resolution) -> xr.Dataset:
        """Open one resolution as a labelled data set, read when its values are asked for."""
        options = self._storage_options
        return xr.open_zarr(self.location, group=self.key(resolution), chunks=None, storage_options=options)

    def read(
        self,
        resolution: Resolution,
        name: str,
        rows: slice | NDArray[np.int64] = slice(None),
        times: slice = slice(None),
    ) -> NDArray[np.float32]:
        """Read a variable in some rows of a resolution, counted within it, and at some times where it varies.

        ``layout.rows`` gives the rows of a split. `InputError` if there is no such variable, a chunk is
        damaged, or a value is not finite, as of a lost chunk.
        """
        key = self.key(resolution)
        check_has(self.path, "variable", [name], self.layout.named())
        try:
            values = schema.values_of(self._root, f"{key}/{name}", rows, times)
        except schema.DAMAGED as error:
            raise InputError(
                f"{self.path}, {key}/{name}: {self._damaged(key, name, rows, times)} is damaged ({error}). "
                "Restore the store or make it anew"
            ) from error
        check_finite(values, self.layout.samples(key)[rows], f"{self.path}, {key}/{name}", LOST)
        return values

    def _damaged(self, key: str, name: str, rows: slice | NDArray[np.int64], times: slice) -> str:
        samples = self.layout.samples(key)
        chunks = pieces(slice(0, len(samples)), self.layout.chunk)
        for chunk in np.unique(np.arange(len(samples))[rows] // self.layout.chunk):
            span = chunks[chunk]
            try:
                schema.values_of(self._root, f"{key}/{name}", span, times)
            except schema.DAMAGED:
                return f"the chunk of samples {samples[span][0]} to {samples[span][-1]}"
        return "a chunk"  # not any more: it is being mended

    def pending(self) -> list[slice]:
        """List the chunks that are not written yet, as slices of sample numbers."""
        if schema.WRITTEN not in self._root:  # `finish` takes it away, when all are
            return []
        written = schema.values_of(self._root, schema.WRITTEN)
        return [samples for samples, done in zip(self.layout.chunks, written, strict=True) if not done]

    @property
    def n_pending(self) -> int:
        """Number of samples that are not written yet."""
        return sum(samples.stop - samples.start for samples in self.pending())

    def write(
        self,
        samples: slice,
        fields: Mapping[Any, Mapping[str, ArrayLike]],
        times: slice | None = None,
    ) -> None:
        """Write the fields of one chunk of samples at every resolution, then mark it as written.

        Processes may write different chunks at once. A chunk larger than memory is written in pieces of time,
        in their order, steady variables with the first; the last one marks it.

        Parameters
        ----------
        samples : slice
            One of `pending`.
        fields : mapping
            For each resolution that holds the samples its variables, ``(samples, [times], *grid.shape)``.
        times : slice, optional
            One of ``layout.time_chunks``; by default all times.

        Raises
        ------
        InputError
            Before anything is written, if names or shapes do not fit, a value is not finite in float32, or
            another store was begun in this one's place.
        """
        schema.path_of(self.location)
        time_chunks = self.layout.time_chunks
        span = times or slice(0, time_chunks[-1].stop)
        for name, part, chunks, known in (
            ("samples", samples, self.layout.chunks, "pending()"),
            ("times", times or time_chunks[0], time_chunks, "layout.time_chunks"),
        ):
            if part not in chunks:
                raise InputError(f"{name}={part} is no chunk of {self.path}; expected one of `{known}`")
        keyed = {self.key(resolution): variables for resolution, variables in fields.items()}
        arrays = accept(self.layout, samples, keyed, span)
        root = self._to_write()
        if root.attrs["complete"]:
            raise InputError(f"{self.path} is finished; to write it anew, create it with overwrite=True")
        chunk, keys, names = self.layout.chunks.index(samples), list(self.grids), self.layout.named()
        rounding = schema.array(root, schema.ROUNDING)
        lost = np.array(rounding[chunk]) if span.start else np.zeros(rounding.shape[1:])
        for (key, name), (values, loss) in arrays.items():
            rows, place = self.layout.rows_of(key, samples), (keys.index(key), names.index(name))
            index = (rows, span) if self.variables[place[1]].time else rows
            schema.array(root, f"{key}/{name}")[index] = values
            if loss.moments.count:
                lost[place] = (Rounding.from_row(lost[place]) + loss).to_row()
        if lost.any() or span.start:
            rounding[chunk] = lost
        if span.stop == time_chunks[-1].stop:
            schema.array(root, schema.WRITTEN)[chunk] = True

    def _to_write(self) -> zarr.Group:
        """Open the root for changes, if it is still the store that this one was opened as."""
        with refusing(f"{self.location} is gone, or is no store any more", "open it again", *schema.DAMAGED):
            root = zarr.open_group(self.location, mode="r+")
        if root.attrs.get(schema.TOKEN) != self._token:
            raise InputError(
                f"{self.path} was begun anew since it was opened here, so this would be written into another "
                "store; open it again with `open_store(path, incomplete=True)`, or write to another path"
            )
        return root

    def finish(self, each: Each = map) -> None:
        """Take the statistics of the training split, complete the store and put it at `path`.

        `each` is that of `statistics_of`. `InputError` if a chunk is missing, float32 loses too much of a
        variable, or another store was begun here.
        """
        if not self.complete:
            self._to_write()
        if pending := self.pending():
            raise InputError(
                f"{self.path}: {len(pending)} chunks of samples are not written, the first is "
                f"{pending[0].start} to {pending[0].stop - 1}; write all of them before `finish()`"
            )
        if not self.attrs["complete"]:
            self.check_precision()
            statistics = self.statistics_of("train", each=each) if "train" in self.splits else {}
            root = self._to_write()
            for name in {schema.WRITTEN, schema.ROUNDING} & set(root):
                del root[name]
            with warnings.catch_warnings():
                # zarr 3 has no specification of it yet, but every reader opens a store in one request by it.
                warnings.filterwarnings("ignore", "Consolidated metadata", ZarrUserWarning)
                root = zarr.consolidate_metadata(root.store)
            kept = {name: value for name, value in root.attrs.items() if name != schema.TOKEN}
            root.attrs.put({**kept, "statistics": statistics, "complete": True})  # in one write
            self._token = None
        if self._partial and isinstance(self.path, Path):
            schema.put_in_place(self.path)
            self.location = self.path
        self._read_layout()

    def check_precision(self) -> None:
        """Refuse a written store if float32 lost too much of a variable, naming a constant to subtract."""
        if schema.ROUNDING not in self._root:
            return
        rows = schema.values_of(self._root, schema.ROUNDING)
        for (i, key), (j, variable) in product(enumerate(self.grids), enumerate(self.variables)):
            rounding = sum(map(Rounding.from_row, rows[:, i, j]), Rounding())
            if violation := rounding.violation(variable.name, variable.reference):
                raise InputError(f"{self.path}, {key}/{variable.name}: {violation}")

    def discard(self) -> None:
        """Remove a store that is not finished and still this one; the one that it was to replace stays."""
        if not (self._partial and isinstance(self.location, Path)):
            raise InputError(f"{self.path} is in its place; remove it by hand if it is to go")
        self._to_write()
        shutil.rmtree(self.location)

    def statistics_of(
        self, split: str, transforms: Mapping[str, str] | None = None, *, each: Each = map
    ) -> dict[str, Any]:
        """Take the statistics of a split at the finest resolution that holds it, as ``attrs["statistics"]``.

        Parameters
        ----------
        split : str
        transforms : mapping of str to str, optional
            Of variables, whose statistics are then those of the transformed values.
        each : callable
            As `map`, of a function and slices of rows; chunks may be read side by side.
        """
        transforms = dict(transforms or {})
        check_some_of("a transform of", transforms, self.layout.named())
        for name, transform in transforms.items():
            check_one_of(f"transform of {name}", transform, TRANSFORMS)
        held = [key for key in self.grids if split in self.layout.held[key]]
        key = held[-1] if held else next(iter(self.grids))
        rows = self.layout.rows(key, split)
        parts = each(partial(_moments, self, key, transforms), pieces(rows, self.layout.chunk))
        variables = {}
        for name, moments in zip(self.layout.named(), zip(*parts, strict=True), strict=True):
            total = sum(moments, Moments())
            transform_of = {"transform": transforms[name]} if name in transforms else {}
            variables[name] = {"mean": total.mean, "std": total.std, **transform_of}
        return {
            "split": split,
            "level": key,
            "samples": rows.stop - rows.start,
            "weights": "quadrature",
            "variables": variables,
        }


def _moments(store: FieldStore, key: str, transforms: Mapping[str, str], rows: slice) -> list[Moments]:
    weights = store.grids[key].weights
    moments = []
    for variable in store.variables:
        name, total = variable.name, Moments()
        for times in store.layout.time_chunks if variable.time else [slice(None)]:
            read = store.read(key, name, rows, times)
            values = transformed(read, transforms.get(name), f"{store.path}, {key}/{name}")
            # Every time counts as a sample.
            total += Moments.of(values.reshape(-1, *weights.shape), weights)
        moments.append(total)
    return moments
