"""Metrics mean the same on every grid: closed forms, identities, and no change under refinement."""

import itertools

import numpy as np
import pytest
import torch
from helpers import on_grid
from neuralop.losses import LpLoss

from mano_op.grid import Axis, Grid
from mano_op.transfer.metrics import (
    METRICS,
    all_metrics,
    boundary_band,
    linf,
    relative_h1,
    relative_l2,
    relative_l2_points,
    vrmse,
)

every_axis = pytest.mark.parametrize(
    ("registration", "periodic", "n_dim"),
    [case for case in itertools.product(("node", "node_both", "cell"), (False, True), (1, 2))
     if case[:2] != ("node_both", True)],
)  # fmt: skip


def grid_of(intervals, registration, periodic, n_dim):
    shape, domain = (intervals + (registration == "node_both"),) * n_dim, [(-1.0, 2.0)] * n_dim
    return Grid.uniform(shape, registration=registration, periodic=periodic, domain=domain)


def truth_of(*x):
    """Smooth, with the period 3 of the domain, and no symmetry about its ends."""
    phases = [2 * np.pi * along / 3 for along in x]
    return sum(1.2 + np.sin(phase + 0.4) + 0.5 * np.cos(2 * phase + d) for d, phase in enumerate(phases))


def long_waves(*x):
    return sum(0.1 * np.cos(2 * np.pi * along / 3 + 1) for along in x)


def all_waves(*x):
    """Five waves are more than a training grid of 8 intervals carries, the rest is less."""
    return long_waves(*x) + sum(0.01 * np.sin(10 * np.pi * along / 3) for along in x)


@every_axis
@pytest.mark.parametrize(
    ("error_of", "trained", "intervals"),
    [
        (all_waves, 8, (64, 72, 96, 128, 256)),
        # What the training grid carries, from twice that grid on, also where it takes derivatives.
        (long_waves, 16, (32, 48, 64, 128, 256)),
    ],
)
def test_fixed_error_has_a_fixed_size_under_refinement(
    registration, periodic, n_dim, error_of, trained, intervals
):
    axes = registration, periodic, n_dim
    sizes = []
    for n in intervals:
        grid = grid_of(n, *axes)
        truth, error = (on_grid(function, grid)[None, None] for function in (truth_of, error_of))
        sizes.append(all_metrics(truth + error, truth, grid, grid_of(trained, *axes))[:, 0, 0].numpy())
    for name, values in zip(METRICS, np.transpose(sizes), strict=True):
        if name == "mismatch" or (name == "boundary_band" and periodic):
            assert np.isnan(values).all()
        elif error_of is all_waves or name != "spectral_high":
            assert values[-1] > 0.003
            np.testing.assert_allclose(values, values[-1], rtol=0.02, err_msg=name)


@every_axis
@pytest.mark.parametrize("intervals", [7, 16, 45])
def test_mean_of_the_field_has_vrmse_one(registration, periodic, n_dim, intervals):
    grid = grid_of(intervals, registration, periodic, n_dim)
    truth = on_grid(truth_of, grid)
    weights = torch.from_numpy(grid.weights)
    mean = ((weights * truth).sum() / weights.sum()).expand_as(truth)
    assert vrmse(mean, truth, grid).item() == 1.0


def test_h1_has_its_closed_form():
    """u = sin(2 pi k x): |u|_H1^2 = (1 + (2 pi k)^2) / 2, and of two waves the energies add up."""
    grid = Grid.uniform((512,), periodic=True)
    x = 2 * np.pi * torch.from_numpy(grid.points[0])
    off = relative_h1(x.sin() + 0.1 * (3 * x).sin(), x.sin(), grid).item()
    expected = 0.1 * np.sqrt((1 + (6 * np.pi) ** 2) / (1 + (2 * np.pi) ** 2))
    assert off == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
def test_h1_takes_one_sided_differences_at_ends(registration):
    """Differences of second order are exact for parabolas; wrapped ones would see a jump."""
    grid = Grid.uniform((9,), registration=registration, domain=[(0.0, 3.0)])
    x = torch.from_numpy(grid.points[0])
    w = torch.from_numpy(grid.weights)
    truth, error = 1 + x**2, 0.3 * x - x**2
    expected = (w @ (error**2 + (0.3 - 2 * x) ** 2)) / (w @ (truth**2 + (2 * x) ** 2))
    assert relative_h1(truth + error, truth, grid).item() == pytest.approx(expected.sqrt().item(), rel=1e-12)
    two = Grid.uniform((2,), registration=registration)
    assert relative_h1(torch.ones(2), torch.ones(2), two).isnan()


def test_h1_of_mixed_axes_wraps_where_they_wrap():
    def h1(n):
        grid = Grid((Axis("y", n, periodic=True), Axis("x", n + 1, registration="node_both")))
        truth = on_grid(lambda y, x: (2 + np.sin(2 * np.pi * y)) * (1 + x), grid)
        return relative_h1(truth + on_grid(lambda y, x: 0.1 * np.cos(2 * np.pi * y) * x, grid), truth, grid)

    assert h1(24).item() == pytest.approx(h1(400).item(), rel=0.02)


def test_ends_of_a_grid_with_both_ends_have_half_weights():
    grid, ones, off = (
        Grid.uniform((3,), registration="node_both"),
        torch.ones(3),
        torch.tensor([2.0, 1.0, 1.0]),
    )
    assert relative_l2(off, ones, grid).item() == pytest.approx(0.5)
    assert relative_l2_points(off, ones, grid).item() == pytest.approx(np.sqrt(1 / 3))
    assert linf(torch.tensor([2.0, 1.0, 0.5]), ones, grid).item() == 1.0


def test_errors_by_points_are_those_of_neuraloperator():
    true, predicted = torch.randn(2, 3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    loss = LpLoss(d=2, p=2, measure=[3.0, 0.5])
    ours = relative_l2_points(predicted, true, Grid.uniform((9, 7)))
    for i in range(3):
        for c in range(2):
            theirs = loss.rel(predicted[i : i + 1, c : c + 1], true[i : i + 1, c : c + 1])
            assert ours[i, c].item() == pytest.approx(theirs.item(), rel=1e-5)


def test_band_is_as_wide_as_two_spacings_of_the_training_grid():
    """An error of 1 to a depth of 1/4, as deep as 2/8, and of 9 inside."""
    trained = Grid.uniform((8, 8), registration="cell")
    for n in (8, 16, 24, 64):
        grid = Grid.uniform((n, n), registration="cell")
        off = on_grid(lambda y, x: np.where((abs(y - 0.5) > 0.25) | (abs(x - 0.5) > 0.25), 1.0, 9.0), grid)
        assert boundary_band(1 + off, torch.ones_like(off), grid, trained).item() == pytest.approx(1)
    # Of ten points on each side two and a half are in it.
    off = torch.zeros(10, dtype=torch.float64)
    off[2] = 1
    error = boundary_band(
        1 + off, torch.ones(10), Grid.uniform((10,), registration="cell"), Grid((Axis("x", 8),))
    )
    assert error.item() == pytest.approx(np.sqrt((1 / 20) / (1 / 2)))


def test_only_axes_with_ends_have_a_band():
    grid, ones = Grid((Axis("y", 16, periodic=True), Axis("x", 16, registration="cell"))), torch.ones(16, 16)
    off = torch.zeros(16, 16)
    off[:, :4] = off[:, -4:] = 1
    assert boundary_band(1 + off, ones, grid, grid.coarsen(2)).item() == pytest.approx(1)
    off[0] = 5  # the ends of y are no ends
    assert boundary_band(1 + off, ones, grid, grid).item() == pytest.approx(np.sqrt((15 + 25) / 16))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_errors_of_what_is_not_finite_are_not_finite(value):
    grid = Grid.uniform((6, 6))
    truth = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    predicted = truth.clone()
    predicted[0, 0, 0, 2] = value
    assert not all_metrics(predicted, truth, grid, grid.coarsen(2)).isfinite().any()
