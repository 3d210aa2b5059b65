r"""Resampling from one grid to another, by linear operators along each axis.

A change of resolution is a pair of grids, never a factor: the positions of points matter as much as their
number.
"""

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

    Along each axis :math:`v_j = \sum_i M_{ji} u_i`, with :math:`x_i` the points of the source,
    :math:`y_j` those of the target, and M of one of these kinds:

    ``injection``
        :math:`v_j = u_i` where :math:`y_j = x_i`. Exact; every target point must be a source point.
        Scales finer than the target's spacing alias.
    ``nearest``
        :math:`v_j = u_i` with :math:`x_i` closest to :math:`y_j`, the left of two equally close ones. For
        piecewise constant coefficients; exact for constants, first order elsewhere.
    ``linear``
        The line through the two source points around :math:`y_j`, or through the outermost two if it lies
        beyond them, as the last target point of a refined ``node`` axis does. Exact for linear fields; second
        order; aliases when it coarsens.
    ``cubic``
        The cubic spline through the source points (not-a-knot; periodic if the axis is). Exact for
        cubics; fourth order; aliases when it coarsens. Three, two or one points on an axis that does
        not wrap give a parabola, a line or a constant.
    ``spectral``
        :math:`M_{ji} = \frac{1}{n} \sum_{|k| \le m/2} c_k \cos(2 \pi k (y_j - x_i) / L)`, with n source
        points, m the smaller of the two numbers of points, L the period and :math:`c_k = 1`: the
        trigonometric interpolant without the modes that the target cannot carry. Exact for
        :math:`|k| < m/2`; periodic axes only. The source cannot tell its Nyquist modes :math:`\pm n/2` apart,
        so each gets half (:math:`c_{\pm n/2} = 1/2`). Those of a coarser target keep :math:`c_{\pm m/2} = 1`:
        a field that is refined and coarsened again returns unchanged.
    ``mean``
        :math:`v_j = \sum_i u_i |\omega_i \cap \Omega_j| / |\Omega_j|`, with :math:`\omega_i`,
        :math:`\Omega_j` the control volumes (`Axis.bounds`). Exact for constants; keeps the integral
        :math:`\sum_i |\omega_i| u_i`. A ``node`` axis coarsened by 2 has the weights 1/4, 1/2, 1/4, one-sided
        at an end. Scales finer than the target's spacing are damped instead of aliased.

    An axis that both grids share keeps its values: axes that need different methods are resampled one after
    the other, through an intermediate grid.

    Parameters
    ----------
    field : Tensor
        Shape ``(..., *source.shape)``, of any floating dtype, on any device. Half precision is
        computed in single.
    source, target : Grid
        Grids with the same names, domain and periodicity.
    method : {"injection", "nearest", "linear", "cubic", "spectral", "mean"}
    boundary : float or dict, optional
        Known values at the ends of axes that do not wrap, for "linear" and "cubic": one number for all of
        them, or by name of the axis a number or a pair ``(at start, at stop)`` with None for an unknown end.
        They are further source points, unless the source has a point at that end, whose value counts. Where
        faces with different values meet, the axis resampled last decides.

    Returns
    -------
    Tensor
        Shape ``(..., *target.shape)``, dtype and device of `field`; differentiable. If the grids are
        equal, `field` itself.

    Raises
    ------
    InputError
        If the field is not on `source`, the grids do not cover the same domain, or the method does
        not fit the axes or the boundary values.

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
    _check_field(field, source)
    _check_grids(source, target)
    if method not in METHODS:
        raise InputError(f"method={method!r} is none of {', '.join(METHODS)}")
    ends = _known_ends(source, method, boundary)
    if source == target:
        return field
    operators = [
        None if here == there else _operator(here, there, method, (left is not None, right is not None))
        for here, there, (left, right) in zip(source, target, ends, strict=True)
    ]
    dtype = field.dtype
    field = field.to(torch.promote_types(dtype, torch.float32))
    for operator, known in zip(operators, ends, strict=True):
        field = field.movedim(-source.n_dim, -1)  # after as many turns as axes, they are in order again
        if operator is not None:
            field = _apply(operator, _append(field, known))
    return field.to(dtype)


def _append(field: torch.Tensor, known: tuple[End, End]) -> torch.Tensor:
    """Append known end values as further points of the last axis."""
    for value, widths in zip(known, ((1, 0), (0, 1)), strict=True):
        if value is not None:
            field = torch.nn.functional.pad(field, widths, value=float(value))
    return field


def _apply(operator: NDArray[np.generic], field: torch.Tensor) -> torch.Tensor:
    """Apply an operator of `_operator` along the last axis."""
    if operator.ndim == 1:
        return field.index_select(-1, torch.tensor(operator, device=field.device))
    return field @ torch.tensor(operator, dtype=field.dtype, device=field.device).T


@lru_cache(maxsize=256)
def _operator(source: Axis, target: Axis, method: str, ends: tuple[bool, bool]) -> NDArray[np.generic]:
    """Matrix of a method, shape ``(target.n, source.n + sum(ends))``.

    If each row selects one point, the indices of those points instead, shape ``(target.n,)``: selection is
    exact in every dtype, and a NaN elsewhere on the line does not spread.
    """
    matrix = _METHODS[method](source, target, ends)
    if np.isin(matrix, (0, 1)).all():
        return matrix.argmax(axis=1)
    return matrix


def nests(source: Grid, target: Grid) -> bool:
    """Whether every point of the target is a point of the source.

    Examples
    --------
    >>> nodes, cells = Grid.uniform((8,)), Grid.uniform((8,), registration="cell")
    >>> nests(nodes, nodes.coarsen(2)), nests(nodes.coarsen(2), nodes), nests(cells, cells.coarsen(2))
    (True, False, False)
    """
    return all(_shared(here, there).all() for here, there in zip(source, target, strict=True))


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
    at, unit = source.positions(target), np.eye(source.n + sum(ends))
    if source.periodic:
        first_again = np.vstack([unit, unit[:1]])
        spline = make_interp_spline(np.arange(source.n + 1), first_again, k=degree, bc_type="periodic")
        return spline(at % source.n)
    knots = np.arange(source.n, dtype=float)
    start, stop = -source.offset, source.n - source.offset
    knots = np.concatenate([[start] * ends[0], knots, [stop] * ends[1]])
    return make_interp_spline(knots, unit, k=min(degree, knots.size - 1))(at)


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
    waves_there = np.exp(step * np.outer(source.positions(target), modes))
    return ((waves_there * both_signs) @ waves.conj().T).real / source.n


def _mean(source: Axis, target: Axis, ends: tuple[bool, bool]) -> NDArray[np.float64]:
    return source.averages(*target.bounds.T)


# The third argument: whether a known value is appended at either end. Splines alone use it.
_METHODS: dict[str, Callable[[Axis, Axis, tuple[bool, bool]], NDArray[np.float64]]] = {
    "injection": _injection,
    "nearest": _nearest,
    "linear": partial(_spline, degree=1),
    "cubic": partial(_spline, degree=3),
    "spectral": _spectral,
    "mean": _mean,
}
METHODS: tuple[str, ...] = tuple(_METHODS)


def _check_field(field: torch.Tensor, source: Grid) -> None:
    if not (isinstance(field, torch.Tensor) and field.is_floating_point()):
        raise InputError(
            f"a field of type {type(field).__name__}, dtype {getattr(field, 'dtype', None)}; expected a "
            "tensor of a floating dtype: torch.as_tensor(field, dtype=torch.float32), say"
        )
    if tuple(field.shape[-source.n_dim :]) != source.shape:
        raise InputError(
            f"a field of shape {tuple(field.shape)} is not on the source grid ({source}): expected "
            f"(..., {', '.join(map(str, source.shape))})"
        )


def _check_grids(source: Grid, target: Grid) -> None:
    alike = source.names == target.names and all(
        here.periodic == there.periodic
        and np.allclose((here.start, here.stop), (there.start, there.stop), rtol=0, atol=1e-9 * here.length)
        for here, there in zip(source, target, strict=True)
    )
    if not alike:
        raise InputError(
            f"from ({source}) to ({target}): expected the same axes in the same order, over the same "
            "domains, and periodic in the same directions; only number and registration may change"
        )


def _known_ends(source: Grid, method: str, boundary: Boundary | None) -> list[tuple[End, End]]:
    """Values to append at the two ends of each axis; None for no value."""
    given = ends_by_axis(source, boundary)
    if given and method not in ("linear", "cubic"):
        raise InputError(f"boundary={boundary} with method={method!r}: only 'linear' and 'cubic' can use it")
    known = []
    for axis in source:
        left, right = given.get(axis.name, (None, None))
        start = left if axis.registration == "cell" else None  # a source point at an end counts instead
        known.append((start, right if axis.registration != "node_both" else None))
    return known
