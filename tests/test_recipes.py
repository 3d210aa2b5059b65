"""Recipes name data sets that can be made, and those kept with the project can."""

from dataclasses import fields
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
from mano_op.problems.recipes import PROBLEMS, problem_of, read_recipe, recipe_of

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
        ('problem = "darcy"\n', "recipe.toml: no resolutions, samples; expected at least problem"),
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
    with pytest.raises(
        InputError, match=r"burgers with {'tau': 1e\+200} cannot be computed .*the defaults: tau=5.0"
    ):
        problem_of("burgers", {"tau": 1e200})


# A value of each key that cannot be used, and what is said of it: its key, itself, and what to write.
WRONG = [
    ("problem", 3, r"problem 3; expected one of darcy, poisson, .*"),
    ("problem", ["darcy"], r"problem \['darcy'\]; expected one of darcy"),
    ("problem", "", "problem ''; expected one of darcy"),
    ("resolutions", 16, r"resolutions=16; expected a list .*: resolutions = \[16, 32\]"),
    ("resolutions", "16", "resolutions='16'; expected a list"),
    ("resolutions", [], r"resolutions=\[\]; expected a list of at least one"),
    ("resolutions", {"r": 16}, r"resolutions={'r': 16}; expected a list"),
    ("resolutions", [8.5], r"resolutions=\[8.5\] has 8.5; expected whole numbers, at least 1.*\[16, 24\]"),
    ("resolutions", [8, "16"], "has '16'; expected whole numbers"),
    ("resolutions", [8, True], "has True; expected whole numbers"),
    ("resolutions", [0], "has 0; expected whole numbers"),
    ("resolutions", [8, [8, -16]], r"has \[8, -16\]; expected whole numbers"),
    ("resolutions", [[]], r"has \[\]; expected whole numbers"),
    ("resolutions", [[[8]]], r"has \[\[8\]\]; expected whole numbers"),
    ("resolutions", [2**63], "expected whole numbers"),
    ("samples", 5, r"samples=5; expected the size of each split: samples = {train = 1000}"),
    ("samples", [5], r"samples=\[5\]; expected the size of each split"),
    ("samples", {}, "samples: no splits: give the number of samples of each"),
    ("samples", {"train": -1}, "samples: split 'train' has -1 samples; expected a whole number, at least 1"),
    ("samples", {"train": 0}, "samples: split 'train' has 0 samples; .* or no such split"),
    ("samples", {"train": 2.5}, "split 'train' has 2.5 samples"),
    ("samples", {"train": True}, "split 'train' has True samples"),
    ("samples", {"train": {"n": 3}}, "split 'train' has {'n': 3} samples"),
    ("samples", {"": 3}, "samples: a split named ''; expected a name"),
    ("seed", "x", "seed='x'; expected a whole number, at least 0: seed = 0"),
    ("seed", -1, "seed=-1; expected"),
    ("seed", 1.0, "seed=1.0; expected"),
    ("seed", False, "seed=False; expected"),
    ("registration", "nodes", "registration='nodes'; expected one of node, node_both, cell: registration = "),
    ("registration", ["node"], r"registration=\['node'\]; expected one of"),
    ("registration", 1, "registration=1; expected one of"),
    ("solver_resolution", "x", "solver_resolution='x'; expected a whole number, at least 1, or no such key"),
    ("solver_resolution", 0, "solver_resolution=0; expected"),
    ("solver_resolution", [64], r"solver_resolution=\[64\]; expected"),
    ("solver_resolution", True, "solver_resolution=True; expected"),
    ("options", 3, r"options=3; expected values by name, such as options = {tau = 3.0}"),
    ("options", ["tau"], r"options=\['tau'\]; expected values by name"),
    ("options", {"viscosity": 1.0}, "darcy has no option 'viscosity'; it has coefficient"),
    ("options", {"": 1.0}, "darcy has no option ''"),
    ("options", {"values": 3}, r"darcy with values=3; expected a list of 2 numbers, such as \[3.0, 12.0\]"),
    ("options", {"values": [3]}, r"darcy with values=\[3\]; expected a list of 2 numbers"),
    ("options", {"values": [3, "x"]}, "expected a list of 2 numbers"),
    ("options", {"values": [3, -1]}, "expected two positive permeabilities"),
    ("options", {"tau": "x"}, "darcy with tau='x'; expected a finite number, such as 3.0"),
    ("options", {"tau": True}, "tau=True; expected a finite number"),
    ("options", {"tau": [3.0]}, r"tau=\[3.0\]; expected a finite number"),
    ("options", {"tau": 10**400}, "tau=10+; expected a finite number"),
    ("options", {"n_modes": 16.0}, "n_modes=16.0; expected a whole number, such as 128"),
    ("options", {"n_modes": True}, "n_modes=True; expected a whole number"),
    ("options", {"coefficient": 3}, "coefficient=3; expected a word, such as 'piecewise'"),
    ("options", {"forcing": float("nan")}, "forcing=nan; expected a finite number"),
    ("sead", 3, r"key 'sead'; expected some of problem, .*; did you mean 'seed'\?"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_values_that_make_no_recipe_say_what_would(key, value, message):
    good = {"problem": "darcy", "resolutions": [8], "samples": {"train": 2}}
    recipe_of(good)
    with pytest.raises(InputError, match=message):
        recipe_of(good | {key: value})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("resolutions = 16", "resolutions=16; expected a list"),
        ("resolutions = [8.5]", "has 8.5; expected whole numbers"),
        ("samples = 5", "samples=5; expected the size of each split"),
        ("options = 3", "options=3; expected values by name"),
        ("problem = 3", "problem 3; expected one of"),
        ('solver_resolution = "x"', "solver_resolution='x'; expected a whole number"),
        ("seed = 2020-01-01", "seed=datetime.date(2020, 1, 1); expected a whole number"),
        ("options = {n_modes = false}", "n_modes=False; expected a whole number"),
    ],
)
def test_a_file_with_a_wrong_value_is_refused_in_one_line_and_nothing_is_written(
    tmp_path, capsys, line, message
):
    content = {
        "problem": 'problem = "darcy"',
        "resolutions": "resolutions = [8]",
        "samples": "samples = {train = 2}",
    } | {line.partition(" ")[0]: line}
    path = tmp_path / "recipe.toml"
    path.write_text("\n".join(content.values()))
    assert main(["generate", str(path), str(tmp_path / "new.zarr"), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mano-op: {path}: ") and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


# Not numbers in between: of a million modes or steps there is a recipe, but no room.
NUMBERS = st.integers(-3, 40) | st.integers(2**63, 2**70) | st.just(10**400) | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OPTIONS = sorted({one.name for problem in PROBLEMS.values() for one in fields(problem)})
# Of values that may be right, so that every check is reached, each now and then replaced by any other.
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


@settings(max_examples=400)
@given(MAPPINGS)
def test_any_mapping_is_a_recipe_or_refused(content):
    try:
        recipe = recipe_of(content)
    except InputError:
        return
    assert {key: getattr(recipe, key) for key in content} == content
    problem = problem_of(recipe.problem, recipe.options)
    assert problem.name == recipe.problem


@settings(max_examples=100)
@given(*(NEARLY[key] for key in ("problem", "resolutions", "registration", "solver_resolution")))
def test_what_is_a_recipe_is_made_or_refused(name, resolutions, registration, solver_resolution):
    """Nothing but an `InputError` comes of resolutions that fit no grid of the problem."""
    content = {"problem": name, "resolutions": resolutions, "samples": {"train": 1}}
    try:
        recipe = recipe_of(content | {"registration": registration, "solver_resolution": solver_resolution})
        problem = problem_of(recipe.problem, recipe.options)
        grids = [
            problem_grid(problem, n if isinstance(n, int) else tuple(n), registration)
            for n in recipe.resolutions
        ]
        solvers = problem.solvers(grids, recipe.solver_resolution)
        problem.check(split_seed(0, "train"), grids)
    except InputError:
        return
    assert set(solvers) == set(grids)
