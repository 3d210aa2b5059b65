"""Handwritten digits: MANO beside ViT and Swin of the same size, trained by one recipe; at other sizes too.

scikit-learn's 1797 scans of 8 x 8 pixels, a fifth of them to judge on, the same ones for every seed. All
models have about 110,000 parameters, every pixel is a point to them, and all are trained alike: AdamW,
batches of 32, rectangles cut out, smoothed labels. The learning rate of each is the best of some, by the
accuracy on a part of the training images (`--choose`); the images to judge on had no part in it.

They are then judged at 16 x 16 pixels, to which the digits are enlarged (bilinearly), as they are and
brought back to 8 x 8 first. Nothing can be seen at 16 that cannot at 8, so the second says what there is to
be had. ViT's position embeddings are interpolated, as transformers does it. Run:

    python benchmarks/digits.py            # half an hour on two cores
    python benchmarks/digits.py --choose

Trained runs are kept in ``--work``, and what is there already is not trained again. Results go to
``benchmarks/results/digits.json``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from harness import RESULTS, parser, write_results

from mano_op.cost import count_parameters
from mano_op.files import make_folder
from mano_op.machine import machine
from mano_op.runs import Run
from mano_op.vision.evaluate import evaluate_classifier
from mano_op.vision.images import Images, open_images
from mano_op.vision.training import train_classifier

RECIPE: dict[str, Any] = {
    "epochs": 60,
    "batch_size": 32,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
    "augmentation": {"crop": 0.75},
}
STAGES: dict[str, Any] = {"patch_size": 1, "embed_dim": 32, "depths": [2, 2], "n_heads": [2, 4], "window": 4}
MODELS: dict[str, dict[str, Any]] = {
    "MANO": {"arch": "mano_classifier", "options": {**STAGES, "mlp_ratio": 2.0}, "learning_rate": 3e-3},
    "MANO, one resolution": {
        "arch": "mano_classifier",
        "options": {
            "patch_size": 1,
            "embed_dim": 48,
            "depths": [4],
            "n_heads": [4],
            "window": 4,
            "halo": 1,
            "shifted": False,
            "blocks": "operator",
            "mlp_ratio": 2.0,
            "positional_embedding": "grid",
            "anchored": True,
        },
        "learning_rate": 5e-3,
    },
    "Swin": {"arch": "swin_classifier", "options": {**STAGES, "mlp_ratio": 2.0}, "learning_rate": 5e-3},
    "ViT": {
        "arch": "vit_classifier",
        "options": {"patch_size": 1, "embed_dim": 60, "depth": 4, "n_heads": 4, "mlp_ratio": 2.0},
        "learning_rate": 1e-3,
    },
}
SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3, 5e-3)


def main() -> None:
    """Train, evaluate, print and write."""
    command = parser(__doc__)
    command.add_argument("--work", type=Path, help="folder for trained runs; a temporary one if not given")
    command.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    command.add_argument("--choose", action="store_true", help="compare learning rates alone")
    args = command.parse_args()
    digits = open_images("digits")
    with tempfile.TemporaryDirectory() as scratch:
        work = make_folder(args.work or scratch)
        if args.choose:
            choose(digits, work, args.models)
            return
        results = {name: judged(digits, work, name) for name in args.models}
    print_table(results)
    content = {
        "data": digits.origin,
        "images": {name: len(split) for name, split in digits.splits.items()},
        "recipe": RECIPE,
        "seeds": list(SEEDS),
        "results": results,
        "machine": machine("cpu"),
    }
    write_results(RESULTS / "digits.json", content)


def trained(digits: Images, folder: Path, name: str, **changes: Any) -> Run:
    """The run of a model, which is trained unless it is there."""
    return train_classifier(
        digits, folder, **{**RECIPE, **MODELS[name], **changes}, resume=True, progress=False
    )


def choose(digits: Images, work: Path, names: list[str]) -> None:
    """The accuracy of each learning rate on a fifth of the training images."""
    for name in names:
        for rate in RATES:
            folder = work / f"choose {name} {rate}"
            run = trained(digits, folder, name, learning_rate=rate, validate=0.2, seed=100)
            seen = [f"{run.history[i]['validation_accuracy']:.2%}" for i in range(9, len(run.history), 10)]
            print(f"{name:22} {rate:g} after every tenth epoch: {', '.join(seen)}", flush=True)


def judged(digits: Images, work: Path, name: str) -> dict[str, Any]:
    """The accuracies of a model, of each seed and their mean."""
    runs = [trained(digits, work / f"{name} {seed}", name, seed=seed) for seed in SEEDS]
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        for row in evaluate_classifier(run, digits, sizes=[8, 16], progress=False).rows:
            rows.setdefault(f"{row.size[0]} {row.how}", []).append(
                {"accuracy": row.accuracy, "cross_entropy": row.cross_entropy, "interval": row.interval}
            )
    return {
        "arch": runs[0].arch,
        "options": runs[0].options,
        "learning_rate": MODELS[name]["learning_rate"],
        "parameters": count_parameters(runs[0].model),
        "seconds": [sum(epoch["seconds"] for epoch in run.history) for run in runs],
        "judged": {
            size: {"mean_accuracy": statistics.mean(one["accuracy"] for one in of_seeds), "seeds": of_seeds}
            for size, of_seeds in rows.items()
        },
    }


def print_table(results: dict[str, dict[str, Any]]) -> None:
    """One line for each model."""
    sizes = list(next(iter(results.values()))["judged"])
    print(f"{'':22}{'parameters':>11}" + "".join(f"{size:>14}" for size in sizes))
    for name, result in results.items():
        means = [result["judged"][size]["mean_accuracy"] for size in sizes]
        print(f"{name:22}{result['parameters']:11,}" + "".join(f"{mean:14.2%}" for mean in means))


if __name__ == "__main__":
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    main()
