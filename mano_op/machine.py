"""The machine that computes."""

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
    """Return the versions, device, processor and threads that a computation depends on.

    Parameters
    ----------
    device : str or torch.device
        Device of the computation; "processor" names the GPU, or else the CPU. "instructions" are those of
        the CPU that torch uses, such as "AVX2".
    also : iterable of str
        Other packages, whose versions are added if they are installed.
    """
    versions = {}
    for name in (*_PACKAGES, *also):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "processor": _processor(torch.device(device)),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    description = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty there
    lines = description.read_text().splitlines() if description.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
