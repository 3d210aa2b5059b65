import pytest
from hypothesis import given
from hypothesis import strategies as st

from mano_op.errors import InputError
from mano_op.grid import Axis, Grid
from mano_op.problems.spectral_grid import spectral_grids

DOMAIN = [(-1.0, 2.0), (0.0, 0.7)]
shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@given(st.lists(shapes, min_size=1, max_size=4), st.integers(1, 64), st.booleans())
def test_one_grid_that_is_no_coarser_than_the_levels(shapes, at_least, periodic):
    levels = [Grid.uniform(shape, domain=DOMAIN, periodic=periodic) for shape in shapes]
    solvers = spectral_grids(levels, None, at_least=at_least, periodic=periodic)
    assert set(solvers) == set(levels)
    (solver,) = set(solvers.values())
    finest = max(at_least, *(n for shape in shapes for n in shape))
    n = finest if finest % 2 == 0 else finest + 1
    assert solver == Grid(
        tuple(
            Axis(name, n, *ends, "node" if periodic else "cell", periodic)
            for name, ends in zip("yx", DOMAIN, strict=True)
        )
    )


def test_takes_the_resolution_asked_for():
    grid = Grid.uniform((80,), periodic=True)
    solver = spectral_grids([grid], 32, at_least=32, periodic=True)[grid]  # coarser than the level
    assert solver == Grid.uniform((32,), periodic=True)


def test_refuses_what_no_series_can_hold():
    wraps, ends = Grid.uniform((16, 16), periodic=True), Grid.uniform((16, 16))
    with pytest.raises(InputError, match="no grids"):
        spectral_grids([], None, at_least=8, periodic=True)
    with pytest.raises(InputError, match="different domains"):
        elsewhere = Grid.uniform((16, 16), periodic=True, domain=[(0, 1), (0, 2)])
        spectral_grids([wraps, elsewhere], None, at_least=8, periodic=True)
    with pytest.raises(InputError, match="axis 'y' is not periodic, but the fields wrap"):
        spectral_grids([wraps, ends], None, at_least=8, periodic=True)
    with pytest.raises(InputError, match="axis 'x' is periodic, but the problem has a boundary"):
        mixed = Grid.uniform((16, 16), periodic=[False, True])
        spectral_grids([mixed], None, at_least=8, periodic=False)
    for resolution in (6, 31):
        with pytest.raises(InputError, match=f"solver resolution of {resolution}; expected an even number"):
            spectral_grids([wraps], resolution, at_least=8, periodic=True)
    with pytest.raises(InputError, match=r"solver_resolution=8\.0"):
        spectral_grids([wraps], 8.0, at_least=8, periodic=True)
