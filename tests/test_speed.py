"""How costs grow, counted and not timed; the plain layer that the benchmark compares with; its script."""

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
from mano_op.memory import peak_bytes_of


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((8, 8), {"n_heads": 1}),  # no linear map at the end
        ((16, 16), {"head_dim": 3, "window": 4, "stride": 2, "n_levels": 3, "sampling": "avg_pool"}),
        ((9, 27), {"window": 3, "stride": 3, "rate": 3}),
    ],
)
def test_the_plain_layer_matches_the_published_one(shape, options):
    """In double precision: outputs, and gradients of the input and of every parameter."""
    options = {"n_heads": 2} | options
    layer = randomise(MultipoleAttention.published(4, **options))
    plain = plain_published.PlainPublished(4, **options).double()
    plain.load_state_dict(layer.state_dict())
    x = draw(2, 4, *shape).requires_grad_()
    ours, theirs = layer(x), plain(x)
    assert_same(theirs, ours)
    assert_same(gradients(plain, theirs, x), gradients(layer, ours, x))


def exponents(costs, points):
    """Of the number of points, from each grid to the next larger one."""
    logarithms = ([math.log(value) for value in values] for values in (costs, points))
    return [(d - c) / (n - m) for (c, d), (m, n) in zip(*map(pairwise, logarithms), strict=True)]


@pytest.mark.parametrize(("n_dim", "sizes"), [(2, (32, 64, 128)), (3, (8, 16, 24))])
def test_costs_of_mano_grow_as_the_number_of_points(n_dim, sizes):
    """At most: what does not grow, such as the memory of a chunk, weighs more on small grids.

    There are as many levels as cover each grid, as is the default.
    """
    costs = []
    for n in sizes:
        model = MANO(1, 1, hidden_channels=16, n_layers=1, n_dim=n_dim, reference_shape=(n,) * n_dim)
        x = torch.randn(1, 1, *[n] * n_dim)
        steps = speed.forward(model, x), speed.training_step(model, x)
        costs.append([count_flops(model, x), *map(peak_bytes_of, steps)])
    for of_each in zip(*costs, strict=True):
        grown = exponents(of_each, [n**n_dim for n in sizes])
        assert max(grown) <= 1.05 and grown[-1] > 0.6


def test_costs_of_attention_between_all_points_grow_as_their_square():
    """The same measure on what is not linear, so that the test above can fail."""
    sizes, shape = (8, 16, 32), {"hidden_channels": 16, "n_layers": 1, "n_heads": 4}
    costs = []
    for n in sizes:
        model, x = rivals.dense_transformer(1, 1, plain=True, **shape), torch.zeros(1, 1, n, n)
        costs.append([count_flops(model, x), peak_bytes_of(speed.training_step(model, x))])
    for of_each in zip(*costs, strict=True):
        assert exponents(of_each, [n**2 for n in sizes])[-1] > 1.5


@pytest.mark.parametrize(("n", "most"), [(32, 1.45), (64, 1.4)])
def test_operations_of_a_block_are_near_those_of_its_products(n, most):
    """By hand as in docs/performance.md: 16 C^2 a point for the products alone, and what comes beside."""
    c, keys = 64, 36
    x = torch.zeros(1, c, n, n)
    [block] = speed.mano(n, hidden_channels=c, n_layers=1).blocks
    products = count_flops(speed.Products(c), x)
    assert products == 16 * c**2 * n**2
    levels = sum(4.0**-i for i in range(int(math.log2(n)) - 1))
    expected = ((8 * c**2 + 4 * keys * c) * levels + 8 * c**2) * n**2
    # Beside: stencils of 9 points, and the position bias, which does not grow.
    assert expected < count_flops(block, x) < min(1.03 * expected, most * products)


def test_a_quick_run_of_the_benchmark_writes_ratios_and_compares_them(tmp_path, capsys):
    out = tmp_path / "speed.json"
    speed.main(["floor", "--out", str(out), "--quick"])
    report = json.loads(out.read_text())
    [row] = report["rows"].values()
    for entry in row["entries"]:
        assert entry["ratio"] > 0 and entry["noise"] >= 0
        entry.update(ratio=entry["ratio"] / 1e3, noise=0.1)
    out.write_text(json.dumps(report))
    with pytest.raises(SystemExit, match="1"):
        speed.main(["floor", "--compare", "--out", str(out), "--quick"])
    assert "WORSE" in capsys.readouterr().out
