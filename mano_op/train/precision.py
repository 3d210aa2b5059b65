"""Device and precision of a training: torch's autocast, and its scaler of the loss."""

from __future__ import annotations

import warnings

import torch
from torch.amp.grad_scaler import GradScaler

from mano_op.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have.

    Examples
    --------
    >>> check_device("nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mano_op.errors.InputError: device='nowhere' cannot be used here (...): give device='cpu'
    """
    try:
        torch.ones(1, device=device).item()  # "meta" has tensors, but no values in them
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used here ({reason}): give device='cpu'") from error


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision in which torch does not compute on this device."""
    if precision == "float32":
        return
    ones, reason = torch.ones(2, 2, device=device), ""
    with warnings.catch_warnings(record=True) as caught:  # torch warns, and goes on in single precision
        warnings.simplefilter("always")
        try:
            with torch.autocast(torch.device(device).type, PRECISIONS[precision]):
                done = (ones @ ones).dtype == PRECISIONS[precision]
        except RuntimeError as error:
            done, reason = False, str(error).splitlines()[0]
    if not done:
        reason = reason or "; ".join(str(w.message).splitlines()[0] for w in caught) or "it has no autocast"
        raise InputError(
            f"precision={precision!r} cannot be had from torch {torch.__version__} on {device!r} ({reason}): "
            "give precision='float32'"
        )


def autocast(precision: str, device: str) -> torch.autocast:
    """Return torch's autocast to a precision; for float32 it does nothing.

    Examples
    --------
    >>> with autocast("float16", "cpu"):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.float16
    """
    return torch.autocast(torch.device(device).type, PRECISIONS[precision], enabled=precision != "float32")


def scaler_for(precision: str, device: str) -> GradScaler | None:
    """Return torch's scaler of the loss for float16, whose gradients would vanish; None for the others.

    Examples
    --------
    >>> scaler_for("bfloat16", "cpu") is None, scaler_for("float16", "cpu").get_scale()
    (True, 65536.0)
    """
    return GradScaler(torch.device(device).type) if precision == "float16" else None
