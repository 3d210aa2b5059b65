r"""Multipole attention: near points exactly, far points through coarser levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import torch
from pydantic import SkipValidation
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.grid import Grid, Registration
from mano_op.layers.attention import WindowAttention
from mano_op.layers.checks import Dimensions, Periodic, check_field, check_shape
from mano_op.layers.pyramid import Prolong, Restrict, Sampling, level_shapes
from mano_op.layers.refinement import Points, Refinement, Stages, run
from mano_op.layers.style import OPERATOR, PUBLISHED, SWIN, Style
from mano_op.layers.tokens import on_grid, points_of
from mano_op.layers.windows import Windows
from mano_op.options import Count, Whole, checked


class MultipoleAttention(nn.Module):
    r"""Attention to near points exactly and to far points through coarser levels.

    .. math::

        x_0 &= x, & x_{l+1} &= D_l(x_l), \\
        o_l &= A_l(x_l), & y_{L-1} &= o_{L-1}, \quad y_l = o_l + s_l \odot U_l(y_{l+1}), \quad y = y_0 ,

    with the attention A within windows (`WindowAttention`), the restriction D and the prolongation U
    (`mano_op.layers.pyramid`). On level l a window covers
    :math:`r^l` times more of the domain along each axis, so enough levels see all of it, at a cost linear in
    the number of points N: :math:`O(N\, C\, (C + (w + 2h)^d))`.

    The defaults are the operator's. `MultipoleAttention.published` gives the layer of [1]_,
    `MultipoleAttention.swin` the one that starts from the weights of Swin Transformer V2 [2]_. They differ in
    their `style`, and in their windows:

    ========================== ====================== ========================= ==============================
    argument                   operator               published                 swin
    ========================== ====================== ========================= ==============================
    `halo`, `shift`,           windows side by side,  overlapping windows,      windows side by side without a
    `Style.stride`             each with a halo       results averaged          halo, every other one shifted
    `Style.sampling`           centred stencils       strided convolutions      centred stencils
    `Style.level_weights`      learned                1/(i+1), factorial        learned
    `Style.scores`             dot products           dot products              cosines
    `Style.position_bias`      of the offset          none                      Swin's, of the offset
    `Style.qv_bias`            no                     no                        yes
    `Style.shared_levels`      no                     yes                       yes
    `Style.norms`              1                      2                         0: it comes after
    ========================== ====================== ========================= ==============================

    Parameters
    ----------
    channels : int
        Channels of the input and the output, C.
    n_heads : int
    n_dim : int
        Spatial dimensions, 1 to 3.
    window : int
        Points along each side of a window, w.
    halo : int
        Points beyond each side of a window that its queries see, h.
    shift : int
        How many points later windows start, on every level; at the ends of an axis that leaves parts of
        windows. See `mano_op.layers.windows.axis_windows`.
    rate : int
        How many times fewer points a level has along each axis than the one before, r.
    n_levels : int, optional
        Levels, L. Fewer are used on a grid that runs out of points. None: as many as fit,
        :math:`\lfloor\log_r n\rfloor` for the shortest side n, the published rule; levels then share
        parameters, and their weights are "factorial".
    registration : {"node", "node_both", "cell"}
        Of the grids the layer will see; it decides where stencils are centred.
    periodic : bool or sequence of bool
        Whether windows and stencils see across the ends of each axis.
    reference_shape : sequence of int, optional
        Points along each axis of the grid whose spacing the levels belong to: that of the training. None:
        levels count the points of whatever grid comes in, as published.
    style : Style
        The parts that levels and the steps between them consist of.

    Raises
    ------
    InputError
        If an argument is out of range, or the input has the wrong number of channels or dimensions.

    Notes
    -----
    Resolution: with `reference_shape`, windows and levels are lengths. Level l has the spacing
    :math:`h r^l`, with h that of the reference grid, on whatever grid the input is. An input on a finer grid
    is averaged onto the reference (`mano_op.layers.refinement`) and goes through the levels there, as in
    training. The points of the finer grid are targets: each attends with its own features to the keys of
    level 0 and interpolates the far field. They enter no softmax, so the layer has a limit as grids are
    refined. An input on a coarser grid is interpolated to the reference first.

    Without it, `window`, `halo` and `n_levels` count points of the grid that comes in, so parameters learned
    on one grid mean something else on another one.

    Sizes: any. Where the end of the grid cuts windows or cells, missing keys are masked and missing points
    filled up as `mano_op.layers.pyramid` says; the published rules leave those cases undefined.

    References
    ----------
    .. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.
    .. [2] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883.

    Examples
    --------
    With a single level and a window as large as the grid it is dense attention:

    >>> _ = torch.manual_seed(0)
    >>> layer = MultipoleAttention(8, n_heads=2, window=6, n_levels=1)
    >>> x = torch.randn(1, 8, 5, 6, requires_grad=True)
    >>> layer(x)[0, 0, 0, 0].backward()
    >>> bool((x.grad[0] != 0).any(0).all())
    True
    """

    @checked
    def __init__(
        self,
        channels: Count,
        n_heads: Count,
        *,
        n_dim: Dimensions = 2,
        window: Count = 4,
        halo: Whole = 1,
        shift: Whole = 0,
        rate: Count = 2,
        n_levels: Count | None = 3,
        registration: Registration = "node",
        periodic: Periodic = False,
        reference_shape: SkipValidation[Sequence[int] | None] = None,
        style: Style = OPERATOR,
    ) -> None:
        super().__init__()
        stride = window if style.stride is None else style.stride
        grid = Grid.uniform((2,) * n_dim, registration=registration, periodic=periodic)
        wraps = tuple(axis.periodic for axis in grid)
        own_levels = style.level_weights == "learned" or not style.shared_levels
        for wrong, message in (
            (rate < 2, f"rate={rate}, expected at least 2"),
            (stride > window, f"stride={stride}, expected at most window={window}"),
            (shift >= window, f"shift={shift}, expected less than window={window}"),
            (
                shift and stride != window,
                f"shift={shift} with stride={stride} and window={window}: shifted windows lie side by "
                "side: leave out one of the two",
            ),
            (
                reference_shape is not None and stride != window,
                f"reference_shape={reference_shape} with stride={stride} and window={window}: windows of "
                "anchored levels lie side by side: leave out the stride, or the reference",
            ),
            (
                style.head_dim is None and channels % n_heads,
                f"channels={channels} is not divisible by n_heads={n_heads}: change one of them, or give "
                "the style a head_dim",
            ),
            (
                n_levels is None and own_levels,
                "n_levels=None, but levels have parameters of their own: say how many",
            ),
        ):
            if wrong:
                raise InputError(message)
        self.channels, self.n_dim, self.periodic, self.registration = channels, n_dim, wraps, registration
        self.reference_shape = check_shape(n_dim, registration, reference_shape=reference_shape)
        self.rate, self.n_levels, self.style = rate, n_levels, style
        n_attentions = 1 if style.shared_levels or n_levels is None else n_levels
        n_steps = 1 if n_levels is None else min(n_levels - 1, n_attentions)
        self.attention = nn.ModuleList(
            WindowAttention(
                channels,
                n_heads,
                head_dim=channels // n_heads if style.head_dim is None else style.head_dim,
                n_dim=n_dim,
                window=window,
                style=style,
            )
            for _ in range(n_attentions)
        )
        self._kept: tuple[nn.ModuleList, ...] = ()  # a tuple, so that nothing averages or stacks indices
        self._windows = partial(Windows, window=window, stride=stride, halo=halo, shift=shift, periodic=wraps)
        axes: dict[str, Any] = {"n_dim": n_dim, "registration": registration, "periodic": wraps}
        self.down, self.up = (
            nn.ModuleList(step(channels, rate=rate, sampling=style.sampling, **axes) for _ in range(n_steps))
            for step in (Restrict, Prolong)
        )
        if style.level_weights == "learned" and n_levels is not None:
            self.scale = nn.Parameter(torch.ones(n_levels - 1, channels))
        if self.reference_shape is not None:
            self.windows_of(self.reference_shape)

    @classmethod
    def published(
        cls,
        channels: int,
        n_heads: int,
        *,
        window: int = 2,
        stride: int = 1,
        head_dim: int | None = None,
        n_levels: int | None = None,
        sampling: Sampling = "conv",
        **options: Any,
    ) -> MultipoleAttention:
        """Build the layer as published, arXiv:2507.02748; `options` are ``n_dim`` and ``rate``.

        Examples
        --------
        >>> layer = MultipoleAttention.published(8, n_heads=2)
        >>> [name for name, _ in layer.named_parameters()]
        ['attention.0.norm1.weight', 'attention.0.norm1.bias', 'attention.0.norm2.weight',
         'attention.0.norm2.bias', 'attention.0.qkv.weight', 'attention.0.out.weight',
         'attention.0.out.bias', 'down.0.weight', 'up.0.weight']
        """
        style = replace(PUBLISHED, sampling=sampling, stride=stride, head_dim=head_dim)
        return cls(channels, n_heads, window=window, halo=0, n_levels=n_levels, style=style, **options)

    @classmethod
    def swin(
        cls,
        channels: int,
        n_heads: int,
        *,
        window: int = 8,
        halo: int = 0,
        sampling: Sampling = "stencil",
        **options: Any,
    ) -> MultipoleAttention:
        """Build a layer whose finest level is the attention of Swin Transformer V2, for images.

        `options` are ``shift``, ``n_levels``, ``n_dim`` and ``rate``.

        Examples
        --------
        >>> layer = MultipoleAttention.swin(8, n_heads=2, shift=4)
        >>> [name for name, _ in layer.named_parameters()]
        ['scale', 'attention.0.q_bias', 'attention.0.v_bias', 'attention.0.logit_scale',
         'attention.0.qkv.weight', 'attention.0.out.weight', 'attention.0.out.bias',
         'attention.0.bias.fc1.weight', 'attention.0.bias.fc1.bias', 'attention.0.bias.fc2.weight',
         'down.0.weight', 'up.0.weight']
        """
        style = replace(SWIN, sampling=sampling)
        return cls(channels, n_heads, window=window, halo=halo, registration="cell", style=style, **options)

    def forward(
        self, x: Tensor, points: Points | None = None, *, reference_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape.

        Parameters
        ----------
        x : Tensor
        points : Points, optional
            What `x` has features of, ``(batch, channels, points)``, where it is no grid; for blocks.
        reference_shape : sequence of int, optional
            In the place of the layer's own, for a module that learns it only in training.
        """
        if points is not None:
            return self._attend(x, points)
        check_field(x, self.n_dim, channels=self.channels)
        shape, reference = tuple(x.shape[2:]), reference_shape or self.reference_shape
        if reference is None or shape == tuple(reference):
            return on_grid(self._attend(points_of(x), Points(shape)), shape)
        grid = Grid.uniform(reference, registration=self.registration, periodic=self.periodic)
        stages = Stages([partial(self.forward, reference_shape=reference)])
        return run(x, Refinement(grid, shape), stages, averaged=False)

    def _attend(self, x: Tensor, points: Points) -> Tensor:
        """Map features ``(batch, channels, points)``."""
        windows, finest = self.windows_of(points.reference, x), cast(WindowAttention, self.attention[0])
        near = finest(x, points.attention(finest, cast(Windows, windows[0])))
        near = self._with_idle(near, len(windows))
        if len(windows) == 1:
            return near
        return near + points.far_field(
            self,
            x,
            lambda field: self._far_field(field, windows),
            lambda far, part: far if part is None else part.interpolate(far),
        )

    def _far_field(self, x: Tensor, windows: nn.ModuleList) -> Tensor:
        r"""Return what coarser levels add to a field on the reference, :math:`s_0 \odot U_0(y_1)`."""
        n_levels, factorial = len(windows), self.style.level_weights == "factorial"
        attention, down, up = (
            list(modules) if len(modules) > 1 else [*modules] * n_levels
            for modules in (self.attention, self.down, self.up)
        )
        levels = [x]
        for step in down[: n_levels - 1]:
            levels.append(step(levels[-1]))
        far: Tensor | None = None
        for level in reversed(range(1, n_levels)):
            out = attention[level](levels[level], windows[level])
            out = out if far is None else out + far
            # A copy: torch's module tracker cannot take a view made without gradients.
            weight = 1 / (n_levels - level) if factorial else self.scale[level - 1].clone()
            far = up[level - 1](out, levels[level - 1].shape[2:], weight)
        return cast(Tensor, far)

    def windows_of(self, shape: tuple[int, ...], like: Tensor | None = None) -> nn.ModuleList:
        """Return the windows of the levels of a grid, on a device, kept until another grid comes."""
        device = torch.device("cpu") if like is None else like.device
        for windows in self._kept:
            finest = cast(Windows, windows[0])
            if finest.shape == shape and finest.queries.device == device:
                return windows
        with torch.inference_mode(False):  # tensors of inference could not be used in training later
            levels = level_shapes(shape, self.rate, self.n_levels)
            windows = nn.ModuleList(self._windows(level) for level in levels).to(device)
        if type(like) is Tensor or like is None:  # those of another kind, such as fake ones, are not kept
            self._kept = (windows,)
        return windows

    def _with_idle(self, result: Tensor, n_levels: int) -> Tensor:
        """Add zero times every parameter that `n_levels`, fewer on a small grid, do not use.

        So data-parallel training finds a gradient of each.
        """
        idle = list(self.attention[n_levels:].parameters())  # none where all levels share one attention
        for steps in (self.down, self.up):
            idle += steps[n_levels - 1 :].parameters()
        if self.style.level_weights == "learned" and n_levels == 1:
            idle.append(self.scale)
        return result + sum(parameter.flatten()[:0].sum() for parameter in idle) if idle else result

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Have the windows that are kept where the parameters are moved to."""
        super()._apply(fn, recurse)
        for windows in self._kept:
            self.windows_of(cast(Windows, windows[0]).shape, next(self.parameters()).detach())
        return self

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"{self.channels}, n_dim={self.n_dim}, rate={self.rate}, n_levels={self.n_levels}, {self.style}"
        )
