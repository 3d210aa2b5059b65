"""The same tests on every kind of grid: dimension, registration, which axes wrap, odd and uneven sizes."""

from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_gradients, store_of
from neuralop import Trainer
from neuralop.losses import LpLoss
from neuralop.training import AdamW
from test_multipole import assert_same, draw, randomise

from mano_op import MANO, Grid, PublishedMANO, evaluate_transfer, field_loaders
from mano_op.data.layout import Variable
from mano_op.data.mixed import Mixed
from mano_op.layers.anchors import anchoring
from mano_op.runs import load_run
from mano_op.train import train_model

SMALL = {"hidden_channels": 6, "n_layers": 2, "n_heads": 2, "window": 2, "halo": 1}
FIELDS = (Variable("a", "input"), Variable("u", "output"))


@dataclass(frozen=True)
class Kind:
    """Of grids; `shape` is the reference's."""

    shape: tuple[int, ...]
    registration: str
    periodic: tuple[bool, ...]

    def __str__(self):
        wraps = "".join("p" if p else "b" for p in self.periodic)
        return f"{'x'.join(map(str, self.shape))}-{self.registration}-{wraps}"

    @property
    def options(self):
        return {"registration": self.registration, "periodic": list(self.periodic)}

    def grid(self, shape):
        return Grid.uniform(shape, **self.options)

    def refined(self, factor):
        return tuple(axis.n for axis in self.grid(self.shape).refine(factor))

    def model(self, cls=MANO, seed=0, **options):
        torch.manual_seed(seed)
        reference = {"reference_shape": self.shape} if cls is MANO else {}
        options = {"n_dim": len(self.shape), **reference, **SMALL, **options}
        if cls is PublishedMANO:
            del options["halo"]
        else:
            options |= self.options
        model = cls(2, 1, **options)
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model = randomise(model, seed)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        return model


B, P = False, True
KINDS = [
    Kind((9,), "node", (B,)),
    Kind((8,), "node", (P,)),
    Kind((7,), "node_both", (B,)),
    Kind((11,), "cell", (B,)),
    Kind((10,), "cell", (P,)),
    Kind((9, 6), "node", (B, B)),
    Kind((8, 7), "node", (P, B)),
    Kind((5, 8), "node_both", (B, B)),
    Kind((6, 11), "cell", (B, P)),
    Kind((5, 8), "cell", (P, P)),
    Kind((5, 4, 6), "node", (P, B, P)),
    Kind((4, 5, 3), "node_both", (B, B, B)),
    Kind((3, 5, 4), "cell", (B, P, B)),
    Kind((4, 3, 5), "cell", (B, B, B)),
]
EVERY = pytest.mark.parametrize("kind", KINDS, ids=str)


def smooth(samples, grid):
    """Periodic waves, so that they fit axes of both kinds."""
    phase = 2 * np.pi * sum(axis for axis in grid.mesh)
    a = np.stack([np.cos(phase + i) + 0.3 * np.sin(2 * np.pi * grid.mesh[0] * (1 + i % 2)) for i in samples])
    return {"a": a, "u": 3 * a + 1}


# The operator


@EVERY
def test_points_of_the_reference_have_on_a_finer_grid_what_its_averages_give(kind):
    """Refined by an odd number, a grid of every registration has them."""
    model, fine = kind.model(), kind.refined(3)
    x = draw(2, 2, *fine)
    place = anchoring(fine, kind.shape, kind.registration, kind.periodic)
    first = 1 if kind.registration == "cell" else 0
    found = model(x)[(..., *(slice(first, None, 3),) * len(kind.shape))]
    assert_same(found, model(place.anchors(x)))


@EVERY
def test_refined_outputs_tend_to_a_limit_at_second_order(kind):
    model = kind.model().eval()
    factors = {1: (9, 27, 81), 2: (3, 9, 27), 3: (3, 5, 9)}[len(kind.shape)]
    results = []
    for factor in factors:
        fields = smooth([0, 1], kind.grid(kind.refined(factor)))["a"]
        first = factor // 2 if kind.registration == "cell" else 0
        with torch.no_grad():
            out = model(torch.as_tensor(fields)[None])
        results.append(out[(..., *(slice(first, None, factor),) * len(kind.shape))])
    coarse, fine = ((one - other).norm() for one, other in pairwise(results))
    squares = [1 / factor**2 for factor in factors]
    rate = (squares[0] - squares[1]) / (squares[1] - squares[2])
    assert fine > 1e-6
    assert 0.7 * rate < coarse / fine < 1.4 * rate


@EVERY
def test_the_order_of_the_axes_is_a_matter_of_names(kind):
    """With the parameters reordered too: no axis is treated as another one, in training or on other grids."""
    here = kind.model()
    for order in permutations(range(len(kind.shape))):
        shape, periodic = (tuple(values[i] for i in order) for values in (kind.shape, kind.periodic))
        turned = Kind(shape, kind.registration, periodic)
        there = turned.model(seed=1)
        there.load_state_dict(permuted(here, order), strict=False)
        axes = (0, 1, *(i + 2 for i in order))
        for shape in (kind.shape, kind.refined(2), tuple(n + 3 for n in kind.shape)):
            x = draw(2, 2, *shape)
            assert_same(there(x.permute(axes)), here(x).permute(axes), rtol=1e-9)


def permuted(model, order):
    """The parameters of the model that has the same axes in another order."""
    state = {name: value.clone() for name, value in model.state_dict().items() if name != "_metadata"}
    del state["reference"]
    for name, value in state.items():
        if ".down." in name or ".up." in name:
            first = value.ndim - len(order)
            state[name] = value.permute(*range(first), *(first + i for i in order))
        elif name.endswith("bias.fc1.weight"):
            state[name] = value[:, list(order)]
    fields, *of_axes = state["lifting.weight"].split([2, *(1 + p for p in model.periodic)], dim=1)
    state["lifting.weight"] = torch.cat([fields, *(of_axes[i] for i in order)], dim=1)
    return state


@EVERY
def test_a_shift_by_the_coarsest_window_commutes_along_axes_that_wrap(kind):
    """Two levels with windows of 2: four points of the reference. Along others, and by less, it does not."""
    n_dim = len(kind.shape)
    shape = tuple(8 if wraps else 6 for wraps in kind.periodic)
    wide = replace(kind, shape=shape)
    model = wide.model(positional_embedding=None, n_levels=2)
    for factor in (1, 2):
        x = draw(1, 2, *wide.refined(factor))
        out = model(x)
        for axis in range(2, n_dim + 2):
            moved = model(x.roll(4 * factor, axis))
            if kind.periodic[axis - 2]:
                assert_same(moved, out.roll(4 * factor, axis))
                assert (model(x.roll(factor, axis)) - out.roll(factor, axis)).abs().max() > 1e-3
            else:
                assert (moved - out.roll(4 * factor, axis)).abs().max() > 1e-3


@EVERY
@pytest.mark.parametrize("cls", [MANO, PublishedMANO])
def test_samples_are_mapped_one_by_one_and_tile_by_tile(kind, cls, monkeypatch):
    """In training, and without gradients in tiles of twenty points of each sample."""
    model = kind.model(cls)
    for shape in (
        kind.shape,
        kind.refined(2),
        tuple(2 * n + 1 for n in kind.shape),
        (5, 3, 2)[: len(kind.shape)],
    ):
        x = draw(3, 2, *shape)
        out = model(x)
        assert out.isfinite().all() and out.dtype == x.dtype
        assert_same(torch.cat([model(x[i : i + 1]) for i in range(3)]), out)
        with torch.no_grad(), monkeypatch.context() as tiles:
            tiles.setattr("mano_op.models.mano._TILE", 60)
            assert_same(model(x), out.detach())


@EVERY
def test_gradients_are_the_slopes_of_the_output(kind):
    """None of them is zero."""
    for shape in (kind.shape, kind.refined(2), tuple(max(2, n - 2) for n in kind.shape)):
        model, x = kind.model(), draw(2, 2, *shape).requires_grad_()
        slopes = torch.autograd.grad((model(x) * draw(2, 1, *shape, seed=3)).sum(), [x, *model.parameters()])
        assert all(slope.any() for slope in slopes)
        assert_gradients(model, x.detach())


# From the store to the report


@pytest.fixture(scope="module")
def store_on(tmp_path_factory):
    stores = {}

    def make(kind):
        if kind not in stores:
            grids = [kind.grid(shape) for shape in (kind.shape, kind.refined(2))]
            path = tmp_path_factory.mktemp("every") / "waves.zarr"
            stores[kind] = store_of(path, grids, FIELDS, smooth, {"train": 8, "test": 3}, ends=None)
        return stores[kind]

    return make


@EVERY
def test_a_store_is_trained_on_and_judged(kind, store_on, tmp_path):
    """The error that is reported at each resolution is that of the loaded run, worked out by hand."""
    store = store_on(kind)
    train_model(
        store,
        tmp_path / "run",
        resolution=kind.shape,
        options={"hidden_channels": 4, "n_layers": 1, "n_heads": 2, "window": 2},
        epochs=4,
        batch_size=4,
        learning_rate=3e-3,
        progress=False,
    )
    run = load_run(tmp_path / "run")
    assert run.history[-1]["training_error"] < run.history[0]["training_error"]
    assert (run.options["registration"], tuple(run.options["periodic"])) == (kind.registration, kind.periodic)
    assert tuple(run.options["reference_shape"]) == kind.shape
    results = evaluate_transfer({"M": run}, store, list(store.grids), progress=False)
    found = results["error"].sel(model="M", predictor="direct", metric="relative_l2").squeeze()
    for key, grid in store.grids.items():
        rows = store.layout.rows(key, "test")
        a, u = (torch.as_tensor(store.read(key, name, rows)).float()[:, None] for name in "au")
        np.testing.assert_allclose(found.sel(resolution=key), relative(predicted(run, a), u, grid), rtol=1e-4)


def predicted(run, a):
    """In the units of the store."""
    model, processor = run.model.eval(), run.processor.eval()
    with torch.no_grad():
        return processor.postprocess(model(processor.preprocess({"x": a})["x"]), {})[0]


def relative(found, expected, grid):
    """The L2 norm of the difference over that of what is expected, by quadrature."""
    axes = tuple(range(1, 1 + grid.n_dim))
    norms = [
        np.sqrt((grid.weights * np.square(field[:, 0].double().numpy())).sum(axes))
        for field in (found - expected, expected)
    ]
    return norms[0] / norms[1]


@EVERY
def test_neuraloperators_trainer_takes_the_fields_as_they_come(kind, store_on):
    """Two resolutions in one epoch; its loss at each is that of the fields in their units."""
    store = store_on(kind)
    shapes = [grid.shape for grid in store.grids.values()]
    loaders = field_loaders(store, train=Mixed(shapes, batch_size=[4, 2]), test=shapes, seed=0)
    model = MANO(1, 1, n_dim=len(kind.shape), reference_shape=kind.shape, **SMALL, **kind.options)
    trainer = Trainer(model=model, n_epochs=1, data_processor=loaders.processor, verbose=False)
    optimizer, loss = AdamW(model.parameters(), lr=1e-3), LpLoss(d=len(kind.shape))
    before = [parameter.clone() for parameter in model.parameters()]
    trainer.train(
        train_loader=loaders.train,
        test_loaders={},
        optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.ConstantLR(optimizer),
        training_loss=loss,
    )
    assert all((a != b).any() for a, b in zip(model.parameters(), before, strict=True))
    run = SimpleNamespace(model=model, processor=loaders.processor)
    for key in store.grids:
        rows = store.layout.rows(key, "test")
        a, u = (torch.as_tensor(store.read(key, name, rows)).float()[:, None] for name in "au")
        miss, size = ((field.flatten(1)).norm(dim=1) for field in (predicted(run, a) - u, u))
        told = trainer.evaluate({"l2": loss}, loaders.test[store.grids[key].shape], key)
        assert float(told[f"{key}_l2"]) == pytest.approx((miss / size).mean().item(), rel=1e-4)
