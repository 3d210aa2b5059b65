"""The model that had the lowest error on samples that are not trained on, and when to stop."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from mano_op.weights import parameters_of


class Best:
    """The parameters with the lowest error so far, kept on the CPU, and whether it pays to go on.

    Parameters
    ----------
    patience : int, optional
        Epochs to go on for without a lower error; all of them if not given.

    Attributes
    ----------
    epoch : int
        Of the lowest error; 0 before any.
    error : float
    parameters : dict of str to Tensor

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
        """Keep the parameters if no epoch before had an error as low."""
        if error < self.error:
            self.epoch, self.error = epoch, error
            self.parameters = {
                name: value.detach().to("cpu", copy=True) for name, value in parameters_of(model).items()
            }

    def enough(self, epoch: int) -> bool:
        """Whether so many epochs, of which this is the last, have brought nothing."""
        return self._patience is not None and epoch - self.epoch >= self._patience

    def state_dict(self) -> dict[str, Any]:
        """The best so far, as plain values and tensors."""
        return {"epoch": self.epoch, "error": self.error, "parameters": self.parameters}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.epoch, self.error, self.parameters = state["epoch"], state["error"], state["parameters"]
