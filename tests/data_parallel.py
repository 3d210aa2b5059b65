"""Gradient steps of the models under DistributedDataParallel, in a process group of this process alone.

`test_neuralop` runs it as a process of its own, with the path of a new file: torch's gloo group can wait,
with Python's lock held, for a thread of its own that waits for the lock, while the reducer is taken down.
"""

import os
import sys
from functools import partial

import torch
import torch.distributed as dist
from neuralop.layers.fno_block import FNOBlocks
from neuralop.models import UNO
from torch.nn.parallel import DistributedDataParallel

from mano_op import MANO, MultipoleConv, PublishedMANO, fix_references

ATTENTION = {"n_heads": 2, "window": 2, "n_levels": 3}
SHAPE = {"in_channels": 1, "out_channels": 1, "hidden_channels": 8}


def uno():
    conv = MultipoleConv.with_options(**ATTENTION)
    scalings = [[scale, scale] for scale in (1.0, 0.5, 1.0, 2.0)]
    parts = {"integral_operator": conv, "operator_block": partial(FNOBlocks, conv_module=conv)}
    levels = {"uno_out_channels": [4, 8, 8, 4], "uno_n_modes": [[4, 4]] * 4, "uno_scalings": scalings}
    model = UNO(**SHAPE, **parts, **levels, n_layers=4, channel_mlp_skip="linear")
    model(torch.zeros(2, 1, 8, 8))
    fix_references(model)
    return model


def trained(model, shapes):
    model = DistributedDataParallel(model)
    for shape in shapes:
        model(x=torch.randn(2, 1, *shape)).square().sum().backward()
    with torch.no_grad():
        assert torch.equal(model(x=(x := torch.randn(1, 1, 4, 4))), model.module(x))
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    host = uno()  # learns its references before there are other ranks
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
    small = [(8, 8), (2, 2), (1, 1), (5, 1), (8, 8)]
    models = [
        trained(MANO(**SHAPE, n_layers=1, **ATTENTION, reference_shape=(8, 8)), small),
        trained(PublishedMANO(**SHAPE, n_layers=1, **ATTENTION), small),
        trained(host, [(8, 8), (2, 4), (9, 5), (16, 16)]),
    ]
    os._exit(0)  # the reducers of the models are not taken down
