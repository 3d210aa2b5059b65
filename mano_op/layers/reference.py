"""Reference grids of modules."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mano_op.errors import InputError


class _Reference:
    """A shape that is set once; copies of a module that has not seen a grid learn the same one."""

    def __init__(self, shape: tuple[int, ...] | None) -> None:
        self.shape = shape

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Anchored(nn.Module):
    """Module with a reference, the grid that it is trained on.

    The reference is given, or it is the first grid that comes in training mode; a second one is then refused
    in training, see `fix_references`. It is a constant, neither a parameter nor a buffer: what averages,
    casts or broadcasts those leaves it alone. State dicts have it as extra state.

    Examples
    --------
    >>> class Scale(Anchored):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.keep_reference(None, n_dim=1)
    >>> module = Scale()
    >>> module.eval().reference_for((32,)), module.reference_shape
    ((32,), None)
    >>> module.train().reference_for((16,)), module.eval().reference_for((32,)), module.reference_shape
    ((16,), (16,), (16,))
    """

    _reference: _Reference

    def keep_reference(self, shape: tuple[int, ...] | None, n_dim: int) -> None:
        """Set the reference, or leave it to be learnt; for the constructor."""
        self._reference, self._reference_n_dim = _Reference(shape), n_dim
        self._reference_is_fixed = shape is not None

    @property
    def reference_shape(self) -> tuple[int, ...] | None:
        """Points along each axis of the grid that the levels belong to; None before any training."""
        return self._reference.shape

    def get_extra_state(self) -> Tensor:
        """Return the reference as whole numbers, zeros while unknown: an entry of state dicts."""
        return torch.tensor(self.reference_shape or (0,) * self._reference_n_dim)

    def set_extra_state(self, state: Tensor) -> None:
        """Take the reference of a state dict."""
        shape = tuple(int(n) for n in state.round().tolist())
        self._reference = _Reference(shape if all(shape) else None)

    def reference_for(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the reference for an input on a grid; the first grid in training becomes the reference.

        Before any training a grid is its own reference.

        Raises
        ------
        InputError
            In training mode, if the reference was not given and is another grid.
        """
        reference = self.reference_shape
        if reference is None:
            if self.training:
                if dist.is_available() and dist.is_initialized():
                    raise InputError(
                        f"{type(self).__name__} has no reference yet, and each rank of this process group "
                        f"would take its own first grid, here {shape}: build it with reference_shape={shape}"
                    )
                self._reference.shape = shape
            return shape
        if self.training and not self._reference_is_fixed and shape != reference:
            raise InputError(
                f"{type(self).__name__} got a grid of {shape} in training mode after {reference}, the first "
                "one that it saw there, to which its levels belong. To train on several grids, build it with "
                f"reference_shape={reference}, or keep what it has with mano_op.fix_references(model). If "
                f"{reference} was a trial, build the model anew. To evaluate, call model.eval() first"
            )
        return reference


def fix_references(model: nn.Module) -> None:
    """Fix the references that the layers of a model have learnt, so that it can be trained on several grids.

    For models whose layers see grids of their own, such as a U-shaped one: run the model once in training
    mode on the grid that is to be the reference, then call this. Files do not hold that it was called, so
    call it again where training goes on with a loaded model.

    Parameters
    ----------
    model : nn.Module
        `mano_op.MANO`, or any that has it or `mano_op.MultipoleConv` as a part.

    Raises
    ------
    InputError
        If no layer has a reference, or one has not seen a grid in training mode.

    Examples
    --------
    >>> from mano_op import MANO
    >>> model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2)
    >>> _ = model.train()(torch.zeros(1, 1, 8, 8))
    >>> fix_references(model)
    >>> model(torch.zeros(1, 1, 16, 12)).shape, model.reference_shape
    (torch.Size([1, 1, 16, 12]), (8, 8))
    """
    anchored = {name: module for name, module in model.named_modules() if isinstance(module, Anchored)}
    if not anchored:
        raise InputError(
            f"{type(model).__name__} has no layer with a reference: give a MANO, or one with MultipoleConv"
        )
    for name, module in anchored.items():
        if module.reference_shape is None:
            raise InputError(
                f"{name or 'the model'} ({type(module).__name__}) has no reference yet: call model.train(), "
                "run it on a field on the grid that is to be the reference, then fix_references"
            )
    for module in anchored.values():
        module._reference_is_fixed = True
