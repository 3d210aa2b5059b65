r"""Multipole attention in the place of the spectral convolution of neuraloperator's models."""

from __future__ import annotations

import copyreg
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partialmethod
from itertools import pairwise
from typing import Any, Literal, Self, cast

from pydantic import SkipValidation
from torch import Tensor, nn

from mano_op.errors import InputError, check_options, check_whole, is_finite_number
from mano_op.grid import Grid, Registration
from mano_op.layers.checks import Periodic, check_field, check_shape
from mano_op.layers.modes import LowModes
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import covering_levels
from mano_op.layers.reference import Anchored
from mano_op.layers.refinement import Points, Refinement, Stages, run
from mano_op.layers.regrid import regrid
from mano_op.layers.style import OPERATOR
from mano_op.layers.tokens import at_points
from mano_op.options import Count, Whole, checked

_UNFACTORISED = "use FNO in place of TFNO, which passes it; a smaller hidden_channels has fewer parameters"
# Defaults that neuraloperator's blocks pass on for a spectral weight, and what to do instead of others.
# "tucker" is CODALayer's.
_PASSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "max_n_modes": ((None,), "what a point attends to is for window, halo and n_levels to say"),
    "rank": ((1.0,), _UNFACTORISED),
    "factorization": ((None, "tucker"), _UNFACTORISED),
    "implementation": (("factorized",), "there is no weight to factorise"),
    "fixed_rank_modes": ((False,), "there is no weight to factorise"),
    "decomposition_kwargs": ((None, {}), "there is no weight to factorise"),
    "separable": ((False,), "attention weighs points, and all channels of a head alike"),
    "fno_block_precision": (("full",), "use torch.autocast, or convert the model"),
    "complex_data": ((False,), "give the real and the imaginary part as two channels"),
}


class _WithOptions(type):
    """Metaclass of `MultipoleConv`: `origin` is the base and the options of a class of `with_options`."""

    @property
    def origin(cls) -> tuple[type[MultipoleConv], dict[str, Any]] | None:
        return cls.__dict__.get("_origin")

    def __repr__(cls) -> str:
        if cls.origin is None:
            return super().__repr__()
        options = ", ".join(f"{name}={value!r}" for name, value in cls.origin[1].items())
        return f"{cls.__name__}.with_options({options})"


def conv_with_options(base: type[MultipoleConv], options: Mapping[str, Any]) -> type[MultipoleConv]:
    """Return the class of `MultipoleConv.with_options`; its pickle is a call of this function."""
    return base.with_options(**options)


def _reduce(cls: _WithOptions) -> str | tuple[Any, ...]:
    return cls.__qualname__ if cls.origin is None else (conv_with_options, cls.origin)


copyreg.pickle(_WithOptions, _reduce)
# Of equal options one class: a model that was unpickled has the classes of one that was built.
_SUBCLASSES: dict[tuple[type, str], type[MultipoleConv]] = {}


class MultipoleConv(Anchored, nn.Module, metaclass=_WithOptions):
    r"""`MultipoleAttention` with the interface of ``neuralop.layers.SpectralConv``.

    Attention on the grid of the input, then to the grid of the output, then a linear map of the channels:

    .. math::

        v = P\, R\, \mathrm{MA}(L u) + b,

    with multipole attention MA, low modes added if `far_field` says so, the resampling R
    (`mano_op.layers.regrid`) from the grid of u to that of v, and linear maps L, from `in_channels` to
    `hidden_channels`, and P, to `out_channels`. Maps between equal numbers of channels are left out, and R is
    the identity between equal grids.

    Options are given ahead, as ``conv = MultipoleConv.with_options(periodic=True)``:

    ======== ==============================================================================================
    host     how
    ======== ==============================================================================================
    FNO, RNO ``FNO(..., conv_module=conv)``
    CODANO   the same. Give `hidden_channels`: its tokens have `attention_token_dim` channels, 1 if not given
    GINO     ``GINO(..., fno_conv_module=conv)``
    UQNO     ``UQNO(FNO(..., conv_module=conv))``
    UNO      ``UNO(..., operator_block=partial(FNOBlocks, conv_module=conv), integral_operator=conv)``. The
             UNO of neuraloperator 2.0.0 uses the first alone, that of its main branch the second
    TFNO     none: it factorises spectral weights. Use FNO
    ======== ==============================================================================================

    Parameters
    ----------
    in_channels, out_channels : int
    n_modes : int or sequence of int
        A number for each spatial dimension, 1 to 3. With `far_field` "modes", twice the wavenumbers along
        each axis, as hosts count them. Attention alone has none: only their count matters.
    resolution_scaling_factor : float or sequence of float, optional
        How many times finer the output is than the input, one number for all axes or one for each; see
        `transform`.
    max_n_modes, **spectral
        Options of a spectral convolution: rank, factorization, implementation, fixed_rank_modes,
        decomposition_kwargs, separable, fno_block_precision, complex_data. Only the defaults of
        neuraloperator's models are accepted, and not used.

    Other Parameters
    ----------------
    n_heads : int
        Attention heads; divides `hidden_channels`.
    hidden_channels : int, optional
        Width of the attention; `in_channels` if not given. Attention normalises over the channels of a point,
        which leaves nothing of a single one.
    window, halo : int
        See `MultipoleAttention`.
    n_levels : int, optional
        Levels of the pyramid. If not given, 1 beside low modes; without them so many that a window of the
        coarsest covers the reference, or 3 if that is not given either.
    far_field : {"levels", "modes"}
        What is seen beyond windows. "levels": coarser levels of attention. "modes": a linear map of each low
        wavenumber (`mano_op.layers.modes.LowModes`) is added to the attention, and neither normalises
        channels. This is a Fourier layer far and attention near, for fields that are smooth.
    registration : {"node", "node_both", "cell"}
        Where the points of the fields lie; see `mano_op.grid`.
    periodic : bool or sequence of bool
        Whether each axis wraps around.
    reference_shape : sequence of int, optional
        Points along each axis of the grid to whose spacing the levels belong. If not given, it is the first
        grid that this layer sees in training mode, and state dicts have it.

    Raises
    ------
    InputError
        If an argument is out of range, or asks for what attention does not have.

    Notes
    -----
    Order: attention is not linear, so it comes before the resampling, where all of the input is known. Its
    reference then does not depend on the output. P and R commute, since the rows of R add up to 1, and P is
    applied on the coarser of the grids.

    Lengths: a coarser output holds means over volumes, whose size is a length like that of a window. So an
    input that is not on the reference is brought there, restricted as in training, and interpolated from the
    result. A finer output is interpolated from the input's grid.

    Resolution: each layer has a reference of its own, that of the input it sees. A second grid in training is
    refused, unless references are fixed. In hosts with one grid, give `reference_shape`. In others let the
    layers see the grid of the reference first::

        model.train()(x)  # a field on that grid; the output is not needed
        mano_op.fix_references(model)

    The hosts know nothing of references: their lifting sees the finer input as it is, where `MANO` averages
    it first.

    Checkpoints: ``save_checkpoint`` and ``from_checkpoint`` of neuraloperator work. Its
    ``load_training_state`` allows no classes and functions, those of a plain FNO neither; tell torch which
    are to be trusted::

        from mano_op.layers.convolution import MultipoleConv, conv_with_options
        with torch.serialization.safe_globals([MultipoleConv, conv_with_options, torch.nn.functional.gelu]):
            load_training_state(...)

    The "grid" embedding of the hosts places points at i/n, as "node" does. Their incremental training changes
    modes, and needs a spectral convolution.

    Examples
    --------
    >>> import torch
    >>> from neuralop.models import FNO
    >>> conv = MultipoleConv.with_options(n_heads=2, periodic=True)
    >>> model = FNO(n_modes=(8, 8), in_channels=1, out_channels=1, hidden_channels=8, conv_module=conv)
    >>> model(torch.rand(2, 1, 16, 16)).shape
    torch.Size([2, 1, 16, 16])
    >>> model.fno_blocks.convs[0].reference_shape
    (16, 16)
    """

    @checked
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        n_modes: SkipValidation[int | Sequence[int]],
        resolution_scaling_factor: SkipValidation[float | Sequence[float] | None] = None,
        max_n_modes: SkipValidation[int | Sequence[int] | None] = None,
        *,
        n_heads: Count = 4,
        hidden_channels: Count | None = None,
        window: Count = 4,
        halo: Whole = 1,
        n_levels: Count | None = None,
        far_field: Literal["levels", "modes"] = "levels",
        registration: Registration = "node",
        periodic: Periodic = False,
        reference_shape: SkipValidation[Sequence[int] | None] = None,
        **spectral: Any,
    ) -> None:
        super().__init__()
        _refuse_spectral(max_n_modes=max_n_modes, **spectral)
        self.in_channels, self.out_channels = in_channels, out_channels
        self._n_modes = _check_modes(n_modes)
        self.n_dim = n_dim = len(self._n_modes)
        self.resolution_scaling_factor = _check_factor(resolution_scaling_factor, n_dim)
        width = in_channels if hidden_channels is None else hidden_channels
        named = f"{'in' if hidden_channels is None else 'hidden'}_channels={width}"
        by_modes = far_field == "modes"
        if width == 1 and not by_modes:
            raise InputError(
                f"{named}: attention normalises over the channels of a point, and of a single one nothing is "
                "left. Give hidden_channels=8, say"
            )
        if width % n_heads:
            raise InputError(
                f"{named} is not divisible by n_heads={n_heads}: give an n_heads that divides it, or a "
                "hidden_channels that n_heads divides"
            )
        reference = check_shape(n_dim, registration, reference_shape=reference_shape)
        self.lifting = nn.Linear(in_channels, width) if width != in_channels else nn.Identity()
        if n_levels is None:
            n_levels = 1 if by_modes else covering_levels(reference, window)
        self.attention = MultipoleAttention(
            width,
            n_heads,
            n_dim=n_dim,
            window=window,
            halo=halo,
            n_levels=n_levels,
            registration=registration,
            periodic=periodic,
            style=replace(OPERATOR, norms=0) if by_modes else OPERATOR,
        )
        self.modes: LowModes | None = None
        if by_modes:
            halves = [-(-n // 2) for n in self._n_modes]
            space: dict[str, Any] = {"registration": registration, "periodic": self.attention.periodic}
            self.modes = LowModes(width, halves, n_dim=n_dim, **space)
        self.projection = nn.Linear(width, out_channels) if width != out_channels else nn.Identity()
        self.keep_reference(reference, n_dim)

    @classmethod
    def with_options(cls, **options: Any) -> type[Self]:
        """Return the subclass with other defaults, for hosts to build their layers of.

        Equal options, in any number of steps, give the same class. It is pickled as this class and the
        options.

        Parameters
        ----------
        **options
            Those of "Other Parameters". Values are checked when a layer is built.

        Raises
        ------
        InputError
            If there is no such option.

        Examples
        --------
        >>> conv = MultipoleConv.with_options(n_heads=4, periodic=True)
        >>> conv
        MultipoleConv.with_options(n_heads=4, periodic=True)
        >>> conv.with_options(n_heads=2) is MultipoleConv.with_options(n_heads=2, periodic=True)
        True
        >>> conv(8, 8, n_modes=(4, 4), n_heads=2).attention.attention[0].n_heads
        2
        >>> MultipoleConv.with_options(n_head=2)
        Traceback (most recent call last):
        ...
        mano_op.errors.InputError: MultipoleConv has no option 'n_head'; it has n_heads, hidden_channels,
        window, halo, n_levels, far_field, registration, periodic, reference_shape; did you mean 'n_heads'?
        """
        base, earlier = cls.origin or (cls, {})
        known = [
            name
            for name, parameter in inspect.signature(base).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in _PASSED
        ]
        check_options(base.__name__, options, known)
        merged = {**earlier, **options}
        ordered = {name: _frozen(merged[name]) for name in known if name in merged}
        if not ordered:
            return cast(type[Self], base)
        key = base, repr(ordered)  # as text, in which True is not 1
        if key not in _SUBCLASSES:
            content = {
                "__init__": partialmethod(base.__init__, **ordered),
                "__doc__": base.__doc__,
                "__module__": base.__module__,
                "__qualname__": base.__qualname__,
                "_origin": (base, ordered),
            }
            _SUBCLASSES[key] = cast(type[MultipoleConv], _WithOptions(base.__name__, (base,), content))
        return cast(type[Self], _SUBCLASSES[key])

    def forward(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *output grid)``.

        Parameters
        ----------
        x : Tensor
        output_shape : sequence of int, optional
            Points along each axis of the output; what `resolution_scaling_factor` says if not given.
        """
        check_field(x, self.n_dim, in_channels=self.in_channels)
        path = self._path(x, output_shape)
        out = self._mixed(at_points(self.lifting, x), path[0])
        if math.prod(path[-1].shape) < math.prod(path[0].shape):
            return at_points(self.projection, _along(path, out))
        return _along(path, at_points(self.projection, out))

    def _mixed(self, x: Tensor, grid: Grid) -> Tensor:
        """Attention, and low modes, of a field on a grid."""
        reference = self.reference_for(grid.shape)
        if self.modes is None:
            return cast(Tensor, self.attention(x, reference_shape=reference))
        attention = self.attention
        anchors = Grid.uniform(reference, registration=attention.registration, periodic=attention.periodic)
        place = Refinement(anchors, grid.shape)
        return run(x, place, Stages([self._near_and_far]), averaged=False)

    def _near_and_far(self, x: Tensor, points: Points | None = None) -> Tensor:
        assert self.modes is not None
        return cast(Tensor, self.attention(x, points) + self.modes(x, points))

    def transform(self, x: Tensor, output_shape: Sequence[int] | None = None) -> Tensor:
        r"""Resample a field as `forward` does: ``(batch, any channels, *grid)`` to the grid of its output.

        An axis is :math:`r_i` times finer there, `resolution_scaling_factor`: it has :math:`r_i` times as
        many intervals, rounded, of which an axis with both its ends has one fewer than points, or as many
        points as `output_shape` says.
        """
        return _along(self._path(x, output_shape), x)

    @property
    def n_modes(self) -> list[int]:
        """The numbers last set, on which low modes alone depend."""
        return list(self._n_modes)

    @n_modes.setter
    def n_modes(self, n_modes: int | Sequence[int]) -> None:
        modes = _check_modes(n_modes, (self.n_dim,))
        if self.modes is not None and modes != self._n_modes:
            raise InputError(
                f"n_modes={n_modes!r} of a layer that has weights of {list(self._n_modes)}: build another, "
                "or leave the modes as they are; incremental training needs a spectral convolution"
            )
        self._n_modes = modes

    def _path(self, x: Tensor, output_shape: Sequence[int] | None) -> list[Grid]:
        """The grids from the input's to the output's, which go by the reference where that is coarser."""
        registration, periodic = self.attention.registration, self.attention.periodic
        ends = 1 if registration == "node_both" else 0
        shape = tuple(x.shape[2:])
        reference = self.reference_for(shape)
        target = check_shape(self.n_dim, registration, "the output", output_shape=output_shape)
        if target is None:
            factors = self.resolution_scaling_factor or (1.0,) * self.n_dim
            target = _scaled(shape, factors, ends)
        else:
            factors = tuple((m - ends) / max(n - ends, 1) for n, m in zip(shape, target, strict=True))
        shapes = [shape, target]
        if shape != reference:
            axes = zip(shape, target, reference, _scaled(reference, factors, ends), strict=True)
            steps = [(r, scaled) if m < n else (n, m) for n, m, r, scaled in axes]
            shapes[1:1] = zip(*steps, strict=True)
        return [Grid.uniform(n, registration=registration, periodic=periodic) for n in shapes]

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"{self.in_channels}, {self.out_channels}, "
            f"resolution_scaling_factor={self.resolution_scaling_factor}, "
            f"reference_shape={self.reference_shape}"
        )


def _frozen(value: Any) -> Any:
    """A value with tuples in place of lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _along(path: Sequence[Grid], x: Tensor) -> Tensor:
    """A field on the first of some grids, brought from each to the next."""
    for source, target in pairwise(path):
        x = regrid(x, source, target)
    return x


def _scaled(shape: Sequence[int], factors: Sequence[float], ends: int) -> tuple[int, ...]:
    """The shape with `factors` times the intervals, at least one; an axis with both ends has a point more."""
    return tuple(max(round((n - ends) * r), 1) + ends for n, r in zip(shape, factors, strict=True))


def _refuse_spectral(**options: Any) -> None:
    for name, value in options.items():
        if name not in _PASSED:
            raise TypeError(f"MultipoleConv() got an unexpected keyword argument {name!r}")
        passed, remedy = _PASSED[name]
        if not any(value == default for default in passed):
            raise InputError(
                f"{name}={value!r} is for a spectral convolution, and MultipoleConv has none: expected "
                f"{' or '.join(map(repr, passed))}, so leave it out. Instead: {remedy}"
            )


def _check_modes(n_modes: Any, counts: Sequence[int] = (1, 2, 3)) -> tuple[int, ...]:
    modes = n_modes if isinstance(n_modes, Sequence) else [n_modes]
    if isinstance(n_modes, str) or len(modes) not in counts:
        expected = " or ".join(map(str, counts))
        raise InputError(f"n_modes={n_modes!r}, expected {expected} whole numbers: one for each dimension")
    check_whole(**{f"n_modes[{i}]": n for i, n in enumerate(modes)})
    return tuple(int(n) for n in modes)


def _check_factor(factor: Any, n_dim: int) -> tuple[float, ...] | None:
    if factor is None:
        return None
    factors = factor if isinstance(factor, Sequence) else [factor] * n_dim
    if len(factors) != n_dim or not all(is_finite_number(r) and r > 0 for r in factors):
        raise InputError(
            f"resolution_scaling_factor={factor!r}, expected a positive number, or one for each of {n_dim} "
            "dimensions: 0.5 for half as many points along an axis"
        )
    return tuple(float(r) for r in factors)
