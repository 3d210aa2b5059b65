"""What the README and the tutorials show is run, as a reader would run it."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from mano_op import Grid, generate_darcy, resample

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.py"))
BLOCKS = re.findall(
    r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE
)

# One thread: two of these may run side by side.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("tutorial", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_ends_in_the_assertion_on_its_number(tutorial: Path, tmp_path: Path) -> None:
    assert re.search(r"^assert .*<", tutorial.read_text(), flags=re.MULTILINE)
    run(tutorial, cwd=tmp_path)


def test_there_are_tutorials_and_blocks() -> None:
    assert TUTORIALS
    assert BLOCKS


def test_code_of_the_readme_runs(tmp_path: Path) -> None:
    """All blocks in one process, each with names and a folder of its own."""
    names = [f"block{number}" for number in range(len(BLOCKS))]
    for name, block in zip(names, BLOCKS, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "block.py").write_text(block)
    code = "import os, runpy, sys\nfor name in sys.argv[1:]:\n    os.chdir(name)\n"
    code += (
        "    print(name, flush=True)\n    runpy.run_path('block.py', run_name='__main__')\n    os.chdir('..')"
    )
    assert run("-W", "ignore::UserWarning", "-c", code, *names, cwd=tmp_path).count("block") >= len(BLOCKS)


def test_links_of_documents_lead_to_files() -> None:
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


HEAVY = {"torch", "neuralop", "scipy", "xarray", "zarr", "dask", "matplotlib", "pandas", "onnxruntime"}
EXTRAS = [
    "torch_harmonics",
    "the_well",
    "lightning",
    "xbatcher",
    "h5netcdf",
    "tensorboard",
    "huggingface_hub",
]


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import mano_op, mano_op.vision, mano_op.grid", HEAVY),
        ("import mano_op.data.store, mano_op.data.write, mano_op.problems", {"torch", "neuralop"}),
    ],
)
def test_an_import_brings_in_nothing_heavy_that_it_does_not_need(statement: str, absent: set[str]) -> None:
    code = f"import sys; {statement}; print(sorted({absent} & set(sys.modules)))"
    assert run("-c", code, cwd=ROOT).strip() == "[]"


@pytest.mark.parametrize(
    "first", ["import mano_op, mano_op.vision, neuralop", "import neuralop, mano_op.vision"]
)
def test_models_are_registered_once_both_packages_are_imported_even_without_extras(first: str) -> None:
    code = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
{first}
from neuralop.models.base_model import available_models
assert {{"mano", "mano_published", "mano_classifier", "swin_classifier"}} <= set(available_models())
import mano_op.train, mano_op.transfer, mano_op.data.loaders, mano_op.data.importers, mano_op.data.well
"""
    run("-W", "error", "-c", code, cwd=ROOT)


@pytest.mark.parametrize("package", ["mano_op", "mano_op.vision"])
def test_every_name_of_a_stub_is_what_the_package_gives(package: str) -> None:
    module = import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


def test_wrong_registration_costs_what_the_design_says(tmp_path: Path) -> None:
    """Several times the error of the interpolation; measured: 8.0 % for 1.5 %."""
    grids = {n: Grid.uniform((n, n)) for n in (16, 32)}
    wrong = {n: Grid.uniform((n, n), registration="cell") for n in (16, 32)}
    store = generate_darcy(tmp_path / "darcy.zarr", [16, 32], samples={"train": 20, "test": 1})
    coarse, fine = (
        torch.as_tensor(store.dataset(n)["pressure"].values, dtype=torch.float64) for n in (16, 32)
    )

    def error(there: dict[int, Grid]) -> float:
        off = resample(coarse, there[16], there[32], "linear") - fine
        return float((off.flatten(1).norm(dim=1) / fine.flatten(1).norm(dim=1)).mean())

    assert error(wrong) > 3 * error(grids)


def test_version_is_the_same_in_all_files() -> None:
    import mano_op

    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{mano_op.__version__}"' in pyproject
    assert f"version: {mano_op.__version__}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {mano_op.__version__}" in (ROOT / "CHANGELOG.md").read_text()
