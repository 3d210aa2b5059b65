"""Attention of one level as one function of its points, by the compiled library.

`mano_op.layers.attention.WindowAttention` with one backward pass: LayerNorms, queries, keys and values,
attention, a linear map, sums. On a coarse level calls would take longer than the work; on a fine one, sums
are done while their numbers are in the cache. Large queries, keys and values are recomputed in the backward
pass: a tenth more arithmetic of a block, for half of the memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from mano_op.layers.native.call import may_call
from mano_op.layers.native.window import Windows
from mano_op.layers.points import Hidden, Through, Total, add_in_place, chunks, fit_in_chunks, is_kept
from mano_op.layers.replay import replay
from mano_op.layers.scores import LEAST_NORM, STEEPEST, scored, steep


class Parts(NamedTuple):
    """LayerNorms, number of heads and windows of a level."""

    norms: Hidden
    heads: int
    windows: Windows


class Projection(NamedTuple):
    """Parameters of the maps to queries, keys and values; `logit_scale`, ``(heads,)``, is for cosines."""

    weight: Tensor
    q_bias: Tensor | None = None
    v_bias: Tensor | None = None
    logit_scale: Tensor | None = None


def attend_on_level(
    x: Tensor,
    parts: Parts,
    parameters: Sequence[Tensor],
    qkv: Projection,
    out: tuple[Tensor, Tensor | None],
    table: Tensor | None,
    plus: Sequence[Tensor] = (),
) -> Tensor | None:
    """Attend within windows, and add the fields of `plus`; None where a parameter or the field does not fit.

    Parameters
    ----------
    x : Tensor, ``(batch, *grid, channels)``
    parts : Parts
    parameters : sequence of Tensor
        Of the LayerNorms.
    qkv : Projection
    out : (Tensor, Tensor or None)
        Weight and bias of the linear map after the attention.
    table : Tensor, optional
        Added to scores; see `mano_op.layers.native.window.Windows`.
    plus : sequence of Tensor, ``(batch, *grid, channels of the result)``
        `x` itself may be one of them.

    Returns
    -------
    Tensor, ``(batch, *grid, channels of the result)``
    """
    weight, bias = out
    added = [t for t in plus if t is not x]
    residual = len(plus) - len(added)
    tensors = [*parameters, *qkv, weight, bias, *added]
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
        parameters, qkv, (weight, bias), plus = _split(tensors, n_norms)
        tokens, added = (x.reshape(-1, x.shape[-1]), [t.reshape(-1, t.shape[-1]) for t in plus])
        projected = _Projected.of(
            x, tokens, Through(parts.norms, parameters, natively=True), qkv, parts.heads
        )
        q, k, v = projected.together
        attended, kept = parts.windows.attend(q, k, v, table, parts.heads, recorded=recorded)
        keep = recorded and is_kept(projected.together.numel())
        of_projected = (projected.together, projected.factors) if keep else (None, None)
        del q, k, v, projected
        rows = attended.flatten(0, 1)
        result = x.new_empty(*x.shape[:-1], len(weight))
        flat = result.view(-1, len(weight)) if len(tokens) else result
        for chunk in chunks(rows, [weight]):
            of_chunk = flat[chunk]
            torch.mm(rows[chunk], weight.T, out=of_chunk)
            first, *others = [t[chunk] for t in (*added, *[tokens] * residual)] or [None]
            for t, b in ((first, bias), *((t, None) for t in others)):
                add_in_place(of_chunk, b, t, natively=True)
        ctx.save_for_backward(x, table, attended, kept, *of_projected, *parameters, *qkv, weight, bias)
        ctx.parts, ctx.residual, ctx.n_norms, ctx.n_plus = parts, residual, n_norms, len(plus)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        # Once: a checkpoint gives them no second time.
        x, table, attended, kept, together, factors, *tensors = ctx.saved_tensors
        parts: Parts = ctx.parts
        needed = [*ctx.needs_input_grad[:2], *ctx.needs_input_grad[6 : 6 + len(tensors)]]
        of_plus = [grad] * ctx.n_plus
        if torch.is_grad_enabled():

            def definition(x: Tensor, table: Tensor | None, *tensors: Any) -> Tensor:
                return _definition(x, table, parts, ctx.residual, ctx.n_norms, tensors)

            dx, dtable, *rest = replay(definition, (x, table, *tensors), needed, grad)
            return dx, dtable, None, None, None, None, *rest, *of_plus

        parameters, qkv, (weight, _), _ = _split(tensors, ctx.n_norms)
        n = math.prod(x.shape[:-1])
        totals = [Total.of(t, need, n) for t, need in zip(tensors, needed[2:], strict=True)]
        of_norms, of_qkv, (of_weight, of_bias), _ = cast(Any, _split(totals, ctx.n_norms))
        tokens, of_result, rows = (t.reshape(-1, t.shape[-1]) for t in (x, grad, attended))
        of_attended = torch.empty_like(attended)
        flat = of_attended.flatten(0, 1)
        for chunk in chunks(rows, [weight]):
            d = of_result[chunk]
            torch.mm(d, weight, out=flat[chunk])
            if of_weight is not None:
                of_weight.add_product(d.T, rows[chunk])
            if of_bias is not None:
                of_bias.add(d.sum(0))
        through = Through(parts.norms, parameters, natively=True)
        if together is None:
            projected = _Projected.of(x, tokens, through, qkv, parts.heads)
        else:
            projected = _Projected(together, factors)
        q, k, v = projected.together
        *ds, dtable = parts.windows.gradients(q, k, v, table, parts.heads, kept, of_attended)
        if projected.factors is None:  # the way back needs no more than the gradients
            projected = _Projected(x.new_empty(0), None)
        del of_attended, flat, q, k, v, together
        ds = [d.flatten(0, 1) for d in ds]
        weights = qkv.weight.chunk(3)
        of_weights = [None] * 3 if of_qkv.weight is None else of_qkv.weight.chunk(3)
        dx = torch.empty_like(tokens) if needed[0] else None
        before = needed[0] or any(needed[2 : 2 + ctx.n_norms])
        for chunk in chunks(tokens, [*parameters, *weights]):
            of_ds = projected.back_to_projected(
                chunk, [d[chunk] for d in ds], qkv.logit_scale, of_qkv.logit_scale
            )
            for d, total in ((of_ds[0], of_qkv.q_bias), (of_ds[2], of_qkv.v_bias)):
                if total is not None:
                    total.add(d.sum(0))
            dh = None
            if before:
                dh = torch.mm(of_ds[0], weights[0])
                for d, of_part in zip(of_ds[1:], weights[1:], strict=True):
                    dh.addmm_(d, of_part)
            h, back = through.backward(tokens[chunk], dh, of_norms)
            for d, total in zip(of_ds, of_weights, strict=True):
                if total is not None:
                    total.add_product(d.T, h)
            if dx is not None and back is not None:
                if ctx.residual:
                    torch.add(back, of_result[chunk], alpha=ctx.residual, out=dx[chunk])
                else:
                    dx[chunk] = back
        of_x = None if dx is None else dx.view(x.shape)
        sums = [None if total is None else total.sum for total in totals]
        return of_x, dtable if needed[1] else None, None, None, None, None, *sums, *of_plus


class _Projected(NamedTuple):
    """Queries, keys and values, normalised for cosine scores.

    Attributes
    ----------
    together : Tensor, ``(3, batch, points, heads * head_dim)``
    factors : Tensor, optional, ``(2, batch * points, heads)``
        Factors of queries and keys, for cosine scores.
    """

    together: Tensor
    factors: Tensor | None

    @classmethod
    def of(cls, x: Tensor, tokens: Tensor, through: Through, qkv: Projection, heads: int) -> _Projected:
        """Compute queries, keys and values of all points."""
        weights, biases = qkv.weight.chunk(3), (qkv.q_bias, None, qkv.v_bias)
        together = x.new_empty(3, len(x), math.prod(x.shape[1:-1]), len(weights[0]))
        flat = together.flatten(1, 2)
        factors = numerators = None
        if qkv.logit_scale is not None:
            factors = x.new_empty(2, len(tokens), heads)
            of_queries = steep(qkv.logit_scale) * math.sqrt(len(weights[0]) // heads)
            numerators = of_queries, torch.ones_like(of_queries)
        for chunk in chunks(tokens, [*through.parameters, *weights]):
            h = through.forward(tokens[chunk])
            for weight, bias, part in zip(weights, biases, flat, strict=True):
                torch.mm(h, weight.T, out=part[chunk])
                add_in_place(part[chunk], bias, None, natively=True)
            if factors is not None and numerators is not None:
                for part, factor, numerator in zip(flat, factors, numerators, strict=False):
                    by_head = part[chunk].unflatten(-1, (heads, -1))
                    norms = torch.linalg.vector_norm(by_head, dim=-1).clamp_(min=LEAST_NORM)
                    torch.div(numerator, norms, out=factor[chunk])
                    by_head *= factor[chunk][..., None]
        return cls(together, factors)

    def back_to_projected(
        self,
        chunk: slice,
        ds: Sequence[Tensor],
        logit_scale: Tensor | None,
        of_scale: Total | None,
    ) -> list[Tensor]:
        r"""Turn gradients of queries, keys and values of a block into those of the raw projections.

        For :math:`u = c\, \hat t,\ \hat t = t / |t|` with a constant c it is
        :math:`\frac{c}{|t|} (g - \hat t\, (\hat t \cdot g))`, and :math:`u \cdot g` is that of the logarithm
        of c. Where :math:`|t|` is too small to divide by, it is a constant too.
        """
        if self.factors is None or logit_scale is None:
            return list(ds)
        heads = self.factors.shape[-1]
        constant = steep(logit_scale) * math.sqrt(ds[0].shape[-1] // heads)
        gradients = []
        for i, (d, c) in enumerate(zip(ds[:2], (constant, torch.ones_like(constant)), strict=True)):
            g, factor = d.unflatten(-1, (heads, -1)), self.factors[i][chunk]
            unit = self.together[i].flatten(0, 1)[chunk].unflatten(-1, (heads, -1)) / c[:, None]
            along = (unit * g).sum(-1)
            if i == 0 and of_scale is not None:
                of_scale.add((along * c).sum(0) * (logit_scale <= STEEPEST))
            back = torch.addcmul(g, unit, (along * (factor < c / LEAST_NORM))[..., None], value=-1)
            back *= factor[..., None]
            gradients.append(back.flatten(-2))
        return [*gradients, ds[2]]


def _definition(
    x: Tensor, table: Tensor | None, parts: Parts, residual: int, n_norms: int, tensors: Sequence[Any]
) -> Tensor:
    """The definition of `_Level`, without the fields of `plus`."""
    parameters, qkv, (weight, bias), _ = _split(tensors, n_norms)
    q, k, v = F.linear(parts.norms(x, *parameters), qkv.weight).flatten(1, -2).chunk(3, -1)
    q = q if qkv.q_bias is None else q + qkv.q_bias
    v = v if qkv.v_bias is None else v + qkv.v_bias
    q, k, v = scored({"q": q, "k": k, "v": v}, parts.heads, qkv.logit_scale)
    attended = parts.windows.whole(q, k, v, table, parts.heads).unflatten(1, x.shape[1:-1])
    return F.linear(attended, weight, bias) + residual * x


def _split(
    tensors: Sequence[Any], n_norms: int
) -> tuple[Sequence[Any], Projection, Sequence[Any], Sequence[Any]]:
    """Split tensors into LayerNorms, projection before attention, weight and bias after it, fields to add."""
    after = n_norms + len(Projection._fields)
    return (
        tensors[:n_norms],
        Projection(*tensors[n_norms:after]),
        tensors[after : after + 2],
        tensors[after + 2 :],
    )
