"""MANO on other grids than the one it was trained on, in values; on every kind of grid."""

import copy
import pickle
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import assert_gradients, store_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multipole import assert_same, draw, randomise

from mano_op import MANO, Grid, InputError, evaluate_transfer, train_model
from mano_op.data.layout import Variable
from mano_op.layers.multipole import MultipoleAttention
from mano_op.layers.reference import fix_references
from mano_op.layers.refinement import Points, Refinement
from mano_op.layers.style import Style
from mano_op.memory import peak_bytes
from mano_op.models import mano
from mano_op.runs import load_run

ATTENTION = {"n_modes": 0, "norm": True, "window": 4, "halo": 1}  # in every block
SMALL = {**ATTENTION, "hidden_channels": 6, "n_layers": 2, "n_heads": 2, "window": 2}
LINES = [("node", False), ("node", True), ("cell", False), ("cell", True), ("node_both", False)]


def build(shape, *, seed=0, in_channels=1, **options):
    """A model whose every weight is random, with that reference."""
    torch.manual_seed(seed)
    model = MANO(in_channels, 1, n_dim=len(shape), reference_shape=shape, **(SMALL | options))
    return randomise(model, seed).eval()


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
        return {"registration": self.registration, "periodic": self.periodic}

    def grid(self, shape):
        return Grid.uniform(shape, **self.options)

    def refined(self, factor):
        return tuple(axis.n for axis in self.grid(self.shape).refine(factor))

    def shared(self, field, factor):
        """The values at the points of the reference; a refined cell grid has them where the factor is odd."""
        first = factor // 2 if self.registration == "cell" else 0
        return field[(..., *(slice(first, None, factor),) * len(self.shape))]

    def model(self, **options):
        return build(self.shape, in_channels=2, **self.options, **options)


B, P = False, True
KINDS = [
    Kind((9,), "node", (B,)),
    Kind((8,), "node", (P,)),
    Kind((7,), "node_both", (B,)),
    Kind((11,), "cell", (B,)),
    Kind((10,), "cell", (P,)),
    Kind((8, 7), "node", (P, B)),
    Kind((5, 8), "node_both", (B, B)),
    Kind((6, 11), "cell", (B, P)),
    Kind((5, 4, 3), "node", (P, B, P)),
    Kind((4, 3, 3), "node_both", (B, B, B)),
    Kind((3, 4, 3), "cell", (B, P, B)),
]
EVERY = pytest.mark.parametrize("kind", KINDS, ids=str)


# At the training grid


def test_output_on_the_reference_is_that_of_the_training_bit_for_bit():
    anchored = build((9, 8))
    counting = MANO(1, 1, n_levels=anchored.blocks[0].attention.n_levels, **SMALL).double()
    counting.load_state_dict(dict(anchored.named_parameters()), strict=False)
    x = draw(3, 1, 9, 8)
    assert counting.reference_shape is None
    assert torch.equal(anchored(x), counting.eval()(x))


def test_the_first_grid_of_a_training_is_the_reference():
    model = MANO(1, 1, **SMALL)
    x = draw(1, 1, 6, 6).float()
    model.eval()(x)
    assert model.reference_shape is None
    model.train()(x)
    model.eval()(draw(1, 1, 12, 10).float())
    assert model.reference_shape == (6, 6)


def learnt(shape=(6, 6), **options):
    """A model in training mode that has seen a grid."""
    torch.manual_seed(0)
    model = MANO(1, 1, **(SMALL | options))
    model(torch.zeros(1, 1, *shape))
    return model


def test_a_second_grid_in_training_is_refused_and_both_are_named():
    model, x = learnt(), draw(1, 1, 12, 10).float()
    message = (
        r"MANO got a grid of \(12, 10\) in training mode after \(6, 6\), .* build it with "
        r"reference_shape=\(6, 6\), or .* mano_op.fix_references\(model\). .* model.eval\(\) first"
    )
    for _ in range(2):  # what was refused has changed nothing
        with pytest.raises(InputError, match=message):
            model(x)
    assert model.reference_shape == (6, 6)
    assert model(draw(1, 1, 6, 6).float()).isfinite().all()


def test_each_remedy_of_a_second_grid_in_training_gives_what_evaluation_does():
    x = draw(1, 1, 12, 10).float()
    expected = learnt().eval()(x)
    fixed, given = learnt(), learnt(reference_shape=(6, 6), n_levels=3)
    fix_references(fixed)
    for model in (fixed, given, copy.deepcopy(fixed), pickle.loads(pickle.dumps(fixed))):
        assert torch.equal(model(x), expected) and model.reference_shape == (6, 6)
    anew = learnt((12, 10))
    assert anew.reference_shape == (12, 10) and anew(x).isfinite().all()


def test_a_model_read_from_a_file_learnt_its_reference_or_had_it_given(tmp_path):
    """Files hold options, and so a given reference; that a learnt one was fixed they do not."""
    x = draw(1, 1, 12, 10).float()
    fixed = learnt()
    fix_references(fixed)
    for name, model in {"learnt": learnt(), "fixed": fixed, "given": learnt(reference_shape=(6, 6))}.items():
        model.save_checkpoint(tmp_path, name)
        loaded = MANO.from_checkpoint(tmp_path, name)
        assert loaded(x[..., :6, :6]).isfinite().all() and loaded.reference_shape == (6, 6)
        if name != "given":
            with pytest.raises(InputError, match=r"\(12, 10\) in training mode after \(6, 6\)"):
                loaded(x)
            fix_references(loaded)
        assert torch.equal(loaded(x), model.eval()(x))


def test_missing_references_cannot_be_fixed():
    with pytest.raises(InputError, match="Linear has no layer with a reference: give a MANO"):
        fix_references(torch.nn.Linear(1, 1))
    both = torch.nn.ModuleList([learnt(), MANO(1, 1, **SMALL)])
    with pytest.raises(InputError, match=r"^1 \(MANO\) has no reference yet: call model.train\(\), run it"):
        fix_references(both)
    with pytest.raises(InputError, match="in training mode after"):  # none was fixed
        both[0](draw(1, 1, 12, 10).float())
    both[1](torch.zeros(1, 1, 6, 6))
    fix_references(both)
    assert both[0](draw(1, 1, 12, 10).float()).isfinite().all()


def test_the_reference_goes_where_the_parameters_go(tmp_path):
    model = MANO(1, 1, **SMALL)
    averages = [torch.optim.swa_utils.AveragedModel(model, use_buffers=on) for on in (False, True)]
    model(draw(1, 1, 6, 6).float())
    for averaged in averages:
        averaged.update_parameters(model)
        assert averaged.module.reference_shape == (6, 6)  # a copy shares the first grid
    model.save_checkpoint(tmp_path, "model")
    other = MANO(1, 1, **SMALL)
    other.load_state_dict(model.state_dict())
    nested = torch.nn.Sequential(MANO(1, 1, **SMALL))
    nested.load_state_dict(torch.nn.Sequential(model).state_dict())
    x = draw(2, 1, 12, 9).float()
    for same in (other, MANO.from_checkpoint(tmp_path, "model"), copy.deepcopy(model), *averages, nested):
        assert torch.equal(same.eval()(x), model.eval()(x))


def test_references_are_exact_in_any_type_and_no_average_of_two():
    model = learnt((1001, 2)).half()
    assert model.reference_shape == (1001, 2) and not list(model.buffers())
    averaged = torch.optim.swa_utils.AveragedModel(learnt((6, 6)), use_buffers=True)
    averaged.update_parameters(learnt((12, 10)))
    averaged.update_parameters(learnt((12, 10)))
    assert averaged.module.reference_shape == (6, 6)


def test_a_reference_is_not_learnt_in_a_process_group(tmp_path):
    """Each rank would take its own first grid. Given, it works, and the gradients are the model's."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(
            InputError, match=r"its own first grid, here \(6, 6\): .* reference_shape=\(6, 6\)"
        ):
            learnt()
        model, x = learnt(reference_shape=(6, 6), n_levels=3), draw(2, 1, 7, 9).float()
        expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
        torch.nn.parallel.DistributedDataParallel(model)(x).square().sum().backward()
        for parameter, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
    finally:
        torch.distributed.destroy_process_group()


# On finer grids


@EVERY
def test_points_of_the_reference_have_on_a_finer_grid_what_its_averages_give(kind):
    """Points of the finer grid enter no softmax: those of the reference see its keys alone."""
    known = {} if any(kind.periodic) else {"boundary_values": [0.3]}
    model, fine = kind.model(**known), kind.refined(3)
    x = draw(2, 2, *fine)
    place = Refinement(kind.grid(kind.shape), fine)
    assert_same(kind.shared(model(x), 3), model(place.anchors(x)))


@EVERY
def test_refined_outputs_tend_to_a_limit_at_second_order(kind):
    model, factors = kind.model(), {1: (9, 27, 81), 2: (3, 9, 27), 3: (3, 5, 7)}[len(kind.shape)]
    results = []
    for factor in factors:
        fields = smooth([0, 1], kind.grid(kind.refined(factor)))["a"]
        with torch.no_grad():
            results.append(kind.shared(model(torch.as_tensor(fields)[None]), factor))
    coarse, fine = ((one - other).norm() for one, other in pairwise(results))
    squares = [1 / factor**2 for factor in factors]
    rate = (squares[0] - squares[1]) / (squares[1] - squares[2])
    assert fine > 1e-6
    assert 0.7 * rate < coarse / fine < 1.4 * rate


def wave(shape):
    return torch.as_tensor(smooth([0, 1], Grid.uniform(shape))["a"])[None]


def smooth(samples, grid):
    """Periodic waves, so that they fit axes of both kinds."""
    phase = 2 * np.pi * sum(axis for axis in grid.mesh)
    a = np.stack([np.cos(phase + i) + 0.3 * np.sin(2 * np.pi * grid.mesh[0] * (1 + i % 2)) for i in samples])
    return {"a": a, "u": 3 * a + 1}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if len(kind.shape) > 1], ids=str)
def test_the_order_of_the_axes_does_not_matter(kind):
    """With the parameters reordered too: no axis is treated as another one, in training or on other grids."""
    here, axes = kind.model(), tuple(range(len(kind.shape)))
    for order in {axes[::-1], (*axes[1:], axes[0])}:
        shape, periodic = (tuple(values[i] for i in order) for values in (kind.shape, kind.periodic))
        there = Kind(shape, kind.registration, periodic).model(seed=1)
        there.load_state_dict(permuted(here, order), strict=False)
        dims = (0, 1, *(i + 2 for i in order))
        for shape in (kind.shape, kind.refined(2), tuple(n + 3 for n in kind.shape)):
            x = draw(2, 2, *shape)
            assert_same(there(x.permute(dims)), here(x).permute(dims), rtol=1e-9)


def permuted(model, order):
    """The parameters of the model that has the same axes in another order."""
    state = {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name in dict(model.named_parameters())
    }
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
    wide = replace(kind, shape=tuple(8 if wraps else 6 for wraps in kind.periodic))
    model = wide.model(positional_embedding=None, n_levels=2)
    for factor in (1, 2):
        x = draw(1, 2, *wide.refined(factor))
        out = model(x)
        for axis, wraps in enumerate(kind.periodic, start=2):
            moved = model(x.roll(4 * factor, axis)) - out.roll(4 * factor, axis)
            assert moved.abs().max() < 1e-10 if wraps else moved.abs().max() > 1e-3
            if wraps:
                assert (model(x.roll(factor, axis)) - out.roll(factor, axis)).abs().max() > 1e-3


@EVERY
def test_samples_are_mapped_one_by_one_and_tile_by_tile(kind, monkeypatch):
    """In training, and without gradients in tiles of a few points of each sample, up to the order of sums."""
    model, n_dim = kind.model(), len(kind.shape)
    single = copy.deepcopy(model).float()
    for shape in (kind.shape, (5, 20, 2)[:n_dim], tuple(2 * n + 1 for n in kind.shape))[
        : 3 if n_dim < 3 else 2
    ]:
        x = draw(2, 2, *shape)
        out, out_single = model(x).detach(), single(x.float()).detach()
        assert out.isfinite().all() and out.dtype == x.dtype
        with torch.no_grad(), monkeypatch.context() as tiles:
            assert_same(torch.cat([model(x[:1]), model(x[1:])]), out)
            tiles.setattr(mano, "_TILE", 7 if n_dim == 1 else 60)
            assert_same(model(x), out, rtol=1e-12)
            torch.testing.assert_close(single(x.float()), out_single, rtol=1e-4, atol=2e-5)


@EVERY
def test_gradients_are_the_slopes_of_the_output(kind):
    """None of them is zero."""
    model = kind.model()
    for shape in (kind.refined(2), tuple(max(2, n - 2) for n in kind.shape)):
        x = draw(2, 2, *shape).requires_grad_()
        slopes = torch.autograd.grad((model(x) * draw(2, 1, *shape, seed=3)).sum(), [x, *model.parameters()])
        assert all(slope.any() for slope in slopes)
        assert_gradients(model, x.detach())


def test_a_window_that_covers_the_reference_is_dense_attention_of_all_its_points():
    """From every point of a finer grid, with the gradients."""
    options = {"n_levels": 1, "reference_shape": (5, 6), "style": Style(position_bias=False)}
    layer = randomise(MultipoleAttention(6, 2, window=6, **options))
    x = draw(2, 6, 10, 18).requires_grad_()
    attention = layer.attention[0]
    keys = Refinement(Grid.uniform((5, 6)), (10, 18)).anchors(x)
    tokens, sources = (attention.norm1(t.flatten(2).mT) for t in (x, keys))
    inner = attention.qkv.weight.shape[0] // 3
    q, k, v = (
        (t @ w.T).unflatten(-1, (2, 3)).transpose(1, 2)
        for t, w in zip((tokens, sources, sources), attention.qkv.weight.split(inner), strict=True)
    )
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    expected = attention.out(dense.transpose(1, 2).flatten(2)).mT.unflatten(-1, (10, 18))
    found = layer(x)
    assert_same(found, expected)
    wanted = [x, *attention.parameters()]
    cotangent = draw(*found.shape, seed=4)
    assert_same(*(torch.autograd.grad(out, wanted, cotangent) for out in (found, expected)))


def test_the_border_of_a_window_is_no_seam():
    """The largest step between neighbours falls with the spacing, also where one window meets the next."""
    model = build((16,), window=4, halo=1)
    largest = [model(wave((n,))[:, :1]).detach().diff().abs().max() for n in (512, 1024, 2048)]
    assert all(1.9 < coarse / fine < 2.1 for coarse, fine in pairwise(largest))


# Of every size


@settings(max_examples=8)
@given(st.sampled_from(LINES), st.integers(7, 40), st.integers(7, 21))
def test_every_size_works_and_every_parameter_learns(kind, rows, columns):
    registration, periodic = kind
    model = build((9, 8), registration=registration, periodic=[periodic, False] if periodic else False)
    model.train()
    out = model(draw(1, 1, rows, columns))
    assert out.shape == (1, 1, rows, columns) and out.isfinite().all()
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    silent = [name for name, p in model.named_parameters() if not p.grad.any()]
    assert silent == []


@pytest.mark.parametrize("kind", LINES)
def test_a_coarser_input_is_interpolated_to_the_reference(kind):
    registration, periodic = kind
    n = 9 if registration == "node_both" else 8
    coarse = (n + 1) // 2
    model = build((n,), registration=registration, periodic=periodic)
    x = draw(1, 1, coarse)
    place = Refinement(Grid.uniform((n,), registration=registration, periodic=periodic), (coarse,))
    assert_same(model(x), place.settle(model(place.lift(x))))


# Boundary values


@pytest.mark.parametrize("shape", [(9, 9), (17, 17), (33, 21)])
def test_known_boundary_values_are_had_exactly(shape):
    model = build((9, 9), registration="node_both", boundary_values=[0.75])
    out = model(draw(2, 1, *shape))
    edges = [out[..., 0, :], out[..., -1, :], out[..., :, 0], out[..., :, -1]]
    assert all((edge == 0.75).all() for edge in edges)
    assert (out[..., 1:-1, 1:-1] != 0.75).all()


def test_an_output_without_a_known_value_is_left_alone():
    bounded = MANO(1, 2, boundary_values=[None, 0.5], **SMALL).double()
    free = MANO(1, 2, **SMALL).double()
    free.load_state_dict(dict(bounded.named_parameters()), strict=False)
    x = draw(1, 1, 6, 5)
    assert torch.equal(bounded(x)[:, 0], free(x)[:, 0])
    down, across = (torch.tensor(ramp) for ramp in ([0, 0.75, 1, 1, 1, 0.75], [0, 0.75, 1, 1, 0.75]))
    assert_same(bounded(x)[:, 1], 0.5 + (down[:, None] * across).double() * free(x)[:, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"reference_shape": [8]},
            r"reference_shape=\[8\], expected 2 whole numbers, at least 1: the points",
        ),
        ({"reference_shape": [8, 1], "registration": "node_both"}, "expected 2 whole numbers, at least 2"),
        (
            {"boundary_values": [0.0, 1.0]},
            r"boundary_values=\[0\.0, 1\.0\], expected for each of out_channels=1",
        ),
        (
            {"boundary_values": [float("nan")]},
            r"boundary_values=\[nan\], expected .* a finite number, or None",
        ),
        (
            {"boundary_values": [0.0], "periodic": True},
            r"periodic=\(True, True\): no axis has ends; leave them",
        ),
    ],
)
def test_references_and_boundaries_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MANO(1, 1, **(SMALL | options))


@pytest.mark.parametrize("shift", [0, 2])
def test_a_layer_alone_is_anchored_too(shift):
    """Points of a finer grid attend with their own features, also in shifted windows."""
    layer = randomise(MultipoleAttention(4, 2, n_levels=2, reference_shape=(7, 6), shift=shift))
    x, place = draw(1, 4, 14, 18), Refinement(Grid.uniform((7, 6)), (14, 18))
    anchors, part = place.anchors(x), place.whole
    attention, windows = layer.attention[0], layer.windows_of((7, 6))
    on = attention(anchors, windows[0])
    features = torch.cat([anchors.flatten(2), x.flatten(2)], dim=2)
    near = attention(features, Points((7, 6), part).attention(attention, windows[0]))[..., 42:]
    assert_same(layer(x), near.unflatten(2, (14, 18)) + part.interpolate(layer(anchors) - on))


# Tile by tile


def test_memory_does_not_grow_with_the_points_of_a_finer_grid(monkeypatch):
    """But for the output: what is held beside it is nearly the same for four times as many."""
    model = MANO(1, 1, **ATTENTION, reference_shape=(8, 8), hidden_channels=4, n_layers=1, n_heads=1).eval()
    monkeypatch.setattr(mano, "_TILE", 2**9)
    beside = {n: peak_bytes(model, torch.zeros(1, 1, n, n)) - 4 * n**2 for n in (128, 256)}
    assert beside[256] < 1.1 * beside[128]
    monkeypatch.setattr(mano, "_TILE", 256 * 256)
    assert peak_bytes(model, torch.zeros(1, 1, 256, 256)) > 8 * beside[256]


def test_gradients_are_computed_of_all_points_at_once(monkeypatch):
    """Tiles are for inference: where gradients are recorded, nothing is written into an output."""
    model = build((6, 6))
    x = draw(1, 1, 14, 13).requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), x)
    monkeypatch.setattr(mano, "_TILE", 20)
    assert_same(torch.autograd.grad(model(x).square().sum(), x), expected)
    with torch.inference_mode():
        inference = model(x)
    assert_same(inference.clone(), model(x).detach())


def test_tiles_are_mapped_over_samples_like_all_points_at_once(monkeypatch):
    """The output is made from a tile's, so that it is of whatever kind `vmap` makes these."""
    model = build((6, 6), registration="cell", periodic=True)
    x = draw(3, 1, 4, 13)  # coarser along one axis, finer along the other
    monkeypatch.setattr(mano, "_TILE", 40)
    with torch.no_grad():
        found = torch.vmap(model)(x[:, None])[:, 0]
    assert_same(found, model(x).detach())


# From the store to the report


@pytest.mark.parametrize("kind", [KINDS[i] for i in (5, 6, 7)], ids=str)
def test_reported_errors_are_those_of_the_loaded_run(kind, tmp_path):
    """Worked out by hand, at each resolution; the run knows the grids of the store."""
    grids, variables = [kind.grid(kind.shape), kind.grid(kind.refined(2))], [Variable("a", "input")]
    variables.append(Variable("u", "output"))
    store = store_of(tmp_path / "waves.zarr", grids, variables, smooth, {"train": 4, "test": 2}, ends=None)
    small = {"hidden_channels": 8, "n_layers": 1, "n_heads": 2, "window": 2, "n_modes": 2}
    options = {"resolution": kind.shape, "epochs": 1, "batch_size": 4, "progress": False}
    train_model(store, tmp_path / "run", options=small, **options)
    run = load_run(tmp_path / "run")
    assert (run.options["registration"], tuple(run.options["periodic"])) == (kind.registration, kind.periodic)
    assert tuple(run.options["reference_shape"]) == kind.shape
    results = evaluate_transfer({"M": run}, store, list(store.grids), progress=False)
    errors = results["error"].sel(model="M", predictor="direct", metric="relative_l2").squeeze()
    model, processor = run.model.eval(), run.processor.eval()
    for key, grid in store.grids.items():
        rows = store.layout.rows(key, "test")
        a, u = (torch.as_tensor(store.read(key, name, rows)).float()[:, None] for name in "au")
        with torch.no_grad():
            out = processor.postprocess(model(processor.preprocess({"x": a})["x"]), {})[0]
        axes = tuple(range(2, 2 + grid.n_dim))
        off, norm = ((grid.weights * field.double().numpy() ** 2).sum(axes) ** 0.5 for field in (out - u, u))
        np.testing.assert_allclose(errors.sel(resolution=key), (off / norm)[:, 0], rtol=1e-4)
