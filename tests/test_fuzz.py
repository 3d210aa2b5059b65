"""Whatever is asked of the operators: a right answer or a clear error. No NaN, no other type, no hang.

A few examples of each operator; `pytest -m nightly` draws many more.
"""

from functools import partial
from inspect import signature

import pytest
import torch
from helpers import assert_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from test_multipole import draw

from mano_op import MANO, InputError, MultipoleAttention, MultipoleConv, PublishedMANO
from mano_op.layers.style import Style

# The error of an answer in a type, and the largest value of which a norm may take the square in it.
ERRORS = {torch.float32: 5e-4, torch.float16: 0.03, torch.bfloat16: 0.2}
LARGEST = {torch.float32: 1e15, torch.float64: 1e100, torch.bfloat16: 1e15}
MOST = {1: 40, 2: 9, 3: 4}
heads = st.shared(st.integers(1, 2), key="heads")
width = heads.flatmap(lambda n: st.sampled_from([n, 2 * n, 4 * n]))
levels = st.integers(1, 4)


registrations = st.shared(st.sampled_from(["node", "node_both", "cell"]), key="registration")


def shapes(n_dim, most=None):
    fewest = registrations.map(lambda name: 2 if name == "node_both" else 1)
    return fewest.flatmap(lambda few: st.tuples(*[st.integers(few, most or MOST[n_dim])] * n_dim))


def grids(n_dim):
    flags = st.one_of(st.booleans(), st.lists(st.booleans(), min_size=n_dim, max_size=n_dim))
    return {
        "registration": registrations,
        "periodic": registrations.flatmap(lambda name: st.just(False) if name == "node_both" else flags),
        "reference_shape": st.one_of(st.none(), st.tuples(*[st.integers(2, 7)] * n_dim)),
    }


def attention(n_dim):
    return grids(n_dim) | {
        "channels": width,
        "n_heads": heads,
        "n_dim": st.just(n_dim),
        "window": st.integers(2, 5),
        "halo": st.integers(0, 2),
        "rate": st.integers(2, 3),
        "n_levels": levels,
        "style": st.builds(
            Style,
            sampling=st.sampled_from(["stencil", "conv", "avg_pool"]),
            level_weights=st.sampled_from(["learned", "factorial"]),
            position_bias=st.booleans(),
            shared_levels=st.booleans(),
            norms=st.integers(1, 2),
            head_dim=st.one_of(st.none(), st.integers(1, 4)),
            stride=st.one_of(st.none(), st.none(), st.integers(1, 2)),
        ),
    }


def mano(n_dim):
    values = st.lists(st.one_of(st.none(), st.floats(-2, 2)), min_size=2, max_size=2)
    return grids(n_dim) | {
        "in_channels": st.integers(1, 2),
        "out_channels": st.just(2),
        "hidden_channels": width,
        "n_layers": st.integers(1, 2),
        "n_heads": heads,
        "n_dim": st.just(n_dim),
        "window": st.integers(1, 5),
        "halo": st.integers(0, 2),
        "n_levels": st.one_of(st.none(), levels),
        "channel_mlp_expansion": st.sampled_from([1, 1.5, 2.0]),
        "projection_channel_ratio": st.sampled_from([1, 1.5, 2.0]),
        "non_linearity": st.sampled_from(["gelu", "relu", "silu", "tanh"]),
        "positional_embedding": st.sampled_from(["grid", None]),
        "n_modes": st.one_of(st.none(), st.integers(0, 4)),
        "norm": st.booleans(),
        "boundary_values": st.one_of(st.none(), values),
        "restriction": st.sampled_from(["average", "sample"]),
    }


def published(n_dim):
    return {
        "in_channels": st.integers(1, 2),
        "out_channels": st.integers(1, 2),
        "hidden_channels": width.map(lambda n: 2 * n),
        "n_layers": st.integers(1, 2),
        "n_heads": heads,
        "n_dim": st.just(n_dim),
        "window": st.integers(2, 5),
        "stride": st.integers(1, 2),
        "n_levels": st.one_of(st.none(), levels),
    }


def convolution(n_dim):
    return grids(n_dim) | {
        "in_channels": st.integers(1, 3),
        "out_channels": st.integers(1, 3),
        "n_modes": st.just((4,) * n_dim),
        "resolution_scaling_factor": st.one_of(st.none(), st.sampled_from([0.5, 1, 2, [1.0] * n_dim])),
        "n_heads": heads,
        "hidden_channels": width,
        "window": st.integers(1, 5),
        "halo": st.integers(0, 2),
        "n_levels": st.one_of(st.none(), levels),
    }


OPTIONS = {
    MultipoleAttention: attention,
    MANO: mano,
    PublishedMANO: published,
    MultipoleConv: convolution,
}


def build(cls, options):
    """The module with every parameter off its initial value, or None if the options were refused."""
    torch.manual_seed(0)
    try:
        module = cls(**options)
    except InputError as error:
        assert any(name in str(error) for name in options), str(error)
        return None
    for i, parameter in enumerate(module.parameters()):
        parameter.data += 0.3 * draw(*parameter.shape, seed=i).float()
    return module


def channels(options):
    return options.get("channels", options.get("in_channels"))


@st.composite
def problems(draw, cls, *, smooth=False):
    """Options and a shape; small and with a smooth activation, for finite differences."""
    n_dim = draw(st.integers(1, 3))
    options = draw(st.fixed_dictionaries(OPTIONS[cls](n_dim)))
    if smooth and cls is MANO:
        options["non_linearity"] = "tanh"
    most = {1: 9, 2: 5, 3: 3}[n_dim] if smooth else None
    return cls, options, (channels(options), *draw(shapes(n_dim, most)))


def of_every_operator(strategy, *more, few, many):
    """The test for each operator with a few examples, and, as one that is marked nightly, with many."""

    def decorate(test):
        def named(cls, number):
            return settings(max_examples=number)(given(strategy(cls), *more)(test))

        @pytest.mark.parametrize("cls", OPTIONS)
        @pytest.mark.parametrize("number", [few, pytest.param(many, marks=pytest.mark.nightly)])
        def run(cls, number):
            named(cls, number)()

        return run

    return decorate


@of_every_operator(problems, st.sampled_from(list(ERRORS)), few=6, many=145)
def test_the_answer_is_right_in_every_type(problem, dtype):
    """It is that of double precision, as nearly as the type can tell; the input stays as it was."""
    cls, options, shape = problem
    module = build(cls, options)
    if module is None:
        return
    module, x = module.to(dtype), draw(2, *shape).to(dtype)
    before = x.clone()
    out = module(x)
    assert torch.equal(x, before)
    assert out.dtype == dtype and out.isfinite().all()
    parameters = list(module.parameters())
    slopes = torch.autograd.grad(out.double().square().sum(), parameters, allow_unused=True)
    for slope, (name, parameter) in zip(slopes, module.named_parameters(), strict=True):
        assert slope is not None and slope.dtype == dtype and slope.isfinite().all(), (name, parameter.shape)
    exact = module.double()(x.double())
    assert out.shape == exact.shape
    assert (out.double() - exact).norm() <= ERRORS[dtype] * (1 + exact.norm())


@of_every_operator(
    problems, st.sampled_from(list(LARGEST)), st.sampled_from([0, 1, -1]), st.floats(-1, 1), few=5, many=80
)
def test_no_finite_field_gives_nan(problem, dtype, sign, power):
    """However large or small, constant or not, as long as its squares are finite."""
    cls, options, shape = problem
    module = build(cls, options)
    if module is None:
        return
    x = draw(2, *shape) if sign == 0 else torch.full((2, *shape), float(sign), dtype=torch.float64)
    module, x = module.to(dtype), (x * LARGEST[dtype] ** power).to(dtype)
    for field in (x, x * (draw(*x.shape, seed=1) > 1).to(dtype)):
        out = module(field)
        assert out.dtype == dtype and out.isfinite().all()
        scaled = out / out.detach().abs().max().clamp(min=1)
        slopes = torch.autograd.grad(scaled.sum(), list(module.parameters()))
        assert all(slope.isfinite().all() for slope in slopes)


@of_every_operator(partial(problems, smooth=True), few=4, many=55)
def test_gradients_are_those_of_finite_differences(problem):
    cls, options, shape = problem
    module = build(cls, options)
    if module is None:
        return
    module, x = module.double(), draw(1, *shape)
    module(x)  # the first grid in training may become the reference
    assert_gradients(module, x)


# Of every kind, one that an option cannot be; where one is right after all, it is not in the option's list.
WRONG_KINDS = ["2", "", 1.5, -1, 0, True, None, float("nan"), float("inf"), [], [2], {}, b"2", 1 + 2j]
RIGHT_AFTER_ALL = {
    "halo": [0, None],
    "shift": [0],
    "n_modes": [0, None],
    **{name: [None] for name in ("window", "n_levels", "stride", "head_dim", "reference_shape")},
    "boundary_values": [None],
    "periodic": [True],
    "norm": [True],
    "style": [{}],
    **{name: [1.5] for name in ("channel_mlp_expansion", "projection_channel_ratio")},
    "positional_embedding": [None],
    "resolution_scaling_factor": [None, 1.5, True],
}
WORKING = {
    MultipoleAttention: {"channels": 4, "n_heads": 2, "window": 2, "n_levels": 2},
    MANO: {"in_channels": 2, "out_channels": 3, "hidden_channels": 6, "n_heads": 3},
    PublishedMANO: {"in_channels": 1, "out_channels": 1, "hidden_channels": 8},
    MultipoleConv: {"in_channels": 4, "out_channels": 4, "n_modes": (4, 4), "n_heads": 2},
}
# What `MultipoleConv` takes of a spectral convolution's options is in `test_convolution`.
ELSEWHERE = ("kwargs", "n_modes", *set(signature(MultipoleConv).parameters) - set(convolution(2)))
NAMES = [(cls, name) for cls in WORKING for name in signature(cls).parameters if name not in ELSEWHERE]
NAMES.remove((MultipoleConv, "hidden_channels"))


@pytest.mark.parametrize(("cls", "name"), NAMES)
def test_every_option_refuses_values_of_another_kind(cls, name):
    right = RIGHT_AFTER_ALL.get(name, [])
    for value in WRONG_KINDS:
        if not any(value is one or value == one for one in right):
            with pytest.raises(InputError, match=rf"^{name}"):
                cls(**(WORKING[cls] | {name: value}))
