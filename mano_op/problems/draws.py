"""The random numbers behind a sample: known from its seed and its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mano_op.errors import InputError


def normal_coefficients(
    seed: int | Sequence[int], index: int, n_modes: int, n_dim: int
) -> NDArray[np.float64]:
    """Independent standard normal numbers for the modes of a series, shape ``(n_modes,) * n_dim``.

    More modes leave the first ones as they are: numbers are handed out in order of the largest index
    of a mode along any axis, an order which more modes only extend.

    Parameters
    ----------
    seed : int or sequence of int
        Entropy of a `numpy.random.SeedSequence`, so not negative.
    index : int
        Number of the draw, from 0.
    n_modes, n_dim : int

    Raises
    ------
    InputError
        If the seed or the index is no such number.

    Examples
    --------
    >>> few, many = (normal_coefficients(0, 3, n, 2) for n in (4, 9))
    >>> bool((few == many[:4, :4]).all())
    True
    """
    xi = np.empty(n_modes**n_dim)
    xi[_shells(n_modes, n_dim)] = _generator(seed, index).standard_normal(xi.size)
    return xi.reshape((n_modes,) * n_dim)


def _generator(seed: int | Sequence[int], index: int) -> np.random.Generator:
    entropy = list(seed) if isinstance(seed, Sequence) else [seed]
    if not entropy or any(not isinstance(word, int | np.integer) or word < 0 for word in entropy):
        raise InputError(f"seed={seed!r}; expected a whole number from 0 on, or several of them")
    if not isinstance(index, int | np.integer) or index < 0:
        raise InputError(f"index={index!r}; expected the number of a draw: 0, 1, ...")
    sequence = np.random.SeedSequence([int(word) for word in entropy], spawn_key=(int(index),))
    return np.random.default_rng(sequence)


@lru_cache(maxsize=8)
def _shells(n_modes: int, n_dim: int) -> NDArray[np.intp]:
    """Flat positions of the modes in order of max_j k_j."""
    shell = np.indices((n_modes,) * n_dim).max(axis=0)
    return np.argsort(shell, axis=None, kind="stable")
