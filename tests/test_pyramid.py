"""Restriction and prolongation against their definitions, torch's own layers, and what they must preserve."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mano_op.grid import Grid
from mano_op.layers.pyramid import Prolong, Restrict, level_shapes

REGISTRATIONS = ["node", "node_both", "cell"]


@pytest.fixture(autouse=True, scope="module")
def _float64():
    """Thirds that are thirds: what a stencil starts from, in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(step, channels=1, n_dim=1, *, rate=2, sampling="stencil", registration="node", periodic=False):
    periodic = [periodic] * n_dim if isinstance(periodic, bool) else periodic
    return step(
        channels, n_dim=n_dim, rate=rate, sampling=sampling, registration=registration, periodic=periodic
    )


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def coarse(shape, rate):
    return tuple(-(-n // rate) for n in shape)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shape", "rate", "n_levels", "expected"),
    [
        ((243,), 3, None, [(243,), (81,), (27,), (9,), (3,)]),  # log_3 243 = 5; floats say 4.99...
        ((125, 125), 5, None, [(125, 125), (25, 25), (5, 5)]),
        ((64, 64), 4, None, [(64, 64), (16, 16), (4, 4)]),
        ((63, 64), 2, None, [(63, 64), (32, 32), (16, 16), (8, 8), (4, 4)]),  # floor(log_2 63) = 5
        ((1, 64), 2, None, [(1, 64)]),  # the shortest side counts, and one level there always is
        ((1, 64), 2, 3, [(1, 64), (1, 32), (1, 16)]),  # a number that was asked for goes on
        ((5, 3), 2, 9, [(5, 3), (3, 2), (2, 1), (1, 1)]),  # until a single point is left
        ((1, 1, 1), 2, 4, [(1, 1, 1)]),
    ],
)
def test_level_shapes(shape, rate, n_levels, expected):
    assert level_shapes(shape, rate, n_levels) == expected


@pytest.mark.parametrize("rate", [2, 3])
@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_published_samplings_of_cells_that_fit_are_torchs_layers(n_dim, rate):
    """The published samplings are convolution, its transpose, pooling and upsampling by copies."""
    fine, cells = draw(2, 3, *[2 * rate] * n_dim), draw(2, 3, *[2] * n_dim, seed=1)
    for sampling, down, up in (
        ("conv", getattr(nn, f"Conv{n_dim}d"), getattr(nn, f"ConvTranspose{n_dim}d")),
        ("avg_pool", getattr(nn, f"AvgPool{n_dim}d"), nn.Upsample),
    ):
        learned = sampling == "conv"
        for step, layer, field, shape in (
            (Restrict, down, fine, ()),
            (Prolong, up, cells, (fine.shape[2:],)),
        ):
            ours = build(step, 3, n_dim, rate=rate, sampling=sampling)
            size = {"scale_factor": rate} if layer is nn.Upsample else {"kernel_size": rate}
            theirs = layer(3, 3, rate, rate, bias=False) if learned else layer(**size)
            ours.load_state_dict(theirs.state_dict())
            assert_same(ours(field, *shape), theirs(field))


def nearest(i, n, wraps):
    return i % n if wraps else min(max(i, 0), n - 1)


@given(
    st.sampled_from([1, 2]).flatmap(lambda d: st.tuples(*[st.integers(1, 7)] * d)),
    st.sampled_from([2, 3]),
    st.sampled_from(REGISTRATIONS),
    st.booleans(),
    st.booleans(),
)
def test_stencil_matches_its_definition(shape, rate, registration, first_wraps, last_wraps):
    """Coarse point I takes sum_k w_k x_(rI + k), fine point i takes sum_I w_(i - rI) y_I."""
    n_dim, wraps = len(shape), [first_wraps, last_wraps][-len(shape) :]
    steps = range(rate) if registration == "cell" else range(1 - rate, rate)
    x, y = draw(1, 2, *shape), draw(1, 2, *coarse(shape, rate), seed=1)
    down, up = torch.zeros_like(y), torch.zeros_like(x)
    restrict, prolong = (
        build(step, 2, n_dim, rate=rate, registration=registration, periodic=wraps)
        for step in (Restrict, Prolong)
    )
    for seed, module in enumerate((restrict, prolong)):
        module.weight.data = draw(*module.weight.shape, seed=seed)

    for point in product(*map(range, y.shape[2:])):
        for k in product(steps, repeat=n_dim):
            at = [nearest(rate * i + j, n, w) for i, j, n, w in zip(point, k, shape, wraps, strict=True)]
            weight = restrict.weight[(slice(None), 0, *(j - steps[0] for j in k))]
            down[(0, slice(None), *point)] += weight.detach() * x[(0, slice(None), *at)]
    for point in product(*map(range, shape)):
        # The nearest coarse points on either side; one beyond each end stands for its neighbour.
        for cell in product(*((i // rate, i // rate + 1) for i in point)):
            k = [i - rate * c for i, c in zip(point, cell, strict=True)]
            if all(j in steps for j in k):
                at = [nearest(c, n, w) for c, n, w in zip(cell, y.shape[2:], wraps, strict=True)]
                weight = prolong.weight[(slice(None), 0, *(j - steps[0] for j in k))]
                up[(0, slice(None), *point)] += weight.detach() * y[(0, slice(None), *at)]
    assert_same(restrict(x).detach(), down)
    assert_same(prolong(y, shape).detach(), up)


def normalise(module, step):
    """Weights of "conv" that map constants to constants, and are otherwise arbitrary."""
    weight = draw(*module.weight.shape).exp()
    summed = list(range(1, weight.ndim)) if step is Restrict else [0]  # (out, in, ...) and (in, out, ...)
    module.weight.data = weight / weight.sum(summed, keepdim=True)


@pytest.mark.parametrize("sampling", ["stencil", "conv", "avg_pool"])
@pytest.mark.parametrize("rate", [2, 3, 4])
@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("periodic", [False, True])
def test_constants_stay_constant_at_every_size(periodic, registration, rate, sampling):
    restrict, prolong = (
        build(step, 2, 2, rate=rate, sampling=sampling, registration=registration, periodic=periodic)
        for step in (Restrict, Prolong)
    )
    if sampling == "conv":
        normalise(restrict, Restrict)
        normalise(prolong, Prolong)
    for shape in [(1, 1), (2, 7), (5, 1), (9, 7)]:
        constant = torch.full((1, 2, *shape), 2.5)
        down = restrict(constant).detach()
        assert_same(down, torch.full((1, 2, *coarse(shape, rate)), 2.5))
        assert_same(prolong(down, shape).detach(), constant)


def linear(grid):
    """A field with another slope along each axis."""
    slopes = torch.tensor([1.0, -2.0, 0.5][: grid.n_dim])
    return torch.tensordot(slopes, torch.as_tensor(grid.mesh), dims=1)[None, None]


@pytest.mark.parametrize("rate", [2, 3, 4])
@pytest.mark.parametrize("registration", REGISTRATIONS)
@pytest.mark.parametrize("n_dim", [1, 2, 3])
def test_the_stencil_is_centred(n_dim, registration, rate):
    """Linear fields keep their values at the coarse points, and interpolation between nodes is exact."""
    coarse_grid = Grid.uniform([4 if registration != "node_both" else 5] * n_dim, registration=registration)
    fine_grid = coarse_grid.refine(rate)
    restrict, prolong = (
        build(step, 1, n_dim, rate=rate, registration=registration) for step in (Restrict, Prolong)
    )
    inner = (..., *[slice(1, -1)] * n_dim)
    assert_same(restrict(linear(fine_grid)).detach()[inner], linear(coarse_grid)[inner])
    between = (..., *[slice(0, rate * (coarse_grid.shape[0] - 1) + 1)] * n_dim)
    expected = linear(fine_grid)
    if registration == "cell":  # the stencil copies the value of the cell's centre
        expected = linear(coarse_grid)
        for dim in range(2, n_dim + 2):
            expected = expected.repeat_interleave(rate, dim)
    assert_same(prolong(linear(coarse_grid), fine_grid.shape).detach()[between], expected[between])


@pytest.mark.parametrize("rate", [2, 3])
@pytest.mark.parametrize(
    ("sampling", "registration", "periodic"),
    [
        ("stencil", "node", True),
        ("stencil", "cell", False),
        ("stencil", "cell", True),
        ("avg_pool", "node", False),
        ("conv", "node", False),
    ],
)
def test_prolongation_is_the_adjoint_of_restriction(sampling, registration, periodic, rate):
    """<R x, y> = r^-d <x, P y> at the initial weights; without r^-d if "conv" has one weight for both."""
    restrict, prolong = (
        build(step, 2, 2, rate=rate, sampling=sampling, registration=registration, periodic=periodic)
        for step in (Restrict, Prolong)
    )
    if sampling == "conv":
        prolong.weight.data = restrict.weight.data
    x, y = draw(2, 2, 2 * rate, 3 * rate), draw(2, 2, 2, 3, seed=1)
    left, right = (restrict(x) * y).sum(), (x * prolong(y, x.shape[2:])).sum()
    assert_same(left, right * (1 if sampling == "conv" else rate**-2))


@pytest.mark.parametrize("rate", [2, 3, 4])
def test_a_cut_cell_is_the_mean_of_the_points_it_has(rate):
    restrict = build(Restrict, 2, 2, rate=rate, sampling="avg_pool")
    for shape in [(1, 1), (2, 7), (7, 7), (9, 5)]:
        x = expected = draw(1, 2, *shape)
        for dim in (2, 3):
            cells = expected.split(rate, dim)
            expected = torch.cat([cell.mean(dim, keepdim=True) for cell in cells], dim)
        assert_same(restrict(x), expected)


@pytest.mark.parametrize("sampling", ["stencil", "conv"])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_in_three_dimensions_is_that_of_single_precision(sampling, autocast):
    """Of one channel, which kernels for AMX read past: into memory that holds a NaN here."""
    torch.manual_seed(0)
    options = {"n_dim": 3, "rate": 2, "sampling": sampling, "registration": "node"}
    options["periodic"] = [True, False, False]
    restrict, prolong = Restrict(1, **options).float(), Prolong(1, **options).float()
    x = torch.randn(2, 1, 5, 6, 2).bfloat16()
    coarse = restrict(x.float())
    expected = coarse, prolong(coarse, (5, 6, 2))
    if not autocast:
        restrict, prolong = restrict.bfloat16(), prolong.bfloat16()
    for _ in range(10):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for size in (64, 128, 256, 512, 1024, 4096):
                torch.full((size,), torch.nan, dtype=torch.float32)
            coarse = restrict(x.float() if autocast else x)
            fine = prolong(coarse, (5, 6, 2))
        for field, value in zip((coarse, fine), expected, strict=True):
            torch.testing.assert_close(field.float(), value.detach(), rtol=0.02, atol=0.02)
