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
``window_attention_forward`` and ``window_attention_backward``: those of `mano_op.layers.native` in single
precision on a CPU, of `mano_op.layers.kernels` on a GPU with Triton, else operations of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mano_op.errors import InputError
from mano_op.layers.native import kernel as native

# Scores that are held at a time on a CPU: a megabyte in single precision, which its cache holds.
_SCORES = 2**18
_TRITON = find_spec("triton") is not None  # it is imported where it is used
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

    def part(self, windows: Tensor | slice) -> Lists:
        """Return some of the windows."""
        share, missing = (None if t is None else t[windows] for t in (self.share, self.missing))
        return Lists(self.queries[windows], self.keys[windows], share, missing, self.heads)


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
        out, _ = _Attention.apply(q, k, v, bias, *lists)
    return out


# By operations of torch


def definition(q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> Tensor:
    """Attend as `window_attention` by operations that can be differentiated any number of times."""
    windows, inputs = Lists(*lists), _inputs(q, k, v, bias, lists[-1])
    rows = _results(inputs, windows)
    # Not `index_add`: onnxruntime shares out the rows of a ScatterND, and loses sums of one point.
    targets = windows.queries.flatten().long()[:, None].expand(rows.shape)
    return _as_points(torch.zeros_like(inputs[0]).scatter_add(2, targets, rows)).to(q.dtype)


def gradients(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> tuple[Tensor, ...]:
    """Return the gradients of q, k, v and bias, given that of the result, by such operations too.

    That of a bias which is not given is empty.
    """
    windows, inputs = Lists(*lists), _inputs(q, k, v, bias, lists[-1])
    *ds, dbias = _gradients(_by_head(grad, windows.heads), inputs, windows)
    sums = [
        torch.zeros_like(t).index_add(2, index.flatten(), d)
        for t, index, d in zip(inputs[:3], (windows.queries, windows.keys, windows.keys), ds, strict=True)
    ]
    return *_of_inputs(sums, q), bias_gradient(bias, [dbias], q)


def _results(inputs: Sequence[Any], windows: Lists) -> Tensor:
    """The weighted results of all windows, ``(batch, heads, windows * targets, head_dim)``."""
    q, k, v, bias = _in_windows(inputs, windows)
    return _weighted(_probabilities(q, k, bias, windows).mT @ v, windows).flatten(2, 3)


def _gradients(grad: Tensor, inputs: Sequence[Any], windows: Lists) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in all windows: of queries, keys and values, as in `_results`, and of scores."""
    do = _weighted(_gathered(grad, windows.queries), windows)
    q, k, v, bias = _in_windows(inputs, windows)
    p = _probabilities(q, k, bias, windows)
    dp = v @ do.mT
    ds = p * (dp - (p * dp).sum(-2, keepdim=True))
    dq = _weighted(ds.mT @ k, windows, factor=False)
    return dq.flatten(2, 3), (ds @ q).flatten(2, 3), (p @ do).flatten(2, 3), ds.sum(0).transpose(0, 1)


def _probabilities(q: Tensor, k: Tensor, bias: Bias, windows: Lists) -> Tensor:
    """The softmax over the sources, ``(batch, heads, windows, sources, targets)``, for scaled queries.

    With targets last, products and softmax take half of the time on a CPU.
    """
    scores = k @ q.mT
    if bias is not None:
        scores = scores + bias.transpose(0, 1)
    if windows.missing is not None:
        scores = scores.masked_fill(windows.missing[:, :, None], -torch.inf)
    return scores.softmax(-2)


def _in_windows(inputs: Sequence[Any], windows: Lists) -> list[Any]:
    q, k, v, bias = inputs
    return [_gathered(q, windows.queries), _gathered(k, windows.keys), _gathered(v, windows.keys), bias]


def _gathered(t: Tensor, index: Tensor) -> Tensor:
    """Gather points ``(batch, heads, points, head_dim)``: ``(batch, heads, windows, points, head_dim)``."""
    return t.index_select(2, index.flatten()).unflatten(2, index.shape)


def _weighted(t: Tensor, windows: Lists, *, factor: bool = True) -> Tensor:
    """Weight the targets of windows; fillers become 0, whatever they are."""
    if windows.share is None:
        return t
    share = windows.share[:, :, None].to(t.dtype)
    return torch.where(share == 0, 0, t * share if factor else t)


def _by_head(t: Tensor, heads: int) -> Tensor:
    """Turn points into ``(batch, heads, points, head_dim)``, in single precision at least."""
    exact = t.to(torch.promote_types(t.dtype, torch.float32))
    return exact.unflatten(2, (heads, -1)).transpose(1, 2).contiguous()


def _as_points(t: Tensor) -> Tensor:
    """Turn the result of `_by_head` into points."""
    return t.transpose(1, 2).flatten(2)


def _inputs(q: Tensor, k: Tensor, v: Tensor, bias: Bias, heads: int) -> list[Any]:
    """Queries over the square root of d, keys, values and bias, in single precision at least."""
    q, k, v = (_by_head(t, heads) for t in (q, k, v))
    return [q * q.shape[3] ** -0.5, k, v, None if bias is None else bias.to(q.dtype)]


def _of_inputs(sums: Sequence[Tensor], q: Tensor) -> list[Tensor]:
    """Turn the gradients of `_inputs` into those of queries, keys and values."""
    dq, dk, dv = sums
    return [_as_points(d).to(q.dtype) for d in (dq * dq.shape[3] ** -0.5, dk, dv)]


def bias_gradient(bias: Bias, parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the gradient of the bias from that of scores in parts of the windows; empty without a bias."""
    if bias is None:
        return like.new_zeros(0)
    if len(bias) > 1:
        return (parts[0] if len(parts) == 1 else torch.cat(list(parts))).to(bias.dtype)
    sums = [part.sum(0, keepdim=True) for part in parts]
    return sum(sums[1:], start=sums[0]).to(bias.dtype)


# By kernels, or some windows at a time


def _kernels(heads: int, q: Tensor, *others: Tensor | None) -> Any:
    """The module of the kernels that compute in these numbers; None if operations of torch have to."""
    if q.device.type == "cuda" and _TRITON:
        from mano_op.layers import kernels

        return kernels if kernels.usable(heads, q, *others) else None
    return native if native.usable(q) else None


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any) -> tuple[Tensor, Tensor]:
    """Attend as `definition`; also returns what the compiled kernel keeps for `backward`."""
    windows = Lists(*lists)
    _check(q, k, v, bias, windows)
    if kernels := _kernels(windows.heads, q, k, v, bias):
        return cast(tuple[Tensor, Tensor], kernels.forward(q, k, v, bias, windows))
    with torch.autocast(q.device.type, enabled=False):
        *inputs, bias = _inputs(q, k, v, bias, windows.heads)
        out = torch.zeros_like(inputs[0])
        for part, of_part in _parts(q, bias, windows):
            _add_rows(out, part.queries, _results((*inputs, of_part), part))
        return _as_points(out).to(q.dtype), q.new_empty(0)


def backward(
    grad: Tensor, stats: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *lists: Any
) -> tuple[Tensor, ...]:
    """Return what `gradients` does."""
    windows = Lists(*lists)
    if kernels := _kernels(windows.heads, q, k, v, bias, grad):
        return cast(tuple[Tensor, ...], kernels.backward(grad, stats, q, k, v, bias, windows))
    with torch.autocast(q.device.type, enabled=False):
        *inputs, exact_bias = _inputs(q, k, v, bias, windows.heads)
        of_result = _by_head(grad, windows.heads)
        sums, of_bias = [torch.zeros_like(t) for t in inputs], []
        for part, of_part in _parts(q, exact_bias, windows):
            *ds, dbias = _gradients(of_result, (*inputs, of_part), part)
            for total, index, d in zip(sums, (part.queries, part.keys, part.keys), ds, strict=True):
                _add_rows(total, index, d)
            of_bias += [] if bias is None else [dbias]
        return *_of_inputs(sums, q), bias_gradient(bias, of_bias, q)


def _check(q: Tensor, k: Tensor, v: Tensor, bias: Bias, windows: Lists) -> None:
    """Refuse what does not belong together: a kernel reads memory as it is told to."""
    (n, targets), (_, sources) = windows.queries.shape, windows.keys.shape
    shapes = {"k": (*k.shape[:2], q.shape[2]), "v": k.shape, "keys": (n, sources), "share": (n, targets)}
    shapes |= {"missing": (n, sources)}
    given = {"k": k, "v": v, "keys": windows.keys, "share": windows.share, "missing": windows.missing}
    if bias is not None:
        shapes["bias"], given["bias"] = (n if len(bias) == n else 1, windows.heads, sources, targets), bias
    for name, t in given.items():
        if t is not None and tuple(t.shape) != tuple(shapes[name]):
            raise InputError(f"{name} has the shape {tuple(t.shape)}, expected {tuple(shapes[name])}")
    if len(k) != len(q) or q.shape[2] % windows.heads or {t.dtype for t in (q, k, v)} != {q.dtype}:
        raise InputError(
            f"q and k are {tuple(q.shape)} of {q.dtype}, {tuple(k.shape)} of {k.dtype}; expected one batch, "
            f"type and number of channels, a multiple of heads={windows.heads}"
        )
    for name, index, points in (("queries", windows.queries, q), ("keys", windows.keys, k)):
        if index.device.type == "cpu" and index.numel():
            first, last = torch.aminmax(index)
            if first < 0 or last >= points.shape[1]:
                raise InputError(
                    f"{name} are from {first} to {last}, expected points from 0 to {points.shape[1] - 1}"
                )


def _add_rows(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """Add rows to the points of an index; in one dimension a CPU takes a third of the time."""
    batch, heads, n, head_dim = total.shape
    first = n * torch.arange(batch * heads, device=total.device)[:, None]
    place = (index.flatten() + first).flatten()
    total.view(-1, head_dim).index_add_(0, place, rows.reshape(-1, head_dim))


def _parts(q: Tensor, bias: Bias, windows: Lists) -> list[tuple[Lists, Bias]]:
    """Split the windows, so that the scores of a part fit the cache of a CPU; each with its bias."""
    if q.device.type != "cpu" or not len(windows.queries):
        return [(windows, bias)]
    shared = bias is None or len(bias) == 1
    if windows.missing is not None and shared:  # few windows have to be masked
        cut = windows.missing.any(1)
        groups = [windows.part(~cut)._replace(missing=None), windows.part(cut)]
    else:
        groups = [windows]
    scores = len(q) * windows.heads * windows.queries.shape[1] * windows.keys.shape[1]
    step, parts = max(1, _SCORES * torch.get_num_threads() // max(1, scores)), []
    for group in groups:
        for first in range(0, len(group.queries), step):
            chosen = slice(first, first + step)
            parts.append((group.part(chosen), bias if shared else cast(Tensor, bias)[chosen]))
    return parts


_forward = torch.library.custom_op(
    "mano_op::window_attention_forward",
    forward,
    mutates_args=(),
    schema=f"({_INPUTS}, {_LISTS}) -> (Tensor, Tensor)",
)
_backward = torch.library.custom_op(
    "mano_op::window_attention_backward",
    backward,
    mutates_args=(),
    schema=f"(Tensor grad, Tensor stats, {_INPUTS}, {_LISTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
KERNELS: dict[Any, Callable[..., Any]] = {
    torch.ops.mano_op.window_attention_forward.default: forward,
    torch.ops.mano_op.window_attention_backward.default: backward,
}


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Bias, queries: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    shape = native.statistics_shape(q, queries, args[-1]) if native.usable(q) else (0,)
    return torch.empty_like(q, memory_format=torch.contiguous_format), q.new_empty(shape)


@_backward.register_fake
def _(grad: Tensor, stats: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, *args: Any) -> Any:
    results = q, k, v, q.new_empty(0) if bias is None else bias
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in results)


def _one_by_one(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The rule of an operator under `torch.vmap`: a call for each entry."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> Any:
        entries = [
            operator(*(a if dim is None else a.select(dim, i) for a, dim in zip(args, in_dims, strict=True)))
            for i in range(info.batch_size)
        ]
        return tuple(map(torch.stack, zip(*entries, strict=True))), (0,) * len(entries[0])

    return rule


for _operator in (_forward, _backward):
    _operator.register_vmap(_one_by_one(_operator))


@register_flop_formula(torch.ops.mano_op.window_attention_forward)
def _operations(q: Any, k: Any, v: Any, bias: Any, queries: Any, keys: Any, *args: Any, **kwargs: Any) -> int:
    """Count the operations of the products of queries with keys, and of scores with values."""
    return int(4 * q[0] * queries[0] * queries[1] * keys[1] * q[2])


@register_flop_formula(torch.ops.mano_op.window_attention_backward)
def _(grad: Any, stats: Any, *args: Any, **kwargs: Any) -> int:
    """Operations of five such products."""
    return 5 * int(_operations(*args)) // 2


# Derivatives of any order, forward and backward, under any transform of torch.func


class _Attention(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1], *inputs[:-1])
        ctx.save_for_forward(output[1], *inputs[:-1])
        ctx.heads = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # once: a checkpoint computes them anew each time
        *ds, dbias = _Gradients.apply(grad, *saved, ctx.heads)
        return *ds, None if saved[4] is None else dbias, *[None] * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _tangent(definition, (*ctx.saved_tensors[1:], ctx.heads), tangents), None


class _Gradients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*args: Any) -> Any:
        return _backward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        grad, _, *tensors, ctx.heads = inputs
        ctx.save_for_backward(grad, *tensors)
        ctx.save_for_forward(grad, *tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_floating, tensors, places = _closed(gradients, (*ctx.saved_tensors, ctx.heads))
        of_args = dict(zip(places, torch.func.vjp(of_floating, *tensors)[1](grads), strict=True))
        return of_args[0], None, *(of_args.get(i) for i in range(1, 10))

    @staticmethod
    def jvp(ctx: Any, of_grad: Any, _: Any, *tangents: Any) -> Any:
        return _tangent(gradients, (*ctx.saved_tensors, ctx.heads), (of_grad, *tangents))


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
    return cast(Tensor, _Attention.apply(*args)[0])
