import itertools

import numpy as np
import pytest

from mano_op.errors import InputError
from mano_op.problems.draws import normal_coefficients
from mano_op.problems.random_field import GaussianRandomField


@pytest.mark.parametrize(("n_modes", "n_dim"), [(7, 1), (5, 2), (4, 3)])
def test_numbers_are_handed_out_shell_by_shell(n_modes, n_dim):
    sequence = np.random.SeedSequence([3, 1], spawn_key=(4,))
    stream = iter(np.random.default_rng(sequence).standard_normal(n_modes**n_dim))
    xi = normal_coefficients((3, 1), 4, n_modes, n_dim)
    for shell in range(n_modes):
        for mode in itertools.product(range(shell + 1), repeat=n_dim):
            if max(mode) == shell:
                assert xi[mode] == next(stream)


def test_are_those_of_the_random_field_with_zero_slope():
    random_field = GaussianRandomField(n_modes=6)
    expected = random_field.coefficients((0, 7), 2, [1.0, 1.0])
    xi = normal_coefficients((0, 7), 2, 6, 2)
    np.testing.assert_array_equal(random_field.amplitudes([1.0, 1.0]) * xi, expected)


def test_depend_on_seed_and_number_alone():
    others = [normal_coefficients(seed, i, 4, 2) for seed in (3, 4, (3, 1), (3, 2)) for i in range(3)]
    assert np.unique(others).size == 12 * 16
    np.testing.assert_array_equal(normal_coefficients((3,), 1, 4, 2), others[1])
    np.testing.assert_array_equal(normal_coefficients(np.int64(3), np.int64(1), 4, 2), others[1])


@pytest.mark.parametrize("seed", [-1, 0.5, (), (1, -2), "7"])
def test_refuses_seeds_that_are_none(seed):
    with pytest.raises(InputError, match="seed="):
        normal_coefficients(seed, 0, 4, 2)


@pytest.mark.parametrize("index", [-1, 1.0])
def test_refuses_numbers_that_are_none(index):
    with pytest.raises(InputError, match=f"index={index}; expected the number of a draw"):
        normal_coefficients(0, index, 4, 2)
