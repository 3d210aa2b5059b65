"""Resampling from one grid to another, by linear operators along each axis."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import make_interp_spline

from mano_op.boundary import Boundary, End, ends_by_axis
from mano_op.errors import InputError
from mano_op.grid import Axis, Grid


def resample(
    field: torch.Tensor, source: Grid, target: Grid, method: str, *, boundary: Boundary | None = None
) -> torch.Tensor:
    r"""Resample a field from grid `source` to grid `target`.

    Along each axis :math:`v_j = \sum_i M_{ji} u_i`, with the points :math:`x_i` of the source, :math:`y_j` of
    the target, and a matrix M by `method`:

    ``injection``
        :math:`v_j = u_i` where :math:`y_j = x_i`. Exact; every target point must be a source point. Aliases
        scales below the target's spacing.
    ``nearest``
        :math:`v_j = u_i` with :math:`x_i` closest to :math:`y_j`, the left of two equally close ones. For
        piecewise constant coefficients; exact for constants, first order elsewhere.
    ``linear``
        The line through the two source points around :math:`y_j`, or through the outermost two if :math:`y_j`
        lies beyond them. Exact for linear fields; second order; aliases when it coarsens.
    ``cubic``
        The cubic spline through the source points (not-a-knot; periodic if the axis is). Exact for cubics;
        fourth order; aliases when it coarsens. Three, two or one points on an axis that does not wrap give a
        parabola, a line or a constant.
    ``spectral``
        :math:`M_{ji} = \frac{1}{n} \sum_{|k| \le m/2} c_k \cos(2 \pi k (y_j - x_i) / L)`, for n source
        points, m the smaller of the two numbers of points, and L the period: the trigonometric interpolant
        without the modes that the target cannot carry. Exact for :math:`|k| < m/2`; periodic axes only.
        :math:`c_k = 1`, but :math:`c_{\pm n/2} = 1/2`, as the source cannot tell its two Nyquist modes apart.
        A field that is refined and coarsened again returns unchanged.
    ``mean``
        :math:`v_j = \sum_i u_i |\omega_i \cap \Omega_j| / |\Omega_j|`, with the control volumes
        :math:`\omega_i`, :math:`\Omega_j` (`Axis.bounds`). Exact for constants; keeps the integral
        :math:`\sum_i |\omega_i| u_i`; damps scales below the target's spacing. A ``node`` axis coarsened by 2
        has the weights 1/4, 1/2, 1/4, one-sided at an end.

    An axis that both grids share keeps its values. Axes that need different methods are resampled one after
    the other, through an intermediate grid.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., *source.shape)``, of any floating dtype, on any device. Half precision is computed in
        single.
    source, target : Grid
        Grids with the same names, domain and periodicity.
    method : {"injection", "nearest", "linear", "cubic", "spectral", "mean"}
    boundary : float or dict, optional
        Known values at the ends of axes that do not wrap, for "linear" and "cubic": one number for all ends,
        or by name of the axis a number or a pair ``(at start, at stop)``, with None for an unknown end. They
        are further source points, except at an end where the source has a point. Where faces with different
        values meet, the axis resampled last decides.

    Returns
    -------
    Tensor
        Shape ``(..., *target.shape)``, dtype and device of `field`; differentiable. `field` itself if the
        grids are equal.

    Raises
    ------
    InputError
        If the field is not on `source`, the grids do not cover the same domain, or the method does not fit
        the axes or the boundary values.

    Examples
    --------
    A parabola that vanishes at both ends, from cells to nodes:

    >>> cells = Grid.uniform((4,), registration="cell")
    >>> nodes = Grid.uniform((5,), registration="node_both")
    >>> field = torch.tensor(cells.points[0] * (1 - cells.points[0]))
    >>> resample(field, cells, nodes, "linear")
    tensor([0.0469, 0.1719, 0.2344, 0.1719, 0.0469], dtype=torch.float64)
    >>> resample(field, cells, nodes, "linear", boundary=0.0)
    tensor([0.0000, 0.1719, 0.2344, 0.1719, 0.0000], dtype=torch.float64)
    >>> resample(field, cells, nodes, "cubic", boundary={"x": (0.0, None)})
    tensor([0.0000, 0.1875, 0.2500, 0.1875, 0.0000], dtype=torch.float64)
    """
    _check(field, source, target)
    if method not in METHODS:
        raise InputError(f"method={method!r} is none of {', '.join(METHODS)}")
    ends = _known_ends(source, method, boundary)
    if source == target:
        return field
    dtype = field.dtype
    field = field.to(torch.promote_types(dtype, torch.float32))
    for axis, goal, (left, right) in zip(source, target, ends, strict=True):
        field = field.movedim(-source.n_dim, -1)  # after all axes they are in order again
        if axis == goal:
            continue
        operator = _operator(axis, goal, method, (left is not None, right is not None))
        for value, widths in ((left, (1, 0)), (right, (0, 1))):
            if value is not None:
                field = torch.nn.functional.pad(field, widths, value=float(value))
        if operator.ndim == 1:
            field = field.index_select(-1, torch.tensor(operator, device=field.device))
        else:
            field = field @ torch.tensor(operator, dtype=field.dtype, device=field.device).T
    return field.to(dtype)


@lru_cache(maxsize=256)
def _operator(source: Axis, target: Axis, method: str, ends: tuple[bool, bool]) -> NDArray[np.generic]:
    """Matrix of a method, ``(target.n, source.n + sum(ends))``, or indices if each row selects one point."""
    matrix = _METHODS[method](source, target, ends)
    if np.isin(matrix, (0, 1)).all():  # selection is exact in every dtype, and does not spread a NaN
        return matrix.argmax(axis=1)
    return matrix


def interpolate(
    field: torch.Tensor, source: Grid, target: Grid, boundary: Boundary | None = None
) -> torch.Tensor:
    """Interpolate a smooth field of shape ``(..., *source.shape)`` to another grid.

    Along each axis: copied where the target's points are among the source's, by the trigonometric
    interpolant where the axis is periodic, and otherwise by the cubic spline through the values and those
    of `boundary`, as `resample` takes them.

    Examples
    --------
    >>> coarse, fine = Grid.uniform((4,)), Grid.uniform((8,))
    >>> parabola = [torch.tensor(grid.points[0] * (1 - grid.points[0])) for grid in (coarse, fine)]
    >>> torch.allclose(interpolate(parabola[0], coarse, fine, 0.0), parabola[1])
    True
    """
    ends = ends_by_axis(source, boundary)
    for i, (axis, goal) in enumerate(zip(source.axes, target.axes, strict=True)):
        step = Grid((*target.axes[: i + 1], *source.axes[i + 1 :]))
        nested = nests(Grid((axis,)), Grid((goal,)))
        method = "injection" if nested else "spectral" if axis.periodic else "cubic"
        known = {axis.name: ends[axis.name]} if method == "cubic" and axis.name in ends else None
        field = resample(field, source, step, method, boundary=known)
        source = step
    return field


def nests(source: Grid, target: Grid) -> bool:
    """Return True if every point of the target is a point of the source.

    Examples
    --------
    >>> nodes, cells = Grid.uniform((8,)), Grid.uniform((8,), registration="cell")
    >>> nests(nodes, nodes.coarsen(2)), nests(nodes.coarsen(2), nodes), nests(cells, cells.coarsen(2))
    (True, False, False)
    """
    return all(_shared(axis, goal).all() for axis, goal in zip(source, target, strict=True))


def _shared(source: Axis, target: Axis) -> NDArray[np.bool_]:
    """Mask of the target points that are source points."""
    return np.isin(source.positions(target), np.arange(source.n))


def _injection(source: Axis, target: Axis, ends: tuple[bool, bool]) -> NDArray[np.float64]:
    shared = _shared(source, target)
    if not shared.all():
        raise InputError(
            f"axis {source.name!r}: {source.n} {source.registration} points have none at "
            f"{target.points[~shared][0]:g}, where the {target.n} {target.registration} points need one, so "
            f"'injection' has nothing to copy. Use {'spectral' if source.periodic else 'cubic'!r} for a "
            "smooth field, 'mean' or 'nearest' for a coefficient, or a target whose points are nested"
        )
    return np.eye(source.n)[source.positions(target).astype(int)]


def _nearest(source: Axis, target: Axis, ends: tuple[bool, bool]) -> NDArray[np.float64]:
    index = np.ceil(source.positions(target) - 0.5).astype(int)
    return np.eye(source.n)[index % source.n if source.periodic else index.clip(0, source.n - 1)]


def _spline(source: Axis, target: Axis, ends: tuple[bool, bool], *, degree: int) -> NDArray[np.float64]:
    positions, unit = source.positions(target), np.eye(source.n + sum(ends))
    if source.periodic:
        closed = np.vstack([unit, unit[:1]])
        spline = make_interp_spline(np.arange(source.n + 1), closed, k=degree, bc_type="periodic")
        return spline(positions % source.n)
    start, stop = -source.offset, source.n - source.offset
    knots = np.concatenate([[start] * ends[0], np.arange(source.n, dtype=float), [stop] * ends[1]])
    return make_interp_spline(knots, unit, k=min(degree, knots.size - 1))(positions)


def _spectral(source: Axis, target: Axis, ends: tuple[bool, bool]) -> NDArray[np.float64]:
    if not source.periodic:
        raise InputError(
            f"axis {source.name!r} does not wrap, and 'spectral' would ring at its ends: use 'cubic', with "
            "`boundary` if the end values are known, or, if the field is periodic, a grid with periodic=True"
        )
    modes = np.arange(min(source.n, target.n) // 2 + 1)
    both_signs = np.where((modes == 0) | (2 * modes == source.n), 1.0, 2.0)
    step = 2j * np.pi / source.n
    waves = np.exp(step * np.outer(np.arange(source.n), modes))
    target_waves = np.exp(step * np.outer(source.positions(target), modes))
    return ((target_waves * both_signs) @ waves.conj().T).real / source.n


# The third argument: True for each end at which a known value is appended, which splines use.
_METHODS: dict[str, Callable[[Axis, Axis, tuple[bool, bool]], NDArray[np.float64]]] = {
    "injection": _injection,
    "nearest": _nearest,
    "linear": partial(_spline, degree=1),
    "cubic": partial(_spline, degree=3),
    "spectral": _spectral,
    "mean": lambda source, target, ends: source.averages(*target.bounds.T),
}
METHODS: tuple[str, ...] = tuple(_METHODS)


def _check(field: torch.Tensor, source: Grid, target: Grid) -> None:
    floating = isinstance(field, torch.Tensor) and field.is_floating_point()
    if not floating or tuple(field.shape[-source.n_dim :]) != source.shape:
        raise InputError(
            f"a field of type {type(field).__name__}, dtype {getattr(field, 'dtype', None)} and shape "
            f"{tuple(np.shape(field))}; expected a tensor of a floating dtype and the shape "
            f"(..., {', '.join(map(str, source.shape))}) of the source grid ({source}): "
            "torch.as_tensor(field, dtype=torch.float32), say"
        )
    alike = source.names == target.names and all(
        axis.periodic == goal.periodic
        and np.allclose((axis.start, axis.stop), (goal.start, goal.stop), rtol=0, atol=1e-9 * axis.length)
        for axis, goal in zip(source, target, strict=True)
    )
    if not alike:
        raise InputError(
            f"from ({source}) to ({target}): expected the same axes in the same order, over the same "
            "domains, and periodic in the same directions; only number and registration may change"
        )


def _known_ends(source: Grid, method: str, boundary: Boundary | None) -> list[tuple[End, End]]:
    """Values to append at the two ends of each axis; None for no value."""
    by_axis = ends_by_axis(source, boundary)
    if by_axis and method not in ("linear", "cubic"):
        raise InputError(f"boundary={boundary} with method={method!r}: only 'linear' and 'cubic' can use it")
    known = []
    for axis in source:
        left, right = by_axis.get(axis.name, (None, None))
        start = left if axis.registration == "cell" else None  # a source point at an end counts instead
        known.append((start, right if axis.registration != "node_both" else None))
    return known
