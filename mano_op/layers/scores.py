"""Scores of queries and keys: dot products, or cosines of the angle between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Scores = Literal["dot", "cosine"]
# Logarithm of the largest factor of a cosine.
STEEPEST = math.log(100.0)
LEAST_NORM = 1e-12


def steep(logit_scale: Tensor) -> Tensor:
    r"""Return the factor of the cosines of each head, :math:`e^{\min(s, \log 100)}`.

    Examples
    --------
    >>> steep(torch.tensor([0.0, 9.0]))
    tensor([  1.0000, 100.0000])
    """
    return logit_scale.clamp(max=STEEPEST).exp()


def scored(projected: Mapping[str, Tensor], n_heads: int, logit_scale: Tensor | None) -> tuple[Tensor, ...]:
    r"""Normalise queries and keys, ``(..., heads * head_dim)``, for cosine scores; values stay as they are.

    Scores are dot products over the square root of the width of a head, d. With `logit_scale`, ``(heads,)``,
    queries become :math:`\sqrt d\, e^{\min(s, \log 100)}\, q / |q|` and keys :math:`k / |k|`: scores are then
    cosines, times a factor of each head. Norms are computed in single precision at least.

    Parameters
    ----------
    projected : mapping of str to Tensor
        Some of "q", "k" and "v".
    n_heads : int
    logit_scale : Tensor, optional

    Examples
    --------
    >>> q, k = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    >>> q, k = scored({"q": q, "k": k}, n_heads=1, logit_scale=torch.zeros(1))
    >>> (q * k).sum() / 2**0.5  # the cosine
    tensor(0.8000)
    """
    if logit_scale is None:
        return tuple(projected.values())

    def unit(t: Tensor) -> Tensor:
        exact = t.unflatten(-1, (n_heads, -1)).to(torch.promote_types(t.dtype, torch.float32))
        return F.normalize(exact, dim=-1, eps=LEAST_NORM)

    results = []
    for name, t in projected.items():
        if name == "q":
            factor = steep(logit_scale) * math.sqrt(t.shape[-1] // n_heads)
            t = (unit(t) * factor[:, None]).flatten(-2).to(t.dtype)
        elif name == "k":
            t = unit(t).flatten(-2).to(t.dtype)
        results.append(t)
    return tuple(results)
