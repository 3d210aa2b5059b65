"""Channels of ``x`` and ``y``: which field, and of which time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    steady = tuple(
        Channel(variable.name, None, variable.name)
        for variable in layout.variables
        if variable.role == "input" and not variable.time
    )
    varying = [variable for variable in layout.variables if variable.time]
    predicted = [variable.name for variable in varying if variable.role == "output"]
    fixed = [field.name for field in layout.variables if field.role == "output" and not field.time]
    given = sum(option is not None for option in (time_steps, at))
    if given != bool(varying):
        remedy = (
            f"fields vary in time ({len(layout.times)} times from {layout.times[0]:g} to "
            f"{layout.times[-1]:g}), so expected one of them: time_steps=(steps_in, steps_out) to step on "
            "from known times, or at=[times] to predict from the steady inputs"
            if varying
            else "nothing in the store varies in time: leave them out"
        )
        raise InputError(f"time_steps={time_steps}, at={at}; {remedy}")
    if not varying:
        return Channels(steady, tuple(Channel(name, None, name) for name in fixed), range(1))
    if fixed or not predicted:
        raise InputError(
            f"outputs {', '.join(fixed) or 'none'} do not vary in time while {varying[0].name} does; "
            "expected outputs that all vary: put the steady ones into a store of their own"
        )
    if at is not None:
        return _at(layout, at, steady, varying_inputs=[v.name for v in varying if v.role == "input"])
    initial = {variable.name for variable in layout.variables if variable.initial_of}
    parameters = tuple(channel for channel in steady if channel.variable not in initial)
    return _steps(layout, time_steps or (), parameters, [v.name for v in varying], predicted)


def _at(
    layout: Layout, at: Sequence[float], steady: tuple[Channel, ...], varying_inputs: list[str]
) -> Channels:
    if varying_inputs or not steady:
        told = f"{', '.join(varying_inputs)} vary in time" if varying_inputs else "there are none"
        raise InputError(
            f"at={list(at)} predicts from steady inputs alone, but {told}; use time_steps=(steps_in, "
            "steps_out)"
        )
    times = np.asarray(layout.times)
    y = []
    for time in at:
        nearest = int(np.abs(times - time).argmin())
        if not np.isclose(times[nearest], time, rtol=1e-9, atol=1e-12):
            raise InputError(
                f"at={list(at)}: {time} is none of the store's times, {', '.join(f'{t:g}' for t in times)}"
            )
        y += [
            Channel(variable.name, nearest, f"{variable.name}@t={times[nearest]:g}")
            for variable in layout.variables
            if variable.role == "output"
        ]
    if not y:
        raise InputError("at=[]; expected at least one time")
    return Channels(steady, tuple(y), range(1))


def _steps(
    layout: Layout,
    time_steps: Sequence[int],
    steady: tuple[Channel, ...],
    varying: list[str],
    predicted: list[str],
) -> Channels:
    if len(time_steps) != 2:
        raise InputError(f"time_steps={time_steps}; expected two numbers of steps, (steps_in, steps_out)")
    steps_in, steps_out = time_steps
    check_whole(steps_in=steps_in, steps_out=steps_out)
    n = len(layout.times) - steps_in - steps_out + 1
    if n < 1:
        raise InputError(
            f"time_steps={tuple(time_steps)} spans {steps_in + steps_out} times, the store has "
            f"{len(layout.times)}: give at most {len(layout.times)} steps, in and out together"
        )
    steps = np.diff(layout.times)
    if not np.allclose(steps, steps.mean(), rtol=1e-4, atol=0):
        first = int(np.abs(steps - steps.mean()).argmax())
        raise InputError(
            f"time_steps={tuple(time_steps)}, but the store's times are not equally far apart: from "
            f"{layout.times[first]:g} to {layout.times[first + 1]:g} it is {steps[first]:g}, "
            f"{steps.mean():g} on average, so a step would not mean the same everywhere; interpolate the "
            "fields to uniform times, or predict times by themselves with at="
        )
    known = [
        Channel(name, step, f"{name}@{step - steps_in + 1:+d}" if step < steps_in - 1 else f"{name}@+0")
        for step in range(steps_in)
        for name in varying
    ]
    y = [
        Channel(name, steps_in + step, f"{name}@{step + 1:+d}")
        for step in range(steps_out)
        for name in predicted
    ]
    return Channels((*steady, *known), tuple(y), range(n))
