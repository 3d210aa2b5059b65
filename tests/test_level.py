"""The attention of a level as one function, against the same in double precision, which goes in steps."""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_window import assert_near, differentiated

from mano_op.errors import InputError
from mano_op.layers import attention, points
from mano_op.layers.attention import WindowAttention
from mano_op.layers.native.library import library
from mano_op.layers.style import SWIN, Style

pytestmark = pytest.mark.skipif(library() is None, reason="needs a C++ compiler")
SHAPES = st.lists(st.integers(1, 9), min_size=1, max_size=3)
# Rows of a chunk, and numbers of a field up to which it is kept for the backward pass.
ROWS, KEPT = st.sampled_from([7, 256]), st.sampled_from([0, 2**22])


def drawn(n_dim=2, size=1.0, **options):
    default = {"head_dim": 4, "window": 4, "stride": 4, "halo": 1, "periodic": [False, True, False][:n_dim]}
    module = WindowAttention(6, 2, n_dim=n_dim, **(default | options))
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.normal_(std=size, generator=torch.Generator().manual_seed(i))
    return module


def fields(shape, count=1):
    return list(torch.randn(count, 2, 6, *shape, generator=torch.Generator().manual_seed(9)))


def function_of(module, residual, n_fields):
    """A layer as a function of the field, of what is added to the result, and of its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def function(inputs):
        x, *others = inputs[:n_fields]
        parameters = dict(zip(names, inputs[n_fields:], strict=True))
        return torch.func.functional_call(
            module, parameters, x, {"plus": [*others, x] if residual else others}
        )

    return function, list(module.parameters())


def assert_that_of_double(module, given, residual, within=2e-5):
    function, parameters = function_of(module, residual, len(given))
    inputs = [*given, *parameters]
    with patch.object(attention, "attend_on_level", wraps=attention.attend_on_level) as used:
        found = differentiated(function, inputs)
    assert used.called
    assert_near(found, differentiated(function, [t.double() for t in inputs]), within)


STYLES = st.builds(
    Style,
    scores=st.sampled_from(["dot", "cosine"]),
    position_bias=st.sampled_from([True, False, "swin"]),
    qv_bias=st.booleans(),
    norms=st.integers(0, 2),
)


@settings(max_examples=60)
@given(
    shape=SHAPES, window=st.integers(1, 5), halo=st.integers(0, 2), shift=st.integers(0, 4), style=STYLES,
    n_plus=st.integers(0, 2), residual=st.booleans(), rows=ROWS, kept=KEPT,
)  # fmt: skip
def test_a_level_is_its_steps_in_double_precision(
    shape, window, halo, shift, style, n_plus, residual, rows, kept
):
    options = {"window": window, "stride": window, "halo": halo, "shift": min(shift, window - 1)}
    cosine = style.scores == "cosine"
    module = drawn(len(shape), size=0.5 if cosine else 1.0, style=style, **options)
    with patch.multiple(points, _NUMBERS=1, _ROWS=rows, _KEPT=kept):
        assert_that_of_double(module, fields(shape, 1 + n_plus), residual, within=1e-4 if cosine else 2e-5)


@pytest.mark.parametrize("logit_scale", [-60.0, -20.0, 6.0])
def test_cosines_have_any_factor_and_vectors_of_no_length(logit_scale):
    module = drawn(style=SWIN, halo=0)
    with torch.no_grad():
        module.logit_scale.fill_(logit_scale)
        module.q_bias.zero_()
    [x] = fields((5, 6))
    x[:, :, :2] = 0
    assert_that_of_double(module, [x], residual=False, within=1e-4)


def test_large_fields_keep_no_queries_keys_and_values(monkeypatch):
    module, x, held = drawn(head_dim=3), torch.randn(1, 6, 64, 64, requires_grad=True), {}
    for most in (0, 2**22):
        monkeypatch.setattr(points, "_KEPT", most)
        kept = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: (kept.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t
        ):
            module(x)
        held[most] = sum(kept.values())
    assert held[2**22] - held[0] >= 2.9 * x.nbytes


def test_parameters_that_do_not_fit_are_torchs_error():
    module, [x] = drawn(), fields((5, 6))
    module.out.bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(RuntimeError):
        module(x)


def test_a_bias_of_other_heads_is_refused():
    module = drawn()
    module.bias = attention.PositionBias(n_heads=1, n_dim=2)
    with pytest.raises(
        InputError, match="bias gives 1 scores for each offset, expected one for each of 2 heads"
    ):
        module(fields((5, 6))[0])


def test_windows_are_kept_on_the_cpu_whatever_the_default_device():
    module, [x] = drawn(window=3, stride=3), fields((7, 6))
    expected = copy.deepcopy(module).double()(x.double())
    with torch.device("meta"):
        assert (module(x) - expected).abs().max() < 1e-4
    assert (module(x) - expected).abs().max() < 1e-4
