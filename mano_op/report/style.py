"""Style, colours and lines of all figures, and their encoding as text.

matplotlib's settings are changed within `style` only, and no backend is chosen.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito's colours, which those who confuse red and green can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES: dict[str, Any] = {
    "direct": "-",
    "best DPU": (0, (4, 2)),
    "floor": (0, (1, 1.5)),
    "mean": (0, (6, 2, 1, 2)),
}
INK, FAINT = "#333333", "#8a8a8a"

_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so a report looks alike everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # a name with two dollar signs is a name
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.handlelength": 2.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "image.interpolation": "nearest",
    "svg.fonttype": "path",
    "svg.hashsalt": "mano_op",
}


def style(**changes: Any) -> AbstractContextManager[None]:
    """Apply the figures' style, to make and to save a figure in; `changes` have underscores for dots."""
    changed = {name.replace("_", "."): value for name, value in changes.items()}
    return matplotlib.rc_context(_STYLE | changed)


def data_uri(figure: Figure, kind: Literal["svg", "png"], *, dpi: int = 150) -> str:
    """Encode a figure as text that stands where HTML expects the address of a picture.

    Examples
    --------
    >>> data_uri(Figure(figsize=(1, 1)), "svg")[:26]
    'data:image/svg+xml;base64,'
    """
    buffer = io.BytesIO()
    with style():
        # Without the date, equal figures are equal files.
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    media = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{media};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def colours(models: Iterable[str]) -> dict[str, str]:
    """Give each model a colour, by its place; from the first on again after six.

    Examples
    --------
    >>> colours(["MANO", "FNO"])
    {'MANO': '#0072B2', 'FNO': '#D55E00'}
    """
    return {model: COLOURS[i % len(COLOURS)] for i, model in enumerate(models)}


def model_handles(shown: Mapping[str, str]) -> list[Line2D]:
    """Make legend entries for colours by label."""
    return [Line2D([], [], color=colour, lw=3, label=label) for label, colour in shown.items()]


def line_handle(kind: str, **options: Any) -> Line2D:
    """Make the legend entry of a kind of line, one of `LINES`, with options of its own."""
    colour, label = (FAINT, "mean field") if kind == "mean" else (INK, kind)
    return Line2D([], [], **{"color": colour, "ls": LINES[kind], "label": label, **options})


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 times powers of ten, when all is drawn.

    Where fewer than two of these are in sight, ticks are as on a linear axis; where more than seven, they are
    powers of ten. Without any positive value the axis is from 1 to 100.
    """
    shared = axes.get_shared_x_axes() if which == "x" else axes.get_shared_y_axes()
    axis = axes.xaxis if which == "x" else axes.yaxis
    least = min(getattr(each.dataLim, f"minpos{which}") for each in shared.get_siblings(axes))
    limits = {} if math.isfinite(least) else {f"{which}lim": (1, 100)}
    axes.set(**limits, **{f"{which}scale": "log"})
    low, high = axis.get_view_interval()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    in_sight = sum(low <= factor * 10.0**decade <= high for decade in decades for factor in (1, 2, 5))
    powers = LogLocator(subs=(1.0,), numticks=6) if in_sight > 7 else LogLocator(subs=(1.0, 2.0, 5.0))
    axis.set_major_locator(powers if in_sight > 1 else MaxNLocator(4))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
