"""Variables of rollouts, one for each step: "vorticity@+1" to "vorticity@+20"."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr


def steps_of(labels: Sequence[str], rollout: int) -> dict[str, dict[int, str]]:
    """Return the labels of a rollout by variable and step; none without a rollout.

    Examples
    --------
    >>> steps_of(["w@+1", "w@+2"], 2)
    {'w': {1: 'w@+1', 2: 'w@+2'}}
    """
    steps: dict[str, dict[int, str]] = {}
    for label in labels if rollout > 1 else ():
        name, _, step = label.rpartition("@")
        steps.setdefault(name, {})[int(step)] = label
    return steps


def shown_labels(labels: Sequence[str], rollout: int) -> list[str]:
    """Return the labels of the first, the middle and the last step of a rollout; all without one.

    Examples
    --------
    >>> shown_labels([f"w@+{step}" for step in range(1, 21)], 20)
    ['w@+1', 'w@+10', 'w@+20']
    """
    shown = sorted({1, rollout // 2, rollout})
    steps = steps_of(labels, rollout)
    return [by_step[step] for by_step in steps.values() for step in shown] or list(labels)


def shown_steps(data: xr.Dataset) -> xr.Dataset:
    """Select the first, the middle and the last step of a rollout in results or a summary."""
    return data.sel(variable=shown_labels(data["variable"].values.tolist(), data.attrs.get("rollout", 1)))
