"""Mean and standard deviation of a field that is too large to hold, over its area."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Moments:
    r"""Running mean and standard deviation over samples and area.

    .. math::
        \mu = \frac{1}{S} \sum_{s} \sum_i w_i f_{s,i}, \qquad
        \sigma^2 = \frac{1}{S} \sum_{s} \sum_i w_i (f_{s,i} - \mu)^2, \qquad \sum_i w_i = 1

    taken over S samples in pieces of any size, in float64, holding one piece at a time. Pieces are
    merged as in [1]_, which loses no digits to the difference of two large sums.

    Parameters
    ----------
    weights : array_like
        Area that each point stands for, the shape of one sample.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing
       sample variances", COMPSTAT 1982, eq. (2.1).

    Examples
    --------
    >>> moments = Moments([1.0, 1.0])
    >>> moments.add([[0.0, 2.0]]), moments.add([[4.0, 6.0]])
    (None, None)
    >>> moments.mean, moments.std == 5**0.5
    (3.0, True)
    """

    def __init__(self, weights: ArrayLike) -> None:
        weights = np.asarray(weights, dtype=np.float64)
        self._weights = weights / weights.sum()
        self._count = 0
        self._mean = 0.0
        self._squares = 0.0  # S sigma^2

    def add(self, samples: ArrayLike) -> None:
        """Take in a piece, shape ``(n, *weights.shape)``."""
        values: NDArray[np.float64] = np.asarray(samples, dtype=np.float64)
        count = len(values)
        mean = float((values * self._weights).sum() / count)
        squares = float((np.square(values - mean) * self._weights).sum())
        apart = mean - self._mean
        total = self._count + count
        self._squares += squares + apart**2 * self._count * count / total
        self._mean += apart * count / total
        self._count = total

    @property
    def mean(self) -> float:
        """The mean so far."""
        return self._mean

    @property
    def std(self) -> float:
        """The standard deviation so far; exactly 0 for a field that is constant in float32."""
        std = (self._squares / self._count) ** 0.5
        # The rounding of the sums leaves a constant field with some 1e-17, by which nobody should divide.
        return std if std > np.finfo(np.float32).eps * abs(self._mean) else 0.0
