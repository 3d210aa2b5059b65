"""The README's figure, from what `make demo` leaves.

python benchmarks/readme_figure.py demo docs/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from mano_op.report.figures import error_by_resolution
from mano_op.report.style import style
from mano_op.transfer import load_results, summary


def draw(demo: Path, picture: Path) -> None:
    """Errors of the demo's models by resolution, beside interpolation."""
    judged = summary(load_results(demo / "results.nc"))
    with style():
        error_by_resolution(judged, "pressure").savefig(picture, dpi=150)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
