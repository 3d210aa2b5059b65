r"""Attention within windows as an operator of torch, ``torch.ops.mano_op.window_attention``.

Windows are lists: which points ask (targets), which are asked (sources), which of these are missing, and what
is added to the score of each pair. With the scores :math:`s_{ji} = k_j \cdot q_i / \sqrt{d} + b_{ji}` of
window m, in which target i has the share :math:`\sigma_{mi}`,

.. math::

    o_i = \sum_{m \ni i} \sigma_{mi} \sum_{j \in m} p_{ji} v_j, \qquad
    p_{ji} = \frac{e^{s_{ji}}}{\sum_{l \in m} e^{s_{li}}} .

The backward pass recomputes the scores, so that nothing of their size is kept:

.. math::

    dv_j = \sum_i p_{ji}\, do_i, \qquad ds_{ji} = p_{ji} \Big(v_j \cdot do_i - \sum_l p_{li}\, v_l \cdot do_i\Big),
    \qquad dq_i = \frac{1}{\sqrt d} \sum_j ds_{ji}\, k_j, \qquad dk_j = \frac{1}{\sqrt d} \sum_i ds_{ji}\, q_i .

Softmax and sums are in single precision at least.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# Scores that are held at a time on a CPU: a megabyte in single precision, which its cache holds.
_SCORES = 2**18


def definition(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
) -> Tensor:
    """Attend within windows by operations of torch, which can be differentiated any number of times.

    Parameters
    ----------
    q : Tensor, ``(batch, targets, heads * head_dim)``
    k, v : Tensor, ``(batch, sources, heads * head_dim)``
    bias : Tensor, optional, ``(windows or 1, heads, keys, queries)``
        Added to the scores.
    queries, keys : int Tensor, ``(windows, queries)`` and ``(windows, keys)``
        Targets and sources of each window.
    share : Tensor, optional, ``(windows, queries)``
        Weight of each result, 0 for a filler of a window with fewer targets; 1 if not given.
    missing : bool Tensor, optional, ``(windows, keys)``
        Fillers of windows with fewer sources.
    heads : int

    Returns
    -------
    Tensor, ``(batch, targets, heads * head_dim)``
    """
    exact = _exact(q, k, v, bias)
    return q.new_zeros(exact[0].shape, dtype=exact[0].dtype).index_add(
        1, queries.flatten(), _results(*exact, queries, keys, share, missing, heads)
    ).to(q.dtype)


def gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and bias for a gradient of `definition`, by operations of torch.

    That of a bias which is not given is empty.
    """
    exact = _exact(q, k, v, bias)
    dq, dk, dv, dbias = _gradients(*exact, queries, keys, share, missing, heads, *_exact(grad))
    sums = [
        torch.zeros_like(t).index_add(1, index.flatten(), d)
        for t, index, d in zip(exact, (queries, keys, keys), (dq, dk, dv), strict=False)
    ]
    if bias is None:
        sums.append(dbias.new_zeros(0))
    else:
        sums.append(dbias.sum(0, keepdim=True) if len(bias) == 1 else dbias)
    return tuple(d.to(t.dtype) for d, t in zip(sums, (q, k, v, q if bias is None else bias), strict=True))


def _results(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
) -> Tensor:
    """The weighted results of all windows, ``(batch, windows * queries, channels)``."""
    q, k, v = _in_windows(q, queries, heads), _in_windows(k, keys, heads), _in_windows(v, keys, heads)
    return _as_points(_weighted(_probabilities(q, k, bias, missing).mT @ v, share))


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in all windows: of queries, keys and values, as in `_results`, and of scores."""
    q, k, v = _in_windows(q, queries, heads), _in_windows(k, keys, heads), _in_windows(v, keys, heads)
    do, p = _weighted(_in_windows(grad, queries, heads), share), _probabilities(q, k, bias, missing)
    dp = v @ do.mT
    ds = p * (dp - (p * dp).sum(-2, keepdim=True))
    scale = q.shape[-1] ** -0.5
    dq, dk, dv = _weighted(ds.mT @ k, share, factor=False) * scale, ds @ q * scale, p @ do
    return _as_points(dq), _as_points(dk), _as_points(dv), ds.sum(0)


def _probabilities(q: Tensor, k: Tensor, bias: Tensor | None, missing: Tensor | None) -> Tensor:
    """The softmax over the keys, ``(batch, windows, heads, keys, queries)``.

    With queries last, products and softmax take half of the time on a CPU.
    """
    scores = (k * q.shape[-1] ** -0.5) @ q.mT
    if bias is not None:
        scores = scores + bias
    if missing is not None:
        scores = scores.masked_fill(missing[:, None, :, None], -torch.inf)
    return scores.softmax(-2)


def _in_windows(t: Tensor, index: Tensor, heads: int) -> Tensor:
    """Gather points ``(batch, points, channels)``: ``(batch, windows, heads, points, head_dim)``."""
    rows = t.index_select(1, index.flatten())
    return rows.view(t.shape[0], *index.shape, heads, t.shape[2] // heads).transpose(2, 3).contiguous()


def _as_points(t: Tensor) -> Tensor:
    """Turn the result of `_in_windows` into ``(batch, windows * points, channels)``."""
    return t.transpose(2, 3).flatten(3).flatten(1, 2)


def _weighted(t: Tensor, share: Tensor | None, *, factor: bool = True) -> Tensor:
    """Weight the points of windows; fillers become 0, whatever they are."""
    if share is None:
        return t
    share = share[:, None, :, None].to(t.dtype)
    return torch.where(share == 0, 0, t * share if factor else t)


def _exact(*tensors: Tensor | None) -> list[Any]:
    return [t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


# The operators


@torch.library.custom_op("mano_op::window_attention_forward", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        exact = _exact(q.contiguous(), k.contiguous(), v.contiguous(), bias)
        out = torch.zeros_like(exact[0])
        for part in _parts(q, exact[3], queries, keys, share, missing, heads):
            out.index_add_(1, part[1].flatten(), _results(*exact[:3], *part, heads))
        return out.to(q.dtype)


@torch.library.custom_op("mano_op::window_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(q.device.type, enabled=False):
        *exact, bias_, grad = _exact(q.contiguous(), k.contiguous(), v.contiguous(), bias, grad.contiguous())
        dq, dk, dv = (torch.zeros_like(t) for t in exact)
        of_bias = []
        for part in _parts(q, bias_, queries, keys, share, missing, heads):
            *ds, dbias = _gradients(*exact, *part, heads, grad)
            for total, index, d in zip((dq, dk, dv), (part[1], part[2], part[2]), ds, strict=True):
                total.index_add_(1, index.flatten(), d)
            if bias is not None:
                of_bias.append(dbias.sum(0, keepdim=True) if len(bias) == 1 else dbias)
        if bias is None:
            db = q.new_zeros(0)
        else:
            db = (sum(of_bias[1:], start=of_bias[0]) if len(bias) == 1 else torch.cat(of_bias)).to(bias.dtype)
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), db


def _parts(
    q: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
) -> list[tuple[Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Split the windows, so that the scores of a part fit the cache of a CPU."""
    step, windows = max(len(queries), 1), len(queries)
    if q.device.type == "cpu":
        scores = max(1, len(q) * heads * queries.shape[1] * keys.shape[1])
        step = max(1, _SCORES * torch.get_num_threads() // scores)

    def split(t: Tensor | None) -> Sequence[Tensor | None]:
        return [t] * -(-windows // step) if t is None else t.split(step)

    shared = bias is None or len(bias) == 1
    biases = [bias] * -(-windows // step) if shared else split(bias)
    return list(zip(biases, *map(split, (queries, keys, share, missing)), strict=True))


@_forward.register_fake
def _(q: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *args: Any) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in (q, k, v, q.new_empty(0) if bias is None else bias)
    )


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an operator under `torch.vmap`: a call for each entry."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        entries = [
            operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        if isinstance(entries[0], Tensor):
            return torch.stack(entries), 0
        return tuple(map(torch.stack, zip(*entries, strict=True))), (0,) * len(entries[0])

    return rule


for _operator in (_forward, _backward):
    _operator.register_vmap(_one_by_one(_operator))


@register_flop_formula(torch.ops.mano_op.window_attention_forward)
def _(q: Any, k: Any, v: Any, bias: Any, queries: Any, keys: Any, *args: Any, **kwargs: Any) -> int:
    return 4 * q[0] * queries[0] * queries[1] * keys[1] * q[2]


@register_flop_formula(torch.ops.mano_op.window_attention_backward)
def _(q: Any, k: Any, v: Any, bias: Any, queries: Any, keys: Any, *args: Any, **kwargs: Any) -> int:
    return 10 * q[0] * queries[0] * queries[1] * keys[1] * q[2]


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:8])
        ctx.save_for_forward(*inputs[:8])
        ctx.heads = inputs[8]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        bias = ctx.saved_tensors[3]
        *ds, dbias = _Gradients.apply(*ctx.saved_tensors, ctx.heads, grad)
        return *ds, None if bias is None else dbias, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(definition, (*ctx.saved_tensors, ctx.heads), tangents)


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        tensors = *inputs[:8], inputs[9]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.heads = inputs[8]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        *tensors, grad = ctx.saved_tensors
        return _pulled_back(gradients, (*tensors, ctx.heads, grad), grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *tensors, grad = ctx.saved_tensors
        return _tangent(gradients, (*tensors, ctx.heads, grad), tangents)


def _floating(args: Sequence[Any]) -> list[int]:
    return [i for i, t in enumerate(args) if isinstance(t, Tensor) and t.is_floating_point()]


def _closed(function: Callable[..., Any], args: Sequence[Any]) -> tuple[Callable[..., Any], list[Tensor]]:
    """The function of those arguments that have derivatives."""
    places = _floating(args)

    def of_floating(*tensors: Tensor) -> Any:
        filled = list(args)
        for place, t in zip(places, tensors, strict=True):
            filled[place] = t
        return function(*filled)

    return of_floating, [args[place] for place in places]


def _pulled_back(function: Callable[..., Any], args: Sequence[Any], grads: Any) -> tuple[Any, ...]:
    """The gradients of all arguments, given those of the results."""
    of_floating, tensors = _closed(function, args)
    result: list[Any] = [None] * len(args)
    for place, d in zip(_floating(args), torch.func.vjp(of_floating, *tensors)[1](grads), strict=True):
        result[place] = d
    return tuple(result)


def _tangent(function: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """The derivative of a function along tangents: the gradient of its gradients, which are linear.

    Forward differentiation itself cannot be nested.
    """
    of_floating, tensors = _closed(function, args)
    out, pull = torch.func.vjp(of_floating, *tensors)
    zeros = torch.zeros_like(out) if isinstance(out, Tensor) else tuple(map(torch.zeros_like, out))
    along = tuple(
        torch.zeros_like(args[i]) if tangents[i] is None else tangents[i] for i in _floating(args)
    )
    [result] = torch.func.vjp(pull, zeros)[1](along)
    return result


torch.library.define(
    "mano_op::window_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? bias, Tensor queries, Tensor keys, Tensor? share, "
    "Tensor? missing, int heads) -> Tensor",
)


@torch.library.impl("mano_op::window_attention", "CompositeImplicitAutograd")
def _window_attention(*args: Any) -> Tensor:
    out: Tensor = _Attention.apply(*args)
    return out


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    queries: Tensor,
    keys: Tensor,
    share: Tensor | None,
    missing: Tensor | None,
    heads: int,
) -> Tensor:
    """Attend within windows by the operator; arguments are those of `definition`.

    Examples
    --------
    With one window it is dense attention:

    >>> q, k, v = torch.randn(3, 1, 5, 8)
    >>> points = torch.arange(5)[None]
    >>> out = window_attention(q, k, v, None, points, points, None, None, 2)
    >>> heads = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    >>> dense = torch.nn.functional.scaled_dot_product_attention(*heads)
    >>> torch.allclose(out, dense.transpose(1, 2).flatten(2), atol=1e-6)
    True
    """
    args = q, k, v, bias, queries, keys, share, missing, heads
    if torch.compiler.is_exporting():  # for programs that may not have this package
        return definition(*args)
    # A compiler takes the operator as it is; a transform of torch.func needs the function itself.
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.mano_op.window_attention(*args)
    else:
        out = _Attention.apply(*args)
    return out
