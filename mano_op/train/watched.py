"""How far training is, and its history: the Trainer has no hook for either."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mano_op.errors import InputError


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

    Attributes
    ----------
    history : list of dict
        For each epoch its number, its seconds and its ``training_error``: the mean of the loss over samples
        and channels, each sample as the model was when it came up.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        loss: Callable[..., Tensor],
        epochs: int,
        title: str,
        progress: bool,
        turn: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self._loader, self._loss, self._turn = loader, loss, turn
        self._title, self._epochs = title, epochs
        self._bar = tqdm(total=epochs * len(loader), desc=title, unit="step", disable=not progress)
        self.history: list[dict[str, float]] = []

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
        if len(self.history) == self._epochs:
            self._bar.close()

    def loss(self, out: Tensor, y: Tensor, **sample: Any) -> Tensor:
        """The loss of a batch, which is noted.

        Raises
        ------
        InputError
            If it is not finite: what follows from there on is lost.
        """
        value = self._loss(out, y)
        if not math.isfinite(value.item()):
            self._bar.close()
            raise InputError(
                f"{self._title}: the loss is {value.item()} in epoch {len(self.history) + 1} of "
                f"{self._epochs}, training has diverged and nothing is kept: give a smaller learning rate"
            )
        self._total += value.item()
        self._terms += y.shape[0] * y.shape[1]
        return value
