"""Counted costs against hand counts."""

import math

import pytest
import torch
from neuralop.models import FNO
from torch import Tensor, nn

from mano_op import MANO, MultipoleAttention
from mano_op.cost import count_flops, count_parameters
from mano_op.layers.style import Style


def test_complex_parameter_counts_twice() -> None:
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(torch.zeros(3, 5, dtype=torch.cfloat)))
    assert count_parameters(module) == 30


def test_untrained_parameters_do_not_count() -> None:
    module = nn.Linear(4, 3)
    module.bias.requires_grad_(False)
    assert count_parameters(module) == 12


@pytest.mark.parametrize("n", [8, 12, 16])
def test_fno_matches_hand_count(n: int) -> None:
    """The FNO of the benchmark, part by part: it has 340,833 parameters, as neuraloperator prints."""
    width, modes, layers = 32, 8, 4
    model = FNO(n_modes=(modes, modes), hidden_channels=width, in_channels=1, out_channels=1)
    points = n * n
    lifting = 2 * points * (3 * 64 + 64 * width)
    projection = 2 * points * (width * 64 + 64 * 1)
    skip = 2 * points * width * width
    channel_mlp = 2 * points * 2 * width * width // 2
    # Along the last axis a real transform keeps half of the modes and the mean.
    kept = modes * (modes // 2 + 1)
    spectral = 8 * kept * width * width
    # There and back. The real axis is transformed from n numbers, the complex one over half the modes;
    # torch does both in one call, which is counted as one real transform of all the points.
    fourier = 2 * width * points * 5 * math.log2(points) / 2
    expected = lifting + projection + layers * (skip + channel_mlp + spectral + fourier)
    assert count_flops(model, torch.zeros(1, 1, n, n)) == pytest.approx(expected, rel=1e-3)
    assert count_parameters(model) == 340_833


def test_multipole_attention_matches_hand_count() -> None:
    """One level, window as large as the grid: four linear maps, and two products of all with all."""
    points, channels = 36, 8
    layer = MultipoleAttention(channels, 2, window=6, halo=0, n_levels=1, style=Style(position_bias=False))
    expected = 2 * points * 4 * channels**2 + 2 * 2 * points**2 * channels
    assert count_flops(layer, torch.zeros(1, channels, 6, 6)) == expected


@pytest.mark.parametrize("masked", [False, True])
def test_attention_kernel_counts_as_its_products(masked: bool) -> None:
    """Scores of 5 queries with 7 keys of 4 channels, and of 6 of values; masked ones are computed."""

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            mask = torch.zeros(5, 7) if masked else None
            q, k, v = x.new_zeros(2, 3, 5, 4), x.new_zeros(2, 3, 7, 4), x.new_zeros(2, 3, 7, 6)
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    assert count_flops(Attention(), torch.zeros(1)) == 2 * 3 * 2 * 5 * 7 * (4 + 6)


def test_cost_is_proportional_to_the_batch() -> None:
    model = MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, n_levels=2, n_modes=0).train()
    one, five = (count_flops(model, torch.zeros(size, 1, 16, 16)) for size in (1, 5))
    # The position bias is evaluated once for a batch, whatever its size.
    distinct_offsets = (2 * (4 + 1) - 1) ** 2
    bias = 2 * 2 * distinct_offsets * (2 * 32 + 32 * 2)
    assert five - bias == 5 * (one - bias)
    assert model.training


def test_training_mode_is_restored_after_an_error() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no")

    model = Failing().train()
    with pytest.raises(RuntimeError, match="no"):
        count_flops(model, torch.zeros(1, 1, 4, 4))
    assert model.training
