"""Loss of a variable by rounding to float32, beside how much the variable varies."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, field

import numpy as np
from numpy.typing import NDArray

from mano_op.data.moments import Moments

LARGEST_LOSS = 1e-3  # of a variable's own variation by rounding
SMALLEST = float(np.finfo(np.float32).tiny)  # below which float32 has fewer digits, and none in the end


@dataclass(frozen=True)
class Rounding:
    r"""Loss of a variable by rounding, over all of its values or a part of them; parts add up.

    .. math::
        \ell^2 = \frac{\sum_i (f_i - \mathrm{fl}(f_i))^2}{\sum_i (f_i - \mu)^2},

    with :math:`\mathrm{fl}` the rounding to float32 and :math:`\mu` the mean. `moments` are those before
    rounding, all points weighted alike; `lost` is the sum of the squared differences, normalised likewise.

    Examples
    --------
    >>> pressure = 101325 + 0.02 * np.sin(np.arange(100.0)).reshape(1, 100)
    >>> rounding = Rounding.of(pressure, pressure.astype(np.float32))
    >>> f"{rounding.loss:.0%}", f"{Rounding.of(pressure - 101325, (pressure - 101325).astype('f4')).loss:.0e}"
    ('18%', '3e-08')
    """

    moments: Moments = field(default_factory=Moments)
    lost: float = 0.0

    @classmethod
    def of(cls, values: NDArray[np.float64], stored: NDArray[np.float32]) -> Rounding:
        """Measure the loss of values, shape ``(samples, ...)``, by what is stored of them."""
        flat = values.reshape(len(values), -1)
        lost = np.square(flat - stored.reshape(flat.shape)).mean(axis=1).sum()
        return cls(Moments.of(flat, np.ones(flat.shape[1])), float(lost))

    def __add__(self, other: Rounding) -> Rounding:
        return Rounding(self.moments + other.moments, self.lost + other.lost)

    @property
    def loss(self) -> float:
        """Loss in standard deviations; 0 of a constant, whose values may differ in their last digit."""
        if not self.lost or self.is_constant:
            return 0.0
        return math.sqrt(self.lost / self.moments.count) / self.moments.std

    @property
    def is_constant(self) -> bool:
        """Whether values are one number, but for the last digits of float64; so are none at all."""
        return bool(self.moments.std <= 8 * np.finfo(np.float64).eps * abs(self.moments.mean))

    def violation(self, name: str, reference: float) -> str | None:
        """Return what float32 loses of values less a reference, and the remedy; None if it holds them."""
        mean, std, low, high = self.moments.mean, self.moments.std, self.moments.low, self.moments.high
        if low < high and max(abs(low), abs(high)) < SMALLEST:
            return (
                f"values from {low:g} to {high:g}, below what float32 holds, {SMALLEST:.1e}: give the "
                "variable in a smaller unit"
            )
        if reference and self.moments.count and self.is_constant:
            return (
                f"does not vary beside reference={{{name!r}: {reference!r}}}; expected a constant near the "
                "variable's mean, or none for one that is constant: leave reference out"
            )
        if self.loss <= LARGEST_LOSS:
            return None
        step = 10.0 ** math.ceil(math.log10(std))  # a round number, beside which the variation is not small
        constant = reference + float(f"{round(mean / step) * step:.15g}")
        return (
            f"{mean:.9g} with a standard deviation of {std:.3g}, of which float32 loses {self.loss:.1%}; "
            f"expected at most {LARGEST_LOSS:.1%}. Write its difference from a constant, which the store "
            f"keeps: reference={{{name!r}: {constant!r}}}"
        )

    def to_row(self) -> list[float]:
        """Return the numbers that `from_row` takes."""
        return [*astuple(self.moments), self.lost]

    @classmethod
    def from_row(cls, row: NDArray[np.float64]) -> Rounding:
        """Make the rounding that `to_row` wrote down; none for a row of zeros."""
        *moments, lost = row.tolist()
        return cls(Moments(*moments), lost) if moments[0] else cls()
