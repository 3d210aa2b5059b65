"""AdamW, or Muon for the matrices of a network and AdamW for the rest, and the schedules of their rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from mano_op.errors import InputError
from mano_op.train.options import TrainOptions

WARM_UP = 0.2  # of the steps, of AdamW
# A matrix with fewer rows or columns is a table of a few values more than a map between features.
LEAST_SIDE = 8
# Steps of Muon have a length of their own, whatever the gradient's: its rate over AdamW's.
MUON_RATE = 2.0


class MuonAdamW(Optimizer):
    r"""Muon [1]_ for the matrices between the first and the last layer, AdamW for everything else.

    Muon's step of a matrix W, after momentum, is a matrix with all singular values near one,

    .. math:: W \leftarrow (1 - \eta \lambda) W - \eta\, U V^T, \qquad U S V^T = \text{momentum},

    so that all directions of its features are learned at one pace. AdamW's learning rate is `learning_rate`,
    Muon's twice as much. A torch without Muon, and a model without such matrices, are refused.

    References
    ----------
    .. [1] K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Examples
    --------
    >>> from mano_op import MANO
    >>> model = MANO(1, 1, hidden_channels=16, n_layers=1, n_heads=2)
    >>> [len(group["params"]) for group in MuonAdamW(model, 1e-2, 1e-4).param_groups]
    [9, 2]
    """

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float) -> None:
        matrices, others = _split(model.named_parameters())
        if not matrices or not hasattr(torch.optim, "Muon"):
            raise InputError(
                f"optimizer='muon' with torch {torch.__version__} and {len(matrices)} matrices of at least "
                f"{LEAST_SIDE} x {LEAST_SIDE} between the first and last layer of {type(model).__name__}; "
                "expected torch 2.9 or newer, and one matrix or more: use optimizer='adamw'"
            )
        groups: list[dict[str, Any]] = [
            {"params": others, "lr": learning_rate},
            {"params": matrices, "lr": MUON_RATE * learning_rate},
        ]
        super().__init__(groups, {"lr": learning_rate, "weight_decay": weight_decay})
        self._parts = {
            "adamw": AdamW(others, lr=learning_rate, weight_decay=weight_decay),
            "muon": torch.optim.Muon(matrices, lr=MUON_RATE * learning_rate, weight_decay=weight_decay),
        }
        for group, part in zip(self.param_groups, self._parts.values(), strict=True):
            # A schedule changes these groups, so the parts step by them.
            group.update({key: value for key, value in part.param_groups[0].items() if key not in group})
            part.param_groups[0] = group

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles have: the groups, which the parts share."""
        return super().__getstate__() | {"_parts": self._parts}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse parameters that come later, of which neither part would know."""
        if hasattr(self, "_parts"):
            raise InputError(
                "MuonAdamW takes no further group of parameters: build it anew with the model that has them; "
                "parameters that are frozen at first may be there from the beginning"
            )
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step of both."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts.values():
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both."""
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        for i, (name, part) in enumerate(self._parts.items()):
            part.load_state_dict(state_dict[name])
            self.param_groups[i] = part.param_groups[0]


def _split(parameters: Iterable[tuple[str, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices for Muon, and the other parameters."""
    matrices, others = list[Tensor](), list[Tensor]()
    for name, parameter in parameters:
        outer = name.split(".")[0] in ("lifting", "projection")
        hidden = parameter.ndim == 2 and min(parameter.shape) >= LEAST_SIDE and not parameter.is_complex()
        (matrices if hidden and not outer else others).append(parameter)
    return matrices, others


def warm_up_and_cosine(steps: int, warm_up: float = 0.1) -> Callable[[int], float]:
    """Return the factor of the learning rate in each step: it rises to 1, then falls to 0 along a cosine.

    neuraloperator's Trainer steps a schedule after each epoch. This one follows each step of an optimiser:

    >>> from torch.optim.lr_scheduler import LambdaLR
    >>> optimizer = AdamW(nn.Linear(1, 1).parameters(), lr=1e-2)
    >>> schedule = LambdaLR(optimizer, warm_up_and_cosine(steps=20))
    >>> _ = optimizer.register_step_post_hook(lambda *_: schedule.step())
    """
    rising = max(1, round(warm_up * steps))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        falling = (step + 1 - rising) / (steps + 1 - rising)
        return (1 + math.cos(math.pi * min(1.0, falling))) / 2

    return factor


def optimizer_and_schedule(
    name: str, model: nn.Module, training: TrainOptions, steps: int, *, matrices_only: bool = False
) -> tuple[Optimizer, LRScheduler]:
    """Return an optimiser, "adamw" or "muon", and its schedule, which is stepped with it, `steps` times.

    With `matrices_only` AdamW has the parameters that have gradients alone, and decays none of one dimension:
    biases, norms, scales.

    Examples
    --------
    >>> training = TrainOptions(weight_decay=0.1)
    >>> adamw, _ = optimizer_and_schedule("adamw", nn.Linear(1, 1), training, 9, matrices_only=True)
    >>> [(len(group["params"]), group["weight_decay"]) for group in adamw.param_groups]
    [(1, 0.1), (1, 0.0)]
    """
    learning_rate, weight_decay = training.learning_rate, training.weight_decay
    if name == "muon":
        muon = MuonAdamW(model, learning_rate, weight_decay)
        return muon, LambdaLR(muon, warm_up_and_cosine(steps))
    parameters = _decayed(model, weight_decay) if matrices_only else model.parameters()
    adamw = AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    # The last step is one more than there are changes of the rate.
    rising, total = max(1, round(WARM_UP * steps)) + 1, steps + 1
    return adamw, OneCycleLR(adamw, max_lr=learning_rate, total_steps=total, pct_start=rising / total)


def _decayed(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two groups of parameters: matrices, which decay, and those of one dimension, which do not."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices, vectors = ([p for p in learned if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
