"""Functions from elsewhere are judged as what they are."""

import pytest
import torch
from helpers import moving_wave_store, store_of
from test_transfer import FIELDS, Pointwise, errors, perfect, sines
from torch import nn

from mano_op.errors import InputError
from mano_op.grid import Grid
from mano_op.transfer import Evidence, Trained, evaluate_transfer, summary
from mano_op.transfer.baselines import interpolate, restrict

COARSE, FINE = Grid.uniform((8, 8)), Grid.uniform((16, 16))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("functions") / "sines.zarr"
    return store_of(path, [COARSE, FINE], FIELDS, sines, {"train": 4, "test": 12})


def off(x):
    """Off by a tenth, and by more where there is a bump."""
    return 1.1 * perfect(x) + 0.01 * torch.cat([x**2, x**2], dim=1)


def interpolating(end):
    """Solve on the home grid, on whatever grid the input is, and interpolate with known ends or none."""

    def function(x):
        if x.shape[-1] == 8:
            return off(x)
        up = off(restrict(x, FINE, COARSE, "injection"))
        return interpolate(up, COARSE, FINE, end)

    return function


def judge(function, store, resolutions=(8, 16)):
    results = evaluate_transfer({"f": Trained(function, resolution=8)}, store, resolutions, progress=False)
    return results, summary(results).sel(model="f", train_resolution="r8", resolution="r16", variable="u")


@pytest.mark.parametrize(
    ("function", "verdict", "sentence"),
    [
        (interpolating(0.0), "undecided", "no difference can be told between direct inference ("),
        (interpolating(None), "worse", "is worse than interpolating its own coarse prediction ("),
        (
            lambda x: torch.full((len(x), 2, *x.shape[2:]), 0.5),
            "no better than mean",
            "is worse than predicting",
        ),
        (off, "improves", "improves on interpolating its own coarse prediction ("),
    ],
)
def test_functions_have_the_verdict_that_they_deserve(store, function, verdict, sentence):
    results, cell = judge(function, store)
    assert cell["verdict"].item() == verdict
    assert sentence in cell["sentence"].item()
    if verdict == "undecided":  # it is DPU, to the last bit
        assert (
            errors(results, "r16", "direct", model="f") == errors(results, "r16", "dpu_injection", model="f")
        ).all()
        assert errors(results, "r16", "direct", "mismatch", model="f").max() < 1e-15


def test_functions_and_modules_have_inputs_and_outputs_in_physical_units(store):
    module = nn.Sequential(Pointwise(perfect), nn.Dropout(0.9)).train()  # is evaluated without dropout
    models = {
        "function": Trained(perfect, resolution="r8"),
        "module": [Trained(module, resolution=FINE), Trained(nn.Conv2d(1, 2, 1), resolution=[8, 16], seed=3)],
    }
    evidence = Evidence()
    results = evaluate_transfer(models, store, [8, 16], evidence=evidence, progress=False)
    assert results["run"].values.tolist() == [
        ("function", "r8", 0), ("module", "r16", 0), ("module", "r8+r16", 3),
    ]  # fmt: skip
    exact = results["error"].sel(predictor="direct", metric="relative_l2")[:2]
    assert (exact == 0).all()
    assert results["parameters"].isnull().values.tolist() == [True, True, False]
    assert results["parameters"][-1] == 4 and results["flops"][-1, 0] == 2 * 2 * 64
    assert evidence.fields["r8"]["input"].dtype == "float32"


def test_functions_step_on_in_time(tmp_path):
    grids = [Grid.uniform((n,), periodic=True) for n in (8, 16)]
    store = moving_wave_store(tmp_path / "w.zarr", grids, {"train": 2, "test": 3})
    assert store.inputs == ("force",)
    decay = Trained(lambda x: 0.9 * x[:, 1:], resolution=8, time_steps=(1, 1))
    results = evaluate_transfer({"decay": decay}, store, [16], rollout=2, progress=False)
    assert results["variable"].values.tolist() == ["w@+1", "w@+2"]


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        (perfect, r"f: function, expected a Run .* or Trained\(function, resolution=...\)"),
        (Trained(perfect, 64), "f was trained at 64, whose grid is needed"),
        (Trained(lambda x: x, 8), r"f cannot predict at r16: .* has 1 channels; expected 2: u, v"),
        (Trained(lambda x: perfect(x)[..., 1:], 8), r"its output has shape \(1, 2, 16, 15\), expected"),
        (Trained(lambda x: x.numpy().nothing, 8), "f cannot predict at r16: 'numpy.ndarray' object has no"),
        (Trained(perfect, 8, time_steps=(1, 1)), "nothing in the store varies in time"),
    ],
)
def test_functions_that_do_not_fit_are_refused(store, trained, message):
    with pytest.raises(InputError, match=message):
        evaluate_transfer({"f": trained}, store, [16], progress=False)


def test_functions_need_a_training_split_whose_mean_they_have_to_beat(tmp_path):
    store = store_of(tmp_path / "s.zarr", [COARSE], FIELDS, sines, {"test": 3})
    with pytest.raises(InputError, match="has no split 'train', whose mean it has to beat"):
        evaluate_transfer({"f": Trained(perfect, 8)}, store, [8], progress=False)
