"""Models compiled and exported, and the files that are made of them: the values of the model itself."""

import json
import sys
from functools import partial
from unittest.mock import patch

import onnx
import onnxruntime
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_anchored import LINES, build
from test_multipole import draw
from torch import nn
from torch._dynamo.utils import counters
from torch.export import Dim

from mano_op import MANO, FieldProcessor, export_onnx, export_program
from mano_op import export as module
from mano_op.errors import InputError
from mano_op.registry import build_model
from mano_op.runs import Run

MIXED = {"periodic": (False, True)}
MODES = {"n_modes": 3, "norm": False}
MODELS = [
    ((6,), {"periodic": True, "registration": "cell"}),
    ((1,), {"periodic": True}),
    ((6, 9), MIXED | {"boundary_values": [0.5]}),
    ((9, 6), MIXED | {"registration": "cell", "window": 4}),
    ((5, 4), {"registration": "node_both", "boundary_values": [0.5], "halo": 2}),
    ((5, 5), {"window": 8, "n_heads": 1, "positional_embedding": None}),  # one window, one head, one level
    ((12, 5), {"n_levels": 9, "non_linearity": "silu"}),  # more than it has room for
    ((4, 3, 5), {"periodic": (True, False, False), "registration": "cell", "n_layers": 1}),
    ((6, 9), MIXED | MODES | {"boundary_values": [0.5], "restriction": "sample"}),
    ((5, 4), MODES | {"registration": "cell", "boundary_values": [0.5]}),
]


def finer_than(shape):
    """Grids at least as fine: the same, one point more, twice as fine, odd, and finer along one axis only."""
    last = (*shape[:-1], 3 * shape[-1] + 1)
    return [shape, tuple(n + 1 for n in shape), tuple(2 * n for n in shape), (3 * shape[0] + 2, *last[1:])]


def results(function, parameters, x):
    """Its output, and the gradients of a random functional of that."""
    x = x.clone().requires_grad_()
    out = function(x)
    given = [x, *parameters]
    return [out, *torch.autograd.grad(out, given, draw(*out.shape, seed=9).to(out))]


def assert_near(found, expected, most):
    """Within a part of the largest value."""
    largest = expected.detach().abs().max() if expected.numel() else torch.ones(())
    assert ((found - expected).abs() <= most * largest).all()


# Compiled and exported models


def as_exported(model, x):
    """The result of the steps that torch.export traces."""
    with patch.multiple(torch.compiler, is_exporting=lambda: True, is_compiling=lambda: True):
        return model(x)


@pytest.mark.parametrize(("shape", "options"), MODELS)
def test_exported_steps_give_the_models_outputs_and_gradients(shape, options):
    model = build(shape, **options)
    for grid in finer_than(shape):
        x = draw(2, 1, *grid)
        found = results(partial(as_exported, model), model.parameters(), x)
        for one, other in zip(found, results(model, model.parameters(), x), strict=True):
            assert_near(one, other, 1e-12)


@settings(max_examples=20)
@given(st.sampled_from(LINES), st.integers(2, 17), st.integers(0, 60), st.integers(1, 5), st.integers(0, 3))
@example(("cell", False), 17, 17 * 30 + 1, 1, 0)
@example(("node", True), 16, 16 * 64, 4, 1)
def test_every_number_of_points_has_its_place(kind, n, more, window, halo):
    registration, periodic = kind
    model = build((n,), registration=registration, periodic=periodic, window=window, halo=halo, n_layers=1)
    x = draw(1, 1, n + more)
    assert_near(as_exported(model, x), model(x), 1e-10)


@pytest.mark.parametrize(("shape", "options"), [MODELS[0], MODELS[3]])
def test_programs_are_for_all_batches_and_finer_grids(shape, options):
    model = build(shape, **options | {"n_layers": 1, "n_levels": 1})
    sizes = {0: Dim("batch", min=1)} | {i: Dim(f"n{i}", min=n) for i, n in enumerate(shape, start=2)}
    x = draw(2, 1, *(n + 4 for n in shape))
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=(sizes,)).module()
    for grid in finer_than(shape):
        x = draw(3, 1, *grid)
        assert_near(program(x), model(x), 1e-12)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((6,), {"periodic": True, "registration": "cell"}),
        ((6, 5), MIXED | {"boundary_values": [0.5]}),
        ((4, 3, 5), {"periodic": (True, False, False), "registration": "cell"}),
        ((6, 7), MIXED | MODES | {"restriction": "sample", "n_layers": 2}),
    ],
)
def test_compiled_models_are_one_graph_with_the_models_gradients(shape, options):
    model = build(shape, **({"n_layers": 1, "n_levels": 2} | options))
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for grid in (shape, tuple(2 * n + 1 for n in shape)):
        x = draw(2, 1, *grid)
        found = results(compiled, model.parameters(), x)
        for one, other in zip(found, results(model, model.parameters(), x), strict=True):
            assert_near(one, other, 1e-12)
    assert counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()


def test_models_are_compiled_once_for_all_finer_grids():
    model = build((6, 5), n_layers=1, n_levels=2, **MIXED).float().requires_grad_(False)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, dynamic=True, backend="eager")
    for grid in ((7, 9), (12, 12), (6, 5), (13, 24)):
        x = torch.randn(2, 1, *grid)
        assert_near(compiled(x), model(x), 1e-5)
    assert counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


# Precision and repetition


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_results_are_repeated_bit_for_bit(deterministic):
    model = build((6, 5), **MIXED).float()
    for grid in ((6, 5), (13, 12)):
        x = torch.randn(3, 1, *grid)
        first, second = (results(model, model.parameters(), x) for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("grid", [(16, 16), (19, 23)])
def test_outputs_in_bfloat16_keep_two_digits(grid):
    """As `MANO` starts: of an output near 1 within 3 %, where one rounding is 0.4 %."""
    torch.manual_seed(0)
    model = MANO(1, 1, hidden_channels=16, n_layers=2, n_heads=2, reference_shape=(16, 16)).eval()
    x = torch.randn(2, 1, *grid)
    with torch.no_grad():
        expected = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x)
        low = model.bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert mixed.dtype in (torch.bfloat16, torch.float32)
    assert_near(low.float(), expected, 3e-2)
    assert_near(mixed.float(), expected, 3e-2)


# Files


def fno():
    torch.manual_seed(0)
    options = {"in_channels": 1, "out_channels": 1, "n_modes": (4, 4), "hidden_channels": 8, "n_layers": 1}
    return build_model("fno", options).eval()


def run_of(model):
    """A run in which an input has a logarithm."""
    inputs = {"permeability": {"mean": 0.5, "std": 1.5, "transform": "log"}}
    processor = FieldProcessor(inputs, {"pressure": {"mean": 2.0, "std": 10.0}}).eval()
    return Run(model, processor, "mano", {}, {"units": {"permeability": "m2", "pressure": None}})


def in_units(run, x):
    with torch.no_grad():
        return run.processor.postprocess(run.model(run.processor.preprocess({"x": x})["x"]), {})[0]


def test_program_has_the_normalisation_in_it(tmp_path):
    model = build((6,), n_layers=1, n_levels=1, registration="cell", periodic=True).float().train()
    run, path = run_of(model), tmp_path / "new" / "mano.pt2"
    errors = export_program(run, path)
    assert model.training and all(p.requires_grad for p in model.parameters())  # the caller's is as it was
    assert list(errors) == [(1, 1, 6), (2, 1, 12), (3, 1, 9)]
    assert max(errors.values()) < 1e-5
    assert [file.name for file in path.parent.iterdir()] == ["mano.pt2"]
    extra = {"mano_op.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for shape in ((1, 1, 6), (5, 1, 7), (2, 1, 32), (1, 1, 61)):
        x = torch.randn(shape).exp()
        assert_near(program(x), in_units(run, x), 1e-5)
    told = json.loads(extra["mano_op.json"])
    assert told["inputs"] == [{"name": "permeability", "units": "m2"}]
    assert told["outputs"] == [{"name": "pressure", "units": ""}]
    assert (told["values"], told["reference_shape"], told["periodic"]) == ("physical", [6], [True])
    with pytest.raises(AssertionError, match=r">= 6"):  # by torch
        program(torch.ones(1, 1, 5))


def test_onnx_file_is_for_all_sizes(tmp_path):
    model = build((6, 5), n_layers=1, n_levels=2, boundary_values=[0.25], **MIXED).float()
    path = tmp_path / "mano.onnx"
    path.write_text("old")
    errors = export_onnx(model, path, overwrite=True)
    assert list(errors) == [(1, 1, 6, 5), (2, 1, 12, 5), (3, 1, 9, 8)]
    assert max(errors.values()) < 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 1, 6, 5), (5, 1, 7, 16), (4, 1, 63, 65), (1, 1, 13, 51)):
        x = torch.randn(shape)
        (found,) = session.run(["y"], {"x": x.numpy()})
        assert_near(torch.as_tensor(found), model(x).detach(), 1e-5)
    with pytest.raises(Exception, match="indices element out of data bounds"):
        session.run(None, {"x": torch.randn(1, 1, 6, 4).numpy()})
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    [told] = [json.loads(entry.value) for entry in file.metadata_props if entry.key == "mano_op"]
    assert (told["values"], told["reference_shape"], told["axes"]) == ("normalised", [6, 5], ["y", "x"])
    assert [dim.dim_param for dim in file.graph.input[0].type.tensor_type.shape.dim] == [
        "batch", "", "n_y", "n_x"
    ]  # fmt: skip


def test_fno_is_a_program_for_one_grid(tmp_path):
    model = fno()
    assert export_program(model, tmp_path / "fno.pt2", shape=(16, 12)) == {(1, 1, 16, 12): 0.0}
    program = torch.export.load(tmp_path / "fno.pt2").module()
    x = torch.randn(1, 1, 16, 12)
    assert torch.equal(program(x), model(x))
    with pytest.raises(AssertionError):
        program(torch.randn(1, 1, 16, 16))


class Branching(nn.Module):
    """Does what depends on values."""

    in_channels = out_channels = 1

    def forward(self, x):
        return x if x.sum() > 0 else -x


def anchored():
    return MANO(1, 1, hidden_channels=8, n_layers=1, n_heads=2, reference_shape=(8, 8))


def half():
    return anchored().bfloat16()


@pytest.mark.parametrize(
    ("function", "make", "path", "options", "message"),
    [
        (export_program, anchored, "there.pt2", {}, "there.pt2 is there already: .*, or overwrite=True"),
        (export_onnx, anchored, "there.pt2", {}, "there.pt2 is there already"),
        (export_program, anchored, ".", {"overwrite": True}, "is a folder: give the path of a file"),
        (export_program, anchored, "there.pt2/a.pt2", {}, "cannot be a folder for results, .* is a file"),
        (export_program, lambda: "run", "a.pt2", {}, "got a str, expected a Run or a model: see mano_op"),
        (export_onnx, lambda: MANO(1, 1), "a.onnx", {}, "no reference grid yet"),
        (export_program, anchored, "a.pt2", {"shape": (8, 8)}, r"shape=\(8, 8\), but .* all sizes"),
        (export_program, half, "a.pt2", {}, r"torch.bfloat16, expected .*\.float\(\)"),
        (export_program, fno, "a.pt2", {}, "no shape: the file of a FNO is for one grid only"),
        (export_program, fno, "a.pt2", {"shape": (8, 0)}, r"shape\[1\]=0, expected a whole number"),
        (export_onnx, fno, "a.onnx", {"shape": (8, 8)}, "FNO has complex parameters, for which ONNX has no"),
        (export_program, nn.Identity, "a.pt2", {"shape": (8,)}, "the Identity does not say its in_channels"),
    ],
)
def test_models_and_paths_that_cannot_be_used_are_refused_before_any_work(
    function, make, path, options, message, tmp_path, monkeypatch
):
    def work(*given, **options):
        raise AssertionError("work was done")

    monkeypatch.setattr(torch.export, "export", work)
    (tmp_path / "there.pt2").write_text("old")
    with pytest.raises(InputError, match=message):
        function(make(), tmp_path / path, **options)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("there.pt2", "old")]


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(missing, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=rf"{missing} is not installed: pip install 'mano_op\[onnx\]'"):
        export_onnx(anchored(), tmp_path / "a.onnx")


def test_errors_of_tracing_are_passed_on(tmp_path):
    with pytest.raises(InputError, match=r"Branching cannot be traced by torch\.export") as caught:
        export_program(Branching(), tmp_path / "a.pt2", shape=(4,))
    said = str(caught.value)
    assert "data-dependent" in said and "TORCH_LOGS" not in said and "\n" not in said
    assert not list(tmp_path.iterdir())


def test_file_that_computes_another_function_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TOLERANCE", {torch.float32: -1.0})
    path = tmp_path / "a.pt2"
    path.write_text("old")
    with pytest.raises(InputError, match=r"the file of FNO would differ from the model by 0.0e\+00"):
        export_program(fno(), path, shape=(8, 8), overwrite=True)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
