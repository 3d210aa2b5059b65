"""Recipes name data sets that can be made, and those kept with the project can."""

from pathlib import Path

import numpy as np
import pytest

from mano_op.cli import main
from mano_op.data.check import check_store
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.problems.darcy import Darcy
from mano_op.problems.generate import generate_fields, problem_grid, split_seed
from mano_op.problems.recipes import PROBLEMS, problem_of, read_recipe

DATA = Path(__file__).parents[1] / "data"
STORES = sorted((DATA / "stores").glob("*.zarr"))
RECIPES = sorted((DATA / "recipes").glob("*.toml"))


def test_there_is_a_recipe_of_every_problem():
    assert {read_recipe(path).problem for path in RECIPES} == set(PROBLEMS)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_made(path):
    recipe = read_recipe(path)
    problem = problem_of(recipe.problem, recipe.options)
    grids = [problem_grid(problem, n, recipe.registration) for n in recipe.resolutions]
    assert len(set(problem.solvers(grids, recipe.solver_resolution).values())) == 1
    problem.check(split_seed(recipe.seed, "train"), grids)


def test_a_ready_store_is_kept_of_every_small_recipe():
    assert STORES
    assert {path.stem for path in STORES} == {path.stem for path in RECIPES if path.stem.startswith("small_")}


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_a_ready_store_is_what_its_recipe_makes(path, tmp_path):
    assert check_store(path, progress=False) == []
    recipe = RECIPES[0].with_name(f"{path.stem}.toml")
    assert main(["generate", str(recipe), str(tmp_path / "made.zarr"), "--quiet"]) == 0
    kept, made = open_store(path), open_store(tmp_path / "made.zarr")
    assert kept.layout == made.layout
    for key in kept.grids:
        for variable in kept.variables:
            # Another machine's BLAS or FFT may round differently.
            np.testing.assert_allclose(
                kept.read(key, variable.name), made.read(key, variable.name), rtol=1e-4, atol=1e-6
            )


def test_a_recipe_and_its_flags_make_what_they_say(tmp_path):
    (tmp_path / "small.toml").write_text(
        'problem = "darcy"\nresolutions = [8, [8, 16]]\nseed = 3\nsolver_resolution = 32\n'
        '[samples]\ntrain = 3\nhard = 2\n[options]\nn_modes = 16\ncoefficient = "lognormal"\n'
    )
    command = ["generate", str(tmp_path / "small.toml"), str(tmp_path / "made.zarr"), "--quiet"]
    assert main([*command, "--option", "forcing=2.0", "--test", "1"]) == 0
    made = open_store(tmp_path / "made.zarr")
    expected = generate_fields(
        tmp_path / "expected.zarr",
        Darcy(n_modes=16, coefficient="lognormal", forcing=2.0),
        [8, (8, 16)],
        samples={"train": 3, "hard": 2, "test": 1},
        seed=3,
        solver_resolution=32,
        progress=False,
    )
    assert made.splits == expected.splits and made.grids == expected.grids
    for key in made.grids:
        for name in ("permeability", "pressure"):
            np.testing.assert_array_equal(made.read(key, name), expected.read(key, name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"neither a problem \(darcy, .*\) nor a file"),
        ("problem = ", "is no TOML"),
        ('problem = "darcy"\n', "has no resolutions, samples"),
        ('problem = "darcy"\nresolution = [8]\n', r"key 'resolution'; .* did you mean 'resolutions'\?"),
    ],
)
def test_what_is_no_recipe_is_refused(tmp_path, content, message):
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_problems_and_options_that_there_are_not():
    with pytest.raises(InputError, match=r"problem 'darci'; .* did you mean 'darcy'\?"):
        problem_of("darci", {})
    with pytest.raises(InputError, match="darcy has no option 'viscosity'; it has coefficient"):
        problem_of("darcy", {"viscosity": 1.0})
    with pytest.raises(InputError, match=r"darcy with {'values': 3}: .*see its docstring"):
        problem_of("darcy", {"values": 3})
