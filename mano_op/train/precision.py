"""Device and precision of a training: torch's autocast, and its scaler of the loss."""

from __future__ import annotations

import warnings

import torch
from torch.amp.grad_scaler import GradScaler

from mano_op.errors import InputError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def check_device(device: str) -> None:
    """Refuse a device that this machine does not have."""
    try:
        torch.ones(1, device=device).item()  # "meta" has tensors, but no values in them
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).splitlines()[0]
        raise InputError(f"device={device!r} cannot be used here ({reason}): give device='cpu'") from error


def check_precision(precision: str, device: str) -> None:
    """Refuse a precision that torch does not have on this device."""
    if precision == "float32":
        return
    ones, reason = torch.ones(2, 2, device=device), "it has no autocast"
    try:
        with warnings.catch_warnings(record=True) as caught:  # torch warns, and goes on in single precision
            warnings.simplefilter("always")
            with torch.autocast(torch.device(device).type, PRECISIONS[precision]):
                if (ones @ ones).dtype == PRECISIONS[precision]:
                    return
            reason = "; ".join(str(warning.message) for warning in caught) or reason
    except RuntimeError as error:
        reason = str(error)
    raise InputError(
        f"precision={precision!r} is not available in torch {torch.__version__} on {device!r} "
        f"({reason.splitlines()[0]}): give precision='float32'"
    )


def autocast(precision: str, device: str) -> torch.autocast:
    """Return torch's autocast to a precision; for float32 it does nothing."""
    return torch.autocast(torch.device(device).type, PRECISIONS[precision], enabled=precision != "float32")


def scaler_for(precision: str, device: str) -> GradScaler | None:
    """Return torch's scaler of the loss for float16, whose gradients would vanish; None for the others."""
    return GradScaler(torch.device(device).type) if precision == "float16" else None
