"""Darcy flow in the setting of the published tables: what three hours of one thread give at 85 x 85.

A thousand fields to train on and 200 tests, solved on 421 x 421 points, both ends included, and strided to
85, 141 and 211. MANO and FNO are trained at 85 by `mano_op.train_model`, the one by Muon, the other by
AdamW, in batches of 8 that are turned and mirrored at random, for as many epochs as three hours of one
thread with AVX-512 have. Run:

    python benchmarks/darcy_421.py --work darcy_421      # fields take a quarter of an hour, each model three

Stopped at any moment, the same command goes on where the last epoch ended.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import RESULTS, parser, read_results, write_results

from mano_op import evaluate_transfer, generate_fields, open_store, train_model
from mano_op.cost import count_parameters
from mano_op.machine import machine
from mano_op.problems import Darcy

RESOLUTIONS = [85, 141, 211]
MODELS: dict[str, dict[str, Any]] = {
    "MANO": {"arch": "mano", "options": {"hidden_channels": 48}, "epochs": 145},
    "FNO": {
        "arch": "fno",
        "options": {"n_modes": [16, 16], "hidden_channels": 32},
        "learning_rate": 5e-3,
        "epochs": 165,
    },
}


def main() -> None:
    """Make the fields, train what is not there, and write the errors."""
    command = parser(__doc__)
    command.add_argument("--work", type=Path, required=True)
    command.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    command.add_argument("--out", type=Path, default=RESULTS / "darcy_421.json")
    args = command.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    path, samples = args.work / "fields.zarr", {"train": 1000, "test": 200}
    about: dict[str, Any] = {
        "registration": "node_both",
        "solver_resolution": 420,
        "chunk": 50,
        "resume": True,
    }
    store = (
        open_store(path)
        if path.exists()
        else generate_fields(path, Darcy(), RESOLUTIONS, samples=samples, seed=1, **about)
    )
    report = read_results(args.out) or {"models": {}}
    for name in args.models:
        folder, training = args.work / name, {"resolution": 85, "symmetries": ["transpose", "reflect"]}
        run = train_model(store, folder, resume=True, **training, **MODELS[name])
        errors = evaluate_transfer({name: run}, store, RESOLUTIONS)["error"].isel(run=0, variable=0)
        mean = 100 * errors.mean("sample").sel(predictor=["direct", "dpu_mean", "dpu_injection"])
        report["models"][name] = {
            **MODELS[name],
            "parameters": count_parameters(run.model),
            "seconds": sum(epoch["seconds"] for epoch in run.history),
            "errors": {
                f"{metric} {key} {predictor}": float(
                    mean.sel(metric=metric, resolution=key, predictor=predictor)
                )
                for metric in ("relative_l2", "relative_l2_points")
                for key in mean["resolution"].values
                for predictor in mean["predictor"].values
            },
        }
        report["machine"] = machine()
        write_results(args.out, report)
        print(name, report["models"][name]["errors"])


if __name__ == "__main__":
    main()
