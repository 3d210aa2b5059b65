r"""Maps of each point's channels, on a CPU some points at a time.

A layer spends most of its arithmetic in linear maps that act on each point by itself, and before them a
normalisation, or an activation. Written one operation after another over all points, each makes a field in
fresh memory, and a CPU spends more time on that than on the products. Here as many points as fit the cache
go through all operations before the next ones do,

.. math:: y_i = W_i\, f(x) + b_i \quad (+\, x,\ + \text{other fields}),

with f that of `hidden`. The backward pass computes f(x) again instead of keeping it, so that of a field of
hidden channels nothing is ever in memory. It costs one more product for an MLP's first linear map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.layers.eager import on_cpu_eagerly

# Numbers of the widest field in a chunk: half a megabyte in single precision.
_NUMBERS = 2**17


@dataclass(frozen=True)
class Hidden:
    """What comes before the linear maps: normalisations, one after the other, and a layer with an activation.

    Attributes
    ----------
    eps : tuple of float
        Of each LayerNorm.
    activation : callable, optional
        After a linear map; neither if not given.
    """

    eps: tuple[float, ...] = ()
    activation: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """The hidden channels of points ``(..., channels)``; `parameters` are pairs of weight and bias."""
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
    """Linear maps of hidden channels of each point.

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
        What else is added to each result.

    Returns
    -------
    tuple of Tensor, each ``(..., out)``

    Examples
    --------
    >>> norm, x = torch.nn.LayerNorm(8), torch.randn(4, 5, 8)
    >>> first, second = torch.randn(3, 8), torch.randn(6, 8)
    >>> found = linear_maps(x, Hidden((norm.eps,)), list(norm.parameters()), [(first, None), (second, None)])
    >>> torch.allclose(found[1], norm(x) @ second.T, atol=1e-6)
    True
    """
    if (
        x.dtype in (torch.float32, torch.float64)
        and on_cpu_eagerly(x)
        and not torch.is_autocast_enabled("cpu")
    ):
        flat = [t for pair in maps for t in pair]
        sizes = len(parameters), len(flat)
        found: tuple[Tensor, ...] = _Chunked.apply(x, hidden, residual, sizes, *parameters, *flat, *plus)
        return found
    return _whole(x, hidden, parameters, maps, residual, plus)


def _whole(
    x: Tensor,
    hidden: Hidden,
    parameters: Sequence[Tensor],
    maps: Sequence[tuple[Tensor, Tensor | None]],
    residual: bool,
    plus: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """As `linear_maps`, of which this is the definition."""
    h = hidden(x, *parameters)
    added = [*plus, *([x] if residual else [])]
    return tuple(sum(added, start=F.linear(h, weight, bias)) for weight, bias in maps)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, hidden: Hidden, residual: bool, sizes: tuple[int, int], *tensors: Any
    ) -> tuple[Tensor, ...]:
        parameters, maps, plus = _parts(tensors, sizes)
        tokens = x.reshape(-1, x.shape[-1])
        results = [tokens.new_empty(len(tokens), len(weight)) for weight, _ in maps]
        for chunk in _chunks(tokens, parameters, maps):
            of_chunk = tokens[chunk]
            h = hidden(of_chunk, *parameters)
            for (weight, bias), result in zip(maps, results, strict=True):
                if bias is None:
                    torch.mm(h, weight.T, out=result[chunk])
                else:
                    torch.addmm(bias, h, weight.T, out=result[chunk])
                if residual:
                    result[chunk] += of_chunk
        results = [result.view(*x.shape[:-1], result.shape[1]) for result in results]
        for result in results:
            for t in plus:
                result += t
        ctx.save_for_backward(x, *tensors[: sum(sizes)])
        ctx.hidden, ctx.residual, ctx.sizes, ctx.n_plus = hidden, residual, sizes, len(plus)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        hidden, residual, n = ctx.hidden, ctx.residual, ctx.sizes[0]
        parameters, maps, _ = _parts(tensors, ctx.sizes)
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        of_plus = [sum(grads[1:], start=grads[0])] * ctx.n_plus if ctx.n_plus else []
        needed = needed[: 1 + sum(ctx.sizes)]
        if torch.is_grad_enabled():
            asked = [t for t, need in zip((x, *tensors), needed, strict=True) if need]
            outputs = _whole(x, hidden, parameters, maps, residual, ())
            found = iter(torch.autograd.grad(outputs, asked, grads, create_graph=True))
            dx, *rest = (next(found) if need else None for need in needed)
            return dx, None, None, None, *rest, *of_plus

        tokens, *ds = (t.reshape(-1, t.shape[-1]) for t in (x, *grads))
        dx = torch.empty_like(tokens) if needed[0] else None
        totals = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed[1:], strict=True)]
        leaves = [
            t.detach().requires_grad_(need) for t, need in zip(parameters, needed[1 : n + 1], strict=True)
        ]
        for chunk in _chunks(tokens, parameters, maps):
            of_chunk = tokens[chunk].detach().requires_grad_(dx is not None)
            with torch.enable_grad():
                h = hidden(of_chunk, *leaves)
            straight = dx[chunk] if dx is not None and h is of_chunk else None
            dh = _back_through_maps(h.detach(), maps, [d[chunk] for d in ds], totals[n:], straight)
            wanted = [t for t in (of_chunk, *leaves) if t.requires_grad]
            found = iter(torch.autograd.grad(h, wanted, dh) if wanted and straight is None else [dh])
            if dx is not None:
                parts = [next(found), *(d[chunk] for d in ds if residual)]
                if len(parts) > 1:
                    torch.add(parts[0], sum(parts[2:], start=parts[1]), out=dx[chunk])
                elif straight is None:
                    dx[chunk] = parts[0]
            for total in totals[:n]:
                if total is not None:
                    total += next(found)
        return None if dx is None else dx.view(x.shape), None, None, None, *totals, *of_plus


def _back_through_maps(
    h: Tensor,
    maps: Sequence[tuple[Tensor, Tensor | None]],
    ds: Sequence[Tensor],
    totals: Sequence[Tensor | None],
    out: Tensor | None,
) -> Tensor:
    """The gradient of the hidden channels, in `out` if given; those of the maps are added to their totals."""
    dh = torch.empty_like(h) if out is None else out
    for i, ((weight, _), d) in enumerate(zip(maps, ds, strict=True)):
        of_weight, of_bias = totals[2 * i : 2 * i + 2]
        if of_weight is not None:
            of_weight.addmm_(d.T, h)
        if of_bias is not None:
            of_bias += d.sum(0)
        dh = dh.addmm_(d, weight) if i else torch.mm(d, weight, out=dh)
    return dh


def _parts(
    tensors: Sequence[Any], sizes: tuple[int, int]
) -> tuple[Sequence[Tensor], list[tuple[Tensor, Tensor | None]], Sequence[Tensor]]:
    """Parameters before the maps, the maps' weights and biases, and what is added."""
    first, last = sizes[0], sum(sizes)
    pairs = zip(tensors[first:last:2], tensors[first + 1 : last : 2], strict=True)
    return tensors[:first], list(pairs), tensors[last:]


def _chunks(
    tokens: Tensor, parameters: Sequence[Tensor], maps: Sequence[tuple[Tensor, Tensor | None]]
) -> list[slice]:
    """All points, so many at once as give the widest field of a chunk."""
    widest = max(tokens.shape[1], *(len(t) for t in (*parameters, *(weight for weight, _ in maps))))
    step = max(1, _NUMBERS * torch.get_num_threads() // widest)
    return [slice(first, first + step) for first in range(0, len(tokens), step)]
