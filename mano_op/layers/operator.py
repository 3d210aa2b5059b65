r"""Attention within windows as an operator of torch, ``torch.ops.mano_op.window_attention``.

Windows are lists: which points ask (targets), which are asked (sources), which of these are missing, and what
is added to the score of each pair. With the scores :math:`s_{ji} = k_j \cdot q_i / \sqrt{d} + b_{ji}` of
window m, in which target i has the share :math:`\sigma_{mi}`,

.. math::

    o_i = \sum_{m \ni i} \sigma_{mi} \sum_{j \in m} p_{ji} v_j, \qquad
    p_{ji} = \frac{e^{s_{ji}}}{\sum_{l \in m} e^{s_{li}}} .

The backward pass recomputes the scores, so that nothing of their size is kept:

.. math::

    dv_j &= \sum_i p_{ji}\, do_i, &
    ds_{ji} &= p_{ji} \Big(v_j \cdot do_i - \sum_l p_{li}\, v_l \cdot do_i\Big), \\
    dq_i &= \frac{1}{\sqrt d} \sum_j ds_{ji}\, k_j, &
    dk_j &= \frac{1}{\sqrt d} \sum_i ds_{ji}\, q_i .

Softmax and sums are in single precision at least. Two kernels stand behind the operator,
``window_attention_forward`` and ``window_attention_backward``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# Scores that are held at a time on a CPU: a megabyte in single precision, which its cache holds.
_SCORES = 2**18
_INPUTS = "Tensor q, Tensor k, Tensor v, Tensor? bias"
_LISTS = "Tensor queries, Tensor keys, Tensor? share, Tensor? missing, int heads"
Bias = Tensor | None


class Lists(NamedTuple):
    """Windows as lists.

    Attributes
    ----------
    queries, keys : int Tensor, ``(windows, targets)`` and ``(windows, sources)``
        Targets and sources of each window.
    share : Tensor, optional, ``(windows, targets)``
        Weight of each result, 0 for a filler of a window with fewer targets; 1 if not given.
    missing : bool Tensor, optional, ``(windows, sources)``
        Fillers of windows with fewer sources.
    heads : int
    """

    queries: Tensor
    keys: Tensor
    share: Tensor | None
    missing: Tensor | None
    heads: int


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Bias, lists: Lists) -> Tensor:
    """Attend within windows.

    Parameters
    ----------
    q : Tensor, ``(batch, targets, heads * head_dim)``
    k, v : Tensor, ``(batch, sources, heads * head_dim)``
    bias : Tensor, optional, ``(windows or 1, heads, sources of a window, its targets)``
        Added to the scores.
    lists : Lists

    Returns
    -------
    Tensor, ``(batch, targets, heads * head_dim)``

    Examples
    --------
    With one window it is dense attention:

    >>> q, k, v = torch.randn(3, 1, 5, 8)
    >>> points = torch.arange(5)[None]
    >>> out = window_attention(q, k, v, None, Lists(points, points, None, None, heads=2))
    >>> heads = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    >>> dense = torch.nn.functional.scaled_dot_product_attention(*heads)
    >>> torch.allclose(out, dense.transpose(1, 2).flatten(2), atol=1e-6)
    True
    """
    if torch.compiler.is_exporting():  # for programs that may not have this package
        return definition(q, k, v, bias, *lists)
    # A compiler takes the operator as it is; a transform of torch.func needs the function itself.
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.mano_op.window_attention(q, k, v, bias, *lists)
    else:
        out = _Attention.apply(q, k, v, bias, *lists)
    return out


# By operations of torch


def definition(q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> Tensor:
    """Attend as `window_attention` by operations that can be differentiated any number of times."""
    windows, exact = Lists(*lists), _exact(q, k, v, bias)
    out = torch.zeros_like(exact[0], memory_format=torch.contiguous_format)
    return out.index_add(1, windows.queries.flatten(), _results(exact, windows)).to(q.dtype)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v and bias, given that of the result, by such operations too.

    That of a bias which is not given is empty.
    """
    windows, exact = Lists(*lists), _exact(q, k, v, bias)
    [exact_grad] = _exact(grad)
    *ds, dbias = _gradients(exact_grad, exact, windows)
    places = windows.queries, windows.keys, windows.keys
    sums = [
        torch.zeros_like(t).index_add(1, index.flatten(), d).to(t.dtype)
        for t, index, d in zip(exact[:3], places, ds, strict=True)
    ]
    return *(d.to(q.dtype) for d in sums), _of_bias(bias, [dbias], q)


def _results(inputs: Sequence[Any], windows: Lists) -> Tensor:
    """The weighted results of all windows, ``(batch, windows * targets, channels)``."""
    q, k, v, bias = _in_windows(inputs, windows)
    return _as_points(_weighted(_probabilities(q, k, bias, windows).mT @ v, windows))


def _gradients(grad: Tensor, inputs: Sequence[Any], windows: Lists) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in all windows: of queries, keys and values, as in `_results`, and of scores."""
    do = _weighted(_gathered(grad, windows.queries, windows.heads), windows)
    q, k, v, bias = _in_windows(inputs, windows)
    p, scale = _probabilities(q, k, bias, windows), q.shape[-1] ** -0.5
    dp = v @ do.mT
    ds = p * (dp - (p * dp).sum(-2, keepdim=True))
    dq = _weighted(ds.mT @ k, windows, factor=False) * scale
    return _as_points(dq), _as_points(ds @ q * scale), _as_points(p @ do), ds.sum(0)


def _probabilities(q: Tensor, k: Tensor, bias: Bias, windows: Lists) -> Tensor:
    """The softmax over the sources, ``(batch, windows, heads, sources, targets)``.

    With targets last, products and softmax take half of the time on a CPU.
    """
    scores = (k * q.shape[-1] ** -0.5) @ q.mT
    if bias is not None:
        scores = scores + bias
    if windows.missing is not None:
        scores = scores.masked_fill(windows.missing[:, None, :, None], -torch.inf)
    return scores.softmax(-2)


def _in_windows(inputs: Sequence[Any], windows: Lists) -> list[Any]:
    *qkv, bias = inputs
    pairs = zip(qkv, (windows.queries, windows.keys, windows.keys), strict=True)
    return [*(_gathered(t, index, windows.heads) for t, index in pairs), bias]


def _gathered(t: Tensor, index: Tensor, heads: int) -> Tensor:
    """Gather points ``(batch, points, channels)``: ``(batch, windows, heads, points, head_dim)``."""
    rows = t.index_select(1, index.flatten())
    return rows.view(t.shape[0], *index.shape, heads, t.shape[2] // heads).transpose(2, 3).contiguous()


def _as_points(t: Tensor) -> Tensor:
    """Turn the result of `_gathered` into ``(batch, windows * points, channels)``."""
    return t.transpose(2, 3).flatten(3).flatten(1, 2)


def _weighted(t: Tensor, windows: Lists, *, factor: bool = True) -> Tensor:
    """Weight the targets of windows; fillers become 0, whatever they are."""
    if windows.share is None:
        return t
    share = windows.share[:, None, :, None].to(t.dtype)
    return torch.where(share == 0, 0, t * share if factor else t)


def _exact(*tensors: Tensor | None) -> list[Any]:
    return [t if t is None else t.to(torch.promote_types(t.dtype, torch.float32)) for t in tensors]


def _of_bias(bias: Bias, parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """The gradient of the bias from that of scores in parts of the windows."""
    if bias is None:
        return like.new_zeros(0)
    if len(bias) > 1:
        return torch.cat(list(parts)).to(bias.dtype)
    sums = [part.sum(0, keepdim=True) for part in parts]
    return sum(sums[1:], start=sums[0]).to(bias.dtype)


# Some windows at a time


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> Tensor:
    """Attend as `definition`."""
    with torch.autocast(q.device.type, enabled=False):
        *exact, bias = _exact(q.contiguous(), k.contiguous(), v.contiguous(), bias)
        out = torch.zeros_like(exact[0])
        for part, of_part in _parts(q, bias, Lists(*lists)):
            out.index_add_(1, part.queries.flatten(), _results((*exact, of_part), part))
        return out.to(q.dtype)


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> tuple[Tensor, ...]:
    """Return what `gradients` does."""
    with torch.autocast(q.device.type, enabled=False):
        grad, *exact, exact_bias = _exact(*(t.contiguous() for t in (grad, q, k, v)), bias)
        sums, of_bias = [torch.zeros_like(t) for t in exact], []
        for part, of_part in _parts(q, exact_bias, Lists(*lists)):
            *ds, dbias = _gradients(grad, (*exact, of_part), part)
            for total, index, d in zip(sums, (part.queries, part.keys, part.keys), ds, strict=True):
                total.index_add_(1, index.flatten(), d)
            of_bias += [] if bias is None else [dbias]
        return *(d.to(q.dtype) for d in sums), _of_bias(bias, of_bias, q)


def _parts(q: Tensor, bias: Bias, windows: Lists) -> list[tuple[Lists, Bias]]:
    """Split the windows, so that the scores of a part fit the cache of a CPU; each with its bias."""
    step = count = max(1, len(windows.queries))
    if q.device.type == "cpu":
        scores = max(1, len(q) * windows.heads * windows.queries.shape[1] * windows.keys.shape[1])
        step = max(1, _SCORES * torch.get_num_threads() // scores)

    def split(t: Tensor | None) -> Sequence[Any]:
        return [t] * -(-count // step) if t is None or len(t) == 1 != count else t.split(step)

    parts = zip(*map(split, (*windows[:4], bias)), strict=True)
    return [(Lists(*cast(Any, lists), windows.heads), of_part) for *lists, of_part in parts]


_forward = torch.library.custom_op(
    "mano_op::window_attention_forward",
    forward,
    mutates_args=(),
    schema=f"({_INPUTS}, {_LISTS}) -> Tensor",
)
_backward = torch.library.custom_op(
    "mano_op::window_attention_backward",
    backward,
    mutates_args=(),
    schema=f"(Tensor grad, {_INPUTS}, {_LISTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
KERNELS: dict[Any, Callable[..., Any]] = {
    torch.ops.mano_op.window_attention_forward.default: forward,
    torch.ops.mano_op.window_attention_backward.default: backward,
}


@_forward.register_fake
def _(q: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *args: Any) -> tuple[Tensor, ...]:
    gradients = q, k, v, q.new_empty(0) if bias is None else bias
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in gradients)


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
    """Operations of the products of queries with keys, and of scores with values."""
    return int(4 * q[0] * queries[0] * queries[1] * keys[1] * q[2])


@register_flop_formula(torch.ops.mano_op.window_attention_backward)
def _(
    grad: Any, q: Any, k: Any, v: Any, bias: Any, queries: Any, keys: Any, *args: Any, **kwargs: Any
) -> int:
    """Operations of five such products."""
    return int(10 * q[0] * queries[0] * queries[1] * keys[1] * q[2])


# Derivatives of any order, forward and backward, under any transform of torch.func


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[:-1])
        ctx.save_for_forward(*inputs[:-1])
        ctx.heads = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *ds, dbias = _Gradients.apply(grad, *ctx.saved_tensors, ctx.heads)
        return *ds, None if ctx.saved_tensors[3] is None else dbias, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(definition, (*ctx.saved_tensors, ctx.heads), tangents)


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True
    setup_context = _Attention.setup_context

    @staticmethod
    def forward(*args: Any) -> Any:
        return _backward(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_floating, tensors, places = _closed(gradients, (*ctx.saved_tensors, ctx.heads))
        result: list[Any] = [None] * 10
        for place, d in zip(places, torch.func.vjp(of_floating, *tensors)[1](grads), strict=True):
            result[place] = d
        return tuple(result)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(gradients, (*ctx.saved_tensors, ctx.heads), tangents)


def _closed(
    function: Callable[..., Any], args: Sequence[Any]
) -> tuple[Callable[..., Any], list[Tensor], list[int]]:
    """The function of those arguments that have derivatives, these, and their places."""
    places = [i for i, t in enumerate(args) if isinstance(t, Tensor) and t.is_floating_point()]

    def of_floating(*tensors: Tensor) -> Any:
        filled = dict(zip(places, tensors, strict=True))
        return function(*(filled.get(i, t) for i, t in enumerate(args)))

    return of_floating, [args[i] for i in places], places


def _tangent(function: Callable[..., Any], args: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """The derivative of a function along tangents: the gradient of its gradients, which are linear.

    Forward differentiation itself cannot be nested.
    """
    of_floating, tensors, places = _closed(function, args)
    out, pull, *_ = torch.func.vjp(of_floating, *tensors)
    zeros = torch.zeros_like(out) if isinstance(out, Tensor) else tuple(map(torch.zeros_like, out))
    along = tuple(torch.zeros_like(args[i]) if tangents[i] is None else tangents[i] for i in places)
    [result] = torch.func.vjp(pull, zeros)[1](along)
    return result


torch.library.define("mano_op::window_attention", f"({_INPUTS}, {_LISTS}) -> Tensor")


@torch.library.impl("mano_op::window_attention", "CompositeImplicitAutograd")
def _(*args: Any) -> Tensor:
    out: Tensor = _Attention.apply(*args)
    return out
