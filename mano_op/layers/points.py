r"""Maps of each point's channels, on a CPU some points at a time.

A layer spends most of its arithmetic in linear maps that act on each point by itself, and before them a
normalisation, or an activation. Written one operation after another over all points, each makes a field in
fresh memory, and a CPU spends more time on that than on the products. Here as many points as fit the cache
go through all operations before the next ones do,

.. math:: y_i = W_i\, f(x) + b_i \quad (+\, x,\ + \text{other fields}),

with f that of `Hidden`. The backward pass computes f(x) again instead of keeping it, so that of a large field
of hidden channels nothing is ever in memory. It costs one more product for an MLP's first linear map. What
the activation is given is kept where it is no more than some megabytes.
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
# Numbers of a field, 28 MiB of them, that the backward pass finds as they were; larger ones it makes again.
# From 32 MiB on glibc gives memory back, and a field in fresh pages takes half as long to write as to make.
_KEPT = 7 * 2**20


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

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.eps) or self.activation is not None

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
    flat = [t for pair in maps for t in pair]
    if fit_in_chunks(x, [*parameters, *flat, *plus], maps, residual):
        sizes = len(parameters), len(flat)
        tensors = [*parameters, *flat, *plus]
        recorded = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *tensors))
        found: tuple[Tensor, ...] = _Chunked.apply(x, hidden, residual, recorded, sizes, *tensors)
        return found
    return _whole(x, hidden, parameters, maps, residual, plus)


def fit_in_chunks(
    x: Tensor,
    others: Sequence[Tensor | None],
    maps: Sequence[tuple[Tensor, Tensor | None]],
    residual: bool,
) -> bool:
    """Whether the points may go through in chunks; where something does not fit, torch says what."""
    return (
        x.dtype in (torch.float32, torch.float64)
        and on_cpu_eagerly(x)
        and not torch.is_autocast_enabled("cpu")
        and all(t.dtype == x.dtype and t.device == x.device for t in others if t is not None)
        and all(bias is None or bias.shape == weight.shape[:1] for weight, bias in maps)
        and not (residual and any(len(weight) != x.shape[-1] for weight, _ in maps))
    )


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
                return _whole(x, hidden, parameters, maps, residual, ())

            dx, *rest = replay(definition, (x, *tensors), needed, grads)
            return dx, None, None, None, None, *rest, *of_plus

        tokens, *ds = (t.reshape(-1, t.shape[-1]) for t in (x, *grads))
        through = Through(hidden, parameters, natively=may_call(x))
        dx = torch.empty_like(tokens) if needed[0] else None
        totals = [Total.of(t, need, len(tokens)) for t, need in zip(tensors, needed[1:], strict=True)]
        before = needed[0] or any(needed[1 : n + 1])  # whether a gradient goes further than the maps
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
    """The gradient of a parameter, added up over chunks; the first is written and not added to zeros.

    Parameters
    ----------
    total : Tensor
        Where it goes.
    begun : bool
        Whether there is something in it.
    """

    def __init__(self, total: Tensor, begun: bool) -> None:
        self.sum, self._begun = total, begun

    @classmethod
    def of(cls, parameter: Tensor | None, needed: bool, points: int) -> Total | None:
        """That of a parameter, if there is one and it needs one: of no points it is 0."""
        if parameter is None or not needed:
            return None
        return cls(torch.zeros_like(parameter) if points == 0 else torch.empty_like(parameter), points == 0)

    def chunk(self, chunks: int) -> list[Total]:
        """Those of parts of the parameter, which are added up by themselves."""
        return [Total(part, self._begun) for part in self.sum.chunk(chunks)]

    def add(self, part: Tensor) -> None:
        """Add a part."""
        if self._begun:
            self.sum += part
        else:
            self.sum.copy_(part)
        self._begun = True

    def add_product(self, one: Tensor, other: Tensor) -> None:
        """Add a product of two matrices."""
        if self._begun:
            self.sum.addmm_(one, other)
        else:
            torch.mm(one, other, out=self.sum)
        self._begun = True


class Through:
    """To the hidden channels of some points, and the way back through them."""

    def __init__(self, hidden: Hidden, parameters: Sequence[Tensor], *, natively: bool) -> None:
        self.hidden, self.parameters, self.natively = hidden, parameters, natively
        self.norms = list(zip(parameters[::2], parameters[1::2], hidden.eps, strict=False))
        self.layer = None if hidden.activation is None else tuple(parameters[-2:])
        self.by_gelu = (
            natively and type(hidden.activation) is nn.GELU and hidden.activation.approximate == "none"
        )

    def room(self, points: int) -> Tensor | None:
        """Where what the activation is given can be kept, if there is one and it is no large field."""
        if self.layer is None or not self.by_gelu or not is_kept(points * len(self.layer[0])):
            return None
        return self.layer[0].new_empty(points, len(self.layer[0]))

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """The hidden channels; what the activation is given, but for the bias, is put into `kept`."""
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
        """The hidden channels again, and from their gradient that of `x`; `totals` are of the parameters."""
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
            else:  # it stays as it is, for another backward pass
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
    """Add a bias and another field, if they are given."""
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
    """Parameters before the maps, the maps' weights and biases, and what is added."""
    first, last = sizes[0], sum(sizes)
    pairs = zip(tensors[first:last:2], tensors[first + 1 : last : 2], strict=True)
    return tensors[:first], list(pairs), tensors[last:]


def is_kept(numbers: int) -> bool:
    """Whether a field of so many numbers is kept for the backward pass, which otherwise makes it again."""
    return numbers <= _KEPT


def chunks(tokens: Tensor, tensors: Sequence[Tensor]) -> list[slice]:
    """All points, so many at once as give the widest field of a chunk; `tensors` have as many rows each."""
    widest = max(tokens.shape[1], *map(len, tensors))
    # The weights of wide fields do not fit the cache beside them, and are read again for each chunk.
    step = max(_ROWS, _NUMBERS // widest) * torch.get_num_threads()
    return [slice(first, first + step) for first in range(0, len(tokens), step)]
