"""Turned and mirrored samples: solutions of the same problem, checked with its solver."""

import pytest
import torch

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.darcy import solve_darcy
from mano_op.train.symmetry import Symmetries


def turner(names, grid, boundary=(0.0,), seed=0):
    return Symmetries(names, grid, list(boundary), torch.Generator().manual_seed(seed))


def positions(turn, x, y, draws=64):
    """The different positions that many draws show, as pairs."""
    found = {}
    for _ in range(draws):
        a, u = turn(x, y)
        found.setdefault((tuple(a.flatten().tolist()), tuple(u.flatten().tolist())), (a, u))
    return list(found.values())


@pytest.mark.parametrize("registration", ["cell", "node_both"])
def test_every_position_is_a_solution_of_darcy_flow(registration):
    """Where points go to points, the solver gives the turned pressure for the turned permeability."""
    grid = Grid.uniform((7, 7), registration=registration)
    a = 1 + torch.rand(7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u = torch.as_tensor(solve_darcy(a.numpy(), grid))
    found = positions(turner(["transpose", "reflect"], grid), a[None, None], u[None, None])
    assert len(found) == 8
    for turned, pressure in found:
        expected = torch.as_tensor(solve_darcy(turned[0, 0].numpy(), grid))
        torch.testing.assert_close(pressure[0, 0], expected, rtol=1e-10, atol=1e-14)


def test_nodes_without_their_right_end_take_what_is_known_there():
    """Point i goes to n - i; u(1) = 3 stands where u(0) was, and the input's nearest value."""
    grid = Grid.uniform((4, 5))
    x, y = torch.arange(20.0).view(1, 1, 4, 5), 100 + torch.arange(20.0).view(1, 1, 4, 5)
    found = positions(turner(["reflect"], grid, [{"y": (3.0, 3.0), "x": (7.0, 3.0)}]), x, y)
    assert len(found) == 4
    for a, u in found:
        if u[0, 0, 1, 0] == 3 and u[0, 0, 0, 1] != 3:  # only x is turned
            assert torch.equal(a[0, 0], x[0, 0][:, [4, 4, 3, 2, 1]])
            assert torch.equal(u[0, 0, :, 1:], y[0, 0][:, [4, 3, 2, 1]])
            assert (u[0, 0, :, 0] == 3).all()
            break
    else:
        pytest.fail("no draw turned x alone")


def test_periodic_nodes_are_mirrored_round_the_axis():
    grid = Grid.uniform((6,), periodic=True)
    x = torch.arange(6.0).view(1, 1, 6)
    for a, u in positions(turner(["reflect"], grid, [None]), x, -x):
        assert torch.equal(u, -a)
        assert a.flatten().tolist() in ([0, 1, 2, 3, 4, 5], [0, 5, 4, 3, 2, 1])


def test_draws_follow_from_the_seed():
    grid, x = Grid.uniform((4, 4)), torch.rand(1, 1, 4, 4)
    one, same, other = (turner(["transpose", "reflect"], grid, seed=seed) for seed in (0, 0, 1))
    draws = [[turn(x, x)[0] for _ in range(8)] for turn in (one, same, other)]
    assert all(map(torch.equal, draws[0], draws[1]))
    assert not all(map(torch.equal, draws[0], draws[2]))


@pytest.mark.parametrize(
    ("names", "grid", "boundary", "message"),
    [
        (
            ["transpose"],
            Grid.uniform((4, 5)),
            [0.0],
            "but no two axes of .* are alike: leave out 'transpose'",
        ),
        (
            ["transpose"],
            Grid((Axis("y", 4), Axis("x", 4, stop=2.0))),
            [0.0],
            "but no two axes of .* are alike",
        ),
        (["reflect"], Grid.uniform((4,)), [None], "the first point of x was its right end, .* state them"),
    ],
)
def test_symmetries_that_a_grid_does_not_have_are_refused(names, grid, boundary, message):
    with pytest.raises(InputError, match=message):
        turner(names, grid, boundary)
