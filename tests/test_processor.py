"""Units in, units out; what neuraloperator's own processor does, where that is right."""

import copy
import json

import pytest
import torch
from helpers import wave_store
from hypothesis import given, settings
from hypothesis import strategies as st
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from torch import nn

from mano_op.data.processor import FieldProcessor
from mano_op.errors import InputError
from mano_op.grid import Grid

INPUTS = {"a": {"mean": 2.0, "std": 0.5}, "b": {"mean": -100.0, "std": 1e-3}}
OUTPUTS = {"u": {"mean": 1e5, "std": 1e3}}


@pytest.fixture
def processor():
    return FieldProcessor(INPUTS, OUTPUTS)


def a_sample(batch=3, grid=(5, 4), seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, 2, *grid), generator=generator)
    return {"x": x, "y": 1e5 + 1e3 * torch.randn((batch, 1, *grid), generator=generator)}


def test_processor_matches_neuraloperators_own(processor):
    def normalizer(statistics):
        columns = [torch.tensor([one[what] for one in statistics.values()]) for what in ("mean", "std")]
        return UnitGaussianNormalizer(*(column.view(1, -1, 1, 1) for column in columns), eps=0.0)

    theirs = DefaultDataProcessor(normalizer(INPUTS), normalizer(OUTPUTS))
    for mode in ("train", "eval"):
        getattr(processor, mode)(), getattr(theirs, mode)()
        expected, given = theirs.preprocess(a_sample()), processor.preprocess(a_sample())
        assert given.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(given[name], expected[name], rtol=0, atol=0)
        out = torch.randn(3, 1, 5, 4)
        torch.testing.assert_close(
            processor.postprocess(out, given)[0], theirs.postprocess(out, expected)[0], rtol=0, atol=0
        )


@settings(max_examples=20)
@given(
    mean=st.floats(-1e3, 1e3, width=32),
    std=st.one_of(st.just(0.0), st.floats(1e-3, 1e3)),
    grid=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    seed=st.integers(0, 99),
)
def test_inverse_is_exact_to_rounding(mean, std, grid, seed):
    one = {"u": {"mean": mean, "std": std}}
    processor = FieldProcessor(one, one)
    y = mean + std * torch.randn((2, 1, *grid), generator=torch.Generator().manual_seed(seed))
    normal = processor.train().preprocess({"x": y, "y": y})["y"]
    back, _ = processor.eval().postprocess(normal, {})
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(back, y, rtol=4 * eps, atol=4 * eps * (abs(mean) + std))


def test_constant_field_is_only_shifted():
    constant = {"c": {"mean": 7.0, "std": 0.0}}
    processor = FieldProcessor(constant, constant)
    field = torch.tensor([7.0, 7.0, 9.0]).view(1, 1, 3)
    normal = processor.train().preprocess({"x": field, "y": field})
    for name in ("x", "y"):
        torch.testing.assert_close(normal[name], torch.tensor([[[0.0, 0.0, 2.0]]]), rtol=0, atol=0)
    torch.testing.assert_close(processor.eval().postprocess(normal["y"], {})[0], field, rtol=0, atol=0)


def test_sample_of_the_caller_stays_unchanged(processor):
    sample = {**a_sample(), "time": torch.tensor(3.0), "name": "first"}
    before = copy.deepcopy(sample)
    given = processor.train().preprocess(sample)
    assert sample.keys() == before.keys() == given.keys()
    for name in ("x", "y", "time"):
        torch.testing.assert_close(sample[name], before[name], rtol=0, atol=0)
    assert given["name"] == "first"
    processor.postprocess(given["y"], given)


def test_sample_without_a_batch_matches_the_batch(processor):
    sample = a_sample()
    single = processor.preprocess({name: field[1] for name, field in sample.items()}, batched=False)
    for name, field in processor.preprocess(sample).items():
        torch.testing.assert_close(single[name], field[1], rtol=0, atol=0)


def test_modes_and_devices_can_be_chained(processor):
    model = nn.Conv2d(2, 1, 1)
    wrapped = processor.wrap(model)
    assert wrapped is processor and processor.eval() is processor and not model.training
    assert processor.train() is processor and processor.training and model.training
    assert processor.device == torch.device("cpu")
    assert processor.to("meta") is processor
    assert processor.device == torch.device("meta") == model.weight.device
    assert {field.device.type for field in processor.preprocess(a_sample()).values()} == {"meta"}


def test_gradients_pass_in_units(processor):
    out = torch.randn(2, 1, 3, 3, requires_grad=True)
    processor.eval().postprocess(out, {})[0].sum().backward()
    torch.testing.assert_close(out.grad, torch.full_like(out, 1e3))


def test_forward_calls_the_model_between_pre_and_postprocess(processor):
    class Sum(nn.Module):
        def forward(self, x, scale):
            return scale * x.sum(1, keepdim=True)

    sample = a_sample()
    out, data = processor.wrap(Sum()).eval()(**sample, scale=torch.tensor(0.5))
    normal = (sample["x"][:, 0] - 2) / 0.5 + (sample["x"][:, 1] + 100) / 1e-3
    torch.testing.assert_close(out[:, 0], 0.5 * normal * 1e3 + 1e5)
    torch.testing.assert_close(data["y"], sample["y"])
    predicted, _ = processor(x=sample["x"], scale=torch.tensor(0.5))
    torch.testing.assert_close(predicted, out, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda p, x, y: p.preprocess({"x": y, "y": y}),
            r"x of shape \(3, 1, 5, 4\) .* has 1 .*expected 2: a, b",
        ),
        (
            lambda p, x, y: p.preprocess({"x": x, "y": x}),
            r"y of shape \(3, 2, 5, 4\) .* has 2 .*expected 1: u",
        ),
        (lambda p, x, y: p.train().postprocess(x, {}), "expected 1: u"),
        (lambda p, x, y: p.eval().postprocess(x, {}), "expected 1: u"),
        (
            lambda p, x, y: FieldProcessor({"a": {"mean": 0.0, "std": -1.0}}, OUTPUTS),
            "finite means and std of at",
        ),
    ],
)
def test_channels_or_statistics_that_do_not_fit_are_refused(processor, call, message):
    with pytest.raises(InputError, match=message):
        call(processor, *a_sample().values())


def test_processor_survives_its_state_and_its_dictionary(processor, tmp_path):
    torch.save(processor.state_dict(), tmp_path / "processor.pt")
    unit = {"mean": 0.0, "std": 1.0}
    loaded = FieldProcessor({"a": unit, "b": unit}, {"u": unit})
    loaded.load_state_dict(torch.load(tmp_path / "processor.pt", weights_only=True))
    rebuilt = FieldProcessor.from_dict(json.loads(json.dumps(processor.to_dict())))
    for other in (loaded, rebuilt):
        assert (other.inputs, other.outputs) == (("a", "b"), ("u",))
        for name, field in processor.preprocess(a_sample()).items():
            torch.testing.assert_close(other.preprocess(a_sample())[name], field, rtol=0, atol=0)
        assert other.to_dict() == processor.to_dict()


def test_statistics_are_those_of_the_training_split(tmp_path):
    grid = Grid.uniform((8, 8))
    store = wave_store(tmp_path / "waves.zarr", [grid], {"train": 6, "test": 4})
    processor = FieldProcessor.from_store(store)
    assert list(processor.to_dict()["inputs"]) == ["a", "b"]
    fields = store.dataset(8)[["a", "b"]].isel(sample=slice(0, 6)).to_array().values
    x = processor.preprocess({"x": torch.from_numpy(fields).transpose(0, 1)})["x"].double()
    mean, variance = ((x**power * torch.from_numpy(grid.weights)).sum((-2, -1)).mean(0) for power in (1, 2))
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-6)
    torch.testing.assert_close(variance, torch.ones_like(variance), rtol=1e-5, atol=0)
