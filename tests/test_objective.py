"""The training loss against the formula, written down once more on numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import store_of
from neuralop.losses import H1Loss

from mano_op import InputError
from mano_op.data.layout import Variable
from mano_op.data.loaders import field_loaders
from mano_op.grid import Axis, Grid, Registration
from mano_op.train.objective import training_loss

# Not square, not the unit box, another spacing on each axis, one of them periodic.
GRID = Grid(
    (
        Axis("y", 6, -1.0, 3.0, "cell"),
        Axis("x", 9, 0.0, 0.5, "cell", periodic=True),
    )
)


def derivative(u: np.ndarray, axis: int, spacing: float, wraps: bool) -> np.ndarray:
    u = np.moveaxis(u, axis, -1)
    found = (np.roll(u, -1, -1) - np.roll(u, 1, -1)) / (2 * spacing)
    if not wraps:  # the third-order one-sided formula at either end
        ends = np.array([-11, 18, -9, 2]) / (6 * spacing)
        found[..., 0] = u[..., :4] @ ends
        found[..., -1] = -u[..., :-5:-1] @ ends
    return np.moveaxis(found, -1, axis)


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
def test_the_loss_is_the_relative_norm_summed_over_samples_and_channels(name: str, grid: Grid) -> None:
    rng = np.random.default_rng(0)
    guess, truth = rng.standard_normal((2, 3, 2, *grid.shape))
    expected = (norm(guess - truth, name, grid) / norm(truth, name, grid)).sum()
    loss = training_loss(name, grid)(torch.from_numpy(guess), torch.from_numpy(truth))
    assert loss.item() == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(
    ("name", "grid", "message"),
    [
        ("h2", GRID, "loss='h2', expected one of l2, h1"),
        ("h1", Grid.uniform((8, 3)), r"loss='h1' on axes of \{'x': 3\} points, .* at least 4: use loss='l2'"),
        ("h1", Grid.uniform((4, 4, 4, 4), names="wzyx"), "4 dimensions, it has 3 at most"),
    ],
)
def test_what_cannot_be_had_is_refused(name: str, grid: Grid, message: str) -> None:
    with pytest.raises(InputError, match=message):
        training_loss(name, grid)


def test_few_points_will_do_where_the_axis_wraps() -> None:
    loss = training_loss("h1", Grid.uniform((3,), periodic=True))
    # A constant error of a constant: no derivative, so the L2 error.
    assert loss(torch.full((1, 1, 3), 1.25), torch.ones(1, 1, 3)).item() == pytest.approx(0.25)


# --------------------------------------------------------------- batches of our loaders, with our processor

BOUNDED: list[tuple[Registration, bool]] = [("node", False), ("node_both", False), ("cell", False)]
WRAPS: list[tuple[Registration, bool]] = [("node", True), ("cell", True)]
ERROR = 0.1  # times sample number + 1, like the truth: the relative error of every sample is the same


def along(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A truth and an error along y, with the slopes that neuraloperator's differences have of them.

    Of a line these are the slope, of a wave :math:`\\sin(kh) / h` times the cosine.
    """
    axis = grid.axes[0]
    y = axis.points[:, None] + np.zeros(grid.shape)
    if not axis.periodic:
        return 3 + 2 * y, 2 + 0 * y, ERROR * y, ERROR + 0 * y
    k = 2 * np.pi / axis.length
    rate = np.sin(k * axis.spacing) / axis.spacing
    return 3 + np.sin(k * y), rate * np.cos(k * y), ERROR * np.cos(k * y), -ERROR * rate * np.sin(k * y)


def linear_store(path: Path, registration: Registration, periodic: bool) -> list[Grid]:
    """Of two grids; the input is the error that a model is to have."""
    both = registration == "node_both"
    where = {"registration": registration, "periodic": periodic, "domain": [(-1.0, 1.0), (0.0, 3.0)]}
    grids = [Grid.uniform((n + both, 6), names=("y", "x"), **where) for n in (8, 16)]

    def fields(numbers: np.ndarray, grid: Grid) -> dict[str, np.ndarray]:
        scale = 1.0 + numbers.reshape(-1, 1, 1)
        truth, _, error, _ = along(grid)
        return {"error": scale * error, "truth": scale * truth}

    variables = [Variable("error", "input"), Variable("truth", "output")]
    store_of(path, grids, variables, fields, {"train": 4, "test": 3}, ends=None)
    return grids


@pytest.mark.parametrize(("registration", "periodic"), BOUNDED + WRAPS)
@pytest.mark.parametrize("name", ["l2", "h1"])
def test_losses_of_batches_have_their_closed_form(
    name: str, registration: Registration, periodic: bool, tmp_path: Path
) -> None:
    """In evaluation of fields in units; in training of normalised ones, whose truth is without its mean."""
    grids = linear_store(tmp_path / "fields.zarr", registration, periodic)
    loaders = field_loaders(tmp_path / "fields.zarr", train=grids[0], test=grids, batch_size=4)
    mean = loaders.processor.out_mean.item()
    for training, (grid, loader) in [
        (False, (grids[0], loaders.test[grids[0]])),
        (False, (grids[1], loaders.test[grids[1]])),
        (True, (grids[0], loaders.train)),
    ]:
        (batch,) = loader
        processor = loaders.processor.train(training)
        scales = (batch["y"] / torch.from_numpy(along(grid)[0])).mean((1, 2, 3)).double().numpy()
        expected = 0.0
        for scale in scales:
            truth, slope, error, slope_of_error = (scale * field for field in along(grid))
            truth = truth - mean if training else truth
            terms = [(error, truth)] + ([(slope_of_error, slope)] if name == "h1" else [])
            expected += np.sqrt(sum((e**2).sum() for e, _ in terms) / sum((t**2).sum() for _, t in terms))
        data = processor.preprocess(batch)
        guess = (batch["y"] + batch["x"] - processor.out_mean) / processor.out_std  # as a model gives it
        out, data = processor.postprocess(guess, data)
        assert training_loss(name, grid)(out, data["y"]).item() == pytest.approx(expected, rel=2e-5)
        if periodic and name == "l2" and not training:  # the means of squares of waves, of every sample
            assert expected == pytest.approx(len(scales) * ERROR * np.sqrt(0.5 / 9.5))


@pytest.mark.parametrize(("registration", "periodic"), BOUNDED)
def test_the_loss_of_an_error_is_the_same_on_finer_grids(registration: Registration, periodic: bool) -> None:
    """neuraloperator's own default takes the error's ends for a jump, and grows with every refinement."""
    found, wrapped = [], []
    for n in (16, 32, 64, 128):
        both = registration == "node_both"
        grid = Grid.uniform((n + both, n + both), registration=registration, periodic=periodic)
        y, x = (torch.from_numpy(along.copy())[None, None] for along in np.broadcast_arrays(*grid.mesh))
        truth = torch.sin(2 * np.pi * y) * torch.sin(2 * np.pi * x)
        guess = truth + 0.05 * x
        found.append(training_loss("h1", grid)(guess, truth).item())
        wrapped.append(H1Loss(d=2)(guess, truth).item())
    exact = 0.05 * np.sqrt((1 / 3 + 1) / (1 / 4 + 2 * np.pi**2))
    assert found == pytest.approx([exact] * 4, rel=0.06) and found[-1] == pytest.approx(exact, rel=0.01)
    assert wrapped[0] > 2 * exact and wrapped[-1] > 2.5 * wrapped[0]
