"""How long `import mano_op` takes beside `import neuralop`, in fresh interpreters, in turn.

    python benchmarks/import_time.py

Results go to ``benchmarks/results/import_time.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from mano_op.machine import machine

REPEATS = 7


def seconds_to_import(package: str) -> float:
    """The time that one fresh interpreter takes for the import alone."""
    code = f"from time import perf_counter as t; a = t(); import {package}; print(t() - a)"
    return float(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )


def measure(repeats: int = REPEATS) -> dict[str, float]:
    """The least of some repeats for each package, and their ratio."""
    times: dict[str, list[float]] = {"neuralop": [], "mano_op": []}
    for _ in range(repeats):
        for package, seconds in times.items():
            seconds.append(seconds_to_import(package))
    least = {package: min(seconds) for package, seconds in times.items()}
    return {**least, "ratio": least["mano_op"] / least["neuralop"]}


if __name__ == "__main__":
    found = measure()
    out = Path(__file__).parent / "results" / "import_time.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"seconds": found, "machine": machine()}, indent=1) + "\n")
    print(found)
