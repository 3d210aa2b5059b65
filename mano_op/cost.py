"""Parameters and floating point operations of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mano_op.registry import evaluating

_aten = torch.ops.aten


def count_parameters(model: nn.Module) -> int:
    """Count the trained real numbers; a complex parameter is two of them."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in model.parameters() if p.requires_grad)


def count_flops(model: nn.Module, x: Tensor) -> int:
    r"""Count the floating point operations of one forward pass.

    Matrix products and convolutions are a multiplication and an addition each, complex ones four real
    products; a Fourier transform of :math:`N` points is :math:`5 N \log_2 N`, half of it between real and
    complex. (torch's own counter takes a complex product for a real one and leaves out Fourier transforms.)
    Pointwise operations (activations, normalisation, softmax) are not counted.

    Only the shape of the input `x`, ``(batch, in_channels, *grid)``, matters.

    Examples
    --------
    >>> count_flops(nn.Conv2d(3, 8, 1), torch.zeros(1, 3, 16, 16)) == 2 * 3 * 8 * 16 * 16
    True
    >>> class Transform(nn.Module):
    ...     def forward(self, x):
    ...         return torch.fft.rfft(x)
    >>> count_flops(Transform(), torch.zeros(7, 64)) == 7 * 5 * 64 * 6 // 2
    True
    """
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    with evaluating(model), counter:
        model(torch.zeros_like(x))
    return int(counter.get_total_flops())


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Mark a formula that takes tensors; torch's counter passes shapes to others."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


@_raw
def _product(a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """Operations of ``a @ b``, with or without batches."""
    return 2 * a.numel() * b.shape[-1] * (4 if a.is_complex() else 1)


@_raw
def _added_product(bias: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    return _product(a, b)


@_raw
def _attention(q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> int:
    """Operations of the products of queries with keys, and of scores with values."""
    return 2 * q[..., 0].numel() * k.shape[-2] * (q.shape[-1] + v.shape[-1])


def _fourier(real: bool) -> Callable[..., int]:
    @_raw
    def formula(x: Tensor, dim: list[int], *args: Any, out_val: Tensor, **kwargs: Any) -> int:
        # The larger has all points, the other the half of the spectrum that is not redundant.
        points = max(x.numel(), out_val.numel())
        lines = math.prod(max(x.shape[d], out_val.shape[d]) for d in dim)
        return int(5 * points * math.log2(max(lines, 1)) / (2 if real else 1))

    return formula


_FORMULAS: dict[Any, Any] = {
    _aten.mm: _product,
    _aten.bmm: _product,
    _aten.addmm: _added_product,
    _aten.baddbmm: _added_product,
    # torch's counter knows this kernel on GPUs only.
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._fft_r2c: _fourier(real=True),
    _aten._fft_c2r: _fourier(real=True),
    _aten._fft_c2c: _fourier(real=False),
}
