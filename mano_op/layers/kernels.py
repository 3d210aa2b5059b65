r"""Attention within windows as kernels of Triton, for GPUs; it stands behind `mano_op.layers.operator` there.

A program computes up to 64 targets of one window, in one head of one sample. It holds their queries, and
walks over the window's sources, 16 or 32 at a time:

=========  ==========================================================================================
forward    scores, and their softmax as it runs: a maximum m, a sum and a result, both of
           :math:`e^{s - m}`, which are rescaled when the maximum grows
backward   twice: first m, the sum and :math:`\delta_i = \sum_j p_{ji}\, v_j \cdot do_i`, then all gradients
=========  ==========================================================================================

So no array grows with the number of sources, and a window of any size fits into registers. Targets are cut
into blocks for the same reason: a window has hundreds where points of a finer grid lie in it. Nothing of the
size of the scores is written, but the gradient of a bias.

* Points are read where they lie, by their index; no copy of a window is made. Programs of the heads of a
  window run side by side, and share what a line of the cache holds.
* A target may be in several windows, and a source is in several with a halo. Their sums are atomic additions
  to arrays of single precision, in no fixed order: two runs may differ in the last digit where three or more
  windows meet. Where torch is told to use deterministic algorithms, its own operations do the work.
* The gradient of a bias is summed so too: where all windows share it, in several copies, so that they do not
  wait for each other, and then over these.
* Inputs may be of single or half precision. Softmax and sums are of single precision. Products of single
  precision are not computed in TF32, unless torch may do so in its own,
  ``torch.backends.cuda.matmul.allow_tf32 = True``. Products of half precision round p and ds to that.
* Head dimensions are filled up to a power of two, and to 16, which tensor cores need.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mano_op.layers.operator import Bias, Lists, bias_gradient

# Numbers in all copies of a shared bias' gradient: 8 MiB, which the cache of a GPU holds.
_COPIES = 2**21
# What differs from grid to grid, and is no reason to compile again where it is 1 or a multiple of 16.
_COUNTS = ["q_points", "k_points", "windows", "copies", "bias_step"]


def usable(heads: int, q: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels compute in these numbers, with heads as wide, and may add in any order."""
    types = {t.dtype for t in (q, *others) if t is not None}
    narrow = types <= {torch.float16, torch.bfloat16, torch.float32}
    return narrow and q.shape[-1] <= 64 * heads and not torch.are_deterministic_algorithms_enabled()


def forward(q: Tensor, k: Tensor, v: Tensor, bias: Bias, lists: Lists) -> tuple[Tensor, Tensor]:
    """Attend as ``window_attention_forward`` of `mano_op.layers.operator`; nothing is kept for `backward`."""
    out = _zeros(q)
    _launch(_forward, (q, k, v), bias, lists, out=out)
    return out.to(q.dtype), q.new_empty(0)


def backward(
    grad: Tensor, stats: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Bias, lists: Lists
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients as ``window_attention_backward`` of `mano_op.layers.operator`."""
    dq, dk, dv = map(_zeros, (q, k, v))
    dbias: Any = None
    copies = 1
    if bias is not None:
        copies = len(bias)
        if copies == 1:
            copies = max(1, min(len(lists.queries), _COPIES // max(1, bias.numel())))
        dbias = bias.new_zeros((copies, *bias.shape[1:]), dtype=torch.float32)
    _launch(_backward, (q, k, v, grad), bias, lists, dq=dq, dk=dk, dv=dv, dbias=dbias, copies=copies)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), bias_gradient(bias, [dbias], q)


def _zeros(t: Tensor) -> Tensor:
    return torch.zeros(t.shape, dtype=torch.float32, device=t.device)


def _launch(kernel: Any, tensors: tuple[Tensor, ...], bias: Bias, lists: Lists, **outputs: Any) -> None:
    """Start a program for each sample, window, block of targets and head."""
    dtype = torch.float32 if len({t.dtype for t in tensors}) > 1 else tensors[0].dtype
    inputs: dict[str, Any] = {}
    for name, t in zip(("q", "k", "v", "do"), tensors, strict=False):
        dense = (t if t.stride(2) == 1 else t.contiguous()).to(dtype)
        inputs |= {name: dense, f"{name}_batch": dense.stride(0), f"{name}_point": dense.stride(1)}
    batch, points, channels = tensors[0].shape
    (windows, targets), sources = lists.queries.shape, lists.keys.shape[1]
    head_dim = channels // lists.heads
    dim = max(16, triton.next_power_of_2(head_dim))
    # Of queries a warp holds 256 numbers, so that with all else that belongs to them its registers suffice.
    tile = min(64, 2048 // dim, max(16, triton.next_power_of_2(targets)))
    programs = batch * windows * triton.cdiv(targets, tile) * lists.heads
    if not programs or not sources:
        return
    queries, keys, share, missing = (t if t is None else t.contiguous() for t in lists[:4])
    with torch.cuda.device_of(tensors[0]):
        kernel[(programs,)](
            **inputs,
            **outputs,
            bias=None if bias is None else bias.contiguous(),
            bias_step=0 if bias is None or len(bias) == 1 else bias[0].numel(),
            queries=queries,
            keys=keys,
            share=share,
            missing=missing,
            q_points=points,
            k_points=tensors[1].shape[1],
            windows=windows,
            targets=targets,
            sources=sources,
            heads=lists.heads,
            scale=head_dim**-0.5,
            HEAD=head_dim,
            DIM=dim,
            TILE=tile,
            BLOCK=max(16, min(tile, 512 // dim)),
            PRECISION=_precision(),
            num_warps=tile * dim // 256,
            num_stages=1,
        )


def _precision() -> str:
    """How products of single precision are computed: as torch computes its own."""
    matmul = torch.backends.cuda.matmul
    # Since torch 2.9 there are two names for it, and to read the older one may fail.
    name = getattr(matmul, "fp32_precision", None)
    allowed = matmul.allow_tf32 if name is None else name == "tf32"
    return "tf32" if allowed and torch.version.hip is None else "ieee"


# The kernels. Arrays of a program have targets as rows, and sources or channels as columns.


@triton.jit
def _rows(queries, share, windows, targets, heads, TILE: tl.constexpr):
    """Return sample, window and head of a program; slots in the window, points and weights of its rows."""
    head, rest = tl.program_id(0) % heads, tl.program_id(0) // heads
    tiles = tl.cdiv(targets, TILE)
    window, sample = rest // tiles % windows, rest // tiles // windows
    window, sample = window.to(tl.int64), sample.to(tl.int64)
    slot = rest % tiles * TILE + tl.arange(0, TILE)
    weight = tl.where(slot < targets, 1.0, 0.0)
    place = window * targets + slot
    point = tl.load(queries + place, mask=slot < targets, other=0).to(tl.int64)
    if share is not None:
        weight = tl.load(share + place, mask=slot < targets, other=0).to(tl.float32)
    return sample, window, head, slot, point, weight


@triton.jit
def _columns(keys, missing, window, sources, start, BLOCK: tl.constexpr):
    """Return slots in the window of a block of sources, their points, and which of them exist."""
    slot = start + tl.arange(0, BLOCK)
    place = window * sources + slot
    exists = slot < sources
    point = tl.load(keys + place, mask=exists, other=0).to(tl.int64)
    if missing is not None:
        exists = exists & (tl.load(missing + place, mask=exists, other=1) == 0)
    return slot, point, exists


@triton.jit
def _places(point, points, sample, head, heads, exists, HEAD: tl.constexpr, DIM: tl.constexpr):
    """Return the place of points' channels in a dense array, and which of them exist."""
    channel = tl.arange(0, DIM)
    row = (sample * points + point) * heads + head
    return row[:, None] * HEAD + channel, exists[:, None] & (channel < HEAD)


@triton.jit
def _gathered(t, t_batch, t_point, point, sample, head, exists, HEAD: tl.constexpr, DIM: tl.constexpr):
    """Read the channels of a head at points; 0 where there is nothing."""
    channel = tl.arange(0, DIM)
    place = t + sample * t_batch + point[:, None] * t_point + head * HEAD + channel
    return tl.load(place, mask=exists[:, None] & (channel < HEAD), other=0)


@triton.jit
def _scores(q, k, scale, bias, head, row, column, real, exists, targets, sources, PRECISION: tl.constexpr):
    """Compute the scores of a block of sources; those of no source are minus infinity."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if bias is not None:
        place = (head * sources + column)[None, :] * targets + row[:, None]
        s += tl.load(bias + place, mask=real[:, None] & exists, other=0).to(tl.float32)
    return tl.where(exists[None, :], s, float("-inf"))


@triton.jit
def _accumulated(m, total, s):
    """Return maximum and sum with more scores; e^(s - m), and what the sums before are multiplied by."""
    top = tl.maximum(m, tl.max(s, 1))
    base = tl.where(top == float("-inf"), 0.0, top)  # no infinity is subtracted from itself
    p, decay = tl.exp(s - base[:, None]), tl.exp(m - base)
    return top, total * decay + tl.sum(p, 1), p, decay


@triton.jit(do_not_specialize=_COUNTS)
def _forward(
    q, q_batch, q_point, k, k_batch, k_point, v, v_batch, v_point, out, bias, bias_step,
    queries, keys, share, missing, q_points, k_points, windows, targets, sources, heads, scale,
    HEAD: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sample, window, head, row, target, weight = _rows(queries, share, windows, targets, heads, TILE)
    real = weight != 0
    if bias is not None:
        bias += window * bias_step
    of_q = _gathered(q, q_batch, q_point, target, sample, head, real, HEAD, DIM)
    m = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    result = tl.zeros([TILE, DIM], tl.float32)
    for start in range(0, sources, BLOCK):
        column, source, exists = _columns(keys, missing, window, sources, start, BLOCK)
        of_k = _gathered(k, k_batch, k_point, source, sample, head, exists, HEAD, DIM)
        of_v = _gathered(v, v_batch, v_point, source, sample, head, exists, HEAD, DIM)
        s = _scores(of_q, of_k, scale, bias, head, row, column, real, exists, targets, sources, PRECISION)
        m, total, p, decay = _accumulated(m, total, s)
        result = result * decay[:, None] + tl.dot(p.to(of_v.dtype), of_v, input_precision=PRECISION)
    place, mask = _places(target, q_points, sample, head, heads, real, HEAD, DIM)
    tl.atomic_add(out + place, result * (weight / total)[:, None], mask, sem="relaxed")


@triton.jit(do_not_specialize=_COUNTS)
def _backward(
    q, q_batch, q_point, k, k_batch, k_point, v, v_batch, v_point, do, do_batch, do_point, dq, dk, dv,
    dbias, copies, bias, bias_step, queries, keys, share, missing, q_points, k_points, windows, targets,
    sources, heads, scale,
    HEAD: tl.constexpr, DIM: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    sample, window, head, row, target, weight = _rows(queries, share, windows, targets, heads, TILE)
    real = weight != 0
    if bias is not None:
        bias += window * bias_step
        dbias += window % copies * heads * sources * targets
    of_q = _gathered(q, q_batch, q_point, target, sample, head, real, HEAD, DIM)
    of_do = _gathered(do, do_batch, do_point, target, sample, head, real, HEAD, DIM)
    m = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    delta = tl.zeros([TILE], tl.float32)
    for start in range(0, sources, BLOCK):
        column, source, exists = _columns(keys, missing, window, sources, start, BLOCK)
        of_k = _gathered(k, k_batch, k_point, source, sample, head, exists, HEAD, DIM)
        of_v = _gathered(v, v_batch, v_point, source, sample, head, exists, HEAD, DIM)
        s = _scores(of_q, of_k, scale, bias, head, row, column, real, exists, targets, sources, PRECISION)
        m, total, p, decay = _accumulated(m, total, s)
        dp = tl.dot(of_do, tl.trans(of_v), input_precision=PRECISION)
        delta = delta * decay + tl.sum(p * dp, 1)
    delta = delta / total
    base = tl.where(m == float("-inf"), 0.0, m)
    result = tl.zeros([TILE, DIM], tl.float32)
    for start in range(0, sources, BLOCK):
        column, source, exists = _columns(keys, missing, window, sources, start, BLOCK)
        of_k = _gathered(k, k_batch, k_point, source, sample, head, exists, HEAD, DIM)
        of_v = _gathered(v, v_batch, v_point, source, sample, head, exists, HEAD, DIM)
        s = _scores(of_q, of_k, scale, bias, head, row, column, real, exists, targets, sources, PRECISION)
        p = tl.exp(s - base[:, None]) * (weight / total)[:, None]
        ds = p * (tl.dot(of_do, tl.trans(of_v), input_precision=PRECISION) - delta[:, None])
        if dbias is not None:
            pair = (head * sources + column)[None, :] * targets + row[:, None]
            tl.atomic_add(dbias + pair, ds, real[:, None] & exists[None, :], sem="relaxed")
        p, ds = p.to(of_v.dtype), ds.to(of_q.dtype)
        result += tl.dot(ds, of_k, input_precision=PRECISION)
        place, mask = _places(source, k_points, sample, head, heads, exists, HEAD, DIM)
        of_dk = tl.dot(tl.trans(ds), of_q, input_precision=PRECISION) * scale
        tl.atomic_add(dk + place, of_dk, mask, sem="relaxed")
        of_dv = tl.dot(tl.trans(p), of_do, input_precision=PRECISION)
        tl.atomic_add(dv + place, of_dv, mask, sem="relaxed")
    place, mask = _places(target, q_points, sample, head, heads, real, HEAD, DIM)
    tl.atomic_add(dq + place, result * scale, mask, sem="relaxed")
