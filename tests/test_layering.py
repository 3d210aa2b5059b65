"""Who may import whom, as a table, and the check that the package keeps to it."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mano_op"

# Module, side, and the packages of others that it may import. Blank lines separate levels, lowest
# first: a module imports only from the levels above it on this page. A new module needs a line here.
TABLE = """
errors                  base

options                 base    pydantic
data.mixed              data
paths                   base
labels                  base

grid                    base    numpy
files                   base    torch
machine                 use     torch
cost                    use     torch
memory                  use     torch
card                    use
vision.head             use     torch
vision.loaders          data    torch
data.chunking           data
problems.draws          data    numpy
vision.decode           data    numpy torch PIL
vision.resize           data    torch
vision.options          model
data.sampler            data    numpy torch
data.moments            data    numpy
data.rounded            data    numpy
layers.tiling           model   numpy
layers.eager            model   torch
layers.scores           model   torch
layers.native           model
layers.native.library   model

boundary                base
weights                 base    torch safetensors
description             base
registry                base    torch neuralop
layers.reference        model   torch
problems.spectral_grid  data
vision.images           data    numpy torch sklearn datasets
vision.augment          data    numpy torch
vision.card             use
layers.whole            model   numpy torch einops
layers.native.call      model   torch

resample                base    numpy scipy torch
vision.processor        data    torch
pretrained              base    torch huggingface_hub
data.importers.lazy     data    numpy xarray dask h5py
data.precision          data    numpy
data.times              data    numpy xarray
layers.chunks           model   torch
layers.native.elementwise model torch
layers.native.stencil   model   numpy torch
layers.anchors          model   numpy torch
layers.finer            model   torch
problems.random_field   data    numpy
problems.fourier        data    numpy
problems.cosine         data    numpy
problems.exponential    data    numpy
problems.solver_grid    data    numpy
data.layout             data    numpy

layers.native.window    model   torch
vision.judge            use     torch
layers.points           model   torch
layers.pyramid          model   torch
layers.regrid           model   numpy torch
layers.slots            model   numpy torch
problems.darcy          data    numpy scipy
problems.problem        data    numpy
problems.poisson        data    numpy scipy
problems.burgers        data    numpy scipy
problems.reaction_diffusion data numpy scipy
problems.navier_stokes  data    numpy scipy
data.coordinates        data    numpy xarray
data.source             data    numpy xarray dask
data.samples            data    numpy pandas xarray
data.values             data    numpy
data.transforms         data    numpy
data.channels           data    numpy
data.schema             data    numpy zarr

layers.native.small_windows model numpy torch
data.store              data    numpy xarray zarr

layers.level            model   torch
layers.window           model   numpy torch einops

layers.attention        model   torch einops

layers.multipole        model   torch
data.chunk_cache        data    numpy
data.jobs               data    dask distributed tqdm filelock
data.processor          data    torch neuralop
data.describe           data
data.digests            data    numpy

data.fields             data    numpy xarray dask distributed
data.check              data    numpy zarr tqdm
data.coarsen            data    numpy torch distributed
problems.generate       data    numpy distributed
layers.convolution      model   torch einops
models.block            model   torch einops
data.dataset            data    numpy torch
data.well               data    numpy torch
data.patches            data    numpy torch xarray

layers                  model
data.loaders            data    numpy torch
data.importers.neuralop data    numpy torch
data.importers.pdebench data    numpy xarray dask h5py
data.importers.the_well data    numpy xarray dask h5py
data.importers.fno_mat  data    numpy scipy xarray dask h5py
data.importers.netcdf   data    numpy pandas xarray
problems.recipes        data    numpy
data                    data
problems                data

data.importers          data
models.data_model       model   neuralop torch
models.coordinates      model   torch
vision.patches          model   torch einops

models.grid_model       model   torch einops neuralop

models.mano             model   torch
vision.block            model   torch einops
models.published        model   torch
vision.baselines        model   torch transformers
runs                    use     torch

models.traceable        model   torch
vision.classifier       model   torch einops

vision.swin             model   torch

models                  model
vision                  model
vision.runs             use     torch
export                  use     torch onnx onnxruntime onnxscript
train.options           use     pydantic
train.objective         use     neuralop
train.model_options     use     torch
train.distributed       use     torch
train.precision         use     torch
train.logging           use     torch wandb
train.optimizer         use     torch
train.symmetry          use     torch
train.perturbation      use     numpy torch
transfer.spectral       use     numpy torch
transfer.series         use     xarray
transfer.rollout        use     xarray
transfer.saved          use     numpy xarray
transfer.baselines      use     numpy torch
transfer.predict        use     numpy torch xarray
report.style            use     matplotlib
report.page             use

train.watched           use     torch tqdm
train.steps             use     torch
train.stopping          use     torch
vision.evaluate         use     torch tqdm
vision.start            use     torch
train.validation        use     torch
transfer.metrics        use     numpy torch
transfer.verdict        use     numpy xarray
transfer.entries        use

train.checkpoint        use     torch
transfer.predictors        use     torch
transfer.tables         use     numpy xarray

train.epochs            use     torch neuralop
train.folder            use
transfer.evaluate       use     numpy torch xarray tqdm
report.figures          use     numpy xarray matplotlib
report.spectra          use     numpy torch xarray matplotlib
report.panels           use     numpy xarray matplotlib

report.coarse           use     torch xarray
train.fit               use     torch
vision.fit              use     numpy torch
transfer                use

train                   use
report.samples          use     numpy xarray
report.sections         use     xarray

report.write            use     xarray

report                  use

__init__                use

demo                    use

cli                     use     *
"""
LEVELS = [[line.split() for line in level.splitlines()] for level in TABLE.strip().split("\n\n")]
LEVEL = {name: depth for depth, rows in enumerate(LEVELS) for name, *_ in rows}
SIDE = {name: side for rows in LEVELS for name, side, *_ in rows}
ALLOWED = {name: set(packages) for rows in LEVELS for name, _, *packages in rows}


def module_name(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree):
    """What a module imports, anywhere in it: modules of this package, and packages of others."""
    ours, others = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "mano_op":  # what follows is a module, or a name in the module before it
                parts = rest.split(".")
                prefixes = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
                ours.add(next((prefix for prefix in prefixes if prefix in MODULES), "__init__"))
            elif package not in sys.stdlib_module_names:
                others.add(package)
    return ours, others


IMPORTS = {name: imports(tree) for name, tree in MODULES.items()}


def reached(name):
    """The same, with all that those modules import in their turn."""
    seen, waiting = set(), {name}
    while waiting:
        seen.add(module := waiting.pop())
        waiting |= IMPORTS[module][0] - seen
    return seen, set().union(*(IMPORTS[module][1] for module in seen))


def on_side(side):
    return [name for name in MODULES if SIDE.get(name) == side]


def test_imports_are_found_wherever_they_stand():
    source = """
import os.path, torch.nn.functional as F
from mano_op import grid, Grid
from mano_op.errors import InputError
def late():
    import mano_op.problems.darcy
    from xarray import Dataset
"""
    assert imports(ast.parse(source)) == (
        {"grid", "__init__", "errors", "problems.darcy"},
        {"torch", "xarray"},
    )


def test_every_module_has_its_line():
    assert set(MODULES) - set(LEVEL) == set(), "give these modules a line in TABLE"


@pytest.mark.parametrize("name", [name for name in MODULES if name in LEVEL])
def test_imports_come_from_lower_levels_and_listed_packages(name):
    ours, others = IMPORTS[name]
    lower = {module for module in LEVEL if LEVEL[module] < LEVEL[name]}
    assert ours - lower == set()
    if ALLOWED[name] != {"*"}:
        assert others - ALLOWED[name] == set()


def test_no_cycles():
    graph = {name: ours for name, (ours, _) in IMPORTS.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(MODULES)  # raises CycleError


@pytest.mark.parametrize("name", on_side("model"))
def test_the_model_knows_nothing_of_stores_and_figures(name):
    assert reached(name)[1] & {"xarray", "zarr", "dask", "matplotlib"} == set()


@pytest.mark.parametrize("name", on_side("data"))
def test_the_data_know_nothing_of_the_model(name):
    assert {module for module in reached(name)[0] if SIDE.get(module) == "model"} == set()


@pytest.mark.parametrize(
    "name", [n for n in MODULES if n in ("data.store", "data.fields") or n.startswith("problems")]
)
def test_fields_are_made_and_stored_without_torch(name):
    assert reached(name)[1] & {"torch", "neuralop"} == set()


def test_a_release_of_neuraloperator_can_break_few_modules():
    touched = {name for name, (_, others) in IMPORTS.items() if "neuralop" in others}
    assert touched <= {
        "models.data_model",
        "models.grid_model",
        "data.processor",
        "registry",
        "train.epochs",
        "train.objective",
    }


@pytest.mark.parametrize("name", MODULES)
def test_imports_are_absolute_and_name_what_they_take(name):
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            assert all(alias.name != "*" for alias in node.names), f"line {node.lineno}: star import"
