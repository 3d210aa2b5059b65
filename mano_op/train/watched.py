"""How far training is, and its history: the Trainer has no hook for either."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mano_op.errors import InputError
from mano_op.train.distributed import sum_numbers


class Diverged(InputError):
    """Raised when the numbers of a training come to an end.

    Examples
    --------
    >>> raise Diverged("the loss is nan", epoch=2, epochs=3)
    Traceback (most recent call last):
    ...
    mano_op.train.watched.Diverged: the loss is nan in epoch 2 of 3, training has diverged and nothing is
    kept: give a smaller learning rate
    """

    def __init__(self, what: str, epoch: int, epochs: int) -> None:
        super().__init__(
            f"{what} in epoch {epoch} of {epochs}, training has diverged and nothing is kept: give a smaller "
            "learning rate"
        )


class Watched:
    """A training loader and a loss that show how far training is, and keep its history.

    The Trainer sees a loader and a loss, as it expects to.

    Parameters
    ----------
    loader : DataLoader
    loss : callable
        Of a prediction and the truth, summed over samples and channels.
    epochs : int
    title : str
        Of the bar.
    progress : bool
        Whether to show a bar.
    turn : callable, optional
        Maps ``x`` and ``y`` of a batch to another position of the same fields; see `mano_op.train.symmetry`.
    scaler : GradScaler, optional
        By whose scale the Trainer is to find the loss multiplied.
    history : list of dict, optional
        Of the epochs that are over, which is gone on with.

    Attributes
    ----------
    title : str
    history : list of dict
        For each epoch its number, its seconds and its ``training_error``: the mean of the loss over samples
        and channels, each sample as the model was when it came up, of all ranks.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        loss: Callable[..., Tensor],
        epochs: int,
        title: str,
        progress: bool,
        turn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        scaler: GradScaler | None = None,
        history: list[dict[str, float]] | None = None,
    ) -> None:
        self._loader, self._loss, self._turn, self._scaler = loader, loss, turn, scaler
        self.title, self._epochs = title, epochs
        self.history = [] if history is None else history
        self._bar = tqdm(
            total=epochs * len(loader),
            initial=len(self.history) * len(loader),
            desc=title,
            unit="step",
            disable=not progress,
        )

    def __len__(self) -> int:
        return len(self._loader)

    @property
    def dataset(self) -> Dataset[Any]:
        """The loader's."""
        return self._loader.dataset

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        start, self._total, self._terms = perf_counter(), 0.0, 0
        for sample in self._loader:
            if self._turn is not None:
                x, y = self._turn(sample["x"], sample["y"])
                sample = {**sample, "x": x, "y": y}
            yield sample
            self._bar.update()
        error = self._total / self._terms
        self.history.append(
            {"epoch": len(self.history) + 1, "training_error": error, "seconds": perf_counter() - start}
        )
        self._bar.set_postfix(training_error=f"{error:.4f}")

    def close(self) -> None:
        """Let go of the bar."""
        self._bar.close()

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def loss(self, out: Tensor, y: Tensor, **sample: Any) -> Tensor:
        """The loss of a batch, which is noted.

        Raises
        ------
        Diverged
            If it is not finite: what follows from there on is lost.
        """
        # Under autocast the output may be of half precision; errors are not.
        value = self._loss(out.to(y.dtype), y)
        # Of several ranks all have the sum of all, so that all go on or none does.
        total, terms = sum_numbers(value.item(), y.shape[0] * y.shape[1], device=str(value.device))
        if not math.isfinite(total):
            raise Diverged(f"{self.title}: the loss is {total}", len(self.history) + 1, self._epochs)
        self._total += total
        self._terms += int(terms)
        return value if self._scaler is None else self._scaler.scale(value)
