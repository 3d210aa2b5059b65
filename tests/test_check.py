"""Each thing that can be wrong with a store is found and said, and nothing else is."""

import json
import shutil

import numpy as np
import pytest
import zarr
from helpers import wave_store, waves

from mano_op.data.check import check_store
from mano_op.data.coarsen import coarsen_store
from mano_op.data.store import open_store
from mano_op.grid import Grid
from mano_op.problems import generate_darcy

COARSE, FINE = Grid.uniform((6, 4)), Grid.uniform((12, 8))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "waves.zarr"
    return wave_store(path, [COARSE, FINE], {"train": 5, "test": 3}, held={FINE: ["train"]}, chunk=1)


@pytest.fixture
def store(kept, tmp_path):
    return open_store(shutil.copytree(kept.path, tmp_path / "waves.zarr"))


def check(store):
    return check_store(store.path, progress=False)


def test_stores_that_are_right(kept, tmp_path):
    assert check(kept) == []
    options = {"samples": {"train": 3, "test": 2}, "progress": False}
    for registration in ("node", "node_both", "cell"):
        store = generate_darcy(
            tmp_path / f"{registration}.zarr", [5, 9], registration=registration, **options
        )
        assert check(store) == []
    means = coarsen_store(kept, tmp_path / "means.zarr", [(3, 2)], method="mean", progress=False)
    assert check(means) == []


def shift_samples(root):
    root["r6x4/sample"][:] = np.arange(8)[::-1]


def rename_split(root):
    root["r6x4/split"][2] = "test"


def move_bounds(root):
    root["r12x8/y_bnds"][3, 1] = 0.9


def forget_bounds(root):
    root["r12x8/x"].attrs["bounds"] = "x_edges"


def other_units(root):
    root["r6x4/u"].attrs["units"] = "hPa"


def spoil_value(root):
    root["r12x8/b"][4, 0, 1] = np.inf


def change_value(root):
    root["r12x8/b"][3, 2, 2] = 17.0


def add_group(root):
    root.create_group("r24x16")


def leave_array(root):
    root.create_array("written", shape=(2,), dtype=bool)


def lose_statistics(root):
    told = dict(root.attrs["statistics"])
    told["variables"] = {**told["variables"], "u": {"mean": 1.0, "std": 2.0}}
    root.attrs["statistics"] = told


@pytest.mark.parametrize(
    ("damage", "violations"),
    [
        (shift_samples, ["r6x4/sample: expected the numbers 0 to 7 of train, test"]),
        (rename_split, ["r6x4/split: expected train 5 times, test 3 times"]),
        (move_bounds, ["r12x8/y_bnds: expected the interval that each point of a node axis stands for"]),
        (forget_bounds, ["r12x8/x: attribute bounds='x_edges', expected 'x_bnds'"]),
        (other_units, ["r6x4/u: attribute units='hPa', another level has 'Pa'"]),
        (spoil_value, ["r12x8/b: sample 4 has a NaN or an infinity"]),
        (
            change_value,
            [
                "statistics of b: mean",
                "statistics of b: std",
                "r6x4/b: sample 3 differs from r12x8 where they share points",
            ],
        ),
        (add_group, ["r24x16: a group that the layout of the levels does not name"]),
        (leave_array, ["written: an array at the root"]),
        (lose_statistics, ["statistics of u: mean 1.0, expected", "statistics of u: std 2.0, expected"]),
    ],
)
def test_each_violation_is_explained(store, damage, violations):
    damage(zarr.open_group(store.path, mode="r+", use_consolidated=False))
    # What was written past the root's copy of the metadata, xarray would not see: copy it again.
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(store.path)
    found = check(store)
    assert len(found) == len(violations), found
    for sentence, violation in zip(found, violations, strict=True):
        assert sentence.startswith(violation)


def test_damaged_chunks_are_each_named(store):
    for number in (1, 3):
        (chunk,) = (store.path / "r12x8" / "a" / "c" / str(number)).glob("*/*")
        content = bytearray(chunk.read_bytes())
        content[9] ^= 1
        chunk.write_bytes(content)
    (lost,) = (store.path / "r6x4" / "u" / "c" / "2").glob("*/*")
    lost.unlink()
    found = check(store)
    assert len(found) == 3
    assert found[0].startswith("r6x4/u: sample 2 has a NaN or an infinity")
    assert found[1].startswith("r12x8/a: the chunk of samples 1 to 1 is damaged")
    assert found[2].startswith("r12x8/a: the chunk of samples 3 to 3 is damaged")


def test_a_missing_array_and_a_missing_store(store, tmp_path):
    shutil.rmtree(store.path / "r12x8" / "a")
    assert check(store) == ["r12x8/a: the array is missing; restore it or make the store anew"]
    [sentence] = check_store(tmp_path / "none.zarr", progress=False)
    assert "does not exist" in sentence


def test_independent_levels_may_differ(tmp_path):
    store = wave_store(tmp_path / "w.zarr", [COARSE, FINE], {"train": 2}, chunk=1)
    root = zarr.open_group(store.path, mode="r+")
    values = waves(range(2), COARSE)["u"] + 1
    root["r6x4/u"][:] = values
    assert len(check(store)) == 1
    root.update_attributes({"levels": "independent"})
    assert check(open_store(store.path)) == []


@pytest.mark.parametrize("name", ["sample", "split", "y_bnds", "x_bnds"])
@pytest.mark.parametrize("damage", ["flip", "empty", "truncate"])
def test_a_damaged_label_is_named(store, name, damage):
    file = next(path for path in (store.path / "r6x4" / name / "c").rglob("*") if path.is_file())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes({"flip": bytes(content), "empty": b"", "truncate": bytes(content[:-3])}[damage])
    (violation,) = check(store)
    assert violation.startswith(f"r6x4/{name}: cannot be read (")
    assert "restore it" in violation


def test_no_flipped_bit_of_the_metadata_is_a_traceback(store):
    generator = np.random.default_rng(0)
    for file in [store.path / "zarr.json", store.path / "r6x4/u/zarr.json", store.path / "r12x8/y/zarr.json"]:
        right = file.read_bytes()
        # the labels of the root, and some of the copies of the others' that follow them
        for position in generator.integers(0, len(right), 60):
            content = bytearray(right)
            content[position] ^= 1 << int(generator.integers(0, 8))
            file.write_bytes(content)
            assert all(isinstance(violation, str) for violation in check(store))
        file.write_bytes(right)
    assert check(store) == []


@pytest.mark.parametrize("statistics", [3, None, {"variables": 3}, {"variables": {"u": {"mean": "x"}}}])
def test_statistics_that_are_none(store, statistics):
    file = store.path / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["statistics"] = statistics
    file.write_text(json.dumps(metadata))
    (violation,) = check(store)
    assert "attribute statistics=" in violation
    assert "restore the store" in violation
