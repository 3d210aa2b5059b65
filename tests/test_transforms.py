"""Values under a transform: statistics, batches and back."""

import numpy as np
import pytest
import torch
from helpers import store_of
from hypothesis import given
from hypothesis import strategies as st

from mano_op.data.layout import Variable
from mano_op.data.loaders import field_loaders
from mano_op.data.processor import _FORWARD, _INVERSE, FieldProcessor
from mano_op.data.transforms import TRANSFORMS
from mano_op.errors import InputError
from mano_op.grid import Grid

GRID = Grid.uniform((4, 5))


def rough(samples, grid):
    """A positive field over five orders of magnitude, and a signed one."""
    random = [np.random.default_rng(int(i)) for i in samples]
    return {
        "k": np.stack([10 ** draw.uniform(-3, 2, grid.shape) for draw in random]),
        "u": np.stack([np.sinh(draw.normal(scale=4, size=grid.shape)) for draw in random]),
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    variables = [Variable("k", "input"), Variable("u", "output")]
    path = tmp_path_factory.mktemp("rough") / "rough.zarr"
    return store_of(path, [GRID], variables, rough, {"train": 6, "test": 2}, ends=None)


@given(name=st.sampled_from(list(TRANSFORMS)), value=st.floats(1e-3, 1e3), negative=st.booleans())
def test_tensors_and_arrays_are_transformed_alike_and_back(name, value, negative):
    value = -value if negative and name != "log" else value
    tensor = torch.tensor(value, dtype=torch.float64)
    transformed = _FORWARD[name](tensor)
    assert transformed.item() == pytest.approx(TRANSFORMS[name](np.float64(value)), rel=1e-14)
    assert _INVERSE[name](transformed).item() == pytest.approx(value, rel=1e-12)


def test_statistics_are_those_of_the_transformed_values(store):
    chosen = {"k": "log", "u": "asinh"}
    told = store.statistics_of("train", chosen)["variables"]
    fields = rough(range(6), GRID)
    weights = np.broadcast_to(GRID.weights, (6, *GRID.shape))
    for name, function in (("k", np.log), ("u", np.arcsinh)):
        values = function(fields[name].astype(np.float32).astype(float))
        mean = np.average(values, weights=weights)
        std = np.average((values - mean) ** 2, weights=weights) ** 0.5
        assert told[name]["transform"] == chosen[name]
        assert (told[name]["mean"], told[name]["std"]) == pytest.approx((mean, std), rel=1e-12)


def test_batches_are_normal_under_the_transform_and_come_back_in_units(store):
    loaders = field_loaders(store, train=(4, 5), test=[], batch_size=6, transforms={"k": "log", "u": "asinh"})
    [batch] = loaders.train
    processor = loaders.processor.train()
    given = processor.preprocess(batch)
    weights = torch.from_numpy(GRID.weights)
    for name in ("x", "y"):  # the whole training split: mean 0, variance 1
        values = given[name].double()
        assert (values * weights).sum().item() / 6 == pytest.approx(0, abs=1e-5)
        assert (values**2 * weights).sum().item() / 6 == pytest.approx(1, rel=1e-4)
    out, _ = processor.eval().postprocess(given["y"], given)
    torch.testing.assert_close(out, batch["y"], rtol=1e-4, atol=1e-4)
    # In evaluation the truth is left as it is.
    torch.testing.assert_close(processor.preprocess(batch)["y"], batch["y"], rtol=0, atol=0)


def test_processor_with_transforms_survives_its_dictionary_and_its_state(store):
    processor = FieldProcessor.from_store(store, transforms={"k": "log"})
    sample = {"x": torch.rand(2, 1, 4, 5) + 0.1, "y": torch.randn(2, 1, 4, 5)}
    again = FieldProcessor.from_dict(processor.to_dict())
    torch.testing.assert_close(again.preprocess(sample), processor.preprocess(sample), rtol=0, atol=0)
    again.load_state_dict(processor.state_dict())
    with pytest.raises(InputError, match="the state is of channels"):
        FieldProcessor.from_store(store).load_state_dict(processor.state_dict())


def test_transforms_that_do_not_fit_are_refused(store):
    for transforms, message in (
        ({"u": "log"}, r"r4x5/u: the smallest value is -.*of positive values"),
        ({"u": "logg"}, r"transform of u='logg'; expected one of log, asinh; did you mean 'log'\?"),
        ({"v": "log"}, "a transform of v; expected some of k, u"),
    ):
        with pytest.raises(InputError, match=message):
            field_loaders(store, train=(4, 5), test=[], batch_size=2, transforms=transforms)
    with pytest.raises(InputError, match="transforms"):
        FieldProcessor({"k": {"mean": 0.0, "std": 1.0, "transform": "sqrt"}}, {})
