"""The training loss against the formula, written down once more on numpy."""

from typing import Literal

import numpy as np
import pytest
import torch
from neuralop.losses import H1Loss

from mano_op import InputError
from mano_op.grid import Axis, Grid, Registration
from mano_op.train.objective import training_loss

# Not square, not the unit box, another spacing on each axis, one of them periodic.
GRID = Grid((Axis("y", 6, -1.0, 3.0, "cell"), Axis("x", 9, 0.0, 0.5, "cell", periodic=True)))


def derivative(u: np.ndarray, axis: int, spacing: float, wraps: bool) -> np.ndarray:
    u = np.moveaxis(u, axis, -1)
    slope = (np.roll(u, -1, -1) - np.roll(u, 1, -1)) / (2 * spacing)
    if not wraps:  # the third-order one-sided formula at either end
        ends = np.array([-11, 18, -9, 2]) / (6 * spacing)
        slope[..., 0] = u[..., :4] @ ends
        slope[..., -1] = -u[..., :-5:-1] @ ends
    return np.moveaxis(slope, -1, axis)


def norm(u: np.ndarray, name: str, grid: Grid) -> np.ndarray:
    """Of each sample and channel."""
    terms = [u]
    if name == "h1":
        n = grid.n_dim
        terms += [derivative(u, d - n, axis.spacing, axis.periodic) for d, axis in enumerate(grid)]
    return np.sqrt(sum((term**2).reshape(*u.shape[:2], -1).sum(-1) for term in terms))


@pytest.mark.parametrize("name", ["l2", "h1"])
@pytest.mark.parametrize(
    "grid",
    [
        GRID,
        Grid((Axis("x", 7, 0.0, 2.0),)),
        Grid((Axis("z", 5, 0.0, 3.0, "node_both"), Axis("y", 4, periodic=True), Axis("x", 6, 0.0, 0.1))),
    ],
    ids=["2-D", "1-D", "3-D"],
)
def test_loss_is_the_relative_norm_summed_over_samples_and_channels(
    name: Literal["l2", "h1"], grid: Grid
) -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.standard_normal((2, 3, 2, *grid.shape))
    expected = (norm(guess - truth, name, grid) / norm(truth, name, grid)).sum()
    loss = training_loss(name, grid)(torch.from_numpy(guess), torch.from_numpy(truth))
    assert loss.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid.uniform((8, 3)), r"loss='h1' on the grid .*, and at least 4 points .*: use loss='l2'"),
        (Grid.uniform((4, 4, 4, 4), names="wzyx"), "expected at most 3 axes"),
    ],
)
def test_grids_without_differences_are_refused(grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_loss("h1", grid)


def test_unknown_losses_are_refused() -> None:
    with pytest.raises(InputError, match="name='h2', expected 'l2' or 'h1'"):
        training_loss("h2", GRID)  # type: ignore[arg-type]


def test_periodic_axes_need_few_points() -> None:
    loss = training_loss("h1", Grid.uniform((3,), periodic=True))
    # A constant error of a constant: no derivative, so the L2 error.
    assert loss(torch.full((1, 1, 3), 1.25), torch.ones(1, 1, 3)).item() == pytest.approx(0.25)


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
def test_loss_of_an_error_is_the_same_on_finer_grids(registration: Registration) -> None:
    """neuraloperator's own default takes the error's ends for a jump, and grows with every refinement."""
    losses, wrapped = [], []
    for n in (16, 32, 64, 128):
        both = registration == "node_both"
        grid = Grid.uniform((n + both, n + both), registration=registration)
        y, x = (torch.from_numpy(along.copy())[None, None] for along in np.broadcast_arrays(*grid.mesh))
        truth = torch.sin(2 * np.pi * y) * torch.sin(2 * np.pi * x)
        guess = truth + 0.05 * x
        losses.append(training_loss("h1", grid)(guess, truth).item())
        wrapped.append(H1Loss(d=2)(guess, truth).item())
    exact = 0.05 * np.sqrt((1 / 3 + 1) / (1 / 4 + 2 * np.pi**2))
    assert losses == pytest.approx([exact] * 4, rel=0.06) and losses[-1] == pytest.approx(exact, rel=0.01)
    assert wrapped[0] > 2 * exact and wrapped[-1] > 2.5 * wrapped[0]
