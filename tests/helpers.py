"""What several test files share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from mano_op.data.store import FieldStore, Variable, create_store
from mano_op.grid import Grid


def on_grid(function: Callable[..., NDArray[np.float64]], grid: Grid) -> torch.Tensor:
    """The values of a function of the coordinates, in the order of the axes, at the points of a grid."""
    return torch.from_numpy(np.broadcast_to(function(*grid.mesh), grid.shape).copy())


def rates(errors: Sequence[float]) -> NDArray[np.float64]:
    """Orders of convergence between neighbours of a sequence of errors, each at half the spacing."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])


WAVES = (
    Variable("a", "input", units="m2", long_name="amplitude"),
    Variable("b", "input"),
    Variable("u", "output", units="Pa"),
)


def waves(samples: Sequence[int] | NDArray[np.int64], grid: Grid) -> dict[str, NDArray[np.float64]]:
    """Fields `WAVES` of some samples: different for each sample, point and variable."""
    phase = np.reshape(samples, (-1, *[1] * grid.n_dim)) + sum(
        (k + 1) * axis for k, axis in enumerate(grid.mesh)
    )
    return {"a": 2 + np.cos(phase), "b": np.sin(2 * phase), "u": 100 * np.cos(3 * phase) - 50}


def wave_store(
    path: Path,
    grids: Sequence[Grid],
    splits: Mapping[str, int],
    *,
    chunk: int = 2,
    held: Mapping[Grid, Sequence[str]] | None = None,
) -> FieldStore:
    """A complete store of `waves`, on grids that do not wrap."""
    store = create_store(
        path,
        grids,
        WAVES,
        splits,
        title="Waves",
        provenance={"problem": "waves"},
        levels="resampled",
        boundary_conditions=dict.fromkeys(grids[0].names, "open"),
        chunk=chunk,
        held=held,
    )
    for samples in store.pending():
        write_waves(store, samples)
    store.finish()
    return store


def write_waves(store: FieldStore, samples: slice) -> None:
    """One chunk of `waves`, at the levels that hold any of it."""
    numbers = {key: store.layout.samples(key)[store.layout.rows_of(key, samples)] for key in store.grids}
    store.write(samples, {key: waves(some, store.grids[key]) for key, some in numbers.items() if len(some)})


def store_of(
    path: Path,
    grids: Sequence[Grid],
    variables: Sequence[Variable],
    fields: Callable[[NDArray[np.int64], Grid], Mapping[str, NDArray[np.float64]]],
    splits: Mapping[str, int],
    *,
    held: Mapping[Grid, Sequence[str]] | None = None,
    ends: float | None = 0.0,
) -> FieldStore:
    """A complete store of functions of samples' numbers and a grid; outputs are `ends` where axes end."""
    if ends is not None and not all(axis.periodic for axis in grids[0]):
        variables = [replace(v, boundary_value=ends) if v.role == "output" else v for v in variables]
    store = create_store(
        path,
        grids,
        variables,
        splits,
        title="Functions",
        provenance={"problem": "functions"},
        levels="resampled",
        boundary_conditions={axis.name: "periodic" if axis.periodic else "dirichlet" for axis in grids[0]},
        chunk=1,
        held=held,
    )
    for samples in store.pending():
        numbers = np.arange(samples.start, samples.stop)
        rows = {key: store.layout.rows_of(key, samples) for key in store.grids}
        store.write(
            samples,
            {key: fields(numbers, store.grids[key]) for key, some in rows.items() if some.start < some.stop},
        )
    store.finish()
    return store


def results_of(
    errors: Mapping[str, Mapping[str, Mapping[str, NDArray[np.float64]]]], *, trained: str = "r16"
) -> xr.Dataset:
    """What `evaluate_transfer` returns, from errors of one variable by model, resolution and predictor."""
    models, keys = list(errors), list(next(iter(errors.values())))
    predictors = list(errors[models[0]][keys[0]])
    values = np.array([[[errors[m][r][p] for p in predictors] for r in keys] for m in models])
    points = [int(key[1:]) ** 2 for key in keys]
    return xr.Dataset(
        {
            "relative_l2": (
                ("model", "resolution", "predictor", "variable", "sample"),
                values[:, :, :, None],
            ),
            "parameters": ("model", [1000] * len(models)),
            "training_flops": ("model", [1e6] * len(models)),
            "flops": (("model", "resolution"), [[4e3 * n for n in points]] * len(models)),
            "seconds_per_sample": (("model", "resolution"), [[1e-3] * len(keys)] * len(models)),
            "restriction": (("model", "resolution"), [["injection"] * len(keys)] * len(models)),
        },
        coords={
            "model": models,
            "training_resolution": ("model", [trained] * len(models)),
            "training_points": ("model", [int(trained[1:]) ** 2] * len(models)),
            "resolution": keys,
            "points": ("resolution", points),
            "predictor": predictors,
            "variable": ["u"],
            "sample": np.arange(100, 100 + values.shape[-1]),
        },
        attrs={"title": "Errors", "split": "test", "n_dim": 2, "boundary": "{}"},
    )
