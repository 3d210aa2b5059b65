"""A swap of FNO for MANO: the error after equal processor seconds of training.

Eight settings of five problems, each trained on one grid by batches of 8, with the relative L2 loss and a
learning rate that rises for a tenth of the seconds and then falls along a cosine:

* ``MANO``: blocks of low modes and of windows by turns, without norms, and Muon; one recipe for all settings;
* ``MANO, attention``: attention with levels and norms in every block, Muon;
* ``FNO``: AdamW; modes and learning rate are chosen on held-out fields, by a quarter of the seconds;
* ``U-Net``: three grids, AdamW; its learning rate is chosen so too.

Errors are those of the tests, by `mano_op.transfer.evaluate_transfer`: where trained, and at twice and four
times the grid, directly and by interpolation of the coarse prediction (``dpu_mean``). The tests at four times
the grid have a store of their own, which is solved more finely and has them where trained as well. A budget
of 1 is the ``seconds`` of the setting, for one thread. Run:

    python benchmarks/swap.py                     # all settings, one budget and seed: an hour
    python benchmarks/swap.py darcy flow --budgets 0.25 1 4 --seeds 0 1 2

Results go to ``benchmarks/results/swap.json``; what is there already is not trained again, so the script can
be stopped and run again. Stores are kept in ``--work``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import RESULTS, parser, read_results, write_results
from neuralop.losses import LpLoss
from neuralop.models import FNO
from rivals import UNet
from torch import Tensor, nn

from mano_op import MANO, MuonAdamW, field_loaders, open_store
from mano_op.cost import count_parameters
from mano_op.data.store import FieldStore
from mano_op.machine import machine
from mano_op.problems import Burgers, Darcy, FitzHughNagumo, NavierStokes, Poisson, generate_fields
from mano_op.problems.problem import Problem
from mano_op.transfer import Trained, evaluate_transfer

BATCH, WARM_UP, WIDTH, DEPTH = 8, 0.1, 32, 4


@dataclass(frozen=True)
class Setting:
    """Fields to train on.

    Attributes
    ----------
    problem : Problem
    n : int
        Points along each axis of the grid of the training.
    samples : dict
    seconds : float
        Of one budget.
    steps : bool
        Whether a model steps in time.
    embedding : {"grid", None}
        Coordinates that MANO and FNO append to their inputs: none where a law is the same everywhere on a
        periodic domain, as they then only help to overfit.
    options : dict
        Of `generate_fields`.
    """

    problem: Problem
    n: int
    samples: dict[str, int]
    seconds: float = 60.0
    steps: bool = False
    embedding: str | None = "grid"
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def periodic(self) -> bool:
        """Whether axes wrap around."""
        return self.problem.boundary_condition == "periodic"

    @property
    def space(self) -> dict[str, Any]:
        """What a model is told of the grid."""
        registration = self.options.get("registration", "node")
        n_dim = self.problem.n_dim
        return {"n_dim": n_dim, "registration": registration, "periodic": self.periodic}


def _samples(train: int, others: int) -> dict[str, int]:
    return {"train": train, "held_out": others, "test": others}


SETTINGS = {
    "darcy": Setting(Darcy(), 32, _samples(400, 60), options={"solver_resolution": 256}),
    "darcy_64": Setting(Darcy(), 64, _samples(400, 60), 120.0, options={"solver_resolution": 256}),
    "poisson": Setting(Poisson(), 16, _samples(200, 40)),
    "reaction": Setting(FitzHughNagumo(), 32, _samples(60, 8), steps=True, options={"registration": "cell"}),
    "burgers": Setting(
        Burgers(viscosity=1e-2, n_steps=1), 256, _samples(800, 100), steps=True, embedding=None
    ),
    "burgers_fronts": Setting(
        Burgers(viscosity=1e-3, n_steps=1), 256, _samples(800, 100), steps=True, embedding=None
    ),
    "flow": Setting(
        NavierStokes(viscosity=1e-3, final_time=10.0, n_steps=20), 32, _samples(30, 6), steps=True
    ),
    "flow_fine": Setting(
        NavierStokes(viscosity=1e-4, final_time=10.0, n_steps=20), 64, _samples(40, 6), 120.0, steps=True
    ),
}


def _grid(setting: Setting, known: list[float] | None) -> dict[str, Any]:
    """What `train_model` tells MANO of the fields, with their values at walls where they are known."""
    return {
        "reference_shape": [setting.n] * setting.problem.n_dim,
        "boundary_values": known,
        "restriction": "sample" if setting.steps else "average",
        "positional_embedding": setting.embedding,
        **setting.space,
    }


def _mano(setting: Setting, channels: dict[str, int], known: list[float] | None, **_: Any) -> nn.Module:
    return MANO(**channels, hidden_channels=WIDTH, n_layers=DEPTH, **_grid(setting, known))


def _attention(setting: Setting, channels: dict[str, int], known: list[float] | None, **_: Any) -> nn.Module:
    shape = {"hidden_channels": WIDTH, "n_layers": DEPTH, "window": 4, "halo": 1, "n_modes": 0}
    return MANO(**channels, **shape, norm=True, **_grid(setting, known))


def _fno(setting: Setting, channels: dict[str, int], *, modes: int, **_: Any) -> nn.Module:
    shape = {"hidden_channels": WIDTH, "n_layers": DEPTH, "positional_embedding": setting.embedding}
    return FNO(n_modes=[modes] * setting.problem.n_dim, **channels, **shape)


def _unet(setting: Setting, channels: dict[str, int], **_: Any) -> nn.Module:
    return UNet(**channels, hidden_channels=WIDTH, n_dim=setting.problem.n_dim, periodic=setting.periodic)


@dataclass(frozen=True)
class Candidate:
    """A model, and what is tried of it.

    Attributes
    ----------
    build : callable
    muon : bool
    choices : dict
        Values of each option; one of all is chosen on the held-out fields.
    """

    build: Callable[..., nn.Module]
    muon: bool
    choices: dict[str, list[Any]]


MODELS = {
    "MANO": Candidate(_mano, True, {"rate": [1e-2]}),
    "MANO, attention": Candidate(_attention, True, {"rate": [1e-2]}),
    "FNO": Candidate(_fno, False, {"modes": [8, 16], "rate": [2e-3, 5e-3, 1e-2]}),
    "U-Net": Candidate(_unet, False, {"rate": [1e-3, 5e-3]}),
}


def make_store(name: str, work: Path, finest: int = 2) -> FieldStore:
    """The fields of a setting, made if they are not there; where `finest` is above 2 for the tests."""
    setting, path = SETTINGS[name], work / (f"{name}.zarr" if finest == 2 else f"{name}_{finest}.zarr")
    if path.exists():
        return open_store(path)
    return generate_fields(
        path,
        setting.problem,
        [setting.n, finest * setting.n],
        samples=setting.samples if finest == 2 else {**setting.samples, "train": 2, "held_out": 2},
        seed=1,
        chunk=2 if setting.steps else 50,
        **setting.options,
    )


class Training:
    """A model that is trained for some seconds of the processor.

    Parameters
    ----------
    name : str
        Of the setting.
    store : FieldStore
    model : str
    options : dict
        Of the choices of the model.
    seed : int
    """

    def __init__(self, name: str, store: FieldStore, model: str, options: dict[str, Any], seed: int) -> None:
        self.setting, self.options = SETTINGS[name], options
        times = {"time_steps": (1, 1)} if self.setting.steps else {}
        n = self.setting.n
        self.loaders = field_loaders(store, train=n, test=[], batch_size=BATCH, seed=seed, **times)
        self.processor, self.times = self.loaders.processor, times
        first = self.processor.preprocess(next(iter(self.loaders.train)))
        channels = {"in_channels": first["x"].shape[1], "out_channels": first["y"].shape[1]}
        known = None
        if self.setting.problem.boundary_condition == "dirichlet":
            zeros = {key: torch.zeros_like(first[key][:1]) for key in ("x", "y")}
            known = self.processor.preprocess(zeros)["y"].flatten(2)[0, :, 0].tolist()
        torch.manual_seed(seed)
        self.model = MODELS[model].build(self.setting, channels, known=known, **options)
        decay = {"weight_decay": 1e-4}
        if MODELS[model].muon:
            self.optimiser: torch.optim.Optimizer = MuonAdamW(self.model, options["rate"], **decay)
        else:
            self.optimiser = torch.optim.AdamW(self.model.parameters(), options["rate"], **decay)
        self.epochs = 0.0

    def run(self, seconds: float) -> None:
        """Train."""
        loss = LpLoss(d=self.setting.problem.n_dim, p=2)
        rates = [group["lr"] for group in self.optimiser.param_groups]
        start = process_time()
        self.model.train()
        self.processor.train()
        for batch in self._batches():
            done = (process_time() - start) / seconds
            if done >= 1:
                break
            falling = (1 + math.cos(math.pi * max(0.0, (done - WARM_UP) / (1 - WARM_UP)))) / 2
            for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * min(1.0, done / WARM_UP) * falling
            sample = self.processor.preprocess(batch)
            out, sample = self.processor.postprocess(self.model(sample["x"]), sample)
            self.optimiser.zero_grad()
            loss(out, sample["y"]).backward()
            self.optimiser.step()
            self.epochs += 1 / len(self.loaders.train)

    def _batches(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from self.loaders.train

    def predict(self, x: Tensor) -> Tensor:
        """Map inputs to outputs, in physical units."""
        self.model.eval()
        self.processor.eval()
        with torch.no_grad():
            data = self.processor.preprocess({"x": x})
            out, _ = self.processor.postprocess(self.model(data["x"]), data)
        return out

    def errors(self, store: FieldStore, split: str, resolutions: list[int]) -> dict[str, float]:
        """Mean relative L2 errors in % by resolution and predictor."""
        trained = {"model": Trained(self.predict, resolution=self.setting.n, **self.times)}
        results = evaluate_transfer(trained, store, resolutions, split=split, batch_size=10, progress=False)
        mean = results["error"].sel(metric="relative_l2").mean(["sample", "variable"]).isel(run=0)
        return {
            f"{key} {predictor}": 100 * float(mean.sel(resolution=key, predictor=predictor))
            for key in mean["resolution"].values
            for predictor in ("direct", "dpu_mean", "floor")
        }


def choose(name: str, store: FieldStore, model: str) -> dict[str, Any]:
    """The options that are best on the held-out fields after a quarter of the seconds."""
    choices = MODELS[model].choices
    trials = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    if len(trials) == 1:
        return {"options": trials[0]}
    n, tried = SETTINGS[name].n, []
    for options in trials:
        training = Training(name, store, model, options, seed=0)
        training.run(SETTINGS[name].seconds / 4)
        tried.append(
            {"options": options, "held out": training.errors(store, "held_out", [n])[f"r{n} direct"]}
        )
    best = min(tried, key=lambda trial: trial["held out"])
    return {"options": best["options"], "tried": tried}


def main() -> None:
    """Train what is missing, and write the errors."""
    command = parser(__doc__)
    command.add_argument("settings", nargs="*", metavar="SETTINGS", help=f"of {', '.join(SETTINGS)}")
    command.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "mano_op_swap")
    command.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    command.add_argument("--seeds", type=int, nargs="+", default=[0])
    command.add_argument("--budgets", type=float, nargs="+", default=[1.0])
    command.add_argument("--out", type=Path, default=RESULTS / "swap.json")
    args = command.parse_args()
    if unknown := set(args.settings) - set(SETTINGS):
        command.error(f"no {', '.join(sorted(unknown))}: give some of {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    report = read_results(args.out) or {"settings": {}}
    report["machine"] = machine()
    for name in args.settings or SETTINGS:
        n, store, fine = SETTINGS[name].n, make_store(name, args.work), make_store(name, args.work, finest=4)
        of_setting = report["settings"].setdefault(name, {})
        for model, budget, seed in product(args.models, args.budgets, args.seeds):
            about = of_setting.setdefault(model, {"runs": {}})
            key = f"{budget:g} budgets, seed {seed}"
            if key in about["runs"]:
                continue
            if "options" not in about:
                about |= choose(name, store, model)
            training = Training(name, store, model, about["options"], seed)
            training.run(budget * SETTINGS[name].seconds)
            errors = training.errors(store, "test", [n, 2 * n])
            at_four_times = training.errors(fine, "test", [n, 4 * n])
            about |= {"parameters": count_parameters(training.model)}
            about["runs"][key] = {
                "seconds": budget * SETTINGS[name].seconds,
                "epochs": round(training.epochs, 1),
                "errors": errors,
                "errors at four times": at_four_times,
            }
            write_results(args.out, report)
            print(name, model, key, {at: round(error, 3) for at, error in errors.items()}, flush=True)


if __name__ == "__main__":
    main()
