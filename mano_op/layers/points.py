r"""Pointwise maps, on a CPU a block of points at a time.

Most of a layer's arithmetic are linear maps of each point's channels, after a normalisation or an activation.
One operation after another over all points makes each field in fresh memory, which takes a CPU longer than
the products. Here as many points as fit the cache go through all operations before the next ones do,

.. math:: y_i = W_i\, f(x) + b_i \quad (+\, x,\ + \text{other fields}),

with f that of `Hidden`. The backward pass recomputes f(x), for one more product in an MLP. The input of the
activation is kept where it is no more than some megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mano_op.layers.eager import on_cpu_eagerly
from mano_op.layers.native.call import may_call
from mano_op.layers.native.elementwise import add_, gelu, gelu_backward_
from mano_op.layers.replay import replay

# Numbers of the widest field in a chunk: half a megabyte in single precision.
_NUMBERS = 2**17
_ROWS = 256  # of a chunk, at least
# Numbers of a field, 28 MiB, that is kept for the backward pass; larger ones are recomputed. From 32 MiB on
# glibc gives memory back, and to write a field into fresh pages takes half as long as to compute it.
_KEPT = 7 * 2**20


@dataclass(frozen=True)
class Hidden:
    """LayerNorms, one after the other, and a linear map with an activation, before the linear maps.

    Attributes
    ----------
    eps : tuple of float
        Of each LayerNorm.
    activation : callable, optional
        After a linear map; neither if not given.
    """

    eps: tuple[float, ...] = ()
    activation: Callable[[Tensor], Tensor] | None = None

    def __bool__(self) -> bool:
        """Whether it is more than the identity."""
        return bool(self.eps) or self.activation is not None

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """Map points ``(..., channels)`` to hidden channels; `parameters` are pairs of weight and bias."""
        for i, eps in enumerate(self.eps):
            weight, bias = parameters[2 * i : 2 * i + 2]
            x = F.layer_norm(x, weight.shape, weight, bias, eps)
        if self.activation is not None:
            x = self.activation(F.linear(x, *parameters[-2:]))
        return x


def linear_maps(
    x: Tensor,
    hidden: Hidden,
    parameters: Sequence[Tensor],
    maps: Sequence[tuple[Tensor, Tensor | None]],
    *,
    residual: bool = False,
    plus: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Apply linear maps to the hidden channels of each point.

    Parameters
    ----------
    x : Tensor, ``(..., channels)``
    hidden : Hidden
    parameters : sequence of Tensor
        Its parameters.
    maps : sequence of (Tensor, Tensor or None)
        Weight, ``(out, hidden channels)``, and bias of each.
    residual : bool
        Whether `x` is added to each result.
    plus : sequence of Tensor, each ``(..., out)``
        Fields that are added to each result too.

    Returns
    -------
    tuple of Tensor, each ``(..., out)``

    Examples
    --------
    >>> norm, x = torch.nn.LayerNorm(8), torch.randn(4, 5, 8)
    >>> first, second = torch.randn(3, 8), torch.randn(6, 8)
    >>> _, y = linear_maps(x, Hidden((norm.eps,)), list(norm.parameters()), [(first, None), (second, None)])
    >>> torch.allclose(y, norm(x) @ second.T, atol=1e-6)
    True
    """
    flat = [t for pair in maps for t in pair]
    if fit_in_chunks(x, [*parameters, *flat, *plus], maps, residual):
        sizes = len(parameters), len(flat)
        tensors = [*parameters, *flat, *plus]
        recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors))
        results: tuple[Tensor, ...] = _Blocked.apply(x, hidden, residual, recorded, sizes, *tensors)
        return results
    return _definition(x, hidden, parameters, maps, residual, plus)


def fit_in_chunks(
    x: Tensor,
    others: Sequence[Tensor | None],
    maps: Sequence[tuple[Tensor, Tensor | None]],
    residual: bool,
) -> bool:
    """Whether points may be mapped in blocks; where a parameter does not fit, torch raises the error."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and on_cpu_eagerly(x)
        and not torch.is_autocast_enabled("cpu")
        and all(t.dtype == x.dtype and t.device == x.device for t in others if t is not None)
        and all(bias is None or bias.shape == weight.shape[:1] for weight, bias in maps)
        and not (residual and any(len(weight) != x.shape[-1] for weight, _ in maps))
    )


def _definition(
    x: Tensor,
    hidden: Hidden,
    parameters: Sequence[Tensor],
    maps: Sequence[tuple[Tensor, Tensor | None]],
    residual: bool,
    plus: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """The definition of `linear_maps`."""
    h = hidden(x, *parameters)
    added = [*plus, *([x] if residual else [])]
    return tuple(sum(added, start=F.linear(h, weight, bias)) for weight, bias in maps)


class _Blocked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        hidden: Hidden,
        residual: bool,
        recorded: bool,
        sizes: tuple[int, int],
        *tensors: Any,
    ) -> tuple[Tensor, ...]:
        parameters, maps, plus = _parts(tensors, sizes)
        tokens = x.reshape(-1, x.shape[-1])
        through = Through(hidden, parameters, natively=may_call(x))
        results = [x.new_empty(*x.shape[:-1], len(weight)) for weight, _ in maps]
        flat = [result.view(-1, result.shape[-1]) if len(tokens) else result for result in results]
        kept = through.room(len(tokens)) if recorded else None
        for chunk in chunks(tokens, [*parameters, *(weight for weight, _ in maps)]):
            of_chunk = tokens[chunk]
            h = through.forward(of_chunk, None if kept is None else kept[chunk])
            for (weight, bias), result in zip(maps, flat, strict=True):
                torch.mm(h, weight.T, out=result[chunk])
                add_in_place(result[chunk], bias, of_chunk if residual else None, natively=through.natively)
        for result in results:
            for t in plus:
                result += t
        ctx.save_for_backward(x, kept, *tensors[: sum(sizes)])
        ctx.hidden, ctx.residual, ctx.sizes, ctx.n_plus = hidden, residual, sizes, len(plus)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint gives them no second time
        x: Tensor = saved[0]
        kept: Tensor | None = saved[1]
        tensors: list[Any] = list(saved[2:])
        hidden, residual, n = ctx.hidden, ctx.residual, ctx.sizes[0]
        parameters, maps, _ = _parts(tensors, ctx.sizes)
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[5 : 5 + sum(ctx.sizes)]]
        of_plus = [sum(grads[1:], start=grads[0])] * ctx.n_plus if ctx.n_plus else []
        if torch.is_grad_enabled():

            def definition(x: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
                parameters, maps, _ = _parts(tensors, ctx.sizes)
                return _definition(x, hidden, parameters, maps, residual, ())

            dx, *rest = replay(definition, (x, *tensors), needed, grads)
            return dx, None, None, None, None, *rest, *of_plus

        tokens, *ds = (t.reshape(-1, t.shape[-1]) for t in (x, *grads))
        through = Through(hidden, parameters, natively=may_call(x))
        dx = torch.empty_like(tokens) if needed[0] else None
        totals = [Total.of(t, need, len(tokens)) for t, need in zip(tensors, needed[1:], strict=True)]
        before = any(needed[: n + 1])  # whether a gradient goes further than the maps
        for chunk in chunks(tokens, [*parameters, *(weight for weight, _ in maps)]):
            of_ds = [d[chunk] for d in ds]
            place = None if hidden or dx is None else dx[chunk]
            dh = _back_through_maps(maps, of_ds, place) if before else None
            of_kept = None if kept is None else kept[chunk]
            h, back = through.backward(tokens[chunk], dh, totals[:n], of_kept)
            for i, d in enumerate(of_ds):
                of_weight, of_bias = totals[n + 2 * i : n + 2 * i + 2]
                if of_weight is not None:
                    of_weight.add_product(d.T, h)
                if of_bias is not None:
                    of_bias.add(d.sum(0))
            if dx is not None and back is not None:
                if residual:
                    torch.add(back, sum(of_ds[1:], start=of_ds[0]), out=dx[chunk])
                elif hidden:
                    dx[chunk] = back
        sums = [None if total is None else total.sum for total in totals]
        return None if dx is None else dx.view(x.shape), None, None, None, None, *sums, *of_plus


class Total:
    """Gradient of a parameter, summed over blocks. The first block overwrites, so `sum` may begin empty."""

    def __init__(self, total: Tensor, begun: bool) -> None:
        self.sum, self._begun = total, begun

    @classmethod
    def of(cls, parameter: Tensor | None, needed: bool, points: int) -> Total | None:
        """Begin the gradient of a parameter that needs one; over no points it is 0."""
        if parameter is None or not needed:
            return None
        return cls(torch.zeros_like(parameter) if points == 0 else torch.empty_like(parameter), points == 0)

    def chunk(self, chunks: int) -> list[Total]:
        """Split the sum into those of equal parts of the parameter."""
        return [Total(part, self._begun) for part in self.sum.chunk(chunks)]

    def add(self, part: Tensor) -> None:
        """Add the part of a block."""
        if self._begun:
            self.sum += part
        else:
            self.sum.copy_(part)
        self._begun = True

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add a product of two matrices."""
        if self._begun:
            self.sum.addmm_(left, right)
        else:
            torch.mm(left, right, out=self.sum)
        self._begun = True


class Through:
    """Forward and backward pass of `Hidden` for a block of points."""

    def __init__(self, hidden: Hidden, parameters: Sequence[Tensor], *, natively: bool) -> None:
        self.hidden, self.parameters, self.natively = hidden, parameters, natively
        self.norms = list(zip(parameters[::2], parameters[1::2], hidden.eps, strict=False))
        self.layer = None if hidden.activation is None else tuple(parameters[-2:])
        self.by_gelu = (
            natively and type(hidden.activation) is nn.GELU and hidden.activation.approximate == "none"
        )

    def room(self, points: int) -> Tensor | None:
        """Allocate the input of the activation, without its bias; None if it is not kept."""
        if self.layer is None or not self.by_gelu or not is_kept(points * len(self.layer[0])):
            return None
        return self.layer[0].new_empty(points, len(self.layer[0]))

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Compute hidden channels; the input of the activation, without its bias, is written to `kept`."""
        if self.layer is None or not self.by_gelu:
            return self.hidden(x, *self.parameters)
        weight, bias = self.layer
        x = Hidden(self.hidden.eps)(x, *self.parameters[:-2])
        if kept is not None:
            return gelu(torch.mm(x, weight.T, out=kept), bias)
        z = x @ weight.T
        return gelu(z, bias, out=z)

    def backward(
        self, x: Tensor, dh: Tensor | None, totals: Sequence[Total | None], kept: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Recompute hidden channels, and turn their gradient into that of `x`; parameters' go to `totals`."""
        fields = []
        for weight, bias, eps in self.norms:
            y, mean, rstd = torch.native_layer_norm(x, weight.shape, weight, bias, eps)
            fields.append((x, mean, rstd))
            x = y
        h = x
        if self.layer is not None:
            h, dh = self._back_through_layer(x, dh, totals[-2:], kept)
        if dh is None:
            return h, None
        for i in reversed(range(len(self.norms))):
            (weight, bias, _), (x, mean, rstd) = self.norms[i], fields[i]
            dh, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
                dh, x, weight.shape, mean, rstd, weight, bias, [True, True, True]
            )
            for total, part in zip(totals[2 * i : 2 * i + 2], (of_weight, of_bias), strict=True):
                if total is not None:
                    total.add(part)
        return h, dh

    def _back_through_layer(
        self, x: Tensor, dh: Tensor | None, totals: Sequence[Total | None], kept: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        assert self.layer is not None and self.hidden.activation is not None
        weight, bias = self.layer
        if dh is None:
            return self.hidden.activation(torch.addmm(bias, x, weight.T)), None
        if self.by_gelu:
            if kept is None:
                z = x @ weight.T
                h, dz = gelu_backward_(z, bias, dh, out=z)
            else:  # kept unchanged for another backward pass
                h, dz = gelu_backward_(kept, bias, dh)
        else:
            z = torch.addmm(bias, x, weight.T).requires_grad_()
            with torch.enable_grad():
                h = self.hidden.activation(z)
            [dz] = torch.autograd.grad(h, [z], dh)
            h = h.detach()
        of_weight, of_bias = totals
        if of_weight is not None:
            of_weight.add_product(dz.T, x)
        if of_bias is not None:
            of_bias.add(dz.sum(0))
        return h, dz @ weight


def add_in_place(result: Tensor, bias: Tensor | None, x: Tensor | None, *, natively: bool) -> None:
    """Add a bias and another field, if given."""
    if bias is None and x is None:
        return
    if natively:
        add_(result, bias, x)
        return
    for t in (bias, x):
        if t is not None:
            result += t


def _back_through_maps(
    maps: Sequence[tuple[Tensor, Tensor | None]], ds: Sequence[Tensor], out: Tensor | None
) -> Tensor:
    """The gradient of the hidden channels, in `out` if given."""
    (first, _), *others = maps
    dh = torch.mm(ds[0], first, out=out)
    for (weight, _), d in zip(others, ds[1:], strict=True):
        dh.addmm_(d, weight)
    return dh


def _parts(
    tensors: Sequence[Any], sizes: tuple[int, int]
) -> tuple[Sequence[Tensor], list[tuple[Tensor, Tensor | None]], Sequence[Tensor]]:
    """Split tensors into those of `Hidden`, pairs of the maps, and fields to add."""
    first, last = sizes[0], sum(sizes)
    pairs = zip(tensors[first:last:2], tensors[first + 1 : last : 2], strict=True)
    return tensors[:first], list(pairs), tensors[last:]


def is_kept(numbers: int) -> bool:
    """Whether a field of so many numbers is kept for the backward pass, and not recomputed."""
    return numbers <= _KEPT


def chunks(tokens: Tensor, tensors: Sequence[Tensor]) -> list[slice]:
    """Split the points into blocks, so many that the widest field fits the cache.

    The rows of `tensors` are the widths of fields.
    """
    widest = max(tokens.shape[1], *map(len, tensors))
    # The weights of wide fields do not fit the cache beside them, and are read again for each chunk.
    step = max(_ROWS, _NUMBERS // widest) * torch.get_num_threads()
    return [slice(first, first + step) for first in range(0, len(tokens), step)]
