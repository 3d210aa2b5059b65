"""Mean and standard deviation over its area of a field too large to hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Moments:
    r"""Mean and standard deviation over S samples and area, of a whole or of a piece of it.

    .. math::
        \mu = \frac{1}{S} \sum_{s} \sum_i w_i f_{s,i}, \qquad
        \sigma^2 = \frac{1}{S} \sum_{s} \sum_i w_i (f_{s,i} - \mu)^2, \qquad \sum_i w_i = 1

    Moments of pieces add up, as in [1]_, which loses no digits to the difference of two large sums. `count`
    is S, `squares` S times the variance, `low` and `high` are the extremes.

    References
    ----------
    .. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing
       sample variances", COMPSTAT 1982, eq. (2.1).

    Examples
    --------
    >>> moments = Moments.of([[0.0, 2.0]], [1.0, 1.0]) + Moments.of([[4.0, 6.0]], [1.0, 1.0])
    >>> moments.mean, moments.std == 5**0.5
    (3.0, True)
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = np.inf
    high: float = -np.inf

    @classmethod
    def of(cls, samples: ArrayLike, weights: ArrayLike) -> Moments:
        """Take the moments of samples, shape ``(n, *weights.shape)``; only ratios of weights count."""
        values: NDArray[np.float64] = np.asarray(samples, dtype=np.float64)
        area: NDArray[np.float64] = np.asarray(weights, dtype=np.float64)
        area = area / area.sum()
        mean = float((values * area).sum() / len(values))
        squares = float((np.square(values - mean) * area).sum())
        return cls(len(values), mean, squares, float(values.min()), float(values.max()))

    def __add__(self, other: Moments) -> Moments:
        if not (total := self.count + other.count):
            return self
        apart = other.mean - self.mean
        squares = other.squares + apart**2 * self.count * other.count / total
        return Moments(
            total,
            self.mean + apart * other.count / total,
            self.squares + squares,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def std(self) -> float:
        """Standard deviation; 0 exactly for a constant field."""
        # The rounding of the sums leaves a constant field with some 1e-17, by which nobody should divide.
        return (self.squares / self.count) ** 0.5 if self.low < self.high else 0.0
