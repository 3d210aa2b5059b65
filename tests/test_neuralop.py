"""The contract with neuraloperator, and with what of torch handles models: values after each round trip."""

import copy
import importlib.metadata
import io
import pickle
import subprocess
import sys
import tomllib
from pathlib import Path

import neuralop
import pytest
import torch
from neuralop import Trainer, get_model
from neuralop.data.transforms.data_processors import DefaultDataProcessor
from neuralop.data.transforms.normalizers import UnitGaussianNormalizer
from neuralop.losses import H1Loss, LpLoss
from neuralop.models.base_model import available_models
from neuralop.training import AdamW
from packaging.requirements import Requirement
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from mano_op import MANO, InputError, PublishedMANO
from mano_op.models.data_model import metadata_of

ROOT = Path(__file__).parents[1]
SMALL = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "window": 2, "n_levels": 2}
MODELS = {"mano": MANO, "mano_published": PublishedMANO}


def build(arch="mano", seed=0, **options):
    torch.manual_seed(seed)
    return MODELS[arch.lower()](in_channels=1, out_channels=1, **(SMALL | options))


def fields(n_samples, shape, seed=0):
    """Samples to learn: mostly a function of the point, a little of its neighbours, and not normalised."""
    x = torch.randn(n_samples, 1, *shape, generator=torch.Generator().manual_seed(seed)) + 3
    y = 4 * x + 0.2 * (x.roll(1, -1) + x.roll(1, -2)) + 5
    return [{"x": x[i], "y": y[i], "name": f"sample {i}"} for i in range(n_samples)]


def loader(n_samples, shape, seed=0):
    return DataLoader(fields(n_samples, shape, seed), batch_size=4)


def normalise():
    whole = next(iter(DataLoader(fields(16, (8, 8)), batch_size=16)))
    normalizers = [UnitGaussianNormalizer(dim=[0, 2, 3]) for _ in "xy"]
    for key, normalizer in zip("xy", normalizers, strict=True):
        normalizer.fit(whole[key])
    return DefaultDataProcessor(*normalizers)


TEST = {"r8": loader(4, (8, 8), seed=1), "r16": loader(6, (16, 12), seed=2)}
EVALUATED = {"l2": LpLoss(d=2), "h1": H1Loss(d=2, periodic_in_x=False, periodic_in_y=False)}


def train(model, n_epochs, *, training_loss=None, **options):
    """The trainer and what it returns. No shuffling, so that all runs see the same batches."""
    trainer = Trainer(model=model, n_epochs=n_epochs, data_processor=normalise())
    optimizer = AdamW(model.parameters(), lr=1e-2)
    metrics = trainer.train(
        train_loader=loader(16, (8, 8)),
        test_loaders=TEST,
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9),
        training_loss=training_loss or EVALUATED["l2"],
        eval_losses=EVALUATED,
        **options,
    )
    return trainer, metrics


def relative_l2(prediction, truth):
    return ((prediction - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).mean()


def assert_same_parameters(one, other):
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_installed_neuraloperator_is_a_promised_release():
    """So is the pinned one. 2.0.0 is the only release from 2.0 on: when there is another, `make neuralop`."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (promised,) = (r.specifier for r in map(Requirement, wanted) if r.name == "neuraloperator")
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    installed = importlib.metadata.version("neuraloperator")
    assert installed in promised and dict(pins)["neuraloperator"] in promised
    assert neuralop.__version__ == installed, "the metadata are of another copy than what is imported"


@pytest.mark.parametrize(("arch", "loss"), [("mano", "l2"), ("mano_published", "h1")])
def test_trainer_trains(arch, loss):
    """With test loaders of two resolutions. The metrics are the trained model's, in the units of the data."""
    model = build(arch)
    _, before = train(copy.deepcopy(model), 1, training_loss=EVALUATED[loss])
    trainer, after = train(model, 3, training_loss=EVALUATED[loss])
    assert after["train_err"] < 0.6 * before["train_err"]
    processor = trainer.data_processor
    for name, test_loader in TEST.items():
        totals = {"l2": 0.0, "h1": 0.0}
        for sample in test_loader:
            with torch.no_grad():
                out = model(processor.in_normalizer.transform(sample["x"]))
            out = processor.out_normalizer.inverse_transform(out)
            totals["l2"] += relative_l2(out, sample["y"]) * len(out)
            totals["h1"] += EVALUATED["h1"](out, sample["y"])
        for metric, total in totals.items():
            assert after[f"{name}_{metric}"] == pytest.approx(
                total.item() / len(test_loader.dataset), rel=1e-5
            )


def test_resumed_training_is_uninterrupted_training(tmp_path):
    """The Trainer runs the last finished epoch again: one epoch and a resumed second are three in a row."""
    train(build(), 1, save_every=1, save_dir=tmp_path)
    resumed, _ = train(build(seed=1), 2, resume_from_dir=tmp_path)
    straight, _ = train(build(), 3)
    assert_same_parameters(resumed.model, straight.model)


def test_best_model_is_kept(tmp_path):
    trainer, metrics = train(build(), 2, save_best="r16_h1", save_dir=tmp_path)
    best = MANO.from_checkpoint(tmp_path, "best_model")
    assert trainer.evaluate(EVALUATED, TEST["r16"], "r16")["r16_h1"] == metrics["r16_h1"]
    trainer.model = best
    assert trainer.evaluate(EVALUATED, TEST["r16"], "r16")["r16_h1"] <= metrics["r16_h1"]


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MANO, {}),
        (MANO, {"n_dim": 1, "positional_embedding": None, "non_linearity": "tanh", "registration": "cell"}),
        (MANO, {"n_dim": 3, "periodic": [True, False, True], "halo": 2, "channel_mlp_expansion": 0.5}),
        (PublishedMANO, {"n_levels": None, "head_dim": 3, "sampling": "avg_pool"}),
    ],
)
def test_checkpoint_round_trip(cls, options, tmp_path):
    model = cls(2, out_channels=1, **(SMALL | options))
    model.save_checkpoint(tmp_path / "new folder", "model")
    loaded = cls.from_checkpoint(tmp_path / "new folder", "model", map_location="cpu")
    x = torch.randn(2, 2, *[6] * model.n_dim)
    assert torch.equal(loaded(x), model(x))
    assert loaded._init_kwargs == model._init_kwargs
    again = cls(2, out_channels=1, **(SMALL | options))
    again.load_checkpoint(tmp_path / "new folder", "model")
    assert torch.equal(again(x), model(x))


class Config(dict):
    """What neuraloperator's scripts pass: an object that can also be indexed."""

    def __init__(self, model, **rest):
        super().__init__(rest)
        self.model = model


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize(("patching", "in_channels"), [({}, 1), ({"patching": {"levels": 2}}, 3)])
def test_get_model_builds_what_the_class_does(arch, patching, in_channels):
    assert arch in available_models()
    options = SMALL | {"out_channels": 2}
    config = Config({"model_arch": arch.upper(), "data_channels": 1} | options, **patching)
    torch.manual_seed(0)
    model = get_model(config)
    torch.manual_seed(0)
    expected = MODELS[arch](in_channels=in_channels, **options)
    x = torch.randn(1, in_channels, 7, 5)
    assert type(model) is MODELS[arch] and torch.equal(model(x), expected(x))
    with pytest.raises(InputError, match="has no option 'waves'"):
        get_model(Config({"model_arch": arch, "data_channels": 1, "out_channels": 1, "waves": 8}))


def through_torch_save(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("arch", MODELS)
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save]
)
def test_copies_are_equal_and_apart(duplicate, arch):
    model, x = build(arch), torch.randn(1, 1, 6, 7)
    expected = model(x)
    twin = duplicate(model)
    assert type(twin) is type(model) and torch.equal(twin(x), expected)
    assert metadata_of(twin.state_dict()) == metadata_of(model.state_dict())
    for parameter in twin.parameters():
        parameter.data.mul_(2)
    assert torch.equal(model(x), expected) and not torch.equal(twin(x), expected)


def test_averaged_models_load_from_their_state_dicts():
    """An exponential moving average, 0.9 of the old and 0.1 of the new, through a state dict."""
    first, second = build(seed=0), build(seed=1)
    averaged = AveragedModel(first, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(first)
    averaged.update_parameters(second)
    for mean, a, b in zip(averaged.parameters(), first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * a + 0.1 * b)
    loaded = AveragedModel(build(seed=2))
    loaded.load_state_dict(averaged.state_dict())
    assert loaded.n_averaged == 2
    assert_same_parameters(loaded, averaged)
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(loaded(x), averaged.module(x)) and not torch.equal(loaded(x), first(x))


def test_data_parallel_training_at_sizes_with_fewer_levels(tmp_path):
    """DDP fails at the next step if a parameter, of a level that was left out, say, got no gradient."""
    command = [sys.executable, ROOT / "tests" / "data_parallel.py", tmp_path / "rendezvous"]
    subprocess.run(command, check=True, timeout=300)
