"""Second derivatives of functions with a backward pass of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def replay(
    definition: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    grads: Tensor | Sequence[Tensor],
) -> list[Tensor | None]:
    """Compute gradients that have gradients themselves, by torch's differentiation of the definition.

    For a backward pass that is called with ``create_graph=True``.

    Examples
    --------
    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> [dx] = replay(lambda x: x**2, [x], [True], torch.tensor(1.0))
    >>> torch.autograd.grad(dx, x)
    (tensor(2.),)
    """
    # Views, since an input may itself depend on another one, by a way that does not count here.
    inputs = [t if t is None else t.view_as(t) for t in inputs]
    asked = [t for t, need in zip(inputs, needed, strict=True) if need and t is not None]
    gradients = iter(torch.autograd.grad(definition(*inputs), asked, grads, create_graph=True))
    return [next(gradients) if need else None for need in needed]
