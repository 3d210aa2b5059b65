"""The grid that a module's levels belong to, kept with its parameters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Anchored:
    """What lets a module know the grid it was trained on, its reference.

    A class to inherit from beside `torch.nn.Module`. The reference is given, or it is the first grid that
    comes in training mode. It is a buffer, so that averaged, wrapped and distributed copies have it too, and
    files.

    Attributes
    ----------
    reference : Tensor, ``(n_dim,)``
        Points along each axis; zeros while they are not known.

    Examples
    --------
    >>> class Scale(Anchored, nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.keep_reference(None, n_dim=1)
    >>> module = Scale()
    >>> module.eval().reference_for((32,)), module.reference_shape
    ((32,), None)
    >>> module.train().reference_for((16,)), module.reference_for((32,)), module.reference_shape
    ((16,), (16,), (16,))
    """

    reference: Tensor
    training: bool
    _known_reference: tuple[tuple[int, int], tuple[int, ...]] | None

    def keep_reference(self, shape: tuple[int, ...] | None, n_dim: int) -> None:
        """Make the buffer; to be called once, by the constructor."""
        cast(nn.Module, self).register_buffer("reference", torch.tensor(shape or (0,) * n_dim))
        self._known_reference = None

    @property
    def reference_shape(self) -> tuple[int, ...] | None:
        """Points along each axis of the grid that the levels belong to; None before any training."""
        if self.reference.is_inference():  # which has no version
            shape = tuple(self.reference.tolist())
            return shape if all(shape) else None
        here = (id(self.reference), self.reference._version)  # reading it may have to wait for a GPU
        if self._known_reference is None or self._known_reference[0] != here:
            self._known_reference = here, tuple(self.reference.tolist())
        shape = self._known_reference[1]
        return shape if all(shape) else None

    def reference_for(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The reference for an input on a grid of some shape, which becomes it if there is none in training.

        Before any training a grid is its own reference.
        """
        reference = self.reference_shape
        if reference is None:
            reference = shape
            if self.training:
                self.reference.copy_(torch.tensor(shape))
        return reference
