"""A model's output at walls and beside them."""

import pytest
import torch
from test_multipole import assert_same, draw

from mano_op import MANO
from mano_op.grid import Grid
from mano_op.layers.refinement import Refinement
from mano_op.models.walls import Walls

G = 0.75  # the known value


def fields(registration, n, polynomials):
    """Products of a polynomial of each axis on a grid, one channel each."""
    axes = [torch.from_numpy(axis.points) for axis in Grid.uniform((n, n), registration=registration)]
    return torch.stack([p(axes[0])[:, None] * p(axes[1]) for p in polynomials])[None]


def beside(registration, walls, polynomials, *, reference=8, n=24):
    """What becomes of zeros on a finer grid, by parts, given polynomials on the reference."""
    place = Refinement(Grid.uniform((reference,) * 2, registration=registration), (n, n))
    on_reference, out = (
        fields(registration, reference, polynomials),
        torch.empty(1, len(polynomials), n, n).double(),
    )
    for part in place.parts(60):
        rows, columns = (torch.arange(n)[axis.places] for axis in part.axes)
        zeros = torch.zeros(1, len(polynomials), *part.shape, dtype=torch.float64)
        out[..., rows[:, None], columns] = walls.interpolate(zeros, on_reference, part)
    return out


def strips(registration, *, reference=8, n=24):
    """Whether a point is less than three spacings of the reference from a wall."""
    [axis] = Grid.uniform((n,), registration=registration)
    intervals = Grid.uniform((reference,), registration=registration).axes[0].intervals
    distance = torch.from_numpy(axis.points).minimum(1 - torch.from_numpy(axis.points)) * intervals
    return (distance[:, None] < 3 - 1e-9) | (distance < 3 - 1e-9)


@pytest.mark.parametrize("registration", ["node", "node_both"])
def test_strips_along_walls_are_interpolated_and_all_else_is_kept(registration):
    """Parabolas are exact, whether they have the known value at the walls or none is known."""
    n = 25 if registration == "node_both" else 24
    reference = 9 if registration == "node_both" else 8
    bounded, parabola = (lambda x: x * (1 - x)), (lambda x: 1 + x - 3 * x**2)
    walls = Walls([0.0, None], strips=True)
    sizes = {"reference": reference, "n": n}
    expected = fields(registration, n, [bounded, parabola]) * strips(registration, **sizes)
    assert_same(beside(registration, walls, [bounded, parabola], **sizes), expected)


def test_cells_go_through_a_ghost_of_the_known_value_and_are_left_alone_without():
    parabola = [lambda x: 5 * x * (1 - x)] * 2
    found = beside("cell", Walls([0.0, None], strips=True), parabola)
    assert_same(found[:, :1], fields("cell", 24, parabola[:1]) * strips("cell"))
    assert not found[:, 1].any()


def test_channels_without_a_known_value_are_left_alone_where_strips_are_not_asked_for():
    found = beside("node", Walls([0.0, None], strips=False), [lambda x: x * (1 - x)] * 2)
    assert found[:, 0].any() and not found[:, 1].any()


@pytest.mark.parametrize("registration", ["node", "cell", "node_both"])
@pytest.mark.parametrize("reference", [(2, 3), (1, 9), (5, 6)])
def test_constants_beside_walls_stay_constant_on_every_reference(registration, reference):
    if registration == "node_both" and 1 in reference:
        return
    place = Refinement(Grid.uniform(reference, registration=registration), (13, 17))
    out = Walls([G], strips=True).interpolate(
        torch.full((1, 1, 13, 17), G).double(), torch.full((1, 1, *reference), G).double(), place.whole
    )
    assert_same(out, torch.full_like(out, G))


@pytest.mark.parametrize("options", [{"n_modes": 2}, {"boundary_values": [G]}, {"n_modes": 2, "norm": False}])
@pytest.mark.parametrize("restriction", ["average", "sample"])
def test_a_model_has_at_the_points_of_its_reference_what_restriction_gives(options, restriction):
    torch.manual_seed(0)
    small = {"hidden_channels": 8, "n_layers": 2, "n_heads": 2, "reference_shape": (6, 5)}
    model = MANO(1, 1, restriction=restriction, **small, **options).double().eval()
    x = draw(2, 1, 18, 15)
    place = Refinement(Grid.uniform((6, 5)), (18, 15), sampled=restriction == "sample")
    assert_same(model(x)[..., ::3, ::3], model(place.anchors(x)))
    if restriction == "sample":
        assert_same(model(x)[..., ::3, ::3], model(x[..., ::3, ::3]))
    with torch.no_grad():
        assert_same(model(x), model(x.requires_grad_()).detach())
