"""Attention of one level: projections, windows, and position bias."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.layers.style import OPERATOR, Style
from mano_op.layers.tokens import on_grid, points_of

# Logarithm of the largest factor of a cosine, and the least norm that is divided by.
_STEEPEST, _LEAST_NORM = math.log(100.0), 1e-12


class WindowAttention(nn.Module):
    r"""Multi-head attention within windows: LayerNorm, queries, keys and values, attention, a linear map.

    Parameters
    ----------
    channels, n_heads, head_dim, n_dim, window
        As in `MultipoleAttention`.
    style : Style

    Examples
    --------
    >>> from mano_op.layers.windows import Windows
    >>> layer = WindowAttention(8, 2, head_dim=4, n_dim=1, window=4)
    >>> windows = Windows((16,), window=4, halo=1, periodic=[True])
    >>> x = torch.randn(3, 8, 16)

    On a periodic axis, moving the field by a whole window moves the result:

    >>> torch.allclose(layer(x.roll(4, -1), windows), layer(x, windows).roll(4, -1), atol=1e-6)
    True
    """

    def __init__(
        self, channels: int, n_heads: int, *, head_dim: int, n_dim: int, window: int, style: Style = OPERATOR
    ) -> None:
        super().__init__()
        self.n_heads = n_heads
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

    def forward(self, x: Tensor, attend: Callable[..., Tensor]) -> Tensor:
        """Map ``(batch, channels, *points)`` to the same shape.

        `attend` is a `mano_op.layers.windows.Windows` of the points, or `mano_op.layers.refinement.Points`'.
        """
        tokens = points_of(x).mT
        q, k, v = self.qkv(self.norm2(self.norm1(tokens))).chunk(3, -1)
        if self.q_bias is not None and self.v_bias is not None:
            q, v = q + self.q_bias.to(q.dtype), v + self.v_bias.to(v.dtype)
        if self.logit_scale is not None:
            q, k = cosines(q, k, self.logit_scale)
        out: Tensor = self.out(attend(q, k, v, self.bias, heads=self.n_heads))
        return on_grid(out.mT, x.shape[2:])

    def extra_repr(self) -> str:
        """What `print(layer)` shows."""
        return f"n_heads={self.n_heads}"


def cosines(q: Tensor, k: Tensor, logit_scale: Tensor) -> tuple[Tensor, Tensor]:
    r"""Normalise queries and keys, ``(..., heads * head_dim)``, so that scores are cosines.

    With `logit_scale` s, ``(heads,)``, queries become :math:`\sqrt d\, e^{\min(s, \log 100)}\, q / |q|` and
    keys :math:`k / |k|`: a dot product over :math:`\sqrt d` is then a cosine, times a factor of each head.
    Norms are computed in single precision at least.

    Examples
    --------
    >>> q, k = cosines(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), torch.zeros(1))
    >>> (q * k).sum() / 2**0.5
    tensor(0.8000)
    """

    def scaled(t: Tensor, factor: Tensor | float) -> Tensor:
        exact = t.unflatten(-1, (len(logit_scale), -1)).to(torch.promote_types(t.dtype, torch.float32))
        norm = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).clamp(min=_LEAST_NORM)
        return (exact * (factor / norm)).flatten(-2).to(t.dtype)  # once: nothing else of its size is kept

    factor = logit_scale.clamp(max=_STEEPEST).exp() * math.sqrt(q.shape[-1] // len(logit_scale))
    return scaled(q, factor[:, None]), scaled(k, 1.0)


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
        return cast(Tensor, self.fc2(F.gelu(self.fc1(offset.sign() * offset.abs().log1p()))))


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
        return cast(Tensor, 16 * self.fc2(F.relu(self.fc1(counted))).sigmoid())
