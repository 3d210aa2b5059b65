r"""MANO in a form that is traced once for all sizes: for ``torch.export``, ONNX and ``torch.compile``."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.layers.attention import WindowAttention
from mano_op.layers.finer import Finer, finer, interpolate
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.pyramid import level_shapes
from mano_op.layers.slots import Slots, Windows
from mano_op.models.block import Block, Mlp
from mano_op.models.mano import MANO


class TraceableMANO(nn.Module):
    r"""The same operator as a `MANO`, in plain operations of torch, whatever the size of the grid.

    `MANO` computes window indices in numpy, so it cannot be traced with symbolic sizes. Here the windows of
    the reference are tensors that are made once, and averages, windows and offsets of a finer grid are
    arithmetic on ``torch.arange(n)`` (`mano_op.layers.finer`, `mano_op.layers.slots`). The parameters are the
    model's own, not copies.

    Parameters
    ----------
    model : MANO
        With a known reference: trained, or given ``reference_shape``.

    Raises
    ------
    InputError
        If the model is another one or has no reference; in a call, if the input is coarser than the reference
        along an axis, or not what the model takes.

    Notes
    -----
    Inputs have at least as many points as the reference along each axis. On coarser grids use the model
    itself. All points go through at once, without tiles, so memory grows with their number, by some
    ``n_heads * (window + 2 * halo) ** n_dim`` scores a point. Uncompiled on a CPU the model itself is faster.

    Forward hooks, and whatever else replaces the call of a layer, are left out.

    Examples
    --------
    >>> import torch
    >>> from mano_op import MANO, TraceableMANO
    >>> model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, reference_shape=(8, 8)).eval()
    >>> x = torch.randn(1, 1, 13, 24)
    >>> torch.allclose(TraceableMANO(model)(x), model(x), atol=1e-5)
    True
    """

    def __init__(self, model: MANO) -> None:
        super().__init__()
        if type(model) is not MANO:
            raise InputError(
                f"got a {type(model).__name__}, expected a MANO: no other model has a form for all sizes"
            )
        if model.reference_shape is None:
            raise InputError(
                "this MANO has no reference grid yet, to which its levels would belong: train it, or give it "
                "reference_shape"
            )
        self.model, self.reference = model, model.reference_shape
        self.grid = Grid.uniform(self.reference, registration=model.registration, periodic=model.periodic)
        layer = cast(Block, model.blocks[0]).attention
        finest = cast(WindowAttention, layer.attention[0])
        self.windows = nn.ModuleList(
            Windows(shape, window=finest.window, halo=finest.halo, periodic=model.periodic)
            for shape in level_shapes(self.reference, layer.rate, layer.n_levels)
        )
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in_channels, *grid)`` to ``(batch, out_channels, *grid)``."""
        self._check(x)
        lines = [finer(axis, n, x.device) for axis, n in zip(self.grid, x.shape[2:], strict=True)]
        anchors, fine = x, x
        for dim, line in enumerate(lines, start=2):
            anchors, fine = line.anchors(anchors, dim), line.smooth(fine, dim)
        anchors = self._lift(anchors, [finer(axis, axis.n, x.device) for axis in self.grid])
        fine = self._lift(fine, lines)
        slots, taps = cast(Windows, self.windows[0]).slots(lines), [line.taps() for line in lines]
        for block in self.model.blocks:
            anchors, fine = self._block(cast(Block, block), anchors, fine, slots, taps)
        tokens = _mlp(self.model.projection, self.model.norm(fine))
        out = tokens.transpose(1, 2).reshape(x.shape[0], self.model.out_channels, *x.shape[2:])
        return self.model._bounded(out, [line.points() for line in lines])

    def _block(
        self,
        block: Block,
        anchors: Tensor,
        fine: Tensor,
        slots: Slots,
        taps: list[list[tuple[Tensor, Tensor]]],
    ) -> tuple[Tensor, Tensor]:
        """A block, ``(batch, points, channels)``, at the points of the reference and of the finer grid."""
        layer = block.attention
        finest, windows = cast(WindowAttention, layer.attention[0]), cast(Windows, self.windows[0])
        on, between = anchors, fine
        coarse = self._from_coarser(layer, anchors)
        if coarse is not None:
            on = on + _as_points(coarse)
            for dim, of_axis in enumerate(taps, start=2):
                coarse = interpolate(coarse, dim, of_axis)
            between = between + _as_points(coarse)
        q, k, v = _projections(finest, anchors, "qkv")
        v = layer._with_idle(v, len(self.windows))
        on = on + finest.out(windows.attend(q, k, v, finest.bias, finest.n_heads))
        (q,) = _projections(finest, fine, "q")
        between = between + finest.out(windows.attend_from(q, k, v, finest.bias, finest.n_heads, slots))
        return on + _mlp(block.mlp, on), between + _mlp(block.mlp, between)

    def _from_coarser(self, layer: MultipoleAttention, anchors: Tensor) -> Tensor | None:
        """The far field on the reference, ``(batch, channels, *reference)``; None without coarser levels."""
        levels = [anchors.transpose(1, 2).unflatten(2, self.reference)]
        for down in list(layer.down)[: len(self.windows) - 1]:
            levels.append(down(levels[-1]))
        added: Tensor | None = None
        for i in reversed(range(1, len(levels))):
            attention, windows = cast(WindowAttention, layer.attention[i]), cast(Windows, self.windows[i])
            q, k, v = _projections(attention, _as_points(levels[i]), "qkv")
            out = attention.out(windows.attend(q, k, v, attention.bias, attention.n_heads))
            field = out.transpose(1, 2).unflatten(2, levels[i].shape[2:])
            field = field if added is None else field + added
            added = layer.up[i - 1](field, levels[i - 1].shape[2:], layer.scale[i - 1])
        return added

    def _lift(self, x: Tensor, lines: list[Finer]) -> Tensor:
        """The features of the points, ``(batch, points, channels)``."""
        lifted: Tensor = self.model.lifting(
            _as_points(self.model._located(x, [line.points() for line in lines]))
        )
        return lifted

    def _check(self, x: Tensor) -> None:
        self.model._check_input(x)
        if any(n < least for n, least in zip(x.shape[2:], self.reference, strict=True)):
            raise InputError(
                f"got a grid of {tuple(x.shape[2:])} points, expected at least the reference's "
                f"{self.reference} along each axis: interpolate the input to that, or use the MANO itself, "
                "which does"
            )


def _projections(attention: WindowAttention, tokens: Tensor, names: str) -> list[Tensor]:
    """Queries, keys or values of points, by the letters of their names."""
    tokens, weight = attention.norm2(attention.norm1(tokens)), attention.qkv.weight
    inner = weight.shape[0] // 3
    rows = [weight.narrow(0, "qkv".index(name) * inner, inner) for name in names]
    return [nn.functional.linear(tokens, of_one) for of_one in rows]


def _mlp(mlp: Mlp, tokens: Tensor) -> Tensor:
    """An MLP of points, by calling its parts."""
    out: Tensor = mlp.fc2(mlp.act(mlp.fc1(mlp.norm(tokens))))
    return out


def _as_points(field: Tensor) -> Tensor:
    """From ``(batch, channels, *grid)`` to ``(batch, points, channels)``."""
    return field.flatten(2).transpose(1, 2)
