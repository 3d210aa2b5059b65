"""The published layer and model, against vectors computed from the paper.

Every .npz file of the folder that MANO_OP_GOLDEN names is run; tests/golden if it is not set.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from mano_op import MultipoleAttention, PublishedMANO

FOLDER = Path(os.environ.get("MANO_OP_GOLDEN", Path(__file__).parent / "golden"))
FILES = sorted(FOLDER.glob("*.npz"))

# The vectors name parameters without the level they belong to, since all levels share them.
ATTENTION = ("norm1", "norm2", "qkv", "out")
STEPS = ("down", "up")


def build(golden: Mapping[str, NDArray]) -> nn.Module:
    """The layer or the model that a file describes, with its parameters."""
    parameters = {
        key.removeprefix("param/"): torch.as_tensor(golden[key]) for key in golden if key.startswith("param/")
    }
    options = {key: golden[key].item() for key in ("window", "stride", "rate", "head_dim", "sampling")}
    n_heads = golden["n_heads"].item()
    if "n_levels" in golden:
        options["n_levels"] = golden["n_levels"].item()
    channels, n_dim = golden["x"].shape[1], golden["x"].ndim - 2
    if "n_blocks" not in golden:
        module: nn.Module = MultipoleAttention.published(channels, n_heads, n_dim=n_dim, **options)
    else:
        hidden = len(parameters["lifting.weight"])
        module = PublishedMANO(
            channels,
            golden["y"].shape[1],
            hidden_channels=hidden,
            n_layers=golden["n_blocks"].item(),
            n_heads=n_heads,
            n_dim=n_dim,
            channel_mlp_expansion=len(parameters["blocks.0.mlp.fc1.weight"]) / hidden,
            projection_channel_ratio=len(parameters["projection.fc1.weight"]) / hidden,
            **options,
        )
    renamed = {_name_here(key): value for key, value in parameters.items()}
    module.double().load_state_dict(renamed)
    return module


def _name_here(key: str) -> str:
    """``blocks.0.attention.qkv.weight`` as ``blocks.0.attention.attention.0.qkv.weight``."""
    named = re.fullmatch(r"((?:blocks\.\d+\.attention\.)?)(.*)\.(\w+)", key)
    assert named, f"{key} is not the name of a parameter"
    path, part, last = named.groups()
    if part in ATTENTION:
        return f"{path}attention.0.{part}.{last}"
    return f"{path}{part}.0.{last}" if part in STEPS else key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_output_and_gradient_are_the_published_ones(path: Path) -> None:
    with np.load(path) as archive:
        golden = dict(archive)
    module = build(golden)
    x = torch.as_tensor(golden["x"]).requires_grad_()
    y = module(x)
    y.backward(torch.as_tensor(golden["grad_y"]))
    assert x.grad is not None
    for found, expected in ((y.detach(), golden["y"]), (x.grad, golden["grad_x"])):
        assert np.abs(found.numpy() - expected).max() <= 1e-10 * np.abs(expected).max()


def test_there_are_vectors_to_compare_with() -> None:
    """A wrong MANO_OP_GOLDEN must not look like success."""
    assert FILES, f"no .npz file in {FOLDER}"
