"""Errors and energies by wavenumber: sums, closed forms, and the training grid's share."""

import itertools

import numpy as np
import pytest
import torch

from mano_op.grid import Axis, Grid
from mano_op.transfer.metrics import relative_l2
from mano_op.transfer.spectral import energy_spectrum, nyquist, spectral_split

GRIDS = [
    Grid.uniform((n,) * n_dim, registration=registration, periodic=periodic, domain=[(-1, 2)] * n_dim)
    for n_dim in (1, 2)
    for n in (2, 3, 15, 16, 33)
    for registration, periodic in itertools.product(("node", "cell", "node_both"), (False, True))
    if not (periodic and registration == "node_both")
] + [Grid((Axis("y", 9, periodic=True), Axis("x", 12, 0, 3, registration="cell")))]


def random(grid, seed):
    return torch.randn(3, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("coarse", [2, 5, 8, 40])
def test_parts_of_the_error_add_up_to_it(grid, coarse):
    trained = Grid(tuple(Axis(a.name, coarse, a.start, a.stop, "cell", a.periodic) for a in grid))
    truth, predicted = random(grid, 0), random(grid, 1)
    low, high = spectral_split(predicted, truth, grid, trained)
    total = relative_l2(predicted, truth, grid)
    torch.testing.assert_close(low**2 + high**2, total**2, rtol=1e-12, atol=0)
    assert (low > 0).all()
    if coarse == 40:  # the training grid is the finer one
        assert high.max() < 1e-12


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_energies_add_up_to_the_integral_of_the_square(grid):
    field = random(grid, 2)
    _, energy = energy_spectrum(field, grid)
    integral = (torch.from_numpy(grid.weights) * field**2).flatten(1).sum(1)
    torch.testing.assert_close(energy.sum(-1), integral, rtol=1e-12, atol=0)


@pytest.mark.parametrize("registration", ["node", "node_both", "cell"])
@pytest.mark.parametrize(("k", "below"), [(0, True), (3, True), (15, True), (16, False), (21, False)])
def test_cosines_go_where_their_wavenumber_is(registration, k, below):
    """The training grid of 16 intervals carries fewer than 16 half waves."""
    fine, trained = (
        Grid.uniform((n + (registration == "node_both"),), registration=registration) for n in (64, 16)
    )
    x = torch.from_numpy(fine.points[0])
    truth, predicted = 1 + x, 1 + x + 0.2 * (k * np.pi * x).cos()
    low, high = spectral_split(predicted, truth, fine, trained)
    total = relative_l2(predicted, truth, fine)
    part, rest = (low, high) if below else (high, low)
    assert part.item() == pytest.approx(total.item(), rel=2e-2)
    # Node grids without their right end integrate products of cosines up to the order of the quadrature.
    assert rest.item() < (0.2 if registration == "node" else 1e-9) * total.item()


def test_split_is_that_of_the_fourier_transform():
    """Modes are below only where they are along both axes; of 7 points at up to 3 waves, of 6 at up to 2."""
    fine, trained = Grid.uniform((12, 20), periodic=True), Grid.uniform((6, 7), periodic=True)
    truth, error = random(fine, 0), random(fine, 1)
    spectrum = torch.fft.fft2(error)
    ky, kx = (torch.fft.fftfreq(n, 1 / n).abs() for n in fine.shape)
    inside = (ky[:, None] < 3) & (kx[None] < 3.5)
    expected = (spectrum * inside).abs().square().sum((1, 2)).sqrt() / 240**0.5
    expected /= truth.square().sum((1, 2)).sqrt()
    low, _ = spectral_split(truth + error, truth, fine, trained)
    torch.testing.assert_close(low, expected, rtol=1e-12, atol=0)


def test_spectrum_peaks_where_the_wave_is():
    grid = Grid.uniform((24, 48), periodic=True, domain=[(0, 1), (0, 2)])  # square cells
    y, x = 2 * np.pi * torch.from_numpy(grid.mesh)
    k, energy = energy_spectrum((5 * y).cos() + 2 * (7 * x / 2).sin(), grid)
    expected = np.zeros(len(k))
    expected[10], expected[7] = 1.0, 4.0  # the integral over an area of 2, in waves over the length of 2
    np.testing.assert_allclose(energy, expected, atol=1e-12)
    np.testing.assert_array_equal(k, np.arange(len(k)))


@pytest.mark.parametrize("registration", ["node_both", "cell"])
def test_spectrum_is_the_same_however_finely_it_is_sampled(registration):
    spectra = []
    for n in (64, 128):
        grid = Grid.uniform((n + (registration == "node_both"),) * 2, registration=registration)
        y, x = torch.from_numpy(grid.mesh)
        spectra.append(energy_spectrum(torch.exp(-3 * ((x - 0.3) ** 2 + (y - 0.6) ** 2)), grid)[1][:4])
    np.testing.assert_allclose(*spectra, rtol=2e-2)


def test_nyquist_wavenumber_is_half_a_wave_a_spacing():
    assert nyquist(Grid.uniform((10,), domain=[(0, 5)], periodic=True)) == 5
    assert nyquist(Grid.uniform((10, 40), domain=[(0, 1), (0, 5)])) == 20
