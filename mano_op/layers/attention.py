"""Attention of one level: projections, windows, and a bias of the offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.layers.eager import is_only
from mano_op.layers.level import Parts, attend_on_level
from mano_op.layers.native.window import Again
from mano_op.layers.points import Hidden, linear_maps
from mano_op.layers.window import native_windows, window_attention


class WindowAttention(nn.Module):
    r"""Multi-head attention within windows: LayerNorm, queries, keys and values, attention, a linear map.

    All but the attention itself acts point by point and is computed once for each point. See
    `mano_op.layers.window.window_attention` for the attention, `MultipoleAttention` for the parameters.

    Examples
    --------
    On a periodic axis, moving the field by a whole window moves the result:

    >>> import torch
    >>> layer = WindowAttention(8, 2, head_dim=4, n_dim=1, window=4, stride=4, halo=1, periodic=[True])
    >>> x = torch.randn(3, 8, 16)
    >>> torch.allclose(layer(x.roll(4, -1)), layer(x).roll(4, -1), atol=1e-6)
    True
    """

    def __init__(
        self,
        channels: int,
        n_heads: int,
        *,
        head_dim: int,
        n_dim: int,
        window: int,
        stride: int,
        halo: int,
        periodic: Sequence[bool],
        position_bias: bool = True,
        double_norm: bool = False,
    ) -> None:
        super().__init__()
        self.n_heads, self.window, self.stride, self.halo = n_heads, window, stride, halo
        self.periodic = tuple(periodic)
        inner = n_heads * head_dim
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels) if double_norm else nn.Identity()
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        # The published layer has no linear map after a single head of full width.
        self.out = nn.Identity() if n_heads == 1 and inner == channels else nn.Linear(inner, channels)
        self.bias = PositionBias(n_heads, n_dim=n_dim) if position_bias else None

    def forward(
        self,
        x: Tensor,
        queries: Tensor | None = None,
        queries_at: Sequence[tuple[float, ...]] | None = None,
        *,
        plus: Sequence[Tensor] = (),
    ) -> Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape.

        With `queries`, ``(batch, channels, *other grid)``, the points of that field attend to those of `x`,
        and the result is on their grid; `queries_at` says where they are, see
        `mano_op.layers.window.window_attention`. The fields of `plus` are added to the result.
        """
        if queries is None:
            at_once = self._at_once(x, plus)
            if at_once is not None:
                return at_once
            tokens, weights = rearrange(x, "b c ... -> b ... c"), self.qkv.weight.chunk(3)
            out = self._attended(*self._heads(x, *weights), again=self._again(tokens, weights))
            return self._projected(out, plus)
        if queries_at is None:
            raise InputError("there are queries without queries_at: say where they are, counted in keys")
        return self.between(queries, *self.keys_and_values(x), queries_at, plus)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the points of `x` have for queries that are elsewhere, ``(batch, heads, *grid, head_dim)``."""
        _, of_k, of_v = self.qkv.weight.chunk(3)
        k, v = self._heads(x, of_k, of_v)
        return k, v

    def between(
        self,
        queries: Tensor,
        k: Tensor,
        v: Tensor,
        queries_at: Sequence[tuple[float, ...]],
        plus: Sequence[Tensor] = (),
    ) -> Tensor:
        """`forward` with `queries`, of the field whose `keys_and_values` these are."""
        (q,) = self._heads(queries, self.qkv.weight.chunk(3)[0])
        return self._projected(self._attended(q, k, v, queries_at=queries_at), plus)

    def _attended(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        queries_at: Sequence[tuple[float, ...]] | None = None,
        again: Again | None = None,
    ) -> Tensor:
        return window_attention(
            q,
            k,
            v,
            window=self.window,
            stride=self.stride,
            halo=self.halo,
            periodic=self.periodic,
            bias=self.bias,
            queries_at=queries_at,
            again=again,
        )

    def _projected(self, out: Tensor, plus: Sequence[Tensor]) -> Tensor:
        """The results of the heads as a field; what they were made of is needed no longer, and gone."""
        out = rearrange(out, "b h ... d -> b ... (h d)")
        added = [rearrange(t, "b c ... -> b ... c") for t in plus]
        if isinstance(self.out, nn.Linear) and is_only(self.out, nn.Linear):
            (out,) = linear_maps(out, Hidden(), [], [(self.out.weight, self.out.bias)], plus=added)
        else:
            out = sum(added, start=self.out(out))
        return rearrange(out, "b ... c -> b c ...")

    def _heads(self, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        """Projections of the points' features, each ``(batch, heads, *grid, head_dim)``."""
        tokens = rearrange(x, "b c ... -> b ... c")
        normalised, parameters = self._normalised()
        if normalised is not None:
            projected = linear_maps(tokens, normalised, parameters, [(weight, None) for weight in weights])
        else:
            tokens = self.norm2(self.norm1(tokens))
            projected = tuple(nn.functional.linear(tokens, weight) for weight in weights)
        return tuple(rearrange(t, "b ... (h d) -> b h ... d", h=self.n_heads) for t in projected)

    def _normalised(self) -> tuple[Hidden | None, list[Tensor]]:
        """The LayerNorms as what comes before projections, if they are nothing else, and their parameters."""
        norms = [norm for norm in (self.norm1, self.norm2) if isinstance(norm, nn.LayerNorm)]
        parameters: list[Tensor] = [t for norm in norms for t in (norm.weight, norm.bias) if t is not None]
        complete = len(parameters) == 2 * len(norms)
        if complete and all(is_only(norm, nn.LayerNorm, nn.Identity) for norm in (self.norm1, self.norm2)):
            return Hidden(tuple(norm.eps for norm in norms)), parameters
        return None, parameters

    def _at_once(self, x: Tensor, plus: Sequence[Tensor]) -> Tensor | None:
        """All of it as one function, where the compiled library is and nobody looks at the parts of it."""
        norms, parameters = self._normalised()
        if norms is None or not is_only(self.out, nn.Linear) or torch.is_autocast_enabled("cpu"):
            return None
        tokens = x.movedim(1, -1)
        options = {name: getattr(self, name) for name in ("window", "stride", "halo", "periodic", "bias")}
        found = native_windows(tokens, **options)
        if found is None:
            return None
        windows, table = found
        parts = Parts(norms, self.n_heads, windows)
        added = [tokens if t is x else t.movedim(1, -1) for t in plus]
        of_out = cast(Tensor, self.out.weight), cast(Tensor, self.out.bias)
        out = attend_on_level(tokens, parts, parameters, self.qkv.weight, of_out, table, added)
        return None if out is None else out.movedim(-1, 1)

    def _again(self, tokens: Tensor, weights: Sequence[Tensor]) -> Again | None:
        """How to make queries, keys and values of the tokens another time, where that is of use.

        They are three fields a level of the eight or so that a block would keep for its backward pass, and
        cost a tenth of its arithmetic. Modules that someone looks at are not called twice.
        """
        normalised, parameters = self._normalised()
        if normalised is None or not torch.is_grad_enabled():
            return None

        def function(tokens: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            maps = [(weight, None) for weight in given[-3:]]
            return tuple(t.flatten(1, -2) for t in linear_maps(tokens, normalised, given[:-3], maps))

        return Again(function, [tokens, *parameters, *weights])

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"n_heads={self.n_heads}, window={self.window}, stride={self.stride}, halo={self.halo}, "
            f"periodic={self.periodic}"
        )


class PositionBias(nn.Module):
    r"""A score for each head that depends on how far, and in which direction, a key lies from its query.

    .. math::

        b(\delta) = \mathrm{MLP}\big(\operatorname{sign}(\delta_i) \log(1 + |\delta_i|),\ i = 1, \dots, d\big)

    The offset :math:`\delta` is measured in spacings of the level. The bias is a smooth function of it, so it
    can be evaluated between the points it was trained at.

    Parameters
    ----------
    n_heads, n_dim : int
    hidden_channels : int
        Width of the MLP.

    Examples
    --------
    >>> import torch
    >>> bias = PositionBias(n_heads=4, n_dim=2)
    >>> here = bias(torch.zeros(2))
    >>> bool((bias(torch.tensor([1e-6, 0.0])) - here).abs().max() < 1e-5)
    True
    """

    def __init__(self, n_heads: int, *, n_dim: int, hidden_channels: int = 32) -> None:
        super().__init__()
        self.fc1 = nn.Linear(n_dim, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, n_heads, bias=False)  # a constant would not change a softmax

    def forward(self, offset: Tensor) -> Tensor:
        """Map offsets ``(..., n_dim)`` to scores ``(..., n_heads)``."""
        bias: Tensor = self.fc2(nn.functional.gelu(self.fc1(offset.sign() * offset.abs().log1p())))
        return bias
