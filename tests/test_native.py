"""The compiled kernel where it differs from operations of torch. Its values: `test_window`, in float32."""

import os
import stat
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from test_window import cotangent

from mano_op.errors import InputError
from mano_op.layers.native import kernel
from mano_op.layers.native.library import library
from mano_op.layers.windows import Windows

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")


@contextmanager
def threads(number):
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


def results(windows, inputs, heads):
    inputs = [t.requires_grad_() for t in inputs]
    out = windows(*inputs, heads=heads)
    return [out, *torch.autograd.grad(out, inputs, cotangent(out))]


def test_the_kernel_is_for_single_precision_on_a_cpu():
    assert kernel.usable(torch.zeros(1))
    for other in (torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.bfloat16)):
        assert not kernel.usable(other)
    assert not kernel.usable(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("head_dim", [4, 16, 21])
@pytest.mark.parametrize("stride", [2, 4])
def test_strided_inputs_are_read_where_they_are_and_nothing_beside_them(stride, head_dim):
    """As a layer's are: side by side. Whatever lies between and after them is NaN here."""
    windows = Windows((5, 7), window=4, stride=stride, halo=1)
    points = [torch.randn(2, 35, 3 * head_dim) for _ in range(3)]
    around = torch.full((2, 42, 3 * head_dim + 5), torch.nan)
    parts = [around.clone()[:, :35, 2:-3].copy_(p) for p in points]
    for one, other in zip(results(windows, parts, 3), results(windows, points, 3), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_numbers_are_the_same_each_time_and_forward_with_any_threads():
    windows, inputs = Windows((16, 15), window=4, halo=1), torch.randn(3, 3, 240, 15)
    first, second = (results(windows, inputs, 5) for _ in range(2))
    assert all(map(torch.equal, first, second))
    for number in (2, 7, 40):
        with threads(number):
            out, *gradients = results(windows, inputs, 5)
        assert torch.equal(out, first[0])
        for one, other in zip(gradients, first[1:], strict=True):
            torch.testing.assert_close(one, other)


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
from mano_op.layers.windows import Windows
torch.manual_seed(0)
windows = Windows((24, 24), window=4, halo=1)
fields = [torch.randn(3, 2, 24 * 24, 2 * head_dim) for head_dim in (4, 21)]
one = [windows(*field, heads=2) for field in fields]
torch.get_num_threads = lambda: 64
[size] = [line for line in open("/proc/self/status") if line.startswith("VmSize")]
limit = 1024 * int(size.split()[1]) + 2**27  # room for the stacks of some threads, of 8 MiB each
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for field, result in zip(fields, one):
    assert torch.equal(windows(*field, heads=2), result)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
