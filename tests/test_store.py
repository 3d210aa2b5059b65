"""What is written is what is read, by us and by xarray, or there is an error that says why not."""

import pickle
import re
import shutil
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from dask.base import compute
from dask.delayed import delayed
from helpers import WAVES, store_of, wave_store, waves, write_waves
from hypothesis import given, settings
from hypothesis import strategies as st

from mano_op.data.check import check_store
from mano_op.data.dataset import FieldDataset
from mano_op.data.info import describe
from mano_op.data.store import Variable, create_store, open_store
from mano_op.errors import InputError
from mano_op.grid import REGISTRATIONS, Grid

COARSE, FINE = Grid.uniform((6, 4)), Grid.uniform((12, 8))
SPLITS = {"train": 5, "test": 3}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store that no test changes."""
    return wave_store(tmp_path_factory.mktemp("kept") / "waves.zarr", [COARSE, FINE], SPLITS)


@pytest.fixture
def store(kept, tmp_path):
    """A copy of it, to do anything to."""
    return open_store(shutil.copytree(kept.path, tmp_path / "waves.zarr"))


def empty(path, **changes):
    options = {
        "grids": [COARSE, FINE],
        "variables": WAVES,
        "splits": SPLITS,
        "title": "Waves",
        "provenance": {},
        "levels": "resampled",
        "boundary_conditions": {"y": "open", "x": "open"},
        "chunk": 2,
    }
    return create_store(path, **(options | changes))


def fill(store):
    for samples in store.pending():
        write_waves(store, samples)


def moments(values):
    """The mean and the deviation of values over the area of the finer grid."""
    weights = np.broadcast_to(FINE.weights, values.shape)
    mean = np.average(values, weights=weights)
    std = np.average((values - mean) ** 2, weights=weights) ** 0.5
    return pytest.approx({"mean": mean, "std": std}, rel=1e-12)


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_every_value_is_read_back_in_float32(kept):
    kept = open_store(kept.path)
    for key, grid in {"r6x4": COARSE, "r12x8": FINE}.items():
        for name, values in waves(range(8), grid).items():
            np.testing.assert_array_equal(kept.read(key, name), values.astype(np.float32))
            np.testing.assert_array_equal(
                kept.read(grid, name, np.array([0, 3, 7])), values[[0, 3, 7]].astype(np.float32)
            )


def test_xarray_reads_the_store_with_its_labels(kept):
    tree = xr.open_datatree(kept.path)
    assert set(tree.children) == {"r6x4", "r12x8"}
    for key, grid in {"r6x4": COARSE, "r12x8": FINE}.items():
        level = xr.open_zarr(kept.path, group=key)
        xr.testing.assert_identical(level.compute(), tree[key].to_dataset().compute())
        xr.testing.assert_identical(level.compute(), kept.dataset(key).compute())
        np.testing.assert_array_equal(level["u"], waves(range(8), grid)["u"].astype(np.float32))
        assert level["u"].dims == ("sample", "y", "x")
        for axis in grid:
            np.testing.assert_array_equal(level[axis.name], axis.points)
            np.testing.assert_array_equal(level[level[axis.name].attrs["bounds"]], axis.bounds)
        np.testing.assert_array_equal(level["sample"], np.arange(8))
        assert level["split"].values.tolist() == ["train"] * 5 + ["test"] * 3
    tested = tree["r12x8"].to_dataset().sel(sample=tree["r12x8"]["split"] == "test")
    np.testing.assert_array_equal(tested["b"], waves([5, 6, 7], FINE)["b"].astype(np.float32))


def test_attributes_name_fields_units_and_provenance(kept):
    attributes = xr.open_datatree(kept.path).attrs
    assert attributes == kept.attrs
    assert attributes["Conventions"] == "CF-1.11"
    assert (attributes["input_fields"], attributes["output_fields"]) == (["a", "b"], ["u"])
    assert attributes["provenance"]["problem"] == "waves"
    assert attributes["provenance"]["versions"]["zarr"] == zarr.__version__
    assert attributes["multiscales"]["layout"] == [{"asset": "r12x8"}, {"asset": "r6x4"}]
    about = kept.dataset(FINE)["a"].attrs
    assert (about["units"], about["long_name"], about["role"]) == ("m2", "amplitude", "input")
    assert kept.variables == tuple(
        Variable(v.name, v.role, v.units, v.long_name or v.name, v.cell_methods) for v in WAVES
    )


@pytest.mark.parametrize("registration", REGISTRATIONS)
def test_the_spatial_convention_leads_to_the_points(tmp_path, registration):
    """Indices of points through the transform; a pixel's point is half an index inside it."""
    grid = Grid.uniform((6, 4), domain=[(0.0, 1.0), (-1.0, 3.0)], registration=registration)
    empty(tmp_path / "s.zarr", grids=[grid], splits={"test": 1})
    level = zarr.open_group(tmp_path / "s.zarr.partial" / "r6x4", mode="r").attrs
    assert (level["spatial:dimensions"], level["spatial:shape"]) == (["y", "x"], [6, 4])
    a, b, c, d, e, f = level["spatial:transform"]
    half = 0.5 if level["spatial:registration"] == "pixel" else 0.0
    row, column = np.meshgrid(np.arange(6) + half, np.arange(4) + half, indexing="ij")
    np.testing.assert_allclose([d * column + e * row + f, a * column + b * row + c], grid.mesh, atol=1e-15)
    y, x = ((axis.start, axis.stop) if half else axis.points[[0, -1]] for axis in grid)
    np.testing.assert_allclose(level["spatial:bbox"], [x[0], y[0], x[1], y[1]])


def test_the_format_is_documented(kept):
    tree = (Path(__file__).parents[1] / "data" / "README.md").read_text()
    for name in [*kept.attrs, *kept.dataset(FINE).variables.keys() - {v.name for v in WAVES}]:
        assert re.search(rf"\b{name}\b", tree), name
    assert kept.attrs["format"] in tree and f"format_version       {kept.attrs['format_version']} " in tree


@settings(max_examples=5)
@given(
    shape=st.lists(st.integers(2, 5), min_size=1, max_size=3),
    registration=st.sampled_from(REGISTRATIONS),
    start=st.floats(-3, 3),
    length=st.floats(0.1, 3),
    data=st.data(),
)
def test_grids_survive_exactly(shape, registration, start, length, data):
    wraps = st.just(False) if registration == "node_both" else st.booleans()
    grid = Grid.uniform(
        shape,
        domain=[(start, start + length)] * len(shape),
        registration=registration,
        periodic=[data.draw(wraps) for _ in shape],
    )
    conditions = {axis.name: "periodic" if axis.periodic else "wall" for axis in grid}
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/grids.zarr"
        empty(path, grids=[grid, grid.refine()], splits={"test": 1}, boundary_conditions=conditions)
        store = open_store(path, incomplete=True)
    assert list(store.grids.values()) == [grid, grid.refine()]
    assert store.layout.boundary_conditions == conditions
    assert store.key(grid) == store.key(grid.shape)


HEAT = (Variable("a", "input"), Variable("u", "output", units="K", time=True))
TIMES = (0.0, 0.5, 2.0)


def heat(samples, grid):
    """A steady input and an output that decays from it."""
    a = waves(samples, grid)["a"]
    return {"a": a, "u": a[:, None] * np.exp(-np.array(TIMES)).reshape(1, -1, *[1] * grid.n_dim)}


def heat_store(path, **changes):
    options = {"variables": HEAT, "times": TIMES, "time_units": "s", "chunk": 2} | changes
    store = empty(path, **options)
    for samples in store.pending():
        numbers = range(samples.start, samples.stop)
        store.write(samples, {grid: heat(numbers, grid) for grid in store.grids.values()})
    store.finish()
    return store


@pytest.mark.parametrize("chunk_times", [None, 2, 7])
def test_variables_in_time_are_read_back(tmp_path, chunk_times):
    store = open_store(heat_store(tmp_path / "heat.zarr", chunk_times=chunk_times).path)
    assert (store.layout.times, store.layout.time_units) == (TIMES, "s")
    assert "3 times from 0 to 2 s" in describe(store)
    assert [variable.time for variable in store.variables] == [False, True]
    expected = heat(range(8), FINE)["u"].astype(np.float32)
    np.testing.assert_array_equal(store.read(FINE, "u"), expected)
    np.testing.assert_array_equal(store.read(FINE, "u", np.array([1, 6]), slice(1, 3)), expected[[1, 6], 1:3])
    level = xr.open_zarr(store.path, group="r12x8")
    assert level["u"].dims == ("sample", "time", "y", "x") and level["a"].dims == ("sample", "y", "x")
    np.testing.assert_array_equal(level["time"], TIMES)
    np.testing.assert_array_equal(level["u"].sel(time=2.0), expected[:, 2])
    assert level["u"].encoding["chunks"] == (2, min(chunk_times or 3, 3), 12, 8)


def test_every_time_counts_in_the_statistics(tmp_path):
    store = heat_store(tmp_path / "heat.zarr")
    values = heat(range(5), FINE)["u"].astype(np.float32)
    assert store.statistics["u"] == moments(values)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_statistics_weight_the_area_of_the_training_split_at_the_finest_resolution(tmp_path, chunk):
    store = wave_store(tmp_path / "waves.zarr", [COARSE, FINE], SPLITS, chunk=chunk)
    for name, values in waves(range(5), FINE).items():
        assert store.statistics[name] == moments(values.astype(np.float32))
    told = store.attrs["statistics"]
    assert (told["split"], told["level"], told["samples"]) == ("train", "r12x8", 5)


def test_statistics_are_the_same_bit_for_bit_in_whatever_order_chunks_are_read(tmp_path):
    store = wave_store(tmp_path / "waves.zarr", [COARSE, FINE], SPLITS, chunk=2)
    asked = []

    def last_first(function, chunks):
        asked.extend(chunks)
        return [function(rows) for rows in reversed(chunks)][::-1]

    assert store.statistics_of("train", each=last_first) == store.attrs["statistics"]
    assert asked == [slice(0, 2), slice(2, 4), slice(4, 5)]


def test_resolution_may_hold_some_splits(tmp_path):
    path, splits = tmp_path / "waves.zarr", {"train": 4, "test": 3, "hard": 2}
    wave_store(path, [COARSE, FINE], splits, held={FINE: ["test"]})
    store = open_store(path)
    tree = xr.open_datatree(path)
    np.testing.assert_array_equal(tree["r12x8"]["sample"], [4, 5, 6])
    assert set(tree["r12x8"]["split"].values) == {"test"}
    np.testing.assert_array_equal(store.read(FINE, "u"), waves([4, 5, 6], FINE)["u"].astype(np.float32))
    same = tree["r6x4"].to_dataset().sel(sample=tree["r12x8"]["sample"])
    np.testing.assert_array_equal(same["u"], waves([4, 5, 6], COARSE)["u"].astype(np.float32))
    assert store.attrs["statistics"]["level"] == "r6x4"
    with pytest.raises(InputError, match="r12x8 has no split 'train'; it has test, while 'train' is at r6x4"):
        store.layout.rows("r12x8", "train")


def test_chunks_are_written_side_by_side(tmp_path):
    store = empty(tmp_path / "waves.zarr", splits={"train": 30, "test": 11}, chunk=2)
    writes = [delayed(write_waves)(store, samples) for samples in store.pending()[::-1]]
    compute(*writes, scheduler="threads", num_workers=8)
    store.finish()
    assert store.splits == {"train": 30, "test": 11}
    np.testing.assert_array_equal(store.read(FINE, "a"), waves(range(41), FINE)["a"].astype(np.float32))


def test_chunk_counts_as_written_once_all_resolutions_are(tmp_path, monkeypatch):
    store = empty(tmp_path / "waves.zarr", chunk=8)
    write = zarr.Array.__setitem__

    def fail_at_the_last_field(array, *args):
        if array.path == "r12x8/u":
            raise OSError("no space left on device")
        write(array, *args)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__setitem__", fail_at_the_last_field)
        with pytest.raises(OSError, match="no space"):
            write_waves(store, slice(0, 8))
    assert store.pending() == [slice(0, 8)]


def test_a_store_is_complete_only_when_finishing_is(tmp_path, monkeypatch):
    store = empty(tmp_path / "waves.zarr", chunk=8)
    write_waves(store, slice(0, 8))

    def fail(*args):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zarr, "consolidate_metadata", fail)
        with pytest.raises(OSError, match="no space"):
            store.finish()
    with pytest.raises(InputError, match="partial store: 8 of 8 samples"):
        open_store(store.path)
    unfinished = open_store(store.path, incomplete=True)
    assert "partial: all samples are there, but it was not finished" in describe(unfinished)
    unfinished.finish()
    assert open_store(store.path).statistics.keys() == {"a", "b", "u"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "has a NaN or an infinity; expected finite values"),
        (np.inf, "has a NaN or an infinity; expected finite values"),
        (-1e39, r"has the value -1e\+39, beyond what float32 holds"),
    ],
)
def test_a_value_that_float32_cannot_hold_is_named_and_nothing_is_written(tmp_path, value, message):
    store = empty(tmp_path / "waves.zarr", chunk=4)
    fields = {grid: waves(range(4, 8), grid) for grid in (COARSE, FINE)}
    fields[FINE]["u"][2, 3, 1] = value
    with pytest.raises(InputError, match=f"r12x8/u: sample 6 {message}"):
        store.write(slice(4, 8), fields)
    assert store.pending() == [slice(0, 4), slice(4, 8)]
    assert not list(tmp_path.glob("waves.zarr.partial/*/u/c/**/*"))
    fields[FINE]["u"][2, 3, 1] = 0.0
    store.write(slice(4, 8), fields)
    assert list(tmp_path.glob("waves.zarr.partial/*/u/c/**/*"))


def test_any_flipped_byte_of_a_chunk_is_an_error(store):
    (chunk,) = (store.path / "r6x4" / "u" / "c" / "1").glob("*/*")
    intact = chunk.read_bytes()
    for position in range(0, len(intact), 7):
        flip(chunk, position)
        with pytest.raises(InputError, match="r6x4/u: the chunk of samples 2 to 3 is damaged"):
            store.read(COARSE, "u")
        with pytest.raises((ValueError, RuntimeError)):
            store.dataset(COARSE)["u"].values  # noqa: B018
        chunk.write_bytes(intact)
    np.testing.assert_array_equal(store.read(COARSE, "u"), waves(range(8), COARSE)["u"].astype(np.float32))


def test_a_flipped_byte_of_a_coordinate_is_an_error(store):
    flip(store.path / "r6x4" / "y" / "c" / "0", 3)
    with pytest.raises(InputError, match="labels of the store do not fit together"):
        open_store(store.path)


def test_a_lost_chunk_names_its_first_sample(store):
    (chunk,) = (store.path / "r12x8" / "b" / "c" / "1").glob("*/*")
    chunk.unlink()
    with pytest.raises(
        InputError, match=r"r12x8/b: sample 2 \(and 1 more samples\) has a NaN.*a chunk of the store is lost"
    ):
        store.read(FINE, "b")
    np.testing.assert_array_equal(
        store.read(FINE, "b", slice(4, 8)), waves(range(4, 8), FINE)["b"].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("resolution", "change", "message"),
    [
        (COARSE, {"a": 0.0, "b": 0.0}, r"r6x4: variables \['a', 'b'\]; expected \['a', 'b', 'u'\]"),
        (COARSE, waves(range(4), COARSE) | {"u": np.zeros((4, 6, 4), complex)}, "r6x4/u: of complex128"),
        (COARSE, waves(range(3), COARSE), r"r6x4/a: shape \(3, 6, 4\); expected \(4, 6, 4\)"),
    ],
)
def test_fields_that_are_missing_or_complex_are_refused(tmp_path, resolution, change, message):
    store = empty(tmp_path / "waves.zarr", chunk=4)
    with pytest.raises(InputError, match=message):
        store.write(
            slice(0, 4), {grid: waves(range(4), grid) for grid in (COARSE, FINE)} | {resolution: change}
        )
    assert len(store.pending()) == 2
    with pytest.raises(InputError, match=r"resolutions \['r6x4'\]; expected \['r12x8', 'r6x4'\]: give these"):
        store.write(slice(0, 4), {COARSE: waves(range(4), COARSE)})
    with pytest.raises(InputError, match=r"samples=slice\(1, 5, None\) is no chunk .*`pending\(\)`"):
        store.write(slice(1, 5), {})
    with pytest.raises(InputError, match=r"2 chunks of samples are not written, the first is 0 to 3"):
        store.finish()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        ("r6x4/u", "has shape"),
        ("r6x4/time", "differs from the times"),
        ("r6x4/x", "is not where a node axis"),
    ],
)
def test_labels_that_do_not_describe_the_arrays_are_refused(tmp_path, array, message):
    root = zarr.open_group(heat_store(tmp_path / "heat.zarr").path, mode="r+")
    if array.endswith("u"):
        root[array].resize((8, 2, 6, 4))
        with pytest.warns(UserWarning, match="Consolidated metadata"):
            zarr.consolidate_metadata(root.store)
    else:
        root[array].set_basic_selection(2, 9.0)
    with pytest.raises(InputError, match=f"{array} {message}.*laid out to the end, or was changed since"):
        open_store(tmp_path / "heat.zarr")


def test_a_resolution_that_is_missing_lists_those_present(kept):
    with pytest.raises(InputError, match=r"no resolution 64; it has r6x4 \(6 x 4\), r12x8 \(12 x 8\)"):
        kept.key(64)
    for resolution in (6, (4, 6), "r4x6", COARSE.refine(3)):
        with pytest.raises(InputError, match="has no resolution"):
            kept.key(resolution)
    assert [kept.key(resolution) for resolution in ((6, 4), "r6x4", COARSE)] == ["r6x4"] * 3
    with pytest.raises(InputError, match="no variable 'zz'; it has a, b, u"):
        kept.read(FINE, "zz")


def test_nothing_but_a_store_is_ever_replaced(tmp_path, store):
    folder = tmp_path / "thesis"
    (folder / "chapters").mkdir(parents=True)
    (folder / "chapters" / "one.tex").write_text("words")
    zarr.create_group(tmp_path / "other.zarr", attributes={"kept": True})
    (tmp_path / "file").write_text("words")
    for path in (folder, tmp_path / "other.zarr", tmp_path / "file"):
        with pytest.raises(InputError, match="exists; give another path"):
            empty(path)
        with pytest.raises(InputError, match="is no store of fields, so overwrite=True leaves it alone"):
            empty(path, overwrite=True)
    assert (folder / "chapters" / "one.tex").read_text() == (tmp_path / "file").read_text() == "words"
    assert zarr.open_group(tmp_path / "other.zarr", mode="r").attrs["kept"] is True


def test_a_store_is_replaced_when_another_is_finished_and_not_before(tmp_path, store):
    before = {name: store.read(FINE, name) for name in ("a", "b", "u")}
    new = empty(store.path, overwrite=True, splits={"train": 3}, chunk=2)
    assert (new.complete, new.path) == (False, store.path)
    write_waves(new, slice(0, 2))
    assert open_store(store.path).complete
    assert "complete, and waves.zarr.partial is there to replace it" in describe(open_store(store.path))
    for name, values in before.items():
        np.testing.assert_array_equal(open_store(store.path).read(FINE, name), values)
    assert open_store(store.path, incomplete=True).pending() == [slice(2, 3)]
    with pytest.raises(InputError, match=r"exists; give another path|was begun and not finished"):
        empty(store.path)
    write_waves(new, slice(2, 3))
    new.finish()
    assert new.complete
    assert open_store(store.path).splits == {"train": 3}
    np.testing.assert_array_equal(new.read(FINE, "u"), waves(range(3), FINE)["u"].astype(np.float32))
    assert [path.name for path in tmp_path.iterdir()] == ["waves.zarr"]


def test_discarded_store_leaves_no_trace(tmp_path, store):
    empty(tmp_path / "other.zarr")
    empty(tmp_path / "other.zarr", overwrite=True).discard()
    empty(store.path, overwrite=True).discard()
    assert [path.name for path in tmp_path.iterdir()] == ["waves.zarr"]
    np.testing.assert_array_equal(
        open_store(store.path).read(FINE, "u"), waves(range(8), FINE)["u"].astype(np.float32)
    )


@pytest.mark.parametrize("renames", [0, 1])
def test_a_store_survives_a_kill_between_two_renames(tmp_path, store, monkeypatch, renames):
    """Where the old store is moved away and the new one is put there, there is a moment between the two."""
    new = empty(store.path, overwrite=True, splits={"train": 2}, chunk=2)
    write_waves(new, slice(0, 2))
    rename, calls = Path.rename, []

    def killed(path, target):
        if len(calls) == renames:
            raise KeyboardInterrupt
        calls.append(path)
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        new.finish()
    if renames == 0:
        assert open_store(store.path).splits == SPLITS
    else:
        with pytest.raises(InputError, match="partial store: 2 of 2 samples are written"):
            open_store(store.path)
    open_store(store.path, incomplete=True).finish()
    assert open_store(store.path).splits == {"train": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["waves.zarr"]


def test_statistics_are_those_of_the_split_asked_for(kept):
    assert kept.statistics_of("train") == kept.attrs["statistics"]
    values = waves(range(5, 8), FINE)["u"].astype(np.float32)
    assert kept.statistics_of("test")["variables"]["u"] == moments(values)
    with pytest.raises(InputError, match="has no split 'validation'"):
        kept.statistics_of("validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"provenance": {"seed": object()}}, "what JSON can hold"),
        ({"provenance": {"viscosity": np.nan}}, "what JSON can hold"),
        ({"grids": [COARSE, Grid.uniform((8, 8), registration="cell")]}, "one domain in one registration"),
        ({"boundary_conditions": {"y": "open"}}, "one for each of y, x"),
        ({"boundary_conditions": {"y": "drichlet", "x": "open"}}, "'y'='drichlet'; expected one of periodic"),
        ({"variables": [*WAVES, Variable("v", "output", boundary_value={"z": 0.0})]}, "which here are y, x"),
        ({"variables": HEAT}, r"0 times, and variables that vary in time: \['u'\]"),
        ({"times": TIMES}, "3 times, and variables that vary in time: none"),
        (
            {"variables": HEAT, "times": (0.0, 2.0, 2.0)},
            "time 1 and 2 are 2 and 2; expected values that incr",
        ),
        ({"variables": HEAT, "times": (0.0, np.inf)}, "expected finite numbers"),
        ({"variables": HEAT, "times": TIMES, "chunk_times": 0}, "chunk_times=0"),
        ({"variables": [*HEAT, Variable("time", "input")], "times": TIMES}, "'time': the name is taken"),
        ({"variables": WAVES[:2]}, "no output"),
        ({"variables": [*WAVES, Variable("y_bnds", "input")]}, "'y_bnds': the name is taken"),
        ({"splits": {}}, "splits={}"),
        ({"splits": {"train": 0}}, "'train'=0"),
        ({"splits": {"train": 2.7}}, "samples of split 'train'=2.7, expected a whole number"),
        ({"splits": {"": 2}}, "splits={'': 2}"),
        ({"chunk": 0}, "chunk=0"),
        ({"splits": [5, 3]}, r"splits=\[5, 3\]; expected the number of samples of each by its name"),
        ({"held": {FINE: ["validation"]}}, "holds validation"),
        ({"held": {FINE: ["test"]}, "chunk": 2}, r"r12x8 holds only .*chunk=2, expected a divisor of 5"),
        ({"held": {FINE: ["test"], COARSE: ["test"]}, "chunk": 1}, "no resolution holds split 'train'"),
        ({"held": {Grid.uniform((3, 2)): ["test"]}}, "held: grids .*add it to the grids, or leave it out"),
        ({"grids": []}, "grids of the shapes .*give each once"),
        ({"grids": [COARSE, COARSE]}, "grids of the shapes .*give each once"),
        ({"grids": [Grid.uniform((6, 4), periodic=True)]}, "'y': periodic=True in the grids.*say the same"),
        ({"levels": "sampled"}, "levels='sampled'; expected one of resampled, independent, unknown"),
        ({"levels": "unknown", "derived": {COARSE: (FINE, "mean")}}, "derived: .* and levels='resampled'"),
        ({"coordinates": {"z": {"units": "m"}}}, "coordinates of z; expected some of y, x"),
        ({"coordinates": {"x": {"units": "degrees_north"}}}, "on a sphere.* pass as_plane=True"),
        ({"variables": WAVES[2:]}, "no input .*only outputs that vary in time need none"),
        (
            {"variables": [Variable("a", "input", initial_of="v"), HEAT[1]], "times": TIMES},
            "initial_of='v'; expected, of a steady input, an output that varies in time: u",
        ),
    ],
)
def test_inconsistent_layout_is_refused_and_replaces_nothing(kept, change, message):
    with pytest.raises(InputError, match=message):
        empty(kept.path, overwrite=True, **change)
    np.testing.assert_array_equal(
        open_store(kept.path).read(FINE, "u"), waves(range(8), FINE)["u"].astype(np.float32)
    )


def test_a_version_that_is_not_known_is_refused(store):
    root = zarr.open_group(store.path, mode="r+")
    root.attrs["format_version"] = 2
    with pytest.raises(InputError, match=r"format version 2, .* reads version 1: read it with the mano_op"):
        open_store(store.path)
    root.attrs["format"] = "other"
    with pytest.raises(
        InputError, match=r"is a zarr store, but not one of fields \(attribute format='other'\)"
    ):
        open_store(store.path)


@pytest.mark.parametrize("name", ["", ".", "..", "__hidden", "a/b", "a\nb", "a" * 201, "w@+1", "u@t=0.5", 3])
def test_names_that_zarr_or_labels_cannot_have_are_refused(name):
    with pytest.raises(InputError, match=f"variable {re.escape(repr(name))}: .*"):
        Variable(name, "input")
    with pytest.raises(InputError, match="role='target'"):
        Variable("a", "target")
    with pytest.raises(InputError, match="reference=nan; expected a finite number"):
        Variable("a", "input", reference=np.nan)


def test_names_that_zarr_and_xarray_take_are_kept(tmp_path):
    names = ["2m_temperature", "_hidden", "a b", "größe", "wind@10m", "x=y", "$p$", "<b>"]
    fields = {name: i + np.arange(8.0).reshape(2, 4) for i, name in enumerate([*names, "u"])}
    store = store_of(
        tmp_path / "a.zarr",
        [Grid.uniform((4,))],
        [*(Variable(name, "input") for name in names), Variable("u", "output")],
        lambda samples, _: {name: values[samples] for name, values in fields.items()},
        {"train": 2},
    )
    assert open_store(store.path).inputs == tuple(names) == FieldDataset(store, 4).inputs
    assert check_store(store.path, progress=False) == []
    tree = xr.open_datatree(store.path)
    for name in names:
        np.testing.assert_array_equal(store.read(4, name), fields[name])
        np.testing.assert_array_equal(tree["r4"][name], fields[name])


def test_a_store_pickles_as_its_path(kept):
    content = pickle.dumps(kept)
    assert len(content) < 300
    copy = pickle.loads(content)
    assert isinstance(copy.path, Path)
    np.testing.assert_array_equal(copy.read(FINE, "u"), kept.read(FINE, "u"))
    assert copy.statistics == kept.statistics


def test_store_begun_anew_refuses_writes_through_the_old_one(tmp_path):
    old = empty(tmp_path / "waves.zarr", provenance={"seed": 0})
    first = old.pending()[0]
    sent = pickle.dumps(old)
    new = empty(tmp_path / "waves.zarr", provenance={"seed": 1}, overwrite=True)
    values = {grid: waves(range(2), grid) for grid in (COARSE, FINE)}
    for stale in (old, pickle.loads(sent)):
        for change in (lambda s: s.write(first, values), lambda s: s.finish(), lambda s: s.discard()):
            with pytest.raises(InputError, match="begun anew since it was opened here"):
                change(stale)
    assert new.pending() == new.layout.chunks
    fill(pickle.loads(pickle.dumps(new)))
    new.finish()
    assert open_store(new.path).attrs["provenance"]["seed"] == 1
    assert "being_written" not in open_store(new.path).attrs
    with pytest.raises(InputError, match="is gone"):
        old.write(first, values)


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_is_replaced_by_what_it_names(kept, tmp_path, monkeypatch, relative):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(kept.path, tmp_path / "far" / "waves.zarr", dirs_exist_ok=False)
    link = tmp_path / "link.zarr"
    link.symlink_to(Path("far/waves.zarr") if relative else tmp_path / "far" / "waves.zarr")
    store = empty("link.zarr" if relative else link, overwrite=True)
    assert store.path == tmp_path / "far" / "waves.zarr"
    fill(store)
    assert link.is_symlink() and open_store(link).splits == SPLITS
    store.finish()
    assert link.is_symlink() and sorted(path.name for path in tmp_path.rglob("*.zarr*")) == [
        "link.zarr",
        "waves.zarr",
    ]
    np.testing.assert_array_equal(
        open_store(link).read(COARSE, "a"), np.float32(waves(range(8), COARSE)["a"])
    )
    with pytest.raises(InputError, match="exists; give another path, or overwrite=True"):
        empty(link)


def test_a_link_to_nothing_becomes_a_store_and_to_other_things_is_refused(tmp_path):
    (tmp_path / "new.zarr").symlink_to(tmp_path / "target.zarr")
    assert empty(tmp_path / "new.zarr").path == tmp_path / "target.zarr"
    (tmp_path / "loop.zarr").symlink_to(tmp_path / "loop.zarr")
    with pytest.raises(InputError, match="is a symbolic link that leads nowhere"):
        empty(tmp_path / "loop.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("years of work")
    (tmp_path / "other.zarr").symlink_to(tmp_path / "folder")
    with pytest.raises(InputError, match="is no store of fields, so overwrite=True leaves it alone"):
        empty(tmp_path / "other.zarr", overwrite=True)
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"


def version_2(path, consolidated):
    xr.Dataset({"u": ("x", np.zeros(4))}).to_zarr(path, zarr_format=2, consolidated=consolidated)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (partial(version_2, consolidated=False), "is a group of zarr format 2"),
        (partial(version_2, consolidated=True), "is a group of zarr format 2"),
        (partial(zarr.create_array, shape=4, dtype="f4", zarr_format=2), "is an array of zarr format 2"),
        (Path.mkdir, "is a folder without a zarr.json"),
        (lambda path: path.write_bytes(b"CDF"), "is a file"),
    ],
)
def test_paths_of_other_contents_name_them(tmp_path, make, what):
    make(tmp_path / "other")
    with pytest.raises(
        InputError, match=f"{what}, no zarr store of format 3; .*make a store with .*`write_fields`"
    ):
        open_store(tmp_path / "other")


def test_chunk_written_by_times_counts_with_the_last(tmp_path):
    grid, times = Grid.uniform((4,)), [0.0, 1.0, 2.0]
    variables = [Variable("a", "input"), Variable("u", "output", time=True)]
    store = empty(
        tmp_path / "a.zarr",
        grids=[grid],
        variables=variables,
        times=times,
        chunk_times=2,
        chunk=4,
        splits={"train": 4},
        boundary_conditions={"x": "open"},
    )
    a, u = np.arange(16.0).reshape(4, 4), np.arange(48.0).reshape(4, 3, 4)
    (samples,) = store.pending()
    with pytest.raises(InputError, match=r"times=slice\(1, 3, None\) is no chunk of .*`layout\.time_chunks`"):
        store.write(samples, {grid: {"u": u[:, 1:]}}, slice(1, 3))
    with pytest.raises(InputError, match=r"r4: variables \['u'\]; expected \['a', 'u'\]"):
        store.write(samples, {grid: {"u": u[:, :2]}}, slice(0, 2))
    store.write(samples, {grid: {"a": a, "u": u[:, :2]}}, slice(0, 2))
    assert store.pending() == [samples]
    store.write(samples, {grid: {"u": u[:, 2:]}}, slice(2, 3))
    assert store.pending() == []
    store.finish()
    np.testing.assert_array_equal(store.read(4, "u"), u)
    assert store.statistics["u"]["mean"] == pytest.approx(
        np.average(u, weights=np.broadcast_to(grid.weights, u.shape))
    )
    assert check_store(store.path, progress=False) == []
