"""Errors against seconds of training, and tables of them, from what `swap.py` measured.

python benchmarks/swap_figure.py docs/swap.png
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from harness import RESULTS, read_results
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from swap import SETTINGS

from mano_op.card import markdown_table
from mano_op.report.style import colours, log_axis, model_handles, style

TITLES = {
    "darcy": "Darcy 32²",
    "darcy_64": "Darcy 64²",
    "poisson": "Poisson 16³",
    "reaction": "reaction 32², walls, fronts",
    "burgers_fronts": "Burgers 1e-3, 256, fronts",
    "burgers": "Burgers 1e-2, 256",
    "flow_fine": "flow 1e-4, 64²",
    "flow": "flow 1e-3, 32²",
}
MODELS = ("MANO", "FNO", "U-Net")


def errors_by_seconds(of_model: Mapping[str, Any]) -> dict[float, list[float]]:
    """Return the direct errors where a model was trained, one for each seed, by seconds of training."""
    errors = defaultdict[float, list[float]](list)
    for run in of_model["runs"].values():
        errors[run["seconds"]].append(next(iter(run["errors"].values())))
    return dict(sorted(errors.items()))


def draw(report: Mapping[str, Any], picture: Path) -> None:
    """Draw errors against seconds, a panel for each setting, a line through the means of the seeds."""
    colour = colours(MODELS)
    with style():
        figure = Figure(figsize=(10, 5.2), layout="constrained")
        for axes, (name, title) in zip(figure.subplots(2, 4).flat, TITLES.items(), strict=True):
            for model in MODELS:
                errors = errors_by_seconds(report["settings"][name].get(model, {"runs": {}}))
                for seconds, of_seeds in errors.items():
                    axes.plot(
                        [seconds] * len(of_seeds), of_seeds, "o", ms=3.5, color=colour[model], alpha=0.6
                    )
                axes.plot(list(errors), [fmean(e) for e in errors.values()], color=colour[model])
            log_axis(axes, "y")
            budget = SETTINGS[name].seconds
            seconds = [budget / 4, budget, 4 * budget]
            axes.set(xscale="log", xlim=(seconds[0] / 1.3, 1.3 * seconds[-1]))
            axes.set_xticks(seconds, [f"{each:g}" for each in seconds])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_title(title)
        figure.supxlabel("processor seconds of training, one thread", fontsize=9)
        figure.supylabel("relative L2 error of the tests in %", fontsize=9)
        figure.legend(handles=model_handles(colour), loc="outside upper right", ncols=len(MODELS))
        figure.savefig(picture, dpi=150)


def direct_errors(about: Mapping[str, Any], budget: float, kind: str = "errors") -> list[tuple[float, float]]:
    """Return the direct errors of each seed after a budget, where trained and on the finer grid."""
    runs = [run for key, run in about["runs"].items() if key.startswith(f"{budget:g} ") and kind in run]
    direct = [[error for at, error in run[kind].items() if at.endswith("direct")] for run in runs]
    return [(trained, finer) for trained, finer in direct]


def _runs(report: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The runs of the models of the figure in a setting."""
    of_setting = report["settings"][name]
    return [run for model in MODELS for run in of_setting.get(model, {"runs": {}})["runs"].values()]


def tables(report: Mapping[str, Any]) -> str:
    """Format the errors as Markdown tables: of one budget with their growth, then of all budgets."""

    def trained(name: str, model: str, budget: float) -> list[float]:
        return [
            error for error, _ in direct_errors(report["settings"][name].get(model, {"runs": {}}), budget)
        ]

    def growth(name: str, model: str) -> str:
        about, kinds = report["settings"][name][model], ("errors", "errors at four times")
        pairs = [direct_errors(about, 1, kind) for kind in kinds]
        return ", ".join(f"{fmean(finer / error for error, finer in of):.2f}" if of else "-" for of in pairs)

    one = [["", "seeds", "MANO", "FNO", "ratio", "growth of MANO to 2n, 4n", "of FNO"]]
    known = {run["seconds"] / SETTINGS[name].seconds for name in TITLES for run in _runs(report, name)}
    every = [["MANO, FNO, U-Net", *(f"{budget:g} x the seconds" for budget in sorted(known))]]
    for name, title in TITLES.items():
        mano, fno = (trained(name, model, 1) for model in ("MANO", "FNO"))
        if not (mano and fno):
            continue
        means = [f"{fmean(mano):.3g}", f"{fmean(fno):.3g}", f"{fmean(mano) / fmean(fno):.2f}"]
        one.append([title, str(len(mano)), *means, growth(name, "MANO"), growth(name, "FNO")])
        errors = [[trained(name, model, budget) for model in MODELS] for budget in sorted(known)]
        every.append([title, *(", ".join(f"{fmean(e):.3g}" if e else "-" for e in row) for row in errors)])
    return "\n".join([*markdown_table(one), "", *markdown_table(every)])


if __name__ == "__main__":
    results = read_results(RESULTS / "swap.json")
    draw(results, Path(sys.argv[1]))
    print(tables(results))
