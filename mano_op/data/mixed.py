"""Several resolutions of a store in one training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mano_op.errors import InputError, check_whole


@dataclass(frozen=True)
class Mixed:
    """Resolutions that are mixed in every epoch, each batch being of one.

    Parameters
    ----------
    resolutions : sequence of int, tuple, str or Grid
        Of a store; the options below have one value for each.
    ratios : sequence of float, optional
        Part of an epoch's samples of each resolution; see `mano_op.data.sampler.ResolutionBatchSampler`.
    batch_size : sequence of int, optional
        Of each resolution, where they differ.

    Examples
    --------
    >>> Mixed([16, (32, 48)], ratios=[1, 3])
    Mixed(resolutions=(16, (32, 48)), ratios=(1, 3), batch_size=None)
    """

    resolutions: Sequence[Any] = ()
    ratios: Sequence[float] | None = None
    batch_size: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not _is_list(self.resolutions) or not self.resolutions:
            raise InputError(
                f"resolutions={self.resolutions!r}, expected a list of one or more: give resolutions=[16, 32]"
            )
        n = len(self.resolutions)
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        for name, example in (("ratios", [1] * n), ("batch_size", [20] * n)):
            if (values := getattr(self, name)) is not None:
                if not _is_list(values) or len(values) != n:
                    raise InputError(
                        f"{name}={values!r} with resolutions={list(self.resolutions)}, expected a list, one "
                        f"for each resolution: give {name}={example}, or leave {name} out"
                    )
                object.__setattr__(self, name, tuple(values))
        check_whole(**{f"Mixed: batch_size[{i}]": size for i, size in enumerate(self.batch_size or ())})


def _is_list(values: object) -> bool:
    return isinstance(values, Sequence) and not isinstance(values, str)
