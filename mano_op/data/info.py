"""Description of a store in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mano_op.data.layout import Variable
from mano_op.data.store import FieldStore
from mano_op.paths import partial_path


def describe(store: FieldStore) -> str:
    """Describe a store in some lines of text.

    Examples
    --------
    >>> import tempfile
    >>> from mano_op.problems.generate import generate_darcy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = generate_darcy(f"{folder}/darcy.zarr", [8, 16], samples={"train": 4}, progress=False)
    ...     print(describe(store))  # doctest: +ELLIPSIS
    Darcy flow (.../darcy.zarr)
      complete, 4 samples: train 4
    <BLANKLINE>
      permeability (input)   unit 1, training mean ..., standard deviation ...
      pressure (output)      unit 1, training mean ..., standard deviation ...
    <BLANKLINE>
      y on [0, 1], node, dirichlet
      x on [0, 1], node, dirichlet
    <BLANKLINE>
      r8     8 x 8      spacing 0.125 x 0.125     train 4
      r16    16 x 16    spacing 0.0625 x 0.0625   train 4
      the resolutions are resampled
    <BLANKLINE>
      ...
    """
    attrs, layout = store.attrs, store.layout
    missing = store.n_pending
    state = f"partial: {missing} of {layout.n_samples} samples missing" if missing else "complete"
    if not missing and not store.complete:
        state = "partial: all samples are there, but it was not finished"
    if store.complete and isinstance(store.path, Path) and partial_path(store.path).exists():
        state += f", and {partial_path(store.path).name} is there to replace it when it is finished"
    fields = [
        [f"{variable.name} ({variable.role})", _variable(variable, store.statistics.get(variable.name))]
        for variable in store.variables
    ]
    resolutions = []
    for key, grid in store.grids.items():
        shape, spacing = " x ".join(map(str, grid.shape)), " x ".join(f"{h:g}" for h in grid.spacing)
        held = _sizes({split: store.splits[split] for split in layout.held[key]})
        resolutions.append([key, shape, f"spacing {spacing}", held])
    domain = [
        f"  {axis.name} on [{axis.start:g}, {axis.stop:g}], {axis.registration}, "
        f"{layout.boundary_conditions[axis.name]}"
        for axis in next(iter(store.grids.values()))
    ]
    if layout.as_plane:
        domain.append("  latitude and longitude are taken as lengths on a plane")
    if layout.times:
        units = "" if layout.time_units == "1" else f" {layout.time_units}"
        domain.append(f"  {len(layout.times)} times from {layout.times[0]:g} to {layout.times[-1]:g}{units}")
    title = f"{attrs.get('title') or 'Fields'} ({store.path})"
    summary = f"  {state}, {layout.n_samples} samples: {_sizes(store.splits)}"
    levels = [*_aligned(resolutions), f"  the resolutions are {layout.levels}"]
    provenance = [f"  {name}: {value}" for name, value in attrs.get("provenance", {}).items()]
    return "\n".join([title, summary, "", *_aligned(fields), "", *domain, "", *levels, "", *provenance])


def _variable(variable: Variable, statistics: Mapping[str, float] | None) -> str:
    text = f"{'at each time, ' if variable.time else ''}unit {variable.units}"
    if statistics:
        text += f", training mean {statistics['mean']:.4g}, standard deviation {statistics['std']:.4g}"
    text += f", less {variable.reference:.9g}" if variable.reference else ""
    return text + (f", where {variable.initial_of} begins" if variable.initial_of else "")


def _sizes(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in splits.items())


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("   ".join(map(str.ljust, row, widths)) for row in rows)
    return [f"  {line}".rstrip() for line in lines]
