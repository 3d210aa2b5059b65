"""What the numbers of a run depend on besides its options."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("mano_op", "neuraloperator", "torch", "numpy", "xarray", "zarr")


def machine(device: str | torch.device = "cpu", also: Iterable[str] = ()) -> dict[str, Any]:
    """Versions, device, processor and threads.

    Parameters
    ----------
    device : str or torch.device
        The one that was computed on. "processor" names it: a GPU, or else the CPU.
    also : iterable of str
        Other packages that were used, whose versions are told where they are installed under that name.

    Examples
    --------
    >>> found = machine()
    >>> found["device"], found["threads"] == torch.get_num_threads(), found["versions"]["mano_op"]
    ('cpu', True, '0.1.0')
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "processor": _processor(torch.device(device)),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in _PACKAGES} | _versions(also),
    }


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    described = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
