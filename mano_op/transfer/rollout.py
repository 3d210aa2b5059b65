"""Results of rollouts: their variables are those of every step, "vorticity@+1" to "vorticity@+20"."""

from __future__ import annotations

import xarray as xr


def steps_of(data: xr.Dataset) -> dict[str, dict[int, str]]:
    """The labels of results or of a summary, by variable and step; none where nothing is stepped.

    Examples
    --------
    >>> steps_of(xr.Dataset(coords={"variable": ["w@+1", "w@+2"]}, attrs={"rollout": 2}))
    {'w': {1: 'w@+1', 2: 'w@+2'}}
    """
    found: dict[str, dict[int, str]] = {}
    if data.attrs.get("rollout", 1) > 1:
        for label in data["variable"].values.tolist():
            name, _, step = label.rpartition("@")
            found.setdefault(name, {})[int(step)] = label
    return found


def shown_steps(data: xr.Dataset) -> xr.Dataset:
    """Results or a summary with the first, the middle and the last step of a rollout, in place of all.

    Examples
    --------
    >>> labels = [f"w@+{step}" for step in range(1, 21)]
    >>> some = xr.Dataset(coords={"variable": labels}, attrs={"rollout": 20})
    >>> shown_steps(some)["variable"].values.tolist()
    ['w@+1', 'w@+10', 'w@+20']
    """
    every = steps_of(data)
    if not every:
        return data
    last = data.attrs["rollout"]
    chosen = sorted({1, max(1, last // 2), last})
    return data.sel(variable=[steps[step] for steps in every.values() for step in chosen])
