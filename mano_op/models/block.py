"""Parts of MANO's networks beside the attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mano_op.errors import InputError
from mano_op.layers.modes import LowModes
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.refinement import Points
from mano_op.layers.tokens import at_points

# Numbers of a field, 12 MiB in single precision, for which a block keeps all that the backward pass needs.
KEPT = 3 * 2**20

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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, *points)`` to ``(batch, out_channels, *points)``."""
        return at_points(lambda tokens: self.fc2(self.act(self.fc1(self.norm(tokens)))), x)


class Block(nn.Module):
    """A block: ``x + mixing(x)``, by attention or by low modes, then ``x + mlp(x)``.

    The mixing has the name of what it is, ``attention`` or ``modes``.
    """

    def __init__(self, mixing: MultipoleAttention | LowModes, mlp: Mlp) -> None:
        super().__init__()
        self._mixing = "modes" if isinstance(mixing, LowModes) else "attention"
        self.add_module(self._mixing, mixing)
        self.mlp = mlp

    def forward(self, x: Tensor, points: Points | None = None) -> Tensor:
        """Map ``(batch, channels, *grid)``, or features of `points`, to the same shape."""
        return recomputed(self._map, x, points)

    def _map(self, x: Tensor, points: Points | None) -> Tensor:
        x = x + getattr(self, self._mixing)(x, points)
        return x + cast(Tensor, self.mlp(x))


def recomputed(function: Callable[..., Tensor], x: Tensor, *args: Any, most: int = KEPT) -> Tensor:
    """Call a function of a field; of more than `most` numbers nothing but attention is kept for its gradient.

    Everything else is computed again: a sixth of a training step, in a third of the memory.
    """
    if x.numel() <= most or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(x, *args)
    try:
        with saved_tensors_hooks(lambda t: t, lambda t: t):  # which transforms of torch.func refuse
            pass
    except RuntimeError:
        return function(x, *args)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return cast(Tensor, checkpoint(function, x, *args, use_reentrant=False, context_fn=contexts))


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """What a checkpoint keeps of the operations in it."""
    kept = operator == torch.ops.mano_op.window_attention_forward.default
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE
