"""Variables of rollouts, one for each step: "vorticity@+1" to "vorticity@+20"."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr


def steps_of(data: xr.Dataset) -> dict[str, dict[int, str]]:
    """Return the labels of results or of a summary, by variable and step; none without a rollout.

    Examples
    --------
    >>> steps_of(xr.Dataset(coords={"variable": ["w@+1", "w@+2"]}, attrs={"rollout": 2}))
    {'w': {1: 'w@+1', 2: 'w@+2'}}
    """
    if data.attrs.get("rollout", 1) == 1:
        return {}
    return _by_variable(data["variable"].values.tolist())


def shown_labels(labels: Sequence[str], rollout: int) -> list[str]:
    """Return the labels of the first, the middle and the last step of a rollout; all without one.

    Examples
    --------
    >>> shown_labels([f"w@+{step}" for step in range(1, 21)], 20)
    ['w@+1', 'w@+10', 'w@+20']
    """
    if rollout == 1:
        return list(labels)
    steps = sorted({1, max(1, rollout // 2), rollout})
    return [by_step[step] for by_step in _by_variable(labels).values() for step in steps]


def shown_steps(data: xr.Dataset) -> xr.Dataset:
    """Select the first, the middle and the last step of a rollout in results or a summary."""
    return data.sel(variable=shown_labels(data["variable"].values.tolist(), data.attrs.get("rollout", 1)))


def _by_variable(labels: Sequence[str]) -> dict[str, dict[int, str]]:
    steps: dict[str, dict[int, str]] = {}
    for label in labels:
        name, _, step = label.rpartition("@")
        steps.setdefault(name, {})[int(step)] = label
    return steps
