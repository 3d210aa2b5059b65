"""Learning rates, and MANO's number of heads, chosen on held-out training fields of the small Darcy set.

The last 200 of the 1000 training fields at 16 are held out. Every candidate of a fixed list is trained on the
other 800, with AdamW and one seed, and evaluated on the 200. The rates of FNO and of MANO as published are
those of `transfer.py`. The committed numbers of MANO are of release 0.1, whose levels counted points. Run:

    python benchmarks/darcy_small_sweep.py --data FOLDER_WITH_THE_PT_FILES

Results go to ``benchmarks/results/darcy_small_sweep.json``, after each candidate; one that is there, of the
same budget, is not trained again.
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, add_data, parser, read_results, small_darcy_folder, write_results

from mano_op.cost import count_flops, count_parameters
from mano_op.data.importers import import_neuralop_pt
from mano_op.machine import machine
from mano_op.train import train_model
from mano_op.transfer import evaluate_transfer

BUDGET = {"epochs": 30, "batch_size": 20, "weight_decay": 1e-4, "seed": 0}
HELD_OUT = 200
FNO = {"n_modes": [8, 8], "hidden_channels": 32}
ATTENTION = {"n_modes": 0, "norm": True}  # in every block
MANO = {"hidden_channels": 24, "n_layers": 3, "window": 4, "halo": 1, "n_levels": 3, **ATTENTION}
PUBLISHED = {"hidden_channels": 24, "n_layers": 3, "n_heads": 6}
# The widths keep MANO under twice FNO's operations; what is chosen is the rate, for MANO the heads too.
CANDIDATES: list[tuple[str, str, dict[str, Any], float]] = [
    *(("FNO", "fno", FNO, rate) for rate in (2e-3, 5e-3, 1e-2)),
    *(
        ("MANO", "mano", {**MANO, "n_heads": heads}, rate)
        for heads, rate in product((3, 6), (5e-3, 1e-2, 2e-2))
    ),
    *(("MANO as published", "mano_published", PUBLISHED, rate) for rate in (2e-3, 5e-3, 1e-2)),
]


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Return the candidates of a file that have the same budget."""
    report = read_results(path)
    same = (report.get("budget"), report.get("held_out")) == (BUDGET, HELD_OUT)
    candidates: list[dict[str, Any]] = report["candidates"] if same else []
    return candidates


def main() -> None:
    """Train and evaluate every candidate, and write the errors."""
    command = parser(__doc__)
    add_data(command)
    command.add_argument("--out", type=Path, default=RESULTS / "darcy_small_sweep.json")
    args = command.parse_args()
    data, done = small_darcy_folder(args.data), _earlier(args.out)
    with tempfile.TemporaryDirectory() as scratch:
        fields = torch.load(data / "darcy_train_16.pt", weights_only=True)
        parts = {"train": slice(None, -HELD_OUT), "held_out": slice(-HELD_OUT, None)}
        files = {}
        for split, part in parts.items():
            files[split] = [(16, Path(scratch) / f"{split}.pt")]
            torch.save({name: values[part].clone() for name, values in fields.items()}, files[split][0][1])
        store = import_neuralop_pt(Path(scratch) / "darcy.zarr", files)
        for i, (name, arch, options, rate) in enumerate(CANDIDATES):
            if (name, options, rate) in [(d["model"], d["options"], d["learning_rate"]) for d in done]:
                continue
            run = train_model(
                store,
                Path(scratch) / str(i),
                resolution=16,
                arch=arch,
                options=options,
                learning_rate=rate,
                **BUDGET,
            )
            results = evaluate_transfer({name: run}, store, [16], split="held_out", progress=False)
            done.append(
                {
                    "model": name,
                    "options": options,
                    "learning_rate": rate,
                    "parameters": count_parameters(run.model),
                    "flops_at_16": count_flops(run.model, torch.zeros(1, 1, 16, 16)),
                    "relative_l2": float(
                        results["error"].sel(metric="relative_l2_points", predictor="direct").mean()
                    ),
                }
            )
            print(done[-1])
            report = {"budget": BUDGET, "held_out": HELD_OUT, "machine": machine(), "candidates": done}
            write_results(args.out, report)


if __name__ == "__main__":
    main()
