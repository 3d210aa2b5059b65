import itertools
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from helpers import files

from mano_op.data.store import FieldStore, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.problems import Darcy, generate_darcy, solve_darcy, split_seed

PROBLEM = Darcy(coefficient="lognormal", n_modes=16)
QUICK = {"samples": {"train": 7, "test": 3}, "problem": PROBLEM, "chunk": 2, "progress": False}
FIELDS = ("permeability", "pressure")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store made without interruption."""
    return generate_darcy(tmp_path_factory.mktemp("whole") / "darcy.zarr", [8, (16, 24)], seed=3, **QUICK)


@contextmanager
def tampered(tamper):
    """Let ``tamper(number of the call, seed, index, fields)`` have its way with every sample."""
    sample, calls = Darcy.sample, itertools.count()

    def patched(self, seed, index, *given):
        return tamper(next(calls), seed, index, sample(self, seed, index, *given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Darcy, "sample", patched)
        yield


def power_cut(after):
    """Nothing is computed any more after so many samples."""

    def tamper(call, seed, index, fields):
        if call >= after:
            raise RuntimeError("the power went off")
        return fields

    return tampered(tamper)


def test_holds_the_samples_of_the_problem(whole):
    grids = [Grid.uniform((8, 8)), Grid.uniform((16, 24))]
    numbered = [("train", i) for i in range(7)] + [("test", i) for i in range(3)]
    samples = [PROBLEM.sample(split_seed(3, split), i, grids) for split, i in numbered]
    for grid in grids:
        for name in FIELDS:
            expected = np.stack([sample[grid][name] for sample in samples]).astype(np.float32)
            np.testing.assert_array_equal(whole.read(grid, name), expected)
    assert whole.splits == {"train": 7, "test": 3}
    np.testing.assert_array_equal(whole.dataset(8)["split"], [split for split, _ in numbered])
    assert np.unique(whole.read(8, "permeability")[:, 0, 0]).size == 10  # ten different samples


def test_levels_agree_where_they_share_points(whole):
    for name in FIELDS:
        np.testing.assert_array_equal(whole.read(8, name), whole.read((16, 24), name)[:, ::2, ::3])
    assert whole.attrs["levels"] == "resampled"
    assert whole.attrs["boundary_conditions"] == {"y": "dirichlet", "x": "dirichlet"}


def test_says_how_it_was_made(whole):
    provenance = whole.attrs["provenance"]
    problem = Darcy(**provenance["options"])
    solver = Grid.uniform(provenance["solver_points"]["r16x24"], registration="node_both")
    a = problem.permeability(split_seed(provenance["seed"], "test"), 1, solver)
    u = solve_darcy(a, solver, problem.forcing)
    np.testing.assert_array_equal(whole.read(8, "pressure")[8], u[:-1:2, :-1:3][:, :8].astype(np.float32))
    assert (problem, provenance["problem"]) == (PROBLEM, "darcy")


def test_levels_without_common_points_say_that_they_are_independent(tmp_path):
    store = generate_darcy(tmp_path / "odd.zarr", [12, 37], **QUICK)
    assert store.attrs["levels"] == "independent"
    assert store.attrs["provenance"]["solver_points"] == {"r12": [49, 49], "r37": [38, 38]}


def test_solves_on_the_grid_asked_for(tmp_path):
    grid = Grid.uniform((8, 8), registration="cell")
    store = generate_darcy(
        tmp_path / "fine.zarr", [8], registration="cell", solver_resolution=48, seed=5, **QUICK
    )
    asked, coarser = (PROBLEM.sample(split_seed(5, "test"), 2, [grid], n)[grid]["pressure"] for n in (48, 16))
    np.testing.assert_array_equal(store.read(8, "pressure")[9], asked.astype(np.float32))
    assert not np.allclose(asked, coarser, rtol=1e-4)


def test_more_samples_leave_the_first_ones_and_the_other_splits_alone(whole, tmp_path):
    options = QUICK | {"samples": {"valid": 1, "test": 4, "train": 9}, "chunk": 5}
    more = generate_darcy(tmp_path / "more.zarr", [8, (16, 24)], seed=3, **options)
    for split, size in whole.splits.items():
        for name in FIELDS:
            old, new = (store.read(8, name, store.layout.rows("r8", split))[:size] for store in (whole, more))
            np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("number", [0, 5])
def test_an_interrupted_store_is_refused_and_resumes_bit_for_bit(whole, tmp_path, number):
    path = tmp_path / "darcy.zarr"
    with power_cut(number), pytest.raises(RuntimeError, match="the power went off"):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    with pytest.raises(InputError, match="partial store"):
        open_store(path)
    assert len(open_store(path, incomplete=True).pending()) >= 5 - number // 2

    generate_darcy(path, [8, (16, 24)], seed=3, resume=True, **QUICK)
    assert files(path) == files(whole.path)


def test_finished_chunks_are_not_computed_again(tmp_path, monkeypatch):
    path = tmp_path / "darcy.zarr"
    with dask.config.set(num_workers=1), power_cut(5), pytest.raises(RuntimeError):
        generate_darcy(path, [8], **QUICK)
    assert len(open_store(path, incomplete=True).pending()) == 3
    computed = []
    sample = Darcy.sample
    monkeypatch.setattr(Darcy, "sample", lambda *given: computed.append(given[2]) or sample(*given))
    generate_darcy(path, [8], resume=True, **QUICK)
    assert len(computed) == 6
    generate_darcy(path, [8], resume=True, **QUICK)  # complete already: nothing to do
    assert len(computed) == 6


SLOW = {"samples": {"train": 30, "test": 10}, "problem": PROBLEM, "solver_resolution": 128, "chunk": 1}
SCRIPT = f"""
import sys
from mano_op.problems import Darcy, generate_darcy
generate_darcy(sys.argv[1], [16, 32], progress=False, **{SLOW})
"""


def test_a_killed_process_leaves_a_store_that_resumes_bit_for_bit(tmp_path):
    path = tmp_path / "killed.zarr"
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("killed.zarr.partial/r32/pressure/c/*"))) < 4:
            assert process.poll() is None, "the process ended before it could be killed"
            assert time.monotonic() < deadline, "the process does not write"
            time.sleep(0.005)
    finally:
        process.kill()
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(InputError, match="partial store"):
        open_store(path)
    assert 0 < len(open_store(path, incomplete=True).pending()) < 40

    resumed = generate_darcy(path, [16, 32], progress=False, resume=True, **SLOW)
    whole = generate_darcy(tmp_path / "whole.zarr", [16, 32], progress=False, **SLOW)
    left, expected = files(resumed.path), files(whole.path)
    assert {name: left[name] for name in expected} == expected


def test_resume_starts_a_store_that_is_not_there(whole, tmp_path):
    store = generate_darcy(tmp_path / "new.zarr", [8, (16, 24)], seed=3, resume=True, **QUICK)
    assert files(store.path) == files(whole.path)


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
@pytest.mark.parametrize("complete", [True, False])
def test_refuses_to_resume_with_other_options(tmp_path, resolutions, changed, message, complete):
    path = tmp_path / "darcy.zarr"
    if complete:
        generate_darcy(path, [8], **QUICK)
    else:
        with power_cut(3), pytest.raises(RuntimeError):
            generate_darcy(path, [8], **QUICK)
    before = files(tmp_path)
    with pytest.raises(InputError, match=message):
        generate_darcy(path, resolutions, resume=True, **(QUICK | changed))
    assert before and files(tmp_path) == before


def test_a_store_that_exists_is_left_alone_unless_told(whole, tmp_path):
    path = tmp_path / "darcy.zarr"
    generate_darcy(path, [8], **QUICK)
    before = files(path)
    with pytest.raises(
        InputError, match=r"exists; pass resume=True to go on with it, overwrite=True to replace"
    ):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    with pytest.raises(InputError, match="pass one of them"):
        generate_darcy(path, [8], resume=True, overwrite=True, **QUICK)
    assert files(path) == before
    generate_darcy(path, [8, (16, 24)], seed=3, overwrite=True, **QUICK)
    assert files(path) == files(whole.path)


@pytest.mark.parametrize(
    ("resolutions", "options", "message"),
    [
        ([], {}, "no grids"),
        ([8], {"registration": "nodes"}, "registration='nodes' is none of"),
        ([8], {"solver_resolution": 12}, "resolution of 12"),
        ([8], {"seed": -1}, "seed="),
        ([(4, 4, 4, 4)], {}, r"alpha=2.0 in 4 dimensions"),
        ([8], {"samples": {"train": 0}}, "0 samples"),
        ([8], {"samples": {"train": 2.7}}, "has 2.7 samples; expected a whole number"),
        ([8], {"chunk": 0}, "chunk=0"),
    ],
)
def test_refuses_before_there_is_a_store(tmp_path, resolutions, options, message):
    with pytest.raises(InputError, match=message):
        generate_darcy(tmp_path / "darcy.zarr", resolutions, **(QUICK | options))
    assert not any(tmp_path.iterdir())


def test_an_interrupted_replacement_leaves_the_old_store_and_resumes(whole, tmp_path):
    path = tmp_path / "darcy.zarr"
    generate_darcy(path, [8], **QUICK)
    before = files(path)
    with power_cut(5), pytest.raises(RuntimeError, match="the power went off"):
        generate_darcy(path, [8, (16, 24)], seed=3, overwrite=True, **QUICK)
    assert files(path) == before
    with pytest.raises(InputError, match="begun and not finished; pass resume=True"):
        generate_darcy(path, [8, (16, 24)], seed=3, **QUICK)
    generate_darcy(path, [8, (16, 24)], seed=3, resume=True, **QUICK)
    assert files(path) == files(whole.path)


def test_a_field_that_is_not_finite_is_an_error_with_its_name(tmp_path):
    def spoil(call, seed, index, fields):
        if (seed, index) == (split_seed(0, "train"), 4):
            for values in fields.values():
                values["pressure"][0, 0] = np.nan
        return fields

    with tampered(spoil), pytest.raises(InputError, match=r"r8/pressure: sample 4 has .*NaN"):
        generate_darcy(tmp_path / "darcy.zarr", [8], **QUICK)
    with pytest.raises(InputError, match="partial store"):
        open_store(tmp_path / "darcy.zarr")


def test_never_more_samples_in_work_than_threads(tmp_path, monkeypatch):
    at_work, most, lock, sample = 0, 0, threading.Lock(), Darcy.sample

    def counted(*given):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.005)
        try:
            return sample(*given)
        finally:
            with lock:
                at_work -= 1

    monkeypatch.setattr(Darcy, "sample", counted)
    with dask.config.set(num_workers=3):
        generate_darcy(tmp_path / "darcy.zarr", [8], **(QUICK | {"samples": {"train": 24}, "chunk": 1}))
    assert most == 3


def test_a_cluster_gives_the_same_store(whole, tmp_path):
    path = tmp_path / "darcy.zarr"
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        with power_cut(3), pytest.raises(RuntimeError, match="the power went off"):
            generate_darcy(path, [8, (16, 24)], seed=3, client=client, **QUICK)
        with pytest.raises(InputError, match="partial store"):
            open_store(path)
        generate_darcy(path, [8, (16, 24)], seed=3, client=client, resume=True, **QUICK)
    assert files(path) == files(whole.path)


def test_the_statistics_are_taken_side_by_side(tmp_path, monkeypatch):
    threads, read = set(), FieldStore.read
    monkeypatch.setattr(
        FieldStore,
        "read",
        lambda *given: (threads.add(threading.get_ident()), time.sleep(0.01), read(*given))[2],
    )
    options = QUICK | {"samples": {"train": 24}, "chunk": 1}
    with dask.config.set(num_workers=3):
        generate_darcy(tmp_path / "darcy.zarr", [8], **options)
    assert len(threads) == 3 and threading.get_ident() not in threads


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


def test_samples_are_made_in_their_order(tmp_path, monkeypatch):
    order, write = [], FieldStore.write
    monkeypatch.setattr(FieldStore, "write", lambda *given: (order.append(given[1].start), write(*given)))
    options = QUICK | {"samples": {"train": 120}, "chunk": 1}
    with dask.config.set(num_workers=1):
        generate_darcy(tmp_path / "darcy.zarr", [8], **options)
    assert order == list(range(120))
