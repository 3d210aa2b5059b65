"""Networks to compare MANO with: transformers for its cost, a U-Net for its errors.

The transformers, with dense attention between all points and with shifted windows, have MANO's shape,
lifting, blocks of ``x + attention(norm(x))`` and ``x + mlp(norm(x))``, projection, and differ in the
attention alone. They work on tokens, ``(batch, *grid, channels)``, throughout, and attend by torch's
`scaled_dot_product_attention` to views of what the projection returned. They are not trained here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mano_op.errors import InputError


class Transformer(nn.Module):
    """Lift the channels of each point, apply blocks of attention and MLP, project, as MANO does.

    Parameters
    ----------
    in_channels, out_channels : int
    attention : sequence of nn.Module
        Of each block: maps ``(batch, *grid, channels)`` to the same shape.
    hidden_channels : int
    expansion : float
        Hidden width of the MLPs and of the projection over `hidden_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        attention: Sequence[nn.Module],
        *,
        hidden_channels: int,
        expansion: float = 2.0,
    ) -> None:
        super().__init__()
        wide = round(expansion * hidden_channels)
        self.lifting = nn.Linear(in_channels, hidden_channels)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                (
                    nn.Sequential(nn.LayerNorm(hidden_channels), attend),
                    nn.Sequential(
                        nn.LayerNorm(hidden_channels), _mlp(hidden_channels, wide, hidden_channels)
                    ),
                )
            )
            for attend in attention
        )
        self.projection = nn.Sequential(
            nn.LayerNorm(hidden_channels), _mlp(hidden_channels, wide, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``."""
        z = self.lifting(x.movedim(1, -1))
        for block in self.blocks:
            for part in block:  # type: ignore[attr-defined]
                z = z + part(z)
        out: Tensor = self.projection(z)
        return out.movedim(-1, 1)


def dense_transformer(
    in_channels: int,
    out_channels: int,
    *,
    hidden_channels: int,
    n_layers: int,
    n_heads: int,
    plain: bool = False,
) -> Transformer:
    """Every point attends to every point; `plain` keeps the scores, as softmax attention is written down."""
    attention = [DenseAttention(hidden_channels, n_heads, plain=plain) for _ in range(n_layers)]
    return Transformer(in_channels, out_channels, attention, hidden_channels=hidden_channels)


def swin_transformer(
    in_channels: int, out_channels: int, *, hidden_channels: int, n_layers: int, n_heads: int, window: int = 8
) -> Transformer:
    """Every second block's windows lie half a window further along both axes."""
    attention = [
        ShiftedWindowAttention(hidden_channels, n_heads, window=window, shift=window // 2 * (i % 2))
        for i in range(n_layers)
    ]
    return Transformer(in_channels, out_channels, attention, hidden_channels=hidden_channels)


class DenseAttention(nn.Module):
    """Attention of all points to all points.

    Parameters
    ----------
    channels, n_heads : int
    plain : bool
        Whether the scores are made as whole matrices, in place of torch's kernel that does without.
    """

    def __init__(self, channels: int, n_heads: int, *, plain: bool = False) -> None:
        super().__init__()
        self.n_heads, self.plain = n_heads, plain
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, *grid, channels)`` to the same shape."""
        qkv = self.qkv(x.flatten(1, -2))
        q, k, v = rearrange(qkv, "b n (t h d) -> t b h n d", t=3, h=self.n_heads)
        if self.plain:
            attended = ((q * q.shape[-1] ** -0.5) @ k.mT).softmax(-1) @ v
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(attended, "b h n d -> b n (h d)"))
        return out.view(x.shape)


class ShiftedWindowAttention(nn.Module):
    r"""Attention in windows side by side, after moving the field by `shift` points along both axes.

    Points that meet in a window only because the field was moved around its ends do not see each other. The
    score of each pair has a learned bias, one for each head and offset. Two dimensions.

    Parameters
    ----------
    channels, n_heads : int
    window, shift : int
        In points.
    """

    def __init__(self, channels: int, n_heads: int, *, window: int, shift: int) -> None:
        super().__init__()
        self.n_heads, self.window, self.shift = n_heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        self.bias = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, n_heads))
        steps = torch.cartesian_prod(torch.arange(window), torch.arange(window))
        offsets = steps[None] - steps[:, None] + window - 1
        self.register_buffer(
            "offset", (offsets * torch.tensor([2 * window - 1, 1])).sum(-1), persistent=False
        )
        self._masks: dict[tuple[int, int], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, y, x, channels)`` to the same shape."""
        height, width = x.shape[1:3]
        w, s = self.window, self.shift
        if height % w or width % w:
            raise InputError(
                f"a grid of {height} x {width} is not cut into windows of {w}: give multiples of it"
            )
        if s:
            x = x.roll((-s, -s), (1, 2))
        windows = rearrange(x, "b (m w) (n v) c -> (b m n) (w v) c", w=w, v=w)
        q, k, v = rearrange(self.qkv(windows), "m n (t h d) -> t m h n d", t=3, h=self.n_heads)
        added = self.bias[self.offset].permute(2, 0, 1)[None]
        if s:
            masks = self._mask(height, width)
            added = added + masks[:, None]
            added = added if len(x) == 1 else added.repeat(len(x), 1, 1, 1)
        attended = _attend(q, k, v, added)
        out = self.out(rearrange(attended, "m h n d -> m n (h d)"))
        out = rearrange(out, "(b m n) (w v) c -> b (m w) (n v) c", m=height // w, n=width // w, w=w)
        return out.roll((s, s), (1, 2)) if s else out

    def _mask(self, height: int, width: int) -> Tensor:
        """What is added to the scores of each window, ``(windows, w^2, w^2)``: 0, or -100 for strangers."""
        if (height, width) not in self._masks:
            # Of which side of the seam a point is, once for each axis.
            sides = [torch.arange(n) >= n - self.shift for n in (height, width)]
            side = 2 * sides[0][:, None] + 1 * sides[1]
            of_window = rearrange(side, "(m w) (n v) -> (m n) (w v)", w=self.window, v=self.window)
            strangers = of_window[:, None] != of_window[:, :, None]
            self._masks[height, width] = -100.0 * strangers.to(self.bias)
        return self._masks[height, width]


def _attend(q: Tensor, k: Tensor, v: Tensor, added: Tensor) -> Tensor:
    """Softmax attention with added scores, in whichever form is the faster.

    With gradients for them on a CPU torch's kernel falls back on the arithmetic below, and on checks beside.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled():
        return ((q * q.shape[-1] ** -0.5) @ k.mT + added).softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added)


def _mlp(channels: int, hidden: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, out_channels))


class UNet(nn.Module):
    """A U-Net of three grids: pairs of convolutions, 3 points wide, with group norms and GELU [1]_.

    Each grid has half as many points along each axis as the one before, and twice the channels. Ends are
    padded with the nearest point, or wrapped. Points along each axis are a multiple of 4.

    Parameters
    ----------
    in_channels, out_channels, hidden_channels, n_dim : int
    periodic : bool

    References
    ----------
    .. [1] Gupta and Brandstetter (2022), Towards Multi-spatiotemporal-scale Generalized PDE Modeling,
       arXiv:2209.15616.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, hidden_channels: int, n_dim: int, periodic: bool
    ) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_dim - 1]
        mode = "circular" if periodic else "replicate"

        def pair(channels: int, wide: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for count in (channels, wide):
                layers += [
                    conv(count, wide, 3, padding=1, padding_mode=mode),
                    nn.GroupNorm(1, wide),
                    nn.GELU(),
                ]
            return nn.Sequential(*layers)

        widths = [hidden_channels * 2**i for i in range(3)]
        self.down = nn.ModuleList(map(pair, [in_channels, *widths[:2]], widths))
        self.up = nn.ModuleList(pair(3 * wide, wide) for wide in widths[:2])
        self.projection = conv(hidden_channels, out_channels, 1)
        self.pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[n_dim - 1]

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``."""
        fields = []
        for i, pair in enumerate(self.down):
            x = pair(self.pool(x, 2) if i else x)
            fields.append(x)
        for pair, field in zip(reversed(self.up), reversed(fields[:2]), strict=True):
            x = pair(torch.cat([F.interpolate(x, scale_factor=2), field], 1))
        return self.projection(x)
