"""neuraloperator's losses of equations on fields of ours: residuals, and what a model learns from them alone.

These losses do not know of grids. What they have to be told, and where another one is right:

* `FiniteDiff` takes spacings: those of the grid, which are not lengths over numbers of points where both ends
  have a point. By default it wraps every axis.
* `BurgersEqnLoss` takes lengths, and makes spacings of them as if time had both its ends and space one:
  `burgers_lengths` has those that give the grid's spacings. It never wraps; where the axis does, its
  differences at the ends are of the same order, and those of `FiniteDiff` have a smaller error.
* `PoissonInteriorLoss` differentiates by the coordinates of each point. The output of a model of grids at a
  point depends on all of them, and these are no derivatives along the grid: use `FiniteDiff`.
* While neuraloperator's Trainer trains, all see what the model works with, normalised: see `Residual`.
"""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import on_grid, rates
from neuralop import Trainer
from neuralop.losses import (
    BurgersEqnLoss,
    FiniteDiff,
    ICLoss,
    LpLoss,
)

from mano_op import MANO, Grid
from mano_op.data.loaders import field_loaders
from mano_op.grid import REGISTRATIONS, Axis
from mano_op.problems.burgers import Burgers
from mano_op.problems.generate import generate_fields
from mano_op.problems.poisson import Poisson
from mano_op.transfer.metrics import relative_l2

BOUNDED = [(registration, False) for registration in REGISTRATIONS]
WRAPS = [("node", True), ("cell", True)]


def differences(grid):
    """neuraloperator's differences, told where the points of a grid are."""
    wraps = {f"periodic_in_{name}": axis.periodic for name, axis in zip("xyz", grid, strict=False)}
    return FiniteDiff(grid.n_dim, tuple(axis.spacing for axis in grid), **wraps)


def burgers_lengths(time, space):
    """What `BurgersEqnLoss` has to take for the lengths, to divide by n - 1 and by n."""
    return [time.spacing * (time.n - 1), space.spacing * space.n]


# ------------------------------------------------------------------------------------------ differences


@pytest.mark.parametrize(("registration", "periodic"), BOUNDED + WRAPS)
def test_differences_have_their_known_error_on_every_grid(registration, periodic):
    """A wave is an eigenvector inside, and around: only its rate is that of the spacing, not of the length.

    At ends first derivatives are of third order, second ones of second, not of third as it is said.
    """
    k, errors = 2 * np.pi, []
    for n in (32, 64, 128):
        both = registration == "node_both"
        grid = Grid.uniform((n + both, 5), registration=registration, periodic=periodic, domain=[(1, 3)] * 2)
        h, inside = grid.axes[0].spacing, slice(None) if periodic else slice(1, -1)
        wave, slope = (on_grid(lambda x, y, f=f: f(k * x + 1), grid) for f in (np.sin, np.cos))
        first, second = differences(grid).dx(wave), differences(grid).dx(wave, order=2)
        torch.testing.assert_close(first[inside], (np.sin(k * h) / h * slope)[inside], rtol=0, atol=1e-10)
        expected = -((2 / h * np.sin(k * h / 2)) ** 2) * wave
        torch.testing.assert_close(second[inside], expected[inside], rtol=0, atol=1e-8)
        errors.append([(u[[0, -1]]).abs().max().item() for u in (first - k * slope, second + k**2 * wave)])
    for order, found in zip((2, 2) if periodic else (3, 2), zip(*errors, strict=True), strict=True):
        assert rates(found) == pytest.approx([order] * 2, abs=0.3)


def test_differences_need_spacings_and_the_axes_that_have_ends():
    """Of a line of slope 1: the length over nine points gives 9 / 8, an end taken to wrap gives -3.5."""
    axis = Axis("x", 9, registration="node_both")
    line = torch.from_numpy(axis.points)
    wrong = FiniteDiff(1, axis.length / axis.n, periodic_in_x=False).dx(line)
    torch.testing.assert_close(wrong, torch.full_like(line, 9 / 8))
    torch.testing.assert_close(differences(Grid((axis,))).dx(line), torch.ones_like(line))
    assert FiniteDiff(1, axis.spacing).dx(line)[0].item() == pytest.approx(-3.5)


# ------------------------------------------------------------------------------------- Burgers' equation

VISCOSITY = 0.1


def front(t, x):
    """A front that moves at speed 1: a solution of Burgers' equation on the whole line."""
    return 1 - 0.5 * np.tanh(0.5 * (x - t - 0.4) / (2 * VISCOSITY))


def front_grid(n, time, space):
    return Grid(
        (
            Axis("t", n + (time == "node_both"), 0.0, 0.5, time),
            Axis("x", 2 * n + (space == "node_both"), 0.0, 1.0, space),
        )
    )


@pytest.mark.parametrize(("time", "space"), list(itertools.product(REGISTRATIONS, REGISTRATIONS)))
def test_the_residual_of_a_front_falls_with_the_square_of_the_spacing(time, space):
    residuals, untold = [], []
    for n in (16, 32, 64):
        grid = front_grid(n, time, space)
        u = on_grid(front, grid)[None, None]
        residuals.append(BurgersEqnLoss(VISCOSITY, domain_length=burgers_lengths(*grid))(u).sqrt().item())
        untold.append(BurgersEqnLoss(VISCOSITY, domain_length=[0.5, 1.0])(u).sqrt().item())
    assert all(2 < rate < 2.5 for rate in rates(residuals))  # its ends are of a larger error, and ever fewer
    if time == "node_both" and space != "node_both":  # the grid it has in mind
        assert untold == residuals
    else:
        assert rates(untold) == pytest.approx([1, 1], abs=0.02) and untold[0] > 25 * residuals[0]


def test_burgers_equation_is_learnt_from_its_residual_alone():
    """And from the initial velocities, four on a circle; judged against the solver. Time is an axis."""
    initial_of, final = (lambda x, k: 0.5 * np.sin(2 * np.pi * x + k)), 0.4

    def samples(n):
        grid = Grid((Axis("t", n, 0.0, final * n / (n - 1)), Axis("x", 2 * n, periodic=True)))
        circle = Grid(grid.axes[1:])
        starts = [initial_of(circle.points[0], k) for k in range(4)]
        burgers = Burgers(viscosity=VISCOSITY, final_time=final, n_steps=n - 1)
        truth = [burgers.solve(u, circle) for u in starts]
        truth = torch.from_numpy(np.stack(truth)).float()[:, None]
        return grid, truth[:, :, :1].expand_as(truth), truth

    grid, x, truth = samples(8)
    loss = BurgersEqnLoss(VISCOSITY, domain_length=burgers_lengths(*grid))
    assert loss(truth).item() < 0.05 * loss(x).item()  # the solution against the start at all times
    torch.manual_seed(0)
    model = MANO(
        1, 1, hidden_channels=16, n_layers=2, n_heads=2, periodic=[False, True], reference_shape=(8, 16)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    judged = {n: samples(n) for n in (8, 12)}

    def error(n):
        grid, x, truth = judged[n]
        with torch.no_grad():
            return relative_l2(model(x), truth, grid).mean().item()

    errors, losses = {n: [error(n)] for n in judged}, []
    for _ in range(90):
        out = model(x)
        total = loss(out) + 10 * ICLoss()(out, x)
        optimizer.zero_grad()
        total.backward()
        losses.append(total.item())
        optimizer.step()
    assert losses[-1] < 0.05 * losses[0]
    for n in judged:
        errors[n].append(error(n))
        assert errors[n][1] < 0.3 * errors[n][0]


# --------------------------------------------------------------------------- Poisson's equation, in units


class Residual:
    """-Laplacian(u) - f squared, in units: a mean over points and a sum over samples, as is the Trainer's.

    While it trains, the Trainer passes what the model works with, here both of it normalised.
    """

    def __init__(self, grid, processor):
        self.differences, self.processor = differences(grid), processor

    def __call__(self, out, x, **_):
        units = self.processor
        laplacian = self.differences.laplacian(out * units.out_std + units.out_mean)
        return len(out) * F.mse_loss(-laplacian, x * units.in_std + units.in_mean)


@pytest.fixture(scope="module", params=["node_both", "cell"])
def store(request, tmp_path_factory):
    both = request.param == "node_both"
    return generate_fields(
        tmp_path_factory.mktemp("poisson") / "poisson.zarr",
        Poisson(n_dim=2, tau=3.0, alpha=4.0, n_modes=4),
        [n + both for n in (12, 24)],
        samples={"train": 8, "test": 4},
        registration=request.param,
        progress=False,
    )


def poisson_model(grid, processor):
    """With the values at the ends by itself: 0, normalised."""
    torch.manual_seed(0)
    zero = -(processor.out_mean / processor.out_std).item()
    return MANO(
        1,
        1,
        hidden_channels=16,
        n_layers=2,
        n_heads=2,
        reference_shape=grid.shape,
        boundary_values=[zero],
        registration=grid.axes[0].registration,
    )


def test_poissons_equation_is_learnt_from_its_residual_alone(store):
    """By neuraloperator's Trainer, at one resolution, judged at two: no potential is a number in training."""
    coarse, fine = sorted(store.grids.values(), key=lambda grid: grid.shape)
    train, test, processor = field_loaders(
        store, train=coarse, test=[coarse, fine], batch_size=4, test_batch_size=4
    )
    sources = [{**batch, "y": torch.full_like(batch["y"], torch.nan)} for batch in train]
    model = poisson_model(coarse, processor)
    optimizer = torch.optim.Adam(model.parameters(), lr=6e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)
    residual, losses = Residual(coarse, processor), []

    def training_loss(out, **sample):
        losses.append(residual(out, **sample))
        return losses[-1]

    trainer = Trainer(model=model, n_epochs=60, data_processor=processor)
    loss = {"l2": LpLoss(d=2)}
    judged = {grid.shape[0]: test[grid] for grid in (coarse, fine)}
    before = {k: v.item() for n in judged for k, v in trainer.evaluate(loss, judged[n], str(n)).items()}
    trainer.train(
        train_loader=sources,
        test_loaders={},
        optimizer=optimizer,
        scheduler=scheduler,
        training_loss=training_loss,
        eval_losses=loss,
    )
    after = {k: v.item() for n in judged for k, v in trainer.evaluate(loss, judged[n], str(n)).items()}
    assert losses[-1] < 0.3 * losses[0]
    assert after.keys() == before.keys() and all(after[key] < 0.5 * before[key] for key in before)


# ------------------------------------------------------------------------------------ points and grids


def test_derivatives_by_the_coordinates_of_points_are_not_those_along_a_grid():
    """What `PoissonInteriorLoss` takes: the field at a point also moves with the others' coordinates."""
    grid = Grid.uniform((9, 9), registration="node_both")
    points = torch.from_numpy(grid.mesh[None]).float().requires_grad_()
    torch.manual_seed(0)
    model = MANO(2, 1, hidden_channels=16, n_layers=2, n_heads=2, positional_embedding=None)
    field = model(points)
    (by_points,) = torch.autograd.grad(field.sum(), points)
    along = differences(grid).dx(field)[0, 0]
    assert (by_points[0, 0] - along).norm() > 0.2 * along.norm()
