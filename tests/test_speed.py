"""What the benchmark of speed compares with, its verdicts, and costs that are counted, not timed."""

import json
import math
from itertools import pairwise

import plain_published
import pytest
import rivals
import speed
import torch
from test_multipole import assert_same, draw, gradients, randomise

from mano_op import MANO, MultipoleAttention
from mano_op.cost import count_flops
from mano_op.errors import InputError
from mano_op.memory import peak_bytes_of

# The plain published layer.


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 16), {}),
        ((8, 8), {"n_heads": 1}),  # no linear map at the end
        ((16, 16), {"head_dim": 3, "window": 4, "stride": 2, "n_levels": 3, "sampling": "avg_pool"}),
        ((9, 27), {"window": 3, "stride": 3, "rate": 3}),
    ],
)
def test_the_plain_layer_is_the_published_one(shape, options):
    """In double precision: outputs, and gradients of the input and of every parameter."""
    options = {"n_heads": 2} | options
    layer = randomise(MultipoleAttention.published(4, **options))
    plain = plain_published.PlainPublished(4, **options).double()
    plain.load_state_dict(layer.state_dict())
    x = draw(2, 4, *shape).requires_grad_()
    ours, theirs = layer(x), plain(x)
    assert_same(theirs, ours)
    assert_same(gradients(plain, theirs, x), gradients(layer, ours, x))


@pytest.mark.parametrize(("shape", "options"), [((12, 8), {}), ((8, 8), {"window": 3, "stride": 2})])
def test_the_plain_layer_refuses_grids_that_windows_or_cells_do_not_cover(shape, options):
    plain = plain_published.PlainPublished(4, 2, **({"n_levels": 4} | options))
    with pytest.raises(InputError, match="cover evenly on every level"):
        plain(torch.zeros(1, 4, *shape))


# The transformers.


def test_dense_attention_is_the_same_with_its_scores_kept():
    shape = {"hidden_channels": 8, "n_layers": 2, "n_heads": 2}
    kernel, plain = (rivals.dense_transformer(1, 2, plain=plain, **shape).double() for plain in (False, True))
    plain.load_state_dict(kernel.state_dict())
    x = draw(2, 1, 4, 6)
    assert_same(kernel(x), plain(x))


@pytest.mark.parametrize("shift", [0, 2])
def test_shifted_windows_are_dense_attention_with_a_mask(shift):
    """Two points see each other if no border of a window, and no end of the grid, is between them."""
    n, w, heads = 8, 4, 2
    attend = randomise(rivals.ShiftedWindowAttention(4, heads, window=w, shift=shift))
    x = draw(2, n, n, 4)
    of_window = (torch.arange(n) - shift).div(w, rounding_mode="floor")
    points = torch.cartesian_prod(torch.arange(n), torch.arange(n))
    together = (of_window[points][:, None] == of_window[points]).all(-1)
    offset = points[None] - points[:, None]  # from query to key
    entry = (offset + w - 1).clamp(0, 2 * w - 2) @ torch.tensor([2 * w - 1, 1])
    scores = attend.bias[entry].permute(2, 0, 1).masked_fill(~together, -torch.inf)
    q, k, v = attend.qkv(x.flatten(1, 2)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    found = ((q @ k.mT * q.shape[-1] ** -0.5 + scores).softmax(-1) @ v).transpose(1, 2).flatten(2)
    expected = attend.out(found).view(x.shape)
    assert_same(attend(x), expected)  # as in training
    with torch.no_grad():
        assert_same(attend(x), expected)


# Costs.


def exponents(costs, points):
    """Of the number of points, from each grid to the next larger one."""
    return [
        math.log(b / a) / math.log(m / n)
        for (a, b), (n, m) in zip(pairwise(costs), pairwise(points), strict=True)
    ]


@pytest.mark.parametrize(("n_dim", "sizes"), [(2, (32, 64, 256)), (3, (8, 16, 32))])
def test_costs_of_mano_grow_as_the_number_of_points(n_dim, sizes):
    """At most: what does not grow, such as the memory of a chunk, weighs more on small grids.

    There are as many levels as cover each grid, as is the default.
    """
    points = [n**n_dim for n in sizes]
    flops, forward, training = [], [], []
    for n in sizes:
        model = MANO(1, 1, hidden_channels=16, n_layers=1, n_dim=n_dim, reference_shape=(n,) * n_dim)
        x = torch.randn(1, 1, *[n] * n_dim)
        flops.append(count_flops(model, x))
        forward.append(peak_bytes_of(speed.forward(model, x)))
        training.append(peak_bytes_of(speed.training_step(model, x)))
    for costs in (flops, forward, training):
        assert max(exponents(costs, points)) <= 1.05
        assert exponents(costs, points)[-1] > 0.6


def test_attention_between_all_points_grows_as_their_square():
    """The same measure on what is not linear, so that the test above can fail."""
    sizes, shape = (8, 16, 32), {"hidden_channels": 16, "n_layers": 1, "n_heads": 4}
    points = [n**2 for n in sizes]
    whole, scores, training = [], [], []
    for n in sizes:
        x = torch.zeros(1, 1, n, n)
        model = rivals.dense_transformer(1, 1, plain=True, **shape)
        whole.append(count_flops(model, x))
        linear = 2 * n**2 * sum(p.numel() for p in model.parameters() if p.ndim == 2)
        scores.append(whole[-1] - linear)
        training.append(peak_bytes_of(speed.training_step(model, x)))
    assert scores == [2 * 2 * n**2 * 16 for n in points]
    assert exponents(scores, points) == pytest.approx([2, 2])
    assert exponents(whole, points)[-1] > 1.5
    assert exponents(training, points)[-1] > 1.5


@pytest.mark.parametrize(("n", "most"), [(32, 1.45), (64, 1.4)])
def test_operations_of_a_block_are_near_those_of_its_products(n, most):
    """By hand as in docs/performance.md: 16 C^2 a point for the products alone, and what comes beside."""
    c, keys = 64, 36
    x = torch.zeros(1, c, n, n)
    [block] = MANO(1, 1, hidden_channels=c, n_layers=1, reference_shape=(n, n)).blocks
    products = count_flops(speed.Products(c), x)
    assert products == 16 * c**2 * n**2
    levels = sum(4.0**-i for i in range(int(math.log2(n)) - 1))
    expected = (8 * c**2 + 4 * keys * c) * levels + 8 * c**2
    found = count_flops(block, x)
    # Beside: stencils of 9 points, and the position bias, which does not grow.
    assert expected * n**2 < found < 1.03 * expected * n**2
    assert found < most * products


# The script.


def run(*arguments):
    speed.main([*arguments, "--quick"])


def test_a_quick_run_writes_its_numbers_and_keeps_those_of_other_rows(tmp_path, capsys):
    out = tmp_path / "speed.json"
    run("published", "--out", str(out))
    run("floor", "swin", "--out", str(out))
    report = json.loads(out.read_text())
    assert set(report["rows"]) == {"published", "floor", "swin"}
    assert report["quick"]
    assert report["machine"]["threads"] == torch.get_num_threads() == 1
    entries = [entry for row in report["rows"].values() for entry in row["entries"]]
    assert all(entry["ratio"] > 0 and entry["noise"] >= 0 for entry in entries)
    lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith("| ")]
    assert len(lines) == 2 + len(entries)  # and two headings
    assert {text.count(" | ") for text in lines} == {speed.HEADING.count(" | ")}


def test_comparing_flags_a_ratio_that_is_worse_than_kept_and_writes_nothing(tmp_path, capsys):
    out = tmp_path / "speed.json"
    run("published", "--out", str(out))
    report = json.loads(out.read_text())
    for factor, worse in ((1e3, False), (1e-3, True)):  # the file's ratios, far from any noise
        doctored = json.loads(json.dumps(report))
        for entry in doctored["rows"]["published"]["entries"]:
            entry.update(ratio=entry["ratio"] * factor, noise=0.1)
        out.write_text(before := json.dumps(doctored))
        capsys.readouterr()
        if worse:
            with pytest.raises(SystemExit) as stopped:
                run("published", "--compare", "--out", str(out))
            assert stopped.value.code == 1
        else:
            run("published", "--compare", "--out", str(out))
        assert ("WORSE" in capsys.readouterr().out) == worse
        assert out.read_text() == before
    out.unlink()
    run("published", "--compare", "--out", str(out))
    assert "to compare with" in capsys.readouterr().out
    assert not out.exists()


def test_the_noise_of_both_runs_is_allowed_for():
    def rows(ratio, noise):
        return {"row": {"entries": [{"case": "case", "ratio": ratio, "noise": noise}]}}

    assert not speed.compare(rows(1.0, 0.0), rows(1.14, 0.0))[1]
    assert speed.compare(rows(1.0, 0.0), rows(1.16, 0.0))[1]
    assert not speed.compare(rows(1.0, 0.3), rows(1.29, 0.0))[1]
    assert not speed.compare(rows(1.0, 0.0), rows(1.29, 0.3))[1]
    assert speed.compare(rows(1.0, 0.3), rows(1.31, 0.0))[1]
    assert speed.compare({}, rows(2.0, 0.0)) == (["row, case: not in the file"], False)
    failed = {"row": {"entries": [{"case": "case", "failed": "an error"}]}}
    assert speed.compare(rows(1.0, 0.0), failed)[1]


def test_an_exponent_is_found():
    """Seconds that grow as points^1.5 are 4 times as many a point on 16 times as many points."""
    points = [100, 400, 1600]
    times = {str(n): [1e-6 * n**1.5] * 3 for n in points}
    entry = speed.of_growth("growth", times, points, speed.of_times)
    assert entry["ratio"] == pytest.approx(4)
    assert entry["exponent"] == pytest.approx(1.5)
    assert entry["fitted exponent"] == pytest.approx(1.5)
    assert entry["wanted"] == pytest.approx(16**0.05)
    assert entry["of"]["100"]["median"] == pytest.approx(1e6 * 1e-6 * 100**0.5)  # us a point
    assert entry["whole steps"]["1600"] == pytest.approx(1e3 * 1e-6 * 1600**1.5)  # ms


@pytest.mark.parametrize("arguments", [["swim"], ["compile"], ["--threads", "0"]])
def test_what_there_is_not_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
