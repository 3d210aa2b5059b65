"""Channels of ``x`` and ``y``: which field, and of which time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from mano_op.data.layout import Layout
from mano_op.errors import InputError, check_whole


@dataclass(frozen=True)
class Channel:
    """Channel of a sample: a variable, and its time if it varies.

    `offset` counts from the sample's first time, None if steady. Labels are "pressure"; "vorticity@-1",
    "@+0", "@+1" from the last known step; "velocity@t=1".
    """

    variable: str
    offset: int | None
    label: str


@dataclass(frozen=True)
class Channels:
    """Channels ``x`` and ``y`` of samples, and where in the store's times their runs start."""

    x: tuple[Channel, ...]
    y: tuple[Channel, ...]
    starts: range

    @property
    def all(self) -> tuple[Channel, ...]:
        """Channels of ``x``, then those of ``y``."""
        return (*self.x, *self.y)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Labels of the channels of ``x``."""
        return tuple(channel.label for channel in self.x)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Labels of the channels of ``y``."""
        return tuple(channel.label for channel in self.y)


def channels_of(
    layout: Layout, time_steps: Sequence[int] | None = None, at: Sequence[float] | None = None
) -> Channels:
    """Return the channels of a store's samples.

    Parameters
    ----------
    layout : Layout
    time_steps : (int, int), optional
        ``(steps_in, steps_out)``: ``x`` is the steady inputs and all varying variables at `steps_in` times,
        ``y`` the varying outputs at the next `steps_out`. Initial fields of outputs are left out.
    at : sequence of float, optional
        ``y`` is the outputs at these times, ``x`` the steady inputs, initial fields too. Exactly one is
        needed where outputs vary in time; steps have to be even.

    Examples
    --------
    >>> from mano_op.data.layout import Variable
    >>> from mano_op.grid import Grid
    >>> flow = Layout.plan([Grid.uniform((8, 8), periodic=True)], [Variable("force", "input"),
    ...     Variable("vorticity", "output", time=True)], {"train": 1}, levels="unknown", chunk=1,
    ...     boundary_conditions={"y": "periodic", "x": "periodic"}, times=[0.0, 0.5, 1.0, 1.5])
    >>> two_in_one_out = channels_of(flow, time_steps=(2, 1))
    >>> two_in_one_out.inputs, two_in_one_out.outputs, len(two_in_one_out.starts)
    (('force', 'vorticity@-1', 'vorticity@+0'), ('vorticity@+1',), 2)
    >>> channels_of(flow, at=[1.5]).outputs
    ('vorticity@t=1.5',)
    """
    steady = tuple(Channel(name, None, name) for name in layout.named("input", time=False))
    varying, n_times = layout.named(time=True), len(layout.times)
    outputs, fixed = layout.named("output"), layout.named("output", time=False)
    if (time_steps is not None) + (at is not None) != bool(varying):
        remedy = "nothing in the store varies in time: leave them out"
        if varying:
            remedy = (
                f"fields vary in time ({n_times} times from {layout.times[0]:g} to {layout.times[-1]:g}), so "
                "expected one of them: time_steps=(steps_in, steps_out) to step on from known times, or "
                "at=[times] to predict from the steady inputs"
            )
        raise InputError(f"time_steps={time_steps}, at={at}; {remedy}")
    if not varying:
        return Channels(steady, tuple(Channel(name, None, name) for name in outputs), range(1))
    if fixed or not outputs:
        raise InputError(
            f"outputs {', '.join(fixed) or 'none'} do not vary in time while {varying[0]} does; expected "
            "outputs that all vary: put the steady ones into a store of their own"
        )
    if at is not None:
        return Channels(steady, _at(layout, at, steady, outputs), range(1))
    initial = {variable.name for variable in layout.variables if variable.initial_of}
    steps_in, steps_out = _steps(layout.times, time_steps or ())
    n_steps = steps_in + steps_out
    known, later = (
        [Channel(name, step, f"{name}@{step - steps_in + 1:+d}") for step, name in product(steps, names)]
        for steps, names in ((range(steps_in), varying), (range(steps_in, n_steps), outputs))
    )
    parameters = [channel for channel in steady if channel.variable not in initial]
    return Channels((*parameters, *known), tuple(later), range(n_times - n_steps + 1))


def _at(
    layout: Layout, at: Sequence[float], steady: tuple[Channel, ...], outputs: Sequence[str]
) -> tuple[Channel, ...]:
    varying = layout.named("input", time=True)
    if varying or not steady:
        raise InputError(
            f"at={list(at)} predicts from steady inputs alone, but "
            f"{', '.join(varying) + ' vary in time' if varying else 'there are none'}; use "
            "time_steps=(steps_in, steps_out)"
        )
    times = np.asarray(layout.times)
    nearest = [int(np.abs(times - time).argmin()) for time in at]
    if not nearest or not np.allclose(times[nearest], at, rtol=1e-9, atol=1e-12):
        known = ", ".join(f"{time:g}" for time in times)
        raise InputError(f"at={list(at)}; expected at least one time, all of the store's times, {known}")
    return tuple(Channel(name, i, f"{name}@t={times[i]:g}") for i in nearest for name in outputs)


def _steps(times: Sequence[float], time_steps: Sequence[int]) -> tuple[int, int]:
    """Return the numbers of known and predicted steps, if the store has as many, equally far apart."""
    check_whole(**dict(zip(("steps_in", "steps_out"), time_steps, strict=False)))
    if len(time_steps) != 2 or sum(time_steps) > len(times):
        raise InputError(
            f"time_steps={tuple(time_steps)} spans {sum(time_steps[:2])} times, the store has {len(times)}: "
            f"expected two numbers, (steps_in, steps_out): give at most {len(times)} steps together"
        )
    steps = np.diff(times)
    if not np.allclose(steps, steps.mean(), rtol=1e-4, atol=0):
        first = int(np.abs(steps - steps.mean()).argmax())
        raise InputError(
            f"time_steps={tuple(time_steps)}, but the store's times are not equally far apart: from "
            f"{times[first]:g} to {times[first + 1]:g} it is {steps[first]:g}, {steps.mean():g} on average, "
            "so a step would not mean the same everywhere; interpolate the fields to uniform times, or "
            "predict times by themselves with at="
        )
    return time_steps[0], time_steps[1]
