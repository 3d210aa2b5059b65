"""What several test files share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from hypothesis import strategies as st
from numpy.typing import NDArray

from mano_op.data.store import FieldStore, Variable, create_store
from mano_op.grid import Axis, Grid
from mano_op.transfer.runs import run_coordinates


def on_grid(function: Callable[..., NDArray[np.float64]], grid: Grid) -> torch.Tensor:
    """The values of a function of the coordinates, in the order of the axes, at the points of a grid."""
    return torch.from_numpy(np.broadcast_to(function(*grid.mesh), grid.shape).copy())


def rates(errors: Sequence[float]) -> NDArray[np.float64]:
    """Orders of convergence between neighbours of a sequence of errors, each at half the spacing."""
    errors = np.asarray(errors)
    return np.log2(errors[:-1] / errors[1:])


def assert_gradients(module: torch.nn.Module, x: torch.Tensor) -> None:
    """Compare the slope along a random direction of the input and all parameters with that of differences."""
    generator = torch.Generator().manual_seed(0)
    inputs = {"": x, **{name: p.detach() for name, p in module.named_parameters()}}
    along = {name: torch.randn(t.shape, dtype=t.dtype, generator=generator) for name, t in inputs.items()}
    along = {name: d / d.norm().clamp(min=1) for name, d in along.items()}

    def value(step: torch.Tensor) -> torch.Tensor:
        moved = {name: t + step * along[name] for name, t in inputs.items()}
        out = torch.func.functional_call(module, moved, (moved.pop(""),))
        return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape).sin()).sum()

    step = torch.zeros((), dtype=x.dtype, requires_grad=True)
    [slope] = torch.autograd.grad(value(step), step)
    h = torch.tensor(1e-6, dtype=x.dtype)
    with torch.no_grad():
        difference = (value(h) - value(-h)) / (2 * h)
    torch.testing.assert_close(slope, difference, rtol=1e-5, atol=1e-7)


def files(path: Path) -> dict[str, bytes]:
    """Every file of a store, so that two stores can be compared bit for bit."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


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


TIMES = tuple(0.1 * i for i in range(6))


def moving_wave_store(path: Path, grids: Sequence[Grid], splits: Mapping[str, int]) -> FieldStore:
    """A store of six times, on one axis that wraps: each sample a force, and a wave that moves and decays."""
    variables = [Variable("force", "input"), Variable("w", "output", time=True)]
    return store_of(path, grids, variables, _moving_waves, splits, chunk=3, times=TIMES)


def _moving_waves(samples: NDArray[np.int64], grid: Grid) -> dict[str, NDArray[np.float64]]:
    x, t = grid.mesh[0], np.array(TIMES)[:, None]
    phases = [np.random.default_rng(i).uniform() for i in samples]
    return {
        "force": np.stack([np.sin(2 * np.pi * (x + phase)) for phase in phases]),
        "w": np.stack([np.exp(-t) * np.cos(2 * np.pi * (x - t - phase)) for phase in phases]),
    }


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
    chunk: int = 1,
    **times: Any,
) -> FieldStore:
    """A complete store of functions of samples' numbers and a grid; outputs are `ends` where axes end.

    `times` are the options of `create_store` that say at which times.
    """
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
        chunk=chunk,
        held=held,
        **times,
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
    """What `evaluate_transfer` returns, from errors of one variable by model, resolution and predictor.

    An array of two dimensions has a row for each seed. A name "M @ r16+r32" is the model M, trained there.
    """
    first = next(iter(errors.values()))
    keys, predictors = list(first), list(first[next(iter(first))])
    rows, values = [], []
    for name, by_key in errors.items():
        model, _, where = name.partition(" @ ")
        block = np.array([[np.atleast_2d(by_key[key][p]) for p in predictors] for key in keys])
        for seed in range(block.shape[2]):
            rows.append((model, where or trained, seed))
            values.append(block[:, :, seed, None, None])
    home = [where.partition("+")[0] for _, where, _ in rows]
    points = np.array([int(key[1:]) ** 2 for key in keys])
    costs = {
        "flops": 4e3 * points,
        "peak_bytes": 40.0 * points,
        "seconds_per_sample": np.full(len(keys), 1e-3),
    }
    return xr.Dataset(
        {
            "error": (("run", "resolution", "predictor", "metric", "variable", "sample"), np.array(values)),
            "defined": (
                ("resolution", "predictor", "metric"),
                np.ones((len(keys), len(predictors), 1), bool),
            ),
            "parameters": ("run", np.full(len(rows), 1000.0)),
            "training_flops": ("run", np.full(len(rows), 1e6)),
            **{name: (("run", "resolution"), np.tile(cost, (len(rows), 1))) for name, cost in costs.items()},
            "restriction": (("run", "resolution"), np.full((len(rows), len(keys)), "injection")),
            "averaging": (("run", "resolution"), np.full((len(rows), len(keys)), np.nan)),
        },
        run_coordinates(rows),
        attrs={"title": "Errors", "split": "test", "n_dim": 2, "boundary": "{}"},
    ).assign_coords(
        home=("run", home),
        home_points=("run", [int(key[1:]) ** 2 for key in home]),
        resolution=keys,
        points=("resolution", points),
        predictor=predictors,
        metric=["relative_l2"],
        variable=["u"],
        sample=np.arange(100, 100 + values[0].shape[-1]),
    )


def grids(periodic: bool, most: int) -> st.SearchStrategy[Grid]:
    """Draw grids of 1 to 3 axes of 2 to `most` points."""
    axes = st.builds(
        Axis,
        name=st.uuids().map(str),
        n=st.integers(2, most),
        start=st.sampled_from([0.0, -1.5]),
        stop=st.sampled_from([1.0, 3.25]),
        registration=st.sampled_from(["node", "cell"] if periodic else ["node", "cell", "node_both"]),
        periodic=st.just(periodic),
    )
    unique = st.lists(axes, min_size=1, max_size=3, unique_by=lambda axis: axis.name)
    return unique.map(lambda grid_axes: Grid(tuple(grid_axes)))
