"""Attention by the compiled library against torch's operations, and what happens where there is none."""

import os
import stat
import subprocess
import sys
from itertools import product
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from mano_op import MultipoleAttention
from mano_op.errors import InputError
from mano_op.layers import window
from mano_op.layers.attention import PositionBias
from mano_op.layers.native import library as module
from mano_op.layers.native.library import library
from mano_op.layers.native.small_windows import SmallWindows
from mano_op.layers.tiling import cut, tilings
from mano_op.layers.window import window_attention

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
BETWEEN = [tuple(i * 7 / 10 for i in range(11)), (0.0, 0.5, 2.25, 4.0, 5.0)]  # at any ratio of spacings


def drawn(shape, queries=None, batch=2, heads=2, head_dim=4, size=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        (size * torch.randn(batch, heads, *grid, head_dim, generator=generator)).requires_grad_()
        for grid in (queries or shape, shape, shape)
    )
    bias = PositionBias(heads, n_dim=len(shape))
    with torch.no_grad():
        for parameter in bias.parameters():
            parameter.normal_(generator=generator)
    return [q, k, v, *(p.detach().requires_grad_() for p in bias.parameters())], bias


def with_gradients(inputs, bias, **options):
    """The result and the gradients, of single precision by the library, of double by torch."""
    q, k, v, *parameters = inputs
    names = [] if bias is None else [name for name, _ in bias.named_parameters()]

    def of(offset):
        return torch.func.functional_call(bias, dict(zip(names, parameters, strict=True)), offset)

    out = window_attention(q, k, v, bias=of if options.pop("biased", True) else None, **options)
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape).sin()
    return [out, *torch.autograd.grad(out, inputs, weights, materialize_grads=True)]


def in_double(inputs):
    return [t.detach().double().requires_grad_() for t in inputs]


def assert_close(found, exact, within=5e-6):
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).abs().max() <= within * max(other.abs().max().item(), 1.0)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    window=st.integers(1, 5),
    part=st.integers(1, 5),
    halo=st.integers(0, 2),
    periodic=st.lists(st.booleans(), min_size=3, max_size=3),
    head_dim=st.sampled_from([1, 3, 4, 6, 8, 16, 21, 32]),
    threads=st.sampled_from([1, 2, 5]),
    biased=st.booleans(),
)
def test_results_and_gradients_are_those_of_double_precision(
    shape, window, part, halo, periodic, head_dim, threads, biased
):
    inputs, bias = drawn(shape, head_dim=head_dim)
    options = {
        "window": window, "stride": min(part, window), "halo": halo, "periodic": periodic[: len(shape)],
    }  # fmt: skip
    with patch.object(torch, "get_num_threads", lambda: threads):
        found = with_gradients(inputs, bias, biased=biased, **options)
    assert_close(found, with_gradients(in_double(inputs), bias, biased=biased, **options))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("queries_at", [BETWEEN, [tuple(i / 4 for i in range(32)), (0.0, 1.0, 5.0)]])
def test_queries_between_keys(queries_at, threads, monkeypatch):
    inputs, bias = drawn((8, 6), [len(at) for at in queries_at])
    options = {"window": 4, "halo": 1, "queries_at": queries_at}
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_close(with_gradients(inputs, bias, **options), with_gradients(in_double(inputs), bias, **options))


def test_it_is_what_a_cpu_uses_in_single_precision(monkeypatch):
    for name in ("attend_in_chunks", "attend_whole"):
        monkeypatch.setattr(window, name, None)
    inputs, bias = drawn((8, 8))
    assert with_gradients(inputs, bias, window=4)[0].isfinite().all()


def test_numbers_are_the_same_each_time_and_with_any_threads_forward(monkeypatch):
    inputs, bias = drawn((16, 16), batch=4)
    once, again = (with_gradients(inputs, bias, window=4, halo=1) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert torch.equal(with_gradients(inputs, bias, window=4, halo=1)[0], once[0])


def test_scores_of_any_size():
    """The largest wins, exactly; nothing overflows."""
    inputs, bias = drawn((9, 7), size=300.0)
    assert_close(
        with_gradients(inputs, bias, window=4, halo=1)[:1],
        with_gradients(in_double(inputs), bias, window=4, halo=1)[:1],
        within=1e-2,  # of scores of 1e5, single precision knows the second digit
    )
    v = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)
    q, k = torch.full((1, 1, 4, 1), 1e4), torch.tensor([0.0, 1.0, 3.0, 2.0]).reshape(1, 1, 4, 1)
    assert window_attention(q, k, v, window=4).flatten().tolist() == [4.0] * 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_shows(bad, which):
    inputs, bias = drawn((8, 8), batch=1, heads=1)
    with torch.no_grad():
        inputs[which][0, 0, 2, 1, 0] = bad
        out = window_attention(*inputs[:3], window=4, bias=bias)
        by_torch = window_attention(*in_double(inputs[:3]), window=4, bias=bias.double())
    assert torch.equal(out.isfinite(), by_torch.isfinite())
    assert not out[0, 0, :4, :4].isfinite().all()
    assert out[0, 0, 4:].isfinite().all()  # other windows know nothing of it


def test_strided_inputs_are_read_where_they_are():
    """As the layer's are: queries, keys and values of one product, heads side by side."""
    together = torch.randn(2, 6, 5, 3, 2, 4)
    parts = [together[..., i, :, :].permute(0, 3, 1, 2, 4) for i in range(3)]
    found = window_attention(*parts, window=4, halo=1)
    torch.testing.assert_close(found, window_attention(*(t.contiguous() for t in parts), window=4, halo=1))
    exact = window_attention(*(t.double() for t in parts), window=4, halo=1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_what_does_not_belong_together_is_refused_before_memory_is_read():
    q, k, v = (torch.randn(2, 2, 8, 8, 4) for _ in range(3))
    for unlike in (
        (q[:1], k, v),
        (q, k[:, :1], v),
        (q[:, :, :4], k, v),
        (q, k, v[..., :2]),
        (q, k[:, :, 1:], v[:, :, 1:]),
    ):
        with pytest.raises(InputError, match="expected one batch, heads and head_dim for all"):
            window_attention(*unlike, window=4)
    with pytest.raises(InputError, match="float64 on cpu"):
        window_attention(q, k.double(), v, window=4)
    with pytest.raises(InputError, match="the grid"):
        window_attention(q, k, v, window=4, queries_at=[(0.0, 1.0)] * 2)


def test_a_bias_that_autocast_makes_half_is_read_as_such():
    inputs, bias = drawn((8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradients(inputs, bias, window=4, halo=1)
    assert_close(found[:4], with_gradients(in_double(inputs), bias, window=4, halo=1)[:4], within=0.05)


def test_gradients_of_gradients():
    inputs, bias = drawn((5, 6), batch=1)

    def twice(inputs):
        _, *gradients = with_gradients(inputs, bias, window=4, halo=1)
        return gradients

    q, k, v, *_ = inputs
    found, exact = (
        torch.autograd.grad(
            torch.autograd.grad(window_attention(*given, window=4).sin().sum(), given[:2], create_graph=True)[
                0
            ]
            .square()
            .sum(),
            given,
        )
        for given in ([q, k, v], in_double([q, k, v]))
    )
    assert_close(found, exact, within=1e-4)


def test_counters_of_operations_see_the_products():
    inputs, _ = drawn((8, 8), batch=3, heads=2, head_dim=4)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        window_attention(*inputs[:3], window=4, halo=1)
    # 64 queries, 36 keys each, two products of 4 numbers, 2 operations, 3 samples, 2 heads
    assert counter.get_total_flops() == 64 * 36 * 2 * 4 * 2 * 3 * 2


# ------------------------------------------------------------------------- windows of 2, 4 or 8 points


SMALL = [(1, 2), (1, 4), (1, 8), (2, 2), (3, 2)]  # dimensions, and points along each side


def by_small_windows(inputs, **options):
    """The result and the gradients of q, k and v, of the path that takes all windows at once."""
    with patch.object(window, "_attend_by_tilings", None):
        return with_gradients(inputs, None, biased=False, **options)


def with_gradients_of_three(inputs, **options):
    return with_gradients(inputs, None, biased=False, **options)


@given(
    kind=st.sampled_from(SMALL),
    sides=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    part=st.integers(1, 8),
    periodic=st.lists(st.booleans(), min_size=3, max_size=3),
    heads=st.sampled_from([1, 3, 9]),
    head_dim=st.sampled_from([1, 4, 8, 16, 21, 32]),
    batch=st.integers(1, 2),
    threads=st.sampled_from([1, 2, 5, 40]),
)
def test_small_windows_are_those_of_double_precision(
    kind, sides, part, periodic, heads, head_dim, batch, threads
):
    n_dim, side = kind
    shape = [side + n for n in sides[:n_dim]]
    inputs = drawn(shape, heads=heads, head_dim=head_dim, batch=batch)[0][:3]
    options = {"window": side, "stride": min(part, side), "periodic": periodic[:n_dim]}
    with patch.object(torch, "get_num_threads", lambda: threads):
        found = by_small_windows(inputs, **options)
    assert_close(found, with_gradients_of_three(in_double(inputs), **options))


def test_small_windows_on_grids_narrower_than_a_window():
    """A window of 4 x 4 on a line of points is one of 4, and of 2 x 2 one of 2."""
    for side, shape in ((4, (1, 9)), (2, (7, 1)), (3, (2, 1)), (8, (1, 8, 1)), (4, (2, 1, 2))):
        inputs = drawn(shape)[0][:3]
        options = {"window": side, "stride": 1}
        assert_close(
            by_small_windows(inputs, **options), with_gradients_of_three(in_double(inputs), **options)
        )


def test_where_windows_overlap_their_results_are_averaged():
    zero, v = torch.zeros(1, 1, 3, 1), torch.tensor([0.0, 2.0, 6.0]).reshape(1, 1, 3, 1)
    with patch.object(window, "_attend_by_tilings", None):
        found = window_attention(zero, zero, v, window=2, stride=1)
    assert found.flatten().tolist() == [1.0, 2.5, 4.0]


def test_numbers_of_small_windows_are_the_same_with_any_threads(monkeypatch):
    inputs = drawn((16, 15), batch=3, heads=5, head_dim=16)[0][:3]
    options = {"window": 2, "stride": 1}
    once = by_small_windows(inputs, **options)
    for threads in (2, 7, 40):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert all(map(torch.equal, by_small_windows(inputs, **options), once))


@pytest.mark.parametrize("head_dim", [4, 16, 21])
def test_of_small_windows_nothing_beside_the_points_is_read_or_written(head_dim):
    """Whatever lies between and after them."""
    around = torch.full((2, 6, 7, 3, head_dim + 5), torch.nan)
    points = [torch.randn(2, 5, 7, 3, head_dim) for _ in range(4)]
    wide = [around.clone() for _ in points]
    parts = [t[:, :5, :, :, 2 : head_dim + 2].copy_(p) for t, p in zip(wide, points, strict=True)]
    found, exact = [], []
    for into, those in ((found, parts), (exact, points)):
        q, k, v, weights = (t.permute(0, 3, 1, 2, 4) for t in those)
        q, k, v = (t.requires_grad_() for t in (q, k, v))
        out = window_attention(q, k, v, window=2, stride=1)
        into += [out, *torch.autograd.grad(out, [q, k, v], weights)]
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_stays_in_its_small_windows(which):
    inputs = [t.detach() for t in drawn((8, 8), batch=1, heads=1)[0][:3]]
    inputs[which][0, 0, 3, 3, 0] = torch.nan
    found = window_attention(*inputs, window=2, stride=1).isfinite()
    exact = window_attention(*in_double(inputs), window=2, stride=1).isfinite()
    assert torch.equal(found, exact) and not found.all()


def test_gradients_of_gradients_of_small_windows():
    inputs = drawn((5, 6), batch=1)[0][:3]

    def twice(those):
        out = window_attention(*those, window=2, stride=1, periodic=[True, False])
        first = torch.autograd.grad(out.sin().sum(), those, create_graph=True)
        return torch.autograd.grad(sum(t.square().sum() for t in first), those)

    assert_close(twice(inputs), twice(in_double(inputs)), within=1e-4)


def test_lists_of_small_windows_made_in_inference_serve_training():
    inputs = drawn((7, 11))[0][:3]
    with torch.inference_mode():
        result = window_attention(*inputs, window=2, stride=1)
    assert torch.equal(by_small_windows(inputs, window=2, stride=1)[0], result)


def test_small_windows_with_a_bias_or_a_halo_go_the_other_way(monkeypatch):
    monkeypatch.setattr(window, "attend_in_small_windows", None)
    inputs, bias = drawn((6, 5))
    assert with_gradients(inputs, bias, window=2, stride=1)[0].isfinite().all()
    assert with_gradients_of_three(inputs[:3], window=2, halo=1)[0].isfinite().all()


def test_small_windows_of_all_tilings_make_the_average():
    """Shares of a point's queries sum to one, and each window is there once."""
    axes = [tilings(n, 2, 1, 0, False) for n in (5, 4)]
    small = SmallWindows.of([cut(tiling, (5, 4), (5, 4)) for tiling in product(*axes)])
    assert len(small.queries) == 4 * 3
    assert torch.equal(small.queries, small.keys)
    total = torch.zeros(20).index_add_(0, small.queries.flatten().long(), small.share.flatten())
    assert torch.allclose(total, torch.ones(20))


def test_the_published_layer_takes_small_windows(monkeypatch):
    layer = MultipoleAttention.published(8, 2)
    x = torch.randn(1, 8, 12, 9)
    monkeypatch.setattr(window, "_attend_by_tilings", None)
    found = layer(x)
    monkeypatch.undo()
    assert (found - layer.double()(x.double())).abs().max() < 1e-5


# ---------------------------------------------------------------------------------- the library itself


def in_a_process(tmp_path, code="print(library())", **environment):
    """A new process, with a cache of its own."""
    done = subprocess.run(
        [sys.executable, "-c", f"from mano_op.layers.native.library import library\n{code}"],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.stdout.strip(), done.stderr


def test_it_is_built_once_and_kept(tmp_path):
    made, errors = in_a_process(tmp_path, MANO_OP_NATIVE="1")
    assert "CDLL" in made, errors
    [kept] = (tmp_path / "mano_op").iterdir()
    assert stat.S_IMODE((tmp_path / "mano_op").stat().st_mode) == 0o700
    before = kept.stat().st_mtime_ns
    assert "CDLL" in in_a_process(tmp_path)[0]
    assert [path.stat().st_mtime_ns for path in (tmp_path / "mano_op").iterdir()] == [before]


def test_it_can_be_left_out(tmp_path):
    assert in_a_process(tmp_path, MANO_OP_NATIVE="0")[0] == "None"
    assert not (tmp_path / "mano_op").exists()


def test_without_a_compiler_there_is_none_and_the_log_says_why(tmp_path):
    code = "import logging\nlogging.basicConfig(level='INFO')\nprint(library())"
    out, errors = in_a_process(tmp_path, code, CXX="no-such-compiler")
    assert out == "None" and "there is no C++ compiler" in errors
    out, errors = in_a_process(tmp_path, CXX="no-such-compiler", MANO_OP_NATIVE="1")
    assert not out and "InputError: MANO_OP_NATIVE=1, but" in errors and "install a C++ compiler" in errors


def test_a_compiler_that_fails_leaves_nothing_behind(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\ncase "$*" in *-dM*) echo x;; *) echo "no such header" >&2; exit 1;; esac\n')
    broken.chmod(0o755)
    code = "import logging\nlogging.basicConfig(level='INFO')\nprint(library())"
    out, errors = in_a_process(tmp_path / "cache", code, CXX=str(broken))
    assert out == "None" and "no such header" in errors
    assert list((tmp_path / "cache" / "mano_op").iterdir()) == []


def test_a_cache_that_others_can_write_to_is_not_trusted(tmp_path):
    (tmp_path / "mano_op").mkdir(mode=0o777)
    (tmp_path / "mano_op").chmod(0o777)
    out, errors = in_a_process(tmp_path, MANO_OP_NATIVE="1")
    assert not out and "is not this user's alone to write to" in errors


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("MANO_OP_NATIVE", "yes")
    with pytest.raises(InputError, match="MANO_OP_NATIVE='yes', expected 0"):
        module.library.__wrapped__()


def test_a_bias_for_another_number_of_heads_is_refused():
    q = torch.randn(1, 2, 6, 4)
    with pytest.raises(
        InputError, match="bias gives 1 scores for each offset, expected one for each of 2 heads"
    ):
        window_attention(q, q, q, window=4, bias=lambda offset: offset.sum(-1, keepdim=True))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("head_dim", [4, 21])
def test_threads_that_cannot_be_started_are_done_without(head_dim):
    """A process that has no memory for so many has the result of one."""
    program = f"""
import resource, torch
from mano_op.layers.window import window_attention
torch.manual_seed(0)
q, k, v = torch.randn(3, 2, 2, 24, 24, {head_dim})
one = window_attention(q, k, v, window=4, halo=1)
torch.get_num_threads = lambda: 64
[size] = [line for line in open("/proc/self/status") if line.startswith("VmSize")]
limit = 1024 * int(size.split()[1]) + 2**27  # room for the stacks of some threads, of 8 MiB each
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
assert torch.equal(window_attention(q, k, v, window=4, halo=1), one)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
