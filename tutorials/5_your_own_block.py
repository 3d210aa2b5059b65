# %% [markdown]
# # Your own operator block
#
# Multipole attention is a layer as well as a part of `MANO`. This tutorial uses it in two other places: in a
# small operator that you write yourself, and in neuraloperator's FNO instead of the spectral convolution.
#
# It takes about half a minute on one CPU core: `python tutorials/5_your_own_block.py`

# %%
import tempfile
import warnings
from pathlib import Path

import torch
from neuralop import LpLoss, Trainer
from neuralop.models import FNO
from neuralop.utils import count_model_params
from torch import nn

from mano_op import MultipoleAttention, MultipoleConv, field_loaders, generate_darcy

# neuraloperator's Trainer passes the whole sample to losses and models, which warn that they ignore a part.
warnings.filterwarnings("ignore", message=".*received unexpected keyword arguments")

# %% [markdown]
# ## Data
#
# Darcy flow, from the permeability to the pressure, at 16 points a side to train on and at 32 to test too.
# The points lie at $x_i = i/n$, "node", and the fields do not wrap around.

# %%
folder = tempfile.TemporaryDirectory()
store = generate_darcy(Path(folder.name) / "darcy.zarr", [16, 32], samples={"train": 200, "test": 50})
loaders = field_loaders(store, train=16, test=[16, 32], batch_size=10)

# %% [markdown]
# ## An operator of your own
#
# `MultipoleAttention` maps fields to fields with as many channels. It normalises its input and has no
# residual connection: you add one. It is the part that mixes points; the parts around it act at each point
# by itself, as convolutions of one point.
#
# With `reference_shape` windows and levels are lengths of the training grid. The layer can then be run on any
# other grid, and each weight acts over the distance it was trained for.


# %%
class Block(nn.Module):
    """Attention with a gate for each point and channel, and an MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = MultipoleAttention(
            channels, n_heads=4, n_levels=3, registration="node", reference_shape=(16, 16)
        )
        self.gate = nn.Conv2d(channels, channels, 1)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(batch, channels, *grid)`` to the same shape."""
        x = x + torch.sigmoid(self.gate(x)) * self.attention(x)
        return x + self.mlp(x)


class Operator(nn.Module):
    """Lift the permeability and the coordinates, apply two blocks, project."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, channels, 1)
        self.blocks = nn.Sequential(Block(channels), Block(channels))
        self.project = nn.Conv2d(channels, 1, 1)

    def forward(self, x: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
        """Predict the pressure; the Trainer also passes the other parts of a sample, which are not used."""
        axes = [torch.arange(n) / n for n in x.shape[2:]]
        coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1)
        return self.project(self.blocks(self.lift(torch.cat([x, coordinates], dim=1))))


# %% [markdown]
# ## FNO with another convolution
#
# neuraloperator's FNO takes a `conv_module`, which it calls with channels, modes and more. `MultipoleConv`
# has this interface. Its own options are given to `with_options`. It refuses options of a spectral weight,
# such as a factorisation; it accepts the number of modes and does not use it.
#
# Its reference is the first grid that it sees in training.

# %%
options = {"n_modes": (8, 8), "in_channels": 1, "out_channels": 1, "hidden_channels": 16, "n_layers": 3}
attention = MultipoleConv.with_options(n_heads=4, registration="node")

torch.manual_seed(0)
models = {
    "your own": Operator(),
    "FNO, attention": FNO(**options, conv_module=attention),
    "FNO, spectral": FNO(**options),
}

# %% [markdown]
# ## Training
#
# All models are trained by neuraloperator's Trainer with one budget.

# %%
l2loss = LpLoss(d=2, p=2)
n_epochs = 10
errors = {}
for name, model in models.items():
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=n_epochs + 1, pct_start=0.3
    )
    trainer = Trainer(model=model, n_epochs=n_epochs, data_processor=loaders.processor)
    trainer.train(loaders.train, {}, optimizer, scheduler, training_loss=l2loss)
    errors[name] = {
        n: float(trainer.evaluate({"l2": l2loss}, loader, f"{n}")[f"{n}_l2"])
        for n, loader in loaders.test.items()
    }

for conv in models["FNO, attention"].fno_blocks.convs:
    print("This layer's levels belong to a grid of", conv.reference_shape)

# %% [markdown]
# ## Errors
#
# On the training grid the spectral FNO is ahead: it has four times the parameters, and attention needs more
# steps than these. At 32 much of this lead is gone, since its error grows most. `MANO` also averages a finer
# input over the lengths of the training grid before it lifts it; neither of these operators does.

# %%
print(f"\n{'':16}{'parameters':>12}{'L2 at 16':>10}{'L2 at 32':>10}{'growth':>8}")
growth = {}
for name, model in models.items():
    coarse, fine = errors[name][16], errors[name][32]
    growth[name] = fine / coarse
    print(f"{name:16}{count_model_params(model):12,}{coarse:10.1%}{fine:10.1%}{growth[name]:8.2f}")

# With three seeds: 1.07 to 1.10 and 1.10 to 1.20, where the spectral FNO's error grows 1.32 to 1.44 times.
assert max(growth["your own"], growth["FNO, attention"]) < growth["FNO, spectral"]
assert max(errors[name][16] for name in models) < 0.2  # at most 11.5 %
folder.cleanup()
