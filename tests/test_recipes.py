"""Recipes name data sets that can be made; those kept with the project are."""

from dataclasses import fields, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.cli import main
from mano_op.data.check import check_store
from mano_op.data.store import open_store
from mano_op.errors import InputError
from mano_op.problems.darcy import Darcy
from mano_op.problems.generate import generate_fields, problem_grid, split_seed
from mano_op.problems.recipes import PROBLEMS, Recipe, problem_of, read_recipe

DATA = Path(__file__).parents[1] / "data"
STORES = sorted((DATA / "stores").glob("*.zarr"))
RECIPES = sorted((DATA / "recipes").glob("*.toml"))


def test_recipes_cover_every_problem_and_stores_every_small_recipe():
    assert {read_recipe(path).problem for path in RECIPES} == set(PROBLEMS)
    assert STORES
    assert {path.stem for path in STORES} == {path.stem for path in RECIPES if path.stem.startswith("small_")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_samples_one_solution_at_all_levels(path):
    recipe = read_recipe(path)
    problem = problem_of(recipe.problem, recipe.options)
    grids = [problem_grid(problem, n, recipe.registration) for n in recipe.resolutions]
    assert len(set(problem.solvers(grids, recipe.solver_resolution).values())) == 1
    problem.inputs(split_seed(recipe.seed, "train"), 0, grids[0])


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.stem)
def test_kept_store_holds_the_first_samples_of_its_recipe(path, tmp_path):
    assert check_store(path, progress=False) == []
    kept, recipe = open_store(path), read_recipe(DATA / "recipes" / f"{path.stem}.toml")
    assert kept.splits == recipe.samples
    few = replace(recipe, samples=dict.fromkeys(recipe.samples, 2))
    new = generate_fields(
        tmp_path / "new.zarr", problem_of(few.problem, few.options), few.resolutions, samples=few.samples,
        seed=few.seed, registration=few.registration, solver_resolution=few.solver_resolution, progress=False,
    )  # fmt: skip
    assert (kept.grids, kept.variables, kept.layout.times) == (new.grids, new.variables, new.layout.times)
    for key, variable, split in product(kept.grids, kept.variables, kept.splits):
        values, expected = (
            store.read(key, variable.name, store.layout.rows(key, split))[:2] for store in (kept, new)
        )
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6)  # BLAS and FFT round differently


def test_flags_of_the_command_line_replace_values_of_a_recipe(tmp_path):
    (tmp_path / "small.toml").write_text(
        'problem = "darcy"\nresolutions = [8, [8, 16]]\nseed = 3\nsolver_resolution = 32\n'
        '[samples]\ntrain = 3\nhard = 2\n[options]\nn_modes = 16\ncoefficient = "lognormal"\n'
    )
    command = ["generate", str(tmp_path / "small.toml"), str(tmp_path / "new.zarr"), "--quiet"]
    assert main([*command, "--option", "forcing=2.0", "--samples", "test=1"]) == 0
    new = open_store(tmp_path / "new.zarr")
    expected = generate_fields(
        tmp_path / "expected.zarr",
        Darcy(n_modes=16, coefficient="lognormal", forcing=2.0),
        [8, (8, 16)],
        samples={"train": 3, "hard": 2, "test": 1},
        seed=3,
        solver_resolution=32,
        progress=False,
    )
    assert new.splits == expected.splits and new.grids == expected.grids
    for key in new.grids:
        for name in ("permeability", "pressure"):
            np.testing.assert_array_equal(new.read(key, name), expected.read(key, name))


# A value of each key that is refused, and the message: the key, the value and what is expected.
REFUSED = [
    ("problem", 3, "problem=3, expected a valid string"),
    ("problem", "darci", r"problem 'darci'; expected one of darcy, .*; did you mean 'darcy'\?"),
    ("resolutions", 16, "resolutions=16, expected a valid list"),
    ("resolutions", [], r"resolutions=\[\]: List should have at least 1 item"),
    ("resolutions", [8.5], "resolutions=8.5, expected a whole number, at least 1"),
    ("resolutions", [8, True], "resolutions=True, expected a whole number"),
    ("resolutions", [8, [8, -16]], r"resolutions=\[8, -16\], expected a whole number"),
    ("resolutions", [[]], r"resolutions=\[\], expected a whole number"),
    ("samples", 5, "samples: splits=5; expected the number of samples of each"),
    ("samples", {}, r"samples: splits=\{\}; expected the number of samples of each"),
    ("samples", {"train": 0}, "samples: samples of split 'train'=0, expected a whole number, at least 1"),
    ("samples", {"train": {"n": 3}}, r"samples of split 'train'=\{'n': 3\}, expected a whole number"),
    ("samples", {"": 3}, r"samples: splits=\{'': 3\}; expected the number of samples of each by its name"),
    ("seed", -1, "seed=-1, expected a whole number, at least 0"),
    ("registration", "nodes", "registration='nodes', expected 'node', 'node_both' or 'cell'"),
    ("solver_resolution", "x", "solver_resolution='x', expected a whole number, at least 1"),
    ("options", 3, "options=3, expected a valid dictionary"),
    ("options", {"viscosity": 1.0}, "there is no option viscosity=1.0 of Darcy: it has coefficient, values"),
    ("options", {"values": 3}, "values=3, expected a valid tuple"),
    ("options", {"values": [3, "x"]}, "values='x', expected a finite number"),
    ("options", {"tau": True}, "tau=True, expected a finite number, more than 0"),
    ("options", {"tau": 10**400}, "tau=10+, expected a finite number, more than 0"),
    ("options", {"n_modes": 16.0}, "n_modes=16.0, expected a whole number"),
    ("options", {"coefficient": 3}, "coefficient=3, expected 'piecewise' or 'lognormal'"),
    ("sead", 3, r"there is no option sead=3 of Recipe; did you mean 'seed'\?"),
]
GOOD = {"problem": "darcy", "resolutions": [8], "samples": {"train": 2}}


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_values_that_cannot_be_used_are_refused(key, value, message):
    Recipe(**GOOD)
    with pytest.raises(InputError, match=message):
        Recipe(**GOOD | {key: value})


def test_options_beyond_floating_point_are_refused():
    message = r"burgers with {'tau': 1e\+200} cannot be computed .*the defaults: tau=5.0"
    with pytest.raises(InputError, match=message):
        problem_of("burgers", {"tau": 1e200})
    with pytest.raises(InputError, match=r"n_modes.*Maximum allowed size exceeded"):
        problem_of("burgers", {"n_modes": 2**70})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "neither a problem (darcy, "),
        ("problem = ", "recipe.toml: Invalid value (at end of document)"),
        ('problem = "darcy"', "recipe.toml: resolutions is missing: give resolutions="),
        ("resolutions = 16", "recipe.toml: resolutions=16, expected a valid list"),
        ("options = {n_modes = false}", "n_modes=False, expected a whole number"),
        ("seed = 2020-01-01", "datetime.date(2020, 1, 1), expected a whole number"),
    ],
)
def test_bad_file_is_refused_in_one_line_and_nothing_is_written(tmp_path, capsys, content, message):
    path = tmp_path / "recipe.toml"
    if content is not None:
        rest = ['problem = "darcy"', "resolutions = [8]", "samples = {train = 2}"]
        whole = content.startswith("problem")
        path.write_text("\n".join([content, *(() if whole else [r for r in rest if r[:5] != content[:5]])]))
    assert main(["generate", str(path), str(tmp_path / "new.zarr"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mano-op: {path}") and message in said and said.count("\n") == 1
    assert not (tmp_path / "new.zarr").exists()


# No numbers in between: a recipe of a million modes or steps is valid, but exceeds the memory.
NUMBERS = st.integers(-3, 40) | st.integers(2**63, 2**70) | st.just(10**400) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = sorted({option.name for problem in PROBLEMS.values() for option in fields(problem)})
# Mostly valid values, so that every check is reached.
NEARLY = {
    "problem": st.sampled_from(sorted(PROBLEMS)),
    "resolutions": st.lists(st.integers(1, 20) | st.lists(st.integers(1, 20), max_size=3), max_size=3),
    "samples": st.dictionaries(st.sampled_from(["train", "test"]), st.integers(0, 9)),
    "seed": st.integers(0, 9),
    "registration": st.sampled_from(["node", "node_both", "cell"]),
    "solver_resolution": st.none() | st.integers(1, 300),
    "options": st.dictionaries(st.sampled_from(OPTIONS), SCALARS | st.lists(NUMBERS, max_size=2), max_size=2),
}
MAPPINGS = st.fixed_dictionaries(
    {}, optional={key: st.one_of(values, values, values, JSON) for key, values in NEARLY.items()}
) | st.dictionaries(st.sampled_from(sorted(NEARLY)) | st.text(max_size=5), JSON)


@settings(max_examples=100)
@given(MAPPINGS)
def test_any_mapping_is_a_recipe_or_refused(content):
    try:
        recipe = Recipe(**content)
    except InputError:
        return
    assert {key: getattr(recipe, key) for key in content} == content
    assert problem_of(recipe.problem, recipe.options).name == recipe.problem
