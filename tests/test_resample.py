"""Resampling against closed forms, slow references and rates of convergence."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from helpers import on_grid, rates
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.signal import resample as fft_resample

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Axis, Grid
from mano_op.resample import METHODS, resample

INTERPOLATING = ("linear", "cubic")
ANY_PAIR = ("nearest", "linear", "cubic", "mean")  # the methods that never refuse a pair of axes
WRAPPING = ("node", "cell")
close = partial(torch.testing.assert_close, rtol=0)


def line(n, registration="node", periodic=False, start=0.0, stop=1.0):
    return Grid((Axis("x", n, start, stop, registration, periodic),))


def matrix(source, target, method):
    """The operator of a pair of one-dimensional grids, column by column: what it does to a unit vector."""
    return resample(torch.eye(source.shape[0], dtype=torch.float64), source, target, method).T


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@st.composite
def grid_pairs(draw, n_dim=2, periodic=False, fewest=2, most=13):
    """Two grids of one domain whose axes differ in number and registration, each as it likes."""
    kinds = st.sampled_from(WRAPPING if periodic else REGISTRATIONS)
    size = st.integers(fewest, most)
    ends = [(-1.5, 2.0), (3.0, 3.75)][:n_dim]
    return tuple(
        Grid(tuple(Axis(f"x{i}", draw(size), a, b, draw(kinds), periodic) for i, (a, b) in enumerate(ends)))
        for _ in ("source", "target")
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("periodic", [False, True])
@given(data=st.data())
def test_constants_are_exact(periodic, dtype, data):
    source, target = data.draw(grid_pairs(periodic=periodic, fewest=1 if periodic else 2))
    for method in (*ANY_PAIR, "spectral")[: 5 if periodic else 4]:
        result = resample(torch.full(source.shape, 3.0, dtype=dtype), source, target, method)
        close(result, torch.full(target.shape, 3.0, dtype=dtype), atol=200 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", INTERPOLATING)
@given(pair=grid_pairs())
def test_linear_fields_are_exact_for_every_pair_of_registrations(method, dtype, pair):
    """On the plane: the product of two lines is linear along either axis, and exact too."""
    source, target = pair

    def plane(y, x):
        return 1 + 2 * y - 3 * x + 0.5 * x * y

    result = resample(on_grid(plane, source).to(dtype), source, target, method)
    # Values reach 12, and beyond its last point a cubic spline multiplies their rounding by up to 7.
    close(result, on_grid(plane, target).to(dtype), atol=1000 * torch.finfo(dtype).eps)


@given(grid_pairs(n_dim=1))
def test_cubic_is_exact_for_the_degree_its_points_allow(pair):
    source, target = pair
    degree = min(3, source.shape[0] - 1)
    polynomial = np.polynomial.Polynomial([0.5, -1.0, 0.7, -0.3][: degree + 1])
    result = resample(on_grid(polynomial, source), source, target, "cubic")
    close(result, on_grid(polynomial, target), atol=1e-11)


def test_spline_of_one_point_is_constant():
    result = resample(torch.tensor([7.0]), line(1, "cell"), line(5, "node_both"), "cubic")
    close(result, torch.full((5,), 7.0), atol=0)


def waves(n_modes, x, period):
    """A sum of modes 0 to n_modes - 1, each with its own height and phase."""
    height, phase = np.random.default_rng(0).uniform(0.5, 3, (2, n_modes))
    return height @ np.cos(2 * np.pi * np.arange(n_modes)[:, None] * x / period + phase[:, None])


@pytest.mark.parametrize(("kind", "target_kind"), [*product(WRAPPING, repeat=2)])
def test_spectral_is_exact_for_band_limited_fields_up_and_down(kind, target_kind):
    """Even and odd sizes: every mode below the Nyquist mode of both grids, with any phase."""
    for n, m in product(range(5, 13), repeat=2):
        source, target = line(n, kind, True, -1.0, 2.0), line(m, target_kind, True, -1.0, 2.0)
        field = partial(waves, (min(n, m) + 1) // 2, period=3)
        result = resample(on_grid(field, source), source, target, "spectral")
        close(result, on_grid(field, target), atol=1e-12)


def smooth(x, frequency):
    return np.exp(np.sin(frequency * x))


@pytest.mark.parametrize(
    ("registration", "periodic"), [*product(REGISTRATIONS, [False]), *product(WRAPPING, [True])]
)
@pytest.mark.parametrize(("method", "order"), [("linear", 2), ("cubic", 4)])
def test_interpolation_converges_with_its_order(method, order, registration, periodic):
    """A polynomial of degree p through points h apart misses h^(p+1) times the next derivative, at most.

    Targets are four cells to each source point, and share no point with the source.
    """
    errors = []
    for n in (32, 64, 128):
        source, target = line(n, registration, periodic), line(4 * n, "cell", periodic)
        exact = partial(smooth, frequency=2 * np.pi if periodic else 5.0)
        result = resample(on_grid(exact, source), source, target, method)
        errors.append(float((result - on_grid(exact, target)).abs().max()))
    np.testing.assert_allclose(rates(errors), order, atol=0.35)


# Each extends one axis by periods, or beyond its ends, as far as the target reaches.


def nearest_by_search(source, target, values):
    turns = (-1, 0, 1) if source.periodic else (0,)
    around = np.concatenate([source.points + turn * source.length for turn in turns])
    distance = np.abs(target.points[:, None] - around).round(9)  # ties are equal; argmin takes the left
    return np.tile(values, len(turns))[distance.argmin(axis=1)]


def linear_by_interp(source, target, values):
    if source.periodic:
        return np.interp(target.points, source.points, values, period=source.length)
    x = np.concatenate(
        [source.points[:1] - source.spacing, source.points, source.points[-1:] + source.spacing]
    )
    v = np.concatenate([[2 * values[0] - values[1]], values, [2 * values[-1] - values[-2]]])
    return np.interp(target.points, x, v)


def cubic_by_slopes(source, target, values):
    if not source.periodic:
        return CubicSpline(source.points, values)(target.points)
    x, v = np.append(source.points, source.points[0] + source.length), np.append(values, values[0])
    return CubicSpline(x, v, bc_type="periodic")(target.points)


def mean_by_primitive(source, target, values):
    turns = (-1, 0, 1) if source.periodic else (0,)
    volumes = np.concatenate([source.bounds + turn * source.length for turn in turns])
    steps = np.diff(volumes, axis=1)[:, 0] * np.tile(values, len(turns))
    edges, primitive = np.append(volumes[:, 0], volumes[-1, 1]), np.append(0, np.cumsum(steps))
    return np.diff(np.interp(target.bounds, edges, primitive), axis=1)[:, 0] / np.diff(target.bounds)[:, 0]


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("nearest", nearest_by_search),
        ("linear", linear_by_interp),
        ("cubic", cubic_by_slopes),
        ("mean", mean_by_primitive),
    ],
)
@given(data=st.data())
def test_method_matches_its_slow_reference(method, reference, data):
    source, target = data.draw(grid_pairs(n_dim=1, periodic=data.draw(st.booleans())))
    field = random(*source.shape)
    expected = reference(source.axes[0], target.axes[0], field.numpy())
    close(resample(field, source, target, method), torch.from_numpy(expected), atol=1e-11)


def test_spectral_on_nodes_is_the_fourier_method_of_scipy():
    """For any field, so with modes that the target cannot carry, and both Nyquist modes among them."""
    for n, m in product(range(5, 13), repeat=2):
        field = random(n)
        expected = torch.from_numpy(fft_resample(field.numpy(), m))
        result = resample(field, line(n, periodic=True), line(m, periodic=True), "spectral")
        close(result, expected, atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_resampling_is_the_kronecker_product_of_axes_and_its_gradient_the_transpose(method):
    wraps = method == "spectral"
    if method == "injection":
        source, target = Grid.uniform((4, 6)), Grid.uniform((2, 3))
    else:
        source = Grid.uniform((4, 5), registration="cell", periodic=wraps)
        target = Grid.uniform((6, 3), periodic=wraps)
    dense = torch.kron(*(matrix(Grid((a,)), Grid((b,)), method) for a, b in zip(source, target, strict=True)))

    field = random(2, *source.shape).requires_grad_()
    result = resample(field, source, target, method)
    close(result.flatten(1), field.detach().flatten(1) @ dense.T, atol=1e-13)

    weights = random(*result.shape)
    (gradient,) = torch.autograd.grad(torch.sum(weights * result), field)
    close(gradient.flatten(1), weights.flatten(1) @ dense, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("periodic", [False, True])
def test_injection_to_a_coarsened_grid_is_slicing(dtype, periodic):
    field = random(3, 12, 18, dtype=dtype)
    for registration, first, factor in (("node", 0, 2), ("node", 0, 3), ("cell", 1, 3)):
        source = Grid.uniform((12, 18), registration=registration, periodic=periodic)
        result = resample(field, source, source.coarsen(factor), "injection")
        assert torch.equal(result, field[:, first::factor, first::factor])


def test_injection_selects_points_shared_by_registrations():
    field = random(13)
    assert torch.equal(resample(field, line(13, "node_both"), line(6), "injection"), field[:-1:2])
    assert torch.equal(resample(field, line(13, "node_both"), line(6, "cell"), "injection"), field[1::2])


def test_injection_and_nearest_do_not_spread_nan():
    field = torch.tensor([1.0, torch.nan, 3.0, torch.inf, 5.0, 6.0])
    close(resample(field, line(6), line(3), "injection"), torch.tensor([1.0, 3.0, 5.0]), atol=0)
    close(resample(field, line(6), line(12), "nearest"), field.repeat_interleave(2), atol=0, equal_nan=True)


@pytest.mark.parametrize("n", [8, 9])
def test_spectral_refined_and_coarsened_again_is_unchanged(n):
    """The Nyquist mode of an even source too, which the finer grid carries as a cosine of half each sign."""
    for kind, target_kind in product(WRAPPING, WRAPPING):
        coarse, fine = line(n, kind, periodic=True), line(21, target_kind, periodic=True)
        field = random(n)
        refined = resample(field, coarse, fine, "spectral")
        close(resample(refined, fine, coarse, "spectral"), field, atol=1e-13)


def test_nyquist_mode_is_a_cosine_about_the_source_points():
    field = torch.tensor([1.0, -1.0] * 4).double()
    source, target = line(8, periodic=True), line(24, "cell", periodic=True)
    result = resample(field, source, target, "spectral")
    close(result, on_grid(lambda x: np.cos(8 * np.pi * x), target), atol=1e-13)


def test_boundary_values_are_source_points_at_the_ends():
    """Two cells and both ends are four points: enough for any cubic, and for its values at the ends."""

    def cubic(x):
        return 2 - x + 3 * x**2 - 4 * x**3

    source, target = line(2, "cell", start=-1.0, stop=3.0), line(9, "node_both", start=-1.0, stop=3.0)
    ends = {"x": (cubic(-1.0), cubic(3.0))}
    result = resample(on_grid(cubic, source), source, target, "cubic", boundary=ends)
    close(result, on_grid(cubic, target), atol=1e-11)

    result = resample(on_grid(cubic, source), source, target, "linear", boundary=ends)
    x = np.array([-1.0, 0.0, 2.0, 3.0])
    close(result, torch.from_numpy(np.interp(target.points[0], x, cubic(x))), atol=1e-12)


@pytest.mark.parametrize("method", INTERPOLATING)
def test_boundary_values_of_one_end_leave_the_others_unchanged(method):
    source, target = Grid.uniform((4, 5), registration="cell"), Grid.uniform((7, 7), registration="node_both")
    field = random(4, 5)
    free = resample(field, source, target, method)
    left = resample(field, source, target, method, boundary={"x": (2.0, None)})
    close(left[:, 0], torch.full((7,), 2.0).double(), atol=1e-12)
    across = resample(field, source, Grid((target.axes[0], source.axes[1])), method)
    close(resample(field, source, target, method, boundary={"y": (None, None)}), free, atol=0)
    x_alone = Grid((source.axes[1],)), Grid((target.axes[1],))
    close(left, resample(across, *x_alone, method, boundary={"x": (2.0, None)}), atol=1e-12)


@pytest.mark.parametrize("method", INTERPOLATING)
def test_boundary_number_is_the_value_of_every_end(method):
    source = Grid((Axis("y", 4, registration="cell"), Axis("x", 5)))
    target = Grid.uniform((5, 6), registration="node_both")
    field = random(2, 4, 5)
    result = resample(field, source, target, method, boundary=1.5)
    for face in (result[:, 0], result[:, -1], result[:, :, -1]):
        close(face, torch.full_like(face, 1.5), atol=1e-12)
    for spelled in ({"y": 1.5, "x": 1.5}, {"y": (1.5, 1.5), "x": [None, np.float32(1.5)]}):
        assert torch.equal(result, resample(field, source, target, method, boundary=spelled))


def test_source_point_at_an_end_keeps_its_value():
    field = random(5)
    for registration, ends in (("node_both", (9.0, 9.0)), ("node", (9.0, None))):
        source, target = line(5, registration), line(11, "cell")
        known = resample(field, source, target, "cubic", boundary={"x": ends})
        assert torch.equal(known, resample(field, source, target, "cubic"))


def test_gradient_with_boundary_values_is_the_transpose():
    source, target = Grid.uniform((3, 4), registration="cell"), Grid.uniform((5, 6))
    apply = partial(
        resample, source=source, target=target, method="cubic", boundary={"y": 1.0, "x": (2.0, -1.0)}
    )
    unit = torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    columns = (apply(unit) - apply(torch.zeros(3, 4).double())).flatten(1)
    field, weights = random(3, 4).requires_grad_(), random(5, 6)
    (gradient,) = torch.autograd.grad(torch.sum(weights * apply(field)), field)
    close(gradient.flatten(), columns @ weights.flatten(), atol=1e-13)


@pytest.mark.parametrize("method", METHODS)
def test_equal_grids_return_the_field_itself(method):
    grid = Grid.uniform((4, 6), registration="cell")
    field = random(2, 4, 6, dtype=torch.float16)
    assert resample(field, grid, Grid.uniform((4, 6), registration="cell"), method) is field


def test_axis_of_both_grids_keeps_its_values():
    """A channel, periodic along x alone, is resampled in two steps by two methods."""
    y, finer_y = Axis("y", 5, registration="cell"), Axis("y", 9, registration="node_both")
    x, finer_x = Axis("x", 6, periodic=True), Axis("x", 9, periodic=True)
    field = random(2, 5, 6)
    half_way = resample(field, Grid((y, x)), Grid((y, finer_x)), "spectral")
    close(half_way, field @ matrix(Grid((x,)), Grid((finer_x,)), "spectral").T, atol=1e-14)
    result = resample(half_way, Grid((y, finer_x)), Grid((finer_y, finer_x)), "cubic")
    across = matrix(Grid((y,)), Grid((finer_y,)), "cubic")
    close(result, torch.einsum("ij,bjk->bik", across, half_way), atol=1e-13)


def test_three_dimensions_keep_leading_dimensions():
    source, target = Grid.uniform((3, 4, 5), registration="cell"), Grid.uniform((6, 2, 7))

    def field(z, y, x):
        return z - 2 * y + 3 * x

    expected = on_grid(field, target)
    close(resample(on_grid(field, source), source, target, "linear"), expected, atol=1e-13)
    batch = on_grid(field, source).expand(2, 3, 3, 4, 5)
    close(resample(batch, source, target, "linear"), expected.expand(2, 3, 6, 2, 7), atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["linear", "cubic", "spectral", "mean"])
def test_half_precision_is_computed_in_single(method, dtype):
    source, target = (Grid.uniform(shape, registration="cell", periodic=True) for shape in ((8, 8), (11, 13)))
    field = random(8, 8, dtype=dtype)
    result = resample(field, source, target, method, boundary=None)
    assert torch.equal(result, resample(field.float(), source, target, method).to(dtype))
    assert result.dtype == dtype


def test_domains_equal_up_to_rounding_are_the_same():
    source, target = (line(8, periodic=True, stop=end) for end in (2 * np.pi, np.nextafter(2 * np.pi, 7)))
    assert source != target
    field = random(8)
    close(resample(field, source, target, "spectral"), field, atol=1e-14)


NODES, CELLS, RING = Grid.uniform((4, 6)), Grid.uniform((4, 6), registration="cell"), line(4, periodic=True)


@pytest.mark.parametrize(
    ("field", "source", "target", "method", "boundary", "message"),
    [
        (torch.zeros(4, 6).long(), NODES, CELLS, "linear", None, "torch.int64.*a floating dtype"),
        (np.zeros((4, 6)), NODES, CELLS, "linear", None, "type ndarray, dtype float64 .*; expected a tensor"),
        (torch.zeros(6, 4), NODES, CELLS, "linear", None, r"shape \(6, 4\); expected .*\(..., 4, 6\)"),
        (torch.zeros(4, 6), NODES, CELLS, "bicubic", None, "'bicubic' is none of injection, nearest, linear"),
        (torch.zeros(4, 6), NODES, line(8), "linear", None, "the same axes in the same order"),
        (torch.zeros(4), line(4), RING, "linear", None, "periodic in the same"),
        (torch.zeros(4), line(4), line(4, stop=2.0), "linear", None, r"\[0, 1\].*\[0, 2\].*same domains"),
        (torch.zeros(4, 6), NODES, CELLS, "injection", None, "none at 0.125.*Use 'cubic'.*nested"),
        (torch.zeros(4), RING, line(8, periodic=True), "injection", None, "none at 0.125.*Use 'spectral'"),
        (torch.zeros(4), line(4, "cell"), line(2, "node_both"), "injection", None, "none at 0,"),
        (torch.zeros(4, 6), NODES, CELLS, "spectral", None, "'y' does not wrap.*use 'cubic'.*periodic=True"),
        (torch.zeros(4, 6), NODES, NODES, "mean", 0.0, "boundary=0.0 with method='mean'"),
        (torch.zeros(4, 6), NODES, CELLS, "linear", {"z": 0.0}, "do not wrap, which here are y, x"),
        (torch.zeros(4), RING, line(8, periodic=True), "cubic", 0.0, "none, so leave it out"),
        (torch.zeros(4, 6), NODES, CELLS, "linear", {"x": (0, 1, 2)}, "'x' expects a finite number, or a"),
    ],
)
def test_fields_and_grids_that_do_not_fit_are_refused(field, source, target, method, boundary, message):
    with pytest.raises(InputError, match=message):
        resample(field, source, target, method, boundary=boundary)
