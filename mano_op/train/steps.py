"""What happens between the gradients of a batch and a step: adding up, scaling, clipping."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from mano_op.train.distributed import sum_gradients


class Steps:
    """An optimiser as neuraloperator's Trainer calls it, which steps once for several batches.

    The Trainer calls `zero_grad`, the backward pass and `step` for each batch, and has no hook between the
    last two. Gradients of a loss that is summed over samples add up, so a step for several batches is that
    for one batch as large as they are together, up to rounding. An epoch's last step may have fewer.

    Parameters
    ----------
    optimizer : Optimizer
    batches : int
        In an epoch.
    accumulate : int
        Batches for each step.
    clip : float, optional
        The largest norm of the gradient, all parameters together, of the loss summed over the samples of a
        step; a longer one is shortened to it.
    scaler : GradScaler, optional
        Whose scale the loss was multiplied by.

    Examples
    --------
    >>> weight = torch.zeros(1, requires_grad=True)
    >>> steps = Steps(torch.optim.SGD([weight], lr=1.0), batches=3, accumulate=2)
    >>> for _ in range(3):
    ...     steps.zero_grad()
    ...     (-weight).sum().backward()
    ...     steps.step()
    ...     print(weight.item())
    0.0
    2.0
    3.0
    """

    def __init__(
        self,
        optimizer: Optimizer,
        batches: int,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        self._optimizer, self._scaler = optimizer, scaler
        self._batches, self._accumulate, self._clip = batches, accumulate, clip
        self._done = 0  # batches of this epoch

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The optimiser's."""
        return self._optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, where the batch is the first one of a step."""
        if self._done % self._accumulate == 0:
            self._optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        """Take a step, where the batch is the last one of it."""
        self._done += 1
        whole = self._done == self._batches
        if not whole and self._done % self._accumulate:
            return
        if whole:
            self._done = 0
        parameters = self._parameters
        sum_gradients(parameters)
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self._clip)
        if self._scaler is None:
            self._optimizer.step()
        else:  # which leaves out a step whose gradients have overflown, and scales by less from then on
            self._scaler.step(self._optimizer)
            self._scaler.update()

    @property
    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
