"""Parts of MANO's networks beside the attention."""

from __future__ import annotations

from typing import Literal

from einops import rearrange
from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.layers.anchors import Tile
from mano_op.layers.eager import is_only
from mano_op.layers.multipole import MultipoleAttention, Sources
from mano_op.layers.points import Hidden, linear_maps

NonLinearity = Literal["gelu", "relu", "silu", "tanh"]
_NON_LINEARITIES: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


def width(channels: int, **ratio: float) -> int:
    """Return the hidden width of an MLP, from an option that is a ratio.

    Examples
    --------
    >>> width(24, channel_mlp_expansion=1.5)
    36
    """
    [(name, value)] = ratio.items()
    hidden = round(value * channels)
    if hidden < 1:
        raise InputError(
            f"{name}={value!r} of {channels} channels makes {hidden} hidden ones, expected at least 1: "
            f"give {1 / channels:.2g} or more"
        )
    return hidden


class Mlp(nn.Module):
    """Two linear maps of the channels of each point, ``fc2(act(fc1(norm(x))))``."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        norm: bool,
        non_linearity: NonLinearity,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels) if norm else nn.Identity()
        self.fc1 = nn.Linear(in_channels, hidden_channels)
        self.act = _NON_LINEARITIES[non_linearity]()
        self.fc2 = nn.Linear(hidden_channels, out_channels)

    def forward(self, x: Tensor, before: nn.LayerNorm | None = None, *, residual: bool = False) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``.

        The norm `before` comes first; with `residual` the input is added to the result.
        """
        tokens = rearrange(x, "b c ... -> b ... c")
        norms = [norm for norm in (before, self.norm) if isinstance(norm, nn.LayerNorm)]
        parts = (*norms, self.fc1, self.act, self.fc2)
        pairs = [(norm.weight, norm.bias) for norm in norms] + [(self.fc1.weight, self.fc1.bias)]
        parameters = [t for pair in pairs for t in pair if t is not None]
        complete = len(parameters) == 2 * len(norms) + 2
        if complete and all(
            is_only(part, nn.LayerNorm, nn.Linear, *_NON_LINEARITIES.values()) for part in parts
        ):
            hidden = Hidden(tuple(norm.eps for norm in norms), self.act)
            of_fc2 = self.fc2.weight, self.fc2.bias
            (out,) = linear_maps(tokens, hidden, parameters, [of_fc2], residual=residual)
        else:
            out = self.fc2(self.act(self.fc1(self.norm(tokens if before is None else before(tokens)))))
            out = tokens + out if residual else out
        return rearrange(out, "b ... c -> b c ...")


class Block(nn.Module):
    """A transformer block: ``x + attention(x)``, then ``x + mlp(x)``. Both normalise what they take in."""

    def __init__(self, attention: MultipoleAttention, mlp: Mlp) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape."""
        attention, anchored = self.attention, self.attention.reference_shape is not None
        if is_only(attention, MultipoleAttention) and not anchored:
            x, _ = attention.on_reference(x, residual=True)
        else:
            x = x + attention(x)
        out: Tensor = self.mlp(x, residual=True)
        return out

    def on_reference(self, anchors: Tensor) -> tuple[Tensor, Sources]:
        """Map the reference grid, and return its sources for the points of a finer grid."""
        x, coarse = self.attention.on_reference(anchors, residual=True)
        out: Tensor = self.mlp(x, residual=True)
        return out, self.attention.sources(anchors, coarse)

    def between(self, x: Tensor, sources: Sources, tile: Tile) -> Tensor:
        """Map points of a finer grid, ``(batch, channels, *points of the tile)``."""
        out: Tensor = self.mlp(self.attention.between(x, sources, tile, residual=True), residual=True)
        return out
