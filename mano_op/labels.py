"""Labels of channels: "pressure", and of a time "vorticity@+1" or "velocity@t=0.5"."""

from __future__ import annotations

import re

# What no name of a variable ends in.
_TIME = re.compile(r"@([+-]\d+|t=.*)$")


def varies_in_time(label: str) -> bool:
    """Return whether a channel's label, such as "vorticity@+0", is of a time.

    Examples
    --------
    >>> varies_in_time("vorticity@+0"), varies_in_time("velocity@t=0.5"), varies_in_time("wind@10m")
    (True, True, False)
    """
    return _TIME.search(label) is not None


def variable_of(label: str) -> str:
    """Return the name of the variable of a channel's label.

    Examples
    --------
    >>> variable_of("vorticity@-1"), variable_of("wind@10m@+1"), variable_of("pressure")
    ('vorticity', 'wind@10m', 'pressure')
    """
    return _TIME.sub("", label)
