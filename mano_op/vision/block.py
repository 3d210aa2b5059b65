r"""Swin's block, with multipole attention: it normalises what it adds, not what it takes in."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from mano_op.layers.multipole import MultipoleAttention
from mano_op.models.block import Mlp


class SwinBlock(nn.Module):
    r"""A block of Swin Transformer V2 with multipole attention.

    .. math::

        x \leftarrow x + \mathrm{LN}_1(\mathrm{MA}(x)), \qquad x \leftarrow x + \mathrm{LN}_2(\mathrm{MLP}(x))

    Parameters
    ----------
    attention : MultipoleAttention
    mlp : Mlp
        Of as many channels.
    drop_path : float
        Stochastic depth: the part of the samples of a batch that do without each of the two in training; for
        the others it counts the more, so that the mean stays.

    Examples
    --------
    >>> import torch
    >>> attention = MultipoleAttention.swin(8, n_heads=2, window=4)
    >>> block = SwinBlock(attention, Mlp(8, 32, 8, norm=False, non_linearity="gelu"))
    >>> x = torch.rand(1, 8, 6, 6)
    >>> bool((block(x) == x).all())  # as Swin begins
    True
    """

    def __init__(self, attention: MultipoleAttention, mlp: Mlp, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attention, self.mlp, self.drop_path = attention, mlp, drop_path
        self.norm1, self.norm2 = nn.LayerNorm(attention.channels), nn.LayerNorm(attention.channels)
        for norm in (self.norm1, self.norm2):
            # A deep network of such blocks is trained from the identity on.
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, h, w)`` to the same shape."""
        x = self._plus(x, self.attention(x), self.norm1)
        return self._plus(x, self.mlp(x), self.norm2)

    def _plus(self, x: Tensor, added: Tensor, norm: nn.LayerNorm) -> Tensor:
        added = rearrange(norm(rearrange(added, "b c h w -> b h w c")), "b h w c -> b c h w")
        if self.training and self.drop_path:
            kept = 1 - self.drop_path
            added = added * (added.new_empty(len(x), 1, 1, 1).bernoulli_(kept) / kept)
        return x + added

    def extra_repr(self) -> str:
        """What `print(block)` shows."""
        return f"drop_path={self.drop_path:.3g}"
