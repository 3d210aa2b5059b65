"""Reader of labelled data sets in the order in which a store is written, each chunk once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import xarray as xr
from dask.base import compute
from numpy.typing import NDArray

from mano_op.data.layout import Layout
from mano_op.grid import Grid

_Box = tuple[slice, slice]  # of samples and of times
_Key = tuple[Grid, str, int, int]  # a variable, and where a chunk of it begins


class SourceReader:
    """Reads variables of data sets in pieces of samples and times, and each chunk of dask or a file once.

    A chunk is kept until all of it has been asked for. Variables have the dimensions ``("sample", *axes)`` or
    ``("sample", "time", *axes)``; `scheduler` is dask's.

    Examples
    --------
    >>> data = xr.Dataset({"u": (("sample", "x"), np.arange(12.0).reshape(6, 2))}).chunk(sample=4)
    >>> grid = Grid.uniform((2,))
    >>> reader = SourceReader({grid: data}, ["u"], "synchronous")
    >>> reader.read({grid: slice(3, 5)}, slice(0, 1), ["u"])[grid]["u"]
    array([[6., 7.],
           [8., 9.]])
    """

    def __init__(self, sources: Mapping[Grid, xr.Dataset], names: Sequence[str], scheduler: str) -> None:
        self._variables = {
            (grid, name): data[name].variable for grid, data in sources.items() for name in names
        }
        self._edges = {
            field: (edges(variable, "sample"), edges(variable, "time"))
            for field, variable in self._variables.items()
        }
        self._scheduler = scheduler
        self._kept: dict[_Key, NDArray[Any]] = {}

    def read(
        self, rows: Mapping[Grid, slice], times: slice, names: Sequence[str]
    ) -> dict[Grid, dict[str, NDArray[Any]]]:
        """Read some variables in some rows of each data set, at some times where they vary, in order."""
        boxes = {
            (grid, name): (span, times if "time" in self._variables[grid, name].dims else slice(0, 1))
            for grid, span in rows.items()
            for name in names
        }
        chunks = {
            (*field, *(span.start for span in chunk)): (field, chunk)
            for field, box in boxes.items()
            for chunk in self._chunks(field, box)
        }
        needed = {}
        for key, (field, chunk) in chunks.items():
            variable, spans = self._variables[field], dict(zip(("sample", "time"), chunk, strict=True))
            if key not in self._kept:
                needed[key] = variable.isel(spans, missing_dims="ignore").data
        # In one go, so that what chunks have in common is computed once.
        read = compute(*needed.values(), scheduler=self._scheduler)
        self._kept |= {key: np.asarray(values) for key, values in zip(needed, read, strict=True)}
        values: dict[Grid, dict[str, NDArray[Any]]] = {grid: {} for grid in rows}
        for (grid, name), box in boxes.items():
            parts = {key: chunk for key, (field, chunk) in chunks.items() if field == (grid, name)}
            values[grid][name] = self._joined(box, parts, self._variables[grid, name].dims)
        for key, (field, chunk) in chunks.items():
            if all(part.stop <= span.stop for part, span in zip(chunk, boxes[field], strict=True)):
                del self._kept[key]
        return values

    def _chunks(self, field: tuple[Grid, str], box: _Box) -> Iterator[_Box]:
        """Return the chunks of a variable that hold some rows and times, or these where it has none."""
        samples, times = (
            [
                slice(start, stop)
                for start, stop in pairwise(bounds or (span.start, span.stop))
                if start < span.stop and stop > span.start
            ]
            for bounds, span in zip(self._edges[field], box, strict=True)
        )
        return product(samples, times)

    def _joined(self, box: _Box, chunks: Mapping[_Key, _Box], dims: Sequence[Hashable]) -> NDArray[Any]:
        """Join rows and times of a variable from chunks; a single one as a view."""
        n = 2 if "time" in dims else 1
        out: NDArray[Any] | None = None
        for key, chunk in chunks.items():
            common = [
                slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, chunk, strict=True)
            ]
            values = self._kept[key][_shifted(common, chunk)[:n]]
            if len(chunks) == 1:
                return values
            if out is None:
                sizes = [span.stop - span.start for span in box][:n]
                out = np.empty((*sizes, *values.shape[n:]), dtype=values.dtype)
            out[_shifted(common, box)[:n]] = values
        assert out is not None
        return out


def edges(variable: xr.Variable, dim: str) -> list[int] | None:
    """Return where the chunks of a variable begin and end along a dimension; None without chunks.

    Examples
    --------
    >>> lazy = xr.Variable(("sample", "x"), np.zeros((5, 2))).chunk(sample=2)
    >>> edges(lazy, "sample"), edges(lazy, "time"), edges(lazy.compute(), "sample")
    ([0, 2, 4, 5], [0, 1], None)
    """
    if dim not in variable.dims:
        return [0, 1]
    n = variable.sizes[dim]
    if sizes := variable.chunksizes.get(dim):
        return [0, *np.cumsum(sizes).tolist()]
    if size := chunk_in_file(variable, dim):
        return [*range(0, n, size), n]
    return None


def chunk_in_file(variable: xr.Variable, dim: str) -> int | None:
    """Return the length of the chunks of the file that a variable was opened from, if it has any."""
    preferred = variable.encoding.get("preferred_chunks") or {}
    if dim in preferred:
        size = preferred[dim]
        return int(size if np.ndim(size) == 0 else max(size))
    stored = variable.encoding.get("chunksizes")
    return int(stored[variable.dims.index(dim)]) if stored and len(stored) == variable.ndim else None


def blocks_of(layout: Layout, sources: Mapping[str, xr.Dataset], names: Sequence[str]) -> list[slice]:
    """Group the chunks of samples of a store so that no chunk of a source lies in two blocks.

    Examples
    --------
    >>> from mano_op.data.layout import Variable
    >>> data = xr.Dataset({"u": (("sample", "x"), np.zeros((12, 4)))}).chunk(sample=6)
    >>> layout = Layout.plan([Grid.uniform((4,))], [Variable("a", "input"), Variable("u", "output")],
    ...     {"train": 12}, boundary_conditions={"x": "open"}, levels="unknown", chunk=4)
    >>> blocks_of(layout, {"r4": data}, ["u"])
    [slice(0, 12, None)]
    """
    bounds = [(key, edges(sources[key][name].variable, "sample")) for key, name in product(sources, names)]
    ends = [(key, set(starts)) for key, starts in bounds if starts is not None]
    blocks, start = [], 0
    for chunk in layout.chunks:
        rows = {key: layout.rows_of(key, slice(0, chunk.stop)).stop for key in sources}
        if all(rows[key] in starts for key, starts in ends):
            blocks.append(slice(start, chunk.stop))
            start = chunk.stop
    return blocks


def _shifted(spans: Sequence[slice], origins: Sequence[slice]) -> tuple[slice, ...]:
    """Count spans from the starts of others."""
    pairs = zip(spans, origins, strict=True)
    return tuple(slice(span.start - origin.start, span.stop - origin.start) for span, origin in pairs)
