"""Command line, results and data that the benchmark scripts share."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mano_op.files import make_folder, write_file

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help is the docstring of a script as it stands."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_data(options: argparse.ArgumentParser) -> None:
    """Add the folder of neuraloperator's files."""
    options.add_argument("--data", type=Path, default=os.environ.get("MANO_OP_DARCY_SMALL"))


def small_darcy_folder(data: Path | None) -> Path:
    """Return the folder of the files, or end the script if it was not given."""
    if data is None:
        raise SystemExit("give the folder of darcy_train_16.pt with --data, or in MANO_OP_DARCY_SMALL")
    return data


def read_results(path: Path) -> dict[str, Any]:
    """Read the results of an earlier run; empty if there are none."""
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return results


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write results as JSON, and the folder if it is not there."""
    write_file(make_folder(path.parent) / path.name, json.dumps(results, indent=1) + "\n")
