"""Float32 holds what is written, or it is refused; what varies has a deviation."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.check import check_store
from mano_op.data.coarsen import coarsen_store
from mano_op.data.info import describe
from mano_op.data.loaders import field_loaders
from mano_op.data.moments import Moments
from mano_op.data.precision import LARGEST_LOSS, Rounding
from mano_op.data.store import Variable, create_store, open_store
from mano_op.data.write import write_fields
from mano_op.errors import InputError
from mano_op.grid import Grid

GRID = Grid.uniform((16,), registration="cell")


def wave(n=12):
    return np.sin(2 * np.pi * (GRID.points[0] + 0.07 * np.arange(n)[:, None]))


def write(path, u, **changes):
    data = xr.Dataset(
        {"a": (("sample", "x"), wave(len(u))), "u": (("sample", "x"), u)}, {"x": GRID.points[0]}
    )
    options = {
        "inputs": ["a"],
        "outputs": ["u"],
        "splits": {"train": len(u) - 4, "test": 4},
        "registration": "cell",
        "domain": {"x": (0.0, 1.0)},
        "boundary_conditions": {"x": "open"},
        "progress": False,
    }
    return write_fields(path, {16: data}, **(options | changes))


@given(mean=st.floats(1.0, 1e6), spread=st.floats(1e-6, 1e2), cut=st.integers(1, 11))
def test_parts_give_the_loss_of_the_whole(mean, spread, cut):
    values = mean + spread * wave()
    stored = values.astype(np.float32)
    loss = (Rounding.of(values[:cut], stored[:cut]) + Rounding.of(values[cut:], stored[cut:])).loss
    expected = np.linalg.norm(values - stored) / np.linalg.norm(values - values.mean())
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("amplitude", "chunk"), [(0.02, 1), (0.005, 5), (0.0003, None)])
def test_a_variation_that_float32_loses_is_refused_and_its_remedy_keeps_it(tmp_path, amplitude, chunk):
    u = 101325.0 + amplitude * wave()
    with pytest.raises(
        InputError, match=r"r16/u: 101325 with a standard deviation of .*float32 loses"
    ) as caught:
        write(tmp_path / "a.zarr", u, chunk=chunk)
    assert not any(tmp_path.iterdir())
    remedy = eval(str(caught.value).rpartition("reference=")[2])
    store = open_store(write(tmp_path / "a.zarr", u, chunk=chunk, reference=remedy).path)
    kept = store.variables[1].reference + store.read(16, "u").astype(np.float64)
    assert np.linalg.norm(kept - u) < 1e-6 * np.linalg.norm(u - u.mean())
    assert store.statistics["u"]["std"] == pytest.approx(u[:8].std(), rel=1e-6)
    assert check_store(store.path, progress=False) == []
    assert f"less {remedy['u']:.9g}" in describe(store)
    coarse = coarsen_store(store, tmp_path / "b.zarr", [8], method="mean", progress=False)
    assert coarse.variables[1].reference == remedy["u"]
    batch = next(iter(field_loaders(store, train=16, test=[], batch_size=8).train))
    assert batch["y"].double().std() == pytest.approx(u[:8].std(), rel=0.01)


@pytest.mark.parametrize("loss", [0.9e-3, 1.1e-3])
def test_the_limit_is_a_thousandth_of_the_variation(tmp_path, loss):
    rounding = np.spacing(np.float32(101325.0)) / 12**0.5
    u = 101325.0 + 2**0.5 * rounding / loss * wave()
    lost = np.linalg.norm(u - u.astype(np.float32)) / np.linalg.norm(u - u.mean())
    assert lost == pytest.approx(loss, rel=0.09)
    if loss < LARGEST_LOSS:
        assert write(tmp_path / "a.zarr", u).complete
    else:
        with pytest.raises(InputError, match=r"float32 loses 0\.1%"):
            write(tmp_path / "a.zarr", u)


def test_boundary_values_are_those_of_the_difference(tmp_path):
    u = 300.0 + 1e-5 * wave()
    options = {"reference": {"u": 300.0}, "boundary_conditions": {"x": "dirichlet"}}
    store = write(tmp_path / "a.zarr", u, boundary_values={"u": 300.0}, **options)
    assert store.variables[1].boundary_value == 0.0
    ends = {"x": (301.0, None)}
    store = write(tmp_path / "b.zarr", u, boundary_values={"u": ends}, **options)
    assert store.variables[1].boundary_value == {"x": (1.0, None)}


@pytest.mark.parametrize(
    "u",
    [
        np.full((12, 16), 0.1),
        np.full((12, 16), 0.1) + 1e-17 * np.arange(16),
        np.repeat(0.1 * np.arange(1, 13), 16).reshape(12, 16),
        np.concatenate([np.full((4, 16), 0.37) + 1e-12 * wave(4), wave(8)]),
        np.full((12, 16), 2**24 + 1, dtype=np.int64),
    ],
    ids=["constant", "rounded constant", "constant samples", "nearly constant at first", "int"],
)
def test_nearly_constant_chunks_are_judged_by_the_whole_variable(tmp_path, u):
    store = write(tmp_path / "a.zarr", u, chunk=1)
    np.testing.assert_array_equal(store.read(16, "u"), u.astype(np.float32))


def test_numbers_in_single_precision_are_kept_whatever_their_variation(tmp_path):
    u = (101325.0 + 0.005 * wave()).astype(np.float32)
    store = write(tmp_path / "a.zarr", u)
    np.testing.assert_array_equal(store.read(16, "u"), u)
    assert store.statistics["u"]["std"] == pytest.approx(u[:8].astype(np.float64).std(), rel=1e-9)


@given(ulps=st.integers(1, 4), base=st.floats(1.0, 1e6, width=32))
def test_variation_of_a_last_digit_has_a_deviation(ulps, base):
    values = np.full((3, 4), base, np.float32)
    values[1, 2] += ulps * np.spacing(np.float32(base))
    assert 0 < Moments.of(values, np.ones(4)).std < 1e-4 * base


def test_a_resumed_store_is_judged_by_all_of_its_chunks(tmp_path):
    """Rounding is kept with the chunks that were written before."""
    grid = Grid.uniform((4,))
    u = 1e5 + 1e-3 * np.arange(16.0).reshape(4, 4)
    variables = [Variable("a", "input"), Variable("u", "output")]
    store = create_store(
        tmp_path / "a.zarr",
        [grid],
        variables,
        {"train": 4},
        title="",
        provenance={},
        levels="unknown",
        boundary_conditions={"x": "open"},
        chunk=2,
    )
    first, second = store.pending()
    store.write(first, {grid: {"a": np.ones((2, 4)), "u": u[:2]}})
    again = open_store(tmp_path / "a.zarr", incomplete=True)
    again.write(second, {grid: {"a": np.ones((2, 4)), "u": np.full((2, 4), u[:2].mean())}})
    with pytest.raises(InputError, match=r"r4/u: .* float32 loses"):
        again.finish()


def test_a_reference_that_swallows_the_variation_is_refused(tmp_path):
    u = 101325.0 + 0.02 * wave()
    with pytest.raises(InputError, match=r"r16/u: does not vary beside reference=\{'u': 1e\+30\}"):
        write(tmp_path / "a.zarr", u, reference={"u": 1e30})
    with pytest.raises(InputError, match="r16/u: .* float32 loses".replace(".*", ".+")):
        write(tmp_path / "a.zarr", u, reference={"u": 1e9})
    assert not any(tmp_path.iterdir())


def test_values_below_what_float32_holds_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"r16/u: values from .* below what float32 holds, 1\.2e-38: give"):
        write(tmp_path / "a.zarr", 1e-300 * wave())
    decaying = wave() * 10.0 ** -np.arange(0, 120, 10)[:, None]
    assert write(tmp_path / "a.zarr", decaying, chunk=1).complete
