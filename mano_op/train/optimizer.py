"""AdamW, or Muon for the matrices of a network and AdamW for the rest, and the schedules of their rates."""

from __future__ import annotations

import math
from collections import defaultdict
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
# Channels above which AdamW's rate of stacks of matrices falls as 1 / channels: a step moves a feature by the
# rate times their number. Low modes of 64 channels diverge without.
WIDTH = 32
# Steps of Muon have a length of their own, whatever the gradient's: its rate over AdamW's.
MUON_RATE = 2.0


class MuonAdamW(Optimizer):
    r"""Muon [1]_ for the matrices between the first and the last layer, AdamW for everything else.

    Muon's step of a matrix W, after momentum, is a matrix with all singular values near one,

    .. math:: W \leftarrow (1 - \eta \lambda) W - \eta\, U V^T, \qquad U S V^T = \text{momentum},

    so that all directions of its features are learned at one pace. AdamW's learning rate is `learning_rate`,
    Muon's twice as much. That of stacks of matrices, as in `mano_op.layers.modes.LowModes`, falls as one over
    their channels above 32. A model without matrices for Muon is refused.

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
        if not matrices:
            raise InputError(
                f"optimizer='muon' with no matrix of {LEAST_SIDE} x {LEAST_SIDE} between the first and "
                f"the last layer of {type(model).__name__}, expected one at least: use optimizer='adamw'"
            )
        groups: list[dict[str, Any]] = [
            {"params": of_rate, "lr": rate * learning_rate} for rate, of_rate in others.items()
        ]
        super().__init__([*groups, {"params": matrices}], {"lr": learning_rate, "weight_decay": weight_decay})
        self._parts = {
            "adamw": AdamW(groups, lr=learning_rate, weight_decay=weight_decay),
            "muon": _Muon(matrices, lr=MUON_RATE * learning_rate, weight_decay=weight_decay),
        }
        self._share_groups()

    def _share_groups(self) -> None:
        """Take the groups of both parts, which schedules change in place."""
        self.param_groups = [group for part in self._parts.values() for group in part.param_groups]

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
        for name, part in self._parts.items():
            part.load_state_dict(state_dict[name])
        self._share_groups()


class _Muon(Optimizer):
    """Muon as ``torch.optim.Muon`` has it, of all matrices of a shape at once, and in their own precision.

    The matrices of an operator are small: one by one, their products were a quarter of a training step.
    """

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step by the orthogonal factor of the momentum."""
        [group] = self.param_groups
        of_shape = defaultdict[torch.Size, list[tuple[Tensor, Tensor]]](list)
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state = self.state[matrix]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(matrix.grad)
            momentum = state["momentum_buffer"]
            momentum.lerp_(matrix.grad, 1 - group["momentum"])
            of_shape[matrix.shape].append((matrix, matrix.grad.lerp(momentum, group["momentum"])))
        for (rows, columns), pairs in of_shape.items():
            matrices, updates = zip(*pairs, strict=True)
            for matrix, step in zip(matrices, orthogonal_factor(torch.stack(updates)), strict=True):
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.sub_(step, alpha=group["lr"] * math.sqrt(max(1, rows / columns)))


def orthogonal_factor(matrices: Tensor) -> Tensor:
    r"""Return about :math:`U V^T` of each matrix :math:`U S V^T`, ``(n, rows, columns)``.

    Five steps of an iteration of Newton and Schulz for odd polynomials, after which the singular values lie
    between 0.7 and 1.2 [1]_; those below 0.001 of the largest are smaller.

    .. [1] K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024.

    Examples
    --------
    >>> factor = orthogonal_factor(torch.diag(torch.tensor([9.0, 1.0])).expand(1, 2, 2))
    >>> [round(value, 1) for value in factor[0].diagonal().tolist()]
    [0.7, 0.8]
    """
    a, b, c = 3.4445, -4.775, 2.0315
    x = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _split(parameters: Iterable[tuple[str, Tensor]]) -> tuple[list[Tensor], dict[float, list[Tensor]]]:
    """Return the matrices for Muon, and the other parameters by their rate over AdamW's."""
    matrices, others = list[Tensor](), defaultdict[float, list[Tensor]](list)
    for name, parameter in parameters:
        outer = name.split(".")[0] in ("lifting", "projection")
        rows, columns = parameter.shape[-2:] if parameter.ndim > 1 else (1, 1)
        hidden = min(rows, columns) >= LEAST_SIDE and not parameter.is_complex()
        if parameter.ndim == 2 and hidden and not outer:
            matrices.append(parameter)
        else:
            of_wavenumbers = parameter.ndim > 2 and hidden and rows == columns
            others[min(1.0, WIDTH / columns) if of_wavenumbers else 1.0].append(parameter)
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
