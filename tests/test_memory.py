"""Memory of a forward pass and of a training step, counted against what can be counted by hand."""

import gc
from unittest.mock import patch

import pytest
import torch
from torch import nn

from mano_op.layers import operator
from mano_op.layers.windows import Windows
from mano_op.memory import peak_bytes, peak_bytes_of


class Of(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(5000))

    def forward(self, x):
        return self.function(x)


def test_peak_counts_tensors_that_live_at_once():
    x = torch.zeros(1000)  # 4000 bytes, not counted

    def three(x):
        for _ in range(10):
            x = 2 * x + 1  # the old one, twice it, and the new one
        return x

    def all_kept(x):
        return sum([k * x for k in range(10)], start=x)

    assert peak_bytes(Of(three), x) == 3 * 4000
    assert peak_bytes(Of(all_kept), x) == 12 * 4000  # ten terms, and two sums at a time
    assert peak_bytes(Of(lambda x: x), x) == 0


def test_views_and_in_place_operations_take_no_memory():
    x = torch.zeros(30, 40)
    assert peak_bytes(Of(lambda x: x.T[3:].reshape(37, 1, 30)), x) == 0
    assert peak_bytes(Of(lambda x: (x + 1).mul_(2).relu_().T[1:]), x) == 4 * 1200


def test_peak_is_proportional_to_the_points_and_released():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 1, 3, padding=1)).train()
    small, large, again = (peak_bytes(model, torch.zeros(1, 1, n, n)) for n in (16, 32, 16))
    assert large == 4 * small == 4 * again
    assert model.training
    gc.collect()
    assert all(p.grad is None for p in model.parameters())


def test_peak_of_a_training_step_includes_saved_tensors():
    weight = torch.ones(1000, requires_grad=True)

    def step():
        weight.grad = None
        y = weight
        for _ in range(10):
            y = y.sin()  # keeps what it is given
        y.sum().backward()

    # Nine hidden fields are kept, the tenth goes with the sum; then two gradients at a time, and the cosine.
    first = peak_bytes_of(step)
    assert 11 * 4000 <= first <= 13 * 4000
    assert peak_bytes_of(step) == first
    with torch.no_grad():
        assert peak_bytes_of(lambda: weight.sin().sin().sum()) < 3 * 4000


def test_counting_ends_when_the_function_fails():
    def failing():
        torch.zeros(10)
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        peak_bytes_of(failing)
    assert not torch._C._len_torch_dispatch_stack()


def test_what_kernels_of_windows_hold_is_counted():
    """The result, and the scores of a few windows at a time; no more is kept for gradients."""
    q = torch.zeros(1, 64 * 64, 8, dtype=torch.float64, requires_grad=True)
    windows, scores = Windows((64, 64), window=4), 64 * 64 * 16 * 8

    def attend():
        windows(q, q, q, heads=1)

    with patch.object(operator, "_SCORES", 16 * 16):  # one window
        by_window = peak_bytes_of(attend)
    with patch.object(operator, "_SCORES", 64 * 64 * 16):
        at_once = peak_bytes_of(attend)
        with torch.no_grad():
            assert peak_bytes_of(attend) == at_once
    assert q.nbytes <= by_window < 2 * q.nbytes + scores / 8 < 2 * q.nbytes + scores < at_once
