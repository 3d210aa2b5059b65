"""The attention of one level as one function of its points, by the compiled library.

What `mano_op.layers.attention.WindowAttention` does in steps, each with a backward pass of its own:
LayerNorms, queries, keys and values, attention in windows, a linear map, sums. A coarse level has so few
points that what surrounds such a step takes longer than the step; and on a fine one, sums are done while
their numbers are in the cache. Queries, keys and values are made again in the backward pass: a tenth more of
a block's arithmetic, for half of what it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.layers.native.call import may_call
from mano_op.layers.native.window import Windows
from mano_op.layers.points import Hidden, Through, add_in_place, chunks, fit_in_chunks


@dataclass(frozen=True)
class Parts:
    """What a level is made of, beside its parameters.

    Attributes
    ----------
    norms : Hidden
        The LayerNorms.
    heads : int
    windows : Windows
    """

    norms: Hidden
    heads: int
    windows: Windows


def attend_on_level(
    x: Tensor,
    parts: Parts,
    parameters: Sequence[Tensor],
    qkv: Tensor,
    out: tuple[Tensor, Tensor | None],
    table: Tensor | None,
    plus: Sequence[Tensor] = (),
) -> Tensor | None:
    """The attention of all points to those of their windows, and the fields of `plus`; None if it cannot be.

    Parameters
    ----------
    x : Tensor, ``(batch, *grid, channels)``
    parts : Parts
    parameters : sequence of Tensor
        Of the LayerNorms.
    qkv : Tensor, ``(3 * heads * head_dim, channels)``
    out : (Tensor, Tensor or None)
        Weight and bias of the linear map after the attention.
    table : Tensor, optional
        What is added to scores, as `parts.windows` have it.
    plus : sequence of Tensor, ``(batch, *grid, channels of the result)``
        If one of them is `x` itself, its two gradients are added up on the way.

    Returns
    -------
    Tensor, ``(batch, *grid, channels of the result)``
    """
    weight, bias = out
    added = [t for t in plus if t is not x]
    residual = len(plus) - len(added)
    tensors = [*parameters, qkv, weight, bias, *added]
    given = [t for t in (*tensors, table) if t is not None]
    same = residual == 0 or len(weight) == x.shape[-1]
    if not (same and may_call(x) and fit_in_chunks(x, given, [out], residual=False)):
        return None
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *given))
    result: Tensor = _Level.apply(x, table, parts, residual, recorded, len(parameters), *tensors)
    return result


class _Level(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor | None,
        parts: Parts,
        residual: int,
        recorded: bool,
        n_norms: int,
        *tensors: Any,
    ) -> Tensor:
        parameters, (qkv, weight, bias), plus = _split(tensors, n_norms)
        tokens, added = (x.reshape(-1, x.shape[-1]), [t.reshape(-1, t.shape[-1]) for t in plus])
        q, k, v = _projected(x, tokens, Through(parts.norms, parameters, natively=True), qkv)
        attended, kept = parts.windows.attend(q, k, v, table, parts.heads, recorded=recorded)
        del q, k, v
        rows = attended.flatten(0, 1)
        result = x.new_empty(*x.shape[:-1], len(weight))
        flat = result.view(-1, len(weight)) if len(tokens) else result
        for chunk in chunks(rows, [weight]):
            of_chunk = flat[chunk]
            torch.mm(rows[chunk], weight.T, out=of_chunk)
            first, *others = [t[chunk] for t in (*added, *[tokens] * residual)] or [None]
            for t, b in ((first, bias), *((t, None) for t in others)):
                add_in_place(of_chunk, b, t, natively=True)
        ctx.save_for_backward(x, table, attended, kept, *parameters, qkv, weight, bias)
        ctx.parts, ctx.residual, ctx.n_norms, ctx.n_plus = parts, residual, n_norms, len(plus)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, table, attended, kept, *tensors = ctx.saved_tensors  # once: a checkpoint gives them no second time
        parts: Parts = ctx.parts
        needed = [*ctx.needs_input_grad[:2], *ctx.needs_input_grad[6 : 6 + len(tensors)]]
        of_plus = [grad] * ctx.n_plus
        if torch.is_grad_enabled():
            # Of these very uses: `x` may itself depend on the same parameters.
            every: list[Any] = [t if t is None else t.view_as(t) for t in (x, table, *tensors)]
            result = _whole(every[0], every[1], parts, ctx.residual, ctx.n_norms, every[2:])
            asked = [t for t, need in zip(every, needed, strict=True) if need]
            found = iter(torch.autograd.grad(result, asked, grad, create_graph=True))
            dx, dtable, *rest = (next(found) if need else None for need in needed)
            return dx, dtable, None, None, None, None, *rest, *of_plus

        parameters, (qkv, weight, _), _ = _split(tensors, ctx.n_norms)
        totals = [torch.zeros_like(t) if need else None for t, need in zip(tensors, needed[2:], strict=True)]
        of_norms, (of_qkv, of_weight, of_bias), _ = _split(totals, ctx.n_norms)
        tokens, of_result, rows = (t.reshape(-1, t.shape[-1]) for t in (x, grad, attended))
        of_attended = torch.empty_like(attended)
        flat = of_attended.flatten(0, 1)
        for chunk in chunks(rows, [weight]):
            d = of_result[chunk]
            torch.mm(d, weight, out=flat[chunk])
            if of_weight is not None:
                of_weight.addmm_(d.T, rows[chunk])
            if of_bias is not None:
                of_bias += d.sum(0)
        through = Through(parts.norms, parameters, natively=True)
        q, k, v = _projected(x, tokens, through, qkv)
        *ds, dtable = parts.windows.gradients(q, k, v, table, parts.heads, kept, of_attended)
        del q, k, v, of_attended, flat
        ds = [d.flatten(0, 1) for d in ds]
        weights = qkv.chunk(3)
        of_weights = [None] * 3 if of_qkv is None else of_qkv.chunk(3)
        dx = torch.empty_like(tokens) if needed[0] else None
        before = needed[0] or any(needed[2 : 2 + ctx.n_norms])
        for chunk in chunks(tokens, [*parameters, *weights]):
            of_ds = [d[chunk] for d in ds]
            dh = None
            if before:
                dh = torch.mm(of_ds[0], weights[0])
                for d, of_part in zip(of_ds[1:], weights[1:], strict=True):
                    dh.addmm_(d, of_part)
            h, back = through.backward(tokens[chunk], dh, of_norms)
            for d, total in zip(of_ds, of_weights, strict=True):
                if total is not None:
                    total.addmm_(d.T, h)
            if dx is not None and back is not None:
                if ctx.residual:
                    torch.add(back, of_result[chunk], alpha=ctx.residual, out=dx[chunk])
                else:
                    dx[chunk] = back
        of_x = None if dx is None else dx.view(x.shape)
        return of_x, dtable if needed[1] else None, None, None, None, None, *totals, *of_plus


def _projected(x: Tensor, tokens: Tensor, through: Through, qkv: Tensor) -> Tensor:
    """Queries, keys and values, ``(3, batch, points, heads * head_dim)``, each of them without gaps."""
    weights = qkv.chunk(3)
    together = x.new_empty(3, len(x), math.prod(x.shape[1:-1]), len(weights[0]))
    for chunk in chunks(tokens, [*through.parameters, *weights]):
        h = through.forward(tokens[chunk])
        for weight, part in zip(weights, together.flatten(1, 2), strict=True):
            torch.mm(h, weight.T, out=part[chunk])
    return together


def _whole(
    x: Tensor, table: Tensor | None, parts: Parts, residual: int, n_norms: int, tensors: Sequence[Any]
) -> Tensor:
    """The definition of what `_Level` gives, but for the fields that are added, by operations of torch."""
    parameters, (qkv, weight, bias), _ = _split(tensors, n_norms)
    q, k, v = F.linear(parts.norms(x, *parameters), qkv).flatten(1, -2).chunk(3, -1)
    attended = parts.windows.whole(q, k, v, table, parts.heads).unflatten(1, x.shape[1:-1])
    return F.linear(attended, weight, bias) + residual * x


def _split(tensors: Sequence[Any], n_norms: int) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    """Parameters of norms; the weight before attention, and weight and bias after it; the rest."""
    return tensors[:n_norms], tensors[n_norms : n_norms + 3], tensors[n_norms + 3 :]
