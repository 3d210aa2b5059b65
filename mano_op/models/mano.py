"""MANO, the Multipole Attention Neural Operator, ``"mano"`` in neuraloperator's registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import SkipValidation, StrictBool
from torch import Tensor, nn

from mano_op.errors import InputError, is_finite_number
from mano_op.grid import Grid, Registration
from mano_op.layers.checks import Dimensions, Periodic, check_shape
from mano_op.layers.modes import LowModes
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import covering_levels
from mano_op.layers.reference import Anchored
from mano_op.layers.refinement import Refinement, Stages, run, run_by_parts
from mano_op.layers.style import OPERATOR
from mano_op.models.block import NonLinearity
from mano_op.models.coordinates import coordinate_channels, grid_points, with_coordinates
from mano_op.models.grid_model import GridModel, Network
from mano_op.models.walls import Walls
from mano_op.options import Count, Whole, checked, with_fields_of

# Points of a finer grid, of all samples, that are mapped at a time where no gradient is recorded: on a CPU so
# few that they stay in its cache, elsewhere so many that starting operations takes no time.
_TILE = 2**14
_TILE_ELSEWHERE = 2**20
# Window, halo and modes by dimension: of all measured, the least error after equal seconds of training.
_DEFAULTS = {1: (8, 4, 16), 2: (4, 1, 8), 3: (4, 0, 4)}


class MANO(GridModel, Anchored, name="MANO"):  # type: ignore[misc]
    r"""Multipole Attention Neural Operator: a map from fields to fields on a uniform grid.

    Lift the channels of each point, apply blocks of a mixing of points M and a pointwise MLP, project:

    .. math::

        z = P\,[a; x], \qquad
        z \leftarrow z + M_l(z),\quad z \leftarrow z + \mathrm{MLP}_l(z)
        \quad (l = 1 \dots n_{layers}), \qquad
        u = Q(z) .

    By turns M is the far field, by low wavenumbers of the domain (`mano_op.layers.modes.LowModes`), and the
    near field, by attention in windows (`mano_op.layers.multipole.MultipoleAttention`). With ``n_modes=0``
    all blocks have multipole attention, whose coarser levels are the far field. Either way the cost is linear
    in the number of points. The model takes the place of ``neuralop.models.FNO``: the same training code
    works with either. Its windows and levels are lengths. They belong to the grid that is trained on, the
    reference, and on any other grid every weight acts over the length that it was trained for.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and the output fields.
    hidden_channels : int
        Width of the network.
    n_layers : int
        Number of blocks.
    n_heads : int
        Attention heads; divides `hidden_channels`.
    n_dim : int
        Spatial dimensions, 1 to 3.

    Other Parameters
    ----------------
    reference_shape : sequence of int, optional
        Points along each axis of the grid that the model is trained on, to whose spacing its levels belong.
        If not given, it is the first grid that comes in training mode; it is kept with the parameters. Give
        it where several resolutions are mixed in training: a second grid is refused there otherwise, see
        `mano_op.fix_references`.
    window : int, optional
        Points of the reference along each side of an attention window, on every level: 8 in one dimension, 4
        in two and three.
    halo : int, optional
        Points beyond a window that its queries see too: 4, 1 and 0.
    n_levels : int, optional
        Levels of the pyramid, the reference's own included; each has half as many points a side as the one
        before. If not given, 1 beside low modes; without them so many that a window of the coarsest covers
        the reference, or 3 if that is not given either.
    n_modes : int, optional
        Low wavenumbers along each axis of every second block, from the first on: 16, 8 and 4 in one, two and
        three dimensions. 0 for multipole attention in every block.
    norm : bool
        Whether attention, MLPs and the projection normalise the channels of each point first. An amplitude is
        physics, so by default none does.
    residual : bool
        Whether the first channels of the input, as many as the output has, are added to the output: for steps
        in time. On a finer grid they are added as they are, while the network sees averages.
    boundary_values : sequence of float or None, optional
        For each output channel the value it is known to have at all ends of axes that do not wrap, None where
        it is not known. In what the model works with: after normalisation. The model then has it exactly, and
        goes to it over two spacings of the reference (`mano_op.models.walls`).
    restriction : {"average", "sample"}
        How an input on a finer grid comes to the points of the reference: averaged over the length that each
        stands for, which suits rough coefficients; or sampled, which suits states in time: a step is the
        identity and a little more, and averages lose the identity.
    channel_mlp_expansion : float
        Hidden width of the blocks' MLP over `hidden_channels`.
    projection_channel_ratio : float
        Hidden width of the projection Q over `hidden_channels`.
    non_linearity : {"gelu", "relu", "silu", "tanh"}
        Of the MLPs and the projection.
    positional_embedding : {"grid", None}
        "grid" appends the coordinates of the points, scaled to [0, 1], to the input's channels; on a
        periodic axis their sine and cosine. Give None where a law is the same everywhere on a periodic
        domain, as Burgers' equation is: coordinates then only help to overfit.
    registration : {"node", "node_both", "cell"}
        Where the points of your fields lie; see `mano_op.grid`. neuraloperator's Darcy data is "node".
    periodic : bool or sequence of bool
        Whether each axis wraps around.

    Notes
    -----
    An input on a finer grid than the reference is averaged over the length that one point stood for in
    training, or sampled (`restriction`): at the points of the reference, where the network runs as in
    training, and at its own points, which attend to the reference's in every block and end as the output
    (`mano_op.layers.refinement`). As the grid is refined, the output tends to a limit. Beside low modes or
    with known boundary values, the output within three spacings of a wall is the reference's, interpolated.

    An input on a coarser grid is interpolated linearly to the reference, and the output taken at its points.
    `mano_op.transfer.evaluate_transfer` judges all of this.

    Where no gradient is recorded, the points of a finer grid are mapped some thousand at a time, on a GPU a
    million: what is held beside input and output does not grow with their number.

    Every option is a plain value, so a checkpoint holds no code.

    References
    ----------
    .. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.

    Examples
    --------
    >>> import torch
    >>> from mano_op import MANO
    >>> model = MANO(in_channels=1, out_channels=1, hidden_channels=16, n_layers=2, n_heads=2)
    >>> model(torch.rand(4, 1, 16, 16)).shape
    torch.Size([4, 1, 16, 16])
    """

    _version = "4"  # type: ignore[assignment]

    @with_fields_of(Network)
    @checked
    def __init__(
        self,
        in_channels: Count,
        out_channels: Count,
        *,
        n_heads: Count = 4,
        n_dim: Dimensions = 2,
        reference_shape: SkipValidation[Sequence[int] | None] = None,
        window: Count | None = None,
        halo: Whole | None = None,
        n_levels: Count | None = None,
        n_modes: Whole | None = None,
        norm: StrictBool = False,
        residual: StrictBool = False,
        non_linearity: NonLinearity = "gelu",
        positional_embedding: Literal["grid", None] = "grid",
        boundary_values: SkipValidation[Sequence[float | None] | None] = None,
        restriction: Literal["average", "sample"] = "average",
        registration: Registration = "node",
        periodic: Periodic = False,
        **network: Any,
    ) -> None:
        super().__init__()
        parts = Network(**network)
        hidden = parts.hidden_channels
        self.in_channels, self.out_channels, self.n_dim = in_channels, out_channels, n_dim
        self.registration, self.positional_embedding = registration, positional_embedding
        reference = check_shape(n_dim, registration, reference_shape=reference_shape)
        axes = Grid.uniform((2,) * n_dim, registration=registration, periodic=periodic)
        self.periodic = tuple(axis.periodic for axis in axes)
        space: dict[str, Any] = {"n_dim": n_dim, "registration": registration, "periodic": self.periodic}
        window, halo, n_modes = (
            default if given is None else given
            for given, default in zip((window, halo, n_modes), _DEFAULTS[n_dim], strict=True)
        )
        if n_levels is None:
            n_levels = 1 if n_modes else covering_levels(reference, window)
        style = OPERATOR if norm else replace(OPERATOR, norms=0)

        def mixing(i: int) -> MultipoleAttention | LowModes:
            if n_modes and i % 2 == 0:
                return LowModes(hidden, n_modes, **space)
            levels: dict[str, Any] = {"window": window, "halo": halo, "n_levels": n_levels, "style": style}
            return MultipoleAttention(hidden, n_heads, **levels, **space)

        blocks = parts.blocks(mixing, non_linearity, norm=norm)
        self.boundary_values, self.restriction = self._check_boundary(boundary_values), restriction
        self._walls = Walls(self.boundary_values or [None] * out_channels, strips=n_modes > 0)
        self.residual = residual
        if residual and (out_channels > in_channels or boundary_values is not None):
            raise InputError(
                f"residual=True with in_channels={in_channels}, out_channels={out_channels} and "
                f"boundary_values={boundary_values}: expected an input for each output, and no known values; "
                "leave it out"
            )
        self.keep_reference(reference, n_dim)
        if reference is not None:  # so that what compiles the model finds them
            for attention in blocks.modules():
                if isinstance(attention, MultipoleAttention):
                    attention.windows_of(reference)
        n_coordinates = n_dim + sum(self.periodic) if positional_embedding == "grid" else 0
        self.lifting = nn.Linear(in_channels + n_coordinates, hidden)
        self.blocks, self.norm = blocks, nn.LayerNorm(hidden) if norm else nn.Identity()
        self.projection = parts.projection(out_channels, non_linearity)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``.

        neuraloperator's Trainer passes every entry of a sample, ``y`` too; the others are not used.
        """
        self._check_input(x)
        out = self._network(x)
        return out + x[:, : self.out_channels] if self.residual else out

    def _network(self, x: Tensor) -> Tensor:
        shape = tuple(x.shape[2:])
        reference = self.reference_for(shape)
        grid = Grid.uniform(reference, registration=self.registration, periodic=self.periodic)
        if not torch.compiler.is_exporting() and shape == reference:
            points = self._points(shape)
            return self._walls.bound(self._map(self._located(x, points)), points, grid)
        place, stages = Refinement(grid, shape, sampled=self.restriction == "sample"), self._stages(grid)
        # Where gradients keep the features of all points anyway they are mapped at once.
        if not place.refines or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return run(x, place, stages)
        most = (_TILE if x.device.type == "cpu" else _TILE_ELSEWHERE) // max(1, len(x))
        out: Tensor | None = None
        for index, part in run_by_parts(x, place, stages, most):
            if out is None:
                out = part.new_empty(*part.shape[:2], *shape)
            out[:, :, *_crossed(index, shape)] = part
        assert out is not None  # a grid has at least one part
        return out

    def _stages(self, reference: Grid) -> Stages:
        """Lifting, blocks and projection of a field and the coordinates of its axes."""

        def lift(x: Tensor, points: Sequence[Tensor]) -> Tensor:
            return self._lift(self._located(x, points))

        def head(x: Tensor, points: Sequence[Tensor]) -> Tensor:
            return self._walls.bound(self._project(x), points, reference)

        return Stages(list(self.blocks), lift, head, self._walls.interpolate)

    def _located(self, x: Tensor, points: Sequence[Tensor]) -> Tensor:
        """Append coordinates to the input, given those of each axis."""
        return x if self.positional_embedding is None else with_coordinates(x, points, self.periodic)

    def _check_boundary(self, values: Sequence[float | None] | None) -> tuple[float | None, ...] | None:
        if values is None:
            return None
        listed = isinstance(values, Sequence) and not isinstance(values, str)
        numbers = [value for value in values if value is not None] if listed else [None]
        if not all(map(is_finite_number, numbers)) or len(values) != self.out_channels:
            raise InputError(
                f"boundary_values={values!r}, expected for each of out_channels={self.out_channels} a finite "
                "number, or None where it is not known"
            )
        if not numbers:
            return None
        if all(self.periodic):
            raise InputError(
                f"boundary_values={values!r} with periodic={self.periodic}: no axis has ends; leave them out"
            )
        return tuple(values)

    def coordinates(self, shape: Sequence[int]) -> Tensor:
        """Return the channels that "grid" appends, ``(n_coordinates, *shape)``."""
        return coordinate_channels(self._points(shape), self.periodic)

    def _points(self, shape: Sequence[int]) -> list[Tensor]:
        """The coordinates of each axis of a grid."""
        return grid_points(shape, self.registration, self._parameter.device)


def _crossed(index: Sequence[slice | Tensor], shape: Sequence[int]) -> Sequence[slice | Tensor]:
    """The index of a box of a grid, given that of each axis."""
    if all(isinstance(of_axis, slice) for of_axis in index):
        return index
    places = [torch.arange(n, device="cpu")[of_axis] for n, of_axis in zip(shape, index, strict=True)]
    return torch.meshgrid(*places, indexing="ij")
