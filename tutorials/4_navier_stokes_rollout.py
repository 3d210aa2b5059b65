# %% [markdown]
# # A rollout of Navier-Stokes
#
# An FNO learns one step of a flow with neuraloperator's Trainer and losses, and is then rolled out: each
# step starts from the last prediction. In this tutorial MANO is swapped in. Both are followed step by step,
# also on a finer grid than they have seen, and one MANO is trained with noise on its input, as is done for
# rollouts that drift.
#
# It takes less than a minute on one CPU core: `python tutorials/4_navier_stokes_rollout.py`

# %%
import tempfile
import warnings
from pathlib import Path

import torch
from neuralop import H1Loss, LpLoss, Trainer
from neuralop.models import FNO
from neuralop.utils import count_model_params

from mano_op import MANO, MuonAdamW, field_loaders
from mano_op.problems import NavierStokes, generate_fields
from mano_op.train import warm_up_and_cosine
from mano_op.train.perturbation import PerturbedInputs
from mano_op.transfer.spectral import energy_spectrum

# neuraloperator's Trainer passes the whole sample to losses and models, which warn that they ignore a part.
warnings.filterwarnings("ignore", message=".*received unexpected keyword arguments")

# %% [markdown]
# ## Data
#
# The vorticity of a forced flow on a torus, $w_t + u \cdot \nabla w = \nu \Delta w + f$, with $\nu =
# 10^{-3}$: each flow is known at eleven times, half a unit apart, on 32 and on 64 points a side.
#
# `time_steps=(1, 1)` makes samples: from the field of one time to the field of the next. There are few, 16
# flows of 10 steps, so that training takes less than a minute.

# %%
folder = tempfile.TemporaryDirectory()
flow = NavierStokes(viscosity=1e-3, final_time=5.0, n_steps=10)
store = generate_fields(
    Path(folder.name) / "flow.zarr", flow, [32, 64], samples={"train": 16, "test": 6}, solver_resolution=64
)
loaders = field_loaders(store, train=32, test=[32, 64], batch_size=8, time_steps=(1, 1))

# %% [markdown]
# ## Models
#
# On a torus the axes wrap around. MANO is told so with `periodic=True`; FNO always assumes it. A step in time
# is the identity and a little more, so a finer field is sampled: its average is another field. Two of the
# three models are the same MANO, trained in different ways.


# %%
def mano() -> MANO:
    """Make a small MANO on the torus."""
    return MANO(
        in_channels=1, out_channels=1, hidden_channels=16, n_layers=2, n_heads=4,
        registration="node", periodic=True, restriction="sample",
    )  # fmt: skip


torch.manual_seed(0)
models = {
    "FNO": FNO(n_modes=(12, 12), in_channels=1, out_channels=1, hidden_channels=24),
    "MANO": mano(),
    "MANO, noise": mano(),
}

# %% [markdown]
# ## Training
#
# `PerturbedInputs` wraps the data processor; the Trainer does not notice. In training it adds noise of 0.03
# standard deviations to the fields that a rollout feeds back. With `pushforward=1` (there, and in
# `field_loaders`) it would let the model take a step of its own first, for half of the samples. In evaluation
# it does nothing. `train_model(..., noise=0.03)` and `mano-op train fields --noise 0.03` do the same.

# %%
l2loss, h1loss = LpLoss(d=2, p=2), H1Loss(d=2)
n_epochs = 10
errors = {}
for name, model in models.items():
    if name == "FNO":
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-4)
    else:
        optimizer = MuonAdamW(model, 1e-2, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_up_and_cosine(n_epochs * len(loaders.train)))
    optimizer.register_step_post_hook(lambda *_, schedule=schedule: schedule.step())
    processor = loaders.processor
    if name == "MANO, noise":
        processor = PerturbedInputs(loaders.processor, model, noise=0.03)
    trainer = Trainer(model=model, n_epochs=n_epochs, data_processor=processor, eval_interval=n_epochs - 1)
    errors[name] = trainer.train(
        loaders.train,
        {32: loaders.test[32]},
        optimizer,
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),  # stepped after each epoch
        training_loss=l2loss,
        eval_losses={"l2": l2loss, "h1": h1loss},
    )

print(f"{'one step ahead':16}{'parameters':>12}{'L2 at 32':>10}{'H1 at 32':>10}")
for name, model in models.items():
    l2, h1 = (float(errors[name][f"32_{loss}"]) for loss in ("l2", "h1"))
    print(f"{name:16}{count_model_params(model):12,}{l2:10.1%}{h1:10.1%}")

# %% [markdown]
# ## Rollouts
#
# `processor.advance` makes the input of the next step from the input of this step, in physical units: the
# model's own field is fed back.

# %%
processor = loaders.processor.eval()


def truth(resolution: int) -> torch.Tensor:
    """Return the test flows, ``(flows, times, y, x)``."""
    fields = store.dataset(resolution)
    return torch.as_tensor(fields["vorticity"][(fields["split"] == "test").values].values)


def rollout(model: torch.nn.Module, flows: torch.Tensor, start: int) -> torch.Tensor:
    """Predict the fields of all times after a start, from the true field at the start."""
    state, steps = flows[:, [start]], []
    with torch.no_grad():
        for _ in range(start + 1, flows.shape[1]):
            state = processor.advance(model.eval(), state)
            steps.append(state[:, 0])
    return torch.stack(steps, dim=1)


def by_step(model: torch.nn.Module, resolution: int, start: int) -> torch.Tensor:
    """Return the mean relative error of each step."""
    flows = truth(resolution)
    true = flows[:, start + 1 :].flatten(2)
    return ((rollout(model, flows, start).flatten(2) - true).norm(dim=2) / true.norm(dim=2)).mean(0)


for start in (0, 5):
    print(f"\nFrom t = {0.5 * start}, error in % after so many steps:")
    print(f"{'':16}{'':6}" + "".join(f"{step:7}" for step in range(1, 11 - start)))
    for name, model in models.items():
        for n in (32, 64):
            percent = 100 * by_step(model, n, start)
            print(f"{name:16}at {n:3}" + "".join(f"{error:7.1f}" for error in percent.tolist()))

# %% [markdown]
# From the middle of a flow MANO's error is half of FNO's. From the beginning FNO fails at once: initial
# fields are unlike all later ones, training had sixteen of them, and FNO does not generalise from these.
# MANO, with a sixth of the parameters, has an error of 6 % there, which does not grow after the fourth step.
# On the finer grid, which no model has seen, errors are the same: the waves are long, and both grids carry
# them.
#
# Noise helps a little here. It is meant for models that are good at one step and lost after many. To find
# out, train both.
#
# ## Spectra
#
# An error says how far a field is from the truth, a spectrum of which waves it is made. This is the energy
# of the last fields of the rollouts from the beginning, at 64, by wavenumber, as a share of the energy of
# the true fields. The training grid carries waves up to 16.

# %%
grid = store.grids["r64"]
bands = {
    "1 to 3": slice(1, 4),
    "4 to 7": slice(4, 8),
    "8 to 15": slice(8, 16),
    "16 and more": slice(16, None),
}


def energies(fields: torch.Tensor) -> torch.Tensor:
    """Return the energy of each band, as a mean over the flows."""
    _, energy = energy_spectrum(fields, grid)
    return torch.stack([energy[:, band].sum(1).mean() for band in bands.values()])


flows = truth(64)
true = energies(flows[:, -1])
print(f"\n{'energy, wavenumber':20}" + "".join(f"{band:>13}" for band in bands))
for name in ["truth", *models]:
    energy = true if name == "truth" else energies(rollout(models[name], flows, 0)[:, -1])
    print(f"{name:20}" + "".join(f"{share:13.1e}" for share in (energy / true.sum()).tolist()))

# %% [markdown]
# Nearly all energy is in the longest waves, of which FNO has lost a quarter. All models put more energy into
# the shorter waves than there is: little of the whole, and most of what they have there. A relative L2 loss
# hardly measures this. H1 does, a few lines above.
#
# ## Summary

# %%
last = {name: float(by_step(model, 64, 0)[-1]) for name, model in models.items()}
print(
    f"\nAfter ten steps from the beginning, on a grid that neither has seen, MANO is at {last['MANO']:.0%} "
    f"and FNO at {last['FNO']:.0%}."
)
assert last["MANO"] < last["FNO"] / 4  # with three seeds, 6 to 8 % and 101 to 110 %
folder.cleanup()
