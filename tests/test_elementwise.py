"""What the compiled library does to single values, against double precision."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from mano_op.layers.native.call import may_call
from mano_op.layers.native.elementwise import add_, gelu, gelu_backward_
from mano_op.layers.native.library import library

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
EPS = torch.finfo(torch.float32).eps


def gelu_and_slope(x):
    """In double precision, also where the distribution function is next to nothing."""
    x = x.double()
    share, density = torch.from_numpy(ndtr(x.numpy())), torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
    return x * share, share + x * density


def test_gelu_is_as_good_as_single_precision():
    """Relative to the value, or to one where that is smaller; also where it is next to nothing."""
    x = torch.linspace(-12, 12, 100_001)[:, None]
    value, slope = gelu_and_slope(x)
    found, dz = gelu_backward_(x.clone(), torch.zeros(1), torch.ones_like(x))
    assert (gelu(x, torch.zeros(1)) == found).all()
    assert ((found - value).abs() <= 5 * EPS * value.abs().clamp(min=0.1)).all()
    assert ((dz - slope).abs() <= 3 * EPS).all()
    tail = (x < -1) & (value.abs() > 1e-30)
    assert ((found - value).abs() <= 3e-5 * value.abs())[tail].all()


def test_what_is_not_finite_is_as_torch_has_it():
    x = torch.tensor([[torch.inf, torch.nan, -torch.inf, 1e30, -1e30, 0.0]])
    expected = torch.nn.functional.gelu(x)
    found = gelu(x, torch.zeros(6))
    assert found[0, 0] == torch.inf and found[0, 1:3].isnan().all() and found[0, 3] == expected[0, 3]
    assert (found[0, 4:] == 0).all()


@given(
    rows=st.integers(0, 9),
    channels=st.integers(1, 40),
    threads=st.sampled_from([1, 3]),
    with_bias=st.booleans(),
    with_field=st.booleans(),
)
def test_any_number_of_channels(rows, channels, threads, with_bias, with_field):
    generator = torch.Generator().manual_seed(0)
    z, dz, x = torch.randn(3, rows, channels, generator=generator)
    bias = torch.randn(channels, generator=generator)
    value, slope = gelu_and_slope(z + bias)
    with patch.object(torch, "get_num_threads", lambda: threads):
        added = add_(z.clone(), bias if with_bias else None, x if with_field else None)
        h, grad = gelu_backward_(z.clone(), bias, dz.clone())
        assert (gelu(z, bias) == h).all()
    assert (added == z + (bias if with_bias else 0) + (x if with_field else 0)).all()
    torch.testing.assert_close(h.double(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), slope * dz, rtol=2e-6, atol=1e-6)


def test_what_is_beside_is_left_alone():
    """A chunk of a larger field, whose channels do not fill the last vector."""
    field = torch.randn(4, 5)
    before = field.clone()
    gelu(field[1:3], torch.zeros(5), out=field[1:3])
    assert (field[[0, 3]] == before[[0, 3]]).all() and (field[1:3] != before[1:3]).all()


def test_double_precision_goes_through_torch():
    assert may_call(torch.zeros(1)) and not may_call(torch.zeros(1, dtype=torch.float64))
