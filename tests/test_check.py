"""Each thing that can be wrong with a store is found and said, and nothing else is."""

import json
import shutil

import numpy as np
import pytest
import zarr
from helpers import WAVES, store_of, wave_store, waves

from mano_op.data.channels import channels_of
from mano_op.data.check import check_store
from mano_op.data.coarsen import coarsen_store
from mano_op.data.layout import Variable
from mano_op.data.store import create_store, open_store
from mano_op.errors import InputError
from mano_op.grid import Grid

COARSE, FINE = Grid.uniform((6, 4)), Grid.uniform((12, 8))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "waves.zarr"
    return wave_store(path, [COARSE, FINE], {"train": 5, "test": 3}, held={FINE: ["train"]}, chunk=1)


@pytest.fixture
def store(kept, tmp_path):
    return open_store(shutil.copytree(kept.path, tmp_path / "waves.zarr"))


@pytest.fixture(scope="module")
def kept_means(kept):
    path = kept.path.with_name("means.zarr")
    return coarsen_store(kept, path, [(6, 4)], method="mean", progress=False)


@pytest.fixture
def means(kept_means, tmp_path):
    return open_store(shutil.copytree(kept_means.path, tmp_path / "means.zarr"))


def check(store):
    return check_store(store.path, progress=False)


def test_right_stores_have_no_violations(kept, tmp_path):
    assert check(kept) == []
    for registration, fine in (("node_both", 9), ("cell", 15)):
        grids = [Grid.uniform((n, n), registration=registration) for n in (5, fine)]
        assert check(wave_store(tmp_path / f"{registration}.zarr", grids, {"train": 2, "test": 1})) == []
    held = {COARSE: ["near"], FINE: ["far"]}
    tests = wave_store(tmp_path / "tests.zarr", [COARSE, FINE], {"near": 1, "far": 1}, held=held, chunk=1)
    assert check(tests) == []


def write_anew(path, **changed):
    """Store an array with the same values in another way."""

    def damage(root):
        old = root[path]
        kept = {
            name: getattr(old, name) for name in ("shape", "chunks", "dtype", "fill_value", "compressors")
        }
        kept |= {"dimension_names": old.metadata.dimension_names, "attributes": dict(old.attrs)}
        values = old[...]
        root.create_array(path, **{**kept, **changed}, overwrite=True)[...] = values

    return damage


def set_attributes(place="", **attributes):
    return lambda root: (root[place] if place else root).attrs.update(attributes)


def forget(name, place=""):
    return lambda root: (root[place] if place else root).attrs.pop(name)


def set_value(place, index, value):
    return lambda root: root[place].set_basic_selection(index, value)


def say_two_values(root):
    root["r6x4/u"].attrs["boundary_value"], root["r12x8/u"].attrs["boundary_value"] = 0.5, 0.25


CRC, ZSTD = zarr.codecs.Crc32cCodec(), zarr.codecs.ZstdCodec(level=3)


@pytest.mark.parametrize(
    "damages",
    [
        [
            (set_value("r12x8/b", (4, 0, 1), np.inf), "r12x8/b: sample 4 has a NaN or an infinity"),
            (write_anew("r12x8/a", compressors=[CRC, ZSTD]), "r12x8/a: compressors Crc32cCodec, ZstdCodec,"),
            (
                set_attributes("r12x8/u", boundary_value=0.5),
                "r6x4/u: attribute boundary_value=None, expected",
            ),
            (set_attributes("r6x4/u", units="K"), "r6x4/u: attribute units='K', expected 'Pa', as at"),
            (set_attributes("r6x4/x", units="km"), "r6x4/x: attribute units='km', expected '1', as at"),
            (set_value("r6x4/sample", 1, 7), "r6x4/sample: expected 0, 1, 2, 3, ..., 7 (8); set them"),
            (lambda root: root.create_group("more"), "more: a group that the layout of multiscales"),
            (forget("Conventions"), "attribute Conventions=None, expected 'CF-1.11'; set it"),
            (forget("title"), "attribute title=None, expected a text, which may be empty; set it"),
            (forget("provenance"), "attribute provenance=None, expected what the fields were"),
        ],
        [
            (
                set_value("r12x8/b", (3, 2, 2), 17.0),
                "statistics of b: mean",
                "statistics of b: std",
                "r6x4/b: sample 3 differs from r12x8 where they share points",
            ),
            (write_anew("r12x8/x", compressors=None), "r12x8/x: compressors none, expected Crc32cCodec as"),
            (write_anew("r6x4/b", chunks=(4, 6, 4)), "r6x4/b: chunks of shape (4, 6, 4), expected (1, 6"),
            (
                set_attributes("r6x4/u", boundary_value={"y": [0.5, None]}),
                "r6x4/u: attribute boundary_value={'y': [0.5, None]}, expected None, as at",
            ),
            (set_attributes("r6x4/x", bounds="b"), "r6x4/x: attribute bounds='b', expected 'x_bnds', as"),
            (set_value("r6x4/split", 1, "test"), "r6x4/split: expected train, train, train, train, ..."),
            (write_anew("r6x4/u", dtype=float), "r6x4/u: stored as float64, expected float32; write"),
            (lambda root: root.create_array("more", data=np.ones(1)), "more: an array at the root; a"),
            (set_attributes(Conventions="CF-1.1"), "attribute Conventions='CF-1.1', expected 'CF-1.11'"),
            (
                set_attributes(provenance={"versions": {"mano_op": "0.1.0"}}),
                "attribute provenance has versions={'mano_op': '0.1.0'}, expected those",
            ),
        ],
        [
            (say_two_values, "r6x4/u: attribute boundary_value=0.5, expected 0.25, as at"),
            (set_value("r6x4/x_bnds", ..., 0.0), "r6x4/x_bnds: expected 0, 0.125, 0.125, 0.375, ..., "),
            (write_anew("r6x4/u", fill_value=0.0), "r6x4/u: fill_value=0.0, expected NaN, or a chunk"),
            (forget("Conventions", "r6x4"), "r6x4: attribute Conventions=None, expected 'CF-1"),
        ],
    ],
)
def test_each_violation_is_explained(store, damages):
    root = zarr.open_group(store.path, mode="r+", use_consolidated=False)
    for damage, *_ in damages:
        damage(root)
    # What was written past the root's copy of the metadata, xarray would not see: copy it again.
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(store.path)
    sentences, violations = check(store), [text for _, *texts in damages for text in texts]
    assert len(sentences) == len(violations), sentences
    assert all(sum(sentence.startswith(text) for sentence in sentences) == 1 for text in violations), (
        sentences
    )


def test_options_of_the_format_are_no_violations(tmp_path):
    """No title, pairs of boundary values, chunks of times, a last chunk that is not full, two conventions."""
    channel = create_store(
        tmp_path / "channel.zarr",
        [COARSE, FINE],
        [Variable("u", "output", boundary_value={"y": (1.0, None)}, time=True)],
        {"train": 3},
        title="",
        provenance={},
        levels="unknown",
        boundary_conditions={"y": "wall", "x": "open"},
        chunk=2,
        times=(0.0, 0.5, 1.0),
        chunk_times=2,
    )
    for samples in channel.pending():
        n = samples.stop - samples.start
        channel.write(samples, {grid: {"u": np.ones((n, 3, *grid.shape))} for grid in (COARSE, FINE)})
    channel.finish()
    root = zarr.open_group(channel.path, mode="r+")
    assert check(channel) == []
    root.attrs["Conventions"] = "CF-1.11, ACDD-1.3"
    assert check(channel) == []


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


@pytest.mark.parametrize(
    ("file", "content", "violation"),
    [
        ("r6x4/zarr.json", None, "r6x4: its zarr.json is missing; restore it or make the store anew"),
        ("r6x4/zarr.json", "(", "r6x4: its zarr.json is damaged"),
        ("r12x8/a/zarr.json", None, "r12x8/a: the array is missing; restore it or make the store anew"),
        ("r12x8/a/zarr.json", "(", "r12x8/a: its zarr.json is damaged"),
    ],
)
def test_missing_and_damaged_metadata_are_named(store, file, content, violation):
    (store.path / file).unlink() if content is None else (store.path / file).write_text(content)
    (sentence,) = check(store)
    assert sentence.startswith(violation)


def test_missing_store_is_refused_and_partial_one_is_a_violation(tmp_path):
    with pytest.raises(InputError, match=r"none\.zarr does not exist"):
        check_store(tmp_path / "none.zarr", progress=False)
    wave_store(tmp_path / "a.zarr", [COARSE], {"test": 1}).path.rename(tmp_path / "a.zarr.partial")
    (sentence,) = check_store(tmp_path / "a.zarr", progress=False)
    assert "is a partial store: 1 of 1 samples are written" in sentence


@pytest.mark.parametrize(
    ("changes", "violation"),
    [
        ({"derived_from": "r9"}, "derived_from='r9', expected one of r12x8, r6x4; set it, or leave it out"),
        ({"resampling_method": ""}, "resampling_method='', expected how it was made from r12x8; set it"),
        ({"transform": {}}, "transform={}, expected {'scale': [2.0, 2.0], 'translation': [0.0, 0.0]}, from"),
    ],
)
def test_wrong_derivations_are_named(means, changes, violation):
    root = zarr.open_group(means.path, mode="r+", use_consolidated=False)
    multiscales = dict(root.attrs["multiscales"])
    (level,) = [level for level in multiscales["layout"] if level["asset"] == "r6x4"]
    level |= changes
    root.attrs["multiscales"] = multiscales
    (sentence,) = check(means)
    assert sentence.startswith(f"multiscales: r6x4 has {violation}")


def test_only_values_at_points_have_to_agree_at_shared_points(means):
    assert check(means) == []
    root = zarr.open_group(means.path, mode="r+", use_consolidated=False)
    root["r6x4/u"].attrs["cell_methods"] = "area: point"
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(means.path)
    mislabelled, differing = check(means)
    assert mislabelled.startswith(
        "r6x4/u: attribute cell_methods='area: point', expected 'area: mean', as mult"
    )
    assert differing.startswith("r6x4/u: sample 0 differs from r12x8 where they share points")
    root["r6x4/u"].attrs["cell_methods"] = "area: mean"
    root["r12x8/u"].attrs["cell_methods"] = "area: mean"
    with pytest.warns(UserWarning, match="Consolidated metadata"):
        zarr.consolidate_metadata(means.path)
    assert check(means) == []


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("sample", "flip"),
        ("split", "empty"),
        ("split", "truncate"),
        ("y_bnds", "flip"),
        ("x_bnds", "truncate"),
    ],
)
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
    for name, n in (("", 12), ("r6x4/u/", 4)):
        file = store.path / f"{name}zarr.json"
        right = file.read_bytes()
        # the labels of the root, and some of the copies of the others' that follow them
        for position in generator.integers(0, len(right), n):
            content = bytearray(right)
            content[position] ^= 1 << int(generator.integers(0, 8))
            file.write_bytes(content)
            assert all(isinstance(violation, str) for violation in check(store))
        file.write_bytes(right)
    assert check(store) == []


@pytest.mark.parametrize("statistics", [3, None, {"variables": 3}, {"variables": {"u": {"mean": "x"}}}])
def test_statistics_without_numbers_are_named(store, statistics):
    file = store.path / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["statistics"] = statistics
    file.write_text(json.dumps(metadata))
    (violation,) = check(store)
    assert "attribute statistics=" in violation
    assert "restore the store" in violation


def shifted(samples, grid):
    """Fields of `WAVES` in which the last sample is the first one again."""
    return waves(np.where(np.asarray(samples) == 7, 0, samples), grid)


def test_fields_that_two_splits_share_are_named(tmp_path):
    grids = [Grid.uniform((6, 4)), Grid.uniform((12, 8))]
    store = store_of(tmp_path / "a.zarr", grids, WAVES, shifted, {"train": 5, "test": 3}, ends=None)
    for key in ("r6x4", "r12x8"):
        told = [
            line for line in check_store(store.path, progress=False) if line.startswith(f"{key}: samples")
        ]
        assert told == [
            f"{key}: samples 0 ('train') and 7 ('test') have the same fields; expected splits that share "
            "none: leave these samples out of one split, and make the store anew"
        ]
    within = store_of(tmp_path / "b.zarr", grids, WAVES, shifted, {"train": 8}, ends=None)
    assert check_store(within.path, progress=False) == []


def test_samples_that_share_an_input_alone_are_two_samples(tmp_path):
    def fields(samples, grid):
        made = waves(samples, grid)
        return made | {"a": np.broadcast_to(made["a"][:1] * 0 + waves([0], grid)["a"], made["a"].shape)}

    grids = [Grid.uniform((6, 4))]
    store = store_of(tmp_path / "a.zarr", grids, WAVES, fields, {"train": 5, "test": 3}, ends=None)
    assert check_store(store.path, progress=False) == []


@pytest.mark.parametrize(("lag", "shared"), [(0, False), (2, True)])
def test_runs_that_overlap_in_time_share_fields(tmp_path, lag, shared):
    """Two runs of one flow, the second from a later time of the first; or two from one initial state."""

    def flow(samples, grid):
        x, t = grid.mesh[0], np.arange(6.0)[:, None]
        speed = {0: 1.0, 1: 1.0 if lag else 2**0.5}
        return {"w": np.stack([np.sin(2 * np.pi * (x - 0.05 * speed[i] * (t + i * lag))) for i in samples])}

    store = store_of(
        tmp_path / "a.zarr",
        [Grid.uniform((16,), periodic=True)],
        [Variable("w", "output", time=True)],
        flow,
        {"train": 1, "test": 1},
        times=range(6),
        chunk_times=4,
    )
    told = check_store(store.path, progress=False)
    if shared:
        assert told[0].startswith("r16: samples 0 ('train') at time 2 and 1 ('test') at time 0 have the same")
    else:
        assert told == []


def test_declared_initial_field_is_no_violation(tmp_path):
    def flow(samples, grid):
        x, t = grid.mesh[0], np.arange(3.0)[:, None]
        w = np.stack([np.sin(2 * np.pi * (x - 0.1 * t + 0.13 * i)) for i in samples])
        return {"w0": w[:, 0], "w": w}

    options = {"splits": {"train": 3}, "times": range(3)}
    grids = [Grid.uniform((16,), periodic=True)]
    said = [Variable("w0", "input", initial_of="w"), Variable("w", "output", time=True)]
    store = store_of(tmp_path / "a.zarr", grids, said, flow, **options)
    assert check_store(store.path, progress=False) == []
    assert channels_of(open_store(store.path).layout, time_steps=(1, 1)).inputs == ("w@+0",)
