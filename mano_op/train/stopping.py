"""The parameters with the lowest validation error, and when to stop."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mano_op.weights import parameters_of


class Best:
    """The parameters with the lowest validation error so far, kept on the CPU, and its epoch, 0 before any.

    After `patience` epochs without a lower error, if that is given, training stops.

    Examples
    --------
    >>> best = Best(patience=2)
    >>> for epoch, error in enumerate([0.5, 0.3, 0.4, 0.3], 1):
    ...     best.see(epoch, error, nn.Linear(1, 1))
    >>> best.epoch, best.error, best.enough(3), best.enough(4)
    (2, 0.3, False, True)
    """

    def __init__(self, patience: int | None = None) -> None:
        self._patience = patience
        self.epoch, self.error = 0, math.inf
        self.parameters: dict[str, Tensor] = {}

    def see(self, epoch: int, error: float, model: nn.Module) -> None:
        """Keep the parameters of an epoch if its error is lower than all before."""
        if error < self.error:
            self.epoch, self.error = epoch, error
            kept = parameters_of(model).items()
            self.parameters = {name: value.detach().to("cpu", copy=True) for name, value in kept}

    def enough(self, epoch: int) -> bool:
        """Return whether the last `patience` epochs had no lower error."""
        return self._patience is not None and epoch - self.epoch >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain values and tensors."""
        return {"epoch": self.epoch, "error": self.error, "parameters": self.parameters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.epoch, self.error, self.parameters = state["epoch"], state["error"], state["parameters"]
