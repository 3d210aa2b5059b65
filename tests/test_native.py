"""The compiled library against double precision, and where there is none. Its attention: `test_window`."""

import math
import os
import stat
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr
from test_window import assert_near, differentiated, threads

from mano_op.errors import InputError
from mano_op.layers import pyramid
from mano_op.layers.native.call import may_call
from mano_op.layers.native.elementwise import add_, gelu, gelu_backward_
from mano_op.layers.native.library import library
from mano_op.layers.pyramid import Prolong, Restrict, level_shapes

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
EPS = torch.finfo(torch.float32).eps


# Single values


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


def test_gelu_of_what_is_not_finite_is_torchs():
    x = torch.tensor([[torch.inf, torch.nan, -torch.inf, 1e30, -1e30, 0.0]])
    found = gelu(x, torch.zeros(6))
    assert found[0, 0] == torch.inf and found[0, 1:3].isnan().all() and (found[0, 4:] == 0).all()
    assert found[0, 3] == torch.nn.functional.gelu(x)[0, 3]


@given(
    rows=st.integers(0, 9),
    channels=st.integers(1, 40),
    n_threads=st.sampled_from([1, 3]),
    with_bias=st.booleans(),
    with_field=st.booleans(),
)
def test_rows_of_any_number_of_channels_leave_their_neighbours_alone(
    rows, channels, n_threads, with_bias, with_field
):
    generator = torch.Generator().manual_seed(0)
    z, dz, x = torch.randn(3, rows, channels, generator=generator)
    bias, around = torch.randn(channels, generator=generator), torch.ones(rows + 2, channels)
    value, slope = gelu_and_slope(z + bias)
    with threads(n_threads):
        added = add_(z.clone(), bias if with_bias else None, x if with_field else None)
        h, grad = gelu_backward_(z.clone(), bias, dz.clone())
        assert (gelu(z, bias, out=around[1:-1]) == h).all()
    assert (around[[0, -1]] == 1).all() and (around[1:-1] == h).all()
    assert (added == z + (bias if with_bias else 0) + (x if with_field else 0)).all()
    torch.testing.assert_close(h.double(), value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad.double(), slope * dz, rtol=2e-6, atol=1e-6)


def test_fields_that_do_not_fit_are_refused_before_memory_is_read():
    z = torch.zeros(4, 5)
    for options in ({"bias": torch.zeros(7)}, {"bias": torch.zeros(5), "out": torch.zeros(4, 6)}):
        with pytest.raises(
            ValueError, match=r"torch.float32 of shape \(.*\) for torch.float32 of shape \(4, 5\)"
        ):
            gelu(z, **options)


# Stencils


def step_of(kind, channels, n_dim, **options):
    step = kind(channels, n_dim=n_dim, sampling="stencil", **options)
    with torch.no_grad():
        step.weight.normal_(generator=torch.Generator().manual_seed(0))
    return step


def on_step(step, shape):
    """A step as a function of the field, its weights and, of prolongation, factors of the channels."""

    def function(inputs):
        x, weight, *factor = inputs
        return torch.func.functional_call(step, {"weight": weight}, (x, *shape, *factor))

    return function


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    rate=st.integers(2, 4),
    registration=st.sampled_from(["node", "node_both", "cell"]),
    periodic=st.lists(st.booleans(), min_size=3, max_size=3),
    channels=st.integers(1, 5),
    channels_last=st.booleans(),
    n_threads=st.sampled_from([1, 3]),
    batch=st.integers(0, 3),
)
def test_stencils_are_torchs_convolutions_in_double_precision(
    shape, rate, registration, periodic, channels, channels_last, n_threads, batch
):
    options = {"rate": rate, "registration": registration, "periodic": periodic[: len(shape)]}
    coarse, generator = level_shapes(shape, rate, 2)[-1], torch.Generator().manual_seed(0)
    factor = torch.randn(channels, generator=generator)
    for kind, size, more in ((Restrict, shape, []), (Prolong, coarse, [factor])):
        x = torch.randn(batch, *size, channels, generator=generator).movedim(-1, 1)
        step = step_of(kind, channels, len(shape), **options)
        inputs = [x if channels_last else x.contiguous(), step.weight, *more]
        function = on_step(step, [shape] if more else [])
        with threads(n_threads):
            found = differentiated(function, inputs)
        assert all(t.dtype == torch.float32 for t in found)
        exact = differentiated(function, [t.double() for t in inputs])
        if batch:
            assert_near(found, exact, 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_go_through_torch(dtype, monkeypatch):
    assert may_call(torch.zeros(1)) and not may_call(torch.zeros(1, dtype=dtype))
    monkeypatch.setattr(pyramid, "apply_stencil", None)
    step, x = step_of(Restrict, 2, 1, rate=2, periodic=[False]), torch.randn(1, 2, 8)
    mixed = dtype == torch.bfloat16
    with torch.autocast("cpu", dtype) if mixed else nullcontext():
        assert (step(x) if mixed else step.to(dtype)(x.to(dtype))).dtype == dtype


# The library itself


@pytest.fixture
def opened(tmp_path, monkeypatch, caplog):
    """Opens the library anew, from a cache of its own; the second value is the log."""

    def open_library(script=None, **environment):
        if script is not None:
            (tmp_path / "c++").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "c++").chmod(0o755)
            environment["CXX"] = str(tmp_path / "c++")
        for name, value in {"XDG_CACHE_HOME": str(tmp_path), **environment}.items():
            monkeypatch.setenv(name, value)
        with caplog.at_level("INFO"):
            return library.__wrapped__(), caplog.text

    return open_library


QUICK = 'exec c++ "$@" -O0'


def test_the_library_is_built_once_and_kept(opened, tmp_path):
    assert opened(QUICK, MANO_OP_NATIVE="1")[0] is not None
    folder = tmp_path / "mano_op"
    [kept] = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = kept.stat().st_mtime_ns
    assert opened(QUICK)[0] is not None
    assert [path.stat().st_mtime_ns for path in folder.iterdir()] == [before]
    assert opened(MANO_OP_NATIVE="0")[0] is None


FAILING = 'case "$*" in *-dM*) echo x;; *) echo "no such header" >&2; exit 1;; esac'


@pytest.mark.parametrize(
    ("script", "environment", "reason"),
    [
        (None, {"CXX": "no-such-compiler"}, "there is no C++ compiler"),
        (FAILING, {}, "no such header"),
    ],
)
def test_without_a_working_compiler_there_is_no_library_and_the_log_says_why(
    script, environment, reason, opened, tmp_path
):
    none, log = opened(script, **environment)
    assert none is None and reason in log
    assert not any((tmp_path / "mano_op").glob("*"))
    with pytest.raises(InputError, match=r"MANO_OP_NATIVE=1, but .* install a C\+\+ compiler"):
        opened(script, **environment, MANO_OP_NATIVE="1")


def test_a_cache_that_others_can_write_to_is_not_trusted(opened, tmp_path):
    (tmp_path / "mano_op").mkdir()
    (tmp_path / "mano_op").chmod(0o777)
    with pytest.raises(InputError, match="is not this user's alone to write to"):
        opened(MANO_OP_NATIVE="1")
    with pytest.raises(InputError, match="MANO_OP_NATIVE='yes', expected 0"):
        opened(MANO_OP_NATIVE="yes")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_threads_that_cannot_be_started_are_done_without():
    """A process that has no memory for so many has the result of one."""
    program = """
import resource, torch
from mano_op.layers.window import window_attention
torch.manual_seed(0)
fields = [torch.randn(3, 2, 2, 24, 24, head_dim) for head_dim in (4, 21)]
one = [window_attention(*field, window=4, halo=1) for field in fields]
torch.get_num_threads = lambda: 64
[size] = [line for line in open("/proc/self/status") if line.startswith("VmSize")]
limit = 1024 * int(size.split()[1]) + 2**27  # room for the stacks of some threads, of 8 MiB each
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for field, result in zip(fields, one):
    assert torch.equal(window_attention(*field, window=4, halo=1), result)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
