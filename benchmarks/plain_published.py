"""The published layer, written the straightforward way: to compare times and memory with, and nothing else.

Windows are cut out of the field with `unfold`, every copy of a point is normalised, projected and attended
to in its window, and `fold` adds the results up, which are divided by how many windows held the point. So a
point is worked on as often as there are windows that hold it, and all scores are kept for the backward pass.
`tests/test_speed.py` holds its outputs and gradients to those of `MultipoleAttention.published`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.layers.pyramid import level_shapes


class PlainPublished(nn.Module):
    """`MultipoleAttention.published` in two dimensions, with its parameters under its names.

    Parameters
    ----------
    channels, n_heads, head_dim, window, stride, rate, n_levels, sampling
        As there; `sampling` is "conv" or "avg_pool".

    Examples
    --------
    >>> from mano_op import MultipoleAttention
    >>> layer = MultipoleAttention.published(8, n_heads=2)
    >>> PlainPublished(8, 2).load_state_dict(layer.state_dict())
    <All keys matched successfully>
    """

    def __init__(
        self,
        channels: int,
        n_heads: int,
        *,
        head_dim: int | None = None,
        window: int = 2,
        stride: int = 1,
        rate: int = 2,
        n_levels: int | None = None,
        sampling: str = "conv",
    ) -> None:
        super().__init__()
        self.window, self.stride, self.rate, self.n_levels = window, stride, rate, n_levels
        head_dim = channels // n_heads if head_dim is None else head_dim
        self.attention = nn.ModuleList([_WindowAttention(channels, n_heads, head_dim, window, stride)])
        down, up = (
            (nn.Conv2d(channels, channels, rate, rate, bias=False), _transposed(channels, rate))
            if sampling == "conv"
            else (nn.AvgPool2d(rate), nn.Upsample(scale_factor=rate))
        )
        self.down, self.up = nn.ModuleList([down]), nn.ModuleList([up])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, y, x)`` to the same shape."""
        [attend], [down], [up] = self.attention, self.down, self.up
        shapes = level_shapes(x.shape[2:], self.rate, self.n_levels)
        self._check(shapes)
        levels = [x]
        for _ in shapes[1:]:
            levels.append(down(levels[-1]))
        out: Tensor = attend(levels.pop())
        for i, finer in enumerate(reversed(levels)):
            out = attend(finer) + up(out) / (i + 1)
        return out

    def _check(self, shapes: list[tuple[int, ...]]) -> None:
        for i, shape in enumerate(shapes):
            uncut = all(n >= self.window and (n - self.window) % self.stride == 0 for n in shape)
            if not uncut or (i + 1 < len(shapes) and any(n % self.rate for n in shape)):
                raise InputError(
                    f"level {i} has {shape} points, of which windows of {self.window} every {self.stride} or "
                    f"cells of {self.rate} leave some over; this reference takes only grids that they cover "
                    "evenly on every level: give a power of the rate, or use MultipoleAttention.published"
                )


def _transposed(channels: int, rate: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, channels, rate, rate, bias=False)


class _WindowAttention(nn.Module):
    """Two norms, queries, keys and values, softmax attention and a linear map, all of them per window."""

    def __init__(self, channels: int, n_heads: int, head_dim: int, window: int, stride: int) -> None:
        super().__init__()
        self.n_heads, self.window, self.stride = n_heads, window, stride
        inner = n_heads * head_dim
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.out = nn.Identity() if n_heads == 1 and inner == channels else nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        cut = F.unfold(x, self.window, stride=self.stride)
        tokens = rearrange(cut, "b (c n) m -> b m n c", c=x.shape[1])
        qkv = self.qkv(self.norm2(self.norm1(tokens)))
        q, k, v = rearrange(qkv, "b m n (t h d) -> t b m h n d", t=3, h=self.n_heads)
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)
        out = self.out(rearrange(weights @ v, "b m h n d -> b m n (h d)"))
        whole = rearrange(out, "b m n c -> b (c n) m")
        size = x.shape[2:]
        held = F.unfold(torch.ones_like(x[:1, :1]), self.window, stride=self.stride)
        total, held_by = (F.fold(t, size, self.window, stride=self.stride) for t in (whole, held))
        return total / held_by
