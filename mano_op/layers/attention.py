"""Attention of one level: projections, windows, and position bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mano_op.layers.eager import is_only
from mano_op.layers.level import Parts, Projection, attend_on_level
from mano_op.layers.points import Hidden, linear_maps
from mano_op.layers.scores import scored
from mano_op.layers.style import OPERATOR, Style
from mano_op.layers.window import native_windows, window_attention


class WindowAttention(nn.Module):
    r"""Multi-head attention within windows: LayerNorm, queries, keys and values, attention, a linear map.

    See `mano_op.layers.window.window_attention` for the attention, `MultipoleAttention` for the parameters.

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
        shift: int = 0,
        style: Style = OPERATOR,
    ) -> None:
        super().__init__()
        self.n_heads, self.window, self.stride, self.halo, self.shift = n_heads, window, stride, halo, shift
        self.periodic = tuple(periodic)
        inner = n_heads * head_dim
        self.norm1, self.norm2 = (
            nn.LayerNorm(channels) if i < style.norms else nn.Identity() for i in range(2)
        )
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        # A bias of the keys would change no softmax of dot products.
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(inner)) if style.qv_bias else None for _ in "qv")
        self.logit_scale = (
            nn.Parameter(torch.full((n_heads,), math.log(10.0))) if style.scores == "cosine" else None
        )
        # The published layer has no linear map after a single head of full width; Swin's has.
        without = n_heads == 1 and inner == channels and not style.qv_bias
        self.out = nn.Identity() if without else nn.Linear(inner, channels)
        self.bias: nn.Module | None = None
        if style.position_bias == "swin":
            self.bias = SwinPositionBias(n_heads, n_dim=n_dim, window=window)
        elif style.position_bias:
            self.bias = PositionBias(n_heads, n_dim=n_dim)

    def forward(
        self,
        x: Tensor,
        *,
        plus: Sequence[Tensor] = (),
        bias: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape.

        The fields of `plus` are added to the result. `bias` stands for the module's own, where that is
        remembered.
        """
        bias = self.bias if bias is None else bias
        fused = self._fused(x, plus, bias)
        if fused is not None:
            return fused
        q, k, v = self._heads(x, "qkv")
        return self._projected(window_attention(q, k, v, **self._windows, bias=bias), plus)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute keys and values for queries elsewhere, each ``(batch, heads, *grid, head_dim)``."""
        k, v = self._heads(x, "kv")
        return k, v

    def between(
        self,
        queries: Tensor,
        k: Tensor,
        v: Tensor,
        queries_at: Sequence[tuple[float, ...]],
        plus: Sequence[Tensor] = (),
    ) -> Tensor:
        """Attend from the points of another field, ``(batch, channels, *other grid)``.

        `k` and `v` are `keys_and_values` of a field; `queries_at` is as in
        `mano_op.layers.window.window_attention`, and `plus` as in `forward`.
        """
        (q,) = self._heads(queries, "q")
        out = window_attention(q, k, v, **self._windows, bias=self.bias, queries_at=queries_at)
        return self._projected(out, plus)

    @property
    def _windows(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("window", "stride", "halo", "shift", "periodic")}

    def _projected(self, out: Tensor, plus: Sequence[Tensor]) -> Tensor:
        """Map the results of the heads to a field, and add others."""
        out = rearrange(out, "b h ... d -> b ... (h d)")
        added = [rearrange(t, "b c ... -> b ... c") for t in plus]
        if isinstance(self.out, nn.Linear) and is_only(self.out, nn.Linear):
            (out,) = linear_maps(out, Hidden(), [], [(self.out.weight, self.out.bias)], plus=added)
        else:
            out = sum(added, start=self.out(out))
        return rearrange(out, "b ... c -> b c ...")

    def _heads(self, x: Tensor, which: str) -> tuple[Tensor, ...]:
        """Compute queries, keys or values, by their letters, each ``(batch, heads, *grid, head_dim)``."""
        tokens = rearrange(x, "b c ... -> b ... c")
        normalised, parameters = self._normalised()
        if not is_only(self.qkv, nn.Linear):  # hooked, or another module in its place
            qkv = dict(zip("qkv", self.qkv(self.norm2(self.norm1(tokens))).chunk(3, -1), strict=True))
            pairs = [(qkv[name], self._biases[name]) for name in which]
            projected = tuple(t if bias is None else t + bias for t, bias in pairs)
        elif normalised is not None:
            projected = linear_maps(tokens, normalised, parameters, self._maps(which))
        else:
            tokens = self.norm2(self.norm1(tokens))
            projected = tuple(F.linear(tokens, weight, bias) for weight, bias in self._maps(which))
        projected = scored(dict(zip(which, projected, strict=True)), self.n_heads, self.logit_scale)
        return tuple(rearrange(t, "b ... (h d) -> b h ... d", h=self.n_heads) for t in projected)

    def _maps(self, which: str) -> list[tuple[Tensor, Tensor | None]]:
        """The weights and biases of some of queries, keys and values."""
        weights = dict(zip("qkv", self.qkv.weight.chunk(3), strict=True))
        return [(weights[name], self._biases[name]) for name in which]

    @property
    def _biases(self) -> dict[str, Tensor | None]:
        return {"q": self.q_bias, "k": None, "v": self.v_bias}

    def _normalised(self) -> tuple[Hidden | None, list[Tensor]]:
        """The LayerNorms and their parameters; None for them if a module has hooks or is another one."""
        norms = [norm for norm in (self.norm1, self.norm2) if isinstance(norm, nn.LayerNorm)]
        parameters: list[Tensor] = [t for norm in norms for t in (norm.weight, norm.bias) if t is not None]
        complete = len(parameters) == 2 * len(norms)
        if complete and all(is_only(norm, nn.LayerNorm, nn.Identity) for norm in (self.norm1, self.norm2)):
            return Hidden(tuple(norm.eps for norm in norms)), parameters
        return None, parameters

    def _fused(
        self, x: Tensor, plus: Sequence[Tensor], bias: Callable[[Tensor], Tensor] | None
    ) -> Tensor | None:
        """The layer as one function; None without the compiled library, or where modules have hooks."""
        norms, parameters = self._normalised()
        plain = is_only(self.out, nn.Linear) and is_only(self.qkv, nn.Linear)
        if norms is None or not plain or torch.is_autocast_enabled("cpu"):
            return None
        tokens = x.movedim(1, -1)
        native = native_windows(tokens, self.n_heads, **self._windows, bias=bias)
        if native is None:
            return None
        windows, table = native
        parts = Parts(norms, self.n_heads, windows)
        qkv = Projection(self.qkv.weight, self.q_bias, self.v_bias, self.logit_scale)
        added = [tokens if t is x else t.movedim(1, -1) for t in plus]
        projection = cast(Tensor, self.out.weight), cast(Tensor, self.out.bias)
        out = attend_on_level(tokens, parts, parameters, qkv, projection, table, added)
        return None if out is None else out.movedim(-1, 1)

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return (
            f"n_heads={self.n_heads}, window={self.window}, stride={self.stride}, halo={self.halo}, "
            f"shift={self.shift}, periodic={self.periodic}"
        )


class Remembered:
    """A position bias that levels share: on a CPU it is computed once for the same offsets.

    Examples
    --------
    >>> calls = []
    >>> bias = Remembered(lambda offset: calls.append(1) or offset)
    >>> torch.equal(bias(torch.zeros(3, 2)), bias(torch.zeros(3, 2))), len(calls)
    (True, 1)
    """

    def __init__(self, bias: Callable[[Tensor], Tensor]) -> None:
        self._bias = bias
        self._scores: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, offset: Tensor) -> Tensor:
        """Return the scores of offsets."""
        if torch._C._len_torch_dispatch_stack():  # fake numbers cannot be compared
            return self._bias(offset)
        key = tuple(offset.shape), offset.dtype, offset.double().numpy().tobytes()
        if key not in self._scores:
            self._scores[key] = self._bias(offset)
        return self._scores[key]


class PositionBias(nn.Module):
    r"""A score for each head that depends on how far, and in which direction, a key lies from its query.

    .. math::

        b(\delta) = \mathrm{MLP}\big(\operatorname{sign}(\delta_i) \log(1 + |\delta_i|),\ i = 1, \dots, d\big)

    The offset :math:`\delta` is in spacings of the level. The bias is smooth, so it can be evaluated between
    the points it was trained at.

    Parameters
    ----------
    n_heads, n_dim : int
    hidden_channels : int
        Width of the MLP.

    Examples
    --------
    >>> import torch
    >>> bias = PositionBias(n_heads=4, n_dim=2)
    >>> bool((bias(torch.tensor([1e-6, 0.0])) - bias(torch.zeros(2))).abs().max() < 1e-5)
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


class SwinPositionBias(nn.Module):
    r"""The position bias of Swin Transformer V2 [1]_: a score for each head, of the offset from query to key.

    .. math::

        b(\delta) = 16\, \mathrm{sigmoid}\left(\mathrm{MLP}\left(
        -\operatorname{sign}(\delta_i) \log_8\left(1 + \frac{8 |\delta_i|}{w - 1}\right),\ i = 1, \dots, d
        \right)\right)

    Offsets :math:`\delta` are in spacings of the level. Swin counts them from key to query, hence the sign.

    Parameters
    ----------
    n_heads, n_dim : int
    window : int or sequence of int
        Points along the sides of the window that the weights belong to, w.
    hidden_channels : int
        Width of the MLP.

    References
    ----------
    .. [1] Liu et al. (2022), Swin Transformer V2: Scaling Up Capacity and Resolution, arXiv:2111.09883,
       section 3.3.

    Examples
    --------
    >>> import torch
    >>> bias = SwinPositionBias(n_heads=4, n_dim=2, window=8)
    >>> scores = bias(torch.tensor([[0.0, 0.0], [7.0, -7.0]]))
    >>> scores.shape, bool((0 <= scores).all() and (scores <= 16).all())
    (torch.Size([2, 4]), True)
    """

    def __init__(
        self, n_heads: int, *, n_dim: int, window: int | Sequence[int], hidden_channels: int = 512
    ) -> None:
        super().__init__()
        self.window = (window,) * n_dim if isinstance(window, int) else tuple(window)
        self.fc1 = nn.Linear(n_dim, hidden_channels)
        self.fc2 = nn.Linear(hidden_channels, n_heads, bias=False)

    def forward(self, offset: Tensor) -> Tensor:
        """Map offsets ``(..., n_dim)`` to scores ``(..., n_heads)``."""
        counted = offset * offset.new_tensor([-8 / max(1, w - 1) for w in self.window])
        counted = counted.sign() * counted.abs().log1p() / math.log(8)
        bias: Tensor = 16 * self.fc2(F.relu(self.fc1(counted))).sigmoid()
        return bias
