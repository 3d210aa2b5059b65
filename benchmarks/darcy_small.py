"""MANO against FNO on neuraloperator's small Darcy set, at the training resolution and at twice it.

1000 training fields at 16 x 16, 50 tests at 16 and 32, which are the same fields. neuraloperator's own
Trainer, 30 epochs, batches of 20, relative L2 loss, AdamW; the learning rates, and MANO's number of heads,
are those that `darcy_small_sweep.py` found best on held-out training fields. Several seeds, which change the
initial parameters and the order of samples.

The files are neuraloperator's and not kept here; `neuralop.data.datasets.load_darcy_flow_small` downloads
them. Run:

    python benchmarks/darcy_small.py --data FOLDER_WITH_THE_PT_FILES --seeds 0 1 2

Results go to ``benchmarks/results/darcy_small.json``, after each model, so that a run that is cut off keeps
what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mano_op.cost import count_flops, count_parameters
from mano_op.data.importers import import_neuralop_pt
from mano_op.files import make_folder, write_file
from mano_op.machine import machine
from mano_op.train import train_model
from mano_op.transfer import evaluate_transfer

HERE = Path(__file__).parent
BUDGET = {"epochs": 30, "batch_size": 20, "weight_decay": 1e-4}
MODELS: dict[str, dict[str, Any]] = {
    "FNO": {"arch": "fno", "options": {"n_modes": [8, 8], "hidden_channels": 32}, "learning_rate": 5e-3},
    "MANO": {
        "arch": "mano",
        "options": {
            "hidden_channels": 24,
            "n_layers": 3,
            "n_heads": 6,
            "window": 4,
            "halo": 1,
            "n_levels": 3,
        },
        "learning_rate": 2e-2,
    },
    "MANO as published": {
        "arch": "mano_published",
        "options": {"hidden_channels": 24, "n_layers": 3, "n_heads": 6},
        "learning_rate": 5e-3,
    },
}


def main() -> None:
    """Train and judge every model with every seed, and write the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("MANO_OP_DARCY_SMALL"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "darcy_small.json")
    args = parser.parse_args()
    if args.data is None:
        parser.error("give the folder of darcy_train_16.pt with --data, or in MANO_OP_DARCY_SMALL")

    report: dict[str, Any] = {"budget": BUDGET, "machine": machine(), "models": {}}
    with tempfile.TemporaryDirectory() as scratch:
        store = import_neuralop_pt(
            Path(scratch) / "darcy.zarr",
            {
                "train": [(16, args.data / "darcy_train_16.pt")],
                "test": [(n, args.data / f"darcy_test_{n}.pt") for n in (16, 32)],
            },
        )
        for name in args.models:
            found: dict[str, Any] = {**MODELS[name], "seeds": {}}
            for seed in args.seeds:
                folder = Path(scratch) / f"{name} {seed}"
                run = train_model(store, folder, resolution=16, seed=seed, **BUDGET, **MODELS[name])
                results = evaluate_transfer({name: run}, store, [16, 32], progress=False)
                errors = results["error"].sel(metric="relative_l2_points").mean("sample").squeeze()
                found |= {
                    "parameters": count_parameters(run.model),
                    "flops_at_16": count_flops(run.model, torch.zeros(1, 1, 16, 16)),
                }
                found["seeds"][seed] = {
                    "training_error": run.history[-1]["training_error"],
                    "seconds_an_epoch": float(np.median([epoch["seconds"] for epoch in run.history])),
                    "relative_l2": {
                        str(key): {
                            str(predictor): float(errors.sel(resolution=key, predictor=predictor))
                            for predictor in errors.predictor.values
                        }
                        for key in errors.resolution.values
                    },
                }
                report["models"][name] = found
                write_file(make_folder(args.out.parent) / args.out.name, json.dumps(report, indent=1) + "\n")
            at_16 = [one["relative_l2"]["r16"]["direct"] for one in found["seeds"].values()]
            span = f"{np.min(at_16):.2%} to {np.max(at_16):.2%}"
            print(f"{name}: {np.mean(at_16):.2%} at 16 over {len(at_16)} seeds, {span}")


if __name__ == "__main__":
    main()
