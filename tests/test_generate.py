import itertools
import threading
import time
from contextlib import contextmanager

import dask
import numpy as np
import pytest
from helpers import files

from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems import Darcy, generate_darcy, solve_darcy, split_seed

PROBLEM = Darcy(coefficient="lognormal", n_modes=16)
QUICK = {"samples": {"train": 7, "test": 3}, "problem": PROBLEM, "chunk": 2, "progress": False}
FIELDS = ("permeability", "pressure")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A store made without interruption."""
    return generate_darcy(tmp_path_factory.mktemp("reference") / "darcy.zarr", [8, (16, 24)], seed=3, **QUICK)


@contextmanager
def power_cut(after):
    """Raise an error after so many samples."""
    sample, calls = Darcy.sample, itertools.count()

    def patched(*args):
        if next(calls) >= after:
            raise RuntimeError("the power went off")
        return sample(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Darcy, "sample", patched)
        yield


def test_store_holds_the_samples_of_the_problem(reference):
    grids = [Grid.uniform((8, 8)), Grid.uniform((16, 24))]
    numbered = [("train", i) for i in range(7)] + [("test", i) for i in range(3)]
    samples = [PROBLEM.sample(split_seed(3, split), i, grids) for split, i in numbered]
    for grid in grids:
        for name in FIELDS:
            expected = np.stack([sample[grid][name] for sample in samples]).astype(np.float32)
            np.testing.assert_array_equal(reference.read(grid, name), expected)
    assert reference.splits == {"train": 7, "test": 3}
    np.testing.assert_array_equal(reference.dataset(8)["split"], [split for split, _ in numbered])
    assert np.unique(reference.read(8, "permeability")[:, 0, 0]).size == 10  # ten different samples


def test_provenance_reproduces_the_fields(reference):
    provenance = reference.attrs["provenance"]
    problem = Darcy(**provenance["options"])
    solver = Grid.uniform(provenance["solver_points"]["r16x24"], registration="node_both")
    a = problem.inputs(split_seed(provenance["seed"], "test"), 1, solver)["permeability"]
    u = solve_darcy(a, solver, problem.forcing)
    np.testing.assert_array_equal(reference.read(8, "pressure")[8], u[:-1:2, :-1:3][:, :8].astype(np.float32))
    assert (problem, provenance["problem"]) == (PROBLEM, "darcy")
    assert reference.attrs["levels"] == "resampled"
    assert reference.attrs["boundary_conditions"] == {"y": "dirichlet", "x": "dirichlet"}


def test_levels_solved_separately_are_marked_independent(tmp_path):
    store = generate_darcy(tmp_path / "odd.zarr", [12, 37], **QUICK)
    assert store.attrs["levels"] == "independent"
    assert store.attrs["provenance"]["solver_points"] == {"r12": [49, 49], "r37": [38, 38]}


def test_solver_resolution_sets_the_solver_grid(tmp_path):
    grid = Grid.uniform((8, 8), registration="cell")
    options = {"registration": "cell", "solver_resolution": 48, "seed": 5}
    store = generate_darcy(tmp_path / "fine.zarr", [8], **options, **QUICK)
    asked, coarser = (PROBLEM.sample(split_seed(5, "test"), 2, [grid], n)[grid]["pressure"] for n in (48, 16))
    np.testing.assert_array_equal(store.read(8, "pressure")[9], asked.astype(np.float32))
    assert not np.allclose(asked, coarser, rtol=1e-4)


def test_more_samples_leave_the_first_and_other_splits_unchanged(reference, tmp_path):
    options = QUICK | {"samples": {"valid": 1, "test": 4, "train": 9}, "chunk": 5}
    more = generate_darcy(tmp_path / "more.zarr", [8, (16, 24)], seed=3, **options)
    for split, size in reference.splits.items():
        for name in FIELDS:
            old, new = (
                store.read(8, name, store.layout.rows("r8", split))[:size] for store in (reference, more)
            )
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("number", [0, 5])
def test_interrupted_store_is_refused_and_resumes_bit_for_bit(reference, tmp_path, number):
    path = tmp_path / "darcy.zarr"
    with power_cut(number), pytest.raises(RuntimeError, match="the power went off"):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    with pytest.raises(InputError, match="partial store"):
        open_store(path)
    assert len(open_store(path, incomplete=True).pending()) >= 5 - number // 2

    generate_darcy(path, [8, (16, 24)], seed=3, resume=True, **QUICK)
    assert files(path) == files(reference.path)


def test_resume_does_not_recompute_finished_chunks(tmp_path, monkeypatch):
    path = tmp_path / "darcy.zarr"
    with dask.config.set(num_workers=1), power_cut(5), pytest.raises(RuntimeError):
        generate_darcy(path, [8], resume=True, **QUICK)  # starts a store, as there is none
    assert len(open_store(path, incomplete=True).pending()) == 3
    computed = []
    sample = Darcy.sample
    monkeypatch.setattr(Darcy, "sample", lambda *args: computed.append(args[2]) or sample(*args))
    generate_darcy(path, [8], resume=True, **QUICK)
    assert len(computed) == 6
    generate_darcy(path, [8], resume=True, **QUICK)  # complete already: nothing to do
    assert len(computed) == 6


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Paths of a complete and of an interrupted store."""
    complete, partial = (tmp_path_factory.mktemp(name) / "darcy.zarr" for name in ("complete", "partial"))
    generate_darcy(complete, [8], **QUICK)
    with power_cut(3), pytest.raises(RuntimeError):
        generate_darcy(partial, [8], **QUICK)
    return complete, partial


@pytest.mark.parametrize(
    ("resolutions", "changed", "message"),
    [
        ([8], {"seed": 1}, "seed is 0, not 1"),
        ([8], {"problem": Darcy(n_modes=17)}, "options is .*'n_modes': 16.*, not .*'n_modes': 17"),
        ([8], {"samples": {"train": 8, "test": 3}}, r"splits is .*7.*, not .*8"),
        ([8], {"solver_resolution": 16}, r"solver_points is {'r8': \[9, 9\]}, not {'r8': \[17, 17\]}"),
        ([8], {"chunk": 5}, "chunk is 2, not 5"),
        ([8], {"registration": "cell"}, "grids is .*node.*, not .*cell"),
        ([8, 16], {}, r"grids is {'r8': .*}, not {'r8': .*, 'r16'"),
    ],
)
def test_resume_with_other_options_is_refused(begun, resolutions, changed, message):
    for path in begun:
        before = files(path.parent)
        with pytest.raises(InputError, match=message):
            generate_darcy(path, resolutions, resume=True, **(QUICK | changed))
        assert before and files(path.parent) == before


def test_existing_store_is_kept_without_overwrite(reference, tmp_path):
    path = tmp_path / "darcy.zarr"
    generate_darcy(path, [8], **QUICK)
    before = files(path)
    with pytest.raises(InputError, match="exists; pass resume=True to go on with it, overwrite=True to"):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    with pytest.raises(InputError, match="pass one of them"):
        generate_darcy(path, [8], resume=True, overwrite=True, **QUICK)
    assert files(path) == before
    generate_darcy(path, [8, (16, 24)], seed=3, overwrite=True, **QUICK)
    assert files(path) == files(reference.path)


@pytest.mark.parametrize(
    ("resolutions", "options", "message"),
    [
        ([], {}, "no grids"),
        ([8], {"registration": "nodes"}, "registration='nodes' is none of"),
        ([8], {"solver_resolution": 12}, "solver_resolution=12; expected a multiple of 8"),
        ([8], {"seed": -1}, "seed="),
        ([(4, 4, 4, 4)], {}, r"alpha=2.0 in 4 dimensions"),
        ([8], {"samples": {"train": 0}}, "samples of split '.*'=0"),
        ([8], {"samples": {"train": 2.7}}, "samples of split 'train'=2.7, expected a whole number"),
        ([8], {"chunk": 0}, "chunk=0"),
    ],
)
def test_bad_arguments_are_refused_before_a_store_is_created(tmp_path, resolutions, options, message):
    with pytest.raises(InputError, match=message):
        generate_darcy(tmp_path / "darcy.zarr", resolutions, **(QUICK | options))
    assert not any(tmp_path.iterdir())


def test_interrupted_overwrite_keeps_the_old_store_and_resumes(reference, tmp_path):
    path = tmp_path / "darcy.zarr"
    generate_darcy(path, [8], **QUICK)
    before = files(path)
    with power_cut(5), pytest.raises(RuntimeError, match="the power went off"):
        generate_darcy(path, [8, (16, 24)], seed=3, overwrite=True, **QUICK)
    assert files(path) == before
    with pytest.raises(InputError, match=r"begun and not finished .*; pass resume=True"):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    generate_darcy(path, [8, (16, 24)], seed=3, resume=True, **QUICK)
    assert files(path) == files(reference.path)


def test_samples_and_statistics_are_computed_in_parallel(tmp_path, monkeypatch):
    methods, threads = {Darcy: Darcy.sample, FieldStore: FieldStore.read}, {Darcy: set(), FieldStore: set()}

    def counted(owner, *args):
        threads[owner].add(threading.get_ident())
        time.sleep(0.01)
        return methods[owner](*args)

    monkeypatch.setattr(Darcy, "sample", lambda *args: counted(Darcy, *args))
    monkeypatch.setattr(FieldStore, "read", lambda *args: counted(FieldStore, *args))
    with dask.config.set(num_workers=3):
        generate_darcy(tmp_path / "darcy.zarr", [8], **(QUICK | {"samples": {"train": 12}, "chunk": 1}))
    for seen in threads.values():
        assert len(seen) == 3 and threading.get_ident() not in seen


def test_progress_counts_samples_on_stderr(tmp_path, capsys):
    path = tmp_path / "darcy.zarr"
    with dask.config.set(num_workers=1), power_cut(7), pytest.raises(RuntimeError):
        generate_darcy(path, [8], **(QUICK | {"progress": True}))
    assert "6/10" in capsys.readouterr().err
    generate_darcy(path, [8], resume=True, **(QUICK | {"progress": True}))
    out, err = capsys.readouterr()
    assert "6/10" in err and "10/10" in err and not out
    generate_darcy(path, [8], overwrite=True, **QUICK)
    assert capsys.readouterr() == ("", "")


def test_samples_are_computed_in_order(tmp_path, monkeypatch):
    order, write = [], FieldStore.write
    monkeypatch.setattr(FieldStore, "write", lambda *args: (order.append(args[1].start), write(*args)))
    with dask.config.set(num_workers=1):
        generate_darcy(tmp_path / "darcy.zarr", [8], **(QUICK | {"samples": {"train": 12}, "chunk": 1}))
    assert order == list(range(12))
