"""Several resolutions of a store in one training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mixed:
    """Resolutions that are mixed in every epoch, each batch being of one.

    Parameters
    ----------
    resolutions : sequence of int, tuple, str or Grid
        Of a store, each once.
    ratios : sequence of float, optional
        The part of an epoch's samples that each resolution has; see
        `mano_op.data.sampler.ResolutionBatchSampler`. All samples of all resolutions if it is left out.
    batch_size : sequence of int, optional
        Of each resolution, where they differ.

    Examples
    --------
    >>> Mixed([16, (32, 48)], ratios=[1, 3])
    Mixed(resolutions=[16, (32, 48)], ratios=[1, 3], batch_size=None)
    """

    resolutions: Sequence[Any]
    ratios: Sequence[float] | None = None
    batch_size: Sequence[int] | None = None
