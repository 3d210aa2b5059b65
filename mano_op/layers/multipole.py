r"""Multipole attention: near points exactly, far points through coarser levels."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Registration
from mano_op.layers.anchors import Anchoring, Tile, anchoring
from mano_op.layers.attention import Bias, Remembered, WindowAttention
from mano_op.layers.eager import on_cpu_eagerly
from mano_op.layers.pyramid import SAMPLINGS, Prolong, Restrict, Sampling, level_shapes
from mano_op.layers.scores import Scores

LevelWeights = Literal["learned", "factorial"]


class Sources(NamedTuple):
    """All that the points of a reference grid have in a layer for points between them.

    Attributes
    ----------
    keys, values : Tensor, ``(batch, heads, *reference, head_dim)``
        Of the finest level.
    coarse : Tensor, optional, ``(batch, channels, *reference)``
        What coarser levels add; None if there are none.
    """

    keys: Tensor
    values: Tensor
    coarse: Tensor | None


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
    `MultipoleAttention.swin` the one that starts from the weights of Swin Transformer V2 [2]_, and
    what differs between them are these arguments:

    ======================= ======================= =========================== ===========================
    argument                operator                published                   swin
    ======================= ======================= =========================== ===========================
    `halo`, `stride`        windows side by side,   overlapping windows,        windows side by side, which
    and `shift`             each sees its           results averaged            end where they end, and are
                            neighbours' keys                                    shifted in every other block
    `sampling`              stencils centred on     strided convolutions over   stencils
                            the points              cells, "conv"
    `level_weights`         learned, for each       1/(i+1) at the i-th step    learned
                            channel                 up: factorial damping
    `scores`                dot products            dot products                cosines, a factor each head
    `position_bias`         of the offset           none                        Swin's, of the offset
    `qv_bias`               none                    none                        of queries and values
    `shared_levels`         each level its own      one A, D and U for all      one A, D and U for all
    `norm`, `double_norm`   one LayerNorm first     two, one after the other    none: it comes after
    ======================= ======================= =========================== ===========================

    Parameters
    ----------
    channels : int
        Channels of the input and the output, C.
    n_heads : int
    n_dim : int
        Spatial dimensions, 1 to 3.
    head_dim : int, optional
        Channels of a head; ``channels // n_heads`` if not given.
    window : int
        Points along each side of a window, w.
    stride : int, optional
        Points from one window to the next, s; `window` if not given.
    halo : int
        Points beyond each side of a window that its queries see, h.
    shift : int
        How many points later windows start, on every level; at the ends of an axis that leaves parts of
        windows. See `mano_op.layers.window.window_attention`.
    rate : int
        How many times fewer points a level has along each axis than the one before, r.
    n_levels : int, optional
        Levels, L. Fewer are used on a grid that runs out of points. None: as many as fit,
        :math:`\lfloor\log_r n\rfloor` for the shortest side n, the published rule.
    sampling : {"stencil", "conv", "avg_pool"}
        The restriction and prolongation; see `mano_op.layers.pyramid`.
    level_weights : {"learned", "factorial"}
        The factors :math:`s_l`, one for each channel or the published ones. "learned" needs `n_levels`.
    scores : {"dot", "cosine"}
        What compares a query with a key: :math:`q \cdot k / \sqrt{d_h}`, or the cosine of the angle between
        them, times a learned factor of each head, which is at most 100.
    position_bias : bool or "swin"
        Whether scores depend on the offset from query to key; see `PositionBias`, and `SwinPositionBias`.
    qv_bias : bool
        Whether the maps to queries and values add a constant.
    shared_levels : bool
        Whether all levels use the same parameters of A, D and U. False needs `n_levels`.
    norm, double_norm : bool
        Whether a LayerNorm comes first, and whether a second one follows it.
    registration : {"node", "node_both", "cell"}
        Of the grids the layer will see; it decides where stencils are centred.
    periodic : bool or sequence of bool
        Whether windows and stencils see across the ends of each axis.
    reference_shape : sequence of int, optional
        Points along each axis of the grid whose spacing the levels belong to: that of the training. None:
        levels count the points of whatever grid comes in, as published.

    Raises
    ------
    InputError
        If an argument is out of range, or the input has the wrong number of channels or dimensions.

    Notes
    -----
    Resolution: with `reference_shape`, windows and levels are lengths. Level l has the spacing
    :math:`h r^l`, with h that of the reference grid, on whatever grid the input is. An input on a finer grid
    is averaged onto the reference (`mano_op.layers.anchors`) and goes through the levels there, as in
    training; the points of the finer grid are further queries, each with its own features, of the keys of
    level 0, and take what the coarser levels add by interpolation. Their number does not enter any softmax.
    An input on a coarser grid is interpolated to the reference first. So on the reference grid the layer is
    what was trained, and on finer ones it has a limit.

    Without it, `window`, `halo` and `n_levels` count points of the grid that comes in. On a grid twice as
    fine the near field is then half as wide, and so is the domain that the coarsest level sees: parameters
    learned on one grid mean something else on another one.

    Sizes: any. Where windows or cells are cut by the end of the grid, missing keys are masked and missing
    points filled up as `mano_op.layers.pyramid` says; the published rules leave those cases undefined.

    References
    ----------
    .. [1] Colagrande et al. (2025), Linear Attention with Global Context: A Multipole Attention
       Mechanism for Vision and Physics, arXiv:2507.02748.
    .. [2] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883.

    Examples
    --------
    With a single level and a window as large as the grid it is plain attention, in which every point
    takes part in every other point's result:

    >>> _ = torch.manual_seed(0)
    >>> layer = MultipoleAttention(8, n_heads=2, window=6, n_levels=1)
    >>> x = torch.randn(1, 8, 5, 6, requires_grad=True)
    >>> layer(x)[0, 0, 0, 0].backward()
    >>> bool((x.grad[0] != 0).any(0).all())
    True
    """

    def __init__(
        self,
        channels: int,
        n_heads: int,
        *,
        n_dim: int = 2,
        head_dim: int | None = None,
        window: int = 4,
        stride: int | None = None,
        halo: int = 1,
        shift: int = 0,
        rate: int = 2,
        n_levels: int | None = 3,
        sampling: Sampling = "stencil",
        level_weights: LevelWeights = "learned",
        scores: Scores = "dot",
        position_bias: bool | Bias = True,
        qv_bias: bool = False,
        shared_levels: bool = False,
        norm: bool = True,
        double_norm: bool = False,
        registration: Registration = "node",
        periodic: bool | Sequence[bool] = False,
        reference_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, given, fewest, most in (
            ("channels", channels, 1, None),
            ("n_heads", n_heads, 1, None),
            ("n_dim", n_dim, 1, 3),
            ("head_dim", head_dim, 1, None),
            ("window", window, 1, None),
            ("stride", stride, 1, window if isinstance(window, Integral) else None),
            ("halo", halo, 0, None),
            ("shift", shift, 0, window - 1 if isinstance(window, Integral) else None),
            ("rate", rate, 2, None),
            ("n_levels", n_levels, 1, None),
        ):
            if given is None and name in ("head_dim", "stride", "n_levels"):
                continue
            whole = isinstance(given, Integral) and not isinstance(given, bool)
            if not whole or given < fewest or (most is not None and given > most):  # type: ignore[operator]
                upper = "" if most is None else f" and at most {most}"
                raise InputError(f"{name}={given!r}, expected a whole number, at least {fewest}{upper}")
        for name, word, words in (
            ("sampling", sampling, SAMPLINGS),
            ("level_weights", level_weights, get_args(LevelWeights)),
            ("scores", scores, get_args(Scores)),
            ("registration", registration, REGISTRATIONS),
        ):
            if word not in words:
                raise InputError(f"{name}={word!r}, expected one of {', '.join(words)}")
        for name, flag, other in (
            ("position_bias", position_bias, ", or 'swin'"),
            ("qv_bias", qv_bias, ""),
            ("shared_levels", shared_levels, ""),
            ("norm", norm, ""),
            ("double_norm", double_norm, ""),
        ):
            if not isinstance(flag, bool) and not (other and flag in get_args(Bias)):
                raise InputError(f"{name}={flag!r}, expected True or False{other}")
        if double_norm and not norm:
            raise InputError("double_norm=True with norm=False: there is no first one; leave out one of them")
        stride = window if stride is None else stride
        if head_dim is None:
            if channels % n_heads:
                raise InputError(
                    f"channels={channels} is not divisible by n_heads={n_heads}: change one of them, "
                    "or give head_dim"
                )
            head_dim = channels // n_heads
        if n_levels is None and (level_weights == "learned" or not shared_levels):
            raise InputError(
                "n_levels=None, but each level has parameters of its own, so n_levels cannot be None: give "
                "their number"
            )
        wraps = (periodic,) * n_dim if isinstance(periodic, bool) else _wraps(periodic)
        if len(wraps) != n_dim:
            raise InputError(f"periodic={periodic} has {len(wraps)} entries, expected n_dim={n_dim}")
        if registration == "node_both" and any(wraps):
            raise InputError(
                f"periodic={periodic} with registration='node_both': the first and the last point of an axis "
                "that wraps are the same place, so drop the last one and use registration='node'"
            )

        if shift and stride != window:
            raise InputError(
                f"shift={shift} with stride={stride} and window={window}: windows that are shifted lie side "
                "by side: leave out one of the two"
            )
        if reference_shape is not None and stride != window:
            raise InputError(
                f"reference_shape={reference_shape} with stride={stride} and window={window}: windows of "
                "anchored levels lie side by side: leave out the stride, or the reference"
            )
        self.channels, self.n_dim, self.periodic, self.registration = channels, n_dim, wraps, registration
        self.reference_shape = check_reference(reference_shape, n_dim, registration)
        self.rate, self.n_levels, self.sampling, self.level_weights = rate, n_levels, sampling, level_weights
        self.attention = nn.ModuleList(
            WindowAttention(
                channels,
                n_heads,
                head_dim=head_dim,
                n_dim=n_dim,
                window=window,
                stride=stride,
                halo=halo,
                periodic=wraps,
                shift=shift,
                scores=scores,
                position_bias=position_bias,
                qv_bias=qv_bias,
                norm=norm,
                double_norm=double_norm,
            )
            for _ in range(1 if shared_levels or n_levels is None else n_levels)
        )
        self.down, self.up = (
            nn.ModuleList(
                step(
                    channels,
                    n_dim=n_dim,
                    rate=rate,
                    sampling=sampling,
                    registration=registration,
                    periodic=wraps,
                )
                for _ in range(1 if n_levels is None else min(n_levels - 1, 1 if shared_levels else n_levels))
            )
            for step in (Restrict, Prolong)
        )
        if level_weights == "learned" and n_levels is not None:
            self.scale = nn.Parameter(torch.ones(n_levels - 1, channels))

    @classmethod
    def published(
        cls,
        channels: int,
        n_heads: int,
        *,
        n_dim: int = 2,
        head_dim: int | None = None,
        window: int = 2,
        stride: int = 1,
        rate: int = 2,
        n_levels: int | None = None,
        sampling: Sampling = "conv",
    ) -> MultipoleAttention:
        """The layer as published, arXiv:2507.02748; the arguments are the class's.

        Examples
        --------
        >>> layer = MultipoleAttention.published(8, n_heads=2)
        >>> [name for name, _ in layer.named_parameters()]
        ['attention.0.norm1.weight', 'attention.0.norm1.bias', 'attention.0.norm2.weight',
         'attention.0.norm2.bias', 'attention.0.qkv.weight', 'attention.0.out.weight',
         'attention.0.out.bias', 'down.0.weight', 'up.0.weight']
        """
        return cls(
            channels,
            n_heads,
            n_dim=n_dim,
            head_dim=head_dim,
            window=window,
            stride=stride,
            halo=0,
            rate=rate,
            n_levels=n_levels,
            sampling=sampling,
            level_weights="factorial",
            position_bias=False,
            shared_levels=True,
            double_norm=True,
        )

    @classmethod
    def swin(
        cls,
        channels: int,
        n_heads: int,
        *,
        window: int = 8,
        halo: int = 0,
        shift: int = 0,
        n_levels: int = 3,
        n_dim: int = 2,
        rate: int = 2,
        sampling: Sampling = "stencil",
    ) -> MultipoleAttention:
        """The layer whose only level, or finest one, is the attention of Swin Transformer V2; for images.

        Examples
        --------
        >>> layer = MultipoleAttention.swin(8, n_heads=2, shift=4)
        >>> [name for name, _ in layer.named_parameters()]
        ['scale', 'attention.0.q_bias', 'attention.0.v_bias', 'attention.0.logit_scale',
         'attention.0.qkv.weight', 'attention.0.out.weight', 'attention.0.out.bias',
         'attention.0.bias.fc1.weight', 'attention.0.bias.fc1.bias', 'attention.0.bias.fc2.weight',
         'down.0.weight', 'up.0.weight']
        """
        return cls(
            channels,
            n_heads,
            n_dim=n_dim,
            window=window,
            halo=halo,
            shift=shift,
            rate=rate,
            n_levels=n_levels,
            sampling=sampling,
            scores="cosine",
            position_bias="swin",
            qv_bias=True,
            shared_levels=True,
            norm=False,
            registration="cell",
        )

    def forward(self, x: Tensor, reference_shape: Sequence[int] | None = None) -> Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape.

        `reference_shape` stands for that of the layer, for a module that learns it only in training.
        """
        if x.ndim != self.n_dim + 2 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise InputError(
                f"got an input of shape {tuple(x.shape)}, expected (batch, channels={self.channels}, "
                f"{', '.join(f'n_{i + 1}' for i in range(self.n_dim))}), each n at least 1"
            )
        place = self.anchoring(x.shape[2:], reference_shape)
        if place is None:
            return self.on_reference(x)[0]
        x = place.lift(x)
        anchors = place.anchors(x)
        out, coarse = self.on_reference(anchors)
        if place.refines:
            out = self.between(x, self.sources(anchors, coarse), place.whole)
        return place.settle(out)

    def anchoring(
        self, shape: Sequence[int], reference_shape: Sequence[int] | None = None
    ) -> Anchoring | None:
        """How a grid of some shape lies in the reference grid; None if it is that, or there is none."""
        reference = self.reference_shape if reference_shape is None else tuple(reference_shape)
        if reference is None or tuple(shape) == reference:
            return None
        return anchoring(tuple(shape), reference, self.registration, self.periodic)

    def on_reference(self, x: Tensor, *, residual: bool = False) -> tuple[Tensor, Tensor | None]:
        r"""The layer on the grid of `x`; and what coarser levels add to it, :math:`s_0 \odot U_0(y_1)`.

        With `residual` the input is added to the first.
        """
        n_levels = len(level_shapes(x.shape[2:], self.rate, self.n_levels))
        levels = [x]
        for down in self._each(self.down, n_levels - 1):
            levels.append(down(levels[-1]))
        attention = self._each(self.attention, n_levels)
        steps = [None, *reversed(self._each(self.up, n_levels - 1))]
        shared = cast(WindowAttention, self.attention[0]).bias if len(self.attention) == 1 else None
        bias = None if shared is None or not on_cpu_eagerly(x) else Remembered(shared)
        out, coarse = x, None
        for i, up in enumerate(steps):
            field, attend = levels.pop(), attention.pop()
            if up is not None:
                coarse = up(out, field.shape[2:], self._level_weight(i - 1, len(levels)))
            plus = [t for t in (coarse, field if residual and not levels else None) if t is not None]
            out = attend(field, plus=plus, bias=bias)
        return self._with_idle(out, n_levels), coarse

    def sources(self, anchors: Tensor, coarse: Tensor | None) -> Sources:
        """What the points of the reference have for those between them.

        Parameters
        ----------
        anchors : Tensor, ``(batch, channels, *reference)``
            The features of the points of the reference.
        coarse : Tensor, optional
            What `on_reference` returned for them.
        """
        finest = cast(WindowAttention, self.attention[0])
        keys, values = finest.keys_and_values(anchors)
        n_levels = len(level_shapes(anchors.shape[2:], self.rate, self.n_levels))
        return Sources(keys, self._with_idle(values, n_levels), coarse)

    def between(self, x: Tensor, sources: Sources, tile: Tile, *, residual: bool = False) -> Tensor:
        """The layer at some points of a grid that refines the reference.

        Parameters
        ----------
        x : Tensor, ``(batch, channels, *points of the tile)``
            The features of these points.
        sources : Sources
        tile : Tile
        residual : bool
            Whether `x` is added to the result.
        """
        finest = cast(WindowAttention, self.attention[0])
        plus = [] if sources.coarse is None else [tile.interpolate(sources.coarse)]
        plus += [x] if residual else []
        return finest.between(x, sources.keys, sources.values, tile.queries_at, plus)

    @staticmethod
    def _each(modules: nn.ModuleList, count: int) -> list[nn.Module]:
        """The modules of the first levels or steps, finest first: its own for each, or one for all."""
        return list(modules)[:count] if len(modules) > 1 else [*modules] * count

    def _with_idle(self, result: Tensor, n_levels: int) -> Tensor:
        """The same, as a function of all parameters.

        On a small grid some levels are left out. Data-parallel training waits for a gradient of every
        parameter, so it gets theirs: of nothing at all, added up.
        """
        idle = self._idle(n_levels)
        return result + sum(parameter.flatten()[:0].sum() for parameter in idle) if idle else result

    def _idle(self, n_levels: int) -> list[nn.Parameter]:
        """The parameters that a grid with so many levels does not use."""
        idle = list(self.attention[n_levels:].parameters())  # none where all levels share one attention
        for steps in (self.down, self.up):
            idle += steps[n_levels - 1 :].parameters()
        return idle + ([self.scale] if self.level_weights == "learned" and n_levels == 1 else [])

    def _level_weight(self, step: int, level: int) -> Tensor | float:
        """The factor of what comes up to `level` in the given step up from the coarsest one."""
        if self.level_weights == "factorial":
            return 1 / (step + 1)
        return self.scale[level].clone()  # torch's module tracker cannot take a view made without gradients

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"{self.channels}, n_dim={self.n_dim}, rate={self.rate}, n_levels={self.n_levels}, "
            f"sampling={self.sampling!r}, level_weights={self.level_weights!r}"
        )


def check_reference(
    reference_shape: Sequence[int] | None, n_dim: int, registration: Registration
) -> tuple[int, ...] | None:
    """The shape of a reference grid, if it is one."""
    if reference_shape is None:
        return None
    fewest = 2 if registration == "node_both" else 1
    given = reference_shape if isinstance(reference_shape, Sequence) else [reference_shape]
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) and n >= fewest for n in given)
    if isinstance(reference_shape, str) or not whole or len(given) != n_dim:
        raise InputError(
            f"reference_shape={reference_shape!r}, expected {n_dim} whole numbers, at least {fewest}: the "
            "points along each axis of the grid that is trained on"
        )
    return tuple(int(n) for n in given)


def _wraps(periodic: object) -> tuple[bool, ...]:
    if not isinstance(periodic, Sequence) or not all(isinstance(wrap, bool) for wrap in periodic):
        raise InputError(f"periodic={periodic!r}, expected True or False, or one of them for each axis")
    return tuple(periodic)
